//! Prometheus' text format, version 0.0.4: families of numbers, each with its help and its type.

use std::fmt::{self, Display, Write};

use crate::dispatcher::Times;

/// What is written so far.
#[derive(Default)]
pub struct Exposition(String);

/// One family, to which samples are added.
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Exposition {
    /// Only goes up, from the daemon's start.
    pub fn counter<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "counter", help)
    }

    pub fn gauge<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "gauge", help)
    }

    /// Sums and counts of seconds.
    pub fn summary<'a>(&'a mut self, name: &'a str, help: &str) -> Family<'a> {
        self.family(name, "summary", help)
    }

    pub fn into_text(self) -> String {
        self.0
    }

    fn family<'a>(&'a mut self, name: &'a str, kind: &str, help: &str) -> Family<'a> {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { text: &mut self.0, name }
    }
}

impl Family<'_> {
    pub fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        self.sample("", labels, value);
    }

    pub fn add_times(&mut self, labels: &[(&str, &str)], times: Times) {
        let Times { count, total } = times;
        self.sample("_sum", labels, total.as_secs_f64());
        self.sample("_count", labels, count);
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let _ = writeln!(self.text, "{}{suffix}{} {value}", self.name, Labels(labels));
    }
}

struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, value)) in self.0.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            write!(f, "{before}{name}=\"")?;
            for c in value.chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    c => f.write_char(c)?,
                }
            }
            f.write_char('"')?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_char('}') }
    }
}
