//! The schedule by hand: what is read when, with time as an argument.

use super::super::per_session::{BUSY_REPORTED, REMOVAL_FOLLOWS};
use super::*;
use crate::base::RecordNo;

type Tested = Result<(), Box<dyn std::error::Error>>;

const ONE: SessionNo = SessionNo(1);
const TWO: SessionNo = SessionNo(2);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn place(name: &str) -> Result<Arc<Place>, String> {
    Ok(Arc::new(Place { name: SessionName::new("g", name)?, folder: SessionFolder::nested("/none") }))
}

fn plan(room: u32) -> ReadPlan {
    ReadPlan { room, ..ReadPlan::default() }
}

fn ticket(n: u64) -> EffectId {
    EffectId { record: RecordNo(n), index: 0 }
}

fn done(rows: u32) -> Outcome {
    Outcome::Done { rows, more: false }
}

/// A schedule with armed sessions whose first scan is over.
fn rested(sessions: &[SessionNo], now: Instant) -> Result<Schedule, Box<dyn std::error::Error>> {
    let mut schedule = Schedule::new(Limits::default());
    for no in sessions {
        schedule.live(*no, place(&no.to_string())?, plan(256), now);
        schedule.arm(*no, &*place(&no.to_string())?, now);
    }
    drain(&mut schedule, now);
    Ok(schedule)
}

/// Does everything that is ready, each read bringing nothing, and settles it.
fn drain(schedule: &mut Schedule, now: Instant) -> Vec<SessionNo> {
    let mut order = Vec::new();
    while let Some(job) = schedule.take(now) {
        match job {
            Job::Heartbeat(job) => {
                schedule.finish_heartbeat(&job, None, now);
            }
            Job::Read(job) => {
                order.push(job.session);
                schedule.finish_read(&job, done(0), Signature::default(), None, now);
                schedule.settled(job.session, plan(256), now);
            }
        }
    }
    order
}

fn take_read(schedule: &mut Schedule, now: Instant) -> Result<ReadJob, String> {
    loop {
        match schedule.take(now) {
            Some(Job::Read(job)) => return Ok(job),
            Some(Job::Heartbeat(job)) => {
                schedule.finish_heartbeat(&job, None, now);
            }
            None => return Err("nothing to read".into()),
        }
    }
}

fn mark(modified_ns: i128) -> Option<FileMark> {
    Some(FileMark { dev: 1, ino: 1, size: 0, modified_ns })
}

#[test]
fn a_session_is_not_read_before_its_watch_is_in_place() -> Tested {
    let now = Instant::now();
    let mut schedule = Schedule::new(Limits::default());
    schedule.live(ONE, place("a")?, plan(256), now);
    schedule.hint(ONE, Hint::Committed, now);
    assert!(schedule.look(ONE, ticket(1), now));
    assert!(take_read(&mut schedule, now).is_err());
    schedule.arm(ONE, &*place("where it was before")?, now);
    assert!(take_read(&mut schedule, now).is_err());
    schedule.arm(ONE, &*place("a")?, now);
    assert_eq!(take_read(&mut schedule, now)?.look.map(|look| look.ticket), Some(ticket(1)));
    Ok(())
}

#[test]
fn one_read_is_outstanding_and_marks_meanwhile_lead_to_one_more() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Committed, now);
    let job = take_read(&mut schedule, now)?;
    schedule.hint(ONE, Hint::Committed, now);
    schedule.hint(ONE, Hint::Committed, now);
    assert!(schedule.take(now).is_none(), "under way");
    let fate = schedule.finish_read(&job, done(1), Signature::default(), None, now);
    assert_eq!(fate, Fate::Report { heartbeat_changed: false });
    assert!(schedule.take(now).is_none(), "not settled");
    schedule.settled(ONE, plan(256), now);
    assert_eq!(drain(&mut schedule, now), [ONE]);
    Ok(())
}

#[test]
fn sessions_are_read_in_turn() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE, TWO], now)?;
    schedule.hint(TWO, Hint::Committed, now);
    schedule.hint(ONE, Hint::Committed, now);
    let first = take_read(&mut schedule, now)?;
    schedule.hint(TWO, Hint::Committed, now);
    schedule.finish_read(&first, done(1), Signature::default(), None, now);
    schedule.settled(TWO, plan(256), now);
    assert_eq!(first.session, TWO);
    assert_eq!(drain(&mut schedule, now), [ONE, TWO]);
    Ok(())
}

#[test]
fn a_closed_journal_waits_for_its_removal_and_is_read_once() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    assert!(schedule.hint(ONE, Hint::Writing, now), "due sooner than known");
    assert!(!schedule.hint(ONE, Hint::Writing, now));
    assert!(schedule.hint(ONE, Hint::Finished, now));
    assert!(schedule.take(now).is_none());
    assert_eq!(schedule.next_due(), Some(now + REMOVAL_FOLLOWS));
    assert!(schedule.hint(ONE, Hint::Committed, now));
    assert_eq!(drain(&mut schedule, now), [ONE]);
    assert_eq!(schedule.next_due(), None);
    Ok(())
}

#[test]
fn a_writer_that_keeps_its_journal_is_read_without_delay_once_that_is_known() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Finished, now);
    let later = now + ms(2);
    let job = take_read(&mut schedule, later)?;
    schedule.finish_read(&job, done(1), Signature::default(), None, later);
    schedule.settled(ONE, plan(256), later);
    schedule.hint(ONE, Hint::Finished, later);
    assert_eq!(drain(&mut schedule, later), [ONE], "no wait any more");
    schedule.hint(ONE, Hint::Committed, later);
    drain(&mut schedule, later);
    schedule.hint(ONE, Hint::Finished, later);
    assert!(schedule.take(later).is_none(), "its journal is removed again");
    Ok(())
}

#[test]
fn a_written_journal_alone_is_read_late() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Writing, now);
    assert!(schedule.take(now + ms(19)).is_none());
    assert_eq!(drain(&mut schedule, now + ms(20)), [ONE]);
    Ok(())
}

#[test]
fn a_closed_database_is_read_only_when_no_journal_was_ever_seen_to_end() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Closed, now);
    assert_eq!(drain(&mut schedule, now + ms(20)), [ONE], "a writer without a journal file");
    schedule.hint(ONE, Hint::Committed, now);
    drain(&mut schedule, now);
    schedule.hint(ONE, Hint::Closed, now);
    assert!(schedule.take(now + ms(20)).is_none());
    Ok(())
}

#[test]
fn a_locked_file_is_tried_again_after_growing_waits_or_at_the_next_event() -> Tested {
    let mut now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Committed, now);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let job = take_read(&mut schedule, now)?;
        assert_eq!(schedule.finish_read(&job, Outcome::Busy, Signature::default(), None, now), Fate::Again);
        let due = schedule.next_due().ok_or("no next try")?;
        waits.push((due - now).as_millis());
        now = due;
    }
    assert_eq!(waits, [5, 10, 20, 40, 80, 100, 100]);
    let job = take_read(&mut schedule, now)?;
    schedule.finish_read(&job, Outcome::Busy, Signature::default(), None, now);
    assert!(schedule.take(now).is_none());
    schedule.hint(ONE, Hint::Committed, now);
    let job = take_read(&mut schedule, now)?;
    assert!(job.announced);
    schedule.finish_read(&job, done(1), Signature::default(), None, now);
    schedule.settled(ONE, plan(256), now);
    schedule.hint(ONE, Hint::Committed, now);
    assert_eq!(drain(&mut schedule, now), [ONE], "the waits are forgotten");
    Ok(())
}

#[test]
fn a_lock_that_lasts_is_reported_and_tried_less_often() -> Tested {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Committed, now);
    let mut tries = 0;
    loop {
        let job = take_read(&mut schedule, now)?;
        tries += 1;
        if schedule.finish_read(&job, Outcome::Busy, Signature::default(), None, now) != Fate::Again {
            break;
        }
        now = schedule.next_due().ok_or("no next try")?;
    }
    assert!((ms(5_000)..ms(5_200)).contains(&(now - start)), "{:?}", now - start);
    assert!(tries < 60, "{tries}");
    schedule.settled(ONE, plan(256), now);
    schedule.hint(ONE, Hint::Committed, now);
    now = schedule.next_due().ok_or("no next try")?;
    let job = take_read(&mut schedule, now)?;
    schedule.finish_read(&job, Outcome::Busy, Signature::default(), None, now);
    assert_eq!(schedule.next_due(), Some(now + BUSY_REPORTED), "deaf to hints, and slow");
    Ok(())
}

#[test]
fn a_look_is_answered_even_when_the_file_stays_locked() -> Tested {
    let start = Instant::now();
    let mut now = start;
    let mut schedule = rested(&[ONE], now)?;
    assert!(schedule.look(ONE, ticket(7), now));
    loop {
        let job = take_read(&mut schedule, now)?;
        assert_eq!(job.look.map(|look| look.ticket), Some(ticket(7)));
        if schedule.finish_read(&job, Outcome::Busy, Signature::default(), None, now) != Fate::Again {
            break;
        }
        now = schedule.next_due().ok_or("no next try")?;
    }
    assert!((ms(2_000)..ms(2_200)).contains(&(now - start)));
    Ok(())
}

#[test]
fn looks_wait_for_the_settlement_and_are_answered_one_by_one() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    for n in 1..=MOST_LOOKS as u64 {
        assert!(schedule.look(ONE, ticket(n), now));
    }
    assert!(!schedule.look(ONE, ticket(99), now), "there is a bound");
    for n in 1..=MOST_LOOKS as u64 {
        let job = take_read(&mut schedule, now)?;
        assert_eq!(job.look.map(|look| look.ticket), Some(ticket(n)));
        schedule.finish_read(&job, done(0), Signature::default(), None, now);
        assert!(schedule.take(now).is_none());
        schedule.settled(ONE, plan(256), now);
    }
    Ok(())
}

#[test]
fn looks_of_a_session_that_is_given_up_are_handed_back_once() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    assert!(schedule.look(ONE, ticket(1), now));
    assert!(schedule.look(ONE, ticket(2), now));
    let job = take_read(&mut schedule, now)?;
    assert_eq!(schedule.remove(ONE), [ticket(1), ticket(2)]);
    assert_eq!(schedule.finish_read(&job, done(1), Signature::default(), None, now), Fate::Stale);
    assert!(!schedule.look(ONE, ticket(3), now));
    assert!(schedule.take(now).is_none());
    Ok(())
}

#[test]
fn a_flood_of_rows_is_held_to_its_rate_and_a_look_is_not() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.hint(ONE, Hint::Committed, now);
    let job = take_read(&mut schedule, now)?;
    assert_eq!(job.plan.room, 256);
    schedule.finish_read(&job, Outcome::Done { rows: 256, more: true }, Signature::default(), None, now);
    schedule.settled(ONE, plan(256), now);
    assert!(schedule.take(now).is_none());
    assert_eq!(schedule.next_due(), Some(now + ms(80)), "16 rows at 200 a second");
    assert!(schedule.look(ONE, ticket(1), now));
    let look = take_read(&mut schedule, now)?;
    assert_eq!(look.plan.room, 0, "acks only");
    schedule.finish_read(&look, done(0), Signature::default(), None, now);
    schedule.settled(ONE, plan(256), now);
    let job = take_read(&mut schedule, now + ms(80))?;
    assert_eq!(job.plan.room, 16, "the rows that were left are not forgotten");
    Ok(())
}

#[test]
fn rows_left_for_want_of_room_are_read_when_there_is_room() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.settled(ONE, plan(0), now);
    schedule.hint(ONE, Hint::Committed, now);
    let job = take_read(&mut schedule, now)?;
    assert_eq!(job.plan.room, 0);
    schedule.finish_read(&job, done(0), Signature::default(), None, now);
    schedule.settled(ONE, plan(0), now);
    assert!(schedule.take(now).is_none());
    schedule.settled(ONE, plan(5), now);
    assert_eq!(take_read(&mut schedule, now)?.plan.room, 5);
    Ok(())
}

#[test]
fn an_id_that_was_not_asked_for_before_leads_to_a_read() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    let with = |ids: &[&str]| ReadPlan { ids: ids.iter().map(|id| (*id).to_owned()).collect(), ..plan(256) };
    schedule.settled(ONE, with(&["a", "b"]), now);
    assert_eq!(take_read(&mut schedule, now)?.plan.ids.len(), 2);
    let mut schedule = rested(&[ONE], now)?;
    schedule.settled(ONE, with(&["a", "b"]), now);
    let job = take_read(&mut schedule, now)?;
    schedule.finish_read(&job, done(0), Signature::default(), None, now);
    schedule.settled(ONE, with(&["b"]), now);
    assert!(schedule.take(now).is_none(), "fewer ids need no read");
    Ok(())
}

#[test]
fn heartbeats_are_reported_when_they_changed_and_at_most_once_in_their_time() -> Tested {
    let start = Instant::now();
    let mut schedule = rested(&[ONE], start)?;
    let mut reported = Vec::new();
    for second in 0..12u64 {
        let now = start + Duration::from_secs(second);
        schedule.hint(ONE, Hint::Heartbeat, now);
        while let Some(job) = schedule.take(now) {
            let Job::Heartbeat(job) = job else { return Err("a heartbeat is no reason to read".into()) };
            // The file is not touched after second 8.
            if schedule.finish_heartbeat(&job, mark(i128::from(second.min(8))), now) {
                reported.push(second);
            }
        }
    }
    assert_eq!(reported, [0, 5, 10]);
    let now = start + Duration::from_secs(20);
    schedule.hint(ONE, Hint::Heartbeat, now);
    let Some(Job::Heartbeat(job)) = schedule.take(now) else { return Err("no stat".into()) };
    assert!(!schedule.finish_heartbeat(&job, mark(8), now), "it did not change");
    Ok(())
}

#[test]
fn a_look_says_whether_the_heartbeat_changed_since_the_baseline() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    schedule.baseline(ONE, now);
    assert!(schedule.look(ONE, ticket(1), now));
    let Some(Job::Heartbeat(job)) = schedule.take(now) else { return Err("no stat".into()) };
    assert!(schedule.take(now).is_none(), "the look waits for the baseline");
    assert!(!schedule.finish_heartbeat(&job, mark(5), now));
    for (found, changed) in [(mark(5), false), (mark(6), true), (mark(6), false), (None, false)] {
        let job = match schedule.take(now) {
            Some(Job::Read(job)) => job,
            other => return Err(format!("{other:?}").into()),
        };
        let fate = schedule.finish_read(&job, done(0), Signature::default(), found, now);
        assert_eq!(fate, Fate::Report { heartbeat_changed: changed });
        schedule.settled(ONE, plan(256), now);
        assert!(schedule.look(ONE, ticket(2), now));
    }
    Ok(())
}

#[test]
fn what_a_resync_finds_is_unannounced_unless_an_event_still_comes() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    assert_eq!(schedule.compare(ONE, &Signature::default(), now), None);
    let written = Signature { database: mark(1), ..Signature::default() };
    let found = schedule.compare(ONE, &written, now).ok_or("not found")?;
    let job = take_read(&mut schedule, now)?;
    assert!(!job.announced);
    assert!(schedule.is_unannounced(ONE, found));
    schedule.hint(ONE, Hint::Committed, now);
    assert!(!schedule.is_unannounced(ONE, found));
    schedule.finish_read(&job, done(1), written, None, now);
    schedule.settled(ONE, plan(256), now);
    drain(&mut schedule, now);
    Ok(())
}

#[test]
fn a_transaction_on_its_way_is_not_held_against_the_watcher() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    let half = Signature { database: mark(1), journal: mark(2), heartbeat: None };
    assert_eq!(schedule.compare(ONE, &half, now), None);
    assert_eq!(drain(&mut schedule, now), [ONE], "read it is all the same");
    Ok(())
}

#[test]
fn lost_events_mean_a_read_of_every_live_session() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE, TWO], now)?;
    schedule.hint_all(now);
    assert_eq!(drain(&mut schedule, now), [ONE, TWO]);
    Ok(())
}

#[test]
fn making_a_live_session_live_again_only_renews_its_plan() -> Tested {
    let now = Instant::now();
    let mut schedule = rested(&[ONE], now)?;
    assert!(schedule.look(ONE, ticket(1), now));
    let (new, dropped) = schedule.live(ONE, place("s1")?, plan(3), now);
    assert!(!new && dropped.is_empty());
    assert_eq!(take_read(&mut schedule, now)?.plan.room, 3);
    let (new, dropped) = schedule.live(ONE, place("elsewhere")?, plan(3), now);
    assert!(new);
    assert_eq!(dropped, [ticket(1)]);
    Ok(())
}

#[test]
fn sessions_that_are_slow_wait_behind_the_others_and_have_one_thread_among_them() -> Tested {
    let now = Instant::now();
    let (three, four) = (SessionNo(3), SessionNo(4));
    let mut schedule = rested(&[ONE, TWO, three, four], now)?;
    for no in [ONE, TWO] {
        schedule.hint(no, Hint::Committed, now);
        let job = take_read(&mut schedule, now)?;
        let fate = schedule.finish_read(&job, Outcome::Slow, Signature::default(), None, now);
        assert_eq!(fate, Fate::Report { heartbeat_changed: false });
        schedule.settled(no, plan(256), now);
    }
    // Each commits at once, the slow ones first.
    for no in [ONE, TWO, three, four] {
        schedule.hint(no, Hint::Committed, now);
    }
    let quick = [take_read(&mut schedule, now)?, take_read(&mut schedule, now)?];
    assert_eq!(quick.map(|job| (job.session, job.slow)), [(three, false), (four, false)]);
    let slow = take_read(&mut schedule, now)?;
    assert_eq!((slow.session, slow.slow), (ONE, true));
    assert!(schedule.take(now).is_none() && !schedule.is_ready(), "one slow read is under way");
    // Also when it was given up meanwhile: its thread is still held.
    schedule.remove(ONE);
    assert!(schedule.take(now).is_none());
    assert_eq!(schedule.finish_read(&slow, Outcome::Slow, Signature::default(), None, now), Fate::Stale);
    assert!(schedule.is_ready());
    // One that succeeds is as good as any other again.
    let slow = take_read(&mut schedule, now)?;
    assert_eq!((slow.session, slow.slow), (TWO, true));
    schedule.finish_read(&slow, done(1), Signature::default(), None, now);
    schedule.settled(TWO, plan(256), now);
    schedule.hint(TWO, Hint::Committed, now);
    assert!(!take_read(&mut schedule, now)?.slow);
    Ok(())
}
