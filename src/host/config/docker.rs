//! `[runtime.docker]`: the engine, the image, and what an agent may do and use.

use std::path::PathBuf;

use serde::Deserialize;

use super::ConfigError;
use crate::containers::docker::settings::{Confinement, Layout};

/// Whose runner an image holds, where it is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// NanoClaw's.
    NanoClaw,
}

/// The Docker runtime. What an agent may do and use is as tight as an agent can work with; each relaxation is a key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerConfig {
    /// Where the engine listens; else `DOCKER_HOST`, else the docker command's context, else the usual socket.
    pub host: Option<String>,
    /// The agents' image; else one is made of the static runner.
    pub image: Option<String>,
    /// The static runner; else the one beside the daemon.
    pub runner: Option<PathBuf>,
    /// Whose runner the image holds, where it is not ours.
    pub compat: Option<Compat>,
    /// A checkout of NanoClaw, whose runner and skills are mounted into its image.
    pub nanoclaw: Option<PathBuf>,
    /// `none`, `bridge`, or the name of a network of the engine.
    pub network: String,
    /// Memory in MiB, none of it swap; 0 for no limit.
    pub memory_mib: u64,
    /// Processors; 0 for no limit.
    pub cpus: f64,
    /// Most processes and threads; 0 for no limit.
    pub pids: u32,
    /// MiB of `/tmp`, and of the agent's home; both are in memory.
    pub tmp_mib: u64,
    /// MiB of output that the engine keeps.
    pub log_mib: u64,
    /// Whether the image's files are read-only.
    pub read_only_root: bool,
    /// Whether no program can gain rights that the agent has not.
    pub no_new_privileges: bool,
    /// Capabilities that an agent keeps; all others are dropped.
    pub add_capabilities: Vec<String>,
    /// Whether the engine puts a small first process before the agent.
    pub init: bool,
    /// Another OCI runtime of the engine, such as `runsc` or `kata`.
    pub oci_runtime: Option<String>,
}

impl Default for DockerConfig {
    fn default() -> Self {
        Self {
            host: None,
            image: None,
            runner: None,
            compat: None,
            nanoclaw: None,
            network: "bridge".into(),
            memory_mib: 2_048,
            cpus: 2.0,
            pids: 512,
            tmp_mib: 256,
            log_mib: 4,
            read_only_root: true,
            no_new_privileges: true,
            add_capabilities: Vec::new(),
            init: true,
            oci_runtime: None,
        }
    }
}

impl DockerConfig {
    /// As the runtime takes it.
    pub fn confinement(&self) -> Confinement {
        Confinement {
            network: self.network.clone(),
            read_only_root: self.read_only_root,
            no_new_privileges: self.no_new_privileges,
            add_capabilities: self.add_capabilities.clone(),
            init: self.init,
            pids: if self.pids == 0 { -1 } else { self.pids.into() },
            // Bounded by `check`, so that none of these can overflow.
            memory: i64::try_from(self.memory_mib << 20).unwrap_or(i64::MAX),
            nano_cpus: (self.cpus * 1e9) as i64,
            tmp_bytes: self.tmp_mib << 20,
            log_bytes: self.log_mib << 20,
            oci_runtime: self.oci_runtime.clone(),
        }
    }

    /// How an image is started.
    pub fn layout(&self) -> Layout {
        match self.compat {
            None => Layout::Own,
            Some(Compat::NanoClaw) => Layout::NanoClaw { checkout: self.nanoclaw.clone() },
        }
    }

    /// What is looser than the default, in words, each with its key.
    pub fn relaxed(&self) -> Vec<String> {
        // Every key by name, so that a new one is decided about here.
        let Self {
            // Where and what: these give an agent nothing.
            host: _,
            image: _,
            runner: _,
            nanoclaw: _,
            // Another runtime is stricter as a rule; it is shown by itself.
            oci_runtime: _,
            compat,
            network,
            memory_mib,
            cpus,
            pids,
            tmp_mib,
            log_mib,
            read_only_root,
            no_new_privileges,
            add_capabilities,
            init,
        } = self;
        let usual = Self::default();
        let has_network = network != "none";
        let more = |value: u64, usual: u64, what: &str| {
            (value > usual, format!("{value} {what} instead of {usual}"))
        };
        let (memory, processes) = ("MiB of memory", "processes");
        let (tmp, log) = ("MiB in memory for each of /tmp and the home", "MiB of output kept");
        let capabilities = add_capabilities.join(", ");
        let all: [(&str, (bool, String)); 14] = [
            ("read_only_root", (!read_only_root, "the image's files can be written".into())),
            ("no_new_privileges", (!no_new_privileges, "programs can gain rights".into())),
            ("init", (!init, "nothing reaps what a process leaves behind".into())),
            (
                "network",
                (
                    has_network && *network != usual.network,
                    format!("network {network}, with whatever else is in it"),
                ),
            ),
            (
                "compat",
                (
                    compat.is_some() && has_network,
                    "this machine can be reached as host.docker.internal".into(),
                ),
            ),
            ("memory_mib", (*memory_mib == 0, "memory has no limit".into())),
            ("memory_mib", more(*memory_mib, usual.memory_mib, memory)),
            ("cpus", (*cpus == 0.0, "processors have no limit".into())),
            ("cpus", (*cpus > usual.cpus, format!("{cpus} processors instead of {}", usual.cpus))),
            ("pids", (*pids == 0, "processes have no limit".into())),
            ("pids", more((*pids).into(), usual.pids.into(), processes)),
            ("tmp_mib", more(*tmp_mib, usual.tmp_mib, tmp)),
            ("log_mib", more(*log_mib, usual.log_mib, log)),
            ("add_capabilities", (!add_capabilities.is_empty(), format!("capabilities {capabilities}"))),
        ];
        all.into_iter().filter(|(_, (is, _))| *is).map(|(key, (_, what))| format!("{what} ({key})")).collect()
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let fail = |key, found: String, allowed| Err(ConfigError::Value { place: None, key, found, allowed });
        if self.compat.is_some() && self.image.is_none() {
            return fail("runtime.docker.image", "nothing".into(), "the image whose runner compat speaks of");
        }
        if let Some(path) = &self.nanoclaw
            && (self.compat != Some(Compat::NanoClaw) || !path.is_absolute())
        {
            let allowed = "with compat = \"nanoclaw\", the absolute path of a checkout";
            return fail("runtime.docker.nanoclaw", path.display().to_string(), allowed);
        }
        let network = &self.network;
        if network.is_empty() || network == "host" || network.contains([':', '/']) {
            let allowed = "\"none\", \"bridge\", or the name of a network of the engine";
            return fail("runtime.docker.network", format!("{network:?}"), allowed);
        }
        if self.memory_mib > 16 << 20 || (1..32).contains(&self.memory_mib) {
            return fail(
                "runtime.docker.memory_mib",
                self.memory_mib.to_string(),
                "0 (no limit), or 32 to 16777216",
            );
        }
        if !(self.cpus == 0.0 || (0.01..=1_024.0).contains(&self.cpus)) {
            return fail("runtime.docker.cpus", self.cpus.to_string(), "0 (no limit), or 0.01 to 1024");
        }
        if (1..16).contains(&self.pids) {
            return fail("runtime.docker.pids", self.pids.to_string(), "0 (no limit), or 16 and more");
        }
        if !(1..=1 << 20).contains(&self.tmp_mib) {
            return fail("runtime.docker.tmp_mib", self.tmp_mib.to_string(), "1 to 1048576");
        }
        if !(1..=1 << 20).contains(&self.log_mib) {
            return fail("runtime.docker.log_mib", self.log_mib.to_string(), "1 to 1048576");
        }
        for name in &self.add_capabilities {
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') || name == "ALL"
            {
                let allowed = "names of capabilities such as \"NET_RAW\", and not all of them";
                return fail("runtime.docker.add_capabilities", format!("{name:?}"), allowed);
            }
        }
        for (key, value) in
            [("runtime.docker.image", &self.image), ("runtime.docker.oci_runtime", &self.oci_runtime)]
        {
            if value.as_ref().is_some_and(|it| it.is_empty() || it.contains(char::is_whitespace)) {
                return fail(key, format!("{value:?}"), "a name without spaces, or nothing at all");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_confined_alike_by_the_defaults_of_both_sides() {
        assert_eq!(DockerConfig::default().confinement(), Confinement::default());
        assert!(DockerConfig::default().relaxed().is_empty());
        let config: DockerConfig = toml::from_str("pids = 0\n").unwrap();
        assert_eq!(config.confinement().pids, -1);
    }

    #[test]
    fn whatever_is_looser_than_the_default_is_named_with_its_key() {
        let relaxed = |text: &str| toml::from_str::<DockerConfig>(text).unwrap().relaxed();
        for (text, found) in [
            ("network = \"backend\"", "network backend, with whatever else is in it (network)"),
            ("memory_mib = 0", "memory has no limit (memory_mib)"),
            ("memory_mib = 4096", "4096 MiB of memory instead of 2048 (memory_mib)"),
            ("cpus = 0.0", "processors have no limit (cpus)"),
            ("cpus = 2.5", "2.5 processors instead of 2 (cpus)"),
            ("pids = 0", "processes have no limit (pids)"),
            ("pids = 513", "513 processes instead of 512 (pids)"),
            ("tmp_mib = 512", "512 MiB in memory for each of /tmp and the home instead of 256 (tmp_mib)"),
            ("log_mib = 5", "5 MiB of output kept instead of 4 (log_mib)"),
            ("read_only_root = false", "the image's files can be written (read_only_root)"),
            ("no_new_privileges = false", "programs can gain rights (no_new_privileges)"),
            ("add_capabilities = [\"NET_RAW\", \"KILL\"]", "capabilities NET_RAW, KILL (add_capabilities)"),
            ("init = false", "nothing reaps what a process leaves behind (init)"),
            (
                "compat = \"nanoclaw\"\nimage = \"i\"",
                "this machine can be reached as host.docker.internal (compat)",
            ),
        ] {
            assert_eq!(relaxed(text), [found], "{text}");
        }
        for tighter in [
            "network = \"none\"\ncompat = \"nanoclaw\"\nimage = \"i\"",
            "memory_mib = 64\ncpus = 0.5\npids = 16\ntmp_mib = 1\nlog_mib = 1",
            "host = \"unix:///s\"\nimage = \"i\"\noci_runtime = \"runsc\"",
        ] {
            assert_eq!(relaxed(tighter), [""; 0], "{tighter}");
        }
    }
}
