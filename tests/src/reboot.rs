//! Owns what a reboot of the host does to one instance: everything that lives in the kernel or below /run is gone, what is
//! on a disk is not, and the host has another boot id.

use std::process::Command;

use crate::cluster::Cluster;

impl Cluster {
    /// The power goes, for agent, containerd and everything of this instance; the agent is not started again yet. The
    /// control plane is on another host.
    pub fn power_off_and_boot(&mut self) {
        if self.agent_runs() {
            self.kill_agent();
        }
        self.containerd.kill();
        let script = format!(
            "kill_all() {{ pids=$(pgrep -f -- '[-]namespace {instance} '; cat $(find {cgroups} -name cgroup.procs \
               2>/dev/null) 2>/dev/null); [ -z \"$pids\" ] || kill -9 $pids 2>/dev/null; [ -z \"$pids\" ]; }}; \
             for i in $(seq 50); do kill_all && break; sleep 0.1; done; kill_all || exit 1; \
             for n in /run/{instance}/netns/*; do umount -l $n; done; umount -l /run/{instance}/netns; \
             for m in /run/{instance}/shm/*; do umount -l $m; done; \
             rm -rf /run/{instance} /run/containerd/runc/{instance}; nft delete table inet {instance}; \
             for m in $(cut -d' ' -f5 /proc/self/mountinfo | grep -e '^{state}/' -e '^{agent}/'); do umount -l $m; done; \
             rm -rf {state}; \
             for d in {cgroups}; do [ ! -d $d ] || find $d -depth -type d -exec rmdir {{}} +; done; exit 0",
            instance = self.instance,
            cgroups = self.cgroup_parents(),
            state = self.containerd.state_dir().display(),
            agent = self.agent_state_dir().display(),
        );
        let done = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(done.status.success(), "processes outlive the power: {done:?}");
        let database = rusqlite::Connection::open(self.agent_state_dir().join("agent.db")).unwrap();
        let changed = database
            .execute(
                "UPDATE meta SET value = 'the boot before' WHERE key = 'boot_id'",
                [],
            )
            .unwrap();
        assert_eq!(changed, 1, "the agent had stored its host's boot");
        self.containerd.restart();
    }
}
