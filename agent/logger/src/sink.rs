//! Owns the promise that a record is written or counted, and how long a container waits for that: in mode `blocking` until
//! it is written, else never for a disk that is full, slow or stuck. Never gives up for good: every batch tries again.

use std::{io, thread, time::Duration};

use crate::{
    args::{Args, Mode},
    buffer::Buffer,
    json::Record,
    pipe,
    writer::{Writer, describe, lines},
};

/// Records are gathered up to this, and the one that passes it, before they are written.
const FLUSH_BYTES: usize = 64 * 1024;
/// A record of nothing but control characters has six bytes for each, and its frame.
const RECORD_ENCODED_MAX: usize = 6 * pipe::RECORD_BYTES_MAX + 128;
/// How often a disk that takes nothing is tried: by a container that waits for it; and, so many times in all, after the
/// container's end, when only what is left in the pipe waits.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LAST_TRIES: u32 = 10;

/// The log, from the side of the pipes.
#[derive(Debug)]
pub struct Sink {
    way: Way,
    /// Goes into every record.
    attrs: Vec<u8>,
    /// Whole records, not yet written.
    pending: Vec<u8>,
    /// Tries left after the container's end.
    tries_left: u32,
}

#[derive(Debug)]
enum Way {
    /// The container waits for the disk.
    Blocking(Writer),
    /// It does not.
    Buffered(Buffer),
    /// Nothing is kept.
    Nowhere,
}

impl Sink {
    /// Opens the log. A log that cannot be opened is tried again with every batch.
    ///
    /// # Errors
    /// There is no thread for the writer.
    pub fn open(args: &Args) -> io::Result<Self> {
        if args.discard {
            return Ok(Self {
                way: Way::Nowhere,
                attrs: Vec::new(),
                pending: Vec::new(),
                tries_left: 0,
            });
        }
        let mut writer = Writer::new(args);
        let way = match args.mode {
            Mode::Blocking => {
                writer.open();
                Way::Blocking(writer)
            }
            Mode::NonBlocking => Way::Buffered(Buffer::start(writer, args.max_buffer_size)?),
        };
        Ok(Self {
            way,
            attrs: args.attrs.clone(),
            pending: Vec::with_capacity(FLUSH_BYTES + RECORD_ENCODED_MAX),
            tries_left: LAST_TRIES,
        })
    }

    /// Takes one record. It may be consumed at its source after [`Sink::flush`].
    pub fn record(&mut self, record: &Record<'_>) {
        if !matches!(self.way, Way::Nowhere) {
            record.encode(&self.attrs, &mut self.pending);
        }
    }

    /// Enough is gathered to be worth a write.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= FLUSH_BYTES
    }

    /// After this, every record taken is in the file, in the buffer, or counted. `ended` says whether the container's
    /// end of the pipe is closed: then nobody is kept waiting, and what cannot be written soon is dropped.
    pub fn flush(&mut self, ended: impl Fn() -> bool) {
        if self.pending.is_empty() {
            return;
        }
        match &mut self.way {
            Way::Buffered(buffer) => buffer.put(&mut self.pending),
            Way::Nowhere => self.pending.clear(),
            Way::Blocking(writer) => {
                let mut written = 0;
                while let (more, Err(error)) = writer.try_write(&self.pending[written..]) {
                    written += more;
                    if ended() && self.tries_left == 0 {
                        writer.drop_lines(lines(&self.pending[written..]), &describe(&error));
                        break;
                    }
                    self.tries_left -= u32::from(ended()).min(self.tries_left);
                    thread::sleep(RETRY_PAUSE);
                }
                self.pending.clear();
            }
        }
    }

    /// Records were dropped and the log does not say so yet.
    pub fn owes_report(&self) -> bool {
        match &self.way {
            Way::Blocking(writer) => writer.owes_report(),
            Way::Buffered(buffer) => buffer.owes_report(),
            Way::Nowhere => false,
        }
    }

    /// Has the count of dropped records written, if there are any and it can be.
    pub fn report(&mut self) {
        match &mut self.way {
            Way::Blocking(writer) => drop(writer.report()),
            Way::Buffered(buffer) => buffer.want_report(),
            Way::Nowhere => {}
        }
    }

    /// How many records were dropped since this was asked.
    pub fn take_untold(&mut self) -> u64 {
        match &mut self.way {
            Way::Blocking(writer) => writer.take_untold(),
            Way::Buffered(buffer) => buffer.take_untold(),
            Way::Nowhere => 0,
        }
    }

    /// Waits until everything is written that is not dropped, and tells of what is.
    pub fn finish(self) {
        let writer = match self.way {
            Way::Blocking(writer) => Some(writer),
            Way::Buffered(buffer) => buffer.finish(),
            Way::Nowhere => None,
        };
        let Some(mut writer) = writer else {
            return;
        };
        for _ in 0..LAST_TRIES {
            if writer.report() {
                break;
            }
            thread::sleep(RETRY_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, fs};

    use crate::{clock::Timestamp, json::Stream};

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
        Sink::open(&Args::parse(words.iter().map(OsString::from), None).unwrap()).unwrap()
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
        log.flush(|| false);
        let one = fs::read(directory.path().join("x.log")).unwrap().len();

        for limit in [1, one - 1, one, 3 * one - 1, 3 * one, 3 * one + 1] {
            let directory = tempfile::tempdir().unwrap();
            let mut log = sink(directory.path(), &limit.to_string());
            for _ in 0..10 {
                put(&mut log, b"x\n");
            }
            log.flush(|| false);
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
        log.flush(|| false);
        put(&mut log, b"3\n");
        log.flush(|| false);
        log.report();
        assert!(log.owes_report());
        assert_eq!((log.take_untold(), log.take_untold()), (3, 0));

        fs::remove_dir(&path).unwrap();
        put(&mut log, b"4\n");
        log.flush(|| false);
        let text = fs::read_to_string(&path).unwrap();
        let first = "{\"log\":\"berth-logger: 3 lines dropped: is a directory\\n\",\"stream\":\"stderr\",";
        assert!(text.starts_with(first), "{text}");
        assert!(text.lines().nth(1).unwrap().contains("\"4\\n\"") && !log.owes_report());
    }
}
