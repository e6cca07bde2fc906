//! `lamplighter step`: steps through a journal on the whole screen, forwards and backwards. It needs no daemon and
//! changes nothing.
//!
//! Invariant: the terminal is restored however the stepper ends; also by a panic or a signal.

pub mod keys;
pub mod model;
pub mod panes;
pub mod search;
pub mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, enable_raw_mode};
use ratatui::{DefaultTerminal, Terminal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::model::{Model, Next, OpenError};
use self::view::Theme;
use super::args::StepArgs;
use super::error::{CommandError, code};
use super::given::record_no;

/// So often it is looked whether a signal came.
const LOOK_FOR: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Time to end in good order after a signal.
const END_WITHIN: Duration = Duration::from_secs(2);
/// So often a long opening says how far it is, in records.
const TELL_EVERY: usize = 100_000;

/// `step`
///
/// # Errors
/// When there is no terminal, or the journal cannot be read.
pub fn step(args: &StepArgs) -> Result<(), CommandError> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let hint = "`lamplighter state PATH --at RECORD` prints a state, `lamplighter why MESSAGE --journal PATH` the \
                    way of a message";
        return Err(CommandError::new(code::USAGE, "step needs a terminal to draw on", hint));
    }
    let at = args.at.as_deref().map(record_no).transpose()?;
    quietly(|| {
        let mut told = false;
        let model = Model::open(&args.path, at, |records| {
            if records.is_multiple_of(TELL_EVERY) {
                told = true;
                // Nobody misses it where it cannot be told.
                let _ = write!(io::stderr(), "\rreading: {records} records");
            }
        });
        if told {
            let _ = writeln!(io::stderr());
        }
        let mut model = model.map_err(|error| match error {
            OpenError::Replay(error) => error.into(),
            OpenError::Empty(..) => CommandError::new(code::IO, error, "name a whole segment"),
        })?;
        on_screen(|terminal, ended| work(terminal, &mut model, ended))
    })
}

/// Draws and takes keys until one of them, or a signal, ends it.
fn work(terminal: &mut DefaultTerminal, model: &mut Model, ended: &AtomicBool) -> Result<(), CommandError> {
    let theme = Theme::from_env();
    while !ended.load(Ordering::Relaxed) {
        terminal.draw(|frame| view::draw(frame, model, theme))?;
        let Some(key) = next_key(ended)? else { continue };
        let Some(command) = keys::command(model.mode(), key) else { continue };
        match model.apply(command)? {
            Next::Draw => {}
            Next::Leave => return Ok(()),
            Next::Run(job) => {
                model.announce(&job);
                terminal.draw(|frame| view::draw(frame, model, theme))?;
                model.run(job, || !ended.load(Ordering::Relaxed) && !was_pressed())?;
            }
        }
    }
    Ok(())
}

/// Waits for a key; none when the screen changed its size, or a signal came, or the terminal is gone.
fn next_key(ended: &AtomicBool) -> io::Result<Option<event::KeyEvent>> {
    while !ended.load(Ordering::Relaxed) {
        if is_gone()? {
            ended.store(true, Ordering::Relaxed);
            break;
        }
        match event::poll(Duration::ZERO) {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        return Ok(match event::read()? {
            Event::Key(key) => Some(key),
            _ => None,
        });
    }
    Ok(None)
}

/// Waits for input, at most [`LOOK_FOR`]; whether the terminal was hung up. From one that was, the event source would
/// read nothing for ever.
fn is_gone() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut input = [PollFd::new(&stdin, PollFlags::IN)];
    match poll(&mut input, Some(&LOOK_FOR)) {
        Ok(_) => Ok(input[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Ends the stepper at a signal: in good order, or, should it be in the middle of something, soon after.
fn end_at_signals(ended: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            ended.store(true, Ordering::Relaxed);
            std::thread::sleep(END_WITHIN);
            ratatui::restore();
            std::process::exit(128 + signal);
        }
    })?;
    Ok(())
}

/// Whether a key was pressed since; it is taken.
fn was_pressed() -> bool {
    while event::poll(Duration::ZERO).unwrap_or(false) {
        if matches!(event::read(), Ok(Event::Key(key)) if key.kind != KeyEventKind::Release) {
            return true;
        }
    }
    false
}

/// Runs `body` on the whole screen and gives the terminal back whatever comes of it.
fn on_screen(
    body: impl FnOnce(&mut DefaultTerminal, &AtomicBool) -> Result<(), CommandError>,
) -> Result<(), CommandError> {
    let ended = Arc::new(AtomicBool::new(false));
    end_at_signals(Arc::clone(&ended))?;
    restoring(ratatui::restore, || {
        // Inside, because it may fail when the terminal is half set up. By hand, because ratatui's own way restores
        // the terminal at every panic, also at one that replay catches.
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen)?;
        let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        body(&mut terminal, &ended)
    })
}

/// Runs `body`, then `restore`; also where `body` panics.
fn restoring<T>(restore: impl FnOnce(), body: impl FnOnce() -> T) -> T {
    let result = catch_unwind(AssertUnwindSafe(body));
    restore();
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Runs `body` without the words of panics on the screen: a journal may hold steps that panicked, and they panic again
/// under it. The words of one that ends `body` are told afterwards.
fn quietly<T>(body: impl FnOnce() -> T) -> T {
    let words = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&words);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        *heard.lock().unwrap_or_else(PoisonError::into_inner) = panic.to_string();
    }));
    let result = catch_unwind(AssertUnwindSafe(body));
    std::panic::set_hook(before);
    result.unwrap_or_else(|panic| {
        let _ = writeln!(io::stderr(), "{}", words.lock().unwrap_or_else(PoisonError::into_inner));
        resume_unwind(panic)
    })
}
