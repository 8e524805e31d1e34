//! Owns the file that grows: lines in order, whole or marked as torn, rotated by size. Never reads for others.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    AuditError, Limits,
    event::{Event, Line, Outcome},
    read,
};
use crate::model::Millis;

const PRIVATE: u32 = 0o600;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    limits: Limits,
    file: fs::File,
    bytes: u64,
    /// The last line's.
    sequence: u64,
    /// A line may have been written in part: the next one begins on a line of its own.
    torn: bool,
    dirty: bool,
}

impl Log {
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self, AuditError> {
        let at = |action, source| AuditError::File {
            action,
            path: path.into(),
            source,
        };
        let (file, bytes) = open(path).map_err(|source| at("open", source))?;
        let tail = read::tail(path, limits.rotated_max).map_err(|source| at("read", source))?;
        let mut log = Self {
            path: path.into(),
            limits,
            file,
            bytes,
            sequence: tail.sequence,
            torn: tail.torn,
            dirty: false,
        };
        for (sequence, event) in tail.unfinished {
            log.append(&event, Outcome::Unknown, Some(sequence))?;
        }
        Ok(log)
    }

    /// Writes one line; its sequence.
    pub(super) fn append(
        &mut self,
        event: &Event,
        outcome: Outcome,
        of: Option<u64>,
    ) -> Result<u64, AuditError> {
        let now = OffsetDateTime::now_utc();
        let line = Line {
            sequence: self.sequence + 1,
            time_ms: Millis::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(Millis::MAX),
            time: now.format(&Rfc3339).unwrap_or_default(),
            outcome,
            event: event.clone(),
            of,
        };
        self.write(&line).map_err(|source| AuditError::File {
            action: "write",
            path: self.path.clone(),
            source,
        })?;
        self.sequence = line.sequence;
        Ok(self.sequence)
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        if self.torn {
            text.insert(0, b'\n');
        }
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.limits.file_bytes_max {
            self.rotate()?;
        }
        self.dirty = true;
        let written = self.file.write_all(&text);
        self.torn = written.is_err();
        if written.is_ok() {
            self.bytes += text.len() as u64;
        } else if let Ok(metadata) = self.file.metadata() {
            self.bytes = metadata.len();
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        // A rotation that could not open its new file has moved the others already: once more would push one out.
        if !self.path.try_exists()? {
            (self.file, self.bytes) = open(&self.path)?;
            return Ok(());
        }
        for number in (1..=self.limits.rotated_max).rev() {
            let older = match number {
                1 => self.path.clone(),
                _ => rotated(&self.path, number - 1),
            };
            match fs::rename(older, rotated(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        (self.file, self.bytes) = open(&self.path)?;
        Ok(())
    }

    /// To disk, if something was written since.
    pub(super) fn sync(&mut self) {
        if !self.dirty {
            return;
        }
        match self.file.sync_data() {
            Ok(()) => self.dirty = false,
            Err(error) => tracing::warn!(log = %self.path.display(), %error, "the audit log is not synced"),
        }
    }
}

/// The `number`th newest of the rotated files.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path) -> io::Result<(fs::File, u64)> {
    let file = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .mode(PRIVATE)
        .open(path)?;
    let metadata = file.metadata()?;
    // A pipe or device is the operator's choice, and its mode their business.
    if metadata.is_file() {
        file.set_permissions(fs::Permissions::from_mode(PRIVATE))?;
    }
    Ok((file, metadata.len()))
}
