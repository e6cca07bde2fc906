//! Random input sequences with the invariants as oracle.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::{Channel, World, chat};
use crate::base::{At, Attempt, EffectId, Ms, RecordNo, SessionNo};
use crate::machine::input::*;

#[derive(Clone, Debug)]
enum Act {
    Arrive(u8, u8),
    Space(bool),
    Claim(u8, u8),
    Complete(u8, u8),
    Fail(u8, u8),
    Release(u8, u8, bool),
    Miss(u8, u8),
    Reply(u8, u8, u8),
    Ask(u8, u8, u64),
    Say(u8, u8, u8),
    Request(u8, u8),
    Exit(u8, i32),
    Wait(u64),
    Channel(u8),
    Up,
    Down,
    Boot(bool),
    Handover(u64, bool, bool),
    Begin(u8),
    Bad(u8, u8),
    Stop(u8),
    Start(u8),
    Stray(u8, u64),
    Clock(i64),
    Heartbeat(u8),
    Tool(u8, u64),
    StartsFail(bool),
    Stubborn(bool),
    Replaced(u8),
    Inbound(u8, bool),
    Damaged(u8),
    Overflow(u8),
    Away,
    Back,
    BootAway(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let chat = 0u8..3;
    let id = 0u8..6;
    prop_oneof![
        4 => (chat.clone(), id.clone()).prop_map(|(c, i)| Act::Arrive(c, i)),
        4 => (chat.clone(), id.clone()).prop_map(|(c, i)| Act::Claim(c, i)),
        3 => (chat.clone(), id.clone()).prop_map(|(c, i)| Act::Complete(c, i)),
        1 => (chat.clone(), id.clone()).prop_map(|(c, i)| Act::Fail(c, i)),
        1 => (chat.clone(), id.clone(), any::<bool>()).prop_map(|(c, i, b)| Act::Release(c, i, b)),
        1 => (chat.clone(), id.clone()).prop_map(|(c, i)| Act::Miss(c, i)),
        3 => (chat.clone(), 0u8..40, chat.clone()).prop_map(|(c, i, to)| Act::Reply(c, i, to)),
        2 => (chat.clone(), 40u8..60, 0u64..400_000).prop_map(|(c, i, ms)| Act::Ask(c, i, ms)),
        3 => (chat.clone(), id.clone(), 0u8..4).prop_map(|(c, i, n)| Act::Say(c, i + 6, n)),
        1 => (chat.clone(), 60u8..70).prop_map(|(c, i)| Act::Request(c, i)),
        3 => (chat.clone(), -1i32..3).prop_map(|(c, code)| Act::Exit(c, code)),
        4 => (0u64..700_000).prop_map(Act::Wait),
        2 => (0u8..6).prop_map(Act::Channel),
        1 => Just(Act::Up),
        1 => Just(Act::Down),
        1 => any::<bool>().prop_map(Act::Boot),
        1 => (0u64..700_000, any::<bool>(), any::<bool>())
            .prop_map(|(ms, alive, adopts)| Act::Handover(ms, alive, adopts)),
        2 => chat.clone().prop_map(Act::Begin),
        1 => (chat.clone(), 0u8..4).prop_map(|(c, k)| Act::Bad(c, k)),
        1 => chat.clone().prop_map(Act::Stop),
        1 => chat.clone().prop_map(Act::Start),
        1 => (0u8..9, any::<u64>()).prop_map(|(k, n)| Act::Stray(k, n)),
        1 => (-400_000_000_000i64..400_000_000_000).prop_map(Act::Clock),
        1 => chat.clone().prop_map(Act::Heartbeat),
        1 => (chat.clone(), 0u64..10_000_000).prop_map(|(c, ms)| Act::Tool(c, ms)),
        1 => any::<bool>().prop_map(Act::Space),
        1 => any::<bool>().prop_map(Act::StartsFail),
        1 => any::<bool>().prop_map(Act::Stubborn),
        1 => (chat.clone(), any::<bool>()).prop_map(|(c, bad)| Act::Inbound(c, bad)),
        1 => chat.clone().prop_map(Act::Damaged),
        1 => chat.clone().prop_map(Act::Overflow),
        1 => chat.prop_map(Act::Replaced),
        1 => Just(Act::Away),
        1 => Just(Act::Back),
        1 => any::<bool>().prop_map(Act::BootAway),
    ]
}

fn apply(world: &mut World, act: &Act) {
    let name = |c: u8| format!("c{c}");
    let of = |world: &World, c: u8| world.session_of(&name(c));
    match *act {
        Act::Arrive(c, i) => world.arrive(&name(c), &format!("m{i}")),
        Act::Say(c, i, n) => world.say(&name(c), &format!("m{i}"), ["1", "2", "yes", "x"][usize::from(n)]),
        Act::Space(low) => world.space_low = low,
        Act::Wait(ms) => {
            let until = world.at + Ms(ms);
            world.wait(until);
        }
        Act::Channel(n) => {
            world.channel = match n {
                0 => Channel::Accepts,
                1 => Channel::Fails(DeliveryFault::Transient),
                2 => Channel::Fails(DeliveryFault::Permanent),
                3 => Channel::Fails(DeliveryFault::NoRecipient),
                4 => Channel::Fails(DeliveryFault::InDoubt),
                _ => Channel::Silent,
            }
        }
        Act::Up => world.channel_up(),
        Act::Down => world.input(Input::ChannelDown { channel: "chat".into() }),
        Act::Boot(alive) => {
            world.away = false;
            world.boot(alive);
        }
        Act::BootAway(adopts) => {
            (world.away, world.adopts) = (true, adopts);
            world.boot(true);
        }
        Act::Away => world.runtime_down(),
        Act::Back => {
            // What was asked to stop meanwhile and could not be is asked again, as its task does.
            if world.machine.state().is_unlisted() {
                world.runtime_lists();
            }
            world.runtime_back();
        }
        Act::Handover(ms, alive, adopts) => {
            world.adopts = adopts;
            world.input(Input::DetachAsked);
            let until = world.at + Ms(ms);
            world.wait(until);
            world.boot(alive);
        }
        Act::Clock(by) => {
            world.offset += by;
            let offset = world.offset;
            world.input(Input::ClockSet { offset });
        }
        Act::Stray(kind, n) => world.input(stray(kind, n)),
        Act::StartsFail(on) => world.starts_fail = on,
        Act::Stubborn(on) => world.stubborn = on,
        Act::Claim(c, _)
        | Act::Complete(c, _)
        | Act::Fail(c, _)
        | Act::Release(c, _, _)
        | Act::Miss(c, _)
        | Act::Reply(c, _, _)
        | Act::Ask(c, _, _)
        | Act::Request(c, _)
        | Act::Exit(c, _)
        | Act::Begin(c)
        | Act::Bad(c, _)
        | Act::Stop(c)
        | Act::Start(c)
        | Act::Heartbeat(c)
        | Act::Tool(c, _)
        | Act::Inbound(c, _)
        | Act::Damaged(c)
        | Act::Overflow(c)
        | Act::Replaced(c) => {
            if let Some(no) = of(world, c) {
                in_session(world, no, act);
            }
        }
    }
}

fn in_session(world: &mut World, no: SessionNo, act: &Act) {
    let attempt = world.running.get(&no).copied();
    let folder = world.folder(no);
    match *act {
        Act::Claim(_, i) => folder.ack(&format!("m{i}"), Ack::Processing),
        Act::Complete(_, i) => folder.ack(&format!("m{i}"), Ack::Completed),
        Act::Fail(_, i) => folder.ack(&format!("m{i}"), Ack::Failed),
        Act::Miss(_, i) => folder.miss(&format!("m{i}"), None),
        Act::Release(_, i, blameless) => folder.release(&format!("m{i}"), blameless),
        Act::Reply(_, i, to) => {
            let id = folder.own_id(&format!("r{i}"));
            if !folder.rows.iter().any(|row| row.id == id) {
                folder.reply(&id, chat(&format!("c{to}")));
            }
        }
        Act::Ask(c, i, ms) => {
            let id = folder.own_id(&format!("q{i}"));
            if !folder.rows.iter().any(|row| row.id == id) {
                folder.ask(&id, chat(&format!("c{c}")), Ms(ms), &["yes", "no"]);
            }
        }
        Act::Request(_, i) => {
            let id = folder.own_id(&format!("s{i}"));
            if !folder.rows.iter().any(|row| row.id == id) {
                folder.request(&id, "schedule_task");
            }
        }
        // More that is denied than an agent is told of one by one.
        Act::Overflow(_) => {
            let first = folder.rows.len();
            for n in first..first + 20 {
                let id = folder.own_id(&format!("o{n}"));
                folder.request(&id, "self_mod");
            }
        }
        Act::Begin(_) => {
            folder.facts.clear();
            folder.facts.extend(attempt.map(super::world::WorldFact::Attempt));
            folder.acks.retain(|_, ack| ack.status != Ack::Processing);
        }
        Act::Bad(_, kind) => {
            folder.unreadable = match kind {
                0 => None,
                1 => Some(Unreadable::Bad),
                2 => Some(Unreadable::Slow),
                _ => Some(Unreadable::Busy),
            }
        }
        Act::Tool(_, ms) => folder.tool = Some(Tool { mark: ms, declared: Some(Ms(ms)) }),
        Act::Replaced(_) => folder.replace(),
        Act::Inbound(_, bad) => folder.inbound_unreadable = bad,
        Act::Damaged(_) => {
            folder.inbound_unreadable = true;
            let detail = "test".into();
            return world.input(Input::InboundUnwritable { session: no, detail });
        }
        Act::Exit(_, code) => {
            let exit = if code < 0 { Exit::Signal(9) } else { Exit::Code(code) };
            return world.exit(no, exit);
        }
        Act::Stop(_) => return world.input(Input::OperatorAsked { request: 1, ask: Ask::StopSession(no) }),
        Act::Start(_) => return world.input(Input::OperatorAsked { request: 1, ask: Ask::StartSession(no) }),
        Act::Heartbeat(_) => return world.input(Input::HeartbeatSeen { session: no }),
        _ => {}
    }
    world.read(no);
}

/// News that belongs to nothing: late, doubled or made up.
fn stray(kind: u8, n: u64) -> Input {
    let effect = EffectId { record: RecordNo(n % 1_000), index: (n % 3) as u32 };
    let session = SessionNo((n % 5) as u32);
    match kind {
        0 => Input::ContainerStarted { effect },
        1 => Input::ContainerExited { session, attempt: Attempt(n % 100), exit: Exit::Code(0) },
        2 => Input::Delivered { effect, platform_id: None },
        3 => Input::EffectDone { effect, error: None },
        4 => Input::TimerDue {
            key: crate::machine::timers::TimerKey::IdleStop(session),
            deadline: At(n as i64),
        },
        5 => Input::InboundWritten { effect, seq: 2, duplicate: false },
        6 => Input::InboundLocked { session },
        7 => Input::FolderTooLarge { session, detail: String::new() },
        _ => Input::ContainersFound { alive: vec![(session, Attempt(n % 10))], adoptable: true },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, the invariants hold after every step; and once the world is kind again, every message
    /// comes to an end.
    #[test]
    fn any_sequence_keeps_the_invariants_and_then_settles(
        acts in proptest::collection::vec(act(), 1..120),
        slots in 1u32..4,
    ) {
        let mut world = World::new();
        world.policy.slots = slots;
        world.boot(false);
        for act in &acts {
            apply(&mut world, act);
        }
        heal(&mut world);
        let state = world.machine.state();
        // Notes of the host to the agent are context: they wait for the next turn.
        let open: Vec<_> = state.inbounds().values().filter(|message| message.trigger).collect();
        prop_assert!(open.is_empty(), "open inbound: {open:?}\n{}", world.log.join("\n"));
        if !acts.iter().any(|act| matches!(act, Act::Replaced(_))) {
            // A question's id is its session's own.
            let answers = world.folders.iter().flat_map(|(no, it)| it.inserted.iter().map(move |id| (*no, id)));
            let answers = answers.filter(|(_, id)| id.starts_with("qr-"));
            let mut asked: Vec<(SessionNo, &str)> =
                answers.filter_map(|(no, id)| Some((no, id.rsplit_once('-')?.0))).collect();
            let all = asked.len();
            asked.sort_unstable();
            asked.dedup();
            prop_assert_eq!(asked.len(), all, "answered twice\n{}", world.log.join("\n"));
        }
        prop_assert!(state.outbounds().is_empty(), "open outbound: {:?}\n{}", state.outbounds(), world.log.join("\n"));
        let wrong = unaccounted(&world);
        prop_assert!(wrong.is_empty(), "{wrong:?}\n{}", world.log.join("\n"));
    }

    /// The same inputs at the same times lead to the same effects and the same state.
    #[test]
    fn the_same_sequence_gives_the_same_transcript(acts in proptest::collection::vec(act(), 1..60)) {
        let run = || {
            let mut world = World::new();
            world.boot(false);
            acts.iter().for_each(|act| apply(&mut world, act));
            (world.log, world.machine.state().to_parts())
        };
        prop_assert_eq!(run(), run());
    }

    /// A state that is taken apart and put together again goes on as the original does.
    #[test]
    fn a_state_survives_being_taken_apart(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new();
        world.boot(false);
        for act in &acts {
            apply(&mut world, act);
            let copy = crate::machine::state::State::from_parts(world.machine.state().to_parts());
            let timers = |state: &crate::machine::state::State| state.timers().iter().collect::<Vec<_>>();
            prop_assert_eq!(timers(&copy), timers(world.machine.state()));
            prop_assert_eq!(copy.alive(), world.machine.state().alive());
        }
    }
}

/// The end of the journal was lost: it was delivered and recorded, and the journal has it as held. What is next is the
/// end of a turn, which waits for nothing and so has no time of its own.
#[test]
fn what_was_delivered_before_the_journals_end_holds_nobody() {
    let mut world = World::new();
    world.channel = Channel::Fails(DeliveryFault::NoRecipient);
    world.boot(false);
    for act in [Act::Arrive(1, 0), Act::Begin(1), Act::Claim(1, 0), Act::Reply(1, 5, 1), Act::Complete(1, 0)]
    {
        apply(&mut world, &act);
    }
    let no = world.session_of("c1").unwrap();
    assert_eq!(world.machine.state().destinations().len(), 1, "{}", world.log.join("\n"));
    world.folder(no).delivered.push("r5".into());
    world.boot(false);
    assert!(world.log.iter().any(|line| line.contains("tell-settled m0")), "{}", world.log.join("\n"));
    assert!(world.machine.state().destinations().is_empty());
}

/// The row kept a time that could not be taken out of it while inbound.db was bad.
#[test]
fn a_time_that_stayed_in_a_row_is_taken_out_once_it_can_be() {
    let mut world = World::new();
    world.boot(false);
    apply(&mut world, &Act::Arrive(1, 0));
    apply(&mut world, &Act::Begin(1));
    apply(&mut world, &Act::Claim(1, 0));
    apply(&mut world, &Act::Miss(1, 0));
    let no = world.session_of("c1").unwrap();
    let due = |world: &mut World| world.folder(no).inbound.values().next().unwrap().due;
    assert!(matches!(due(&mut world), Due::At(_)), "{}", world.log.join("\n"));
    // Claimed and given back while nothing can be written.
    world.folder(no).inbound_unreadable = true;
    apply(&mut world, &Act::Claim(1, 0));
    apply(&mut world, &Act::Begin(1));
    world.folder(no).inbound_unreadable = false;
    world.boot(false);
    assert_eq!(due(&mut world), Due::Now, "{}", world.log.join("\n"));
}

/// What the world has seen and the machine owes it an account of, once all is settled.
fn unaccounted(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for (no, folder) in &world.folders {
        for row in &folder.rows {
            if !folder.recorded.contains_key(&row.id) {
                wrong.push(format!("{no}: row {} is not on record", row.id));
            }
        }
        for (id, &delivered) in &folder.recorded {
            let keys = folder.accepted.get(id).map_or(0, BTreeSet::len);
            if delivered && keys == 0 {
                wrong.push(format!("{no}: row {id} is recorded as delivered, and nobody got it"));
            }
        }
        for (id, keys) in &folder.accepted {
            // The channel drops repeats of a key, so one key is one delivery.
            if keys.len() != 1 {
                wrong.push(format!("{no}: row {id} was delivered {} times", keys.len()));
            }
        }
        for row in folder.inbound.values().filter(|row| row.trigger) {
            wrong.push(format!("{no}: message {} was never answered", row.id));
        }
    }
    wrong
}

/// The world is kind: files can be read, channels accept, containers start, and whoever runs does its work.
fn heal(world: &mut World) {
    world.channel = Channel::Accepts;
    world.starts_fail = false;
    world.stubborn = false;
    world.away = false;
    for folder in world.folders.values_mut() {
        folder.unreadable = None;
        folder.inbound_unreadable = false;
        folder.tool = None;
    }
    let running: Vec<SessionNo> = world.running.keys().copied().collect();
    running.into_iter().for_each(|no| world.exit(no, Exit::Code(0)));
    world.boot(false);
    let sessions: Vec<SessionNo> = world.machine.state().sessions().keys().copied().collect();
    for &no in &sessions {
        world.input(Input::OperatorAsked { request: 1, ask: Ask::StartSession(no) });
    }
    for _ in 0..400 {
        let state = world.machine.state();
        if state.outbounds().is_empty() && state.inbounds().values().all(|message| !message.trigger) {
            return;
        }
        for no in world.running.keys().copied().collect::<Vec<_>>() {
            work(world, no);
        }
        let until = world.machine.next_deadline().map_or(world.at + Ms::secs(1), |(at, _)| at.max(world.at));
        world.wait(until);
    }
}

/// What a good runner does with whatever is due.
fn work(world: &mut World, no: SessionNo) {
    let ids: Vec<String> = match world.folders.get(&no) {
        Some(folder) => folder
            .inbound
            .values()
            .filter(|row| match row.due {
                Due::Now => true,
                Due::At(wall) => wall <= world.machine.state().wall(),
                Due::Never => false,
            })
            .map(|row| row.id.clone())
            .collect(),
        None => return,
    };
    let folder = world.folder(no);
    folder.acks.retain(|_, ack| ack.status != Ack::Processing);
    for id in ids {
        folder.ack_row(id, Ack::Completed);
    }
    world.read(no);
}
