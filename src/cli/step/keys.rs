//! Which key asks for what.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Asked, Command, Mode, Pane};

/// The keys, for people: what to press and what it does.
pub const HELP: [(&str, &str); 18] = [
    ("→ l n Space", "one record forwards"),
    ("← h p", "one record back"),
    ("PgDn PgUp", "20 records"),
    ("g G", "first, last record"),
    (":", "go to a record: 3.17, or its place among all"),
    ("/", "search inputs, effects and texts"),
    ("N P", "the next, the one before of what was searched for"),
    ("b", "add a breakpoint: kind=NAME session=S"),
    ("", "    message=ID text=TEXT"),
    ("B", "list breakpoints; there d deletes one"),
    ("c C", "on, back to a breakpoint"),
    ("Tab Shift-Tab", "next pane, pane before"),
    ("1 2 3 4", "input, effects, state, diff"),
    ("↑ ↓ k j", "scroll the pane"),
    ("s", "state of one session alone, or of what was touched"),
    ("?", "this help"),
    ("q Esc Ctrl-C", "leave"),
    ("! in the list", "this build decides differently there"),
];

/// What a key asks for; none when nothing.
pub fn command(mode: &Mode, key: KeyEvent) -> Option<Command> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'C')).then_some(Command::Leave);
    }
    match mode {
        Mode::Stepping => stepping(key.code),
        Mode::Asking(..) => asking(key.code),
        Mode::Breakpoints(_) => choosing(key.code),
        Mode::Help => Some(if key.code == KeyCode::Char('q') { Command::Leave } else { Command::Close }),
    }
}

fn stepping(code: KeyCode) -> Option<Command> {
    Some(match code {
        KeyCode::Right | KeyCode::Char('l' | 'n' | ' ') => Command::Forward,
        KeyCode::Left | KeyCode::Char('h' | 'p') => Command::Back,
        KeyCode::PageDown => Command::PageForward,
        KeyCode::PageUp => Command::PageBack,
        KeyCode::Char('g') | KeyCode::Home => Command::First,
        KeyCode::Char('G') | KeyCode::End => Command::Last,
        KeyCode::Char(':') => Command::Ask(Asked::Record),
        KeyCode::Char('/') => Command::Ask(Asked::Text),
        KeyCode::Char('b') => Command::Ask(Asked::Breakpoint),
        KeyCode::Char('s') => Command::Ask(Asked::Session),
        KeyCode::Char('N') => Command::FindNext,
        KeyCode::Char('P') => Command::FindPrevious,
        KeyCode::Char('B') => Command::Breakpoints,
        KeyCode::Char('c') => Command::Continue,
        KeyCode::Char('C') => Command::ContinueBack,
        KeyCode::Tab => Command::NextPane,
        KeyCode::BackTab => Command::PreviousPane,
        KeyCode::Char('1') => Command::Focus(Pane::Input),
        KeyCode::Char('2') => Command::Focus(Pane::Effects),
        KeyCode::Char('3') => Command::Focus(Pane::State),
        KeyCode::Char('4') => Command::Focus(Pane::Diff),
        KeyCode::Up | KeyCode::Char('k') => Command::Up,
        KeyCode::Down | KeyCode::Char('j') => Command::Down,
        KeyCode::Char('?') => Command::Help,
        KeyCode::Char('q') => Command::Leave,
        KeyCode::Esc => Command::Close,
        _ => return None,
    })
}

fn asking(code: KeyCode) -> Option<Command> {
    Some(match code {
        KeyCode::Char(c) => Command::Type(c),
        KeyCode::Backspace => Command::Erase,
        KeyCode::Enter => Command::Accept,
        KeyCode::Esc => Command::Close,
        _ => return None,
    })
}

fn choosing(code: KeyCode) -> Option<Command> {
    Some(match code {
        KeyCode::Up | KeyCode::Char('k') => Command::Up,
        KeyCode::Down | KeyCode::Char('j') => Command::Down,
        KeyCode::Char('d' | 'x') | KeyCode::Delete => Command::Delete,
        KeyCode::Char('b') => Command::Ask(Asked::Breakpoint),
        KeyCode::Char('B') | KeyCode::Enter | KeyCode::Esc => Command::Close,
        KeyCode::Char('q') => Command::Leave,
        _ => return None,
    })
}
