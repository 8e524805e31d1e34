//! Owns content digests (OCI image spec, descriptor.md): parsing and checking. Never reads content itself.

use std::{fmt, str::FromStr};

use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha512};

/// `sha256:` or `sha512:` and lower-case hex of the right length: safe in URLs, labels and keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Digest(Box<str>);

/// A digest that is none, or of an algorithm that is not supported.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a sha256 or sha512 digest")]
pub(super) struct InvalidDigest(String);

impl Digest {
    /// The sha256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::new_with_prefix(bytes))
    }

    /// The digest of everything a hasher was fed.
    pub fn from_sha256(hasher: Sha256) -> Self {
        Self(format!("sha256:{}", hex::encode(hasher.finalize())).into())
    }

    /// What `bytes` hash to in this digest's own algorithm.
    pub fn same_algorithm(&self, bytes: &[u8]) -> Self {
        match self.0.split_once(':') {
            Some(("sha512", _)) => Self(format!("sha512:{}", hex::encode(Sha512::digest(bytes))).into()),
            _ => Self::of(bytes),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digits = match text.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => hex,
            Some(("sha512", hex)) if hex.len() == 128 => hex,
            _ => return Err(InvalidDigest(excerpt(text))),
        };
        if digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDigest(excerpt(text)))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        text.parse()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The first 160 characters: foreign text goes into messages only in this form.
pub(super) fn excerpt(text: &str) -> String {
    const SHOWN_CHARS: usize = 160;
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(SHOWN_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lower_case_digests_parse() {
        let good = format!("sha256:{}", "a0".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().as_str(), good);
        for bad in [
            "",
            "sha256:",
            "sha256:zz",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &good.to_uppercase(),
            &format!("{good}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn content_is_checked_in_its_own_algorithm() {
        let sha512: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(sha512.same_algorithm(b"x").as_str().starts_with("sha512:"));
        assert_eq!(
            Digest::of(b"").as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
