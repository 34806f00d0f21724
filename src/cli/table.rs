//! Tables and bars of text, for terminals of any width.

/// A cell that is shorter says nothing.
const NARROWEST: usize = 8;
const GAP: &str = "  ";

/// How a column is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Left,
    Right,
    /// Flush left, and cut where the line would be too long.
    Cut,
}

/// Rows under a head, in columns as wide as they need to be. Where that is wider than `width`, the
/// widest of those are cut that may be.
pub fn table(head: &[(&str, Column)], rows: &[Vec<String>], width: usize) -> String {
    let titles: Vec<String> = head.iter().map(|(title, _)| (*title).to_owned()).collect();
    let lines = || std::iter::once(&titles).chain(rows);
    let mut widths = vec![0; head.len()];
    for line in lines() {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let gaps = GAP.len() * head.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        let may_be_cut = widths.iter_mut().zip(head).filter(|(_, (_, how))| *how == Column::Cut);
        let widest = may_be_cut.map(|(width, _)| width).max();
        match widest.filter(|widest| **widest > NARROWEST) {
            Some(widest) => *widest -= 1,
            None => break,
        }
    }
    let mut text = String::new();
    for line in lines() {
        let cells = line.iter().zip(head).zip(&widths);
        let cells: Vec<String> =
            cells.map(|((cell, (_, how)), width)| fitted(cell, *how, *width)).collect();
        text += cells.join(GAP).trim_end();
        text.push('\n');
    }
    text
}

fn fitted(cell: &str, how: Column, width: usize) -> String {
    let cut = match cell.chars().count() > width {
        true => cell.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => cell.to_owned(),
    };
    match how {
        Column::Left | Column::Cut => format!("{cut:<width$}"),
        Column::Right => format!("{cut:>width$}"),
    }
}

/// So many parts of a whole, each with a character of its own, and what is left of it. What is
/// there at all is seen.
pub fn bar(parts: &[(f64, char)], whole: f64, width: usize) -> String {
    let mut text = String::new();
    let mut left = width;
    for (part, character) in parts {
        let share = if whole > 0.0 { part / whole * width as f64 } else { 0.0 };
        let least = usize::from(*part > 0.0);
        let length = (share.round() as usize).max(least).min(left);
        text.extend(std::iter::repeat_n(*character, length));
        left -= length;
    }
    text.extend(std::iter::repeat_n('░', left));
    text
}

/// So many gb of 2^30 bytes.
pub fn size(gb: f64) -> String {
    if gb < 0.1 { format!("{:.0} MiB", gb * 1024.0) } else { format!("{gb:.2} GiB") }
}

/// How wide the terminal is, as far as its shell says.
pub fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    columns.filter(|columns| *columns >= 40).unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_it_may_be() {
        let head = [("NAME", Column::Left), ("MODEL", Column::Cut), ("GB", Column::Right)];
        let rows = [
            vec![
                "a".to_owned(),
                "a/long/name/of/a/model.safetensors".to_owned(),
                "1.50".to_owned(),
            ],
            vec!["bcd".to_owned(), "füchse".to_owned(), "10.00".to_owned()],
        ];
        insta::assert_snapshot!(table(&head, &rows, 80), @r"
        NAME  MODEL                                  GB
        a     a/long/name/of/a/model.safetensors   1.50
        bcd   füchse                              10.00
        ");
        insta::assert_snapshot!(table(&head, &rows, 30), @r"
        NAME  MODEL                 GB
        a     a/long/name/of/a…   1.50
        bcd   füchse             10.00
        ");
        assert!(table(&head, &rows, 5).lines().count() == 3);
    }

    #[test]
    fn bars() {
        for (parts, whole, expected) in [
            (&[(0.5, '█')][..], 1.0, "█████░░░░░"),
            (&[(0.001, '█'), (0.25, '▒')], 1.0, "█▒▒▒░░░░░░"),
            (&[(0.9, '█'), (0.9, '▒')], 1.0, "█████████▒"),
            (&[(2.0, '█'), (1.0, '▒')], 1.0, "██████████"),
            (&[(0.0, '█')], 0.0, "░░░░░░░░░░"),
        ] {
            assert_eq!(bar(parts, whole, 10), expected);
        }
    }

    #[test]
    fn sizes() {
        for (gb, expected) in
            [(0.0, "0 MiB"), (0.004, "4 MiB"), (0.1, "0.10 GiB"), (14.6, "14.60 GiB")]
        {
            assert_eq!(size(gb), expected);
        }
    }
}
