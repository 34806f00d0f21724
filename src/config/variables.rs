//! What a file takes from its surroundings: `${VAR}` and `${VAR:-default}` in values, and `~` at
//! the beginning of the folders that models and LoRAs are in. Knows the environment only by the
//! function that it is given.

use super::{
    diagnostic::KeyPath,
    raw::{Node, Value},
    reader::Errors,
};

/// The folders that may begin with `~`.
const FOLDERS: [&str; 2] = ["model_root", "lora_root"];

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
                // Nothing, as a key without a value.
                Ok(text) if text.is_empty() => node.value = Value::Null,
                Ok(text) => node.value = Value::Variable(text),
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

    fn text(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, from) = rest.split_at(at);
            let from = &from[2..];
            if let Some(before) = before.strip_suffix('$') {
                expanded += before;
                expanded += "${";
                rest = from;
                continue;
            }
            let Some((inside, behind)) = from.split_once('}') else {
                return Err("'${' has no '}'; for the characters themselves write '$${'".into());
            };
            expanded += before;
            expanded += &self.value(inside)?;
            rest = behind;
        }
        Ok(expanded + rest)
    }

    /// Of what stands between the braces; like a shell's, an empty variable counts as none.
    fn value(&self, inside: &str) -> Result<String, String> {
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
            (Some(value), None) => Ok(value),
            (Some(value), Some(_)) if !value.is_empty() => Ok(value),
            (_, Some(default)) => Ok(default.to_owned()),
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
                    default_negative_prompt: $${STEPS} $5\n    metadata: {k: \"${STEPS}\"}\n";
        let root = expanded(text).unwrap();
        let modes = resolve(&root, Path::new("m").into(), Path::new("/etc")).unwrap().modes;
        let mode = &modes.modes["a"];
        assert_eq!(mode.pipeline.checkpoint.path, Path::new("/home/x/models/a b.safetensors"));
        assert_eq!(mode.pipeline.vae, None);
        assert_eq!(mode.pipeline.loras[0].path, Path::new("/home/x/loras/x"));
        assert_eq!((mode.defaults.steps, mode.defaults.guidance_scale), (9, 7.5));
        assert_eq!(mode.defaults.size.to_string(), "64x128");
        assert_eq!(mode.defaults.scheduler.unwrap().name(), "lcm");
        assert_eq!(mode.defaults.negative_prompt.as_deref(), Some("${STEPS} $5"));
        assert_eq!(mode.metadata["k"], "9");
    }

    #[test]
    fn what_is_not_there_is_said() {
        insta::assert_snapshot!(expanded("a: [x, '${NONE}']\nb: '${no name}'\nc: '${x'").unwrap_err(), @r"
        m:1:8: error: a[1]: the environment variable NONE is not set; '${NONE:-default}' names a value for that case
        m:2:4: error: b: 'no name' is not the name of an environment variable
        m:3:4: error: c: '${' has no '}'; for the characters themselves write '$${'
        ");
    }

    #[test]
    fn a_variable_is_checked_as_what_it_stands_for() {
        let text = "model_root: m\ndefault_mode: a\nmodes: {a: {model: x, default_steps: '${FILE}', \
                    default_guidance: '${FILE}'}}";
        let root = expanded(text).unwrap();
        let errors = resolve(&root, Path::new("m").into(), Path::new("/etc")).unwrap_err();
        let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "expected a whole number, found the text 'a b.safetensors'",
                "expected a number, found the text 'a b.safetensors'"
            ]
        );
    }
}
