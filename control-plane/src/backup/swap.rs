//! Owns the one step of a restore that changes anything: the checked files, ready in a directory of their own, take the
//! places of the former ones. Renaming that directory decides it; what comes after is repeated by whoever looks next,
//! until it is done. Never reads what it moves.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BackupError, at, sync_directory};
use crate::app::{PKI_DIRECTORY, STORE_FILE, first_key::ADMIN_ENV_FILE};

/// Being filled: worth nothing.
pub(super) const STAGING: &str = "restore-staging";
/// Filled, checked, and decided.
const READY: &str = "restore-ready";
const PLAN: &str = "plan.json";
const PRIVATE: u32 = 0o700;

#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    /// Where what was there goes, in the state directory.
    former: String,
    /// What takes its place.
    new: Vec<String>,
}

/// What is moved, in this order: the write-ahead log must not outlive the database it belongs to.
fn managed() -> [String; 5] {
    [
        format!("{STORE_FILE}-wal"),
        format!("{STORE_FILE}-shm"),
        STORE_FILE.into(),
        PKI_DIRECTORY.into(),
        ADMIN_ENV_FILE.into(),
    ]
}

/// Whether a state directory holds a control plane's state.
pub(super) fn is_occupied(state: &Path) -> bool {
    [STORE_FILE, PKI_DIRECTORY]
        .iter()
        .any(|name| state.join(name).symlink_metadata().is_ok())
}

/// From here on the restore is done: what is in the staging directory becomes the state. The former state goes to `former`,
/// a name in the state directory.
pub(super) fn decide(state: &Path, former: &str) -> Result<(), BackupError> {
    let staging = state.join(STAGING);
    let plan = staging.join(PLAN);
    let new = managed()
        .into_iter()
        .filter(|name| staging.join(name).exists())
        .collect();
    let former = former.into();
    let text = serde_json::json!(Plan { former, new }).to_string();
    let write = || -> io::Result<()> {
        fs::write(&plan, text)?;
        fs::File::open(&plan)?.sync_all()?;
        sync_directory(&staging)?;
        fs::rename(&staging, state.join(READY))?;
        sync_directory(state)
    };
    write().map_err(at("decide the restore in", &staging))
}

/// Does what was decided, if anything was; for who holds the state directory's lock. Returns where the former state is.
pub(crate) fn finish(state: &Path) -> Result<Option<PathBuf>, BackupError> {
    let ready = state.join(READY);
    let text = match fs::read_to_string(ready.join(PLAN)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without a plan there is nothing left in it to move.
            return match fs::remove_dir_all(&ready) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", &ready)(error)),
                _ => Ok(None),
            };
        }
        Err(error) => return Err(at("read", &ready.join(PLAN))(error)),
    };
    let plan: Plan =
        serde_json::from_str(&text).map_err(|error| at("read", &ready.join(PLAN))(error.into()))?;
    let former = state.join(&plan.former);
    exchange(state, &ready, &former, &plan.new).map_err(at("finish the restore in", state))?;
    Ok(Some(former).filter(|former| former.is_dir()))
}

fn exchange(state: &Path, ready: &Path, former: &Path, new: &[String]) -> io::Result<()> {
    // As long as the new store waits, what stands in a place whose successor waits, or that has none, is the former.
    if ready.join(STORE_FILE).exists() {
        for name in managed() {
            let waits = ready.join(&name).symlink_metadata().is_ok();
            let is_former = waits || !new.contains(&name);
            if is_former && state.join(&name).symlink_metadata().is_ok() {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(PRIVATE)
                    .create(former)?;
                fs::rename(state.join(&name), former.join(&name))?;
            }
        }
        if former.is_dir() {
            sync_directory(former)?;
        }
        sync_directory(state)?;
    }
    // The store last: that it waits says that the former ones may still be there.
    for name in [PKI_DIRECTORY, ADMIN_ENV_FILE, STORE_FILE] {
        let from = ready.join(name);
        if from.symlink_metadata().is_ok() {
            fs::rename(&from, state.join(name))?;
        }
    }
    sync_directory(state)?;
    fs::remove_dir_all(ready)?;
    sync_directory(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: [&str; 4] = ["store.db", "store.db-wal", "pki/authority.key", "admin.env"];

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A former state, and a new one, decided.
    fn decided() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in OLD {
            put(&dir.path().join(name), "old");
        }
        for name in ["store.db", "pki/authority.key"] {
            put(&dir.path().join(STAGING).join(name), "new");
        }
        decide(dir.path(), "former-1").unwrap();
        dir
    }

    fn is_done(state: &Path) {
        let text = |name: &str| fs::read_to_string(state.join(name)).ok();
        assert_eq!(text("store.db").as_deref(), Some("new"));
        assert_eq!(text("pki/authority.key").as_deref(), Some("new"));
        assert_eq!((text("store.db-wal"), text("admin.env")), (None, None));
        for name in OLD {
            assert_eq!(
                text(&format!("former-1/{name}")).as_deref(),
                Some("old"),
                "{name}"
            );
        }
        assert!(!state.join(READY).exists());
    }

    #[test]
    fn the_new_state_takes_the_place_of_the_former_which_is_kept() {
        let dir = decided();
        assert_eq!(finish(dir.path()).unwrap(), Some(dir.path().join("former-1")));
        is_done(dir.path());
        assert_eq!(finish(dir.path()).unwrap(), None);
    }

    /// Each rename, done or not: whatever was, the next look ends in the same place.
    #[test]
    fn whatever_moment_it_is_cut_off_the_next_look_finishes_it() {
        let away: [&str; 4] = ["store.db-wal", "store.db", "pki", "admin.env"];
        for cut in 0..=away.len() {
            let dir = decided();
            let (state, former) = (dir.path(), dir.path().join("former-1"));
            fs::create_dir_all(&former).unwrap();
            for name in &away[..cut] {
                fs::rename(state.join(name), former.join(name)).unwrap();
            }
            finish(state).unwrap();
            is_done(state);
        }
        for cut in 1..=2 {
            let dir = decided();
            let (state, former) = (dir.path(), dir.path().join("former-1"));
            fs::create_dir_all(&former).unwrap();
            for name in away {
                fs::rename(state.join(name), former.join(name)).unwrap();
            }
            for name in &["pki", "store.db"][..cut] {
                fs::rename(state.join(READY).join(name), state.join(name)).unwrap();
            }
            finish(state).unwrap();
            is_done(state);
        }
    }
}
