//! What becomes of containers that an earlier daemon left running: those that the journal expects are taken over, the
//! others ended.

use slog::{Logger, warn};

use crate::containers::{Containers, Found};
use crate::machine::input::Input;
use crate::machine::state::State;

/// Settles it for all that were found, and says what lives.
pub fn settle(state: &State, containers: &dyn Containers, found: Vec<Found>, log: &Logger) -> Input {
    let mut alive = Vec::new();
    for it in found {
        let no = state.session_no(&it.name);
        let expected = no.and_then(|no| state.session(no)?.phase.alive());
        match (no, it.attempt) {
            (Some(no), Some(attempt)) if !containers.adopts() || expected == Some(attempt) => {
                let doing = if containers.adopts() { "is taken over" } else { "still runs" };
                warn!(log, "an attempt of an earlier daemon {}", doing; "session" => %it.name, "attempt" => %attempt);
                containers.adopt(no, &it.name, attempt);
                alive.push((no, attempt));
            }
            (_, attempt) => {
                warn!(log, "an attempt that nobody expects still runs, and is being ended"; "session" => %it.name);
                if let Err(error) = containers.discard(&it.name, attempt.unwrap_or_default()) {
                    warn!(log, "it does not end; its session does not start before it does";
                        "session" => %it.name, "error" => %error);
                }
            }
        }
    }
    Input::ContainersFound { alive, adoptable: containers.adopts() }
}
