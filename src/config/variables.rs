//! Environment variables in a file: `${VAR}` and `${VAR:-default}` in values, and `~` at the
//! beginning of the folders of models and LoRAs. Knows the environment only by the function that it
//! is given.

use std::borrow::Cow;

use super::{
    diagnostic::KeyPath,
    raw::{Expanded, Node, Value},
    reader::Errors,
};

/// The folders that may begin with `~`.
const FOLDERS: [&str; 2] = ["model_root", "lora_root"];

/// The daemon's own settings, by which the environment describes a mode: no secrets, so that their
/// values are shown.
const OWN: [&str; 6] =
    ["MODEL_ROOT", "MODEL", "LORA_ROOT", "DEFAULT_SIZE", "DEFAULT_STEPS", "DEFAULT_GUIDANCE"];

/// The text that [`expand`] reads as `text`, whatever is in it.
pub fn literal(text: &str) -> Cow<'_, str> {
    match text.contains("${") {
        true => text.replace("${", "$${").into(),
        false => text.into(),
    }
}

/// Puts variables' values in their places; says which are not set. `$${` stands for `${`.
pub fn expand(root: &mut Node, variable: &dyn Fn(&str) -> Option<String>, errors: &mut Errors) {
    if let Value::Map(entries) = &mut root.value {
        let folders = entries.iter_mut().filter(|entry| FOLDERS.contains(&entry.key.as_str()));
        for folder in folders {
            if let Value::Text(name) = &mut folder.value.value
                && (name == "~" || name.starts_with("~/"))
                && let Some(home) = variable("HOME")
            {
                name.replace_range(..1, &home);
            }
        }
    }
    Expansion { variable, errors }.node(root, &KeyPath::default());
}

struct Expansion<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    errors: &'a mut Errors,
}

impl Expansion<'_> {
    fn node(&mut self, node: &mut Node, key: &KeyPath) {
        match &mut node.value {
            Value::Text(text) if text.contains("${") => match self.text(text) {
                Ok(value) => node.value = value,
                Err(message) => self.errors.add(node.at, key.clone(), message),
            },
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item, &key.index(index));
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    self.node(&mut entry.value, &key.key(&entry.key));
                }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::Variable(_) => {}
        }
    }

    fn text(&self, text: &str) -> Result<Value, String> {
        let (mut value, mut written) = (String::new(), String::new());
        let mut has_variable = false;
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            let from = &from[2..];
            if let Some(before) = before.strip_suffix('$') {
                for text in [&mut value, &mut written] {
                    *text += before;
                    *text += "${";
                }
                rest = from;
                continue;
            }
            let Some((inside, behind)) = from.split_once('}') else {
                return Err("'${' has no '}'; for the characters themselves write '$${'".into());
            };
            has_variable = true;
            let (name, expanded) = self.value(inside)?;
            value += before;
            value += &expanded;
            written += before;
            match OWN.contains(&name) {
                true => written += &expanded,
                false => written += &format!("${{{inside}}}"),
            }
            rest = behind;
        }
        value += rest;
        written += rest;
        Ok(match has_variable {
            false => Value::Text(value),
            // Nothing, as a key without a value.
            true if value.is_empty() => Value::Null,
            true => Value::Variable(Expanded { value, written }),
        })
    }

    /// The name between the braces and its value; as in a shell, an empty variable counts as none.
    fn value<'a>(&self, inside: &'a str) -> Result<(&'a str, String), String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(format!("'{name}' is not the name of an environment variable"));
        }
        let value = (self.variable)(name);
        match (value, default) {
            (Some(value), None) => Ok((name, value)),
            (Some(value), Some(_)) if !value.is_empty() => Ok((name, value)),
            (_, Some(default)) => Ok((name, default.to_owned())),
            (None, None) => Err(format!(
                "the environment variable {name} is not set; \
                 '${{{name}:-default}}' names a value for that case"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{raw, resolve::resolve};

    fn expanded(text: &str) -> Result<Node, String> {
        let mut root = raw::parse(text).unwrap();
        let mut errors = Errors::new(Path::new("m").into());
        let variable = |name: &str| match name {
            "HOME" => Some("/home/x".to_owned()),
            "STEPS" => Some("9".to_owned()),
            "FILE" => Some("a b.safetensors".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        expand(&mut root, &variable, &mut errors);
        let errors = errors.into_sorted();
        match errors.is_empty() {
            true => Ok(root),
            false => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")),
        }
    }

    #[test]
    fn variables_stand_for_text_and_numbers_and_may_have_defaults() {
        let text = "model_root: ~/models\nlora_root: ${HOME}/loras\ndefault_mode: ${MODE:-a}\n\
                    modes:\n  a:\n    model: ${FILE}\n    vae: ${EMPTY:-}\n    default_steps: ${STEPS}\n    \
                    default_guidance: ${G:-7.5}\n    default_size: ${W:-64}x${H:-128}\n    \
                    default_scheduler: ${EMPTY:-lcm}\n    loras: [\"${L:-x}\"]\n    \
                    default_negative_prompt: $${STEPS} $5\n    metadata: {k: \"$${STEPS}\"}\n";
        let root = expanded(text).unwrap();
        let modes = resolve(&root, Path::new("m").into(), Path::new("/etc")).unwrap().modes;
        let mode = &modes.modes["a"];
        let checkpoint = &mode.pipeline.checkpoint;
        assert_eq!(checkpoint.path, Path::new("/home/x/models/a b.safetensors"));
        assert_eq!(checkpoint.name, "${FILE}");
        assert_eq!(mode.pipeline.vae, None);
        assert_eq!(mode.pipeline.loras[0].path, Path::new("/home/x/loras/x"));
        assert_eq!((mode.defaults.steps, mode.defaults.guidance_scale), (9, 7.5));
        assert_eq!(mode.defaults.size.to_string(), "64x128");
        assert_eq!(mode.defaults.scheduler.unwrap().name(), "lcm");
        assert_eq!(mode.defaults.negative_prompt.as_deref(), Some("${STEPS} $5"));
        assert_eq!(mode.metadata["k"], "${STEPS}");
    }

    #[test]
    fn what_is_not_there_is_said() {
        insta::assert_snapshot!(expanded("a: [x, '${NONE}']\nb: '${no name}'\nc: '${x'").unwrap_err(), @r"
        m:1:8: error: a[1]: the environment variable NONE is not set; '${NONE:-default}' names a value for that case
        m:2:4: error: b: 'no name' is not the name of an environment variable
        m:3:4: error: c: '${' has no '}'; for the characters themselves write '$${'
        ");
    }

    fn messages(text: &str) -> Vec<String> {
        let text = format!("model_root: m\ndefault_mode: a\nmodes:\n  a: {{model: x, {text}}}\n");
        let root = expanded(&text).unwrap();
        let errors = resolve(&root, Path::new("m").into(), Path::new("/etc")).unwrap_err();
        errors.into_iter().map(|error| error.message).collect()
    }

    #[test]
    fn a_bad_value_of_a_variable_is_called_by_the_variable() {
        let not_shown =
            "the value of '${FILE}' cannot be used here (values of variables are not shown)";
        let shown_to_clients =
            "takes no variable, since clients are shown it; '$${' stands for '${'";
        for (text, expected) in [
            ("default_steps: '${FILE}'", "expected a whole number, found the value of '${FILE}'"),
            ("default_guidance: '${FILE}'", "expected a number, found the value of '${FILE}'"),
            ("clip_skip: '1${STEPS}'", "the value of '1${STEPS}' is not between 0 and 12"),
            ("default_size: '${FILE}'", not_shown),
            ("default_scheduler: '${FILE}'", not_shown),
            ("pinned: '${FILE}'", "expected true or false, found the value of '${FILE}'"),
            ("loras: '${FILE}'", "expected a list, found the value of '${FILE}'"),
            ("metadata: {a: [{b: '${FILE}'}]}", shown_to_clients),
            ("default_negative_prompt: 'a ${FILE}'", shown_to_clients),
            ("loras: [{path: x, adapter_name: '${FILE}'}]", shown_to_clients),
        ] {
            assert_eq!(messages(text), [expected], "{text}");
        }
    }

    #[test]
    fn a_literal_text_reads_back_as_it_is() {
        for text in [
            "",
            "$",
            "${",
            "$${",
            "$$${",
            "${A}",
            "$${A}",
            "$$${A}",
            "$$$${A}",
            "${A:-b}",
            "${A",
            "${${A}}",
            "a ${A} b ${B",
            "{$}",
            "$ {A}",
            "${}",
            "${A}\n${B}",
            "}${",
        ] {
            let mut errors = Errors::new(Path::new("m").into());
            let at = raw::parse("x").unwrap().at;
            let mut node = Node { at, value: Value::Text(literal(text).into_owned()) };
            expand(&mut node, &|_| panic!("looked up for {text}"), &mut errors);
            assert_eq!((node.value, errors.into_sorted()), (Value::Text(text.to_owned()), vec![]));
        }
    }
}
