//! Owns names of devices and of their kinds.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest qualified name, bytes.
const NAME_BYTES_MAX: usize = 255;

/// A kind of devices, `vendor/class`: `nvidia.com/gpu`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kind(Box<str>);

/// A device of a node, `vendor/class=name`: `nvidia.com/gpu=0`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    kind: Kind,
    name: Box<str>,
}

/// A text that names no device, or no kind of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form {1}")]
pub struct InvalidName(String, &'static str);

impl InvalidName {
    fn new(text: &str, form: &'static str) -> Self {
        Self(text.chars().take(NAME_BYTES_MAX).collect(), form)
    }
}

impl Kind {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl DeviceName {
    /// A device of that kind.
    ///
    /// # Errors
    /// The name is not 1 to 255 letters, digits and `_`, `-`, `.`, `:`, or does not begin and end with a letter or digit.
    pub fn new(kind: &Kind, name: &str) -> Result<Self, InvalidName> {
        let ends = |c: Option<u8>| c.is_some_and(|b| b.is_ascii_alphanumeric());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
        let fits = kind.0.len() + 1 + name.len() <= NAME_BYTES_MAX;
        let (first, last) = (name.bytes().next(), name.bytes().last());
        if fits && ends(first) && ends(last) && name.bytes().all(plain) {
            let (kind, name) = (kind.clone(), name.into());
            return Ok(Self { kind, name });
        }
        Err(InvalidName::new(name, "a device's name"))
    }

    pub fn kind(&self) -> &Kind {
        &self.kind
    }

    /// Without its kind.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Kind {
    type Err = InvalidName;

    /// A vendor of letters, digits, `_`, `-` and `.`, and a class of letters, digits, `_` and `-`; both begin with a letter
    /// and end with a letter or digit.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let part = |part: &str, more: &[u8]| {
            part.starts_with(|c: char| c.is_ascii_alphabetic())
                && part.ends_with(|c: char| c.is_ascii_alphanumeric())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
        };
        match text.split_once('/') {
            Some((vendor, class))
                if text.len() <= NAME_BYTES_MAX && part(vendor, b"_-.") && part(class, b"_-") =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(InvalidName::new(text, "vendor/class")),
        }
    }
}

impl FromStr for DeviceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let form = || InvalidName::new(text, "vendor/class=name");
        let (kind, name) = text.split_once('=').ok_or_else(form)?;
        Self::new(&kind.parse()?, name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.name)
    }
}

impl TryFrom<String> for Kind {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl TryFrom<String> for DeviceName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.0.into()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.to_string()
    }
}
