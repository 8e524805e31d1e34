//! Owns the end of an instance on a host: its tasks are ended and everything it made is removed. Asks the host and
//! containerd what there is: needs no identity, no control plane and no database, which may all be gone or broken.
//! Never runs beside an agent, and never touches the configuration.

pub(crate) mod cgroups;
mod command;
mod namespace;

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_agent_core::{effect::SignalKind, event::ObservedState};
use tonic::transport::Channel;

pub use command::Purge;
pub(crate) use command::confirmed;

use crate::{
    config::default_containerd,
    effects::{
        network::{HostObject, Network, NetworkConfig, NetworkError},
        quotas::Quotas,
        runtime::{self, Runtime, RuntimeConfig},
        shared_memory,
        volumes::{Places, Volumes},
    },
    place::Place,
    sys::Chain,
};

/// From the stop signal to SIGKILL: what ECS gives a container unless its definition says otherwise.
const STOP_GRACE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// It may be starting.
const CONTAINERD_PATIENCE: Duration = Duration::from_secs(5);
/// What a containerd at the usual address leaves on a host: below the root directory.
const CONTAINERD_TRACES: [&str; 5] = [
    "run/containerd/containerd.sock",
    "var/lib/containerd",
    "etc/containerd/config.toml",
    "usr/bin/containerd",
    "usr/local/bin/containerd",
];

/// How tasks are found and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// As the agent does, and containerd's namespace is emptied and removed too.
    Containerd,
    /// By their cgroups: for a host whose containerd is gone for good. What containerd keeps on the disk stays.
    Cgroups,
}

/// What becomes of volumes that outlive tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedVolumes {
    Keep,
    Remove,
}

/// A purge that left nothing else.
#[derive(Debug)]
pub struct Purged {
    /// What was not looked at, and can hold nothing that matters.
    pub unseen: Vec<String>,
    /// Names of the shared volumes that stay.
    pub kept: Vec<String>,
}

/// How a purge went, a line for each.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What could not be removed, and what could not be looked at and may hold something.
    left: Vec<String>,
    /// What could not be looked at, and need not be.
    unseen: Vec<String>,
}

impl Outcome {
    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.left.push(format!("{what}: {}", Chain(error.as_ref())));
        }
    }

    /// Something that lives no longer than a boot could not be looked at.
    fn unseen(&mut self, place: &Place, what: &str, why: &str) {
        let line = format!("{what}: {why}");
        let lines = if ran_in_this_boot(place) {
            &mut self.left
        } else {
            &mut self.unseen
        };
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
}

/// The first thing an agent does is to make its sockets in the run directory, which a boot empties; the package makes it.
fn ran_in_this_boot(place: &Place) -> bool {
    match std::fs::read_dir(&place.run_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Ends every task of the instance and removes containers, images, namespaces, links, the nftables table, cgroups, the
/// run directory and the state directory, but for shared volumes, which are users' data, unless `shared` says so. Goes on past
/// what cannot be removed or looked at; may be repeated.
///
/// # Errors
/// An agent runs, and nothing was changed. Else what is left, or may be.
pub async fn purge(place: &Place, through: Through, shared: SharedVolumes) -> anyhow::Result<Purged> {
    place.check_removable()?;
    refuse_beside_an_agent(place)?;
    let mut outcome = Outcome::default();
    match through {
        Through::Containerd => end_containers(place, &mut outcome).await,
        Through::Cgroups => {
            let line = "containerd: not asked; what it has on its disk stays";
            outcome.unseen.push(line.into());
            cgroups::end_processes(place, &mut outcome).await;
        }
    }
    remove_network(place, &mut outcome).await;
    if let Some(cgroups) = cgroups::open(place, &mut outcome) {
        outcome.note("cgroups", cgroups::remove(&cgroups).await);
    }
    // Before the directories they are in: what is mounted there must not be removed with them.
    let mut kept = Vec::new();
    match volumes(place).remove_all().await {
        Ok(names) if shared == SharedVolumes::Keep => kept = names,
        Ok(_) => {}
        Err(error) => outcome.note("volumes", Err(error.into())),
    }
    let unmounted = shared_memory::remove_all(&place.run_dir);
    outcome.note("shared memory", unmounted.map_err(anyhow::Error::from));
    outcome.note("quotas", release_quotas(place));
    // They say what is the instance's: as long as something of it is left, a repetition needs them.
    if outcome.left.is_empty() {
        outcome.note("directory", remove_directory(&place.run_dir));
        let removed = if kept.is_empty() {
            remove_directory(&place.state_dir)
        } else {
            remove_all_but(&place.state_dir, "volumes")
        };
        outcome.note("directory", removed);
    }
    anyhow::ensure!(
        outcome.left.is_empty(),
        "not everything could be removed or looked at:\n  {}",
        outcome.left.join("\n  ")
    );
    Ok(Purged {
        unseen: outcome.unseen,
        kept,
    })
}

fn release_quotas(place: &Place) -> anyhow::Result<()> {
    let quotas = Quotas::new(&place.state_dir);
    for task in quotas.tasks()? {
        quotas.release(&task)?;
    }
    Ok(())
}

fn volumes(place: &Place) -> Volumes {
    Volumes::new(Places::new(&place.state_dir, &place.run_dir, Vec::new()))
}

fn remove_all_but(directory: &Path, name: &str) -> anyhow::Result<()> {
    let reading = || format!("read {}", directory.display());
    for entry in std::fs::read_dir(directory).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        if entry.file_name() == name {
            continue;
        }
        let path = entry.path();
        let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

/// A socket that is answered, not only there: a killed agent leaves its own.
pub(crate) fn refuse_beside_an_agent(place: &Place) -> anyhow::Result<()> {
    let socket = place.run_dir.join("logger.sock");
    anyhow::ensure!(
        UnixStream::connect(&socket).is_err(),
        "an agent of instance {} runs (it answers at {}): stop it first: systemctl stop berth-agent",
        place.instance,
        socket.display()
    );
    Ok(())
}

async fn end_containers(place: &Place, outcome: &mut Outcome) {
    let address = &place.containerd_address;
    match runtime::connect(address, CONTAINERD_PATIENCE, |_| {}).await {
        Ok(channel) => {
            let emptied = empty(place, channel, outcome).await;
            outcome.note("containerd", emptied);
        }
        Err(_) if containerd_never_was(place, Path::new("/")) => {
            let line = format!(
                "containerd: none is installed, and there is nothing at {}",
                address.display()
            );
            outcome.unseen.push(line);
            cgroups::end_processes(place, outcome).await;
        }
        Err(error) => {
            outcome.left.push(format!(
                "containerd: what it has could not be looked at: {}. Start it and repeat this, or, if it is gone for good, \
                 give --without-containerd",
                Chain(&error)
            ));
            cgroups::end_processes(place, outcome).await;
        }
    }
}

/// Nothing of ours can be in a containerd of which there is no trace. Of one at another address it is not known where
/// its traces would be.
fn containerd_never_was(place: &Place, root: &Path) -> bool {
    place.containerd_address == default_containerd()
        && !CONTAINERD_TRACES.iter().any(|trace| root.join(trace).exists())
}

/// Ends the containers and removes them and all else in containerd's namespace.
async fn empty(place: &Place, channel: Channel, outcome: &mut Outcome) -> anyhow::Result<()> {
    let runtime = Runtime::new(channel.clone(), runtime_config(place));
    let containers = runtime.list().await?;
    for container in &containers {
        if matches!(container.state, ObservedState::Running { .. }) {
            let asked = runtime
                .signal(&container.container, container.attempt, SignalKind::Stop)
                .await;
            outcome.note("stop signal", asked.map_err(anyhow::Error::from));
        }
    }
    wait_until_ended(&runtime).await?;
    for container in &containers {
        let removed = runtime.remove(&container.container, container.attempt).await;
        outcome.note("container", removed.map_err(anyhow::Error::from));
    }
    for task in runtime.holders().await? {
        let removed = runtime.release_holder(&task).await;
        outcome.note("holder of namespaces", removed.map_err(anyhow::Error::from));
    }
    for shim in runtime.lost_shims().await {
        runtime.end_shim(shim.pid).await;
    }
    let removed = runtime.remove_probes().await;
    outcome.note("probe of a runtime", removed.map_err(anyhow::Error::from));
    for snapshot in runtime.snapshots().await? {
        let removed = runtime.remove_snapshot(&snapshot.key).await;
        outcome.note("snapshot", removed.map_err(anyhow::Error::from));
    }
    namespace::remove(channel, &place.instance).await
}

/// Those that go on are killed by their removal.
async fn wait_until_ended(runtime: &Runtime) -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < STOP_GRACE {
        let listed = runtime.list().await?;
        let running = |state: &ObservedState| matches!(state, ObservedState::Running { .. });
        if !listed.iter().any(|container| running(&container.state)) {
            break;
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

async fn remove_network(place: &Place, outcome: &mut Outcome) {
    match remove_network_objects(place).await {
        Err(error @ (NetworkError::NftSpawn { .. } | NetworkError::NftMissing { .. })) => {
            let advice = format!("{}: install nftables, or reboot, and repeat this", Chain(&error));
            outcome.unseen(place, "nftables table", &advice);
        }
        done => outcome.note("network", done.map_err(anyhow::Error::from)),
    }
}

async fn remove_network_objects(place: &Place) -> Result<(), NetworkError> {
    let network = Network::left_behind(NetworkConfig {
        instance: place.instance.clone(),
        run_dir: place.run_dir.clone(),
        task_cidr: place.task_cidr.into(),
        ranges: Default::default(),
        lans: Default::default(),
        interfaces: vec![],
        control_plane: Default::default(),
        kept: Vec::new(),
        // Of no rule that is made here.
        endpoint_port: 0,
        mtu: None,
        ready: 0,
        pass_other_firewalls: false,
        published: Vec::new(),
        resolver_port: None,
        instance_metadata: false,
    })?;
    let mut objects = network.list().await?;
    // Those of our links go with them; a route to another link is somebody else's.
    objects.retain(|object| !matches!(object, HostObject::Route { .. }));
    network.remove_strays(&objects).await?;
    network.stop().await
}

fn remove_directory(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Only listing, signals and removal are used of it.
pub(crate) fn runtime_config(place: &Place) -> RuntimeConfig {
    RuntimeConfig {
        instance: place.instance.clone(),
        containerd: place.containerd_address.clone(),
        namespace: place.instance.clone(),
        snapshotter: place.snapshotter.clone(),
        runtime: String::new(),
        binary_name: None,
        runtimes: std::collections::BTreeMap::new(),
        seccomp_dir: PathBuf::new(),
        gpus: Default::default(),
        quotas: Quotas::new(&place.state_dir),
        logger: PathBuf::new(),
        init: None,
        logger_socket: PathBuf::new(),
        log_dir: PathBuf::new(),
        run_dir: place.run_dir.clone(),
        name_server: None,
        cgroup_parent: place.cgroup_parent(),
        cgroup_version: 2,
        volumes: volumes(place),
        start_concurrency: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_that_was_never_there_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let none = Path::new("/nonexistent/agent.toml");
        let mut place = Place::load(none).unwrap();
        assert!(containerd_never_was(&place, dir.path()));
        place.containerd_address = "/run/k3s/containerd/containerd.sock".into();
        assert!(!containerd_never_was(&place, dir.path()));
        place.containerd_address = default_containerd();
        std::fs::create_dir_all(dir.path().join("var/lib/containerd")).unwrap();
        assert!(!containerd_never_was(&place, dir.path()));
    }

    #[test]
    fn what_cannot_be_looked_at_is_left_only_where_an_agent_ran() {
        let dir = tempfile::tempdir().unwrap();
        let mut place = Place::load(Path::new("/nonexistent/agent.toml")).unwrap();
        place.run_dir = dir.path().join("run");
        let lines = |place: &Place| {
            let mut outcome = Outcome::default();
            outcome.unseen(place, "cgroups", "not mounted");
            (outcome.left.len(), outcome.unseen.len())
        };
        assert_eq!(lines(&place), (0, 1));
        std::fs::create_dir(&place.run_dir).unwrap();
        assert_eq!(lines(&place), (0, 1), "the package makes the directory");
        std::fs::write(place.run_dir.join("agent.sock"), "").unwrap();
        assert_eq!(lines(&place), (1, 0));
    }
}
