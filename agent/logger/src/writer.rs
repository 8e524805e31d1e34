//! Owns the writing of records: rotated before one would pass the limit, written or counted, and the count written as
//! soon as there is room. Never takes a record from a container, and never decides how long one may wait.

use std::io;

use crate::{
    args::Args,
    clock::Timestamp,
    json::{Record, Stream},
    rotate::LogFile,
    sys,
};

/// The log, from the side of its only writer.
#[derive(Debug)]
pub struct Writer {
    log: LogFile,
    /// Records that were not written and of which the log does not tell yet.
    dropped: u64,
    /// Of which the agent was not told yet.
    untold: u64,
    /// Why the last of them was not.
    reason: String,
}

impl Writer {
    /// Opens nothing yet.
    pub fn new(args: &Args) -> Self {
        Self {
            log: LogFile::new(args),
            dropped: 0,
            untold: 0,
            reason: String::new(),
        }
    }

    /// Opens the log, only so that it exists when the container does: what cannot be opened is tried again later.
    pub fn open(&mut self) {
        let _ = self.log.room();
    }

    /// Writes whole records, or counts them.
    pub fn write(&mut self, records: &[u8]) {
        if !self.report() {
            let reason = self.reason.clone();
            return self.drop_lines(lines(records), &reason);
        }
        let (written, result) = self.try_write(records);
        if let Err(error) = result {
            self.drop_lines(lines(&records[written..]), &describe(&error));
        }
    }

    /// Writes whole records as far as it goes; tells how far that is.
    pub fn try_write(&mut self, records: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < records.len() {
            let rest = &records[written..];
            let length = match fitting(&mut self.log, rest) {
                Ok(length) => length,
                Err(error) => return (written, Err(error)),
            };
            if let Err(short) = self.log.append(&rest[..length]) {
                return (written + short.kept, Err(short.source));
            }
            written += length;
        }
        (written, Ok(()))
    }

    /// Counts records that will never be written.
    pub fn drop_lines(&mut self, lines: u64, reason: &str) {
        self.note_dropped(lines, reason);
        self.untold += lines;
    }

    /// Likewise, of records of which the agent is told by somebody else.
    pub fn note_dropped(&mut self, lines: u64, reason: &str) {
        if lines > 0 {
            self.dropped += lines;
            reason.clone_into(&mut self.reason);
        }
    }

    /// Records were dropped and the log does not say so yet.
    pub fn owes_report(&self) -> bool {
        self.dropped > 0
    }

    /// Writes how many records were dropped, if any were. False: it could not.
    pub fn report(&mut self) -> bool {
        if self.dropped == 0 {
            return true;
        }
        let text = format!("berth-logger: {} lines dropped: {}\n", self.dropped, self.reason);
        let (seconds, nanoseconds) = sys::now();
        let mut line = Vec::new();
        Record {
            data: text.as_bytes(),
            add_newline: false,
            stream: Stream::Stderr,
            time: Timestamp::new(seconds, nanoseconds),
        }
        .encode(b"", &mut line);
        match self.try_write(&line) {
            (_, Ok(())) => {
                self.dropped = 0;
                true
            }
            (_, Err(error)) => {
                self.reason = describe(&error);
                false
            }
        }
    }

    /// How many records were dropped since this was asked.
    pub fn take_untold(&mut self) -> u64 {
        std::mem::take(&mut self.untold)
    }
}

/// How many bytes of whole records go into the current file: at least one record, which has a file of its own if it is
/// longer than one may be.
fn fitting(log: &mut LogFile, records: &[u8]) -> io::Result<usize> {
    let first = records
        .iter()
        .position(|&b| b == b'\n')
        .map_or(records.len(), |at| at + 1);
    if log.room()? < first as u64 && !log.is_empty()? {
        log.rotate()?;
    }
    let room = usize::try_from(log.room()?).unwrap_or(usize::MAX);
    if records.len() <= room {
        return Ok(records.len());
    }
    let whole = records[..room].iter().rposition(|&b| b == b'\n');
    Ok(whole.map_or(first, |at| at + 1))
}

/// How many records these are.
pub fn lines(records: &[u8]) -> u64 {
    records.iter().filter(|&&b| b == b'\n').count() as u64
}

/// What the C library says of the error, as in the middle of a sentence.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}
