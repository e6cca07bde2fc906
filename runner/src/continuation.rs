//! Under which key the token of a conversation is kept (contract 14).
//!
//! Invariant: no provider reads the token of another. What an older runner kept for whichever provider was in use is
//! adopted once, by the provider of the first start, and deleted in any case.

use lamplighter::session::runner_side::{OutboundError, OutboundTx};

/// The one key of older runners.
const LEGACY_KEY: &str = "sdk_session_id";

/// The key of a provider, whose name is in lower case.
pub fn key(provider: &str) -> String {
    format!("continuation:{provider}")
}

/// Moves the token of an older runner to this provider, unless it has one.
///
/// # Errors
/// When SQLite refuses.
pub fn adopt_legacy(provider: &str, tx: &OutboundTx<'_>) -> Result<(), OutboundError> {
    let Some(legacy) = tx.state(LEGACY_KEY)? else { return Ok(()) };
    let key = key(provider);
    if !legacy.is_empty() && tx.state(&key)?.is_none() {
        tx.put_state(&key, &legacy)?;
    }
    tx.delete_state(LEGACY_KEY)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamplighter::base::Wall;
    use lamplighter::session::SessionFolder;
    use lamplighter::session::runner_side::OutboundWriter;

    type Done = Result<(), Box<dyn std::error::Error>>;

    struct Kept {
        writer: OutboundWriter,
        _folder: tempfile::TempDir,
    }

    impl Kept {
        fn with(states: &[(&str, &str)]) -> Result<Self, Box<dyn std::error::Error>> {
            let folder = tempfile::tempdir()?;
            let mut writer = OutboundWriter::open(&SessionFolder::flat(folder.path()), None)?;
            writer.transaction(Wall(0), |tx| {
                states.iter().try_for_each(|(key, value)| tx.put_state(key, value))
            })?;
            Ok(Self { writer, _folder: folder })
        }

        fn adopt(&mut self, provider: &str) -> Result<(), OutboundError> {
            self.writer.transaction(Wall(0), |tx| adopt_legacy(provider, tx))
        }

        fn of(&self, provider: &str) -> Option<String> {
            self.writer.state(&key(provider)).ok().flatten()
        }

        fn legacy(&self) -> Option<String> {
            self.writer.state(LEGACY_KEY).ok().flatten()
        }
    }

    #[test]
    fn what_one_provider_keeps_is_found_again() -> Done {
        let kept = Kept::with(&[(&key("claude"), "a")])?;
        assert_eq!(kept.of("claude").as_deref(), Some("a"));
        Ok(())
    }

    #[test]
    fn providers_do_not_see_each_other() -> Done {
        let kept = Kept::with(&[(&key("claude"), "a"), (&key("codex"), "b")])?;
        assert_eq!((kept.of("claude").as_deref(), kept.of("codex").as_deref()), (Some("a"), Some("b")));
        assert_eq!(kept.of("mock"), None);
        Ok(())
    }

    #[test]
    fn forgetting_one_leaves_the_other() -> Done {
        let mut kept = Kept::with(&[(&key("claude"), "a"), (&key("codex"), "b")])?;
        kept.writer.transaction(Wall(0), |tx| tx.delete_state(&key("claude")).map(|_| ()))?;
        assert_eq!((kept.of("claude"), kept.of("codex").as_deref()), (None, Some("b")));
        Ok(())
    }

    #[test]
    fn an_old_token_goes_to_the_provider_of_the_first_start() -> Done {
        let mut kept = Kept::with(&[(LEGACY_KEY, "old")])?;
        kept.adopt("claude")?;
        assert_eq!(kept.of("claude").as_deref(), Some("old"));
        Ok(())
    }

    #[test]
    fn an_old_token_is_deleted_when_it_is_adopted() -> Done {
        let mut kept = Kept::with(&[(LEGACY_KEY, "old")])?;
        kept.adopt("claude")?;
        assert_eq!(kept.legacy(), None);
        Ok(())
    }

    #[test]
    fn a_token_of_its_own_wins_over_an_old_one() -> Done {
        let mut kept = Kept::with(&[(LEGACY_KEY, "old"), (&key("claude"), "own")])?;
        kept.adopt("claude")?;
        assert_eq!(kept.of("claude").as_deref(), Some("own"));
        Ok(())
    }

    #[test]
    fn an_old_token_is_deleted_even_when_it_is_not_adopted() -> Done {
        let mut kept = Kept::with(&[(LEGACY_KEY, "old"), (&key("claude"), "own")])?;
        kept.adopt("claude")?;
        assert_eq!(kept.legacy(), None);
        Ok(())
    }

    #[test]
    fn a_second_start_changes_nothing() -> Done {
        let mut kept = Kept::with(&[(LEGACY_KEY, "old")])?;
        kept.adopt("claude")?;
        kept.adopt("codex")?;
        assert_eq!((kept.of("claude").as_deref(), kept.of("codex")), (Some("old"), None));
        Ok(())
    }

    #[test]
    fn without_an_old_token_nothing_is_made() -> Done {
        let mut kept = Kept::with(&[])?;
        kept.adopt("claude")?;
        assert_eq!((kept.of("claude"), kept.legacy()), (None, None));
        Ok(())
    }
}
