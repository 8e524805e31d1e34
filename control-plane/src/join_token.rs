//! Owns the form of a join token: `berth1.<id>.<secret>`. The secret is shown once and stored as its hash only; it is
//! never logged.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::TryRngCore;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Tells a token from other secrets, and its form from later ones.
const PREFIX: &str = "berth1";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;
/// Longest text that is looked at.
const TEXT_BYTES_MAX: usize = 256;

/// A token as its holder has it.
#[derive(Clone)]
pub struct Token {
    pub id: String,
    secret: String,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A fresh one; None if the system has no randomness to give.
    pub fn generate() -> Option<Self> {
        let (mut id, mut secret) = ([0_u8; ID_BYTES], [0_u8; SECRET_BYTES]);
        rand::rngs::OsRng.try_fill_bytes(&mut id).ok()?;
        rand::rngs::OsRng.try_fill_bytes(&mut secret).ok()?;
        Some(Self {
            id: hex::encode(id),
            secret: URL_SAFE_NO_PAD.encode(secret),
        })
    }

    /// None: this is no token.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let (id, secret) = text.strip_prefix(PREFIX)?.strip_prefix('.')?.split_once('.')?;
        let good = is_token_id(id) && URL_SAFE_NO_PAD.decode(secret).ok()?.len() == SECRET_BYTES;
        good.then(|| Self {
            id: id.into(),
            secret: secret.into(),
        })
    }

    /// What the operator is shown, once.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}.{}.{}", self.id, self.secret)
    }

    /// What is stored of the secret.
    pub fn secret_sha256(&self) -> String {
        hex::encode(Sha256::digest(&self.secret))
    }

    /// Whether this is the secret that was stored; takes as long either way.
    pub fn matches(&self, secret_sha256: &str) -> bool {
        self.secret_sha256()
            .as_bytes()
            .ct_eq(secret_sha256.as_bytes())
            .into()
    }
}

/// Whether this can be a token's id.
pub fn is_token_id(id: &str) -> bool {
    id.len() == 2 * ID_BYTES
        && id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_its_secret_is_not_printed() {
        let token = Token::generate().unwrap();
        let text = token.reveal();
        let read = Token::parse(&format!(" {text}\n")).unwrap();
        assert_eq!(read.id, token.id);
        assert!(read.matches(&token.secret_sha256()));
        assert!(!Token::generate().unwrap().matches(&token.secret_sha256()));
        assert!(!format!("{token:?}").contains(&token.secret));
        for wrong in [
            "",
            "berth1",
            "berth1.x.y",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace("berth1", "berth2"),
        ] {
            assert!(Token::parse(wrong).is_none(), "{wrong}");
        }
    }
}
