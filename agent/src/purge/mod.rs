//! Owns the end of an instance on a host: its tasks are ended and everything it made is removed. Asks the host and
//! containerd what there is: needs no identity, no control plane and no database, which may all be gone or broken.
//! Never runs beside an agent, and never touches the configuration.

pub(crate) mod cgroups;
mod command;
mod namespace;
mod settings;

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_agent_core::{effect::SignalKind, event::ObservedState};

pub use command::Purge;
pub(crate) use command::confirmed;
pub use settings::Settings;

use crate::{
    effects::{
        network::{Network, NetworkConfig},
        runtime::{Runtime, RuntimeConfig},
    },
    sys::Chain,
};

/// From the stop signal to SIGKILL: what ECS gives a container unless its definition says otherwise.
const STOP_GRACE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// How tasks are found and ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// As the agent does, and containerd's namespace is emptied and removed too.
    Containerd,
    /// By their cgroups: for a host whose containerd is gone for good. What containerd keeps on the disk stays.
    Cgroups,
}

/// What could not be removed, a line for each.
#[derive(Debug, Default)]
struct Left(Vec<String>);

impl Left {
    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {}", Chain(error.as_ref())));
        }
    }
}

/// Ends every task of the instance and removes containers, images, namespaces, links, the nftables table, cgroups, the
/// run directory and the state directory. Goes on past what cannot be removed; may be repeated.
///
/// # Errors
/// An agent runs, or containerd does not answer: nothing was changed. Else what is left.
pub async fn purge(settings: &Settings, through: Through) -> anyhow::Result<()> {
    refuse_beside_an_agent(settings)?;
    let mut left = Left::default();
    match through {
        Through::Containerd => end_containers(settings, &mut left).await?,
        Through::Cgroups => cgroups::end_processes(settings, &mut left).await,
    }
    left.note("network", remove_network(settings).await);
    cgroups::remove(settings, &mut left).await;
    // They say what is the instance's: as long as something of it is left, a repetition needs them.
    if left.0.is_empty() {
        for directory in [&settings.run_dir, &settings.state_dir] {
            left.note("directory", remove_directory(directory));
        }
    }
    anyhow::ensure!(
        left.0.is_empty(),
        "not everything could be removed:\n  {}",
        left.0.join("\n  ")
    );
    Ok(())
}

/// A socket that is answered, not only there: a killed agent leaves its own.
pub(crate) fn refuse_beside_an_agent(settings: &Settings) -> anyhow::Result<()> {
    let socket = settings.run_dir.join("logger.sock");
    anyhow::ensure!(
        UnixStream::connect(&socket).is_err(),
        "an agent of instance {} runs (it answers at {}): stop it first: systemctl stop berth-agent",
        settings.instance,
        socket.display()
    );
    Ok(())
}

async fn end_containers(settings: &Settings, left: &mut Left) -> anyhow::Result<()> {
    let address = &settings.containerd_address;
    let channel = containerd_client::connect(address).await.with_context(|| {
        format!(
            "connect to containerd at {}: start it, or, if it is gone for good, give --without-containerd",
            address.display()
        )
    })?;
    let runtime = Runtime::new(channel.clone(), runtime_config(settings));
    let containers = runtime.list().await?;
    for container in &containers {
        if matches!(container.state, ObservedState::Running { .. }) {
            let asked = runtime
                .signal(&container.container, container.attempt, SignalKind::Stop)
                .await;
            left.note("stop signal", asked.map_err(anyhow::Error::from));
        }
    }
    wait_until_ended(&runtime).await?;
    for container in &containers {
        let removed = runtime.remove(&container.container, container.attempt).await;
        left.note("container", removed.map_err(anyhow::Error::from));
    }
    for snapshot in runtime.snapshots().await? {
        let removed = runtime.remove_snapshot(&snapshot.key).await;
        left.note("snapshot", removed.map_err(anyhow::Error::from));
    }
    left.note("containerd", namespace::remove(channel, &settings.instance).await);
    Ok(())
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

async fn remove_network(settings: &Settings) -> anyhow::Result<()> {
    // Without the directory there was no agent in this boot, and so no namespace, link or table of its.
    if !settings.run_dir.exists() {
        return Ok(());
    }
    let network = Network::start(NetworkConfig {
        instance: settings.instance.clone(),
        run_dir: settings.run_dir.clone(),
        task_cidr: settings.task_cidr,
        kept: Vec::new(),
    })
    .await?;
    network.remove_strays(&network.list().await?).await?;
    network.stop().await?;
    Ok(())
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
pub(crate) fn runtime_config(settings: &Settings) -> RuntimeConfig {
    RuntimeConfig {
        instance: settings.instance.clone(),
        namespace: settings.instance.clone(),
        snapshotter: settings.snapshotter.clone(),
        runtime: String::new(),
        binary_name: None,
        logger: PathBuf::new(),
        logger_socket: PathBuf::new(),
        log_dir: PathBuf::new(),
        run_dir: settings.run_dir.clone(),
        cgroup_parent: settings.cgroup_parent(),
        cgroup_version: 2,
        start_concurrency: 1,
    }
}
