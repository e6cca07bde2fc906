//! The engine's operations that are used. The only file that names bollard.
//!
//! Invariant: every call has a deadline, which counts from when it is asked for, and of each class at most
//! [`OPERATIONS_MAX`] or [`ENDS_MAX`] are under way; streams count not. So no question and no kill waits for a slow
//! create.
//! Invariant: paths name no version of the interface (bollard 0.21.1 leaves it out), so an engine answers in its
//! newest; whether that is one of those that are known here is for [`About::interface`] to say.
//! Invariant: an error names the engine's address, what was tried and what the engine said.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard::models::{ContainerCreateBody, EventMessageTypeEnum};
use bollard::query_parameters as query;
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::body::Body;
use super::endpoint::Endpoint;

/// Most questions under way, and most changes: an engine works them off one by one where it matters, and more of them
/// only make each slower.
pub const OPERATIONS_MAX: usize = 8;
/// Most containers that are being ended: for most of that time they only have their grace.
pub const ENDS_MAX: usize = 32;
/// The oldest version of the interface that was tried (engine 20.10).
pub const INTERFACE_TRIED: (u32, u32) = (1, 41);
/// Streams stay open; how long nothing may come is decided by whoever reads them.
const STREAM_TIMEOUT_SECS: u64 = 365 * 24 * 3_600;
/// By how much the client's own limit exceeds ours, which is to be the one that counts.
const CLIENT_SLACK_SECS: u64 = 30;
/// The wait between two tries to remove what is being removed.
const REMOVE_AGAIN: Duration = Duration::from_millis(100);
/// Longest text of an engine that is passed on.
const SAID_MAX: usize = 600;

/// How long an engine may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a question that it answers from memory.
    pub ask: Duration,
    /// For a create or a start: on a loaded machine with a slow disk seconds, never this long.
    pub change: Duration,
    /// For an image of some megabytes to go over.
    pub load: Duration,
    /// For its first answer before the daemon starts without it: on a loaded machine seconds.
    pub first_answer: Duration,
    /// For all else that a start would like to know of an engine that answers: an image is made, a container tries
    /// whose its files are.
    pub first_stock: Duration,
    /// Between two comparisons of what it lists with what is believed: the floor below its events, and how soon one
    /// that hangs is noticed.
    pub compare: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            ask: Duration::from_secs(20),
            change: Duration::from_secs(60),
            load: Duration::from_secs(180),
            first_answer: Duration::from_secs(10),
            first_stock: Duration::from_secs(60),
            compare: Duration::from_secs(30),
        }
    }
}

/// How much of what a container wrote is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// From its first line on.
    All,
    /// What it writes from now on.
    New,
}

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    /// Nobody answers.
    #[error("no engine answers at {address}: {why}")]
    Away {
        /// Where.
        address: String,
        /// What the system said.
        why: String,
    },
    /// It did not answer in time.
    #[error("the engine at {address} did not {doing} within {} s", .within.as_secs())]
    Late {
        /// Where.
        address: String,
        /// What was asked.
        doing: &'static str,
        /// The deadline.
        within: Duration,
    },
    /// It said no.
    #[error("the engine would not {doing}: {said}")]
    Refused {
        /// What was asked.
        doing: &'static str,
        /// The status of its answer.
        status: u16,
        /// Its words.
        said: String,
    },
    /// Its answer cannot be understood.
    #[error("the engine's answer to {doing:?} cannot be used: {why}")]
    Strange {
        /// What was asked.
        doing: &'static str,
        /// What is wrong.
        why: String,
    },
}

impl EngineError {
    /// Whether there is no such thing.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// Whether it gave no answer.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Late { .. })
    }

    /// Whether it may have been done all the same.
    pub fn is_unsure(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }

    /// What may be done about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Away { .. } => {
                "start Docker (scripts/docker-engine, or systemctl start docker), see that this user may open the \
                 socket, set [runtime.docker] host, or use --runtime process"
            }
            Self::Late { .. } => "see the engine's log and the machine's load",
            Self::Refused { .. } => "see [runtime.docker] in the configuration, and the engine's log",
            Self::Strange { .. } => "see `lamplighter doctor` for the engine's version",
        }
    }
}

/// How an engine's interface suits what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// It is one of those that are known.
    Known,
    /// It is older than any that was tried; the text names that one.
    Old(String),
    /// It has left behind the newest that is known, which the text names.
    New(String),
    /// It names no version.
    Unnamed,
}

/// What an engine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its version.
    pub version: String,
    /// The version of its interface.
    pub api: String,
    /// The oldest version of its interface.
    pub api_min: String,
    /// `1` or `2`.
    pub cgroups: String,
    /// What it cannot limit: `memory`, `swap`, `pids`, `cpu`.
    pub unlimited: Vec<&'static str>,
    /// Its security options, by name: `seccomp`, `apparmor`, `rootless`, `userns`.
    pub security: Vec<String>,
    /// The OCI runtimes that it knows.
    pub runtimes: Vec<String>,
    /// Its operating system.
    pub system: String,
    /// Its storage driver.
    pub storage: String,
    /// Whether it is Podman behind Docker's interface.
    pub is_podman: bool,
}

impl About {
    /// Whether it speaks what is spoken here: requests name no version, so it answers in its newest, and what is known
    /// of that must lie between the oldest that it still has and that.
    pub fn interface(&self) -> Interface {
        let number = |text: &str| {
            let (major, minor) = text.split_once('.')?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        };
        let known = API_DEFAULT_VERSION.to_string();
        match (number(&self.api), number(&self.api_min), number(&known)) {
            (None, ..) => Interface::Unnamed,
            (Some(newest), ..) if newest < INTERFACE_TRIED => {
                Interface::Old(format!("{}.{}", INTERFACE_TRIED.0, INTERFACE_TRIED.1))
            }
            (_, Some(oldest), Some(ours)) if oldest > ours => Interface::New(known),
            _ => Interface::Known,
        }
    }

    /// Whether its root is a user's.
    pub fn is_rootless(&self) -> bool {
        self.security.iter().any(|it| it == "rootless")
    }

    /// Whether users in containers are other users outside.
    pub fn remaps_users(&self) -> bool {
        self.security.iter().any(|it| it == "userns")
    }
}

/// A container of ours that the engine lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: String,
    /// Its labels, and those of its image.
    pub labels: BTreeMap<String, String>,
    /// The id of its image.
    pub image: String,
    /// Whether it runs.
    pub running: bool,
}

/// An image that the engine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its id: a digest of what it is.
    pub id: String,
    /// When it was made, as the engine writes it.
    pub created: String,
    /// Its size.
    pub bytes: u64,
}

/// A container that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its id.
    pub id: String,
    /// What the engine will not do of what was asked, in its words.
    pub warnings: Vec<String>,
}

/// How a container is, or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Whether it runs.
    pub running: bool,
    /// With which code its first process ended.
    pub code: Option<i64>,
    /// Whether the kernel killed one of its processes for want of memory.
    pub out_of_memory: bool,
}

/// News of a container of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It ended.
    Died {
        /// Its id.
        id: String,
    },
    /// The kernel killed one of its processes for want of memory.
    OutOfMemory {
        /// Its id.
        id: String,
    },
}

/// An engine. Connections are made as they are needed: one that was restarted needs nothing else.
pub struct Engine {
    endpoint: Endpoint,
    patience: Patience,
    questions: Semaphore,
    changes: Semaphore,
    ends: Semaphore,
}

/// What is asked of an engine, by what it may have to wait for.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// Something that it answers from memory, and signals.
    Question,
    /// A create, a start, an image.
    Change,
    /// The end of a container.
    End,
}

impl Engine {
    /// Names the engine; nothing is asked of it yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self::with(endpoint, Patience::default())
    }

    /// As [`new`](Self::new), with another patience.
    pub fn with(endpoint: Endpoint, patience: Patience) -> Self {
        Self {
            endpoint,
            patience,
            questions: Semaphore::new(OPERATIONS_MAX),
            changes: Semaphore::new(OPERATIONS_MAX),
            ends: Semaphore::new(ENDS_MAX),
        }
    }

    /// How long it may take.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.endpoint.address
    }

    fn client(&self, timeout: u64) -> Result<Docker, EngineError> {
        let address = self.address();
        let client = match address.strip_prefix("unix://") {
            Some(_) => Docker::connect_with_unix(address, timeout, API_DEFAULT_VERSION),
            None => Docker::connect_with_http(address, timeout, API_DEFAULT_VERSION),
        };
        client.map_err(|error| self.failed("connect", &error))
    }

    fn failed(&self, doing: &'static str, error: &bollard::errors::Error) -> EngineError {
        use bollard::errors::Error;
        match error {
            Error::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { doing, status: *status_code, said: said(message) }
            }
            Error::JsonDataError { .. } | Error::JsonSerdeError { .. } | Error::APIVersionParseError {} => {
                EngineError::Strange { doing, why: error.to_string() }
            }
            Error::DockerStreamError { error } => {
                EngineError::Refused { doing, status: 500, said: said(error) }
            }
            other => EngineError::Away { address: self.address().to_owned(), why: innermost(other) },
        }
    }

    /// One operation: its turn, its deadline, its error.
    async fn ask<T, F>(
        &self,
        class: Class,
        doing: &'static str,
        within: Duration,
        call: F,
    ) -> Result<T, EngineError>
    where
        F: AsyncFnOnce(Docker) -> Result<T, bollard::errors::Error>,
    {
        let late = || EngineError::Late { address: self.address().to_owned(), doing, within };
        // Its own limit counts from another moment, and is not told from a connection that was lost.
        let client = self.client(within.as_secs() + CLIENT_SLACK_SECS)?;
        let turns = match class {
            Class::Question => &self.questions,
            Class::Change => &self.changes,
            Class::End => &self.ends,
        };
        let turn = async {
            // The semaphore is never closed.
            let _turn = turns.acquire().await;
            call(client).await
        };
        match tokio::time::timeout(within, turn).await {
            Err(_) => Err(late()),
            Ok(done) => done.map_err(|error| self.failed(doing, &error)),
        }
    }

    /// Asks the engine who it is.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn greet(&self) -> Result<About, EngineError> {
        let (version, info) = self
            .ask(Class::Question, "say who it is", self.patience.ask, async |docker| {
                Ok((docker.version().await?, docker.info().await?))
            })
            .await?;
        let limits = [
            ("memory", info.memory_limit),
            ("swap", info.swap_limit),
            ("pids", info.pids_limit),
            ("cpu", info.cpu_cfs_quota),
        ];
        // Options are written `name=seccomp,profile=default`.
        let option = |text: String| {
            let name = text.split(',').find_map(|part| part.strip_prefix("name="));
            name.unwrap_or(&text).to_owned()
        };
        let mut runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
        runtimes.sort();
        let mut parts = version.components.iter().flatten();
        let is_podman = parts.any(|it| it.name.to_ascii_lowercase().contains("podman"));
        Ok(About {
            is_podman,
            version: version.version.unwrap_or_default(),
            api: version.api_version.unwrap_or_default(),
            api_min: version.min_api_version.unwrap_or_default(),
            cgroups: info.cgroup_version.map(|it| it.to_string()).unwrap_or_default(),
            unlimited: limits
                .into_iter()
                .filter(|(_, can)| *can == Some(false))
                .map(|(name, _)| name)
                .collect(),
            security: info.security_options.unwrap_or_default().into_iter().map(option).collect(),
            runtimes,
            system: info.operating_system.unwrap_or_default(),
            storage: info.driver.unwrap_or_default(),
        })
    }

    /// Asks the engine for nothing but an answer.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.ask(Class::Question, "answer", self.patience.ask, async |docker| docker.ping().await.map(drop))
            .await
    }

    /// Creates a container.
    ///
    /// # Errors
    /// See [`EngineError`]; missing when the image is.
    pub async fn create(&self, name: &str, body: &Body) -> Result<Made, EngineError> {
        let doing = "create a container";
        let strange = |error: serde_json::Error| EngineError::Strange { doing, why: error.to_string() };
        let body: ContainerCreateBody =
            serde_json::from_value(serde_json::to_value(body).map_err(strange)?).map_err(strange)?;
        let options = query::CreateContainerOptionsBuilder::new().name(name).build();
        let made = self
            .ask(Class::Change, doing, self.patience.change, async |docker| {
                docker.create_container(Some(options), body).await
            })
            .await?;
        let warnings = made.warnings.into_iter().map(|it| said(&it)).collect();
        Ok(Made { id: made.id, warnings })
    }

    /// Starts a container.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.ask(Class::Change, "start a container", self.patience.change, async |docker| {
            docker.start_container(id, None::<query::StartContainerOptions>).await
        })
        .await
    }

    /// Sends a signal to a container's first process.
    ///
    /// # Errors
    /// See [`EngineError`]; refused when it does not run.
    pub async fn signal(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let options = query::KillContainerOptionsBuilder::new().signal(signal).build();
        self.ask(Class::Question, "signal a container", self.patience.ask, async |docker| {
            docker.kill_container(id, Some(options)).await
        })
        .await
    }

    /// Ends a container if it runs, and removes it. One that is gone already is no error.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let done = self.ask(Class::End, "remove a container", self.patience.change, async |docker| {
            docker.remove_container(id, Some(options)).await
        });
        match done.await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// Asks a container to end within the grace, in seconds, kills it if it does not, and removes it.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn end(&self, id: &str, grace_secs: i32) -> Result<(), EngineError> {
        let options = query::StopContainerOptionsBuilder::new().t(grace_secs).build();
        let within = self.patience.change + Duration::from_secs(u64::try_from(grace_secs).unwrap_or(0));
        let done = self.ask(Class::End, "stop a container", within, async |docker| {
            docker.stop_container(id, Some(options)).await
        });
        match done.await {
            // One that does not run, or is gone: what is left is to remove it.
            Err(EngineError::Refused { status: 304 | 404 | 409, .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        let limit = tokio::time::Instant::now() + self.patience.change;
        loop {
            match self.remove(id).await {
                // Somebody else removes it; there is no other way to hear of the end than to ask again.
                Err(EngineError::Refused { status: 409, .. }) if tokio::time::Instant::now() < limit => {
                    tokio::time::sleep(REMOVE_AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// How a container is; none when there is no such.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn state(&self, id: &str) -> Result<Option<State>, EngineError> {
        let done = self.ask(Class::Question, "say how a container is", self.patience.ask, async |docker| {
            docker.inspect_container(id, None::<query::InspectContainerOptions>).await
        });
        match done.await {
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
            Ok(found) => {
                let state = found.state.unwrap_or_default();
                Ok(Some(State {
                    running: state.running == Some(true),
                    code: state.exit_code,
                    out_of_memory: state.oom_killed == Some(true),
                }))
            }
        }
    }

    /// Waits until a container has ended, and says with which code.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn wait(&self, id: &str) -> Result<i64, EngineError> {
        use bollard::errors::Error;
        self.ask(Class::Change, "wait for a container", self.patience.change, async |docker| {
            let mut ends = docker.wait_container(id, None::<query::WaitContainerOptions>);
            match ends.next().await {
                Some(Ok(end)) => Ok(end.status_code),
                Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(code),
                Some(Err(error)) => Err(error),
                None => Ok(0),
            }
        })
        .await
    }

    /// All containers with this label and value.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn list(&self, label: &str, value: &str) -> Result<Vec<Listed>, EngineError> {
        let filters = HashMap::from([("label", vec![format!("{label}={value}")])]);
        let options = query::ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let found = self
            .ask(Class::Question, "list containers", self.patience.ask, async |docker| {
                docker.list_containers(Some(options)).await
            })
            .await?;
        let listed = |it: bollard::models::ContainerSummary| {
            use bollard::models::ContainerSummaryStateEnum as State;
            let running = [State::RUNNING, State::PAUSED, State::RESTARTING, State::STOPPING];
            Some(Listed {
                id: it.id?,
                labels: it.labels.unwrap_or_default().into_iter().collect(),
                image: it.image_id.unwrap_or_default(),
                running: it.state.is_some_and(|state| running.contains(&state)),
            })
        };
        Ok(found.into_iter().filter_map(listed).collect())
    }

    /// The image of this name; none when there is no such.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn image(&self, name: &str) -> Result<Option<Known>, EngineError> {
        let done = self.ask(Class::Question, "look for an image", self.patience.ask, async |docker| {
            docker.inspect_image(name).await
        });
        match done.await {
            Ok(found) => Ok(Some(Known {
                id: found.id.unwrap_or_default(),
                created: found.created.map(|it| it.to_string()).unwrap_or_default(),
                bytes: found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
            })),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The images of a repository, by full name.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn images(&self, repository: &str) -> Result<BTreeMap<String, Known>, EngineError> {
        let filters = HashMap::from([("reference", vec![repository.to_owned()])]);
        let options = query::ListImagesOptionsBuilder::new().filters(&filters).build();
        let found = self
            .ask(Class::Question, "list images", self.patience.ask, async |docker| {
                docker.list_images(Some(options)).await
            })
            .await?;
        let mut images = BTreeMap::new();
        for it in found {
            let known = Known {
                id: it.id,
                created: jiff::Timestamp::from_second(it.created)
                    .map(|at| at.to_string())
                    .unwrap_or_default(),
                bytes: u64::try_from(it.size).unwrap_or(0),
            };
            images.extend(it.repo_tags.into_iter().map(|name| (name, known.clone())));
        }
        Ok(images)
    }

    /// Removes an image that no container uses; false when one does.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn remove_image(&self, name: &str) -> Result<bool, EngineError> {
        let done = self.ask(Class::Change, "remove an image", self.patience.change, async |docker| {
            docker.remove_image(name, None::<query::RemoveImageOptions>, None).await
        });
        match done.await {
            Ok(_) => Ok(true),
            Err(EngineError::Refused { status: 404, .. }) => Ok(true),
            Err(EngineError::Refused { status: 409, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes an image from the files of a tar archive.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn import(
        &self,
        (repository, tag): (&str, &str),
        files: Vec<u8>,
        changes: Vec<String>,
    ) -> Result<(), EngineError> {
        let mut options =
            query::CreateImageOptionsBuilder::new().from_src("-").repo(repository).tag(tag).build();
        options.changes = changes;
        self.ask(Class::Change, "take an image", self.patience.load, async |docker| {
            let body = bollard::body_full(files.into());
            docker.create_image(Some(options), Some(body), None).try_for_each(async |_| Ok(())).await
        })
        .await
    }

    /// What a container writes, in pieces, until it ends.
    ///
    /// # Errors
    /// When there is no way to the engine.
    pub fn output(
        &self,
        id: &str,
        which: Output,
    ) -> Result<impl Stream<Item = Vec<u8>> + Send + use<>, EngineError> {
        // Not by time: the engine counts that in whole seconds, and what was written in the same one came again.
        let tail = match which {
            Output::All => "all",
            Output::New => "0",
        };
        let options = query::LogsOptionsBuilder::new().follow(true).stdout(true).stderr(true).tail(tail);
        let pieces = self.client(STREAM_TIMEOUT_SECS)?.logs(id, Some(options.build()));
        Ok(pieces
            .take_while(|piece| std::future::ready(piece.is_ok()))
            .filter_map(|piece| std::future::ready(piece.ok().map(|it| it.into_bytes().to_vec()))))
    }

    /// News of all containers with this label and value, from `since` (seconds of the epoch) on. Ends with the first
    /// error, and whenever the engine does.
    ///
    /// # Errors
    /// When there is no way to the engine.
    pub fn news(
        &self,
        label: &str,
        value: &str,
        since: i64,
    ) -> Result<impl Stream<Item = Result<News, EngineError>> + Send + use<'_>, EngineError> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{label}={value}")]),
            ("event", vec!["die".to_owned(), "oom".to_owned()]),
        ]);
        let options = query::EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters);
        let events = self.client(STREAM_TIMEOUT_SECS)?.events(Some(options.build()));
        Ok(events.filter_map(|event| {
            let news = match event {
                Err(error) => Some(Err(self.failed("tell its events", &error))),
                Ok(event) if event.typ == Some(EventMessageTypeEnum::CONTAINER) => {
                    let id = event.actor.and_then(|actor| actor.id);
                    match (event.action.as_deref(), id) {
                        (Some("die"), Some(id)) => Some(Ok(News::Died { id })),
                        (Some("oom"), Some(id)) => Some(Ok(News::OutOfMemory { id })),
                        _ => None,
                    }
                }
                Ok(_) => None,
            };
            std::future::ready(news)
        }))
    }
}

/// An engine's words, bounded.
fn said(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect()
}

/// The cause that says most: errors of connections are wrapped several times.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}
