//! Owns which life of the host the agent's records are of: a boot of its kernel, or what came after a halt of all tasks
//! within one (a soft reboot, or a shutdown that was called off). Never ends a task: `halt` does.

use std::{io, path::Path};

use crate::sys;

/// In the run directory, which a boot empties.
const MARK: &str = "halted";

/// The kernel's boot id, and the id of this life: another one than before means that tasks were ended, as by a boot.
///
/// # Errors
/// The kernel does not say, or the mark is there and cannot be read.
pub fn ids(run_dir: &Path) -> io::Result<(String, String)> {
    let boot = sys::boot_id()?;
    match std::fs::read_to_string(run_dir.join(MARK)) {
        Ok(halt) => Ok((boot.clone(), format!("{boot}/{}", halt.trim()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((boot.clone(), boot)),
        Err(error) => Err(error),
    }
}

/// From now on it is another life.
///
/// # Errors
/// The run directory is not there or cannot be written.
pub fn end(run_dir: &Path) -> io::Result<()> {
    let fresh = run_dir.join("halted.new");
    std::fs::write(&fresh, uuid::Uuid::new_v4().simple().to_string())?;
    std::fs::rename(fresh, run_dir.join(MARK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_halt_is_another_life() {
        let dir = tempfile::tempdir().unwrap();
        let id = |dir: &Path| ids(dir).map(|(boot, life)| (boot == sys::boot_id().unwrap()).then_some(life));
        let first = id(dir.path()).unwrap();
        assert_eq!(first, sys::boot_id().ok());
        end(dir.path()).unwrap();
        let second = id(dir.path()).unwrap();
        assert_eq!(second, id(dir.path()).unwrap());
        end(dir.path()).unwrap();
        let third = id(dir.path()).unwrap();
        assert!(
            first != second && second != third,
            "{first:?} {second:?} {third:?}"
        );
        assert!(end(&dir.path().join("gone")).is_err());
    }
}
