//! A diagnostic with the line that it is about, as compilers show it.

use std::fmt;

use super::diagnostic::{Diagnostic, Position};

/// A line may be anything; this much of it is shown.
const MAX_COLUMNS: usize = 160;

/// A diagnostic before the text that it is about.
pub struct Excerpt<'a> {
    pub diagnostic: &'a Diagnostic,
    pub text: &'a str,
}

impl fmt::Display for Excerpt<'_> {
    /// ```text
    /// modes.yaml:4:10: error: modes.tiny.modle: unknown key; did you mean 'model'?
    ///   |
    /// 4 |   tiny: {modle: x}
    ///   |          ^^^^^
    /// ```
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.diagnostic)?;
        let Some(Position { line, column }) = self.diagnostic.at else { return Ok(()) };
        let Some(source) = self.text.lines().nth(line.saturating_sub(1) as usize) else {
            return Ok(());
        };
        let shown: Vec<char> = source.chars().take(MAX_COLUMNS).map(printable).collect();
        let before = (column as usize).saturating_sub(1);
        if before > shown.len() {
            return Ok(());
        }
        let carets = "^".repeat(word_length(&shown[before..]));
        let shown: String = shown.into_iter().collect();
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        write!(f, "\n{margin} |\n{number} | {shown}\n{margin} | {}{carets}", " ".repeat(before))
    }
}

/// A tab is as wide as a space, so that the carets stand below what they mean.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// How far the value goes that begins here: at least one character.
fn word_length(rest: &[char]) -> usize {
    let end = match rest.first() {
        Some(quote @ ('"' | '\'')) => {
            rest.iter().skip(1).position(|c| c == quote).map(|closing| closing + 2)
        }
        Some('{' | '[') => Some(1),
        _ => {
            let ends = |at: &usize| match rest[*at] {
                ',' | '}' | ']' => true,
                ':' | ' ' => rest.get(at + 1).is_none_or(|next| " #".contains(*next)),
                _ => false,
            };
            (0..rest.len()).find(ends)
        }
    };
    end.unwrap_or(rest.len()).max(1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{KeyPath, Severity};

    fn excerpt(text: &str, line: u64, column: u64) -> String {
        let diagnostic = Diagnostic {
            severity: Severity::Error,
            file: Path::new("m").into(),
            at: Some(Position { line, column }),
            key: KeyPath::default(),
            message: "no".into(),
            looked_for: None,
        };
        Excerpt { diagnostic: &diagnostic, text }.to_string()
    }

    #[test]
    fn carets_stand_below_the_word_that_is_meant() {
        insta::assert_snapshot!(excerpt("a: 1\n  tiny: {modle: x y, n: 2}\n", 2, 10), @r"
        m:2:10: error: no
          |
        2 |   tiny: {modle: x y, n: 2}
          |          ^^^^^
        ");
        insta::assert_snapshot!(excerpt("tiny: {modle: x y, n: 2}", 1, 15), @r"
        m:1:15: error: no
          |
        1 | tiny: {modle: x y, n: 2}
          |               ^^^
        ");
        insta::assert_snapshot!(excerpt("\tsize: '1 x 2' # no", 1, 8), @r"
        m:1:8: error: no
          |
        1 |  size: '1 x 2' # no
          |        ^^^^^^^
        ");
        insta::assert_snapshot!(excerpt("a: ü#1 # no", 1, 4), @r"
        m:1:4: error: no
          |
        1 | a: ü#1 # no
          |    ^^^
        ");
    }

    #[test]
    fn places_that_are_not_in_the_text_have_no_excerpt() {
        assert_eq!(excerpt("a", 2, 1), "m:2:1: error: no");
        assert_eq!(excerpt("a", 1, 9), "m:1:9: error: no");
        assert!(excerpt("a", 1, 2).ends_with("\n1 | a\n  |  ^"));
        assert!(excerpt(&"a".repeat(9_999), 1, 9_000).ends_with("no"));
    }
}
