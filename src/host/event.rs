//! Everything that can wake the loop.

use crossbeam_channel::Sender;
use serde_json::Value;

use super::control::Request;
use crate::base::{EffectId, RecordNo, SessionNo};
use crate::channels::ChannelEvent;
use crate::containers::{ContainerEvent, StartSpec};
use crate::machine::input::Input;
use crate::reactor::ReactorEvent;
use crate::session::host_side::{Reading, Unreadable};

/// One piece of news for the loop.
///
/// The queue of these is unbounded and yet bounded: each is the end of an open effect, one of a session's single
/// outstanding reading, or one of a channel's bounded number of unanswered arrivals.
pub enum Event {
    /// An effect ended, or something else that is an input as it stands.
    Input(Input),
    /// The reactor noticed something.
    Reactor(ReactorEvent),
    /// A channel brought something.
    Channel(ChannelEvent),
    /// A container did something.
    Container(ContainerEvent),
    /// Everything that a container needs is in place.
    Prepared {
        /// The start.
        effect: EffectId,
        /// Whose.
        session: SessionNo,
        /// What to start it with, or why not.
        result: Result<StartSpec, String>,
    },
    /// A copy of an outbound.db with a hot journal was read.
    Recovered {
        /// The look that met the hot journal.
        effect: EffectId,
        /// Whose.
        session: SessionNo,
        /// Whether the heartbeat had changed.
        heartbeat_changed: bool,
        /// What was found.
        result: Result<Reading, Unreadable>,
    },
    /// The text of an outbound row was read again for its delivery.
    Fetched {
        /// The delivery.
        effect: EffectId,
        /// The text, or why there is none and whether it may come back.
        result: Result<String, (String, bool)>,
    },
    /// The journal is durable up to here, or failed.
    Synced(Result<RecordNo, String>),
    /// An operator asks.
    Control {
        /// What.
        request: Request,
        /// Where the answer goes.
        reply: Sender<Result<Value, String>>,
    },
    /// The daemon is to stop.
    Stop,
}
