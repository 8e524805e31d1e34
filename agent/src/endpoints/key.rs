//! Owns the names of endpoints: made from a container's id with a key that only the agent has, so that nobody can guess one,
//! and the same for as long as the container lives.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use berth_agent_core::ids::ContainerId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of the key, and of a name, which is twice as many digits.
const KEY_BYTES: usize = 32;
const NAME_BYTES: usize = 16;
/// What is read of the file.
const FILE_BYTES_MAX: u64 = 4096;

/// Never shown.
pub(super) struct Key([u8; KEY_BYTES]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    port: u16,
    key: String,
}

impl Key {
    pub(super) fn new() -> Self {
        Self(rand::random())
    }

    /// Half of a digest of key and id: what is left out keeps it from being continued.
    pub(super) fn name(&self, container: &ContainerId) -> String {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(container.as_str())
            .finalize();
        hex::encode(&digest[..NAME_BYTES])
    }
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("endpoints.json")
}

/// None: there is none, or none that can be read, as after a crash in the middle of its writing.
pub(super) fn load(run_dir: &Path) -> io::Result<Option<(Key, u16)>> {
    use std::io::Read as _;
    let mut text = String::new();
    match fs::File::open(file(run_dir)) {
        Ok(file) => drop(file.take(FILE_BYTES_MAX).read_to_string(&mut text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(parse(&text))
}

fn parse(text: &str) -> Option<(Key, u16)> {
    let stored: Stored = serde_json::from_str(text).ok()?;
    let mut key = Key([0; KEY_BYTES]);
    hex::decode_to_slice(stored.key, &mut key.0).ok()?;
    Some((key, stored.port))
}

/// For root alone.
pub(super) fn store(run_dir: &Path, key: &Key, port: u16) -> io::Result<()> {
    let stored = Stored {
        port,
        key: hex::encode(key.0),
    };
    let new = run_dir.join("endpoints.json.new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    options.open(&new)?.write_all(&serde_json::to_vec(&stored)?)?;
    fs::rename(&new, file(run_dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_name_is_the_keys_and_the_containers() {
        let ids: [ContainerId; 2] = [1, 2].map(|n| format!("{n:032x}").parse().unwrap());
        let key = Key::new();
        assert_eq!(key.name(&ids[0]), key.name(&ids[0]));
        assert_ne!(key.name(&ids[0]), key.name(&ids[1]));
        assert_ne!(key.name(&ids[0]), Key::new().name(&ids[0]));
        assert_eq!(key.name(&ids[0]).len(), 32);
        assert!(!format!("{key:?}").contains(&hex::encode(key.0)));
    }

    #[test]
    fn it_is_kept_for_root_alone_and_a_broken_file_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        let key = Key::new();
        store(dir.path(), &key, 7).unwrap();
        let (kept, port) = load(dir.path()).unwrap().unwrap();
        assert_eq!((kept.0, port), (key.0, 7));
        let mode = fs::metadata(file(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for text in [
            "",
            "{}",
            r#"{"port": 1, "key": "00"}"#,
            r#"{"port": 70000, "key": ""}"#,
        ] {
            fs::write(file(dir.path()), text).unwrap();
            assert!(load(dir.path()).unwrap().is_none(), "{text}");
        }
    }
}
