//! The numbers that agents see as message ids (contract 6): even from the host, odd from the runner.
//!
//! Invariant: both rules are applied inside the transaction that inserts the row.

/// The host's next number, given the greatest in `messages_in` (0 when there is none).
pub fn next_inbound(max_inbound: i64) -> i64 {
    if max_inbound < 2 { 2 } else { max_inbound.saturating_add(2 - max_inbound % 2) }
}

/// The runner's next number, given the greatest of both tables (0 when there is none).
pub fn next_outbound(max_both: i64) -> i64 {
    let max = max_both.max(0);
    max.saturating_add(1 + max % 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_numbers_even_and_the_runner_odd() {
        for (max, next) in [(0, 2), (1, 2), (2, 4), (3, 4), (4, 6), (7, 8), (-4, 2)] {
            assert_eq!(next_inbound(max), next, "inbound after {max}");
        }
        for (max, next) in [(0, 1), (1, 3), (2, 3), (3, 5), (4, 5), (-1, 1)] {
            assert_eq!(next_outbound(max), next, "outbound after {max}");
        }
    }
}
