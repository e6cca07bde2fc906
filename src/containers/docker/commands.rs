//! What commands ask of an engine once: who it is, which images there are.
//!
//! Each blocks, and is never to be called from a task.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::runtime::Builder;

use super::body::Common;
use super::endpoint::Endpoint;
use super::engine::{About, Engine, EngineError, Known};
use super::image::{self, RunnerImage};
use super::owners::{self, Owners};
use super::settings::{Settings, User};
use super::{DockerError, own_user, probe};

/// What an engine says of itself, and what was tried on it.
#[derive(Debug)]
pub struct Survey {
    /// What it says.
    pub about: About,
    /// The image that was asked for.
    pub image: Option<Known>,
    /// Who the agents are.
    pub owners: Owners,
    /// Whose a container's file was, or why that was not tried.
    pub tried: Result<User, String>,
    /// Containers that were left of earlier tries, and are removed.
    pub removed: Vec<String>,
}

/// Asks an engine who it is and for one image, and has a container of that image make a file in a folder, for people.
/// `ready` is called with the folder before. Blocks; never to be called from a task.
///
/// # Errors
/// See [`DockerError`].
pub fn survey(
    settings: &Settings,
    image: Option<&str>,
    ready: impl FnOnce(&Path),
) -> Result<Survey, DockerError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DockerError::Threads)?;
    let engine = Engine::new(settings.endpoint.clone());
    runtime.block_on(async {
        let about = engine.greet().await?;
        let owners = owners::decide(own_user(), settings.agent_uid, &about);
        let removed = probe::remove_left(&engine, &settings.doctor).await?;
        let untried = |about, removed, why: &str| {
            Ok(Survey { about, image: None, owners, tried: Err(why.into()), removed })
        };
        let Some(name) = image else { return untried(about, removed, "there is no image") };
        let Some(known) = engine.image(name).await? else {
            return untried(about, removed, "the image is not made yet");
        };
        let common = Common {
            installation: settings.installation.clone(),
            build: known.id.clone(),
            name: name.to_owned(),
            image: known.id.clone(),
            layout: settings.layout.clone(),
            user: owners.inside,
            userns: owners.userns,
            confinement: settings.confinement.clone(),
        };
        let tried = probe::probe(&engine, &common, &settings.probe_folder, ready).await;
        let tried = tried.map_err(|error| error.to_string());
        Ok(Survey { about, image: Some(known), owners, tried, removed })
    })
}

/// The images that daemons made, by name. Blocks; never to be called from a task.
///
/// # Errors
/// See [`DockerError`].
pub fn images(endpoint: &Endpoint) -> Result<BTreeMap<String, Known>, DockerError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DockerError::Threads)?;
    let mut found = runtime.block_on(Engine::new(endpoint.clone()).images(image::REPOSITORY))?;
    found.retain(|name, _| image::is_made(name));
    Ok(found)
}

/// Makes the image of a runner unless the engine has it; its name, and whether it is new. Blocks; never to be called
/// from a task.
///
/// # Errors
/// See [`DockerError`].
pub fn make_image(endpoint: &Endpoint, runner: &Path) -> Result<(String, bool), DockerError> {
    let image = RunnerImage::of(runner)?;
    let name = image.name();
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DockerError::Threads)?;
    let engine = Engine::new(endpoint.clone());
    let is_new = runtime.block_on(async {
        if engine.image(&name).await?.is_some() {
            return Ok::<_, EngineError>(false);
        }
        engine.import((image::REPOSITORY, image.tag.as_str()), image.files, RunnerImage::changes()).await?;
        Ok(true)
    })?;
    Ok((name, is_new))
}

/// Removes those of these images that no container uses, and returns which. Blocks; never to be called from a task.
///
/// # Errors
/// See [`DockerError`].
pub fn remove_images(endpoint: &Endpoint, names: &[String]) -> Result<Vec<String>, DockerError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(DockerError::Threads)?;
    let engine = Engine::new(endpoint.clone());
    let removed = runtime.block_on(async {
        let mut removed = Vec::new();
        for name in names {
            if engine.remove_image(name).await? {
                removed.push(name.clone());
            }
        }
        Ok::<_, EngineError>(removed)
    });
    Ok(removed?)
}
