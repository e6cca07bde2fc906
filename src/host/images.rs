//! The images that daemons make of their runners: which there are, and which are of no more use.

use super::config::Config;
use super::startup::{self, StartError};
use crate::containers::docker::endpoint;
use crate::containers::docker::image::RunnerImage;
use crate::containers::docker::settings::Image;
use crate::containers::docker::{self, DockerError};

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its full name.
    pub name: String,
    /// When it was made.
    pub created: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether a daemon that starts now would use it.
    pub current: bool,
}

/// Makes the image of the runner that a daemon with this configuration would use, unless the engine has it. Says its
/// name, and whether it is new.
///
/// # Errors
/// When there is no such runner, no way to the engine, or it refuses; or when another image is configured.
pub fn build(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Result<(String, bool), StartError> {
    let endpoint = endpoint::find(config.runtime.docker.host.as_deref(), env)?;
    match startup::docker_image(config)? {
        Image::Named(name) => Err(StartError::OtherImage { name }),
        Image::OfRunner(path) => Ok(docker::make_image(&endpoint, &path)?),
    }
}

/// The images that daemons made on the configured engine.
///
/// # Errors
/// When there is no way to the engine.
pub fn list(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Listed>, StartError> {
    let endpoint = endpoint::find(config.runtime.docker.host.as_deref(), env)?;
    let current = current(config);
    let found = docker::images(&endpoint)?;
    let listed = found.into_iter().map(|(name, it)| {
        let current = current.as_ref() == Some(&name);
        Listed { name, created: it.created, bytes: it.bytes, current }
    });
    Ok(listed.collect())
}

/// Removes those that no container uses and no daemon with this configuration would, and returns their names.
///
/// # Errors
/// When there is no way to the engine, or it refuses.
pub fn prune(config: &Config, env: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, StartError> {
    let endpoint = endpoint::find(config.runtime.docker.host.as_deref(), env)?;
    let listed = list(config, env)?;
    let names: Vec<String> = listed.into_iter().filter(|it| !it.current).map(|it| it.name).collect();
    docker::remove_images(&endpoint, &names).map_err(|error: DockerError| error.into())
}

/// The image of the runner as it is; none where there is no such runner, or another image is configured.
fn current(config: &Config) -> Option<String> {
    match startup::docker_image(config).ok()? {
        Image::OfRunner(path) => RunnerImage::of(&path).ok().map(|image| image.name()),
        Image::Named(_) => None,
    }
}
