//! Owns how secrets lie on disk: whole or not at all, and for their owner alone. Never knows what is in them.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use super::PkiError;

const PRIVATE_FILE: u32 = 0o600;
const PUBLIC_FILE: u32 = 0o644;
const PRIVATE_DIRECTORY: u32 = 0o700;

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_path_buf();
    move |source| PkiError::File { action, path, source }
}

/// Makes a directory for its owner alone; one that is there stays as it is.
pub(super) fn create_directory(path: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(path)
        .map_err(at("create the directory", path))
}

pub(super) fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(at("read", path))
}

/// Reads a secret, and refuses one that others can read.
pub fn read_private(path: &Path) -> Result<String, PkiError> {
    let mode = fs::metadata(path).map_err(at("read", path))?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PkiError::Exposed {
            path: path.into(),
            mode,
        });
    }
    read(path)
}

/// Writes a secret for its owner alone. After a crash the file is the old one or the new one.
pub fn write_private(path: &Path, content: &str) -> Result<(), PkiError> {
    write(path, content, PRIVATE_FILE).map_err(at("write", path))
}

/// As [`write_private`], for all to read.
pub(super) fn write_public(path: &Path, content: &str) -> Result<(), PkiError> {
    write(path, content, PUBLIC_FILE).map_err(at("write", path))
}

fn write(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let partial = path.with_extension("partial");
    // Left by a crash, perhaps with another mode.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    let directory = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}
