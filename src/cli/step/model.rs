//! The stepper without its terminal: where it stands, what it stops at, and what the panes show.

use std::path::Path;

use super::panes::{self, Line};
use super::search::{Breakpoint, FORMS, Matcher};
use crate::base::{RecordNo, SessionNo};
use crate::replay::cursor::{Cursor, Found, Moment, Verdict};
use crate::replay::report::thousands;
use crate::replay::segments::ReplayError;

/// Records that a page is long.
const PAGE: usize = 20;
/// The longest answer to a prompt, in characters.
const ANSWER_MAX: usize = 200;
/// So often a search asks whether to go on, in records.
const ASK_EVERY: usize = 512;

/// A part of the screen that can be scrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// What happened.
    Input,
    /// What would have been done.
    Effects,
    /// The state afterwards.
    State,
    /// How it changed.
    Diff,
}

impl Pane {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Input, Self::Effects, Self::State, Self::Diff];

    /// Its title.
    pub fn name(self) -> &'static str {
        match self {
            Self::Input => "Input",
            Self::Effects => "Effects",
            Self::State => "State",
            Self::Diff => "Diff",
        }
    }

    fn moved(self, by: usize) -> Self {
        Self::ALL[(self as usize + by) % Self::ALL.len()]
    }
}

/// What a prompt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A record to go to.
    Record,
    /// A text to search for.
    Text,
    /// A breakpoint.
    Breakpoint,
    /// The session to which the state is restricted.
    Session,
}

impl Asked {
    /// The question.
    pub fn question(self) -> &'static str {
        match self {
            Self::Record => "go to record (boot.n, or its place)",
            Self::Text => "search for",
            Self::Breakpoint => "stop at (kind= session= message= text=)",
            Self::Session => "state of session (empty: of what was touched)",
        }
    }
}

/// What has the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The journal.
    Stepping,
    /// A prompt, with what was typed.
    Asking(Asked, String),
    /// The list of breakpoints, with the chosen one.
    Breakpoints(usize),
    /// The help.
    Help,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// One record forwards.
    Forward,
    /// One record back.
    Back,
    /// A page of records forwards.
    PageForward,
    /// A page of records back.
    PageBack,
    /// To the first record.
    First,
    /// To the last record.
    Last,
    /// To the next breakpoint.
    Continue,
    /// To the breakpoint before.
    ContinueBack,
    /// To the next place of the text that was searched for.
    FindNext,
    /// To the place before of the text that was searched for.
    FindPrevious,
    /// Opens a prompt.
    Ask(Asked),
    /// Lists the breakpoints.
    Breakpoints,
    /// Shows the keys.
    Help,
    /// Gives the next pane the focus.
    NextPane,
    /// Gives the pane before the focus.
    PreviousPane,
    /// Gives this pane the focus.
    Focus(Pane),
    /// Scrolls, or chooses in a list.
    Up,
    /// Scrolls, or chooses in a list.
    Down,
    /// Types into a prompt.
    Type(char),
    /// Takes the last character back.
    Erase,
    /// Answers a prompt.
    Accept,
    /// Deletes the chosen breakpoint.
    Delete,
    /// Closes what is open.
    Close,
    /// Ends the stepper.
    Leave,
}

/// What is to be done after a command.
#[derive(Debug)]
pub enum Next {
    /// Nothing but to draw.
    Draw,
    /// A search that may take long: draw, then [`Model::run`] it.
    Run(Job),
    /// The end.
    Leave,
}

/// A search.
#[derive(Debug)]
pub struct Job {
    matcher: Matcher,
    back: bool,
    what: String,
}

/// The stepper.
pub struct Model {
    journal: String,
    cursor: Cursor,
    moment: Moment,
    mode: Mode,
    focus: Pane,
    /// The first line that each pane shows.
    scroll: [usize; 4],
    session: Option<SessionNo>,
    breakpoints: Vec<Breakpoint>,
    searched: Option<String>,
    message: Option<String>,
}

/// Why there is nothing to step through.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal cannot be read.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// It has no record.
    #[error("{0} holds no record to show{1}")]
    Empty(String, String),
}

impl Model {
    /// Opens a journal and stands at a record, or at the first one.
    ///
    /// # Errors
    /// When the journal cannot be read, or has no record.
    pub fn open(path: &Path, at: Option<RecordNo>, progress: impl FnMut(usize)) -> Result<Self, OpenError> {
        let journal = panes::harmless(&path.display().to_string());
        let mut cursor = Cursor::open(path, progress)?;
        let Some(moment) = cursor.seek(0)? else {
            let why = cursor.end().map(|why| format!(": {why}")).unwrap_or_default();
            return Err(OpenError::Empty(journal, why));
        };
        let mut model = Self {
            journal,
            cursor,
            moment,
            mode: Mode::Stepping,
            focus: Pane::Input,
            scroll: [0; 4],
            session: None,
            breakpoints: Vec::new(),
            searched: None,
            message: None,
        };
        if let Some(at) = at {
            model.jump(at)?;
        }
        Ok(model)
    }

    /// The journal's path.
    pub fn journal(&self) -> &str {
        &self.journal
    }

    /// The rows of all records.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// The record that is shown.
    pub fn moment(&self) -> &Moment {
        &self.moment
    }

    /// What has the keys.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// The pane that has the focus.
    pub fn focus(&self) -> Pane {
        self.focus
    }

    /// The session to which the state is restricted.
    pub fn session(&self) -> Option<SessionNo> {
        self.session
    }

    /// The breakpoints.
    pub fn breakpoints(&self) -> &[Breakpoint] {
        &self.breakpoints
    }

    /// What the last command has to tell.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }

    /// The lines of a pane.
    pub fn lines(&self, pane: Pane) -> Vec<Line> {
        match pane {
            Pane::Input => panes::input(&self.moment),
            Pane::Effects => panes::effects(&self.moment),
            Pane::State => panes::state(&self.moment, self.session),
            Pane::Diff => panes::diff(&self.moment),
        }
    }

    /// The first line that a pane shows, at most `max`: only what is drawn tells how many lines there are.
    pub fn scroll_within(&mut self, pane: Pane, max: usize) -> usize {
        let scroll = &mut self.scroll[pane as usize];
        *scroll = (*scroll).min(max);
        *scroll
    }

    /// Does what a key asks for.
    ///
    /// # Errors
    /// When the journal cannot be read any more.
    pub fn apply(&mut self, command: Command) -> Result<Next, ReplayError> {
        self.message = None;
        if command == Command::Leave {
            return Ok(Next::Leave);
        }
        match self.mode {
            Mode::Stepping => return self.stepping(command),
            Mode::Asking(..) => return self.asking(command),
            Mode::Breakpoints(chosen) => self.choosing(command, chosen),
            Mode::Help => self.mode = Mode::Stepping,
        }
        Ok(Next::Draw)
    }

    fn stepping(&mut self, command: Command) -> Result<Next, ReplayError> {
        let (here, last) = (self.moment.index, self.cursor.len() - 1);
        match command {
            Command::Forward => self.go(here + 1)?,
            Command::Back if here == 0 => self.say("this is the first record"),
            Command::Back => self.go(here - 1)?,
            Command::PageForward => self.go((here + PAGE).min(last))?,
            Command::PageBack => self.go(here.saturating_sub(PAGE))?,
            Command::First => self.go(0)?,
            Command::Last => self.go(last)?,
            Command::Continue | Command::ContinueBack if self.breakpoints.is_empty() => {
                self.say(format!("there is no breakpoint; b adds one: {FORMS}"));
            }
            Command::Continue => return Ok(self.job(&self.breakpoints, false, "a breakpoint")),
            Command::ContinueBack => return Ok(self.job(&self.breakpoints, true, "a breakpoint")),
            Command::FindNext => return Ok(self.find(false)),
            Command::FindPrevious => return Ok(self.find(true)),
            Command::Ask(asked) => self.mode = Mode::Asking(asked, self.suggestion(asked)),
            Command::Breakpoints => self.mode = Mode::Breakpoints(0),
            Command::Help => self.mode = Mode::Help,
            Command::NextPane => self.focus = self.focus.moved(1),
            Command::PreviousPane => self.focus = self.focus.moved(Pane::ALL.len() - 1),
            Command::Focus(pane) => self.focus = pane,
            Command::Up => {
                let scroll = &mut self.scroll[self.focus as usize];
                *scroll = scroll.saturating_sub(1);
            }
            Command::Down => self.scroll[self.focus as usize] += 1,
            Command::Close | Command::Leave => return Ok(Next::Leave),
            Command::Type(_) | Command::Erase | Command::Accept | Command::Delete => {}
        }
        Ok(Next::Draw)
    }

    fn asking(&mut self, command: Command) -> Result<Next, ReplayError> {
        let Mode::Asking(asked, text) = &mut self.mode else { return Ok(Next::Draw) };
        match command {
            Command::Type(c) if text.chars().count() < ANSWER_MAX => text.push(c),
            Command::Erase => {
                text.pop();
            }
            Command::Close => self.mode = Mode::Stepping,
            Command::Accept => {
                let (asked, text) = (*asked, std::mem::take(text));
                self.mode = Mode::Stepping;
                return self.answer(asked, text.trim());
            }
            _ => {}
        }
        Ok(Next::Draw)
    }

    fn choosing(&mut self, command: Command, chosen: usize) {
        let last = self.breakpoints.len().saturating_sub(1);
        self.mode = match command {
            Command::Up => Mode::Breakpoints(chosen.saturating_sub(1)),
            Command::Down => Mode::Breakpoints((chosen + 1).min(last)),
            Command::Delete => {
                if chosen < self.breakpoints.len() {
                    let gone = self.breakpoints.remove(chosen);
                    self.say(format!("deleted {gone}"));
                }
                Mode::Breakpoints(chosen.min(last.saturating_sub(1)))
            }
            Command::Ask(Asked::Breakpoint) => Mode::Asking(Asked::Breakpoint, String::new()),
            Command::Close | Command::Accept | Command::Breakpoints => Mode::Stepping,
            _ => Mode::Breakpoints(chosen),
        };
    }

    fn answer(&mut self, asked: Asked, text: &str) -> Result<Next, ReplayError> {
        match asked {
            Asked::Session if text.is_empty() => self.session = None,
            _ if text.is_empty() => {}
            Asked::Record => self.go_to(text)?,
            Asked::Text => {
                self.searched = Some(text.to_owned());
                return Ok(self.find(false));
            }
            Asked::Breakpoint => self.add(text),
            Asked::Session => self.restrict(text),
        }
        Ok(Next::Draw)
    }

    fn go_to(&mut self, text: &str) -> Result<(), ReplayError> {
        // The header counts from 1.
        if let Ok(place) = text.parse::<usize>() {
            if (1..=self.cursor.len()).contains(&place) {
                return self.go(place - 1);
            }
            self.say(format!("there are {} records", thousands(self.cursor.len() as u64)));
            return Ok(());
        }
        match text.parse::<RecordNo>() {
            Ok(record) => self.jump(record),
            Err(why) => {
                self.say(why);
                Ok(())
            }
        }
    }

    fn jump(&mut self, record: RecordNo) -> Result<(), ReplayError> {
        let (index, what) = match self.cursor.find(record) {
            Some(index) => (index, "this is the next one"),
            None => (self.cursor.len() - 1, "this is the last one"),
        };
        self.go(index)?;
        if self.moment.record != record {
            self.say(format!("there is no record {record}; {what}"));
        }
        Ok(())
    }

    fn add(&mut self, text: &str) {
        let breakpoint = match text.parse::<Breakpoint>() {
            Ok(breakpoint) => breakpoint,
            Err(why) => return self.say(why),
        };
        if let Breakpoint::Kind(kind) = &breakpoint
            && !self.cursor.inputs().contains(&kind.as_str())
        {
            let known = self.cursor.inputs().join(", ");
            return self.say(format!("no input here is called {kind:?}; there are: {known}"));
        }
        if self.breakpoints.contains(&breakpoint) {
            return self.say("it is there already");
        }
        self.say(format!("c goes on to {breakpoint}, C goes back to it"));
        self.breakpoints.push(breakpoint);
    }

    fn restrict(&mut self, text: &str) {
        let state = &self.moment.after;
        let found = state.sessions().keys().copied().find(|&no| state.is_named(no, text));
        match found {
            Some(session) => {
                self.session = Some(session);
                self.focus = Pane::State;
                self.scroll[Pane::State as usize] = 0;
            }
            None => self.say(format!("no session {text:?} is known at this record")),
        }
    }

    /// What a prompt begins with.
    fn suggestion(&self, asked: Asked) -> String {
        match asked {
            // A second `s` and Enter show everything again.
            Asked::Session if self.session.is_none() => {
                self.moment.session.map_or_else(String::new, |session| session.to_string())
            }
            _ => String::new(),
        }
    }

    fn find(&mut self, back: bool) -> Next {
        match self.searched.clone() {
            Some(text) => self.job(&[Breakpoint::Text(text.clone())], back, &format!("{text:?}")),
            None => {
                self.say("nothing was searched for yet; / asks for a text");
                Next::Draw
            }
        }
    }

    fn job(&self, wanted: &[Breakpoint], back: bool, what: &str) -> Next {
        Next::Run(Job { matcher: Matcher::new(wanted), back, what: what.to_owned() })
    }

    /// Says that a search is on its way.
    pub fn announce(&mut self, job: &Job) {
        self.say(format!("looking for {}; a key gives up", job.what));
    }

    /// Searches and goes to what was found; `go_on` is asked now and then.
    ///
    /// # Errors
    /// When the journal cannot be read any more.
    pub fn run(&mut self, job: Job, mut go_on: impl FnMut() -> bool) -> Result<(), ReplayError> {
        let Job { mut matcher, back, what } = job;
        let (here, mut looked, mut why) = (self.moment.index, 0, None);
        let judge = |passing: &crate::replay::cursor::Passing<'_>| {
            looked += 1;
            if usize::is_multiple_of(looked, ASK_EVERY) && !go_on() {
                return Verdict::Stop;
            }
            match matcher.hit(passing) {
                Some(hit) => {
                    why = Some(hit.to_string());
                    Verdict::Hit
                }
                None => Verdict::Pass,
            }
        };
        let found = match back {
            false => self.cursor.search(here + 1, judge)?,
            true => self.cursor.search_back(here, judge)?,
        };
        let way = if back { "before" } else { "after" };
        match found {
            Found::At(index) => {
                self.go(index)?;
                self.say(why.unwrap_or_default());
            }
            Found::Nothing => self.say(format!("{what} does not come {way} this record")),
            Found::Stopped => self.say("given up"),
        }
        Ok(())
    }

    fn go(&mut self, index: usize) -> Result<(), ReplayError> {
        if index >= self.cursor.len() {
            let end = self.cursor.end().map(|why| format!("; what follows cannot be followed: {why}"));
            self.say(format!("this is the last record{}", end.unwrap_or_default()));
            return Ok(());
        }
        match self.cursor.seek(index)? {
            Some(moment) => {
                self.moment = moment;
                self.scroll = [0; 4];
                self.message = None;
            }
            None => self.say("the journal has lost this record since it was opened"),
        }
        Ok(())
    }

    fn say(&mut self, text: impl AsRef<str>) {
        self.message = Some(panes::harmless(text.as_ref()));
    }
}
