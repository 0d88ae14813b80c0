//! A YAML document as a tree that knows its lines. Bounded by the parser's own budget on depth,
//! nodes and aliases. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Something wrong in the manifest, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Problem {
    /// Counted from 1; 0 where the parser could not tell.
    pub(super) line: u64,
    /// What is wrong and what would be right.
    pub(super) text: String,
}

/// A value of the document.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Null,
    /// A bool or a number, which may not stand where a string is needed.
    Plain,
    Text(String),
    List(Vec<(u64, Node)>),
    /// Key, line of the key, value.
    Map(Vec<(String, u64, Node)>),
}

pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    serde_saphyr::from_str::<Node>(text).map_err(|error| problem(&error))
}

/// The parser's own error with its line, and without the excerpt it draws.
pub(super) fn problem(error: &serde_saphyr::Error) -> Problem {
    let plain = error.without_snippet().to_string();
    Problem {
        line: error.location().map_or(0, |location| location.line()),
        text: plain.lines().next().unwrap_or_default().to_owned(),
    }
}

impl Node {
    /// The value of a key, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<(u64, &Node)> {
        let Node::Map(entries) = self else {
            return None;
        };
        entries
            .iter()
            .find(|(name, _, _)| name == key)
            .map(|(_, line, node)| (*line, node))
    }

    /// The line of each path below, such as `spec.containers[0].image`.
    pub(super) fn lines(&self) -> Lines {
        let mut lines = Lines::default();
        self.collect("", &mut lines);
        lines
    }

    fn collect(&self, path: &str, lines: &mut Lines) {
        let mut add = |path: String, line: u64, node: &Node| {
            node.collect(&path, lines);
            lines.0.insert(path, line);
        };
        match self {
            Node::Map(entries) => {
                entries
                    .iter()
                    .for_each(|(key, line, node)| add(join(path, key), *line, node));
            }
            Node::List(items) => {
                let indexed = items.iter().enumerate();
                indexed.for_each(|(i, (line, node))| add(format!("{path}[{i}]"), *line, node));
            }
            Node::Null | Node::Plain | Node::Text(_) => {}
        }
    }
}

/// The path of a key below another path.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// Lines by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines(BTreeMap<String, u64>);

impl Lines {
    /// The line of a path, or of the nearest thing around it that is written down.
    pub(super) fn of(&self, path: &str) -> u64 {
        let mut path = path;
        loop {
            if let Some(line) = self.0.get(path) {
                return *line;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return 1,
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Plain)
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            list.push((item.referenced.line(), item.value));
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map: Vec<(String, u64, Node)> = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            if map.iter().any(|(name, _, _)| *name == key.value) {
                return Err(de::Error::custom(format!("{} is given twice", key.value)));
            }
            map.push((key.value, line, entries.next_value()?));
        }
        Ok(Node::Map(map))
    }
}
