//! Owns how an identity lies on the disk: three files that come and go as one. Whatever moment a write fails or the
//! power goes, there is none, the old one, or the new one, never a mixture. Never looks into a certificate more than
//! to read it.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::fcntl::{AT_FDCWD, Flock, FlockArg, OFlag, RenameFlags, openat, renameat2};
use nix::sys::stat::Mode;
use rustls::pki_types::CertificateDer;

use super::{Identity, IdentityError, Pem, certificate};

const CERTIFICATE: &str = "node.pem";
const KEY: &str = "node.key";
const AUTHORITY: &str = "authority.pem";
const PRIVATE_FILE: u32 = 0o600;
const PUBLIC_FILE: u32 = 0o644;
const PRIVATE_DIRECTORY: u32 = 0o700;
/// No file of an identity is near so large.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `STATE_DIR/identity` and what is beside it while it changes.
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    directory: PathBuf,
    /// For tests: how many steps of writing still work.
    #[cfg(test)]
    pub(super) steps_left: Option<std::sync::Arc<std::sync::atomic::AtomicI64>>,
}

/// Held while an identity changes: `register` and the running agent may both want to.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] Flock<fs::File>);

/// What there was of an identity's files.
#[derive(Clone, Debug)]
pub struct Before {
    /// Those of the directories above them that were missing, the innermost first.
    directories: Vec<PathBuf>,
    lock: bool,
    pending: bool,
}

impl IdentityFiles {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            directory: state_dir.join("identity"),
            #[cfg(test)]
            steps_left: None,
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The identity, if there is one.
    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        // Through one handle: the whole directory may be replaced between two files.
        let directory = match fs::File::open(&self.directory) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("open", &self.directory)(source)),
        };
        let read = |name: &str| {
            let path = self.directory.join(name);
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            let opened = openat(directory.as_fd(), name, flags, Mode::empty());
            let file = fs::File::from(opened.map_err(|e| self.failed("read", &path)(e.into()))?);
            let (text, since) = read_file(file, &path, name == KEY)?;
            Ok((Pem { path, text }, since))
        };
        let (certificate, since) = read(CERTIFICATE)?;
        Identity::from_files(certificate, read(KEY)?.0, &read(AUTHORITY)?.0, since).map(Some)
    }

    /// What there is before a change, for [`IdentityFiles::undo`].
    pub fn before(&self) -> Before {
        let missing = |path: &&Path| !path.exists();
        let above = self.directory.ancestors().skip(1);
        Before {
            directories: above.take_while(missing).map(Path::to_path_buf).collect(),
            lock: self.beside("lock").exists(),
            pending: self.beside("join").exists(),
        }
    }

    /// Takes away what was made since `before`, when nothing came of it.
    pub fn undo(&self, lock: Lock, before: &Before) -> Result<(), IdentityError> {
        if !before.pending {
            self.forget_pending(&lock)?;
        }
        if !before.lock {
            let path = self.beside("lock");
            remove_file(&path).map_err(self.failed("remove", &path))?;
        }
        drop(lock);
        for directory in &before.directories {
            match fs::remove_dir(directory) {
                // Somebody else has found a use for it.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                removed => ignore_missing(removed).map_err(self.failed("remove", directory))?,
            }
        }
        Ok(())
    }

    /// Waits for nobody.
    pub fn lock(&self) -> Result<Lock, IdentityError> {
        let path = self.beside("lock");
        if let Some(parent) = path.parent() {
            make_directory(parent).map_err(self.failed("make directory", parent))?;
        }
        loop {
            let file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(PRIVATE_FILE)
                .open(&path)
                .map_err(self.failed("open", &path))?;
            let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => lock,
                Err((_, nix::Error::EWOULDBLOCK)) => {
                    return Err(IdentityError::Busy {
                        directory: self.directory.clone(),
                    });
                }
                Err((_, error)) => return Err(self.failed("lock", &path)(error.into())),
            };
            // Who had it before may have taken the file away: the next command would lock another one.
            let held = lock.metadata().map_err(self.failed("look at", &path))?.ino();
            if fs::metadata(&path).is_ok_and(|named| named.ino() == held) {
                return Ok(Lock(lock));
            }
        }
    }

    /// The key of a join under way, PEM: made and stored at the first call, the same at each later one until an
    /// identity was installed. An answer that got lost is asked for again with the same key.
    pub fn pending_key(
        &self,
        _: &Lock,
        make: impl FnOnce() -> Result<String, IdentityError>,
    ) -> Result<String, IdentityError> {
        let directory = self.beside("join");
        let path = directory.join(KEY);
        match read_secret(&path) {
            // A join that was completed, but not tidied up: the key is taken.
            Ok(pem) if self.load().ok().flatten().is_some_and(|i| i.key_pem == pem) => {}
            Ok(pem) if rcgen::KeyPair::from_pem(&pem).is_ok() => return Ok(pem),
            Ok(_) => {
                tracing::warn!(path = %path.display(), "the key of an earlier join is damaged; a new one is made")
            }
            Err(IdentityError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(other),
        }
        let pem = make()?;
        let store = || -> io::Result<()> {
            self.step(|| remove_directory(&directory))?;
            self.step(|| make_directory(&directory))?;
            self.write(&path, &pem, PRIVATE_FILE)?;
            self.step(|| sync_directory(&directory))?;
            self.step(|| sync_parent(&directory))
        };
        store().map_err(self.failed("write", &path))?;
        Ok(pem)
    }

    /// The next join begins with another key.
    pub fn forget_pending(&self, _: &Lock) -> Result<(), IdentityError> {
        let directory = self.beside("join");
        remove_directory(&directory).map_err(self.failed("remove", &directory))
    }

    /// Puts a whole identity in place of what was there. With `keep` the old one stays beside it, under the name that is
    /// returned.
    pub fn install(
        &self,
        _: &Lock,
        certificate_pem: &str,
        key_pem: &str,
        authorities: &[CertificateDer<'_>],
        keep: bool,
    ) -> Result<Option<PathBuf>, IdentityError> {
        let staged = self.beside("new");
        let write = || -> io::Result<Option<PathBuf>> {
            self.step(|| remove_directory(&staged))?;
            self.step(|| make_directory(&staged))?;
            self.write(&staged.join(KEY), key_pem, PRIVATE_FILE)?;
            self.write(&staged.join(CERTIFICATE), certificate_pem, PUBLIC_FILE)?;
            self.write(
                &staged.join(AUTHORITY),
                &certificate::to_pem(authorities),
                PUBLIC_FILE,
            )?;
            self.step(|| sync_directory(&staged))?;
            let kept = self.replace(&staged, keep)?;
            self.step(|| sync_parent(&staged))?;
            Ok(kept)
        };
        let kept = write().map_err(self.failed("write", &self.directory))?;
        // The identity is in place: what cannot be tidied up now is at the next change.
        for left in [staged, self.beside("join")] {
            if let Err(error) = self.step(|| remove_directory(&left)) {
                tracing::warn!(path = %left.display(), %error, "cannot remove what is left of an earlier identity");
            }
        }
        Ok(kept)
    }

    fn replace(&self, staged: &Path, keep: bool) -> io::Result<Option<PathBuf>> {
        if !self.directory.exists() {
            self.step(|| fs::rename(staged, &self.directory))?;
            return Ok(None);
        }
        let mut kept = None;
        if keep {
            let seconds = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |t| t.as_secs());
            let aside = self.beside(&format!("old-{seconds}"));
            self.step(|| link_all(&self.directory, &aside))?;
            kept = Some(aside);
        }
        // Exchanged, so that there is never a moment without an identity.
        self.step(|| {
            let flags = RenameFlags::RENAME_EXCHANGE;
            Ok(renameat2(AT_FDCWD, staged, AT_FDCWD, &self.directory, flags)?)
        })?;
        Ok(kept)
    }

    /// Believes others from now on.
    pub fn store_authorities(
        &self,
        _: &Lock,
        authorities: &[CertificateDer<'_>],
    ) -> Result<(), IdentityError> {
        let path = self.directory.join(AUTHORITY);
        let partial = self.directory.join("authority.partial");
        let write = || -> io::Result<()> {
            self.step(|| remove_file(&partial))?;
            self.write(&partial, &certificate::to_pem(authorities), PUBLIC_FILE)?;
            self.step(|| fs::rename(&partial, &path))?;
            self.step(|| sync_directory(&self.directory))
        };
        write().map_err(self.failed("write", &path))
    }

    fn write(&self, path: &Path, content: &str, mode: u32) -> io::Result<()> {
        let mut file = None;
        self.step(|| {
            let made = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path);
            file = Some(made?);
            Ok(())
        })?;
        let Some(mut file) = file else { return Ok(()) };
        self.step(|| file.write_all(content.as_bytes()))?;
        self.step(|| file.sync_all())
    }

    /// Every change of the disk goes through here, so that tests can end the writing at each.
    fn step<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        #[cfg(test)]
        if let Some(left) = &self.steps_left
            && left.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) <= 0
        {
            return Err(io::Error::other("no step left"));
        }
        work()
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.directory.with_file_name(format!("identity.{what}"))
    }

    fn failed(&self, action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
        failed(action, path)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError + use<> {
    let path = path.to_path_buf();
    move |source| IdentityError::File { action, path, source }
}

pub(super) fn read_text(path: &Path) -> Result<String, IdentityError> {
    let file = fs::File::open(path).map_err(failed("read", path))?;
    Ok(read_file(file, path, false)?.0)
}

/// Refuses a file that others can read.
pub(super) fn read_secret(path: &Path) -> Result<String, IdentityError> {
    let file = fs::File::open(path).map_err(failed("read", path))?;
    Ok(read_file(file, path, true)?.0)
}

fn read_file(file: fs::File, path: &Path, secret: bool) -> Result<(String, SystemTime), IdentityError> {
    let metadata = file.metadata().map_err(failed("read", path))?;
    let mode = metadata.mode() & 0o7777;
    if secret && mode & 0o077 != 0 {
        return Err(IdentityError::Exposed {
            path: path.into(),
            mode,
        });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(failed("read", path))?;
    Ok((text, metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)))
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(path)
}

fn remove_directory(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_dir_all(path))
}

fn remove_file(path: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(path))
}

fn ignore_missing(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    remove_directory(to)?;
    make_directory(to)?;
    for name in [KEY, CERTIFICATE, AUTHORITY] {
        ignore_missing(fs::hard_link(from.join(name), to.join(name)))?;
    }
    sync_directory(to)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests;
