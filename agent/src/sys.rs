//! Owns small facts about the host and the process. Never changes anything.

use std::{error::Error, fmt, path::Path};

/// An error with its causes, in one line: each said once.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        write!(f, "{last}")?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Changes with every boot (proc(5), `/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> std::io::Result<String> {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// What `uname -r` prints.
pub fn kernel_version() -> std::io::Result<String> {
    read_line("/proc/sys/kernel/osrelease")
}

/// The host's name.
pub fn hostname() -> std::io::Result<String> {
    read_line("/proc/sys/kernel/hostname")
}

/// Memory of the host, bytes.
pub fn memory_total() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| std::io::Error::other("/proc/meminfo has no MemTotal"))
}

/// Cores that this process may use.
pub fn cpu_count() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// As Go and the OCI name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn read_line(path: impl AsRef<Path>) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("start container")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_says_every_cause_once() {
        let error = Outer(std::io::Error::other("no such file"));
        assert_eq!(Chain(&error).to_string(), "start container: no such file");
    }

    #[test]
    fn the_host_has_memory_and_a_boot_id() {
        assert!(memory_total().unwrap() > 1 << 20);
        assert_eq!(boot_id().unwrap().len(), 36);
    }
}
