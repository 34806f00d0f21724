//! Who may know whom. `ARCHITECTURE.md` says why; here it is held.
//!
//! The sources are read as text, without comments and strings. What breaks a rule is named with
//! its file and line.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

/// A part of `src`, and the rooms that it may use beside its own. The longest matching part
/// counts. `lib.rs` is the list of all rooms and has no rule.
const MAY_USE: &[(&str, &[&str])] = &[
    ("modes", &[]),
    ("request", &["modes"]),
    ("job", &["modes", "request"]),
    ("image", &["modes", "request"]),
    ("config", &["modes"]),
    ("queue", &["job", "modes", "request"]),
    ("journal", &["image", "job", "modes", "queue", "request", "worker"]),
    ("vram", &["modes"]),
    // It is handed what to tell, and tells what became of it: nobody else's business.
    ("webhook", &["job", "modes", "request"]),
    ("engine", &["image", "modes", "request"]),
    ("worker", &["job", "modes", "request", "vram"]),
    ("worker/child", &["engine", "job", "modes", "request", "vram"]),
    ("dispatcher", &["job", "journal", "modes", "queue", "request", "vram", "worker"]),
    ("http", &["config", "dispatcher", "image", "job", "modes", "request", "vram", "webhook"]),
    ("cli", &["config", "dispatcher", "engine", "http", "journal", "modes", "webhook", "worker"]),
    ("main", &["cli", "dispatcher"]),
];

/// Words that belong to one part of `src` alone.
const ONLY_IN: &[(&str, &str)] = &[
    // The seam to the backends.
    ("candle", "engine/nn"),
    ("candle_core", "engine/nn"),
    ("tch", "engine/nn"),
    ("torch_sys", "engine/nn"),
    ("StatusCode", "http"),
    ("nvml_wrapper", "vram"),
    ("serde_saphyr", "config"),
    ("rusqlite", "journal"),
    // A map of a file that is cut short ends its process.
    ("memmap2", "engine/checkpoint/file"),
    ("Mmap", "engine/checkpoint/file"),
    ("hmac", "webhook"),
    ("rustls", "webhook"),
    ("landlock", "worker/sandbox"),
    ("seccompiler", "worker/sandbox"),
];

/// Words that a part of `src` must not say.
const NEVER: &[(&str, &[&str])] = &[
    ("engine", &["axum", "rusqlite", "tokio"]),
    // The daemon runs these: they read plainly, and map nothing.
    ("engine/inspect", &["Mmap", "Prepared", "Tensors", "memmap2"]),
    ("engine/verify", &["Checkpoint", "Mmap", "Prepared", "TensorFile", "memmap2"]),
    ("cli", &["Checkpoint", "LoraFile", "Mmap", "Prepared", "TensorFile", "memmap2"]),
    // It decides, and does nothing.
    ("queue", &["Instant", "SystemTime", "fs", "io", "net", "println", "tokio", "tracing"]),
    ("dispatcher/watchdog", &["Instant", "SystemTime", "fs", "io", "tokio", "tracing"]),
    ("worker/environment", &["env", "fs", "io", "tokio", "tracing"]),
    ("vram/ledger", &["Instant", "SystemTime", "fs", "io", "tokio", "tracing"]),
    ("vram/card", &["Instant", "SystemTime", "env", "fs", "io", "tokio", "tracing"]),
    ("vram/plan", &["Instant", "SystemTime", "fs", "io", "tokio", "tracing"]),
    ("vram/registry", &["Instant", "SystemTime", "fs", "io", "tokio", "tracing"]),
    (
        "webhook/address",
        &["Instant", "SystemTime", "ToSocketAddrs", "fs", "io", "tokio", "tracing"],
    ),
    (
        "webhook/agenda",
        &["Instant", "SystemTime", "TcpStream", "ToSocketAddrs", "fs", "io", "tokio", "tracing"],
    ),
    ("webhook/backoff", &["Instant", "SystemTime", "fs", "io", "net", "tokio", "tracing"]),
    ("webhook/signature", &["Instant", "SystemTime", "fs", "io", "net", "tokio", "tracing"]),
    ("modes", &["fs", "tokio", "tracing"]),
    ("job", &["fs", "tokio", "tracing"]),
    ("request", &["fs", "tokio", "tracing"]),
];

/// The tests of a room may read files and the like, though the room may not.
fn is_test(part: &str) -> bool {
    part.ends_with("tests") || part.contains("tests/")
}

#[test]
fn rooms_use_only_what_they_may() {
    let mut broken = String::new();
    for source in sources() {
        let (rule, allowed) = source.rule();
        let room = rule.split('/').next().unwrap_or(rule);
        for (used, line) in source.rooms_used() {
            if used != room && !allowed.contains(&used.as_str()) {
                let file = source.file();
                writeln!(broken, "{file}:{line}: '{rule}' may not use '{used}'").unwrap();
            }
        }
        for line in source.ways_out_by_super() {
            let file = source.file();
            writeln!(broken, "{file}:{line}: leaves its room by 'super'; say 'crate'").unwrap();
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

#[test]
fn words_stay_where_they_belong() {
    let mut broken = String::new();
    for source in sources().iter().filter(|source| !is_test(&source.part)) {
        let elsewhere = ONLY_IN.iter().filter(|(_, part)| !within(&source.part, part));
        for (word, part) in elsewhere {
            for line in source.lines_with(word) {
                let file = source.file();
                writeln!(broken, "{file}:{line}: '{word}' belongs to '{part}' alone").unwrap();
            }
        }
        for (part, words) in NEVER.iter().filter(|(part, _)| within(&source.part, part)) {
            for word in *words {
                for line in source.lines_with(word) {
                    let file = source.file();
                    writeln!(broken, "{file}:{line}: '{part}' must not say '{word}'").unwrap();
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

/// A file of `src`, without its comments and strings.
struct Source {
    /// Its place in the tree of modules: `worker/child` for `src/worker/child.rs`.
    part: String,
    path: PathBuf,
    code: String,
}

impl Source {
    fn file(&self) -> String {
        format!("src/{}", self.path.display())
    }

    fn rule(&self) -> (&'static str, &'static [&'static str]) {
        let rules = MAY_USE.iter().filter(|(part, _)| within(&self.part, part));
        let longest = rules.max_by_key(|(part, _)| part.len());
        *longest.unwrap_or_else(|| panic!("{}: no rule in MAY_USE", self.file()))
    }

    fn rooms_used(&self) -> Vec<(String, usize)> {
        rooms_used(&self.code)
    }

    /// Lines of unindented `use super::…` that climb out of the room. (Deeper ones, of inline
    /// modules, begin a floor below.)
    fn ways_out_by_super(&self) -> Vec<usize> {
        let floors = self.part.split('/').count();
        let climbs = |line: &str| {
            let path = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("use ")?;
            Some(path.split("::").take_while(|step| *step == "super").count())
        };
        let lines = self.code.lines().enumerate();
        lines
            .filter(|(_, line)| climbs(line).is_some_and(|climbed| climbed >= floors))
            .map(|(index, _)| index + 1)
            .collect()
    }

    fn lines_with(&self, word: &str) -> Vec<usize> {
        let lines = self.code.lines().enumerate();
        lines
            .filter(|(_, line)| line.split(|c| !is_ident(c)).any(|found| found == word))
            .map(|(index, _)| index + 1)
            .collect()
    }
}

fn within(part: &str, of: &str) -> bool {
    part.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All files of `src` that have a rule.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = code_of(&fs::read_to_string(&path).unwrap());
                let path = path.strip_prefix(&root).unwrap().to_owned();
                let part = path.with_extension("").display().to_string();
                let part = part.strip_suffix("/mod").unwrap_or(&part).to_owned();
                sources.push(Source { part, path, code });
            }
        }
    }
    sources.retain(|source| source.part != "lib");
    assert!(sources.len() > 20, "the sources are not where they were");
    sources
}

/// The rooms that are named behind `crate::` (in the binary, `diffused::`), with their lines:
/// `crate::a::b`, or several in `crate::{a::b, c}`.
fn rooms_used(code: &str) -> Vec<(String, usize)> {
    let mut used = Vec::new();
    for root in ["crate::", "diffused::"] {
        for (at, _) in code.match_indices(root) {
            if code[..at].ends_with(is_ident) {
                continue;
            }
            let start = at + root.len();
            for name_at in names_at(&code[start..]) {
                let name: String =
                    code[start + name_at..].chars().take_while(|c| is_ident(*c)).collect();
                used.push((name, code[..start + name_at].lines().count()));
            }
        }
    }
    used
}

/// Where the first names of a path, or of each path in its group, begin.
fn names_at(path: &str) -> Vec<usize> {
    if !path.starts_with('{') {
        return vec![0];
    }
    let (mut depth, mut expected, mut found) = (0, false, Vec::new());
    for (at, c) in path.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if expected && is_ident(c) {
            found.push(at);
            expected = false;
        }
        expected |= depth == 1 && matches!(c, '{' | ',');
    }
    found
}

/// The code with its comments and the insides of its strings blanked out, line by line as it was.
fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r\"") || rest.starts_with("r#") {
            let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
            let end = format!("\"{}", "#".repeat(hashes));
            match rest[1 + hashes..].starts_with('"') {
                true => rest[2 + hashes..]
                    .find(&end)
                    .map_or(rest.len(), |at| at + 2 + hashes + end.len()),
                false => 0, // r#identifier
            }
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'') // and not a lifetime
        } else {
            0
        };
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..length].chars().map(|c| if c == '\n' { c } else { ' ' }));
            rest = &rest[length..];
        }
    }
    code
}

/// How long a literal is that begins here, with both its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn the_reader_sees_what_is_used_and_where() {
    let source = r##"
//! crate::comment
use crate::{
    one::{a, b::{c, d}},
    two, // crate::comment
};
use crate::three; /* crate::
comment */ fn f<'a>(q: char) -> crate::four::X { g("crate::string \" //", '"', '\'', r#"crate::raw " "#) }
my_crate::five(crate::six::y)
"##;
    let used = rooms_used(&code_of(source));
    let seen: Vec<_> = used.iter().map(|(room, line)| (room.as_str(), *line)).collect();
    assert_eq!(seen, [("one", 4), ("two", 5), ("three", 7), ("four", 8), ("six", 9)]);
}

#[test]
fn the_reader_sees_who_climbs_out_by_super() {
    for (part, code, lines) in [
        ("queue", "use super::job;\n", vec![1]),
        ("queue/tests", "use super::*;\nuse super::super::job;\n", vec![2]),
        ("queue/tests", "    use super::super::*;\n", vec![]),
    ] {
        let source = Source { part: part.to_owned(), path: PathBuf::new(), code: code.to_owned() };
        assert_eq!(source.ways_out_by_super(), lines, "{part}: {code}");
    }
}
