//! Owns the log's files: the current one, and `path.1` (the newest rotated) to `path.N`. Never leaves a torn record at
//! the end of the current one: what does not fit as a whole is cut off again.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::args::Args;

const FILE_MODE: u32 = 0o640;
const DIRECTORY_MODE: u32 = 0o750;
/// More than the longest record (16 KiB, each byte six in JSON, and its frame): a torn one begins behind this.
const TORN_BYTES_MAX: u64 = 128 * 1024;

/// Not all could be appended.
#[derive(Debug)]
pub struct Short {
    /// Bytes of whole records that are in the file.
    pub kept: usize,
    pub source: io::Error,
}

/// The files of one log.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    size_max: u64,
    files_max: u32,
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    /// Ends with a whole record; anything behind it is torn.
    size: u64,
}

impl LogFile {
    /// Opens nothing yet.
    pub fn new(args: &Args) -> Self {
        Self {
            path: args.path.clone(),
            size_max: args.max_size,
            files_max: args.max_file,
            current: None,
        }
    }

    /// How many bytes the current file may still take; opens it, if it is not.
    pub fn room(&mut self) -> io::Result<u64> {
        let limit = if self.size_max == 0 {
            u64::MAX
        } else {
            self.size_max
        };
        Ok(limit.saturating_sub(self.current()?.size))
    }

    /// The current file has no record.
    pub fn is_empty(&mut self) -> io::Result<bool> {
        Ok(self.current()?.size == 0)
    }

    /// Appends whole records.
    ///
    /// # Errors
    /// [`Short`]: the file ends with the last whole record that could be written.
    pub fn append(&mut self, records: &[u8]) -> Result<(), Short> {
        let current = self.current().map_err(|source| Short { kept: 0, source })?;
        let (written, result) = write_all(&current.file, records);
        let Err(source) = result else {
            current.size += written as u64;
            return Ok(());
        };
        let kept = records[..written]
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        current.size += kept as u64;
        if current.file.set_len(current.size).is_err() {
            // Opening it again cuts the torn record off.
            self.current = None;
        }
        Err(Short { kept, source })
    }

    /// Makes the current file the newest rotated one, and the oldest disappear. Stopped half way, it is finished by the
    /// next call without losing another file.
    pub fn rotate(&mut self) -> io::Result<()> {
        if self.files_max == 1 {
            let current = self.current()?;
            current.file.set_len(0)?;
            current.size = 0;
            return Ok(());
        }
        let last = self.files_max - 1;
        let gap = (1..last).find(|&n| !self.rotated(n).exists()).unwrap_or(last);
        for n in (1..gap).rev() {
            fs::rename(self.rotated(n), self.rotated(n + 1))?;
        }
        fs::rename(&self.path, self.rotated(1))?;
        self.current = None;
        Ok(())
    }

    fn rotated(&self, n: u32) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{n}"));
        name.into()
    }

    fn current(&mut self) -> io::Result<&mut Current> {
        let current = match self.current.take() {
            Some(current) => current,
            None => open(&self.path)?,
        };
        Ok(self.current.insert(current))
    }
}

fn open(path: &Path) -> io::Result<Current> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)?;
    }
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .append(true)
        .create(true)
        .mode(FILE_MODE)
        .open(path)?;
    let size = whole_records(&file)?;
    file.set_len(size)?;
    Ok(Current { file, size })
}

/// Length of the file without a record that a killed logger, or a full disk, left unfinished: the pipe still has it.
fn whole_records(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut tail = vec![0; usize::try_from(length.min(TORN_BYTES_MAX)).unwrap_or(0)];
    let start = length - tail.len() as u64;
    if let [.., last] = &mut tail[..] {
        // Nearly always whole: look at one byte before reading many.
        file.read_exact_at(std::slice::from_mut(last), length - 1)?;
        if *last == b'\n' {
            return Ok(length);
        }
    }
    file.read_exact_at(&mut tail, start)?;
    match tail.iter().rposition(|&b| b == b'\n') {
        Some(at) => Ok(start + at as u64 + 1),
        // A whole file of less than one record is torn; a long one is not ours to cut.
        None => Ok(if start == 0 { 0 } else { length }),
    }
}

/// Like `write_all`, but tells how far it came.
fn write_all(mut file: &File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &Path, size_max: u64, files_max: u32) -> LogFile {
        let path = directory.join("a/b/x.log");
        LogFile {
            path,
            size_max,
            files_max,
            current: None,
        }
    }

    fn contents(log: &LogFile) -> Vec<String> {
        let rotated = (1..20).map(|n| log.rotated(n));
        let files = std::iter::once(log.path.clone()).chain(rotated);
        files
            .filter_map(|path| fs::read_to_string(path).ok())
            .map(|text| text.replace('\n', " "))
            .collect()
    }

    #[test]
    fn the_oldest_file_goes_when_there_are_enough() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 10, 3);
        for record in ["1\n", "2\n", "3\n", "4\n", "5\n"] {
            log.append(record.as_bytes()).unwrap();
            log.rotate().unwrap();
        }
        log.append(b"6\n").unwrap();
        assert_eq!(contents(&log), ["6 ", "5 ", "4 "]);
        assert_eq!(log.room().unwrap(), 8);
    }

    #[test]
    fn a_rotation_stopped_half_way_costs_no_further_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 10, 4);
        for record in ["1\n", "2\n", "3\n"] {
            log.append(record.as_bytes()).unwrap();
            log.rotate().unwrap();
        }
        log.append(b"4\n").unwrap();
        // Killed after 1 → (gone), 2 → .3, 3 → .2; .1 is missing now.
        fs::rename(log.rotated(2), log.rotated(3)).unwrap();
        fs::rename(log.rotated(1), log.rotated(2)).unwrap();
        log.rotate().unwrap();
        assert_eq!(contents(&log), ["4 ", "3 ", "2 "]);
    }

    #[test]
    fn one_file_starts_over() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 4, 1);
        log.append(b"1\n2\n").unwrap();
        assert_eq!(log.room().unwrap(), 0);
        log.rotate().unwrap();
        log.append(b"3\n").unwrap();
        assert_eq!(contents(&log), ["3 "]);
    }

    #[test]
    fn a_torn_record_is_cut_off() {
        use std::os::unix::fs::PermissionsExt;
        for (before, after) in [
            ("1\n2\nto", "1 2 3 "),
            ("torn", "3 "),
            ("", "3 "),
            ("1\n", "1 3 "),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let mut log = log(directory.path(), 0, 1);
            fs::create_dir_all(log.path.parent().unwrap()).unwrap();
            fs::write(&log.path, before).unwrap();
            log.append(b"3\n").unwrap();
            assert_eq!(contents(&log), [after], "{before:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), 0, 1);
        log.append(b"1\n").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&log.path) & !0o640, 0);
        assert_eq!(mode(log.path.parent().unwrap()) & !0o750, 0);
    }
}
