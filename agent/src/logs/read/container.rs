//! Owns reading one container's log across its rotations: every record once, in order, and what was missed told.

use std::{collections::VecDeque, io, path::PathBuf};

use super::{
    Line, LogReadError,
    file::{Item, LogFile},
    files,
    record::Record,
    tail,
};

/// A container's log and how far it is read.
#[derive(Debug)]
pub(super) struct ContainerLog {
    name: String,
    /// The current file's name.
    path: PathBuf,
    /// To be read, oldest first. The first is being read.
    files: VecDeque<LogFile>,
    /// Length of the newest file when the log was opened: what comes behind it was written later.
    opened_length: u64,
    /// The file being read was deleted by rotation: what followed it may be gone.
    gap: bool,
    since_ns: i128,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Entry {
    Record(Record),
    /// The stream goes on.
    Trouble(LogReadError),
    /// Nothing now.
    End,
}

impl ContainerLog {
    /// All that is kept, or its last lines; nothing if there is no log yet.
    pub fn open(name: String, path: PathBuf, tail: u32, since_ms: i64) -> Result<Self, LogReadError> {
        let mut log = Self {
            name,
            path,
            files: VecDeque::new(),
            opened_length: 0,
            gap: false,
            since_ns: i128::from(since_ms) * 1_000_000,
        };
        let opened = files::open_all(&log.path).and_then(|mut files| {
            if tail > 0 {
                tail::keep_last(&mut files, tail)?;
            }
            skip_older(&mut files, since_ms)?;
            let length = files.last().map_or(Ok(0), LogFile::length)?;
            Ok((files.into(), length))
        });
        (log.files, log.opened_length) = opened.map_err(|source| log.failed(source))?;
        Ok(log)
    }

    /// The container's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A record as it is given away.
    pub fn line(&self, record: Record) -> Line {
        Line {
            container: self.name.clone(),
            stream: record.stream,
            time_ms: i64::try_from(record.time_ns.div_euclid(1_000_000)).unwrap_or(i64::MAX),
            data: record.data.into_bytes(),
        }
    }

    /// The next record that is not older than asked for. With `newer`, also of what was written since the log was
    /// opened; without, a container that writes all the time has an end.
    pub fn next(&mut self, newer: bool) -> Result<Entry, LogReadError> {
        loop {
            let only_file = self.files.len() == 1;
            let Some(file) = self.files.front_mut() else {
                if !newer || !self.find_first()? {
                    return Ok(Entry::End);
                }
                continue;
            };
            if !newer && only_file && file.offset() >= self.opened_length {
                return Ok(Entry::End);
            }
            let item = file.next();
            match item.map_err(|source| self.failed(source))? {
                Item::Record(record) if record.time_ns < self.since_ns => {}
                Item::Record(record) => return Ok(Entry::Record(record)),
                Item::Corrupt { offset, bytes } => return Ok(Entry::Trouble(self.corrupt(offset, bytes))),
                // With one file kept, the logger starts it over; what was between is gone.
                Item::Truncated => return Ok(Entry::Trouble(self.skipped())),
                Item::End => match self.past_end(newer)? {
                    Some(entry) => return Ok(entry),
                    None => continue,
                },
            }
        }
    }

    /// A record that will never be finished: nobody writes any more.
    pub fn torn(&mut self) -> Result<Option<LogReadError>, LogReadError> {
        let Some(file) = self.files.front_mut() else {
            return Ok(None);
        };
        match file.torn() {
            Ok(Some(Item::Corrupt { offset, bytes })) => Ok(Some(self.corrupt(offset, bytes))),
            Ok(_) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// At the end of a file. None: there is another one to read, or the same once more.
    fn past_end(&mut self, newer: bool) -> Result<Option<Entry>, LogReadError> {
        if self.files.len() == 1 {
            if !newer || !self.find_successors()? {
                return Ok(Some(Entry::End));
            }
            // It was rotated away. Something may have been written between our look and that: once more.
            return Ok(None);
        }
        if let Some(torn) = self.torn()? {
            return Ok(Some(Entry::Trouble(torn)));
        }
        self.files.pop_front();
        let gap = std::mem::take(&mut self.gap);
        Ok(gap.then(|| Entry::Trouble(self.skipped())))
    }

    /// Files that came after the only one that is open. False: none did.
    fn find_successors(&mut self) -> Result<bool, LogReadError> {
        let Some(current) = self.files.front().map(|file| file.inode) else {
            return Ok(false);
        };
        let found = files::current_inode(&self.path).map_err(|source| self.failed(source))?;
        // Without a current file, a rotation is half way, or the log was removed.
        if found.is_none_or(|inode| inode == current) {
            return Ok(false);
        }
        let all = files::open_all(&self.path).map_err(|source| self.failed(source))?;
        let known = all.iter().position(|file| file.inode == current);
        self.files
            .extend(all.into_iter().skip(known.map_or(0, |at| at + 1)));
        self.gap = known.is_none() && self.files.len() > 1;
        Ok(self.files.len() > 1)
    }

    /// The first file of a log that had none.
    fn find_first(&mut self) -> Result<bool, LogReadError> {
        let all = files::open_all(&self.path).map_err(|source| self.failed(source))?;
        self.files = all.into();
        Ok(!self.files.is_empty())
    }

    fn failed(&self, source: io::Error) -> LogReadError {
        LogReadError::Read {
            container: self.name.clone(),
            path: self.path.clone(),
            source,
        }
    }

    fn corrupt(&self, offset: u64, bytes: u64) -> LogReadError {
        let path = self.files.front().map_or(&self.path, |file| &file.path).clone();
        LogReadError::Corrupt {
            container: self.name.clone(),
            path,
            offset,
            bytes,
        }
    }

    fn skipped(&self) -> LogReadError {
        LogReadError::Skipped {
            container: self.name.clone(),
        }
    }
}

/// Drops files whose last record is too old.
fn skip_older(files: &mut Vec<LogFile>, since_ms: i64) -> io::Result<()> {
    let mut older = 0;
    for file in files.iter().take(files.len().saturating_sub(1)) {
        if file.modified_ms()? >= since_ms {
            break;
        }
        older += 1;
    }
    files.drain(..older);
    Ok(())
}
