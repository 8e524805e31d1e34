//! Owns the look at the program that is mounted into containers: whether it is there and needs nothing that they may not have.
//! Never runs it.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Headers are at the beginning of a file.
const LOOKED_AT_BYTES: u64 = 4096;
/// The program header that names a dynamic linker: elf(5).
const PT_INTERP: u32 = 3;

/// Why containers cannot be given the program.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{path} is not a program of its own: it needs libraries, which containers do not have; build it with scripts/build-helpers"
    )]
    NotStatic { path: PathBuf },
}

/// Whether containers can be given the program at `path`.
///
/// # Errors
/// It cannot be read, or it needs libraries.
pub fn usable(path: &Path) -> Result<(), InitError> {
    let read = |source| InitError::Read {
        path: path.into(),
        source,
    };
    let mut begin = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(LOOKED_AT_BYTES).read_to_end(&mut begin).map_err(read)?;
    match is_static(&begin) {
        true => Ok(()),
        false => Err(InitError::NotStatic { path: path.into() }),
    }
}

/// `begin` is the beginning of a 64-bit little-endian ELF file that names no dynamic linker.
fn is_static(begin: &[u8]) -> bool {
    headers_without(begin, PT_INTERP).unwrap_or(false)
}

/// None: it is no such file, or its headers are not at its beginning.
fn headers_without(begin: &[u8], unwanted: u32) -> Option<bool> {
    let number = |at: usize, size: usize| {
        let bytes = begin.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    if !begin.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for header in 0..count {
        let at = header.checked_mul(size)?.checked_add(start)?;
        if number(usize::try_from(at).ok()?, 4)? == u64::from(unwanted) {
            return Some(false);
        }
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_names_a_linker_is_not_static() {
        // A test program of this workspace needs libraries.
        let own = std::env::current_exe().unwrap();
        assert!(matches!(usable(&own), Err(InitError::NotStatic { .. })));
        assert!(matches!(
            usable(Path::new("/nonexistent")),
            Err(InitError::Read { .. })
        ));
        let mut file = vec![0; 64 + 2 * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (file[32], file[54], file[56]) = (64, 56, 2);
        assert!(is_static(&file));
        file[64 + 56] = 3;
        assert!(!is_static(&file));
        assert!(!is_static(&file[..64 + 40]), "cut short");
    }

    proptest::proptest! {
        #[test]
        fn any_file_has_an_answer(rest in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = is_static(&rest);
            let _ = is_static(&[b"\x7fELF\x02\x01".as_slice(), &rest].concat());
        }
    }
}
