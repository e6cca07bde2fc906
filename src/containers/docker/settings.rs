//! What a container may do and use, as the configuration has it.

use std::path::PathBuf;

use super::endpoint::Endpoint;
use crate::base::Ms;

/// A user and group, as numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User number.
    pub uid: u32,
    /// Group number.
    pub gid: u32,
}

/// What a container may do and use. The default is as tight as an agent can work with; each relaxation is a key of
/// the configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Confinement {
    /// `none`, `bridge`, or the name of a network.
    pub network: String,
    /// Whether the image's own files are read-only.
    pub read_only_root: bool,
    /// Whether no program can gain a right that the agent has not.
    pub no_new_privileges: bool,
    /// Capabilities beyond none.
    pub add_capabilities: Vec<String>,
    /// Whether the engine puts a first process before the agent that reaps what others leave behind.
    pub init: bool,
    /// Most processes and threads; -1 for no limit.
    pub pids: i64,
    /// Bytes of memory, none of them swap; 0 for no limit.
    pub memory: i64,
    /// Billionths of a processor; 0 for no limit.
    pub nano_cpus: i64,
    /// Bytes of `/tmp`, and of the home.
    pub tmp_bytes: u64,
    /// Bytes of output that the engine keeps.
    pub log_bytes: u64,
    /// Another OCI runtime of the engine, such as `runsc`.
    pub oci_runtime: Option<String>,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            network: "bridge".into(),
            read_only_root: true,
            no_new_privileges: true,
            add_capabilities: Vec::new(),
            init: true,
            pids: 512,
            memory: 2 << 30,
            nano_cpus: 2_000_000_000,
            tmp_bytes: 256 << 20,
            log_bytes: 4 << 20,
            oci_runtime: None,
        }
    }
}

/// Whose runner an image holds: it says where things are, and how it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Ours, or one that is told by the environment where things are.
    #[default]
    Own,
    /// NanoClaw's (contract 18 to 21).
    NanoClaw {
        /// A checkout of it, whose runner and skills are mounted, as its own host does; without one the image has
        /// them.
        checkout: Option<PathBuf>,
    },
}

/// What runs in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// An image that the engine has; its entry point is a runner.
    Named(String),
    /// One made from this static runner, when it is first needed.
    OfRunner(PathBuf),
}

/// Everything that the runtime is started with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where the engine listens.
    pub endpoint: Endpoint,
    /// Whose the containers are: two installations on one engine never touch each other's.
    pub installation: String,
    /// As which installation `lamplighter doctor` tries things for this one: another, so that no daemon takes
    /// what it makes for its own. What a killed one left is removed.
    pub doctor: String,
    /// What runs.
    pub image: Image,
    /// How it is started.
    pub layout: Layout,
    /// The agents' user, where the daemon is root.
    pub agent_uid: u32,
    /// What they may do and use.
    pub confinement: Confinement,
    /// A folder for a container to make a file in, so that it is seen whose that is. Made and removed.
    pub probe_folder: PathBuf,
    /// Where it is written down whose the agents' files were last, for a start without the engine.
    pub owner_file: PathBuf,
    /// How long a container that is given up may take to end before it is killed.
    pub stop_grace: Ms,
}
