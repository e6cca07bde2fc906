//! Aligned columns for people.

use std::io::{self, Write};

use crate::base::printable::one_line;

/// Writes rows under a head, each cell on one line whatever it holds, each
/// column as wide as its widest cell; nothing but the head without rows.
///
/// # Errors
/// As the output has them.
pub fn write(out: &mut dyn Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect()).collect();
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let text: Vec<String> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", text.join("  ").trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_cell_cannot_begin_a_line_or_steer_the_terminal() {
        let mut out = Vec::new();
        super::write(&mut out, &["x"], &[vec!["a\nforged\u{1b}[2J".to_owned()]]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "x\na\u{fffd}forged\u{fffd}[2J\n");
    }

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_space() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["longer".to_owned(), String::new()]];
        super::write(&mut out, &["x", "y"], &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "x       y\na       b\nlonger\n");
    }
}
