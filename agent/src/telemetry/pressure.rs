//! Owns pressure stall information (Linux Documentation/accounting/psi.rst), and CPU throttling counts, which are read when
//! somebody asks. The kernel has the first for cgroups of v2 only, and may have been built without it: there is then no
//! figure, rather than zeros. Nothing waited and nobody looked are two things.

use std::path::{Path, PathBuf};

use super::{
    kept::{Buffer, KeptFile},
    parse,
};

/// Longest file that is looked at, bytes; all of these are two or three short lines.
const TEXT_BYTES_MAX: usize = 4096;

/// µs in which some, and all, of the processes that could have run waited for one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stall {
    pub some_usec: u64,
    pub full_usec: u64,
}

/// One cgroup's, or the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    pub cpu: Stall,
    pub memory: Stall,
    pub io: Stall,
}

/// Periods of the CPU ceiling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Periods {
    pub all: u64,
    pub throttled: u64,
}

/// The three files of one cgroup, or of the host.
#[derive(Debug)]
pub(super) struct PressureFiles {
    cpu: KeptFile,
    memory: KeptFile,
    io: KeptFile,
}

impl PressureFiles {
    /// Descriptors that are kept, at most.
    pub(super) const DESCRIPTORS: usize = 3;

    /// Of a cgroup of v2.
    pub(super) fn of_cgroup(directory: &Path, keep: bool) -> Self {
        let file = |what: &str| KeptFile::new(directory.join(format!("{what}.pressure")), keep);
        Self {
            cpu: file("cpu"),
            memory: file("memory"),
            io: file("io"),
        }
    }

    pub(super) fn of_host() -> Self {
        let file = |what: &str| KeptFile::new(PathBuf::from("/proc/pressure").join(what), true);
        Self {
            cpu: file("cpu"),
            memory: file("memory"),
            io: file("io"),
        }
    }

    /// What the kernel says now. None: it is gone, or the kernel does not tell.
    pub(super) fn read(&mut self, buffer: &mut Buffer) -> Option<Pressure> {
        Some(Pressure {
            cpu: stall(self.cpu.read(buffer)?)?,
            memory: stall(self.memory.read(buffer)?)?,
            io: stall(self.io.read(buffer)?)?,
        })
    }
}

/// The periods of a cgroup's CPU ceiling, v1 and v2; `directory` is the CPU controller's. None: it is gone.
pub fn periods(directory: &Path) -> Option<Periods> {
    let text = read(&directory.join("cpu.stat"))?;
    Some(Periods {
        all: parse::flat(&text, "nr_periods"),
        throttled: parse::flat(&text, "nr_throttled"),
    })
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    (text.len() <= TEXT_BYTES_MAX).then_some(text)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, and the same with `full`, which old kernels lack for CPU.
fn stall(text: &str) -> Option<Stall> {
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
        line.split(' ')
            .find_map(|word| word.strip_prefix("total="))
            .map(parse::number)
    };
    Some(Stall {
        some_usec: total("some")?,
        full_usec: total("full").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_and_what_is_not_there_is_not_made_up() {
        let directory = tempfile::tempdir().unwrap();
        let line = |total: u32| format!("avg10=0.00 avg60=0.00 avg300=0.00 total={total}");
        for (file, text) in [
            ("cpu.pressure", format!("some {}\n", line(5))),
            ("memory.pressure", format!("some {}\nfull {}\n", line(7), line(6))),
            ("io.pressure", format!("some {}\nfull {}\n", line(9), line(8))),
            ("cpu.stat", "usage_usec 1\nnr_periods 10\nnr_throttled 3\n".into()),
        ] {
            std::fs::write(directory.path().join(file), text).unwrap();
        }
        let mut buffer = Buffer::default();
        let mut of = |directory: &Path| PressureFiles::of_cgroup(directory, true).read(&mut buffer);
        let pressure = of(directory.path()).unwrap();
        assert_eq!(of(Path::new("/nonexistent")), None);
        assert_eq!((pressure.cpu.some_usec, pressure.cpu.full_usec), (5, 0));
        assert_eq!((pressure.memory.full_usec, pressure.io.some_usec), (6, 9));
        assert_eq!(
            periods(directory.path()),
            Some(Periods {
                all: 10,
                throttled: 3
            })
        );
    }
}
