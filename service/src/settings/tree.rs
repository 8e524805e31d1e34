//! Owns merged settings with the origin of each value. Never reads anything.

use std::{collections::BTreeMap, fmt::Write as _};

use super::Origin;

/// A value and who decided it.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) content: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Scalar {
        value: toml::Value,
        /// As it was written, where a string may be meant although it reads as something else: an account id in an
        /// environment variable looks like a number.
        raw: Option<String>,
    },
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

/// One step into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

impl Node {
    pub(super) fn table(origin: Origin) -> Self {
        let content = Content::Table(BTreeMap::new());
        Self { origin, content }
    }

    /// Lays `upper` over this.
    pub(super) fn merge(&mut self, upper: Self) {
        match (&mut self.content, upper.content) {
            (Content::Table(below), Content::Table(above)) => {
                for (key, node) in above {
                    match below.get_mut(&key) {
                        Some(existing) => existing.merge(node),
                        None => drop(below.insert(key, node)),
                    }
                }
            }
            (content, above) => {
                *content = above;
                self.origin = upper.origin;
            }
        }
    }

    /// A node that holds only this one, under a path of keys.
    pub(super) fn nested(self, keys: &[String]) -> Self {
        keys.iter().rev().fold(self, |inner, key| Self {
            origin: inner.origin.clone(),
            content: Content::Table(BTreeMap::from([(key.clone(), inner)])),
        })
    }

    pub(super) fn to_value(&self) -> toml::Value {
        match &self.content {
            Content::Scalar { value, .. } => value.clone(),
            Content::List(nodes) => toml::Value::Array(nodes.iter().map(Self::to_value).collect()),
            Content::Table(nodes) => {
                let fields = nodes.iter().map(|(key, node)| (key.clone(), node.to_value()));
                toml::Value::Table(fields.collect())
            }
        }
    }

    /// The node at a path, or the last one on the way to it, and whether it is the one asked for.
    pub(super) fn nearest(&self, path: &[Step]) -> (&Self, bool) {
        let mut node = self;
        for step in path {
            let next = match (&node.content, step) {
                (Content::Table(nodes), Step::Key(key)) => nodes.get(key),
                (Content::List(nodes), Step::Index(at)) => nodes.get(*at),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return (node, false),
            }
        }
        (node, true)
    }

    pub(super) fn at_mut(&mut self, path: &[Step]) -> Option<&mut Self> {
        path.iter()
            .try_fold(self, |node, step| match (&mut node.content, step) {
                (Content::Table(nodes), Step::Key(key)) => nodes.get_mut(key),
                (Content::List(nodes), Step::Index(at)) => nodes.get_mut(*at),
                _ => None,
            })
    }

    /// The origin of a dotted key; of a key in a list whose element is not told, that of the list.
    pub(super) fn origin(&self, key: &str) -> Option<Origin> {
        let path = steps(key);
        let (node, exact) = self.nearest(&path);
        let inside = matches!(node.content, Content::List(_));
        (exact || inside).then(|| node.origin.clone())
    }

    /// Every node below this one, with its dotted key.
    pub(super) fn visit(&self, key: &str, visitor: &mut impl FnMut(&str, &Self)) {
        match &self.content {
            Content::Scalar { .. } => {}
            Content::List(nodes) => {
                for (at, node) in nodes.iter().enumerate() {
                    let key = format!("{key}[{at}]");
                    visitor(&key, node);
                    node.visit(&key, visitor);
                }
            }
            Content::Table(nodes) => {
                for (name, node) in nodes {
                    let key = child(key, name);
                    visitor(&key, node);
                    node.visit(&key, visitor);
                }
            }
        }
    }
}

/// The dotted key of a field.
pub(super) fn child(key: &str, name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    let name = if !name.is_empty() && name.bytes().all(bare) {
        name.to_owned()
    } else {
        toml::Value::String(name.to_owned()).to_string()
    };
    if key.is_empty() {
        name
    } else {
        format!("{key}.{name}")
    }
}

/// As people write it: `keys[0].access_key_id`.
pub(super) fn dotted(path: &[Step]) -> String {
    path.iter().fold(String::new(), |mut text, step| match step {
        Step::Key(name) => child(&text, name),
        Step::Index(at) => {
            // Writing to a string does not fail.
            let _ = write!(text, "[{at}]");
            text
        }
    })
}

/// `keys[3].secret` is one of `keys[].secret`.
pub(super) fn pattern(key: &str) -> String {
    let (mut text, mut inside) = (String::new(), false);
    for c in key.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            _ if inside => continue,
            _ => {}
        }
        text.push(c);
    }
    text
}

/// The reverse of [`dotted`], for keys that need no quotes.
fn steps(key: &str) -> Vec<Step> {
    key.split('.')
        .flat_map(|part| {
            let (name, rest) = part.split_once('[').unwrap_or((part, ""));
            let indexes = rest
                .split('[')
                .filter_map(|text| text.strip_suffix(']')?.parse().ok())
                .map(Step::Index);
            std::iter::once(Step::Key(name.to_owned())).chain(indexes)
        })
        .collect()
}
