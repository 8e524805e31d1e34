//! Owns finding the files of one log while its writer rotates them. Never assumes that a name means the same file twice.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::file::{Inode, LogFile};

/// The logger keeps no more.
const FILES_MAX: u32 = 1000;

/// Every file of a log, oldest first. None of those that stay is missed and none is out of order, however often the log
/// is rotated meanwhile: a file moves only to higher numbers, and is looked for in rising order, so what was not met yet
/// is still ahead; what is met twice has moved, and so has all that is older, which is then met again behind it.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let mut files: Vec<LogFile> = Vec::new();
    let mut next = 0;
    // A rotation may have made a higher number since it was looked for.
    while let Some(last) = highest_number(path)?.filter(|&last| last >= next) {
        for number in next..=last {
            match LogFile::open(numbered(path, number)) {
                Ok(file) => {
                    files.retain(|known| known.inode != file.inode);
                    files.push(file);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        next = last + 1;
    }
    files.reverse();
    Ok(files)
}

/// Which file has the current name now. None: none has.
pub(super) fn current_inode(path: &Path) -> io::Result<Option<Inode>> {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

/// None: there is no log.
fn highest_number(path: &Path) -> io::Result<Option<u32>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(None);
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut highest = None;
    for entry in entries {
        let entry = entry?.file_name();
        let number = match entry.as_bytes().strip_prefix(name.as_bytes()) {
            Some(b"") => Some(0),
            Some(rest) => rest
                .strip_prefix(b".")
                .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok())
                .map(|number| number.min(FILES_MAX)),
            None => None,
        };
        highest = highest.max(number);
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_oldest_first_across_a_gap() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c-json.log");
        assert!(open_all(&path).unwrap().is_empty());
        assert!(open_all(&directory.path().join("none/x")).unwrap().is_empty());
        // A rotation is half way: .1 has moved, the current one has not.
        for name in [
            "c-json.log",
            "c-json.log.2",
            "c-json.log.10",
            "c-json.log.x",
            "other.log.11",
        ] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        let names: Vec<_> = open_all(&path)
            .unwrap()
            .into_iter()
            .map(|f| f.path.extension().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["10", "2", "log"]);
        assert!(current_inode(&path).unwrap().is_some());
    }

    /// A writer that rotates as fast as it can, from the first file on.
    #[test]
    fn no_file_is_missed_or_out_of_order_while_rotations_go_on() {
        const FILES: u32 = 12;
        for _ in 0..500 {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("c-json.log");
            // The length of each file tells when it came.
            fs::write(&path, "").unwrap();
            let first = current_inode(&path).unwrap().unwrap();
            let (written, prepared) = (path.clone(), directory.path().join("prepared"));
            let writer = std::thread::spawn(move || {
                for n in 1..FILES {
                    for number in (0..n).rev() {
                        fs::rename(numbered(&written, number), numbered(&written, number + 1)).unwrap();
                    }
                    fs::write(&prepared, "x".repeat(n as usize)).unwrap();
                    fs::rename(&prepared, &written).unwrap();
                }
            });
            loop {
                let ended = writer.is_finished();
                let files = open_all(&path).unwrap();
                assert_eq!(files.first().map(|file| file.inode), Some(first));
                let lengths: Vec<_> = files.iter().map(|file| file.length().unwrap()).collect();
                assert!(lengths.is_sorted(), "{lengths:?}");
                if ended {
                    assert_eq!(files.len(), FILES as usize);
                    break;
                }
            }
            writer.join().unwrap();
        }
    }
}
