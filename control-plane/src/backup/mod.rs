//! Owns backup and restore of a control plane: store, authority and first admin key as one file, and back. Never touches
//! the configuration, the audit log, or a state directory in use.
//!
//! A backup is a gzipped tar of mode 0600: `manifest.json` with the digest of everything else, then the files. It is taken
//! while the control plane serves. A restore checks all of it aside, raises the store's epoch, and only then changes places
//! with what was there ([`swap`]): whole or not at all, whatever moment it is cut off.

mod create;
mod restore;
pub(crate) mod swap;

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{create::create, restore::restore};
use crate::{
    app::{PKI_DIRECTORY, STORE_FILE, first_key::ADMIN_ENV_FILE},
    audit::AuditError,
    model::{Millis, StoreIdentity},
    pki::PkiError,
    store::{StoreError, typed::RecordError},
};

/// The first entry of a backup.
const MANIFEST: &str = "manifest.json";
/// Rises with every change of what a backup holds.
const FORMAT: u32 = 1;
/// Longest manifest, bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Most files of a backup.
const FILES_MAX: usize = 256;

/// Why there is no backup, or it is not restored. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("start threads")]
    Threads(#[source] io::Error),
    #[error("{} is there already: choose another name", .0.display())]
    Exists(PathBuf),
    #[error("there is no control plane's state in {}: it has no {STORE_FILE}", .0.display())]
    NoState(PathBuf),
    #[error("the authority changed {0} times while it was copied: try again")]
    Moving(u32),
    #[error("{} is in use by a control plane: stop it first", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} holds a control plane's state already: stop it and give --replace, which keeps that state aside, or \
         choose another state_dir",
        .0.display()
    )]
    Occupied(PathBuf),
    #[error("{} is no backup that can be restored: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("copy the store")]
    Store {
        #[from]
        source: StoreError,
    },
    #[error("read the store's identity")]
    Record {
        #[from]
        source: RecordError,
    },
    #[error("the backup's authority")]
    Pki {
        #[from]
        source: PkiError,
    },
    #[error("write the audit log")]
    Audit {
        #[from]
        source: AuditError,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_path_buf();
    move |source| BackupError::File { action, path, source }
}

/// What a backup holds, and of what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub format: u32,
    /// Of the program that made it.
    pub version: String,
    pub created_at: Millis,
    pub store_id: String,
    pub epoch: u64,
    pub revision: u64,
    pub files: Vec<FileEntry>,
}

/// One file, relative to the state directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    pub path: String,
    pub bytes: u64,
    /// Hex.
    pub sha256: String,
    /// Permission bits.
    pub mode: u32,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct Restored {
    pub manifest: Manifest,
    /// As the store has it now: the epoch is higher than any before.
    pub identity: StoreIdentity,
    /// Where the former state is.
    pub former: Option<PathBuf>,
}

/// Whether a name in a backup is one that belongs there: nothing else is ever written.
fn is_ours(path: &str) -> bool {
    if path == STORE_FILE || path == ADMIN_ENV_FILE {
        return true;
    }
    let plain = |part: &str| {
        !part.starts_with('.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let mut parts = Path::new(path).components();
    matches!(parts.next(), Some(Component::Normal(first)) if first == PKI_DIRECTORY)
        && path.split('/').count() > 1
        && path.split('/').all(|part| !part.is_empty() && plain(part))
}

/// Makes names durable.
fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_state_directory_holds_is_written() {
        for good in [
            "store.db",
            "admin.env",
            "pki/authority.key",
            "pki/next/authority.pem",
        ] {
            assert!(is_ours(good), "{good}");
        }
        for bad in [
            "pki",
            "pki/",
            "pki/../x",
            "/pki/x",
            "pki//x",
            "../store.db",
            "store.db/x",
            "lock",
            "audit.log",
            "",
            "pki/.hidden",
            "pki/a b",
            "./store.db",
        ] {
            assert!(!is_ours(bad), "{bad}");
        }
    }
}
