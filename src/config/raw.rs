//! The file as it was written: a tree of values, each with its position.
//!
//! Generic on purpose. Reading straight into typed structs would stop at the first value of a
//! wrong type; a tree lets [`super::resolve`] report everything at once. Knows nothing of modes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{MessageFormatter, NonFiniteFloatPolicy, Spanned, UserMessageFormatter};

use super::diagnostic::Position;

/// A value and the place where it stands (an alias: where it is used).
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    /// Text with something from the environment in it: it may stand for a number, too.
    Variable(Expanded),
    List(Vec<Node>),
    /// In the order of the file; the parser has refused duplicate keys.
    Map(Vec<Entry>),
}

/// A text with variables in it. Clients, logs and terminals are shown `written` alone.
#[derive(Clone, PartialEq)]
pub struct Expanded {
    pub value: String,
    /// As the file has it, `${VAR}`.
    pub written: String,
}

impl Expanded {
    /// Whether its variables are the daemon's own, whose values are no secret.
    pub fn is_public(&self) -> bool {
        self.value == self.written
    }
}

impl fmt::Debug for Expanded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub key_at: Position,
    pub value: Node,
}

/// The file is not YAML, or it exceeds what a configuration may reasonably be.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntaxError {
    pub at: Option<Position>,
    pub message: String,
    /// It would be YAML, were there less of it.
    pub is_too_much: bool,
}

/// Far above any real configuration, and low enough that a hostile one is refused within
/// milliseconds (aliases count as what they expand to).
const MAX_NODES: usize = 100_000;
/// Far below what the recursion in here could take.
const MAX_DEPTH: usize = 32;

/// Parses one YAML document. An empty one is a `Null`.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 4 * MAX_NODES,
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        // YAML 1.2: `no` and `off` are words, not booleans.
        strict_booleans: true,
        // `.inf` gets a message of its own, with its key.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Spanned<Value>>(text, options).map(node).map_err(
        |error| SyntaxError {
            at: error.location().map(position).filter(|at| at.line > 0),
            message: syntax_message(error.without_snippet()),
            is_too_much: matches!(error.without_snippet(), serde_saphyr::Error::Budget { .. }),
        },
    )
}

fn syntax_message(error: &serde_saphyr::Error) -> String {
    match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key '{key}' is here a second time")
        }
        other => UserMessageFormatter.format_message(other).into_owned(),
    }
}

fn node(spanned: Spanned<Value>) -> Node {
    Node { at: position(spanned.referenced), value: spanned.value }
}

fn position(location: serde_saphyr::Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(spanned) = list.next_element::<Spanned<Value>>()? {
            nodes.push(node(spanned));
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = node(map.next_value()?);
            entries.push(Entry { key: key.value, key_at: position(key.referenced), value });
        }
        Ok(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u64, column: u64) -> Position {
        Position { line, column }
    }

    #[test]
    fn values_keep_their_type_and_place() {
        let root = parse("a: 1\nb: [no, 0.5, ~]\n? 7\n: 'x'\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("{root:?}") };
        let seen: Vec<_> = entries.iter().map(|e| (e.key.as_str(), e.key_at, e.value.at)).collect();
        assert_eq!(
            seen,
            [("a", at(1, 1), at(1, 4)), ("b", at(2, 1), at(2, 4)), ("7", at(3, 3), at(4, 3))]
        );
        assert_eq!(
            entries[1].value.value,
            Value::List(vec![
                Node { at: at(2, 5), value: Value::Text("no".into()) },
                Node { at: at(2, 9), value: Value::Float(0.5) },
                Node { at: at(2, 14), value: Value::Null },
            ])
        );
    }

    #[test]
    fn aliases_stand_where_they_are_used() {
        let root = parse("a: &x {k: 1}\nb: *x\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("{root:?}") };
        assert_eq!(entries[1].value.at, at(2, 4));
        let Value::Map(inner) = &entries[1].value.value else { panic!("{entries:?}") };
        assert_eq!((inner[0].key_at, inner[0].value.at), (at(2, 4), at(2, 4)));
    }

    #[test]
    fn bad_yaml_has_a_place() {
        for (text, line) in [
            ("a: 1\na: 2\n", 2),
            ("a: [1, 2\n", 1),
            ("a: 1\n\tb: 2\n", 1),
            ("a: 'x\n", 2),
            ("a: *nowhere\n", 1),
            ("a: 1\n---\nb: 2\n", 3),
            ("~: 1\n", 1),
            ("[a, b]: 1\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.message.is_empty());
            assert_eq!(error.at.map(|at| at.line), Some(line), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn hostile_files_are_refused_quickly() {
        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for i in 1..40 {
            bomb += &format!("a{i}: &a{i} [*a{p}, *a{p}]\n", p = i - 1);
        }
        let deep_flow = "[".repeat(1_000_000);
        let deep_block: String = (0..2_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        let wide = "- x\n".repeat(2_000_000);
        let many_keys: String = (0..200_000).map(|i| format!("k{i}: 1\n")).collect();
        for text in [bomb, deep_flow, deep_block, wide, many_keys, "x".repeat(8 << 20)] {
            let started = std::time::Instant::now();
            let outcome = parse(&text);
            assert!(outcome.is_err() || text.starts_with("xxx"), "{:.40}", text);
            assert!(started.elapsed().as_secs() < 5, "{:.40}", text);
        }
    }
}
