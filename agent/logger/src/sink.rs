//! Owns the promise that a record is written or counted: a full disk never makes the container wait, and what it cost
//! stands in the log as soon as there is room. Never gives up for good: every batch tries again.

use std::io;

use crate::{
    args::Args,
    clock::Timestamp,
    json::{Record, Stream},
    pipe,
    rotate::LogFile,
    sys,
};

/// Records are gathered up to this, and the one that passes it, before they are written.
const FLUSH_BYTES: usize = 64 * 1024;
/// A record of nothing but control characters has six bytes for each, and its frame.
const RECORD_ENCODED_MAX: usize = 6 * pipe::RECORD_BYTES_MAX + 128;

/// The log, from the side of its only writer.
#[derive(Debug)]
pub struct Sink {
    log: LogFile,
    /// Whole records, not yet written.
    pending: Vec<u8>,
    /// Records that were not written and of which the log does not tell yet.
    dropped: u64,
    /// Of which the agent was not told yet.
    untold: u64,
    /// Why the last of them was not.
    reason: String,
}

impl Sink {
    /// Opens the log. A log that cannot be opened is tried again with every batch.
    pub fn open(args: &Args) -> Self {
        let mut log = LogFile::new(args);
        // Tried now only so that the file exists when the container does.
        let _ = log.room();
        let pending = Vec::with_capacity(FLUSH_BYTES + RECORD_ENCODED_MAX);
        Self {
            log,
            pending,
            dropped: 0,
            untold: 0,
            reason: String::new(),
        }
    }

    /// Takes one record. It may be consumed at its source after [`Sink::flush`].
    pub fn record(&mut self, record: &Record<'_>) {
        record.encode(&mut self.pending);
    }

    /// Enough is gathered to be worth a write.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= FLUSH_BYTES
    }

    /// After this, every record taken is in the file, or counted.
    pub fn flush(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let records = std::mem::take(&mut self.pending);
        if self.report() {
            let (written, result) = write(&mut self.log, &records);
            if let Err(error) = result {
                self.count(&records[written..], &error);
            }
        } else {
            self.add_dropped(&records);
        }
        self.pending = records;
        self.pending.clear();
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
        .encode(&mut line);
        match write(&mut self.log, &line) {
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

    fn add_dropped(&mut self, records: &[u8]) {
        let lines = lines(records);
        self.dropped += lines;
        self.untold += lines;
    }

    fn count(&mut self, records: &[u8], error: &io::Error) {
        self.add_dropped(records);
        self.reason = describe(error);
    }
}

/// Writes records, rotating before one would pass the limit; tells how far it came, in whole records.
fn write(log: &mut LogFile, records: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < records.len() {
        let rest = &records[written..];
        let length = match fitting(log, rest) {
            Ok(length) => length,
            Err(error) => return (written, Err(error)),
        };
        if let Err(short) = log.append(&rest[..length]) {
            return (written + short.kept, Err(short.source));
        }
        written += length;
    }
    (written, Ok(()))
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

fn lines(records: &[u8]) -> u64 {
    records.iter().filter(|&&b| b == b'\n').count() as u64
}

/// What the C library says of the error, as in the middle of a sentence.
fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs};

    use super::*;

    fn sink(directory: &std::path::Path, max_size: &str) -> Sink {
        let path = directory.join("x.log");
        let words = [
            "path",
            path.to_str().unwrap(),
            "max-size",
            max_size,
            "max-file",
            "100",
            "id",
            "c",
        ];
        Sink::open(&Args::parse(words.iter().map(OsString::from), None).unwrap())
    }

    fn put(sink: &mut Sink, data: &[u8]) {
        let (stream, time) = (Stream::Stdout, Timestamp::new(0, 0));
        sink.record(&Record {
            data,
            add_newline: false,
            stream,
            time,
        });
    }

    #[test]
    fn a_file_is_rotated_before_the_byte_that_would_pass_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = sink(directory.path(), "0");
        put(&mut log, b"x\n");
        log.flush();
        let one = fs::read(directory.path().join("x.log")).unwrap().len();

        for limit in [1, one - 1, one, 3 * one - 1, 3 * one, 3 * one + 1] {
            let directory = tempfile::tempdir().unwrap();
            let mut log = sink(directory.path(), &limit.to_string());
            for _ in 0..10 {
                put(&mut log, b"x\n");
            }
            log.flush();
            let mut sizes: Vec<_> = fs::read_dir(directory.path())
                .unwrap()
                .map(|f| f.unwrap().metadata().unwrap().len())
                .collect();
            sizes.sort_unstable();
            let each = (limit / one).max(1);
            assert_eq!(sizes.len(), 10_usize.div_ceil(each), "limit {limit}");
            assert_eq!(
                sizes.iter().sum::<u64>(),
                10 * one as u64,
                "nothing lost at limit {limit}"
            );
            assert_eq!(*sizes.last().unwrap(), (each.min(10) * one) as u64);
        }
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.log");
        fs::create_dir(&path).unwrap();
        let mut log = sink(directory.path(), "0");
        put(&mut log, b"1\n");
        put(&mut log, b"2\n");
        log.flush();
        put(&mut log, b"3\n");
        log.flush();
        assert!(log.owes_report() && !log.report());
        assert_eq!((log.take_untold(), log.take_untold()), (3, 0));

        fs::remove_dir(&path).unwrap();
        put(&mut log, b"4\n");
        log.flush();
        let text = fs::read_to_string(&path).unwrap();
        let first = "{\"log\":\"berth-logger: 3 lines dropped: is a directory\\n\",\"stream\":\"stderr\",";
        assert!(text.starts_with(first), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("\"4\\n\"") && !log.owes_report());
    }
}
