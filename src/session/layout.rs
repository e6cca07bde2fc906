//! Where the files of a session lie. The only place where their names are spelled.
//!
//! Two layouts exist. Nested (ours): the host's files in `in/`, the runner's in `out/`, each side mounted
//! with its own rights (design 3). Flat (NanoClaw's): everything in one folder (contract 2).
//!
//! Invariant: a message id becomes a path component only when it is a safe name (contract 17).

use std::path::{Path, PathBuf};

use crate::base::ids::is_safe_name;

/// The host's database.
pub const INBOUND_DB: &str = "inbound.db";
/// The runner's database.
pub const OUTBOUND_DB: &str = "outbound.db";
/// What SQLite appends to a database's name for its rollback journal.
pub const JOURNAL_SUFFIX: &str = "-journal";
/// The liveness file; the runner touches it (contract 15).
pub const HEARTBEAT: &str = ".heartbeat";
/// The folder of inbound attachments, one folder in it per message.
pub const INBOX: &str = "inbox";
/// The folder of outbound attachments, one folder in it per message.
pub const OUTBOX: &str = "outbox";
/// The container's configuration (contract 18).
pub const CONTAINER_JSON: &str = "container.json";
/// The host's folder in a nested session, and the name of its mount point in the runner's.
pub const IN: &str = "in";
/// The runner's folder in a nested session.
pub const OUT: &str = "out";
/// Where the agent's own folder is mounted in the workspace; a flat layout has container.json there.
pub const AGENT: &str = "agent";

/// The folders of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFolder {
    out_dir: PathBuf,
    in_dir: PathBuf,
}

impl SessionFolder {
    /// Our layout below `root`: `in/` and `out/`.
    pub fn nested(root: impl AsRef<Path>) -> Self {
        let root = root.as_ref();
        Self { out_dir: root.join(OUT), in_dir: root.join(IN) }
    }

    /// NanoClaw's layout: everything in `root`.
    pub fn flat(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { out_dir: root.clone(), in_dir: root }
    }

    /// The two folders as a runner was told them (`LAMPLIGHTER_WORKSPACE`, `LAMPLIGHTER_IN`).
    pub fn of_dirs(out: impl Into<PathBuf>, in_: impl Into<PathBuf>) -> Self {
        Self { out_dir: out.into(), in_dir: in_.into() }
    }

    /// Whether both sides share one folder.
    pub fn is_flat(&self) -> bool {
        self.out_dir == self.in_dir
    }

    /// The folder that the runner writes and the host watches.
    pub fn out_dir(&self) -> &Path {
        &self.out_dir
    }

    /// The folder that the host writes and the runner watches.
    pub fn in_dir(&self) -> &Path {
        &self.in_dir
    }

    /// The host's database.
    pub fn inbound_db(&self) -> PathBuf {
        self.in_dir.join(INBOUND_DB)
    }

    /// The runner's database.
    pub fn outbound_db(&self) -> PathBuf {
        self.out_dir.join(OUTBOUND_DB)
    }

    /// The rollback journal of the runner's database. Its removal hints at a commit.
    pub fn outbound_journal(&self) -> PathBuf {
        journal_of(&self.outbound_db())
    }

    /// The liveness file.
    pub fn heartbeat(&self) -> PathBuf {
        self.out_dir.join(HEARTBEAT)
    }

    /// The folder of all inbound attachments.
    pub fn inbox_root(&self) -> PathBuf {
        self.in_dir.join(INBOX)
    }

    /// The folder of all outbound attachments.
    pub fn outbox_root(&self) -> PathBuf {
        self.out_dir.join(OUTBOX)
    }

    /// The attachments of one inbound message; `None` when its id is no safe name.
    pub fn inbox(&self, message_id: &str) -> Option<PathBuf> {
        is_safe_name(message_id).then(|| self.inbox_root().join(message_id))
    }

    /// The attachments of one outbound message; `None` when its id is no safe name.
    pub fn outbox(&self, message_id: &str) -> Option<PathBuf> {
        is_safe_name(message_id).then(|| self.outbox_root().join(message_id))
    }

    /// The container's configuration: in `in/`, or in a flat layout in the agent's folder.
    pub fn container_json(&self) -> PathBuf {
        if self.is_flat() { self.agent_container_json() } else { self.in_dir.join(CONTAINER_JSON) }
    }

    /// The configuration where NanoClaw mounts it, in the agent's folder: what a runner reads when the first
    /// is missing.
    pub fn agent_container_json(&self) -> PathBuf {
        self.out_dir.join(AGENT).join(CONTAINER_JSON)
    }
}

/// The name of a database's rollback journal.
pub fn journal_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(JOURNAL_SUFFIX);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nested_layout_parts_what_each_side_writes() {
        let folder = SessionFolder::nested("/s");
        assert_eq!(folder.inbound_db(), Path::new("/s/in/inbound.db"));
        assert_eq!(folder.outbound_db(), Path::new("/s/out/outbound.db"));
        assert_eq!(folder.outbound_journal(), Path::new("/s/out/outbound.db-journal"));
        assert_eq!(folder.heartbeat(), Path::new("/s/out/.heartbeat"));
        assert_eq!(folder.container_json(), Path::new("/s/in/container.json"));
        assert_eq!(folder.inbox("m1").as_deref(), Some(Path::new("/s/in/inbox/m1")));
        assert!(!folder.is_flat());
    }

    #[test]
    fn the_flat_layout_holds_everything_in_one_folder() {
        let folder = SessionFolder::flat("/workspace");
        assert_eq!(folder.inbound_db(), Path::new("/workspace/inbound.db"));
        assert_eq!(folder.outbox("m1").as_deref(), Some(Path::new("/workspace/outbox/m1")));
        assert_eq!(folder.container_json(), Path::new("/workspace/agent/container.json"));
        assert!(folder.is_flat());
    }

    #[test]
    fn an_unsafe_id_has_no_folder() {
        let folder = SessionFolder::nested("/s");
        assert_eq!(folder.outbox("../x"), None);
        assert_eq!(folder.inbox(""), None);
    }
}
