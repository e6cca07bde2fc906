//! Wire forms of the machine's effects.
//!
//! Invariant: append only, see [`super`].

use crate::base::{Attempt, EffectId, MessageNo, Ms, SessionName, SessionNo, Wall};
use crate::machine::effect;
use crate::session::rows::Address;

mirror! {
    enum Effect for effect::Effect {
        CreateSession { session: SessionNo, name: SessionName, origin: Address },
        WriteInbound {
            session: SessionNo,
            message: MessageNo,
            id: String,
            body: effect::Body,
            trigger: bool,
            origin: Address,
            timestamp: Wall,
        },
        UpdateInbound { session: SessionNo, message: MessageNo, id: String, change: effect::InboundChange },
        RecordDelivery {
            session: SessionNo,
            message: MessageNo,
            id: String,
            delivered: bool,
            platform_id: Option<String>,
            at: Wall,
        },
        ProjectDestinations { session: SessionNo, origin: Address },
        AcceptInbound { channel: String, receipt: u64, duplicate: bool },
        RefuseInbound { channel: String, receipt: u64, reason: effect::Refusal },
        StartContainer { session: SessionNo, attempt: Attempt },
        StopContainer { session: SessionNo, attempt: Attempt, reason: effect::StopReason, grace: Ms },
        Look { session: SessionNo, why: effect::LookWhy },
        Deliver {
            session: SessionNo,
            message: MessageNo,
            to: Address,
            payload: effect::Payload,
            key: EffectId,
            number: u32,
            idempotent: bool,
        },
        DiscardOutbox { session: SessionNo, id: String },
        SetTyping { to: Address, on: bool },
        TellSettled { to: Address, id: String, outcome: effect::Outcome },
        ResetOutbound { session: SessionNo },
        Answer { request: u64, reply: effect::Reply },
        Complain { session: Option<SessionNo>, cause: effect::Cause, count: u32, detail: String },
    }
}

mirror! {
    enum Body for effect::Body {
        Arrived { channel: String, receipt: u64 },
        Note(note: effect::AgentNote),
        Answer {
            question: MessageNo,
            rowid: i64,
            id: String,
            option: u16,
            arrival: Option<effect::ArrivalRef>,
        },
    }
}

mirror! {
    struct ArrivalRef for effect::ArrivalRef { channel: String, receipt: u64, id: String }
}

mirror! {
    enum AgentNote for effect::AgentNote {
        NotDelivered { id: String, end: effect::DeliveryEnd },
        AndMore { count: u32, id: String, end: effect::DeliveryEnd },
    }
}

mirror! {
    enum InboundChange for effect::InboundChange {
        Complete,
        Fail,
        Reschedule { tries: u32, process_after: Option<Wall> },
    }
}

mirror! {
    enum Payload for effect::Payload {
        Row { rowid: i64, id: String, in_reply_to: Option<String> },
        Notice(notice: effect::Notice),
    }
}

mirror! {
    enum Notice for effect::Notice {
        Parked { id: String, tries: u32 },
        Failed { id: String, reason: String },
        TooLate { id: String, waited: Ms },
    }
}

mirror! {
    enum Refusal for effect::Refusal {
        ShuttingDown,
        BadId,
        NotWritten(why: String),
        TooLarge,
        TooMany(limit: u32),
        NoSpace,
    }
}

mirror! {
    units StopReason for effect::StopReason {
        Idle,
        MakeRoom,
        ClaimSilent,
        Silent,
        HoldsLock,
        Unreadable,
        Operator,
        Shutdown,
        Leftover,
        TooLarge,
    }
}

mirror! {
    enum LookWhy for effect::LookWhy {
        BeforeStop(reason: effect::StopReason),
        AfterExit,
        Found,
        Quarantine,
        Inbound,
    }
}

mirror! {
    enum Outcome for effect::Outcome {
        Completed,
        Failed(reason: String),
        Parked(tries: u32),
        Dropped,
        Before,
    }
}

mirror! {
    enum DeliveryEnd for effect::DeliveryEnd {
        Failed(reason: String),
        Denied(denial: effect::Denial),
        Expired,
        Unknown,
        Dropped,
        ChannelDown,
    }
}

mirror! {
    enum Denial for effect::Denial {
        NoAddress,
        NotADestination,
        UnsupportedAction(action: String),
        Malformed(why: String),
    }
}

mirror! {
    enum Reply for effect::Reply { Done, No(why: String) }
}

mirror! {
    units Cause for effect::Cause {
        IllegalInput,
        Rewound,
        Unreadable,
        StartFailed,
        Stuck,
        Crashed,
        Overdue,
        EffectFailed,
        Parked,
        NotDelivered,
    }
}
