//! Wire forms of the machine's inputs.
//!
//! Invariant: append only, see [`super`].

use crate::base::{
    At, Attempt, BootNo, DestinationNo, EffectId, MessageNo, Ms, SessionName, SessionNo, Wall,
};
use crate::machine::{input, policy, timers};
use crate::session::rows;

mirror! {
    enum Input for input::Input {
        Booted(it: input::Booted),
        SessionFound(it: input::SessionFound),
        ContainersFound { alive: Vec<(SessionNo, Attempt)>, adoptable: bool },
        ClockSet { offset: i64 },
        PolicyChanged(it: policy::Policy),
        MessageArrived(it: input::Arrival),
        OperatorAsked { request: u64, ask: input::Ask },
        InboundWritten { effect: EffectId, seq: i64, duplicate: bool },
        InboundWriteFailed { effect: EffectId, reason: String },
        InboundLocked { session: SessionNo },
        OutboundRead { session: SessionNo, reading: input::Reading },
        Looked {
            effect: EffectId,
            session: SessionNo,
            heartbeat_changed: bool,
            alive: Option<bool>,
            reading: input::Reading,
        },
        HeartbeatSeen { session: SessionNo },
        ContainerStarted { effect: EffectId },
        ContainerStartFailed { effect: EffectId, reason: String },
        ContainerExited { session: SessionNo, attempt: Attempt, exit: input::Exit },
        Delivered { effect: EffectId, platform_id: Option<String> },
        DeliveryFailed {
            effect: EffectId,
            class: input::DeliveryFault,
            reason: String,
            retry_after: Option<Ms>,
        },
        ChannelUp { channel: String, chat: Option<String>, idempotent: bool },
        ChannelDown { channel: String },
        EffectDone { effect: EffectId, error: Option<String> },
        TimerDue { key: timers::TimerKey, deadline: At },
        ShutdownAsked,
        SessionsUnchanged { sessions: Vec<SessionNo> },
        ArrivalWithoutSpace(it: input::Arrival),
        PossibleAnswer { arrival: input::Arrival, line: input::Line },
        DetachAsked,
        FolderTooLarge { session: SessionNo, detail: String },
        SessionFoundInPart(it: input::SessionFound),
        InboundRead { effect: EffectId, found: input::SessionFound, whole: bool },
        InboundUnwritable { session: SessionNo, detail: String },
        MessageArrivedAt { arrival: input::Arrival, line: Option<input::Line>, sent: Wall },
        RuntimeDown { reason: String },
        RuntimeUp,
    }
}

mirror! {
    struct Line for input::Line { number: Option<u32>, digest: u64 }
}

mirror! {
    struct Booted for input::Booted {
        boot: BootNo,
        build: String,
        policy: policy::Policy,
        group: String,
        offset: i64,
        downtime: Ms,
    }
}

mirror! {
    struct SessionFound for input::SessionFound {
        name: SessionName,
        origin: rows::Address,
        pending: Vec<input::PendingRow>,
        delivered: Vec<MessageNo>,
        unreadable: Option<String>,
    }
}

mirror! {
    struct PendingRow for input::PendingRow {
        id: String,
        seq: Option<i64>,
        trigger: bool,
        tries: u32,
        due: input::Due,
        origin: rows::Address,
    }
}

mirror! {
    enum Due for input::Due { Now, At(wall: Wall), Never }
}

mirror! {
    struct Arrival for input::Arrival {
        channel: String,
        receipt: u64,
        chat: String,
        thread: Option<String>,
        message_id: String,
        facts: input::TextFacts,
    }
}

mirror! {
    struct TextFacts for input::TextFacts {
        bytes: u32,
        attachments: u16,
        command: Option<String>,
        digest: u64,
    }
}

mirror! {
    enum Reading for input::Reading {
        Rows(rows: input::Rows),
        Unreadable { kind: input::Unreadable, detail: String },
    }
}

mirror! {
    struct Rows for input::Rows {
        rows: Vec<input::OutRow>,
        rewound: bool,
        more: bool,
        acks: Vec<(MessageNo, Option<input::AckFound>)>,
        facts: Vec<input::Fact>,
        tool: Option<input::Tool>,
    }
}

mirror! {
    units Unreadable for input::Unreadable { Busy, HotJournal, Missing, Bad, Slow, Inbound }
}

mirror! {
    struct OutRow for input::OutRow {
        rowid: i64,
        id: String,
        kind: input::OutKind,
        to: rows::Address,
        in_reply_to: Option<String>,
        not_before: Option<Wall>,
        settled: bool,
        files: bool,
        digest: u64,
    }
}

mirror! {
    enum OutKind for input::OutKind {
        Message,
        System(action: String),
        Malformed(why: String),
        Question(facts: input::QuestionFacts),
    }
}

mirror! {
    struct QuestionFacts for input::QuestionFacts { question: String, labels: Vec<u64>, timeout: Ms }
}

mirror! {
    struct AckFound for input::AckFound { status: input::Ack, mark: u64 }
}

mirror! {
    units Ack for input::Ack { Processing, Completed, Failed }
}

mirror! {
    enum Fact for input::Fact {
        Attempt(attempt: Attempt),
        Wait { until: Wall },
        Released { message: MessageNo, blameless: bool, reason: String, not_before: Option<Wall>, mark: u64 },
        Failed { message: MessageNo, reason: String },
        Missed { message: MessageNo, reason: String, not_before: Option<Wall>, mark: u64 },
    }
}

mirror! {
    struct Tool for input::Tool { mark: u64, declared: Option<Ms> }
}

mirror! {
    enum Exit for input::Exit { Code(code: i32), Signal(signal: i32), Unknown, OutOfMemory }
}

mirror! {
    units DeliveryFault for input::DeliveryFault { Transient, Permanent, NoRecipient, InDoubt }
}

mirror! {
    enum Ask for input::Ask {
        StopSession(session: SessionNo),
        StartSession(session: SessionNo),
        ResetSession(session: SessionNo),
        RetryMessage { session: SessionNo, row: input::PendingRow },
        DropMessage { session: SessionNo, id: String },
        ResendMessage { session: SessionNo, row: input::OutRow },
    }
}

mirror! {
    enum TimerKey for timers::TimerKey {
        MessageDue(session: SessionNo),
        ClaimSilence(session: SessionNo),
        Ceiling(session: SessionNo),
        IdleStop(session: SessionNo),
        Healthy(session: SessionNo),
        ContainerOverdue(session: SessionNo),
        StartBackoff(session: SessionNo),
        LookAgain(session: SessionNo),
        LookOverdue(session: SessionNo),
        Destination(destination: DestinationNo),
        DeliverAfter(message: MessageNo),
        Question(message: MessageNo),
        DeliveryOverdue(message: MessageNo),
        Withheld(session: SessionNo),
        WithheldAtLarge,
        RuntimeSettled,
    }
}
