//! Owns the way of bytes out of one of the container's pipes: looked at through tee(2), handed on as whole records,
//! and only then consumed. Never holds a byte that is not in the pipe or with the sink.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use crate::{
    clock::Timestamp,
    json::{Record, Stream},
    sink::Sink,
    sys,
};

/// At most this much is looked at, written and consumed at once: what SIGKILL may repeat.
pub const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Longer lines become several records, as in Docker; all but the last have no line end.
pub const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What [`Source::pump`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more to do at once.
    Again,
    /// Nothing, or only an unfinished line: wait for the poll.
    Idle,
    /// Every writer is gone and everything is consumed.
    Ended,
}

/// One output of the container.
#[derive(Debug)]
pub struct Source {
    pipe: OwnedFd,
    stream: Stream,
    copy: Duplicate,
    /// No writer is left: what is in the pipe is all there will be.
    hung_up: bool,
    /// The last record had no line end.
    open_line: bool,
    unfinished: bool,
    ended: bool,
}

impl Source {
    /// Reads from `pipe`, whose flags and position stay as they are: others hold it, too.
    pub fn new(pipe: OwnedFd, stream: Stream) -> io::Result<Self> {
        Ok(Self {
            pipe,
            stream,
            copy: Duplicate::new()?,
            hung_up: false,
            open_line: false,
            unfinished: false,
            ended: false,
        })
    }

    /// To poll, edge-triggered: an unfinished line stays in the pipe and would wake a level-triggered poll for ever.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }

    /// The end was reached.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// A line without its end waits in the pipe.
    pub fn unfinished(&self) -> bool {
        self.unfinished
    }

    /// Moves one batch of whole records into the log.
    ///
    /// # Errors
    /// The pipe is not one, or the kernel refuses to copy it. A log that cannot be written is not an error here.
    pub fn pump(&mut self, sink: &mut Sink, null: &File) -> io::Result<Progress> {
        if self.ended {
            return Ok(Progress::Ended);
        }
        self.unfinished = false;
        let Some(seen) = self.copy.fill(self.pipe.as_fd())? else {
            return Ok(Progress::Idle);
        };
        if seen == 0 {
            return Ok(self.end(sink));
        }
        let (seconds, nanoseconds) = sys::now();
        let time = Timestamp::new(seconds, nanoseconds);
        if self.hand_on(sink, null, time)? {
            return Ok(Progress::Again);
        }
        let length = match self.flush_length()? {
            Flush::Wait => {
                self.unfinished = true;
                return Ok(Progress::Idle);
            }
            Flush::LookAgain => return Ok(Progress::Again),
            Flush::Bytes(length) => length,
        };
        self.open_line = !self.hung_up;
        sink.record(&Record {
            data: &self.copy.data()[..length],
            add_newline: self.hung_up,
            stream: self.stream,
            time,
        });
        self.consume(sink, null, length)?;
        Ok(Progress::Again)
    }

    /// Every whole record of the batch. False: there was none.
    fn hand_on(&mut self, sink: &mut Sink, null: &File, time: Timestamp) -> io::Result<bool> {
        let data = self.copy.data();
        let (mut taken, mut consumed) = (0, 0);
        while let Some(length) = record_length(&data[taken..]) {
            let record = &data[taken..taken + length];
            sink.record(&Record {
                data: record,
                add_newline: false,
                stream: self.stream,
                time,
            });
            self.open_line = record.last() != Some(&b'\n');
            taken += length;
            if sink.is_full() {
                // Early: what is written and not consumed is what SIGKILL repeats.
                self.consume(sink, null, taken - consumed)?;
                consumed = taken;
            }
        }
        self.consume(sink, null, taken - consumed)?;
        Ok(taken > 0)
    }

    /// Writes what the sink holds, then lets go of it in the pipe.
    fn consume(&self, sink: &mut Sink, null: &File, length: usize) -> io::Result<()> {
        // A pipe that cannot be asked has nobody to wait for it.
        sink.flush(|| sys::hung_up(self.pipe.as_fd()).unwrap_or(true));
        sys::discard(self.pipe.as_fd(), null.as_fd(), length)
    }

    /// What to do with a line whose end is not there.
    fn flush_length(&mut self) -> io::Result<Flush> {
        let data = self.copy.data();
        if self.hung_up {
            return Ok(Flush::Bytes(data.len()));
        }
        if sys::hung_up(self.pipe.as_fd())? {
            // Something may have come between our look and the last writer's end.
            self.hung_up = true;
            return Ok(Flush::LookAgain);
        }
        // A pipe is also full when its slots are, however few bytes they hold (splice, O_DIRECT, F_SETPIPE_SZ): its
        // writer would wait for us, and we for the end of its line.
        if self.copy.was_full {
            return Ok(Flush::Bytes(before_split_character(data)));
        }
        if self.copy.shrink_to(self.pipe.as_fd())? {
            return Ok(Flush::LookAgain);
        }
        Ok(Flush::Wait)
    }

    fn end(&mut self, sink: &mut Sink) -> Progress {
        if self.open_line {
            let (seconds, nanoseconds) = sys::now();
            sink.record(&Record {
                data: b"",
                add_newline: true,
                stream: self.stream,
                time: Timestamp::new(seconds, nanoseconds),
            });
            sink.flush(|| true);
        }
        self.ended = true;
        Progress::Ended
    }
}

enum Flush {
    Wait,
    LookAgain,
    Bytes(usize),
}

/// A pipe of our own that takes a second reference to the bytes in the container's, and the bytes read from it.
#[derive(Debug)]
struct Duplicate {
    reader: File,
    writer: OwnedFd,
    buffer: Box<[u8]>,
    length: usize,
    /// The copy had no slot left.
    was_full: bool,
}

impl Duplicate {
    fn new() -> io::Result<Self> {
        let (reader, writer) = sys::pipe()?;
        Ok(Self {
            reader: reader.into(),
            writer,
            // From fresh zero pages: those that are never used are never touched.
            buffer: vec![0; BATCH_BYTES_MAX].into_boxed_slice(),
            length: 0,
            was_full: false,
        })
    }

    /// Looks at what is in the pipe. None: nothing now. Zero: the end.
    fn fill(&mut self, pipe: BorrowedFd<'_>) -> io::Result<Option<usize>> {
        let Some(length) = sys::tee(pipe, self.writer.as_fd(), BATCH_BYTES_MAX)? else {
            return Ok(None);
        };
        // More than one record's worth always moves on.
        self.was_full = length <= RECORD_BYTES_MAX && length > 0 && !sys::writable(self.writer.as_fd())?;
        self.reader.read_exact(&mut self.buffer[..length])?;
        self.length = length;
        Ok(Some(length))
    }

    fn data(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// Makes the copy no larger than a container's pipe that was made smaller, so that both are full together.
    fn shrink_to(&mut self, pipe: BorrowedFd<'_>) -> io::Result<bool> {
        let theirs = sys::pipe_capacity(pipe)?;
        if theirs >= sys::pipe_capacity(self.writer.as_fd())? {
            return Ok(false);
        }
        sys::set_pipe_capacity(self.writer.as_fd(), theirs)?;
        Ok(true)
    }
}

/// Length of the first record in `rest`, its line end included. None: it is not whole yet.
fn record_length(rest: &[u8]) -> Option<usize> {
    let window = &rest[..rest.len().min(RECORD_BYTES_MAX + 1)];
    if let Some(at) = sys::find(b'\n', window) {
        return Some(at + 1);
    }
    if window.len() <= RECORD_BYTES_MAX {
        return None;
    }
    Some(before_split_character(&window[..RECORD_BYTES_MAX]))
}

/// Length of `data` without a character at its end that goes on behind it; all of it, if that would be nothing.
fn before_split_character(data: &[u8]) -> usize {
    let tail = data.len().saturating_sub(3)..data.len();
    let lead = tail.rev().find(|&at| data[at] & 0xc0 != 0x80);
    match lead {
        Some(at) if at > 0 && at + character_length(data[at]) > data.len() => at,
        _ => data.len(),
    }
}

fn character_length(lead: u8) -> usize {
    match lead {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_ends_with_its_line_or_at_the_limit() {
        assert_eq!(record_length(b""), None);
        assert_eq!(record_length(b"abc"), None);
        assert_eq!(record_length(b"abc\ndef\n"), Some(4));
        assert_eq!(record_length(b"\n"), Some(1));
        let mut long = vec![b'x'; RECORD_BYTES_MAX];
        assert_eq!(record_length(&long), None, "its line end may come next");
        long.push(b'\n');
        assert_eq!(record_length(&long), Some(RECORD_BYTES_MAX + 1));
        long.pop();
        long.push(b'x');
        assert_eq!(record_length(&long), Some(RECORD_BYTES_MAX));
    }

    #[test]
    fn a_long_line_is_not_cut_inside_a_character() {
        for (character, keep) in [("é", 1), ("€", 2), ("😀", 3)] {
            let mut data = vec![b'x'; RECORD_BYTES_MAX - keep];
            data.extend_from_slice(character.as_bytes());
            data.extend_from_slice(b"tail");
            assert_eq!(record_length(&data), Some(RECORD_BYTES_MAX - keep), "{character}");
        }
        assert_eq!(
            record_length(&[0x80; RECORD_BYTES_MAX + 4]),
            Some(RECORD_BYTES_MAX)
        );
        assert_eq!(before_split_character("é".as_bytes()), 2);
        assert_eq!(
            before_split_character(b"\xc3"),
            1,
            "nothing would be left to take"
        );
    }
}
