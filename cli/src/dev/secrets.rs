//! Owns the access keys and the node's id: random, made once per state directory, readable by root only.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;

use super::DevError;
use super::environment::DevEnvironment;
use crate::endpoint::{DEFAULT_REGION, Keys};

/// AWS's access key ids have 20 characters, secrets 40.
const ACCESS_KEY_DIGITS: usize = 15;
const SECRET_DIGITS: usize = 40;
/// Five bits each: no shell treats one of them specially.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The keys of this state directory, made if there are none.
pub fn keys(path: &Path) -> Result<Keys, DevError> {
    match std::fs::read_to_string(path) {
        Ok(text) => match DevEnvironment::parse(&text) {
            Ok(known) => Ok(known.keys),
            Err(source) => Err(DevError::Secrets {
                path: path.into(),
                source,
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let keys = Keys {
                access_key_id: format!("BERTH{}", random(ACCESS_KEY_DIGITS)?),
                secret_access_key: random(SECRET_DIGITS)?,
                session_token: None,
            };
            // One format for both files; the address in this one is not used.
            let kept = DevEnvironment {
                endpoint_url: "-".into(),
                region: DEFAULT_REGION.into(),
                keys: keys.clone(),
                ca_file: None,
            };
            write_private(path, &kept.render())?;
            Ok(keys)
        }
        Err(source) => Err(DevError::Path {
            path: path.into(),
            source,
        }),
    }
}

/// The id of this state directory's node, made if there is none: 32 hexadecimal digits.
pub fn node_id(path: &Path) -> Result<String, DevError> {
    match std::fs::read_to_string(path) {
        Ok(id) if crate::ids::is_whole(id.trim()) => Ok(id.trim().to_owned()),
        Ok(_) => renew_node_id(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => renew_node_id(path),
        Err(source) => Err(DevError::Path {
            path: path.into(),
            source,
        }),
    }
}

/// Another id in its place.
pub fn renew_node_id(path: &Path) -> Result<String, DevError> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    write_private(path, &id)?;
    Ok(id)
}

fn random(digits: usize) -> Result<String, DevError> {
    let mut bytes = vec![0; digits];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| DevError::Random { source: error.into() })?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect())
}

/// Writes a file that only its owner may read; complete or not at all.
pub fn write_private(path: &Path, content: &str) -> Result<(), DevError> {
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)
    };
    written().map_err(DevError::path(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.env");
        let first = keys(&path).unwrap();
        assert_eq!(keys(&path).unwrap(), first);
        assert_eq!(
            (first.access_key_id.len(), first.secret_access_key.len()),
            (20, 40)
        );
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_ne!(keys(&dir.path().join("other.env")).unwrap(), first);
    }

    #[test]
    fn damaged_keys_are_not_silently_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.env");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(keys(&path), Err(DevError::Secrets { .. })));
    }

    #[test]
    fn a_node_keeps_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let id = node_id(&path).unwrap();
        assert!(crate::ids::is_whole(&id));
        assert_eq!(node_id(&path).unwrap(), id);
    }
}
