//! The section `custom_jobs`: commands that jobs may run.

use std::{collections::BTreeMap, path::Path};

use super::parsed;
use crate::{
    config::{
        diagnostic::KeyPath,
        names::check_mode_name,
        raw::Entry,
        reader::{Errors, Field, Table},
    },
    modes::{CustomCommand, is_built_in},
};

pub const COMMAND_KEYS: [&str; 3] = ["command", "timeout", "description"];

/// `base`: the folder that a program's relative path begins at.
pub fn custom_jobs(
    root: &Table,
    base: &Path,
    errors: &mut Errors,
) -> BTreeMap<String, CustomCommand> {
    let Some(field) = root.get("custom_jobs") else { return BTreeMap::new() };
    let entries = field.entries(errors).unwrap_or_default();
    let jobs = entries.iter().filter_map(|entry| {
        let key = field.key.key(&entry.key);
        check_name(entry, &key, errors);
        let field = Field { node: &entry.value, key };
        Some((entry.key.clone(), command(&field, entry, base, errors)?))
    });
    jobs.collect()
}

fn check_name(entry: &Entry, key: &KeyPath, errors: &mut Errors) {
    let name = &entry.key;
    if let Err(reason) = check_mode_name(name) {
        let reason = reason.replacen("a mode's name", "a custom job's name", 1);
        errors.add(entry.key_at, key.clone(), reason);
    } else if is_built_in(name) {
        let reason = format!("'{name}' is built in; give the command another name");
        errors.add(entry.key_at, key.clone(), reason);
    }
}

fn command(
    field: &Field,
    entry: &Entry,
    base: &Path,
    errors: &mut Errors,
) -> Option<CustomCommand> {
    let table = Table::read(field, entry.key_at, &COMMAND_KEYS, errors)?;
    let command = table.require("command", errors);
    let timeout = parsed(&table, "timeout", errors).unwrap_or(CustomCommand::TIMEOUT);
    let description = table.get("description").and_then(|field| field.shown_text(errors));
    let command = command?;
    let words = command.items(errors)?;
    let words: Vec<Option<&str>> = words.iter().map(|word| argument(word, errors)).collect();
    let [program, arguments @ ..] = &words[..] else {
        command.error(errors, "is empty; the program comes first");
        return None;
    };
    let program = (*program)?;
    if program.is_empty() {
        command.error(errors, "has no program: the first entry is empty");
        return None;
    }
    // With a slash it is a path, as for a shell; else it is looked for in PATH.
    let program = if program.contains('/') { base.join(program) } else { program.into() };
    let arguments = arguments.iter().map(|word| word.map(str::to_owned));
    Some(CustomCommand {
        program,
        arguments: arguments.collect::<Option<_>>()?,
        timeout,
        description: description.map(str::to_owned),
    })
}

fn argument<'a>(word: &Field<'a>, errors: &mut Errors) -> Option<&'a str> {
    let text = word.text(errors)?;
    if text.contains('\0') {
        word.error(errors, "contains the character U+0000, which no argument can");
        return None;
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{raw, resolve::resolve},
        modes::{CustomCommand, Time},
    };
    use std::path::Path;

    fn read(section: &str) -> Result<Vec<(String, CustomCommand)>, String> {
        let text = format!(
            "model_root: m\ndefault_mode: a\nmodes: {{a: {{model: x}}}}\ncustom_jobs:\n{section}\n"
        );
        let root = raw::parse(&text).unwrap();
        let resolved = resolve(&root, Path::new("m.yaml").into(), Path::new("/home/x"));
        let resolved = resolved.map_err(|errors| {
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })?;
        Ok(resolved.modes.custom_jobs.into_iter().collect())
    }

    #[test]
    fn where_the_program_is() {
        for (program, expected) in [
            ("/usr/bin/env", "/usr/bin/env"),
            ("./tools/x", "/home/x/./tools/x"),
            ("tools/x", "/home/x/tools/x"),
            ("env", "env"),
        ] {
            let jobs = read(&format!("  job: {{command: [{program}, '', -x]}}")).unwrap();
            let [(name, command)] = &jobs[..] else { panic!("{jobs:?}") };
            assert_eq!((name.as_str(), command.program.to_str()), ("job", Some(expected)));
            assert_eq!(command.arguments, ["", "-x"]);
            assert_eq!((command.timeout, &command.description), (Time::of_secs(60), &None));
        }
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn all_that_is_wrong_is_said_and_where() {
        let section = "  warm_up: {command: [x]}
  'a b': {command: [x]}
  none: {}
  empty: {command: []}
  nameless: {command: [''], timeout: 0s}
  number: {command: [x, 1]}
  shell: {command: x | y}
  known: {command: [x], time: 5s}
  right: {command: [x], timeout: 5m, description: does x}";
        insta::assert_snapshot!(read(section).unwrap_err(), @r#"
        m.yaml:5:3: error: custom_jobs.warm_up: 'warm_up' is built in; give the command another name
        m.yaml:6:3: error: custom_jobs."a b": a custom job's name is made of letters, digits, '.', '_' and '-'
        m.yaml:7:3: error: custom_jobs.none: required key 'command' is missing
        m.yaml:8:20: error: custom_jobs.empty.command: is empty; the program comes first
        m.yaml:9:23: error: custom_jobs.nameless.command: has no program: the first entry is empty
        m.yaml:9:38: error: custom_jobs.nameless.timeout: '0s' is not a time: write 90s, 10m, 2h or 7d
        m.yaml:10:25: error: custom_jobs.number.command[1]: expected text, found the number 1; put it in quotes
        m.yaml:11:20: error: custom_jobs.shell.command: expected a list, found the text 'x | y'
        m.yaml:12:25: error: custom_jobs.known.time: unknown key; did you mean 'timeout'?
        "#);
    }
}
