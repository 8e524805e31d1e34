//! Owns the steps of a start that need no running part: directories, what the node has, what the store and the host say
//! of the time before. Never spawns.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;
use berth_agent_core::{
    desired::Protocol,
    event::{Event, Restarted},
    node::{Node, NodeConfig, NodeRecord},
    resources::Capacity,
};
use berth_proto::node::v1 as wire;
use tokio::sync::{mpsc, watch};

use super::ports;
use crate::{
    config::{Config, ConfigError},
    convert,
    dial::Dialer,
    driver::{Input, send},
    effects::{Host, Listening, images::ExpectedArchives, volumes},
    identity::Identity,
    link::{Facts, Target},
    store::Loaded,
    sys::{self, Chain},
};

const ARCHIVES_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) fn make_directories(config: &Config) -> anyhow::Result<()> {
    let make = |key: &str, path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.and_then(|()| probe(path)).with_context(|| {
            let advice = "it must be on a file system that root can write and that has room";
            format!("{key} {} cannot be written: {advice}", path.display())
        })
    };
    make("state_dir", &config.state_dir, 0o700)?;
    make("state_dir", &config.log_dir(), 0o750)?;
    make("run_dir", &config.run_dir, 0o711)
}

/// Writes a little and removes it: a mode says nothing of a full or read-only file system.
fn probe(directory: &Path) -> std::io::Result<()> {
    let path = directory.join(".probe");
    let written = std::fs::write(&path, b"berth");
    let removed = std::fs::remove_file(&path);
    written.and(removed)
}

pub(super) fn node_config(config: &Config, boot_id: &str) -> anyhow::Result<NodeConfig> {
    let reserved = &config.reserved;
    let memory = sys::memory_total().context("read the host's memory")?;
    let all = sys::cpu_count() * 1024;
    if reserved.cpu_units >= all || u64::from(reserved.memory_mib) << 20 >= memory {
        return Err(ConfigError::Value {
            key: "reserved",
            value: format!("{} CPU units, {} MiB", reserved.cpu_units, reserved.memory_mib),
            problem: format!(
                "leaves nothing of {all} CPU units and {} MiB for tasks",
                memory >> 20
            ),
        }
        .into());
    }
    let tcp = reserved.tcp_ports.iter().map(|port| (Protocol::Tcp, *port));
    let capacity = Capacity {
        cpu_units: all - reserved.cpu_units,
        memory_bytes: memory - (u64::from(reserved.memory_mib) << 20),
        reserved_ports: tcp
            .chain(reserved.udp_ports.iter().map(|port| (Protocol::Udp, *port)))
            .collect(),
    };
    Ok(NodeConfig {
        capacity,
        task_range: config.task_range()?,
        boot_id: boot_id.to_owned(),
        dynamic_ports: ports::dynamic(config.dynamic_ports.as_deref())?,
        log_retention_ms: i64::from(config.log_retention_s) * 1000,
        admission_deadline_ms: i64::from(config.admission_deadline_s) * 1000,
    })
}

/// The agent's own ports are no task's, also while the agent is away.
pub(super) fn reserve_own(config: &Config, capacity: &mut Capacity, listening: &Listening) {
    let metrics = config
        .metrics_listen
        .map(|address| (Protocol::Tcp, address.port()));
    let own = listening.ports.iter().copied().chain(metrics);
    capacity.reserved_ports.extend(own.filter(|(_, port)| *port != 0));
}

fn reserved_ports(capacity: &Capacity, protocol: Protocol) -> Vec<u32> {
    let reserved = capacity.reserved_ports.iter();
    let of = reserved.filter(|(of, _)| *of == protocol);
    of.map(|(_, port)| u32::from(*port)).collect()
}

pub(super) async fn facts(
    config: &Config,
    node: &NodeConfig,
    host: &Host,
    boot_id: &str,
    gpus: watch::Receiver<Vec<String>>,
) -> anyhow::Result<Facts> {
    let mut attributes = config.attributes.clone();
    attributes.insert("ecs.os-type".into(), "linux".into());
    let cpu = if sys::architecture() == "amd64" {
        "x86_64"
    } else {
        sys::architecture()
    };
    attributes.insert("ecs.cpu-architecture".into(), cpu.into());
    attributes.insert("berth.cgroup-version".into(), host.cgroups.version().to_string());
    Ok(Facts {
        boot_id: boot_id.into(),
        run_id: uuid::Uuid::new_v4().simple().to_string(),
        runtime_version: format!(
            "containerd {}",
            host.runtime.version().await.context("ask containerd's version")?
        ),
        cgroup_version: host.cgroups.version(),
        capacity: wire::Capacity {
            cpu_units: node.capacity.cpu_units,
            memory_bytes: node.capacity.memory_bytes,
            task_addresses: berth_agent_core::addresses::Addresses::new(node.task_range).capacity(),
            reserved_tcp_ports: reserved_ports(&node.capacity, Protocol::Tcp),
            reserved_udp_ports: reserved_ports(&node.capacity, Protocol::Udp),
            pids: 0,
            gpu_ids: vec![],
        },
        gpus,
        features: features(host).await,
        network: config.network.clone(),
        attributes,
    })
}

/// What this host cannot do is not said to be possible: a task that needs it is placed elsewhere, or told why not.
async fn features(host: &Host) -> Vec<String> {
    let can = |feature: &&str| match *feature {
        convert::SWAPPINESS => host.cgroups.version() == 1,
        convert::MAX_SWAP => host.runtime.counts_swap(),
        convert::INIT | convert::INTERACTIVE | convert::PID_TASK | convert::IPC_TASK => {
            host.runtime.has_init()
        }
        convert::APPARMOR => host.runtime.has_apparmor(),
        convert::VOLUMES_NFS => volumes::kernel_has_nfs(),
        _ => true,
    };
    let own = convert::FEATURES.iter().copied().filter(can);
    own.map(str::to_owned).chain(runtimes(host).await).collect()
}

/// A feature for each runtime that tasks may ask for and that works here.
async fn runtimes(host: &Host) -> Vec<String> {
    let mut offered = Vec::new();
    for (name, result) in host.runtime.probe_runtimes().await {
        match result {
            Ok(()) => offered.push(format!("{}{name}", convert::RUNTIME_PREFIX)),
            Err(error) => {
                tracing::warn!(runtime = name, error = %Chain(&error), "the runtime does not work here and is not offered");
            }
        }
    }
    tracing::info!(?offered, "runtimes that tasks may ask for");
    offered
}

/// The core as it was stored, and what the host says about it now.
pub(super) async fn restore(
    config: NodeConfig,
    loaded: Loaded,
    host: &Host,
    life: &str,
) -> anyhow::Result<(Node, Restarted)> {
    let host_rebooted = loaded.boot_id.is_some_and(|then| then != life);
    let containers = host
        .observe()
        .await
        .context("list the containers of this instance")?;
    host.adopt_loggers(&containers, &loaded.tasks).await;
    let recorded: BTreeSet<_> = loaded.tasks.iter().map(|task| &task.spec.id).collect();
    let addresses = if containers.iter().all(|seen| recorded.contains(&seen.task)) {
        BTreeMap::new()
    } else {
        host.addresses().await.context("list the tasks' addresses")?
    };
    let restarted = Restarted {
        host_rebooted,
        containers,
        addresses,
    };
    let node = match loaded.node {
        Some(record) => Node::load(config, record, loaded.tasks, loaded.ledger),
        None => {
            let record = NodeRecord::recovered(config.task_range, &loaded.tasks, loaded.last_reported);
            Node::load(config, record, loaded.tasks, loaded.ledger)
        }
    };
    Ok((node, restarted))
}

pub(super) async fn forward_exits(
    mut seen: mpsc::Receiver<berth_agent_core::event::Exit>,
    inputs: mpsc::Sender<Input>,
) {
    while let Some(exit) = seen.recv().await {
        send(&inputs, Event::Exited(exit)).await;
    }
}

pub(super) async fn forward_holders(
    mut ended: mpsc::Receiver<berth_agent_core::ids::TaskId>,
    inputs: mpsc::Sender<Input>,
) {
    while let Some(task) = ended.recv().await {
        send(&inputs, Event::HolderEnded { task }).await;
    }
}

/// Imports what the images directory has; pulls wait for `expected` to be dropped.
pub(super) async fn import_archives(host: &Host, expected: ExpectedArchives) {
    let _expected = expected;
    match tokio::time::timeout(ARCHIVES_TIMEOUT, host.images.import_archives()).await {
        Ok(results) => {
            for (path, result) in results {
                match result {
                    Ok(names) => tracing::info!(archive = %path.display(), ?names, "imported images"),
                    Err(error) => {
                        tracing::error!(archive = %path.display(), error = %Chain(&error), "cannot import images");
                    }
                }
            }
        }
        Err(_) => tracing::error!(
            seconds = ARCHIVES_TIMEOUT.as_secs(),
            "importing images took too long; going on"
        ),
    }
}

pub(super) fn target(config: &Config, identity: &Identity) -> anyhow::Result<Target> {
    let dialer = Dialer::from_env()?;
    let address = config.control_plane.clone();
    let route = dialer.route(&address.parse().context("configuration: control_plane")?)?;
    tracing::info!(%address, node = %identity.node_id, "the control plane is reached {route}");
    Ok(Target {
        address,
        node: identity.node_id.clone(),
        source: config.identity(),
        dialer,
    })
}
