//! The beginning of a connection: who the engine is, of what containers are made there and as whom they run, and what
//! an earlier daemon left. What is missing then is looked for again by the start that needs it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::body::{Common, LABEL_BUILD, LABEL_IMAGE, LABEL_INSTALLATION};
use super::engine::{About, EngineError, Listed};
use super::image::{self, RunnerImage};
use super::owners::{self, Owners};
use super::probe::{self, ProbeError};
use super::settings::{Image, Layout, User};
use super::{DockerError, KILL_SLACK, Shared, Taken, lock, own_user, whose};
use crate::base::OsDisk;
use crate::base::disk::replace;
use crate::containers::{ContainerEvent, Found};

/// Longest file that says whose the agents' files were: two numbers and an address.
const OWNER_FILE_MAX: usize = 4_096;

/// What containers are created of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Current {
    /// The image's name.
    pub name: String,
    /// Its id. A name may be given to another image at any time.
    pub id: String,
}

/// Whose the agents' files were when an engine at this address last told; none when it never did.
pub fn last_owner(file: &Path, address: &str) -> Option<User> {
    let text = std::fs::read_to_string(file).ok().filter(|text| text.len() <= OWNER_FILE_MAX)?;
    let (numbers, of) = text.trim_end().split_once(" at ")?;
    let (uid, gid) = numbers.split_once(':')?;
    (of == address).then_some(User { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

impl Shared {
    /// Greets the engine and settles what can be settled now. An image that is missing stands in the way of starts
    /// only.
    pub async fn connect(&self) -> Result<(), DockerError> {
        let about = self.engine.greet().await?;
        self.warn_of_limits(&about);
        // Before anything of the kind is begun here. What does not work now is done by the next daemon.
        if !lock(&self.table).greeted {
            for name in probe::remove_left(&self.engine, &self.settings.doctor).await.unwrap_or_default() {
                self.warn(format!("removed the container {name}, which a killed doctor had left"));
            }
        }
        let decided = owners::decide(own_user(), self.settings.agent_uid, &about);
        {
            let mut table = lock(&self.table);
            table.greeted = true;
            if table.decided != Some(decided) {
                table.decided = Some(decided);
                (table.owners, table.tried) = (None, None);
            }
        }
        match self.settle().await {
            Err(
                error @ (DockerError::NoImage { .. } | DockerError::Image(_) | DockerError::Replaced { .. }),
            ) => {
                self.warn(error.reason());
                Ok(())
            }
            Err(DockerError::Engine(error)) if !error.is_outage() => {
                self.warn(DockerError::Engine(error).reason());
                Ok(())
            }
            other => other,
        }
    }

    /// Says what of the configuration this engine cannot keep to.
    fn warn_of_limits(&self, about: &About) {
        let limits = &self.settings.confinement;
        let asked = |name: &str| match name {
            "pids" => limits.pids > 0,
            "cpu" => limits.nano_cpus > 0,
            _ => limits.memory > 0,
        };
        let missing: Vec<&str> = about.unlimited.iter().copied().filter(|name| asked(name)).collect();
        if !missing.is_empty() {
            self.warn(format!(
                "the engine at {} cannot limit {} of containers, so these limits of [runtime.docker] do not hold; see \
                 `lamplighter doctor`",
                self.engine.address(),
                missing.join(", ")
            ));
        }
    }

    /// Settles of what containers are made and as whom they run, as far as that is not settled.
    async fn settle(&self) -> Result<(), DockerError> {
        let is_settled = || {
            let table = lock(&self.table);
            table.image.is_some() && table.tried.is_some()
        };
        if is_settled() {
            return Ok(());
        }
        let _settling = self.settling.lock().await;
        let (image, decided) = {
            let table = lock(&self.table);
            (table.image.clone(), table.decided)
        };
        let image = match image {
            Some(image) => Ok(image),
            None => self.find_image().await,
        };
        let Some(decided) = decided else { return image.map(drop) };
        match &image {
            Ok(image) => {
                lock(&self.table).image = Some(image.clone());
                self.settle_owners(decided, image).await
            }
            Err(_) => {
                // What follows from the engine's words holds until it can be tried, where words are enough.
                if !decided.mapped {
                    lock(&self.table).owners.get_or_insert(decided);
                }
                image.map(drop)
            }
        }
    }

    /// The image that is configured, or the one that is made; made now where the engine has it not.
    async fn find_image(&self) -> Result<Current, DockerError> {
        let path = match &self.settings.image {
            Image::OfRunner(path) => path.clone(),
            Image::Named(name) => {
                return match self.engine.image(name).await? {
                    Some(found) => Ok(Current { name: name.clone(), id: found.id }),
                    None => Err(DockerError::NoImage {
                        address: self.engine.address().to_owned(),
                        name: name.clone(),
                        theirs: self.settings.layout != Layout::Own,
                    }),
                };
            }
        };
        let (name, build) = self.made.clone().unwrap_or_default();
        if let Some(found) = self.engine.image(&name).await? {
            return Ok(Current { name, id: found.id });
        }
        let read = path.clone();
        let made = tokio::task::spawn_blocking(move || RunnerImage::of(&read)).await;
        let image = made.map_err(|error| DockerError::Threads(std::io::Error::other(error)))??;
        if image.build != build {
            return Err(DockerError::Replaced { path });
        }
        // Under another name than at the start where the host's certificates are newer.
        let name = image.name();
        if let Some(found) = self.engine.image(&name).await? {
            return Ok(Current { name, id: found.id });
        }
        let names = (image::REPOSITORY, image.tag.as_str());
        self.engine.import(names, image.files, RunnerImage::changes()).await?;
        match self.engine.image(&name).await? {
            Some(found) => Ok(Current { name, id: found.id }),
            None => {
                Err(DockerError::NoImage { address: self.engine.address().to_owned(), name, theirs: false })
            }
        }
    }

    /// Whose the files of a container are, by trying, unless that was done.
    async fn settle_owners(&self, decided: Owners, image: &Current) -> Result<(), DockerError> {
        if lock(&self.table).tried.is_some() {
            return Ok(());
        }
        let common = self.common_of(image, decided);
        let folder = &self.settings.probe_folder;
        let (owners, told) = match probe::probe(&self.engine, &common, folder, &self.ready).await {
            Ok(found) => (decided.proved(found).map_err(DockerError::Owners)?, true),
            Err(ProbeError::Engine(error)) if error.is_outage() => return Err(error.into()),
            Err(why) if decided.mapped => return Err(DockerError::Owners(why.to_string())),
            Err(why) => {
                self.warn(format!("it was not tried whose the files of a container are: {why}"));
                (decided, false)
            }
        };
        let User { uid, gid } = owners.outside;
        let text = format!("{uid}:{gid} at {}\n", self.engine.address());
        if let Err(error) = replace(&OsDisk, &self.settings.owner_file, text.as_bytes()) {
            self.warn(format!("cannot write {}: {error}", self.settings.owner_file.display()));
        }
        let mut table = lock(&self.table);
        (table.owners, table.tried) = (Some(owners), Some(told));
        Ok(())
    }

    /// What is the same for all containers from now on, settled where it is not. The error is for people.
    pub async fn common(&self) -> Result<(Common, Owners), DockerError> {
        self.settle().await?;
        let (image, owners) = {
            let table = lock(&self.table);
            (table.image.clone(), table.owners)
        };
        match (image, owners) {
            (Some(image), Some(owners)) => Ok((self.common_of(&image, owners), owners)),
            // The engine was lost meanwhile.
            _ => Err(DockerError::Engine(EngineError::Away {
                address: self.engine.address().to_owned(),
                why: "it is being asked what it has".into(),
            })),
        }
    }

    fn common_of(&self, image: &Current, owners: Owners) -> Common {
        let settings = &self.settings;
        Common {
            installation: settings.installation.clone(),
            build: self.made.as_ref().map_or_else(|| image.id.clone(), |(_, build)| build.clone()),
            name: image.name.clone(),
            image: image.id.clone(),
            layout: settings.layout.clone(),
            user: owners.inside,
            userns: owners.userns,
            confinement: settings.confinement.clone(),
        }
    }

    /// The image of this id is gone: the next start looks for one.
    pub fn forget_image(&self, id: &str) {
        let image = &mut lock(&self.table).image;
        if image.as_ref().is_some_and(|it| it.id == id) {
            *image = None;
        }
    }

    /// A name may have been given to a new image: containers are made of that from now on.
    pub async fn renew_image(&self) {
        let Image::Named(name) = &self.settings.image else { return };
        // What goes wrong is said by the start that needs it.
        if let Ok(found) = self.engine.image(name).await {
            lock(&self.table).image = found.map(|it| Current { name: name.clone(), id: it.id });
        }
    }

    pub async fn listed(&self) -> Result<Vec<Listed>, EngineError> {
        self.engine.list(LABEL_INSTALLATION, &self.settings.installation).await
    }

    /// Whether it is known what an earlier daemon left.
    pub fn is_stock_taken(&self) -> bool {
        !matches!(lock(&self.table).stock, Taken::Asked | Taken::Failed | Taken::Late)
    }

    /// What an earlier daemon left: those that run of what would be started now may be taken over, the others must go.
    /// A container that is not taken over should not write while its session is looked at, so each is given its grace;
    /// one that does not go blocks only its session.
    pub async fn take_stock(self: &Arc<Self>) -> Result<Vec<Found>, EngineError> {
        let image = lock(&self.table).image.clone();
        let mut found = Vec::new();
        for it in self.listed().await? {
            match whose(&it) {
                (Some(name), Some(attempt)) if it.running && self.is_same(&it, image.as_ref()) => {
                    lock(&self.table).found.insert((name.clone(), attempt), it.id);
                    found.push(Found { name, attempt: Some(attempt) });
                }
                (name, _) => self.give_up(it.id, name),
            }
        }
        self.first_tries(Duration::from(self.settings.stop_grace) + KILL_SLACK).await;
        Ok(found)
    }

    /// Whether a container runs what one would that is started now. Where there is no image for one, nothing better can
    /// run.
    fn is_same(&self, it: &Listed, image: Option<&Current>) -> bool {
        match (&self.made, image) {
            (Some((_, build)), _) => it.labels.get(LABEL_BUILD) == Some(build),
            (None, Some(image)) => digest(&it.image) == digest(&image.id),
            (None, None) => match &self.settings.image {
                Image::Named(name) => it.labels.get(LABEL_IMAGE) == Some(name),
                Image::OfRunner(_) => false,
            },
        }
    }

    /// Says what was found to whoever waits for it.
    pub fn tell_stock(&self, found: Vec<Found>) {
        let mut table = lock(&self.table);
        if matches!(table.stock, Taken::Late) {
            table.stock = Taken::Told;
            (self.sink)(ContainerEvent::Listed { found });
        } else {
            table.stock = Taken::Found(found);
        }
        self.back(&mut table);
    }
}

/// An id without what some engines write before it.
fn digest(id: &str) -> &str {
    id.strip_prefix("sha256:").unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_the_files_were_counts_for_the_engine_that_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("owner");
        assert_eq!(last_owner(&file, "unix:///a.sock"), None);
        std::fs::write(&file, "10001:10001 at unix:///a.sock\n").unwrap();
        assert_eq!(last_owner(&file, "unix:///a.sock"), Some(User { uid: 10_001, gid: 10_001 }));
        assert_eq!(last_owner(&file, "unix:///b.sock"), None);
        for damaged in ["", "10001 at unix:///a.sock", "x:y at unix:///a.sock", "1:1 at unix:///a"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(last_owner(&file, "unix:///a.sock"), None, "{damaged:?}");
        }
    }

    #[test]
    fn ids_are_compared_without_their_prefix() {
        assert_eq!(digest("sha256:01"), digest("01"));
    }
}
