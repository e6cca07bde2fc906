//! Session folders: made whole, repaired, reset, cleaned.

use std::fs;
use std::os::unix::fs::symlink;

use rusqlite::{Connection, OpenFlags};

use super::{ALL, NOW, Outcome, Session, cause, ids, inbound};
use crate::session::host_side::create::{create, discard_outbox, repair_links, set_aside_outbound};
use crate::session::host_side::{InboundWriter, create::FolderError};
use crate::session::runner_side::{InboundReader, Opening};
use crate::session::{SessionFolder, schema};

#[test]
fn a_new_folder_is_complete_and_readable_in_both_layouts() -> Outcome {
    let session = Session::new()?;
    InboundWriter::open(&session.folder)?.insert_if_absent(&inbound("a"))?;
    assert!(session.folder.outbox_root().is_dir());
    assert_eq!(cause(&session)?, None);
    // In the container `in/` is mounted over the mount point; a link stands in for the mount.
    let mount_point = session.folder.out_dir().join("in");
    fs::remove_dir(&mount_point)?;
    symlink("../in", &mount_point)?;
    let flat = SessionFolder::flat(session.folder.out_dir());
    assert_eq!(InboundReader::new(&flat, Opening::Fresh).max_seq()?, 2);
    let db = Connection::open_with_flags(session.folder.outbound_db(), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    for table in schema::OUTBOUND_TABLES {
        assert!(schema::has_table(&db, table)?, "{table}");
    }
    Ok(())
}

#[test]
fn an_existing_folder_is_left_alone_and_a_half_built_one_is_built_again() -> Outcome {
    let session = Session::new()?;
    assert!(matches!(create(&session.root), Err(FolderError::Exists { .. })));
    let parent = session.root.parent().ok_or("no parent")?;
    fs::create_dir_all(parent.join(".sess-2.new/in"))?;
    fs::write(parent.join(".sess-2.new/in/inbound.db"), "half")?;
    let folder = create(&parent.join("sess-2"))?;
    assert_eq!(InboundReader::new(&folder, Opening::Fresh).max_seq()?, 0);
    assert!(!parent.join(".sess-2.new").exists());
    Ok(())
}

#[test]
fn links_are_put_back_whatever_the_agent_put_there() -> Outcome {
    let session = Session::new()?;
    let out = session.folder.out_dir();
    assert!(repair_links(&session.folder, NOW)?.is_empty());
    fs::remove_file(out.join("inbound.db"))?;
    fs::write(out.join("inbound.db"), "planted")?;
    fs::remove_file(out.join("inbox"))?;
    fs::create_dir_all(out.join("inbox/deep"))?;
    fs::remove_dir(out.join("in"))?;
    symlink("/etc", out.join("in"))?;
    assert_eq!(repair_links(&session.folder, NOW)?, ["in", "inbound.db", "inbox"]);
    assert_eq!(fs::read_link(out.join("inbound.db"))?.to_str(), Some("in/inbound.db"));
    assert_eq!(fs::read_link(out.join("inbox"))?.to_str(), Some("in/inbox"));
    assert!(out.join("in").symlink_metadata()?.is_dir());
    assert_eq!(fs::read_to_string(out.join("inbound.db.1779096600000.aside"))?, "planted");
    symlink("/etc/passwd", out.join("x"))?;
    fs::rename(out.join("x"), out.join("inbound.db"))?;
    assert_eq!(repair_links(&session.folder, NOW)?, ["inbound.db"]);
    Ok(())
}

#[test]
fn a_reset_moves_the_database_and_its_journal_aside_and_starts_an_empty_one() -> Outcome {
    let session = Session::new()?;
    session.answer(&["o1"])?;
    fs::write(session.folder.outbound_journal(), "hot")?;
    let moved = set_aside_outbound(&session.folder, NOW)?;
    assert_eq!(moved.as_deref(), Some("outbound.db.1779096600000.aside"));
    let out = session.folder.out_dir();
    assert_eq!(fs::read_to_string(out.join("outbound.db.1779096600000.aside-journal"))?, "hot");
    assert!(!session.folder.outbound_journal().exists());
    assert!(ids(&session.reader()?.read(&ALL)?).is_empty());
    fs::remove_file(session.folder.outbound_db())?;
    symlink("/etc/passwd", session.folder.outbound_db())?;
    set_aside_outbound(&session.folder, NOW)?;
    assert_eq!(cause(&session)?, None);
    fs::remove_file(session.folder.outbound_db())?;
    assert_eq!(set_aside_outbound(&session.folder, NOW)?, None);
    assert_eq!(cause(&session)?, None);
    Ok(())
}

#[test]
fn discarding_attachments_follows_no_link() -> Outcome {
    let session = Session::new()?;
    let victim = session.temp.path().join("victim");
    fs::create_dir_all(&victim)?;
    fs::write(victim.join("file"), "kept")?;
    let outbox = session.folder.outbox_root();
    fs::create_dir_all(outbox.join("o1/sub"))?;
    fs::write(outbox.join("o1/sub/a"), "a")?;
    symlink(&victim, outbox.join("o1/link"))?;
    symlink(&victim, outbox.join("o2"))?;
    assert!(discard_outbox(&session.folder, "o1"));
    assert!(discard_outbox(&session.folder, "o2"));
    assert!(discard_outbox(&session.folder, "o3"));
    assert!(!discard_outbox(&session.folder, "../out"));
    assert!(!outbox.join("o1").exists());
    fs::remove_dir(&outbox)?;
    symlink(&victim, &outbox)?;
    assert!(!discard_outbox(&session.folder, "file"));
    assert_eq!(fs::read_to_string(victim.join("file"))?, "kept");
    Ok(())
}

#[test]
fn a_tree_without_end_is_left_where_the_bounds_are() -> Outcome {
    let session = Session::new()?;
    let mut deep = session.folder.outbox_root().join("o1");
    for _ in 0..20 {
        deep.push("d");
    }
    fs::create_dir_all(&deep)?;
    assert!(!discard_outbox(&session.folder, "o1"));
    assert!(deep.exists());
    Ok(())
}
