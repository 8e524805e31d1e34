//! Owns how a backup is made, beside a control plane that serves. Never leaves half of one under the name it was asked
//! for.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use super::{BackupError, FORMAT, FileEntry, MANIFEST, Manifest, at, sync_directory};
use crate::{
    app::{PKI_DIRECTORY, STORE_FILE, first_key::ADMIN_ENV_FILE},
    config::Config,
    link::now,
    store::sqlite,
};

const PRIVATE: u32 = 0o600;
/// Longest file of an authority, or of an admin key.
const SECRET_BYTES_MAX: u64 = 1 << 20;
/// How often the authority is read again because it changed while the store was copied.
const ATTEMPTS_MAX: u32 = 5;

/// Backs the control plane of `config` up into a new file, which is on disk when this returns. Blocks.
pub fn create(config: &Config, to: &Path) -> Result<Manifest, BackupError> {
    let state = &config.state_dir;
    if !state.join(STORE_FILE).is_file() {
        return Err(BackupError::NoState(state.clone()));
    }
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.into()));
    }
    let taken = take(state, to)?;
    let archive = Scratch::new(to, "partial")?;
    let manifest = taken.manifest();
    write(&archive.0, &manifest, &taken).map_err(at("write", &archive.0))?;
    publish(&archive.0, to)?;
    Ok(manifest)
}

/// What goes into a backup. Nothing of it is read from the state directory again: that may have moved on.
#[derive(Debug)]
struct Taken {
    /// Beside the target: it has the room, and a rename cannot fail for being another file system.
    copy: Scratch,
    store: FileEntry,
    secrets: Vec<Secret>,
    facts: sqlite::CopyFacts,
}

/// A file that is small and has to fit the others.
#[derive(PartialEq, Eq)]
struct Secret {
    entry: FileEntry,
    content: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.entry.fmt(f)
    }
}

impl Taken {
    fn manifest(&self) -> Manifest {
        let secrets = self.secrets.iter().map(|secret| &secret.entry);
        Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            created_at: now(),
            store_id: self.facts.identity.store_id.clone(),
            epoch: self.facts.identity.epoch,
            revision: self.facts.revision,
            files: std::iter::once(&self.store).chain(secrets).cloned().collect(),
        }
    }
}

/// A copy of the store, and the files that were the same before and after it was made.
fn take(state: &Path, to: &Path) -> Result<Taken, BackupError> {
    let copy = Scratch::new(to, "store")?;
    let mut before = secrets(state)?;
    for _ in 0..ATTEMPTS_MAX {
        fs::write(&copy.0, b"").map_err(at("write", &copy.0))?;
        let facts = sqlite::copy(&state.join(STORE_FILE), &copy.0)?;
        let after = secrets(state)?;
        if before.is_some() && before == after {
            let store = entry(&copy.0, STORE_FILE)?;
            return Ok(Taken {
                copy,
                store,
                secrets: after.unwrap_or_default(),
                facts,
            });
        }
        before = after;
    }
    Err(BackupError::Moving(ATTEMPTS_MAX))
}

/// The authority's files, and the first admin key's. None: one went away while they were read.
fn secrets(state: &Path) -> Result<Option<Vec<Secret>>, BackupError> {
    let mut names = Vec::new();
    let mut directories = vec![PKI_DIRECTORY.to_owned()];
    while let Some(directory) = directories.pop() {
        let path = state.join(&directory);
        for found in fs::read_dir(&path).map_err(at("read", &path))? {
            let found = found.map_err(at("read", &path))?;
            let name = format!("{directory}/{}", found.file_name().to_string_lossy());
            let kind = found.file_type().map_err(at("read", &found.path()))?;
            if kind.is_dir() {
                directories.push(name);
            } else if kind.is_file() && super::is_ours(&name) && !name.ends_with(".partial") {
                names.push(name);
            }
        }
    }
    if state.join(ADMIN_ENV_FILE).is_file() {
        names.push(ADMIN_ENV_FILE.to_owned());
    }
    names.sort();
    let mut secrets = Vec::new();
    for name in names {
        let path = state.join(&name);
        match secret(&path, name) {
            Ok(secret) => secrets.push(secret),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("read", &path)(error)),
        }
    }
    Ok(Some(secrets))
}

fn secret(path: &Path, name: String) -> io::Result<Secret> {
    let mut file = fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    let mut content = Vec::new();
    (&mut file).take(SECRET_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > SECRET_BYTES_MAX {
        let text = format!("it is longer than {SECRET_BYTES_MAX} bytes: no file of the control plane's");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let entry = FileEntry {
        path: name,
        bytes: content.len() as u64,
        sha256: hex::encode(Sha256::digest(&content)),
        mode,
    };
    Ok(Secret { entry, content })
}

fn entry(path: &Path, name: &str) -> Result<FileEntry, BackupError> {
    let read = || -> io::Result<FileEntry> {
        let mut file = fs::File::open(path)?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 << 10]);
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            bytes += count as u64;
        }
        Ok(FileEntry {
            path: name.to_owned(),
            bytes,
            sha256: hex::encode(hash.finalize()),
            mode,
        })
    };
    read().map_err(at("read", path))
}

fn write(path: &Path, manifest: &Manifest, taken: &Taken) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).truncate(true).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    let text = serde_json::to_vec_pretty(manifest)?;
    let header = |bytes: u64, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(mode);
        header.set_mtime(u64::try_from(manifest.created_at / 1_000).unwrap_or(0));
        header
    };
    archive.append_data(&mut header(text.len() as u64, PRIVATE), MANIFEST, text.as_slice())?;
    let store = fs::File::open(&taken.copy.0)?;
    let mut add = |entry: &FileEntry, content: &mut dyn Read| {
        archive.append_data(&mut header(entry.bytes, entry.mode), &entry.path, content)
    };
    add(&taken.store, &mut &store)?;
    for secret in &taken.secrets {
        add(&secret.entry, &mut secret.content.as_slice())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

/// Gives the file its name, unless somebody else was faster.
fn publish(from: &Path, to: &Path) -> Result<(), BackupError> {
    let named = match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackupError::Exists(to.into()));
        }
        // A file system without hard links.
        Err(_) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(error) => Err(error),
    };
    named.map_err(at("write", to))?;
    let directory = to
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    sync_directory(directory).map_err(at("sync", directory))
}

/// A private file beside the target, gone when this is.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(beside: &Path, what: &str) -> Result<Self, BackupError> {
        let mut name = beside.as_os_str().to_owned();
        name.push(format!(".{}.{what}", std::process::id()));
        let path = PathBuf::from(name);
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&path)
            .map_err(at("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_file(&self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backup::restore,
        pki::Authorities,
        store::{sqlite::SqliteStore, typed},
    };

    #[tokio::test]
    async fn an_authority_that_is_replaced_meanwhile_spoils_no_backup() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let to = dir.path().join("backup");
        fs::create_dir(&state).unwrap();
        let store = SqliteStore::open(state.join(STORE_FILE)).unwrap();
        typed::identity(&store).await.unwrap();
        let authorities = Authorities::load_or_create(&state.join(PKI_DIRECTORY)).unwrap();
        let first = authorities.certificate_pem();
        let taken = take(&state, &to).unwrap();
        authorities.begin().unwrap();
        authorities.activate().unwrap();
        authorities.finish().unwrap();
        fs::write(&to, b"").unwrap();
        write(&to, &taken.manifest(), &taken).unwrap();
        store.close().await;
        let other = dir.path().join("other");
        restore(&Config::new(&other, vec![]), &to, false).await.unwrap();
        let restored = Authorities::load_or_create(&other.join(PKI_DIRECTORY)).unwrap();
        assert_eq!(restored.certificate_pem(), first);
        assert!(format!("{taken:?}").contains("authority.key"));
        assert!(
            !format!("{taken:?}").contains("content"),
            "no key is ever printed"
        );
    }
}
