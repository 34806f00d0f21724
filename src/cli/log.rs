//! The log, of daemon and worker: one record is one line on stderr, whatever is quoted in it.
//!
//! Names, prompts and messages of clients are in many records. A line feed in one would begin a line
//! that looks like a record of ours, and an escape sequence would reach the terminal.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    fmt::{self, Write},
    io::{self, IsTerminal},
};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

/// `RUST_LOG` says how much; stdout stays free for what scripts read.
pub fn to_stderr() {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let stderr = io::stderr;
    let ansi = stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        .fmt_fields(OnOneLine)
        .with_writer(stderr)
        // A log on a full disk is no reason to panic.
        .log_internal_errors(false)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!("{panic}");
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            eprintln!("{backtrace}");
        }
    }));
}

/// Writes a record's message and fields without control characters.
struct OnOneLine;

impl<'writer> FormatFields<'writer> for OnOneLine {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, is_empty: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
        if !self.is_empty {
            self.writer.write_char(' ')?;
        }
        self.is_empty = false;
        let mut escaped = Escaped(&mut self.writer);
        match field.name() {
            "message" => write!(escaped, "{value:?}"),
            name => write!(escaped, "{name}={value:?}"),
        }
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Where a record of a library comes from is said by its target.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field, value);
        }
    }
}

/// Passes text on, its control characters and line separators as escapes.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain_from = 0;
        let breaks_out = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        for (at, c) in text.char_indices().filter(|(_, c)| breaks_out(*c)) {
            self.0.write_str(&text[plain_from..at])?;
            write!(self.0, "{}", c.escape_default())?;
            plain_from = at + c.len_utf8();
        }
        self.0.write_str(&text[plain_from..])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_is_one_line_without_control_characters() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(OnOneLine)
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let hostile = "a\nb\r\u{1b}[31m\u{85}\u{9b}1m\u{2028}\u{0}ü\tc";
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(text = hostile, shown = %hostile, number = 7, "message {hostile}");
            tracing::warn!("plain: \\ \" ü");
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let escaped = r"a\nb\r\u{1b}[31m\u{85}\u{9b}1m\u{2028}\u{0}ü\tc";
        let [first, second] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        assert!(first.starts_with(&format!(" INFO message {escaped} text=\"a\\nb")), "{first}");
        assert!(first.ends_with(&format!(" shown={escaped} number=7")), "{first}");
        assert_eq!(second, r#" WARN plain: \ " ü"#);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
}
