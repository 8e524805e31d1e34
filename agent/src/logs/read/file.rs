//! Owns reading one log file forwards, whole records at a time. Never keeps bytes of a record that is not whole: a
//! logger that goes on after another was killed cuts the torn record off and writes it again.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
};

use super::record::{self, Record};

const READ_BYTES: usize = 64 * 1024;
/// Our longest record has less than 100 KiB; what is longer is not one.
pub(super) const RECORD_BYTES_MAX: usize = 256 * 1024;

/// Names a file however it is renamed.
pub(super) type Inode = (u64, u64);

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    Record(Record),
    Corrupt {
        offset: u64,
        bytes: u64,
    },
    /// Nothing that is whole.
    End,
    /// The file is shorter than what was read of it: it was started over. The next item is its first.
    Truncated,
}

/// An open log file and how far it is read.
#[derive(Debug)]
pub(super) struct LogFile {
    /// Where it was found; it may have another name by now.
    pub path: PathBuf,
    file: File,
    pub inode: Inode,
    /// Everything before it was given; always the start of a record.
    offset: u64,
    /// Bytes of the file from `offset` on.
    buffer: Vec<u8>,
    /// How much of the buffer was given; `offset` counts it.
    used: usize,
    /// Length so far of something that is no record, and whose end was not seen.
    junk: u64,
}

impl LogFile {
    /// From its start.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let metadata = file.metadata()?;
        let inode = (metadata.dev(), metadata.ino());
        Ok(Self {
            path,
            file,
            inode,
            offset: 0,
            buffer: Vec::new(),
            used: 0,
            junk: 0,
        })
    }

    /// Bytes, now.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Unix milliseconds of the last write.
    pub fn modified_ms(&self) -> io::Result<i64> {
        let metadata = self.file.metadata()?;
        Ok(metadata
            .mtime()
            .saturating_mul(1000)
            .saturating_add(metadata.mtime_nsec() / 1_000_000))
    }

    /// The file itself, to be read at other places.
    pub fn raw(&self) -> &File {
        &self.file
    }

    /// Everything before it was given.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on from the start of a record.
    pub fn seek(&mut self, offset: u64) {
        self.offset = offset;
        self.forget_buffer();
    }

    /// The next record. After [`Item::End`] it may be called again, and sees what was written since.
    pub fn next(&mut self) -> io::Result<Item> {
        loop {
            let waiting = &self.buffer[self.used..];
            if let Some(end) = waiting.iter().position(|&b| b == b'\n') {
                return Ok(self.take(end + 1));
            }
            if waiting.len() > RECORD_BYTES_MAX {
                // Let go of it, but remember that its end is still to come.
                self.junk += waiting.len() as u64;
                self.offset += waiting.len() as u64;
                self.forget_buffer();
            }
            let length = self.length()?;
            let known = self.offset + (self.buffer.len() - self.used) as u64;
            if length < self.offset {
                self.seek(0);
                self.junk = 0;
                return Ok(Item::Truncated);
            }
            if length <= known {
                // A torn record may be cut off and written anew: it is looked at afresh.
                self.forget_buffer();
                return Ok(Item::End);
            }
            if !self.fill()? {
                self.forget_buffer();
                return Ok(Item::End);
            }
        }
    }

    /// The unfinished record at the end of a file that nobody writes any more.
    pub fn torn(&mut self) -> io::Result<Option<Item>> {
        let bytes = self.length()?.saturating_sub(self.offset) + self.junk;
        let offset = self.offset - self.junk;
        self.offset = offset + bytes;
        self.junk = 0;
        self.forget_buffer();
        Ok((bytes > 0).then_some(Item::Corrupt { offset, bytes }))
    }

    fn take(&mut self, length: usize) -> Item {
        let line = &self.buffer[self.used..self.used + length];
        let record = if self.junk == 0 { record::parse(line) } else { None };
        let (offset, bytes) = (self.offset - self.junk, length as u64 + self.junk);
        self.used += length;
        self.offset += length as u64;
        self.junk = 0;
        record.map_or(Item::Corrupt { offset, bytes }, Item::Record)
    }

    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let have = self.buffer.len();
        self.buffer.resize(have + READ_BYTES, 0);
        let read = self
            .file
            .read_at(&mut self.buffer[have..], self.offset + have as u64);
        self.buffer.truncate(have + *read.as_ref().unwrap_or(&0));
        read.map(|n| n > 0)
    }

    fn forget_buffer(&mut self) {
        self.buffer = Vec::new();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn line(text: &str) -> String {
        format!("{{\"log\":\"{text}\\n\",\"stream\":\"stdout\",\"time\":\"2024-02-29T23:59:59Z\"}}\n")
    }

    fn items(file: &mut LogFile) -> Vec<String> {
        let mut items = Vec::new();
        loop {
            match file.next().unwrap() {
                Item::End => return items,
                Item::Record(record) => items.push(record.data.trim_end().to_owned()),
                Item::Corrupt { offset, bytes } => items.push(format!("corrupt {offset}+{bytes}")),
                Item::Truncated => items.push("truncated".into()),
            }
        }
    }

    #[test]
    fn a_torn_record_waits_and_may_be_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        fs::write(&path, line("1") + "{\"log\":\"torn").unwrap();
        let mut file = LogFile::open(path.clone()).unwrap();
        assert_eq!(items(&mut file), ["1"]);
        fs::write(&path, line("1") + &line("2")).unwrap();
        assert_eq!(items(&mut file), ["2"]);
        fs::write(&path, line("1") + &line("2") + "torn").unwrap();
        assert_eq!(items(&mut file), [""; 0]);
        let offset = 2 * line("1").len() as u64;
        assert_eq!(file.torn().unwrap(), Some(Item::Corrupt { offset, bytes: 4 }));
        assert_eq!(file.torn().unwrap(), None);
        fs::write(&path, line("3")).unwrap();
        assert_eq!(items(&mut file), ["truncated", "3"]);
    }

    #[test]
    fn what_is_no_record_is_told_with_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let (first, junk) = (line("1"), vec![0; 3 * RECORD_BYTES_MAX]);
        let bytes = [first.as_bytes(), &junk, b"\nx\n", line("2").as_bytes()].concat();
        fs::write(&path, bytes).unwrap();
        let at = first.len();
        let expected = [
            "1".to_owned(),
            format!("corrupt {at}+{}", junk.len() + 1),
            format!("corrupt {}+2", at + junk.len() + 1),
            "2".to_owned(),
        ];
        assert_eq!(items(&mut LogFile::open(path).unwrap()), expected);
    }

    proptest! {
        /// Every byte of any file is accounted for: as a record, as corrupt, or as the torn end.
        #[test]
        fn every_byte_is_accounted_for(
            parts in prop::collection::vec(
                prop_oneof![Just(line("good").into_bytes()), prop::collection::vec(any::<u8>(), 0..40)], 0..20,
            ),
        ) {
            let bytes = parts.concat();
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("x");
            fs::write(&path, &bytes).unwrap();
            let mut file = LogFile::open(path).unwrap();
            let mut seen = 0;
            loop {
                match file.next().unwrap() {
                    Item::Record(_) => seen = file.offset,
                    Item::Corrupt { offset, bytes } => {
                        prop_assert_eq!(offset, seen);
                        seen += bytes;
                    }
                    Item::Truncated => prop_assert!(false, "nobody truncated it"),
                    Item::End => break,
                }
            }
            if let Some(Item::Corrupt { offset, bytes }) = file.torn().unwrap() {
                prop_assert_eq!(offset, seen);
                seen += bytes;
            }
            prop_assert_eq!(seen, bytes.len() as u64);
        }
    }
}
