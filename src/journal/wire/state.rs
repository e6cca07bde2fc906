//! Wire forms of the components of the machine's state.
//!
//! Invariant: append only, see [`super`]. A field that a component gains changes its digest: raise
//! [`DIGEST_SCHEMA`](crate::journal::record::DIGEST_SCHEMA) with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::{
    At, Attempt, DestinationNo, EffectId, MessageNo, Ms, RecordNo, SessionName, SessionNo, Wall,
};
use crate::machine::shared_map::SharedMap;
use crate::machine::{effect, input, policy, state};
use crate::session::rows::Address;

mirror! {
    enum ComponentId for state::ComponentId {
        Core,
        Policy,
        Directory,
        Slots,
        Session(no: SessionNo),
        Inbound(no: MessageNo),
        Outbound(no: MessageNo),
        Destination(no: DestinationNo),
        Effect(id: EffectId),
        Question(no: MessageNo),
        Complaints,
        Runtime,
        Missed(no: MessageNo),
    }
}

mirror! {
    units Life for state::Life { Booting, Open, Closing }
}

mirror! {
    struct Core for state::Core {
        at: At,
        record: RecordNo,
        offset: i64,
        life: state::Life,
        next_session: u32,
        next_message: u64,
        next_destination: u32,
    }
}

mirror! {
    struct Policy for policy::Policy {
        slots: u32,
        idle_stop: Ms,
        claim_silence: Ms,
        silence_ceiling: Ms,
        stop_grace: Ms,
        claim_retries: u32,
        claim_backoff: Ms,
        start_backoff: Ms,
        start_backoff_max: Ms,
        healthy_after: Ms,
        delivery_backoff: Ms,
        delivery_backoff_max: Ms,
        delivery_give_up: Ms,
        no_recipient_keep: Ms,
        in_doubt: policy::InDoubt,
    }
}

mirror! {
    units InDoubt for policy::InDoubt { Resend, Hold }
}

mirror! {
    struct Directory for state::Directory {
        group: String,
        chats: SharedMap<(String, String), SessionNo>,
        channels: BTreeMap<String, state::Channel>,
    }
}

mirror! {
    struct Channel for state::Channel { up: bool, idempotent: bool }
}

mirror! {
    struct Session for state::Session {
        name: SessionName,
        origin: Address,
        phase: state::Phase,
        inbox: BTreeSet<MessageNo>,
        outbox: BTreeSet<MessageNo>,
        cursor: Option<(i64, String)>,
        failures: u32,
        trouble: Option<state::Trouble>,
        progress: bool,
        last_sign: At,
        idle_since: At,
        considered: At,
        tool: Option<state::ToolFlight>,
        wait_until: Option<At>,
        attempt_seen: bool,
        look: Option<state::LookOpen>,
        writes_open: u32,
        folder: state::FolderState,
        held: bool,
        typing: bool,
        complaints: BTreeMap<effect::Cause, (At, u32)>,
    }
}

mirror! {
    enum FolderState for state::FolderState { Present, Creating(effect: EffectId), Absent }
}

mirror! {
    struct Trouble for state::Trouble { since: At, kind: input::Unreadable, failures: u32 }
}

mirror! {
    struct ToolFlight for state::ToolFlight { mark: u64, since: At, declared: Ms }
}

mirror! {
    struct LookOpen for state::LookOpen { effect: EffectId, why: effect::LookWhy, since: At }
}

mirror! {
    enum Phase for state::Phase {
        Stopped { since: At },
        Starting { attempt: Attempt, since: At, effect: EffectId, stage: state::Stage },
        Running { attempt: Attempt, since: At },
        Stopping { attempt: Attempt, since: At, reason: effect::StopReason },
        Closing {
            attempt: Attempt,
            since: At,
            exit: input::Exit,
            reason: Option<effect::StopReason>,
            started: At,
        },
        BackingOff { since: At },
        Quarantined { since: At, kind: input::Unreadable },
    }
}

mirror! {
    units Stage for state::Stage { Projecting, Launching }
}

mirror! {
    struct Inbound for state::Inbound {
        session: SessionNo,
        id: String,
        seq: Option<i64>,
        origin: Address,
        trigger: bool,
        tries: u32,
        suspect: bool,
        state: state::InState,
        void: Option<u64>,
        released: Option<u64>,
        update: Option<EffectId>,
    }
}

mirror! {
    enum InState for state::InState {
        Writing { since: At, body: effect::Body },
        Queued { wait: state::Wait },
        Claimed { attempt: Attempt, since: At, mark: u64 },
        Settling { outcome: effect::Outcome },
        Withheld { count: u32, id: String, end: effect::DeliveryEnd },
    }
}

mirror! {
    enum Wait for state::Wait {
        Now,
        Until(wall: Wall),
        Backoff { since: At, wait: Ms },
        Held { since: At },
        Never,
        Missed { since: At, wait: Ms },
    }
}

mirror! {
    struct Outbound for state::Outbound {
        session: SessionNo,
        to: Address,
        source: state::Source,
        state: state::OutState,
        tries: u32,
        seen: At,
        key: Option<EffectId>,
    }
}

mirror! {
    enum Source for state::Source {
        Row { rowid: i64, id: String, in_reply_to: Option<String>, files: bool },
        Notice(notice: effect::Notice),
    }
}

mirror! {
    enum OutState for state::OutState {
        Scheduled { until: Wall },
        Queued,
        Delivering { effect: EffectId, since: At },
        Recording { effect: EffectId, delivered: bool },
    }
}

mirror! {
    struct Destination for state::Destination {
        session: SessionNo,
        to: Address,
        queue: VecDeque<state::Item>,
        hold: state::Hold,
    }
}

mirror! {
    enum Item for state::Item {
        Message(no: MessageNo),
        Settled { id: String, outcome: effect::Outcome },
    }
}

mirror! {
    enum Hold for state::Hold {
        None,
        Retry { since: At, wait: Ms },
        NoRecipient { since: At },
        Failing { since: At, wait: Ms, first: At },
        Trying { first: At, nobody: bool },
        ChannelDown { since: At },
    }
}

mirror! {
    struct Question for state::Question {
        session: SessionNo,
        rowid: i64,
        id: String,
        to: Address,
        facts: input::QuestionFacts,
        asked: At,
        state: state::QuestionState,
    }
}

mirror! {
    struct Missed for state::Missed { first: At, times: u32, reason: String }
}

mirror! {
    enum QuestionState for state::QuestionState {
        Asked,
        Open,
        Answered { by: String, row: String, option: u16, on_disk: bool, since: At },
        Closed { since: At },
    }
}

mirror! {
    struct Outage for state::Outage { since: At, reason: String, unlisted: bool, back: Option<At> }
}

mirror! {
    enum Owner for state::Owner {
        Folder(session: SessionNo),
        Row(message: MessageNo),
        Update(message: MessageNo),
        Projection(session: SessionNo),
        Start(session: SessionNo),
        Look(session: SessionNo),
        Delivery(message: MessageNo),
        Record(message: MessageNo),
        Reset(session: SessionNo, request: u64),
    }
}
