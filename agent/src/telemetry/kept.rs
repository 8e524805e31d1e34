//! Owns files that are read again and again through a descriptor that stays open: less than half the cost of opening
//! them each time. Reads are bounded; a file that is not there yet, or is there anew, is opened when it is next read.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf};

/// Longest content that is read of one file, bytes. `/proc/net/dev` with 400 links has some 50 kB.
const CONTENT_BYTES_MAX: usize = 1024 * 1024;
/// What one read asks for first, bytes: every file of a cgroup fits.
const FIRST_READ_BYTES: usize = 16 * 1024;

/// Where contents are read to: one for a whole sweep.
#[derive(Debug)]
pub(super) struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; FIRST_READ_BYTES])
    }
}

/// One file and, mostly, its open descriptor.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    file: Option<File>,
    keep: bool,
}

impl KeptFile {
    /// Opened at the first read. Without `keep`, opened at each.
    pub(super) fn new(path: PathBuf, keep: bool) -> Self {
        Self {
            path,
            file: None,
            keep,
        }
    }

    /// What the kernel says now. None: it is not there.
    pub(super) fn read<'a>(&mut self, buffer: &'a mut Buffer) -> Option<&'a str> {
        let length = match self.file.as_ref().map(|file| read_first(file, buffer)) {
            Some(Ok(length)) => length,
            // Never opened, or its cgroup was removed (ENODEV), perhaps to be made again under the same name.
            Some(Err(_)) | None => {
                self.file = None;
                let file = File::open(&self.path).ok()?;
                let length = read_first(&file, buffer).ok()?;
                self.file = self.keep.then_some(file);
                length
            }
        };
        std::str::from_utf8(&buffer.0[..length]).ok()
    }

    /// As [`KeptFile::read`] for a kept file that the kernel hands out page by page.
    pub(super) fn read_to_end<'a>(&mut self, buffer: &'a mut Buffer) -> Option<&'a str> {
        let mut length = self.read(buffer)?.len();
        let file = self.file.as_ref()?;
        loop {
            if length == buffer.0.len() {
                if length >= CONTENT_BYTES_MAX {
                    break;
                }
                buffer.0.resize(length * 2, 0);
            }
            match file.read_at(&mut buffer.0[length..], length as u64).ok()? {
                0 => break,
                more => length += more,
            }
        }
        std::str::from_utf8(&buffer.0[..length]).ok()
    }
}

fn read_first(file: &File, buffer: &mut Buffer) -> io::Result<usize> {
    file.read_at(&mut buffer.0, 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_read_afresh_and_found_when_it_comes_later() {
        for keep in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            let (mut kept, mut buffer) = (KeptFile::new(path.clone(), keep), Buffer::default());
            assert_eq!(kept.read(&mut buffer), None);
            fs::write(&path, "one").unwrap();
            assert_eq!(kept.read(&mut buffer), Some("one"));
            fs::write(&path, "three").unwrap();
            assert_eq!(kept.read(&mut buffer), Some("three"));
            assert_eq!(kept.file.is_some(), keep);
        }
    }

    #[test]
    fn a_long_file_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let content = "x".repeat(FIRST_READ_BYTES * 5 + 7);
        fs::write(&path, &content).unwrap();
        let (mut kept, mut buffer) = (KeptFile::new(path, true), Buffer::default());
        assert_eq!(kept.read_to_end(&mut buffer), Some(content.as_str()));
        assert_eq!(kept.read_to_end(&mut buffer), Some(content.as_str()));
    }
}
