//! Owns how a seccomp profile is found on the node. Never looks outside its directory, and never follows a link there.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use berth_agent_core::oci::seccomp_profile::{BYTES_MAX, Profile, ProfileError};

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no regular file", path.display())]
    Kind { path: PathBuf },
    #[error("{}: mode {mode:o} lets others write it", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}", path.display())]
    Profile { path: PathBuf, source: ProfileError },
}

/// The profile `NAME.json`.
pub(super) fn read(directory: &Path, name: &str) -> Result<Profile, SeccompError> {
    let path = directory.join(format!("{name}.json"));
    let text = read_text(&path)?;
    Profile::parse(&text).map_err(|source| SeccompError::Profile { path, source })
}

fn read_text(path: &Path) -> Result<String, SeccompError> {
    let failed = |source| SeccompError::Read {
        path: path.into(),
        source,
    };
    // Without O_NONBLOCK the opening of a pipe waits for its other end.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SeccompError::Kind { path: path.into() });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(SeccompError::Mode {
            path: path.into(),
            mode: metadata.mode() & 0o777,
        });
    }
    let mut text = String::new();
    // One byte more, so that the parser sees that it is too long.
    let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn only_the_operators_own_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let good = r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#;
        write("good.json", good, 0o644);
        write("open.json", good, 0o666);
        write("bad.json", "{}", 0o600);
        write("long.json", &" ".repeat(BYTES_MAX + 10), 0o600);
        std::os::unix::fs::symlink("good.json", dir.path().join("link.json")).unwrap();
        fs::create_dir(dir.path().join("dir.json")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe.json"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        read(dir.path(), "good").unwrap();
        let why = |name: &str| crate::sys::Chain(&read(dir.path(), name).unwrap_err()).to_string();
        for (name, says) in [
            ("none", "No such file"),
            ("open", "mode 666"),
            ("bad", "defaultAction"),
            ("long", "longer than"),
            ("link", "Too many levels"),
            ("dir", "no regular file"),
            ("pipe", "no regular file"),
        ] {
            assert!(why(name).contains(says), "{name}: {}", why(name));
        }
    }
}
