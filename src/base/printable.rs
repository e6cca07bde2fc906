//! Texts of rows, agents and chats for people: whatever they hold, they cannot steer a terminal or forge a line.

/// Characters that move what is shown without being control characters: the marks that turn writing around.
fn turns_writing(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn harmless(c: char) -> char {
    if c.is_control() || turns_writing(c) || matches!(c, '\u{2028}' | '\u{2029}') { '\u{fffd}' } else { c }
}

/// A text of several lines: lines and tabs are kept, what could steer the terminal is not.
pub fn printable(text: &str) -> String {
    let kept = |c: char| if matches!(c, '\n' | '\t') { c } else { harmless(c) };
    text.trim_end_matches('\n').replace("\r\n", "\n").chars().map(kept).collect()
}

/// A text that stays one line: an id, a name, a reason.
pub fn one_line(text: &str) -> String {
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_the_terminal_keep_lines_and_tabs() {
        assert_eq!(printable("a\r\n\tb\n\n"), "a\n\tb");
        assert_eq!(printable("a\u{1b}[2J\u{9b}1m\rb"), "a\u{fffd}[2J\u{fffd}1m\u{fffd}b");
    }

    #[test]
    fn a_name_stays_one_line_and_in_its_direction() {
        assert_eq!(one_line("m\n1: done\t\u{1b}]0;x\u{7}"), "m\u{fffd}1: done\u{fffd}\u{fffd}]0;x\u{fffd}");
        assert_eq!(one_line("gnp\u{202e}exe.\u{2028}é"), "gnp\u{fffd}exe.\u{fffd}é");
    }
}
