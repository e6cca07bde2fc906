//! The stepper on journals of real runs, with keys and a screen but without a terminal.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::model::{Mode, Model, Next, Pane};
use super::view::{Theme, draw};
use super::{keys, restoring};
use crate::base::RecordNo;
use crate::journal::body;
use crate::journal::frame::{self, Kind};
use crate::journal::record::{RECORD_SCHEMA, decode_record, encode_record};
use crate::journal::segment::{FrameAt, SegmentReader};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/journals").join(name)
}

/// A stepper that is driven by keys.
struct Stepper {
    model: Model,
    left: bool,
}

impl Stepper {
    fn open(name: &str) -> Self {
        Self { model: Model::open(&fixture(name), None, |_| ()).unwrap(), left: false }
    }

    fn key(&mut self, code: KeyCode) -> &mut Self {
        let Some(command) = keys::command(self.model.mode(), KeyEvent::from(code)) else { return self };
        match self.model.apply(command).unwrap() {
            Next::Draw => {}
            Next::Run(job) => self.model.run(job, || true).unwrap(),
            Next::Leave => self.left = true,
        }
        self
    }

    fn keys(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            self.key(if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) });
        }
        self
    }

    fn at(&self) -> (usize, &'static str) {
        (self.model.moment().index, self.model.moment().input.name())
    }

    fn says(&self) -> &str {
        self.model.message().unwrap_or_default()
    }

    fn screen(&mut self, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &mut self.model, Theme { colour: true })).unwrap();
        let text = terminal.backend().to_string();
        text.lines().map(|line| line.trim_matches('"').trim_end()).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn keys_go_through_the_records_and_stop_at_both_ends() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    let len = stepper.model.cursor().len();
    assert_eq!(stepper.at(), (0, "booted"));
    assert_eq!(stepper.keys("p").says(), "this is the first record");
    assert_eq!(stepper.keys("l n").at().0, 3);
    stepper.key(KeyCode::Right).key(KeyCode::Left).keys("h");
    assert_eq!(stepper.at().0, 2);
    assert_eq!(stepper.keys("G").at().0, len - 1);
    assert_eq!(stepper.keys("n").says(), "this is the last record");
    stepper.key(KeyCode::PageUp);
    assert_eq!(stepper.at().0, (len - 1).saturating_sub(20));
    assert_eq!(stepper.keys("g").key(KeyCode::PageDown).at().0, 20.min(len - 1));
    assert!(stepper.keys("q").left);
}

#[test]
fn a_record_is_reached_by_its_number_and_by_its_place() {
    let mut stepper = Stepper::open("killed-with-a-container-running");
    stepper.keys(":2.3\n");
    assert_eq!(stepper.model.moment().record.to_string(), "2.3");
    assert_eq!(stepper.keys(":2\n").at().0, 1);
    stepper.keys(":1.4000\n");
    assert_eq!(stepper.model.moment().record.to_string(), "2.0");
    assert_eq!(stepper.says(), "there is no record 1.4000; this is the next one");
    assert!(stepper.keys(":9.9\n").says().ends_with("this is the last one"));
    assert!(stepper.keys(":x\n").says().contains("boot.n"));
    assert!(stepper.keys(":0\n").says().starts_with("there are "));
    let at = Some(RecordNo((2 << 32) | 3));
    let model = Model::open(&fixture("killed-with-a-container-running"), at, |_| ()).unwrap();
    assert_eq!(model.moment().record.to_string(), "2.3");
}

#[test]
fn breakpoints_stop_both_ways_and_can_be_deleted() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    assert!(stepper.keys("c").says().starts_with("there is no breakpoint"));
    stepper.keys("bkind=container-exited\n");
    let (first, name) = stepper.keys("c").at();
    assert_eq!(name, "container-exited");
    let (second, _) = stepper.keys("c").at();
    if second == first {
        assert!(stepper.says().contains("does not come after"));
    }
    assert_eq!(stepper.keys("GC").at().1, "container-exited");
    assert!(stepper.keys("gC").says().contains("does not come before"));
    assert!(stepper.keys("bkind=nonsense\n").says().contains("message-arrived"));
    assert!(stepper.keys("bnonsense\n").says().contains("kind=NAME"));
    assert!(stepper.keys("B").screen(80, 24).contains("> kind=container-exited"));
    stepper.keys("d");
    assert!(stepper.model.breakpoints().is_empty());
    assert!(stepper.screen(80, 24).contains("none yet"));
    assert_eq!(*stepper.key(KeyCode::Esc).model.mode(), Mode::Stepping);
}

#[test]
fn a_message_is_followed_from_its_arrival_to_its_end() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    stepper.keys("bmessage=m1\n");
    assert_eq!(stepper.keys("c").at().1, "message-arrived");
    let mut names = vec![stepper.at().1];
    loop {
        let before = stepper.at().0;
        if stepper.keys("c").at().0 == before {
            break;
        }
        names.push(stepper.at().1);
    }
    assert!(names.contains(&"inbound-written") && names.len() >= 4, "{names:?}");
    // Backwards it stops at the same records.
    let mut back = vec![stepper.at().1];
    loop {
        let before = stepper.at().0;
        if stepper.keys("C").at().0 == before {
            break;
        }
        back.push(stepper.at().1);
    }
    back.reverse();
    assert_eq!(back, names);
}

#[test]
fn a_session_and_a_text_are_stopped_at() {
    let mut stepper = Stepper::open("slots-full");
    stepper.keys("bsession=s2\nc");
    assert_eq!(stepper.model.moment().session.map(|it| it.to_string()).as_deref(), Some("s2"));
    stepper.keys("g/START-container\n");
    let first = stepper.at().0;
    assert!(stepper.model.moment().effects.iter().any(|it| it.name() == "start-container"));
    let second = stepper.keys("N").at().0;
    assert!(second > first);
    assert_eq!(stepper.keys("P").at().0, first);
    assert!(stepper.keys("/no such text\n").says().contains("does not come after"));
}

#[test]
fn a_search_is_given_up_when_asked() {
    let mut stepper = Stepper::open("demo.ltj");
    let Next::Run(job) = stepper.keys("/x").model.apply(super::model::Command::Accept).unwrap() else {
        panic!("no search");
    };
    stepper.model.announce(&job);
    assert!(stepper.says().contains("a key gives up"));
    // So short a journal is through before anybody asks.
    stepper.model.run(job, || false).unwrap();
}

#[test]
fn the_state_of_one_session_is_shown_until_all_is_asked_for_again() {
    let mut stepper = Stepper::open("slots-full");
    stepper.keys("Gss2\n");
    // The prompt begins with the session of the record, which is typed on to.
    if stepper.model.session().is_none() {
        stepper.keys("s");
        for _ in 0..4 {
            stepper.key(KeyCode::Backspace);
        }
        stepper.keys("s2\n");
    }
    assert_eq!(stepper.model.focus(), Pane::State);
    let text = stepper.screen(80, 24);
    assert!(
        text.contains("Session(s2)") && text.contains("of s2") && !text.contains("Session(s1)"),
        "{text}"
    );
    stepper.keys("s\n");
    assert_eq!(stepper.model.session(), None);
    stepper.keys("s");
    for _ in 0..4 {
        stepper.key(KeyCode::Backspace);
    }
    assert!(stepper.keys("nobody\n").says().contains("no session"));
}

#[test]
fn every_pane_is_reached_on_a_small_screen() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    stepper.keys("bkind=message-arrived\nc");
    let input = stepper.screen(80, 24);
    assert!(input.contains("[1 Input] 2 Effects  3 State  4 Diff"), "{input}");
    assert!(input.contains("Arrival {") && input.contains("message_id: \"m1\""), "{input}");
    let effects = stepper.key(KeyCode::Tab).screen(80, 24);
    assert!(effects.contains("[2 Effects]") && effects.contains(".0 would have: "), "{effects}");
    let state = stepper.key(KeyCode::Tab).screen(80, 24);
    assert!(state.contains("[3 State]") && state.contains("Core"), "{state}");
    let diff = stepper.keys("4").screen(80, 24);
    assert!(diff.contains("[4 Diff]") && diff.contains("\n- ") && diff.contains("\n+ "), "{diff}");
    let first = diff.lines().nth(10).unwrap().to_owned();
    let scrolled = stepper.key(KeyCode::Down).screen(80, 24);
    assert_ne!(scrolled.lines().nth(10), Some(first.as_str()));
    for _ in 0..1_000 {
        stepper.key(KeyCode::Down);
    }
    // Scrolling ends where the last line is at the bottom.
    let bottom = stepper.screen(80, 24);
    assert!(!bottom.lines().nth(22).unwrap().is_empty(), "{bottom}");
    assert_eq!(stepper.key(KeyCode::BackTab).model.focus(), Pane::State);
}

#[test]
fn the_whole_small_screen_of_a_record() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    let screen = stepper.keys(":5\n").screen(80, 24);
    let lines: Vec<&str> = screen.lines().collect();
    let moment = stepper.model.moment();
    assert_eq!(lines.len(), 24, "{screen}");
    assert!(lines[0].starts_with(&format!("{} {}", moment.record, moment.input.name())), "{screen}");
    assert!(lines[0].contains("record 5 of "), "{screen}");
    assert!(lines[0].contains(&format!("at {}", moment.at)) && lines[1].contains("  +"), "{screen}");
    assert!(lines[2].contains(" Records "), "{screen}");
    let marked: Vec<&&str> = lines.iter().filter(|line| line.starts_with('>')).collect();
    assert_eq!(marked.len(), 1, "{screen}");
    assert!(marked[0].contains(&moment.record.to_string()), "{screen}");
    assert!(lines[23].ends_with("? help  q"), "{screen}");
    assert!(stepper.keys("?").screen(80, 24).contains("q Esc Ctrl-C"));
    assert_eq!(*stepper.keys("x").model.mode(), Mode::Stepping);
    // No screen is too small to draw on.
    for (width, height) in [(1, 1), (20, 4), (200, 3), (119, 60)] {
        stepper.screen(width, height);
        stepper.keys("?").screen(width, height);
        stepper.keys("x");
    }
}

#[test]
fn a_wide_screen_shows_all_panes_at_once() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    let screen = stepper.keys("bkind=message-arrived\nc").screen(160, 48);
    for word in ["[1 Input]", " 2 Effects ", " 3 State ", " 4 Diff ", " Records ", "would have: "] {
        assert!(screen.contains(word), "{word}: {screen}");
    }
}

#[test]
fn without_colours_the_same_signs_are_there() {
    let mut stepper = Stepper::open("crash-in-mid-turn");
    stepper.keys("G4");
    let coloured = |stepper: &mut Stepper, colour| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &mut stepper.model, Theme { colour })).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let coloured = buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
        (coloured, terminal.backend().to_string())
    };
    let (with, text) = coloured(&mut stepper, true);
    let (without, same) = coloured(&mut stepper, false);
    assert!(with && !without);
    assert_eq!(text, same);
}

/// The demo's journal with other bytes in place of the frame of its sixth record.
fn changed(folder: &Path, change: impl FnOnce(&FrameAt<'_>, &mut Vec<u8>)) -> PathBuf {
    let source = fixture("demo.ltj");
    let mut bytes = std::fs::read(&source).unwrap();
    let mut reader = SegmentReader::open(&source).unwrap();
    let mut seen = 0;
    while let Some(frame) = reader.next_frame().unwrap() {
        seen += usize::from(frame.kind == Kind::Record);
        if seen < 6 {
            continue;
        }
        let mut out = Vec::new();
        change(&frame, &mut out);
        let (from, len) = (usize::try_from(frame.offset).unwrap(), usize::try_from(frame.len).unwrap());
        bytes.splice(from..from + len, out);
        break;
    }
    let path = folder.join("changed.ltj");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn the_text_that_a_record_brings_is_shown_and_found_and_cannot_steer_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(folder.path(), |frame, out| {
        let mut body = Vec::new();
        assert!(body::encode(body::Text { digest: 77, text: "Grüße\u{1b}[2J\nan alle" }, &mut body));
        frame::encode(Kind::Body, frame.number, &body, out);
        frame::encode(Kind::Record, frame.number, frame.body, out);
    });
    let mut stepper = Stepper { model: Model::open(&path, None, |_| ()).unwrap(), left: false };
    assert_eq!(stepper.keys("/GRÜSSE\n").at().0, 0);
    assert_eq!(stepper.keys("/grüße\n").at().0, 5);
    let screen = stepper.screen(80, 24);
    assert!(screen.contains("text with digest 77\n  Grüße\\u{1b}[2J\n  an alle"), "{screen}");
}

#[test]
fn a_record_at_which_this_build_decides_differently_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let path = changed(folder.path(), |frame, out| {
        let mut record = decode_record(RECORD_SCHEMA, frame.body).unwrap();
        record.root ^= 1;
        let mut body = Vec::new();
        encode_record(&record, &mut body).unwrap();
        frame::encode(Kind::Record, record.number, &body, out);
    });
    let mut stepper = Stepper { model: Model::open(&path, None, |_| ()).unwrap(), left: false };
    let screen = stepper.keys(":5\n").screen(80, 24);
    let marked: Vec<&str> = screen.lines().filter(|line| line.starts_with(" !")).collect();
    assert_eq!(marked.len(), 1, "{screen}");
    let screen = stepper.keys("n").screen(80, 24);
    assert!(screen.contains("! DIVERGES") && screen.contains("DIVERGES: root differs"), "{screen}");
    assert!(screen.contains("recorded: ") && screen.contains("replayed: "), "{screen}");
    assert!(!stepper.keys("n").screen(80, 24).contains("DIVERGES"));
}

#[test]
fn the_terminal_is_restored_also_when_the_stepper_panics() {
    let restored = Cell::new(0);
    assert_eq!(restoring(|| restored.set(1), || 7), 7);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        restoring(|| restored.set(restored.get() + 1), || panic!("on purpose"))
    }));
    assert!(panicked.is_err());
    assert_eq!(restored.get(), 2);
}

#[test]
fn ctrl_c_leaves_from_everywhere_and_escape_closes_first() {
    let mut stepper = Stepper::open("demo.ltj");
    for open in ["", "/", "B", "?"] {
        let key = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        stepper.keys(open);
        assert_eq!(keys::command(stepper.model.mode(), key), Some(super::model::Command::Leave), "{open:?}");
        if !open.is_empty() {
            assert_eq!(*stepper.key(KeyCode::Esc).model.mode(), Mode::Stepping);
        }
    }
    assert!(!stepper.left);
    assert!(stepper.key(KeyCode::Esc).left);
}
