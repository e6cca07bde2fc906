//! Text that belongs to users: it may be carried, never printed.

use std::fmt;

/// Wraps text that must not reach a log. `Debug` and `Display` print `[private]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Private<T>(pub T);

impl<T> fmt::Debug for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[private]")
    }
}

impl<T> fmt::Display for Private<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[private]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_text_never_prints() {
        assert_eq!(format!("{:?} {}", Private("secret"), Private("secret")), "[private] [private]");
    }
}
