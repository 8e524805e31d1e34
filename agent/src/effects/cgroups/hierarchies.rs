//! Owns where cgroup hierarchies are mounted and which controllers each has. Looked up once; never changes anything.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::error::CgroupError;

/// The mount table is read up to here, bytes.
const MOUNTINFO_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A cgroup or proc file of a few lines is read up to here, bytes.
const SMALL_FILE_BYTES_MAX: u64 = 64 * 1024;

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// v1: the controllers, or one `name=…`. v2: empty, they differ by directory.
    pub controllers: Vec<String>,
    /// The unified hierarchy; beside v1 ones (hybrid) it has no controllers.
    pub unified: bool,
}

/// All hierarchies of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    version: u8,
    all: Vec<Hierarchy>,
}

impl Hierarchies {
    /// As the host has them mounted.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] when there is none.
    pub fn detect() -> Result<Self, CgroupError> {
        const PATH: &str = "/proc/self/mountinfo";
        let table = read_bounded(Path::new(PATH), MOUNTINFO_BYTES_MAX).map_err(|source| CgroupError::Io {
            step: "read",
            path: PATH.into(),
            source,
        })?;
        Self::parse(&table)
    }

    /// Only the unified hierarchy, at `mount`.
    pub fn unified_at(mount: &Path) -> Self {
        let unified = Hierarchy {
            mount: mount.to_owned(),
            controllers: Vec::new(),
            unified: true,
        };
        Self {
            version: 2,
            all: vec![unified],
        }
    }

    /// From the text of proc_pid_mountinfo(5): fields up to ` - `, then type, source and super block options.
    fn parse(table: &str) -> Result<Self, CgroupError> {
        let mut all: Vec<Hierarchy> = Vec::new();
        for line in table.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else {
                continue;
            };
            let mut filesystem = filesystem.split(' ');
            let unified = match filesystem.next() {
                Some("cgroup") => false,
                Some("cgroup2") => true,
                _ => continue,
            };
            let options = filesystem.nth(1).unwrap_or_default();
            let controllers = if unified { Vec::new() } else { controllers(options) };
            let Some(mount) = mount.split(' ').nth(4).map(PathBuf::from) else {
                continue;
            };
            // A hierarchy may be mounted again elsewhere: the first is the host's own.
            let known = |h: &Hierarchy| h.unified == unified && h.controllers == controllers;
            if !all.iter().any(known) {
                all.push(Hierarchy {
                    mount,
                    controllers,
                    unified,
                });
            }
        }
        let has_v1 = all
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == "memory" || c == "cpu"));
        let version = match (has_v1, all.iter().any(|h| h.unified)) {
            (true, _) => 1,
            (false, true) => 2,
            (false, false) => return Err(CgroupError::NotMounted),
        };
        if version == 2 {
            // Named v1 hierarchies that some hosts still mount (net_cls for old VPN clients) are not ours to use.
            all.retain(|h| h.unified);
        }
        Ok(Self { version, all })
    }

    /// 1 or 2; hybrid is 1.
    pub fn version(&self) -> u8 {
        self.version
    }

    /// Every hierarchy in which a task may have directories.
    pub fn all(&self) -> &[Hierarchy] {
        &self.all
    }

    /// Whether the kernel offers a controller to cgroups of this host.
    pub fn offers(&self, controller: &str) -> bool {
        if self.version == 1 {
            return self.of(controller).is_some();
        }
        let listed = |h: &Hierarchy| read_small(&h.mount.join("cgroup.controllers")).unwrap_or_default();
        let mut listed = self.all.iter().map(listed);
        listed.any(|listed| listed.split_whitespace().any(|name| name == controller))
    }

    /// Where the files of a controller are: its own hierarchy on v1, the only one on v2.
    pub fn of(&self, controller: &str) -> Option<&Path> {
        let has = |h: &&Hierarchy| {
            if self.version == 2 {
                h.unified
            } else {
                h.controllers.iter().any(|c| c == controller)
            }
        };
        self.all.iter().find(has).map(|h| h.mount.as_path())
    }
}

/// What of the super block options names controllers: all but the flags that cgroup v1 knows.
fn controllers(options: &str) -> Vec<String> {
    const FLAGS: [&str; 7] = [
        "rw",
        "ro",
        "none",
        "noprefix",
        "clone_children",
        "xattr",
        "cpuset_v2_mode",
    ];
    options
        .split(',')
        .filter(|option| {
            !option.is_empty() && !FLAGS.contains(option) && !option.starts_with("release_agent=")
        })
        .map(str::to_owned)
        .collect()
}

/// Reads a small file of the kernel.
pub(super) fn read_small(path: &Path) -> io::Result<String> {
    read_bounded(path, SMALL_FILE_BYTES_MAX)
}

fn read_bounded(path: &Path, max: u64) -> io::Result<String> {
    let mut content = String::new();
    let length = File::open(path)?.take(max + 1).read_to_string(&mut content)?;
    if length as u64 > max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("over {max} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
30 29 0:25 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
31 29 0:26 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory
32 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
33 29 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
34 29 0:26 / /srv/other/memory rw - cgroup cgroup rw,memory
";

    #[test]
    fn hybrid_is_version_1_with_every_hierarchy_once() {
        let found = Hierarchies::parse(HYBRID).unwrap();
        assert_eq!(found.version(), 1);
        assert_eq!(found.all().len(), 4);
        assert_eq!(found.of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(found.of("memory"), Some(Path::new("/sys/fs/cgroup/memory")));
        assert_eq!(
            found.of("name=systemd"),
            Some(Path::new("/sys/fs/cgroup/systemd"))
        );
        assert_eq!(found.of("pids"), None);
    }

    #[test]
    fn unified_alone_is_version_2_and_has_every_controller() {
        let table = "\
30 22 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate
31 30 0:27 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls
";
        let found = Hierarchies::parse(table).unwrap();
        assert_eq!((found.version(), found.all().len()), (2, 1));
        assert_eq!(found.of("memory"), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn a_host_without_cgroups_is_an_error() {
        let table = "22 27 0:21 / /proc rw,relatime - proc proc rw\n";
        assert!(matches!(Hierarchies::parse(table), Err(CgroupError::NotMounted)));
    }
}
