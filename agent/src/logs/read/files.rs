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

/// Every file of a log, oldest first. None of those that stay is missed, however often it is rotated meanwhile: a file
/// moves only to higher numbers, and is looked for in rising order.
pub(super) fn open_all(path: &Path) -> io::Result<Vec<LogFile>> {
    let last = highest_number(path)?;
    let mut files: Vec<LogFile> = Vec::new();
    // One more than was seen: a rotation may have made it since.
    for number in 0..=last.saturating_add(1) {
        match LogFile::open(numbered(path, number)) {
            Ok(file) if files.iter().any(|known| known.inode == file.inode) => {}
            Ok(file) => files.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
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

fn highest_number(path: &Path) -> io::Result<u32> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(0);
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut highest = 0;
    for entry in entries {
        let entry = entry?.file_name();
        let number = entry
            .as_bytes()
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"."))
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    Ok(highest.min(FILES_MAX))
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
}
