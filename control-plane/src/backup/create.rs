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
    // Beside the target: it has the room, and a rename cannot fail for being another file system.
    let copy = Scratch::new(to, "store")?;
    let archive = Scratch::new(to, "partial")?;
    let (secrets, facts) = consistent(state, &copy.0)?;
    let mut files = vec![(copy.0.clone(), entry(&copy.0, STORE_FILE)?)];
    files.extend(secrets);
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        created_at: now(),
        store_id: facts.identity.store_id,
        epoch: facts.identity.epoch,
        revision: facts.revision,
        files: files.iter().map(|(_, entry)| entry.clone()).collect(),
    };
    write(&archive.0, &manifest, &files).map_err(at("write", &archive.0))?;
    publish(&archive.0, to)?;
    Ok(manifest)
}

type Files = Vec<(PathBuf, FileEntry)>;

/// A copy of the store, and the files that were the same before and after it was made.
fn consistent(state: &Path, copy: &Path) -> Result<(Files, sqlite::CopyFacts), BackupError> {
    let mut before = secrets(state)?;
    for _ in 0..ATTEMPTS_MAX {
        fs::write(copy, b"").map_err(at("write", copy))?;
        let facts = sqlite::copy(&state.join(STORE_FILE), copy)?;
        let after = secrets(state)?;
        if before == after {
            return Ok((after, facts));
        }
        before = after;
    }
    Err(BackupError::Moving(ATTEMPTS_MAX))
}

/// The authority's files, and the first admin key's.
fn secrets(state: &Path) -> Result<Files, BackupError> {
    let mut files = Vec::new();
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
                files.push((found.path(), entry(&found.path(), &name)?));
            }
        }
    }
    let admin = state.join(ADMIN_ENV_FILE);
    if admin.is_file() {
        files.push((admin.clone(), entry(&admin, ADMIN_ENV_FILE)?));
    }
    files.sort();
    Ok(files)
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

fn write(path: &Path, manifest: &Manifest, files: &Files) -> io::Result<()> {
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
    for (source, entry) in files {
        // What grew meanwhile would not fit its digest; what shrank is an error of the builder.
        let content = fs::File::open(source)?.take(entry.bytes);
        archive.append_data(&mut header(entry.bytes, entry.mode), &entry.path, content)?;
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
