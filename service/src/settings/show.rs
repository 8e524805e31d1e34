//! Owns how settings are shown: every one, one line each, as TOML that can be read back; secrets are not shown.

use serde::Serialize;

use super::{
    Loaded, Origin,
    tree::{child, pattern},
};

/// In place of a secret.
const REDACTED: &str = "(secret)";

impl<T: Serialize> Loaded<T> {
    /// All settings that have a value, defaults among them, with dotted keys; with who decided each, as a comment.
    ///
    /// # Errors
    /// A type that TOML cannot express.
    pub fn show(&self, with_origin: bool) -> Result<String, toml::ser::Error> {
        let table = toml::Table::try_from(&self.value)?;
        let mut lines = Vec::new();
        self.flatten("", &table, &mut lines);
        let mut text = String::new();
        for (line, origin) in lines {
            text.push_str(&line);
            if with_origin {
                text.push_str(&format!("  # {origin}"));
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn flatten(&self, key: &str, table: &toml::Table, lines: &mut Vec<(String, Origin)>) {
        for (name, value) in table {
            let key = child(key, name);
            match value {
                toml::Value::Table(inner) if !inner.is_empty() => self.flatten(&key, inner, lines),
                value => {
                    let shown = self.redacted(&key, value);
                    lines.push((format!("{key} = {shown}"), self.origin(&key)));
                }
            }
        }
    }

    fn redacted(&self, key: &str, value: &toml::Value) -> toml::Value {
        if self.secrets.contains(&pattern(key).as_str()) {
            return toml::Value::String(REDACTED.into());
        }
        match value {
            toml::Value::Array(elements) => {
                let element = |(at, element)| self.redacted(&format!("{key}[{at}]"), element);
                toml::Value::Array(elements.iter().enumerate().map(element).collect())
            }
            toml::Value::Table(fields) => {
                let field =
                    |(name, value): (&String, _)| (name.clone(), self.redacted(&child(key, name), value));
                toml::Value::Table(fields.iter().map(field).collect())
            }
            other => other.clone(),
        }
    }
}
