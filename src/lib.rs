//! Lamplighter hosts containerised AI agents: it wakes a container when a message is due, carries messages both
//! ways through two SQLite files per session, sweeps up after it, and records every decision in a journal.
//!
//! The heart is a pure state machine. What happens comes in as [`machine::input::Input`]s, what is to be done goes
//! out as [`machine::effect::Effect`]s, and [`host::daemon`] is the loop around it:
//!
//! ```text
//! while let Some(news) = wait_for_news_or(machine.next_deadline()) {
//!     let at = clock.at();                       // the only clock that reaches the machine
//!     for input in up_to_256_inputs(news) {
//!         let turn = machine.step(at, input);    // no file, clock, thread, socket or chance in here
//!         frames.push(record(turn));
//!     }
//!     journal.append(frames);                    // nothing is handed over before this line
//!     for effect in effects {
//!         perform(effect);                       // hands over to a lane; its end comes back as an input
//!     }
//! }
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`base`] | identifiers, the two times, redaction, the ports to disk and clock |
//! | [`session`] | the session-folder contract: layout, schemas, rows, and the handles of both sides |
//! | [`machine`] | decides; pure |
//! | [`journal`] | frames, segments, wire forms, recovery |
//! | [`replay`] | folds a journal through the machine and compares |
//! | [`reactor`] | notices what runners write, and reads it |
//! | [`containers`] | starts and stops attempts |
//! | [`channels`] | the ports to chat platforms |
//! | [`host`] | the composition root |
//! | [`cli`] | the commands |
//!
//! A journal can be checked from a test of one's own, and what was decided can be asked for in a few lines:
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use lamplighter::machine::effect::Effect;
//! use lamplighter::replay::{self, Subject, walk::{Stop, walk}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR"))?;
//! let fixture = Path::new("fixtures/journals/crash-in-mid-turn");
//!
//! // This build decides all of it as it is on record.
//! let report = replay::verify(fixture)?;
//! assert!(report.is_clean(), "{report}");
//!
//! // Two containers were started, because the first one crashed; one reply was delivered.
//! let (mut started, mut delivered) = (0, 0);
//! walk(fixture, |stop| {
//!     if let Stop::Step(step) = stop {
//!         for (_, effect) in step.effects() {
//!             started += usize::from(matches!(effect, Effect::StartContainer { .. }));
//!             delivered += usize::from(matches!(effect, Effect::Deliver { .. }));
//!         }
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!((started, delivered), (2, 1));
//!
//! // And nothing is left open of the message.
//! let why = replay::why(fixture, &Subject::Id("m1".into()))?;
//! assert!(why.still.is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! Features: `host` (default) is everything that only the daemon needs; without it there is [`base`] and [`session`],
//! which is what a runner needs.

#![warn(missing_docs)]

pub mod base;
pub mod session;

#[cfg(feature = "host")]
pub mod channels;
#[cfg(feature = "host")]
pub mod cli;
#[cfg(feature = "host")]
pub mod containers;
#[cfg(feature = "host")]
pub mod host;
#[cfg(feature = "host")]
pub mod journal;
#[cfg(feature = "host")]
pub mod machine;
#[cfg(feature = "host")]
pub mod reactor;
#[cfg(feature = "host")]
pub mod replay;
