//! Every number that the machine decides by, in one struct. Defaults as in the policy table of the documentation.

use crate::base::Ms;

/// What to do with a delivery that was begun and not heard of, on a channel that honours no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InDoubt {
    /// Send it again; the recipient may see it twice.
    Resend,
    /// Record `unknown` at once and go on with the next; `message resend` starts a new delivery.
    Hold,
}

/// The limits and waits of all four stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Containers running at once. More than the machine can feed only slows all of them down.
    pub slots: u32,
    /// A container without claim or follow-up for so long is stopped: it costs memory and does nothing.
    pub idle_stop: Ms,
    /// A claim without any sign of life for so long is stuck, unless a tool declared a longer deadline.
    pub claim_silence: Ms,
    /// A container that holds a claim and was silent for so long is stuck, unless a tool declared a longer deadline.
    pub silence_ceiling: Ms,
    /// Time between asking a container to stop and killing it: enough to finish a commit.
    pub stop_grace: Ms,
    /// How often a message that ended its turn abnormally is tried again before it is parked.
    pub claim_retries: u32,
    /// First wait before a message is tried again; doubles each time.
    pub claim_backoff: Ms,
    /// First wait before a container that failed is started again; doubles each time.
    pub start_backoff: Ms,
    /// The longest wait between two starts.
    pub start_backoff_max: Ms,
    /// A container that ran for so long has proved healthy, and its failures are forgotten.
    pub healthy_after: Ms,
    /// First wait before a delivery is tried again; doubles each time.
    pub delivery_backoff: Ms,
    /// The longest wait between two tries of a delivery.
    pub delivery_backoff_max: Ms,
    /// A delivery that kept failing for so long is given up and reported. A channel may ask for a wait of at most so
    /// long.
    pub delivery_give_up: Ms,
    /// How long a reply waits for a recipient, or for its channel to come up, before it expires.
    pub no_recipient_keep: Ms,
    /// Whether a delivery in doubt is sent again where no key protects the recipient from a double.
    pub in_doubt: InDoubt,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            slots: 16,
            idle_stop: Ms::minutes(10),
            claim_silence: Ms::secs(60),
            silence_ceiling: Ms::minutes(30),
            stop_grace: Ms::secs(10),
            claim_retries: 5,
            claim_backoff: Ms::secs(5),
            start_backoff: Ms::secs(1),
            start_backoff_max: Ms::minutes(5),
            healthy_after: Ms::minutes(1),
            delivery_backoff: Ms::secs(1),
            delivery_backoff_max: Ms::minutes(5),
            delivery_give_up: Ms::days(1),
            no_recipient_keep: Ms::days(30),
            in_doubt: InDoubt::Hold,
        }
    }
}

/// A `Looked` that does not come back in this time is asked for again: a look is a stat and a bounded read.
pub const LOOK_OVERDUE: Ms = Ms::secs(30);
/// A start or a stop (beyond its grace) that is not heard of for so long is asked for again, with a complaint.
pub const CONTAINER_OVERDUE: Ms = Ms::secs(120);
/// So long after the runtime came back nothing is stopped for silence or idleness, and ends that it may have caused
/// blame nobody: by then it has said what became of everything that ran, and what runs has had the time to be heard of.
pub const RUNTIME_SETTLES: Ms = Ms::secs(60);
/// First wait before a folder that cannot be read is looked at again; doubles to [`QUARANTINE_MAX`].
pub const QUARANTINE_FIRST: Ms = Ms::secs(5);
/// The longest wait between two looks at a quarantined session.
pub const QUARANTINE_MAX: Ms = Ms::minutes(10);
/// A delivery that was not heard of for so long is in doubt: half a minute is the most that a channel waits for its
/// recipient, and two minutes are time enough to read its text and to copy its files.
pub const DELIVERY_OVERDUE: Ms = Ms::secs(150);
/// A container may hold a lock on inbound.db for so long before it is ended for it (design 3).
pub const INBOUND_LOCK_MAX: Ms = Ms::secs(10);
/// Outbound rows of one session in the machine at once; the session file is the queue, this is a window on it.
pub const ROWS_PER_SESSION: u32 = 256;
/// Open inbound messages of one session; beyond it, arrivals are refused so that the sender knows.
pub const INBOX_MAX: u32 = 4_096;
/// Notes to the agent of one session that are open at once: what an agent reads in one prompt. What does not arrive
/// beyond them is counted, and told in one note when these were read.
pub const NOTES_OPEN_MAX: usize = 16;
/// The longest text of an inbound message, in bytes: more than an agent can use, and a row is written and read whole.
pub const ROW_CONTENT_MAX: u32 = 1 << 20;
/// How long a question is remembered after its end, so that a late answer is not taken for a message.
pub const LATE_FOR: Ms = Ms::days(1);
/// Questions of one session, open and remembered; a person can hardly keep that many apart.
pub const QUESTIONS_PER_SESSION: usize = 64;
/// The longest wait between two tries of a message while the service behind the agent cannot be had.
pub const MISSED_MAX: Ms = Ms::minutes(5);
/// A message is tried again for so long after the first time that the service could not be had.
pub const MISSED_FOR: Ms = Ms::days(1);
/// The longest that a tool in flight may take, whatever was declared: a container must not become immortal by its word.
pub const TOOL_MAX: Ms = Ms::days(1);
/// An announced wait keeps a container for at most so long, counted from when it was idle or gave a sign of life.
pub const WAIT_MAX: Ms = Ms::days(1);
/// First wait before a folder that was only busy is looked at again; doubles to [`BUSY_MAX`].
pub const BUSY_FIRST: Ms = Ms(250);
/// The longest wait between two looks at a busy folder.
pub const BUSY_MAX: Ms = Ms::secs(5);
/// First wait before a folder that took too long to read is looked at again; doubles to [`QUARANTINE_MAX`].
pub const SLOW_FIRST: Ms = Ms::secs(1);
/// Failed reads in a row, the last of them too slow, that set a session apart. A read takes a five-hundredth of its
/// budget: what exceeds it so often is not the machine's load.
pub const SLOW_TRIES: u32 = 5;
/// Complaints of one cause about one session: one in this time, with a count.
pub const COMPLAIN_EVERY: Ms = Ms::minutes(1);
/// How far ahead a row is held back while another suspect is tried alone; rewritten as soon as its turn comes.
pub const HELD_FOR: Ms = Ms::minutes(60);
