//! Owns reading the audit log: backwards, across rotated files, while it is written. Never writes.

use std::{collections::HashSet, fs::File, io, os::unix::fs::FileExt, path::Path};

use serde_json::Value;

use super::{
    AuditError,
    event::{Event, Line, Outcome},
    file::rotated,
};
use crate::model::Millis;

/// Read at once, bytes. Longer than any line.
const CHUNK_BYTES: usize = 64 << 10;
/// A change is concluded long before: older lines need not be searched for what was not.
const UNFINISHED_AGE_MS_MAX: Millis = 10 * 60 * 1_000;

/// What is wanted of the log.
#[derive(Clone, Copy, Debug)]
pub struct Listing {
    /// Only events before this one, by sequence.
    pub before: Option<u64>,
    /// Only events of this time and later.
    pub since_ms: Millis,
    /// Most events of the page.
    pub max: usize,
}

/// A page of events, newest first.
#[derive(Debug)]
pub struct Page {
    /// Each as its line has it.
    pub events: Vec<Value>,
    /// The last one's sequence, when there are more: the next page's `before`.
    pub next: Option<u64>,
}

/// How the log ended.
#[derive(Debug, Default)]
pub(super) struct Tail {
    pub sequence: u64,
    /// The last line has no end.
    pub torn: bool,
    /// Begun and not concluded, oldest first.
    pub unfinished: Vec<(u64, Event)>,
}

pub(super) fn page(path: &Path, rotated_max: u32, listing: Listing) -> Result<Page, AuditError> {
    let fail = |source| AuditError::File {
        action: "read",
        path: path.into(),
        source,
    };
    let mut page = Page {
        events: Vec::new(),
        next: None,
    };
    let mut before = listing.before.unwrap_or(u64::MAX);
    for file in files(path, rotated_max).map_err(fail)? {
        let mut lines = Backwards::before(file, before).map_err(fail)?;
        while let Some(text) = lines.next().map_err(fail)? {
            let Ok(line) = serde_json::from_slice::<Line>(&text) else {
                continue;
            };
            // The same file is seen twice when it is rotated meanwhile.
            if line.sequence >= before {
                continue;
            }
            if line.time_ms < listing.since_ms {
                return Ok(page);
            }
            if line.outcome == Outcome::Started {
                continue;
            }
            if page.events.len() == listing.max {
                page.next = Some(before);
                return Ok(page);
            }
            before = line.sequence;
            if let Ok(event) = serde_json::from_slice(&text) {
                page.events.push(event);
            }
        }
    }
    Ok(page)
}

pub(super) fn tail(path: &Path, rotated_max: u32) -> io::Result<Tail> {
    let mut tail = Tail::default();
    let (mut newest, mut concluded) = (None, HashSet::new());
    for (index, file) in files(path, rotated_max)?.into_iter().enumerate() {
        let bytes = file.metadata()?.len();
        if index == 0 && bytes > 0 {
            let mut last = [0];
            file.read_exact_at(&mut last, bytes - 1)?;
            tail.torn = last != *b"\n";
        }
        let mut lines = Backwards::ending_at(file, bytes);
        while let Some(text) = lines.next()? {
            let Ok(line) = serde_json::from_slice::<Line>(&text) else {
                continue;
            };
            tail.sequence = tail.sequence.max(line.sequence);
            if line.time_ms < *newest.get_or_insert(line.time_ms) - UNFINISHED_AGE_MS_MAX {
                tail.unfinished.reverse();
                return Ok(tail);
            }
            if let Some(of) = line.of {
                concluded.insert(of);
            } else if line.outcome == Outcome::Started && !concluded.contains(&line.sequence) {
                tail.unfinished.push((line.sequence, line.event));
            }
        }
    }
    tail.unfinished.reverse();
    Ok(tail)
}

/// The files there are, newest first. What is no file (a device the operator put there) has nothing to read.
fn files(path: &Path, rotated_max: u32) -> io::Result<Vec<File>> {
    let mut files = Vec::new();
    for number in 0..=rotated_max {
        let opened = match number {
            0 => File::open(path),
            _ => File::open(rotated(path, number)),
        };
        match opened {
            Ok(file) if file.metadata()?.is_file() => files.push(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// The lines of a file from its end, or from where it was asked to begin.
#[derive(Debug)]
struct Backwards {
    file: File,
    /// Where what was read begins in the file.
    start: u64,
    /// What was read and not given out.
    buffer: Vec<u8>,
}

impl Backwards {
    fn ending_at(file: File, end: u64) -> Self {
        Self {
            file,
            start: end,
            buffer: Vec::new(),
        }
    }

    /// Lines of a smaller sequence only. They are in order, so the place is found by halving.
    fn before(file: File, sequence: u64) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        if sequence == u64::MAX {
            return Ok(Self::ending_at(file, bytes));
        }
        // Lines that begin before `low` are smaller; the first one that begins at `high` or later is not.
        let (mut low, mut high) = (0, bytes);
        while low < high {
            let middle = low + (high - low) / 2;
            let (begin, line) = line_from(&file, middle, bytes)?;
            if begin >= high {
                high = middle;
            } else if line.is_none_or(|found| found < sequence) {
                low = begin + 1;
            } else {
                high = middle;
            }
        }
        let (end, _) = line_from(&file, high, bytes)?;
        Ok(Self::ending_at(file, end))
    }

    /// The line before the last one given out, without its end.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if self.buffer.last() == Some(&b'\n') {
                self.buffer.pop();
            }
            if let Some(end_of_former) = self.buffer.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.buffer.split_off(end_of_former + 1)));
            }
            if self.start == 0 {
                return Ok(Some(std::mem::take(&mut self.buffer)).filter(|line| !line.is_empty()));
            }
            let size = self.start.min(CHUNK_BYTES as u64);
            self.start -= size;
            let mut chunk = vec![0; usize::try_from(size).unwrap_or(CHUNK_BYTES)];
            self.file.read_exact_at(&mut chunk, self.start)?;
            chunk.append(&mut self.buffer);
            self.buffer = chunk;
        }
    }
}

/// Where the first line begins that begins at `from` or later, and its sequence if it can be read.
fn line_from(file: &File, from: u64, bytes: u64) -> io::Result<(u64, Option<u64>)> {
    let mut begin = from;
    if from > 0 {
        begin = match newline(file, from - 1, bytes)? {
            Some(end) => end + 1,
            None => bytes,
        };
    }
    if begin >= bytes {
        return Ok((bytes, None));
    }
    let end = newline(file, begin, bytes)?.unwrap_or(bytes);
    let mut text = vec![0; usize::try_from(end - begin).unwrap_or_default()];
    file.read_exact_at(&mut text, begin)?;
    let line = serde_json::from_slice::<Line>(&text).ok();
    Ok((begin, line.map(|line| line.sequence)))
}

/// Where the first line end is at `from` or later.
fn newline(file: &File, mut from: u64, bytes: u64) -> io::Result<Option<u64>> {
    let mut chunk = [0; 4 << 10];
    while from < bytes {
        let size = usize::try_from((bytes - from).min(chunk.len() as u64)).unwrap_or(chunk.len());
        file.read_exact_at(&mut chunk[..size], from)?;
        if let Some(place) = chunk[..size].iter().position(|byte| *byte == b'\n') {
            return Ok(Some(from + place as u64));
        }
        from += size as u64;
    }
    Ok(None)
}
