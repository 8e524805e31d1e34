//! What the host and its tasks use, read straight from kernel files with descriptors that stay open. Owns the sweep and
//! its figures, and the sample before; never decides what is too much.

mod cgroup;
mod history;
mod kept;
mod parse;
pub mod pressure;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    time::Instant,
};

use berth_agent_core::ids::{ContainerId, TaskId};
use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::statvfs,
};

use self::{
    cgroup::CgroupFiles,
    history::History,
    kept::{Buffer, KeptFile},
    pressure::PressureFiles,
};
pub use self::{history::Sample, pressure::Pressure};
use crate::effects::{
    cgroups::Cgroups,
    network::{Names, NetworkError, Owner},
};

/// The host as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeUsage {
    /// CPU time of all cores since boot, µs.
    pub cpu_used_usec: u64,
    /// Total less what the kernel says is available.
    pub memory_used_bytes: u64,
    pub memory_total_bytes: u64,
    /// Of the file system that holds the state directory.
    pub disk_used_bytes: u64,
    pub disk_total_bytes: u64,
    /// One-minute load average, times 1000.
    pub load1_milli: u64,
    /// None: the kernel does not measure it.
    pub pressure: Option<Pressure>,
}

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskUsage {
    pub task: TaskId,
    /// All containers together, without our overhead.
    pub total: Usage,
    pub containers: Vec<ContainerUsage>,
    /// Shim and loggers.
    pub overhead: Usage,
    /// In bridge mode that of its containers together. None: it has no interface of its own.
    pub network: Option<NetworkUsage>,
}

/// One container of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerUsage {
    pub container: ContainerId,
    pub name: String,
    pub usage: Usage,
    /// None: it has no interface of its own, but its task's, if that has one.
    pub network: Option<NetworkUsage>,
}

/// One task now, and what it used a moment ago.
#[derive(Clone, Debug)]
pub struct TaskSample {
    pub at: Instant,
    pub node: NodeUsage,
    pub usage: TaskUsage,
    /// At least a second older. None: nobody looked since the task is known.
    pub before: Option<Sample>,
}

/// One cgroup. Counters start with the cgroup: a container's start anew with each attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time, µs.
    pub cpu_used_usec: u64,
    /// CPU time withheld because of a limit, µs.
    pub cpu_throttled_usec: u64,
    /// In use now, without page cache that can be dropped at once.
    pub memory_used_bytes: u64,
    /// Zero: no limit of its own.
    pub memory_limit_bytes: u64,
    pub pids: u64,
    pub io_read_bytes: u64,
    pub io_write_bytes: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// None: the kernel does not measure it, as on cgroup v1.
    pub pressure: Option<Pressure>,
}

/// One task's interface, as the task sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkUsage {
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

impl NetworkUsage {
    fn plus(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes + other.rx_bytes,
            rx_packets: self.rx_packets + other.rx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
            tx_packets: self.tx_packets + other.tx_packets,
            rx_dropped: self.rx_dropped + other.rx_dropped,
            tx_dropped: self.tx_dropped + other.tx_dropped,
        }
    }
}

/// Reads usage. One sweep costs well under 0.1 ms per task. A task keeps at most 15 descriptors and 11 per container, as long
/// as all of them together are under half of what the process may open; the files of later tasks are opened for each sweep.
#[derive(Debug)]
pub struct Sampler {
    cgroups: Cgroups,
    names: Names,
    disk: PathBuf,
    stat: KeptFile,
    meminfo: KeptFile,
    loadavg: KeptFile,
    pressure: PressureFiles,
    links: KeptFile,
    tasks: BTreeMap<TaskId, TaskFiles>,
    descriptors_max: usize,
    buffer: Buffer,
}

#[derive(Debug)]
struct TaskFiles {
    /// Kept at most; zero when none are.
    descriptors: usize,
    link: String,
    total: CgroupFiles,
    overhead: CgroupFiles,
    containers: Vec<ContainerFiles>,
    history: History,
}

#[derive(Debug)]
struct ContainerFiles {
    id: ContainerId,
    name: String,
    link: String,
    files: CgroupFiles,
}

impl Sampler {
    /// For the tasks of one instance; `disk` is any path on the file system to report.
    ///
    /// # Errors
    /// When `instance` is not a valid name.
    pub fn new(cgroups: Cgroups, instance: &str, disk: &Path) -> Result<Self, NetworkError> {
        let kept = |path: &str| KeptFile::new(path.into(), true);
        Ok(Self {
            cgroups,
            names: Names::new(instance)?,
            disk: disk.to_owned(),
            stat: kept("/proc/stat"),
            meminfo: kept("/proc/meminfo"),
            loadavg: kept("/proc/loadavg"),
            pressure: PressureFiles::of_host(),
            // All links in one read, in the network namespace of the thread that reads first.
            links: kept("/proc/thread-self/net/dev"),
            tasks: BTreeMap::new(),
            descriptors_max: descriptors_max(),
            buffer: Buffer::default(),
        })
    }

    /// Includes a task in the sweeps. Its cgroups and link need not exist yet. Again: replaces its containers.
    pub fn register(&mut self, task: &TaskId, containers: &[(ContainerId, String)]) {
        self.unregister(task);
        let wanted =
            CgroupFiles::WORKLOAD_DESCRIPTORS * (1 + containers.len()) + CgroupFiles::OVERHEAD_DESCRIPTORS;
        let in_use: usize = self.tasks.values().map(|files| files.descriptors).sum();
        let keep = in_use + wanted <= self.descriptors_max;
        let cgroups = &self.cgroups;
        let container = |(id, name): &(ContainerId, String)| {
            let files = CgroupFiles::workload(cgroups, &cgroups.container_path(task, id), keep);
            ContainerFiles {
                id: id.clone(),
                name: name.clone(),
                link: self.names.link(&Owner::container(task, id)),
                files,
            }
        };
        let files = TaskFiles {
            descriptors: if keep { wanted } else { 0 },
            link: self.names.link(&task.into()),
            total: CgroupFiles::workload(cgroups, &cgroups.limited_path(task), keep),
            overhead: CgroupFiles::overhead(cgroups, &cgroups.rt_path(task), keep),
            containers: containers.iter().map(container).collect(),
            history: History::default(),
        };
        self.tasks.insert(task.clone(), files);
    }

    /// Leaves a task out from now on and closes its files.
    pub fn unregister(&mut self, task: &TaskId) {
        self.tasks.remove(task);
    }

    /// One sweep over host and tasks, ordered by task. Blocks for as long as the kernel needs to add up its counters.
    pub fn sample(&mut self) -> (NodeUsage, Vec<TaskUsage>) {
        let node = self.sample_node();
        let links = self.sample_links();
        let (buffer, at) = (&mut self.buffer, Instant::now());
        let tasks = self.tasks.iter_mut().map(|(task, files)| {
            let usage = files.read(task, &links, buffer);
            files.history.note(at, node.cpu_used_usec, &usage);
            usage
        });
        let tasks = tasks.collect();
        (node, tasks)
    }

    /// One task alone, and the host. None: it is not registered.
    pub fn sample_task(&mut self, task: &TaskId) -> Option<TaskSample> {
        let node = self.sample_node();
        let links = self.sample_links();
        let files = self.tasks.get_mut(task)?;
        let (usage, at) = (files.read(task, &links, &mut self.buffer), Instant::now());
        files.history.note(at, node.cpu_used_usec, &usage);
        let before = files.history.before(at).cloned();
        Some(TaskSample {
            at,
            node,
            usage,
            before,
        })
    }

    fn sample_node(&mut self) -> NodeUsage {
        let buffer = &mut self.buffer;
        let mut node = NodeUsage {
            cpu_used_usec: self.stat.read(buffer).map_or(0, parse::host_cpu_usec),
            load1_milli: self.loadavg.read(buffer).map_or(0, parse::load1_milli),
            pressure: self.pressure.read(buffer),
            ..NodeUsage::default()
        };
        if let Some(meminfo) = self.meminfo.read(buffer) {
            let available = parse::meminfo_bytes(meminfo, "MemAvailable");
            node.memory_total_bytes = parse::meminfo_bytes(meminfo, "MemTotal");
            node.memory_used_bytes = node.memory_total_bytes.saturating_sub(available);
        }
        if let Ok(disk) = statvfs(&self.disk) {
            node.disk_total_bytes = disk.blocks() * disk.fragment_size();
            node.disk_used_bytes = (disk.blocks() - disk.blocks_free()) * disk.fragment_size();
        }
        node
    }

    /// The counters of registered tasks' links.
    fn sample_links(&mut self) -> HashMap<String, NetworkUsage> {
        let prefix = self.names.prefix();
        let Some(text) = self.links.read_to_end(&mut self.buffer) else {
            return HashMap::new();
        };
        parse::links(text)
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, usage)| (name.to_owned(), usage))
            .collect()
    }
}

/// Half of what this process may open now: the rest is for everything else.
fn descriptors_max() -> usize {
    let (soft, _hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    usize::try_from(soft / 2).unwrap_or(usize::MAX)
}

impl TaskFiles {
    fn read(
        &mut self,
        task: &TaskId,
        links: &HashMap<String, NetworkUsage>,
        buffer: &mut Buffer,
    ) -> TaskUsage {
        let mut total = self.total.read(buffer);
        let containers: Vec<ContainerUsage> = self
            .containers
            .iter_mut()
            .map(|container| ContainerUsage {
                container: container.id.clone(),
                name: container.name.clone(),
                usage: container.files.read(buffer),
                network: links.get(&container.link).copied(),
            })
            .collect();
        // The kernel counts a kill where the victim was.
        total.oom_kills += containers
            .iter()
            .map(|container| container.usage.oom_kills)
            .sum::<u64>();
        let of_containers = containers.iter().filter_map(|container| container.network);
        TaskUsage {
            task: task.clone(),
            total,
            network: links
                .get(&self.link)
                .copied()
                .or_else(|| of_containers.reduce(NetworkUsage::plus)),
            containers,
            overhead: self.overhead.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::effects::cgroups::Hierarchies;

    #[test]
    fn v2_figures_come_from_the_unified_files() {
        let root = tempfile::tempdir().unwrap();
        let task: TaskId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let container: ContainerId = "fedcba9876543210fedcba9876543210".parse().unwrap();
        let cgroups =
            Cgroups::with_hierarchies(Hierarchies::unified_at(root.path()), "/berth.slice").unwrap();
        let dir = root
            .path()
            .join(cgroups.container_path(&task, &container).trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        let mut sampler = Sampler::new(cgroups, "berth", Path::new("/")).unwrap();
        sampler.register(&task, &[(container, "web".to_owned())]);
        for (file, text) in [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1\nthrottled_usec 25\n"),
            ("memory.current", "5000\n"),
            ("memory.stat", "anon 1\ninactive_file 2000\n"),
            ("memory.max", "max\n"),
            ("memory.events.local", "oom 1\noom_kill 1\n"),
            ("pids.current", "3\n"),
            ("io.stat", "8:0 rbytes=10 wbytes=20\n"),
            ("cpu.pressure", "some avg10=0.00 total=0\n"),
            (
                "memory.pressure",
                "some avg10=0.00 total=40\nfull avg10=0.00 total=30\n",
            ),
            (
                "io.pressure",
                "some avg10=0.00 total=0\nfull avg10=0.00 total=0\n",
            ),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
        let (_, tasks) = sampler.sample();
        let expected = Usage {
            cpu_used_usec: 1500,
            cpu_throttled_usec: 25,
            memory_used_bytes: 3000,
            memory_limit_bytes: 0,
            pids: 3,
            io_read_bytes: 10,
            io_write_bytes: 20,
            oom_kills: 1,
            pressure: Some(Pressure {
                memory: pressure::Stall {
                    some_usec: 40,
                    full_usec: 30,
                },
                ..Pressure::default()
            }),
        };
        assert_eq!(tasks[0].containers[0].usage, expected);
        assert_eq!((tasks[0].total.oom_kills, tasks[0].network), (1, None));
        assert_eq!(tasks[0].overhead.pressure, None);
        assert_eq!(sampler.sample_task(&task).unwrap().usage, tasks[0]);
        sampler.unregister(&task);
        assert!(sampler.sample().1.is_empty());
        assert!(sampler.sample_task(&task).is_none());
    }

    #[test]
    fn descriptors_are_kept_within_a_budget() {
        let cgroups =
            Cgroups::with_hierarchies(Hierarchies::unified_at(Path::new("/nonexistent")), "/berth.slice")
                .unwrap();
        let mut sampler = Sampler::new(cgroups, "berth", Path::new("/")).unwrap();
        sampler.descriptors_max = 35;
        let tasks: [TaskId; 3] = [1, 2, 3].map(|n| format!("{n:032x}").parse().unwrap());
        for task in &tasks {
            sampler.register(task, &[]);
            sampler.register(task, &[]);
        }
        let kept = |sampler: &Sampler| {
            sampler
                .tasks
                .values()
                .map(|files| files.descriptors)
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&sampler), [15, 15, 0]);
        sampler.unregister(&tasks[0]);
        sampler.register(&tasks[2], &[]);
        assert_eq!(kept(&sampler), [15, 15]);
    }

    #[test]
    fn the_host_is_measured() {
        let cgroups =
            Cgroups::with_hierarchies(Hierarchies::unified_at(Path::new("/nonexistent")), "/berth.slice")
                .unwrap();
        let (node, _) = Sampler::new(cgroups, "berth", Path::new("/")).unwrap().sample();
        assert!(node.cpu_used_usec > 0 && node.load1_milli < 1_000_000);
        assert!(node.memory_used_bytes > 0 && node.memory_used_bytes < node.memory_total_bytes);
        assert!(node.disk_used_bytes > 0 && node.disk_used_bytes <= node.disk_total_bytes);
    }
}
