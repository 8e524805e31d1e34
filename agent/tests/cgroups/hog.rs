//! Processes that are put into a container's cgroups before they begin, as a runtime would.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use berth_agent::effects::cgroups::{Cgroups, Hierarchies};
use berth_agent_core::{
    desired::Limits,
    ids::{ContainerId, TaskId},
};

pub const MIB: u64 = 1 << 20;

/// A parent of its own in the host's hierarchies. What a failed test leaves in it is killed and removed.
pub struct Parent {
    pub cgroups: Cgroups,
    name: String,
}

impl Parent {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "berth-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        Self {
            cgroups: Cgroups::new(&format!("/{name}")).unwrap(),
            name,
        }
    }

    /// Every directory of this parent, in every hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        let hierarchies = Hierarchies::detect().unwrap();
        let roots = hierarchies
            .all()
            .iter()
            .map(|hierarchy| hierarchy.mount.join(&self.name));
        roots.filter(|root| root.exists()).collect()
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for name in self.cgroups.list().unwrap_or_default() {
            let Ok(task) = name.parse() else { continue };
            for pid in self.cgroups.processes(&task) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let cgroups = self.cgroups.clone();
            // The test's own runtime may be current on this thread.
            let remove = move || drop(runtime.block_on(cgroups.remove_task(&task)));
            let _ = std::thread::spawn(remove).join();
        }
        let _ = self.cgroups.remove_parent();
    }
}

/// A process that is killed with the test.
pub struct Process(pub Child);

impl Process {
    /// Runs a shell script with its process in the cgroup `path`, in all the hierarchies it is made in.
    pub fn start(cgroups: &Cgroups, path: &str, script: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for controller in ["cpu", "cpuacct", "memory", "pids", "blkio"] {
            let dir = cgroups.directory(controller, path).unwrap();
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        Self(child)
    }

    pub fn in_container(cgroups: &Cgroups, task: &TaskId, container: &ContainerId, script: &str) -> Self {
        Self::start(cgroups, &cgroups.container_path(task, container), script)
    }

    /// Puts it into `rt`, whose hierarchies all take processes.
    pub fn in_rt(cgroups: &Cgroups, task: &TaskId, script: &str) -> Self {
        Self::start(cgroups, &cgroups.rt_path(task), script)
    }

    pub fn id(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn task(n: u32) -> TaskId {
    format!("{n:032x}").parse().unwrap()
}

pub fn container(n: u32) -> ContainerId {
    format!("{n:032x}").parse().unwrap()
}

pub const LIMITS: Limits = Limits {
    cpu_units: 256,
    memory_bytes: 64 * MIB,
};
