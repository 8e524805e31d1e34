//! Owns the reading of each layer into a tree, and their order. Never interprets a value beyond TOML.

use std::{
    ffi::OsString,
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue, ValueDeserializer},
};

use super::{
    DROP_INS_MAX, FILE_BYTES_MAX, KEY_DEPTH_MAX, Origin, SettingsError, Sources,
    tree::{Content, Node, child},
};

/// All layers, merged.
pub(super) fn read(
    sources: &Sources,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Node, SettingsError> {
    let mut tree = Node::table(Origin::Default);
    match file(&sources.file) {
        Ok(node) => tree.merge(node),
        Err(SettingsError::Read { source, .. })
            if !sources.file_required && source.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for path in drop_ins(&sources.drop_in_directory())? {
        tree.merge(file(&path)?);
    }
    for node in variables(sources.environment_prefix, environment)? {
        tree.merge(node);
    }
    for argument in &sources.sets {
        tree.merge(set(argument)?);
    }
    Ok(tree)
}

/// Files of the directory that end with `.toml`, in the order of their names; hidden ones are left out, as are what
/// package managers and editors leave behind (`.toml.dpkg-new`, `.toml~`).
fn drop_ins(directory: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let at = |source| SettingsError::Read {
        path: directory.into(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(at)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        if paths.len() == DROP_INS_MAX {
            return Err(SettingsError::TooManyDropIns(directory.into()));
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

fn file(path: &Path) -> Result<Node, SettingsError> {
    let read = |source| SettingsError::Read {
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    let opened = fs::File::open(path).map_err(read)?;
    opened
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(SettingsError::TooLarge(path.into()));
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|b| **b == b'\n').count() + 1;
            return Err(SettingsError::Encoding {
                path: path.into(),
                line,
            });
        }
    };
    Reader::new(path, &text).read()
}

/// Turns one file into a tree whose origins are lines.
struct Reader<'a> {
    path: Arc<Path>,
    text: &'a str,
    /// Where each line starts, bytes.
    lines: Vec<usize>,
}

impl<'a> Reader<'a> {
    fn new(path: &Path, text: &'a str) -> Self {
        let breaks = text
            .bytes()
            .enumerate()
            .filter(|(_, b)| *b == b'\n')
            .map(|(at, _)| at + 1);
        Self {
            path: path.into(),
            text,
            lines: std::iter::once(0).chain(breaks).collect(),
        }
    }

    fn read(&self) -> Result<Node, SettingsError> {
        check_depth(self.text).map_err(|at| self.syntax(at, "a key nested that deep is no setting"))?;
        let table = DeTable::parse(self.text).map_err(|error| self.failed(&error))?;
        let start = self.origin(0);
        let content = self.table(table.into_inner(), "", 0)?;
        Ok(Node {
            origin: start,
            content,
        })
    }

    fn table(&self, table: DeTable<'_>, key: &str, depth: usize) -> Result<Content, SettingsError> {
        let mut nodes = std::collections::BTreeMap::new();
        for (name, value) in table {
            let origin = self.origin(name.span().start);
            let key = child(key, name.get_ref());
            if depth == KEY_DEPTH_MAX {
                return Err(SettingsError::TooDeep { key, origin });
            }
            let content = self.value(value, &key, depth + 1)?;
            nodes.insert(name.into_inner().into_owned(), Node { origin, content });
        }
        Ok(Content::Table(nodes))
    }

    fn value(&self, value: Spanned<DeValue<'_>>, key: &str, depth: usize) -> Result<Content, SettingsError> {
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => self.table(table, key, depth),
            DeValue::Array(elements) => {
                let mut nodes = Vec::new();
                for (at, element) in elements.into_iter().enumerate() {
                    let (key, origin) = (format!("{key}[{at}]"), self.origin(element.span().start));
                    if depth == KEY_DEPTH_MAX {
                        return Err(SettingsError::TooDeep { key, origin });
                    }
                    let content = self.value(element, &key, depth + 1)?;
                    nodes.push(Node { origin, content });
                }
                Ok(Content::List(nodes))
            }
            leaf => {
                let reader = ValueDeserializer::from(Spanned::new(span, leaf));
                let value = toml::Value::deserialize(reader).map_err(|error| self.failed(&error))?;
                Ok(Content::Scalar { value, raw: None })
            }
        }
    }

    /// The line of a byte, from 1.
    fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at)
    }

    fn origin(&self, at: usize) -> Origin {
        Origin::File {
            path: self.path.clone(),
            line: self.line(at),
        }
    }

    fn failed(&self, error: &toml::de::Error) -> SettingsError {
        self.syntax(error.span().map_or(0, |span| span.start), error.message())
    }

    // Not the parser's own display: that repeats the line, and a secret may be in it.
    fn syntax(&self, at: usize, problem: &str) -> SettingsError {
        let line = self.line(at);
        let start = self.lines.get(line - 1).copied().unwrap_or_default();
        let column = self
            .text
            .get(start..at)
            .map_or(1, |before| before.chars().count() + 1);
        SettingsError::Syntax {
            path: self.path.to_path_buf(),
            line,
            column,
            problem: problem.lines().collect::<Vec<_>>().join(", "),
        }
    }
}

/// Dots in one line without quotes beyond which no key is meant: a table is built for each, so that a line of a
/// million would exhaust the stack. Says where.
fn check_depth(text: &str) -> Result<(), usize> {
    /// An array of addresses on one line has this many dots at most.
    const DOTS_MAX: usize = 1_024;
    let (mut dots, mut quoted) = (0, None);
    for (at, b) in text.bytes().enumerate() {
        match (b, quoted) {
            (b'\n', _) => (dots, quoted) = (0, None),
            (b'"' | b'\'', None) => quoted = Some(b),
            (b, Some(quote)) if b == quote => quoted = None,
            (b'.', None) => dots += 1,
            _ => {}
        }
        if dots > DOTS_MAX {
            return Err(at);
        }
    }
    Ok(())
}

/// A value given as text: TOML if it is that, else the text.
fn loose(text: &str, origin: Origin) -> Node {
    let content = match check_depth(text).map(|()| DeValue::parse(text)) {
        Ok(Ok(value)) => Reader::new(Path::new(""), text).value(value, "", 0).ok(),
        _ => None,
    };
    let string = || Content::Scalar {
        value: toml::Value::String(text.to_owned()),
        raw: None,
    };
    let content = match content.unwrap_or_else(string) {
        Content::Scalar { value, .. } if !value.is_str() => Content::Scalar {
            value,
            raw: Some(text.to_owned()),
        },
        other => other,
    };
    let mut node = Node { origin, content };
    own(&mut node);
    node
}

/// What is inside a value has its origin.
fn own(node: &mut Node) {
    let origin = node.origin.clone();
    let adopt = |inner: &mut Node| {
        inner.origin = origin.clone();
        own(inner);
    };
    match &mut node.content {
        Content::Scalar { .. } => {}
        Content::List(nodes) => nodes.iter_mut().for_each(adopt),
        Content::Table(nodes) => nodes.values_mut().for_each(adopt),
    }
}

/// A tree for each variable with the prefix, in the order of their names: a part of a table follows the table.
fn variables(
    prefix: &str,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Node>, SettingsError> {
    let prefix = format!("{prefix}__");
    let mut found: Vec<(OsString, OsString)> = environment
        .into_iter()
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        .collect();
    found.sort();
    found
        .into_iter()
        .map(|(name, value)| {
            let variable = name.to_string_lossy().into_owned();
            let refuse = |problem| SettingsError::Environment {
                variable: variable.clone(),
                problem,
            };
            let value = value.to_str().ok_or_else(|| refuse("its value is not UTF-8"))?;
            let name = name.to_str().ok_or_else(|| refuse("its name is not UTF-8"))?;
            let keys: Vec<String> = name[prefix.len()..].split("__").map(str::to_lowercase).collect();
            if keys.iter().any(String::is_empty) {
                return Err(refuse("a part of the key is empty"));
            }
            if keys.len() > KEY_DEPTH_MAX {
                return Err(refuse("the key has too many parts"));
            }
            let origin = Origin::Environment {
                variable: variable.clone(),
            };
            Ok(loose(value, origin).nested(&keys))
        })
        .collect()
}

/// The tree of one `--set key=value`. A key may have quoted parts, as in TOML: `attributes."example.org/rack"=b7`.
fn set(argument: &str) -> Result<Node, SettingsError> {
    let split = unquoted_equals(argument);
    let (key, value) = split.map_or((argument, None), |at| {
        (&argument[..at], Some(&argument[at + 1..]))
    });
    let refuse = |problem| SettingsError::Set {
        key: key.chars().take(64).collect(),
        problem,
    };
    let Some(value) = value else {
        // All of it may be a secret that was meant for somewhere else.
        return Err(SettingsError::Set {
            key: "…".into(),
            problem: "it has no =: write --set key=value",
        });
    };
    let keys =
        keys(key).ok_or_else(|| refuse("not a key: write it as in the file, nested ones as table.key"))?;
    if keys.len() > KEY_DEPTH_MAX {
        return Err(refuse("the key has too many parts"));
    }
    Ok(loose(value.trim(), Origin::Set).nested(&keys))
}

fn unquoted_equals(argument: &str) -> Option<usize> {
    let mut quoted = None;
    for (at, b) in argument.bytes().enumerate() {
        match (b, quoted) {
            (b'"' | b'\'', None) => quoted = Some(b),
            (b, Some(quote)) if b == quote => quoted = None,
            (b'=', None) => return Some(at),
            _ => {}
        }
    }
    None
}

/// The parts of a dotted key, by TOML's own rules.
fn keys(key: &str) -> Option<Vec<String>> {
    if key.bytes().any(|b| b.is_ascii_control()) || check_depth(key).is_err() {
        return None;
    }
    let text = format!("{key} = 0");
    let mut value = DeTable::parse(&text).ok()?.into_inner();
    let mut keys = Vec::new();
    loop {
        let mut entries = value.into_iter();
        let (Some((name, inner)), None) = (entries.next(), entries.next()) else {
            return None;
        };
        keys.push(name.into_inner().into_owned());
        match inner.into_inner() {
            DeValue::Table(table) => value = table,
            DeValue::Integer(_) => return Some(keys),
            _ => return None,
        }
    }
}
