//! Draws the stepper. Only the sixteen colours of every terminal; what a colour says, a sign says too.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line as Text, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph};

use super::keys::HELP;
use super::model::{Mode, Model, Pane};
use super::panes::{Line, Tone};
use crate::replay::cursor::Row;
use crate::replay::report::thousands;
use crate::session::timestamp;

/// From this width on all panes are side by side.
const WIDE: u16 = 120;
/// The width of the list beside panes.
const LIST_WIDTH: u16 = 50;
/// The height of the list above a pane, with its title.
const LIST_HEIGHT: u16 = 7;

/// Whether colours are used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// They are.
    pub colour: bool,
}

impl Theme {
    /// As the environment wants it: NO_COLOR, set and not empty, wants none.
    pub fn from_env() -> Self {
        Self { colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn of(self, tone: Tone) -> Style {
        let with = |style: Style, color| if self.colour { style.fg(color) } else { style };
        match tone {
            Tone::Plain => Style::new(),
            Tone::Title => with(Style::new().add_modifier(Modifier::BOLD), Color::Cyan),
            Tone::Added => with(Style::new(), Color::Green),
            Tone::Removed => with(Style::new(), Color::Red),
            Tone::Warning => with(Style::new().add_modifier(Modifier::BOLD), Color::Yellow),
        }
    }
}

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &mut Model, theme: Theme) {
    let [header, body, footer] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    draw_header(frame, header, model, theme);
    if frame.area().width >= WIDE {
        let [list, panes] =
            Layout::horizontal([Constraint::Length(LIST_WIDTH), Constraint::Min(1)]).areas(body);
        draw_list(frame, list, model, theme);
        let halves = Layout::vertical([Constraint::Percentage(40), Constraint::Percentage(60)]);
        let [upper, lower] = halves.areas(panes);
        for (row, panes) in [(upper, [Pane::Input, Pane::Effects]), (lower, [Pane::State, Pane::Diff])] {
            let sides: [Rect; 2] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(row);
            for (area, pane) in sides.into_iter().zip(panes) {
                let block = Block::new().borders(Borders::TOP | Borders::LEFT);
                draw_pane(frame, area, block, pane, model, theme);
            }
        }
    } else {
        let [list, pane] =
            Layout::vertical([Constraint::Length(LIST_HEIGHT), Constraint::Min(1)]).areas(body);
        draw_list(frame, list, model, theme);
        draw_pane(frame, pane, Block::new().borders(Borders::TOP), model.focus(), model, theme);
    }
    draw_footer(frame, footer, model, theme);
    match model.mode() {
        Mode::Help => draw_help(frame, theme),
        Mode::Breakpoints(chosen) => draw_breakpoints(frame, model, *chosen, theme),
        Mode::Stepping | Mode::Asking(..) => {}
    }
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let moment = model.moment();
    let of = format!(
        "record {} of {}",
        thousands(moment.index as u64 + 1),
        thousands(model.cursor().len() as u64)
    );
    let first = Text::from(vec![
        Span::styled(format!("{} {}", moment.record, moment.input.name()), theme.of(Tone::Title)),
        Span::raw(format!("  {of}  at {}  {}", moment.at, model.journal())),
    ]);
    let session = moment.session.map_or_else(
        || "no session".to_owned(),
        |no| {
            let name = moment.after.session(no).or_else(|| moment.before.session(no));
            name.map_or_else(|| no.to_string(), |it| format!("{no} {}", it.name))
        },
    );
    let wall = timestamp::iso(moment.after.wall());
    let mut second = vec![Span::raw(format!("{wall}  {}  {session}", span(moment.since_previous)))];
    if moment.divergence.is_some() {
        second.insert(0, Span::styled("! DIVERGES  ", theme.of(Tone::Warning)));
    }
    frame.render_widget(Paragraph::new(vec![first, Text::from(second)]), area);
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let block = Block::new().borders(Borders::TOP).title(" Records ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let height = usize::from(inner.height);
    let (here, len) = (model.moment().index, model.cursor().len());
    // What is behind the last record takes a line as well.
    let lines = len + usize::from(model.cursor().end().is_some());
    let from = here.saturating_sub(height / 2).min(lines.saturating_sub(height));
    let mut texts = Vec::new();
    for index in from..(from + height).min(lines) {
        let Some(row) = model.cursor().row(index) else {
            let why = model.cursor().end().unwrap_or_default();
            texts.push(Text::styled(format!("  ! ends here: {why}"), theme.of(Tone::Warning)));
            continue;
        };
        let before = index.checked_sub(1).and_then(|index| model.cursor().row(index));
        let text = row_text(&row, before.as_ref(), index == here);
        let style = match (index == here, row.diverges) {
            (true, _) => Style::new().add_modifier(Modifier::REVERSED),
            (false, true) => theme.of(Tone::Warning),
            (false, false) => Style::new(),
        };
        texts.push(Text::styled(text, style));
    }
    frame.render_widget(Paragraph::new(texts), inner);
}

fn row_text(row: &Row, before: Option<&Row>, here: bool) -> String {
    let (here, mark) = (if here { '>' } else { ' ' }, if row.diverges { '!' } else { ' ' });
    let since = span(before.map_or(0, |before| row.at.0.saturating_sub(before.at.0)));
    let session = row.session.map(|no| no.to_string()).unwrap_or_default();
    format!("{here}{mark}{:<8} {since:>11} {session:<4} {}", row.record.to_string(), row.input)
}

/// A time between two records, from microseconds to days.
fn span(micros: i64) -> String {
    let ms = micros / 1_000;
    match ms {
        ms if ms < 1_000 => format!("+{ms}.{:03} ms", micros % 1_000),
        ms if ms < 60_000 => format!("+{}.{:03} s", ms / 1_000, ms % 1_000),
        ms if ms < 3_600_000 => format!("+{}m{:02}s", ms / 60_000, ms / 1_000 % 60),
        ms if ms < 172_800_000 => format!("+{}h{:02}m", ms / 3_600_000, ms / 60_000 % 60),
        ms => format!("+{} days", ms / 86_400_000),
    }
}

fn draw_pane(
    frame: &mut Frame<'_>,
    area: Rect,
    block: Block<'_>,
    pane: Pane,
    model: &mut Model,
    theme: Theme,
) {
    let inner = block.inner(area);
    let (width, height) = (usize::from(inner.width), usize::from(inner.height));
    let mut lines = Vec::new();
    for line in model.lines(pane) {
        wrap(&line, width, theme, &mut lines);
    }
    let total = lines.len();
    let first = model.scroll_within(pane, total.saturating_sub(height));
    let shown: Vec<Text<'_>> = lines.into_iter().skip(first).take(height).collect();
    let last = first + shown.len();
    let alone = area.width == frame.area().width;
    let mut title = Vec::new();
    for it in Pane::ALL.into_iter().filter(|it| alone || *it == pane) {
        let (open, close) = if it == model.focus() { ('[', ']') } else { (' ', ' ') };
        let style = if it == model.focus() { theme.of(Tone::Title) } else { Style::new() };
        title.push(Span::styled(format!("{open}{} {}{close}", it as usize + 1, it.name()), style));
    }
    if let (Pane::State, Some(session)) = (pane, model.session()) {
        title.push(Span::raw(format!(" of {session} ")));
    }
    if total > height {
        title.push(Span::raw(format!(" lines {}-{last} of {total} ", first + 1)));
    }
    frame.render_widget(block.title(Text::from(title)), area);
    frame.render_widget(Paragraph::new(shown), inner);
}

/// Breaks a line where it is too long, so that nothing is cut off and lines can be counted.
fn wrap<'a>(line: &Line, width: usize, theme: Theme, out: &mut Vec<Text<'a>>) {
    let style = theme.of(line.tone);
    if width == 0 || Span::raw(&line.text).width() <= width {
        out.push(Text::styled(line.text.clone(), style));
        return;
    }
    let (mut part, mut used) = (String::new(), 0);
    for c in line.text.chars() {
        let own = Span::raw(&*c.encode_utf8(&mut [0; 4])).width();
        if used + own > width && !part.is_empty() {
            out.push(Text::styled(std::mem::take(&mut part), style));
            used = 0;
        }
        part.push(c);
        used += own;
    }
    out.push(Text::styled(part, style));
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, model: &Model, theme: Theme) {
    let text = match (model.mode(), model.message()) {
        (Mode::Asking(asked, text), _) => {
            Text::styled(format!("{}: {text}_", asked.question()), theme.of(Tone::Title))
        }
        (_, Some(message)) => Text::styled(message.to_owned(), theme.of(Tone::Warning)),
        (Mode::Stepping, None) => {
            Text::raw("←/→ step  : go to  / find  b break  c go on  Tab pane  ↑/↓ scroll  ? help  q")
        }
        (Mode::Breakpoints(_), None) => Text::raw("↑/↓ choose  d delete  b add  Esc close"),
        (Mode::Help, None) => Text::raw("any key closes this"),
    };
    frame.render_widget(Paragraph::new(text), area);
}

fn draw_help(frame: &mut Frame<'_>, theme: Theme) {
    let lines = HELP.iter().map(|(keys, what)| {
        Text::from(vec![Span::styled(format!("{keys:<15}"), theme.of(Tone::Title)), Span::raw(*what)])
    });
    overlay(frame, " Keys ", lines.collect());
}

fn draw_breakpoints(frame: &mut Frame<'_>, model: &Model, chosen: usize, theme: Theme) {
    let mut lines: Vec<Text<'_>> = Vec::new();
    for (index, breakpoint) in model.breakpoints().iter().enumerate() {
        let (mark, style) = match index == chosen {
            true => ('>', Style::new().add_modifier(Modifier::REVERSED)),
            false => (' ', Style::new()),
        };
        lines.push(Text::styled(super::panes::harmless(&format!("{mark} {breakpoint}")), style));
    }
    if lines.is_empty() {
        lines.push(Text::styled("none yet; b adds one", theme.of(Tone::Plain)));
    }
    overlay(frame, " Breakpoints ", lines);
}

fn overlay(frame: &mut Frame<'_>, title: &str, lines: Vec<Text<'_>>) {
    let whole = frame.area();
    let width = 68.min(whole.width);
    let height =
        u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2).min(whole.height.saturating_sub(1));
    let (x, y) = ((whole.width - width) / 2, (whole.height.saturating_sub(1) - height) / 2);
    let area = Rect { x, y, width, height };
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title.to_owned())), area);
}
