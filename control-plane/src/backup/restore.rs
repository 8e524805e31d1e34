//! Owns how a backup becomes the state of a control plane that is not running: unpacked aside, checked in every part, its
//! epoch raised, then put in place ([`super::swap`]). Never overwrites: the former state is kept beside it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, macros::format_description};

use super::{
    BackupError, FILES_MAX, FORMAT, FileEntry, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Restored, at, is_ours,
    swap, sync_directory,
};
use crate::{
    app::{LOCK_FILE, PKI_DIRECTORY, STORE_FILE, lock_state},
    audit::{AUDIT_FILE, Audit, Event, Outcome},
    config::Config,
    model::StoreIdentity,
    pki::{Authorities, KEY_FILE, STATE_FILE},
    store::{
        Store, Transaction,
        sqlite::SqliteStore,
        typed::{self, IDENTITY_KEY},
    },
};

const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIRECTORY: u32 = 0o700;

/// Restores a backup into the state directory of `config`, which no control plane may use meanwhile. State that is there
/// is a refusal unless `replace`, and then kept beside.
pub async fn restore(config: &Config, from: &Path, replace: bool) -> Result<Restored, BackupError> {
    let state = &config.state_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY)
        .create(state)
        .map_err(at("create the state directory", state))?;
    let _lock = lock_state(state)
        .map_err(at("lock", state))?
        .ok_or_else(|| BackupError::InUse(state.clone()))?;
    owned_alike(state, &state.join(LOCK_FILE)).map_err(at("give away", &state.join(LOCK_FILE)))?;
    // One that was decided is done, whatever is asked now.
    swap::finish(state)?;
    if swap::is_occupied(state) && !replace {
        return Err(BackupError::Occupied(state.clone()));
    }
    let staging = Staging::new(state)?;
    let manifest = unpack(from, &staging.0)?;
    let identity = check(from, &staging.0, &manifest, current(state).await).await?;
    owned_alike(state, &staging.0).map_err(at("give away the files in", &staging.0))?;
    swap::decide(state, &former_name(state))?;
    let former = swap::finish(state)?;
    record(state, &manifest, &identity).await?;
    Ok(Restored {
        manifest,
        identity,
        former,
    })
}

/// What is filled, and gone unless it was decided.
#[derive(Debug)]
struct Staging(PathBuf);

impl Staging {
    fn new(state: &Path) -> Result<Self, BackupError> {
        let path = state.join(swap::STAGING);
        // Of a restore that was cut off before it was decided.
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("remove", &path)(error)),
            _ => {}
        }
        fs::DirBuilder::new()
            .mode(PRIVATE_DIRECTORY)
            .create(&path)
            .map_err(at("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

/// Writes what the backup holds, every file whole and with its digest; all of it on disk.
fn unpack(from: &Path, to: &Path) -> Result<Manifest, BackupError> {
    let damaged = |problem: String| BackupError::Damaged {
        path: from.into(),
        problem,
    };
    let file = fs::File::open(from).map_err(at("open", from))?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let unreadable = |error: io::Error| damaged(format!("it cannot be read to its end: {error}"));
    let mut entries = archive.entries().map_err(unreadable)?;
    let first = entries.next().ok_or_else(|| damaged("it is empty".into()))?;
    let manifest = read_manifest(first.map_err(unreadable)?).map_err(damaged)?;
    let mut expected: BTreeMap<&str, &FileEntry> = BTreeMap::new();
    for file in &manifest.files {
        if !is_ours(&file.path) || expected.insert(&file.path, file).is_some() {
            return Err(damaged(format!("{:?} does not belong there", file.path)));
        }
    }
    for entry in entries {
        let mut entry = entry.map_err(unreadable)?;
        let name = entry.path().map_err(unreadable)?.to_string_lossy().into_owned();
        let file = expected
            .remove(name.as_str())
            .filter(|file| entry.header().entry_type().is_file() && entry.size() == file.bytes)
            .ok_or_else(|| damaged(format!("{name:?} is not what the manifest says")))?;
        write(&mut entry, file, &to.join(&file.path)).map_err(damaged)?;
    }
    // The end of the archive is not the end of the file: the checksum of the whole comes last.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(unreadable)?;
    if let Some(name) = expected.keys().next() {
        return Err(damaged(format!("{name} is missing")));
    }
    Ok(manifest)
}

fn read_manifest(entry: tar::Entry<'_, impl Read>) -> Result<Manifest, String> {
    let name = entry.path().map(|path| path.to_string_lossy().into_owned());
    if !name.is_ok_and(|name| name == MANIFEST) || entry.size() > MANIFEST_BYTES_MAX {
        return Err("it does not begin with a manifest".into());
    }
    let mut text = Vec::new();
    entry
        .take(MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let found: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    // Before the rest of a manifest that may look different.
    if found["format"] != FORMAT {
        let (format, version) = (&found["format"], &found["version"]);
        return Err(format!(
            "it has format {format}, made by version {version}; this program knows {FORMAT}: use that version"
        ));
    }
    let manifest: Manifest =
        serde_json::from_value(found).map_err(|error| format!("its manifest cannot be read: {error}"))?;
    let has = |name: &str| manifest.files.iter().any(|file| file.path == name);
    if !has(STORE_FILE) {
        return Err(format!("its manifest has no {STORE_FILE}"));
    }
    // Else the check would make an authority that no node knows, and find it good.
    let [state, key] = [STATE_FILE, KEY_FILE].map(|name| format!("{PKI_DIRECTORY}/{name}"));
    if !has(&state) && !has(&key) {
        return Err("its manifest has no authority".into());
    }
    if manifest.files.len() > FILES_MAX {
        return Err(format!("its manifest names more than {FILES_MAX} files"));
    }
    Ok(manifest)
}

fn write(entry: &mut impl Read, file: &FileEntry, to: &Path) -> Result<(), String> {
    let mut copy = || -> io::Result<String> {
        if let Some(directory) = to.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(PRIVATE_DIRECTORY)
                .create(directory)?;
        }
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            // At most what such a file may have, whatever the backup says.
            .mode(if to.extension().is_some_and(|kind| kind == "pem") {
                0o644
            } else {
                PRIVATE_FILE
            })
            .open(to)?;
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            let count = entry.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            out.write_all(&buffer[..count])?;
        }
        out.sync_all()?;
        if let Some(directory) = to.parent() {
            sync_directory(directory)?;
        }
        Ok(hex::encode(hash.finalize()))
    };
    let digest = copy().map_err(|error| format!("{} cannot be unpacked: {error}", file.path))?;
    if digest == file.sha256 {
        Ok(())
    } else {
        Err(format!(
            "{} does not have the digest that the manifest says",
            file.path
        ))
    }
}

/// The identity of the state in place, as far as it can still be read: nodes may have seen its epoch.
async fn current(state: &Path) -> Option<StoreIdentity> {
    let path = state.join(STORE_FILE);
    if !path.is_file() {
        return None;
    }
    let store = SqliteStore::open(&path).ok()?;
    let found = typed::get_json::<StoreIdentity>(&store, IDENTITY_KEY).await;
    store.close().await;
    Some(found.ok()??.value)
}

/// Opens what was unpacked as a control plane would, and raises the epoch.
async fn check(
    from: &Path,
    staging: &Path,
    manifest: &Manifest,
    current: Option<StoreIdentity>,
) -> Result<StoreIdentity, BackupError> {
    Authorities::load_or_create(&staging.join(PKI_DIRECTORY))?;
    let path = staging.join(STORE_FILE);
    let store = SqliteStore::open(&path)?;
    let raised = raise(&store, manifest, current).await;
    store.close().await;
    // Closed for good it leaves no log behind; one that is there would be lost.
    let log = staging.join(format!("{STORE_FILE}-wal"));
    if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Err(at("write back", &log)(io::ErrorKind::ResourceBusy.into()));
    }
    for name in ["-wal", "-shm"] {
        fs::remove_file(staging.join(format!("{STORE_FILE}{name}"))).ok();
    }
    match raised? {
        Some(identity) => Ok(identity),
        None => Err(BackupError::Damaged {
            path: from.into(),
            problem: "its store is not the one that its manifest names".into(),
        }),
    }
}

async fn raise(
    store: &SqliteStore,
    manifest: &Manifest,
    current: Option<StoreIdentity>,
) -> Result<Option<StoreIdentity>, BackupError> {
    let found = typed::get_json::<StoreIdentity>(store, IDENTITY_KEY).await?;
    let Some(found) = found
        .filter(|found| found.value.store_id == manifest.store_id && found.value.epoch == manifest.epoch)
    else {
        return Ok(None);
    };
    let seen = current.filter(|current| current.store_id == manifest.store_id);
    let seen = seen.map_or(0, |current| current.epoch);
    // The clock, so that one backup restored twice, on hosts that know nothing of each other, rises twice.
    let clock = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let raised = StoreIdentity {
        store_id: manifest.store_id.clone(),
        epoch: clock.max(manifest.epoch + 1).max(seen + 1),
    };
    let transaction = Transaction {
        compare: vec![found.unchanged()],
        operations: vec![typed::put_json(IDENTITY_KEY, &raised)?],
    };
    store.commit(transaction).await?;
    Ok(Some(raised))
}

/// As root for a control plane that runs as somebody else: its files are its own.
fn owned_alike(state: &Path, staging: &Path) -> io::Result<()> {
    let owner = fs::metadata(state)?;
    if !nix::unistd::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let mut paths = vec![staging.to_path_buf()];
    while let Some(path) = paths.pop() {
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                paths.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// A name that nothing has: what an earlier restore put aside is not touched.
fn former_name(state: &Path) -> String {
    let format = format_description!("former-[year][month][day]T[hour][minute][second]Z");
    let now = OffsetDateTime::now_utc();
    let name = now
        .format(format)
        .unwrap_or_else(|_| format!("former-{}", now.unix_timestamp()));
    let further = (2..).map(|number: u32| format!("{name}-{number}"));
    std::iter::once(name.clone())
        .chain(further)
        .find(|name| state.join(name).symlink_metadata().is_err())
        .unwrap_or(name)
}

/// The log is not restored: it tells what happened, and this did.
async fn record(state: &Path, manifest: &Manifest, identity: &StoreIdentity) -> Result<(), BackupError> {
    let audit = Audit::open(&state.join(AUDIT_FILE))?;
    let event = Event::new("operator", "RestoreBackup")
        .target("storeId", manifest.store_id.as_str())
        .target("revision", manifest.revision.to_string())
        .target("epoch", identity.epoch.to_string());
    let recorded = audit.record(event, Outcome::Done).await;
    audit.close().await;
    owned_alike(state, &state.join(AUDIT_FILE)).map_err(at("give away", &state.join(AUDIT_FILE)))?;
    Ok(recorded?)
}
