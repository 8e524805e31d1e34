//! Owns the agent as a whole: builds the parts, connects them, joins them on the way out. With `executor` the only
//! place that spawns.

use std::{os::unix::fs::DirBuilderExt, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use berth_agent_core::{
    event::{Event, Restarted},
    node::{Node, NodeConfig, NodeRecord},
    report::Status,
    resources::Capacity,
};
use berth_proto::node::v1 as wire;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    config::Config,
    dial::Dialer,
    driver::{Driver, INPUTS_MAX, Input, NodeStatus, Outputs, send},
    effects::Host,
    executor::Executor,
    identity::{Identity, IdentityState, Keeper},
    link::{Facts, Link, LinkState, Target},
    store::{Loaded, Store},
    sys::{self, Chain},
    timers::Timers,
};

/// Answers to desired state that wait for the link.
const DESIRED_ACKS_MAX: usize = 256;
/// Words on whom to believe that wait to be taken.
const TRUST_ORDERS_MAX: usize = 8;
const ARCHIVES_TIMEOUT: Duration = Duration::from_secs(600);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    inputs: mpsc::Sender<Input>,
    status: watch::Receiver<NodeStatus>,
    link: watch::Receiver<LinkState>,
    identity: watch::Receiver<IdentityState>,
    stop: CancellationToken,
    parts: JoinSet<anyhow::Result<()>>,
    host: Arc<Host>,
}

impl Agent {
    /// Builds everything, finds what runs already, and connects. Returns once the agent works; the link may still be
    /// coming up.
    ///
    /// # Errors
    /// What is missing on this host and what to do about it. Nothing is left half made.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        config.check()?;
        let identity = config.load_identity()?;
        make_directories(&config)?;
        let boot_id = sys::boot_id().context("read the host's boot id")?;
        let (store, loaded) = Store::open(&config.database())?;
        for problem in &loaded.quarantined {
            tracing::error!(%problem, "a record of the database cannot be read; it is set aside");
        }
        let (inputs, received) = mpsc::channel(INPUTS_MAX);
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        let (host, loggers) = Host::start(&config).await?;
        let host = Arc::new(host);
        let serve_loggers = loggers.run(stop.clone());
        parts.spawn(async move {
            serve_loggers.await;
            Ok(())
        });
        import_archives(&config, &host).await;
        let node_config = node_config(&config)?;
        let facts = facts(&config, &node_config, &host, &boot_id).await?;
        let (node, restarted) = restore(node_config, loaded, &host, &boot_id).await?;
        let node = node.speaks_for(identity.node_id.clone());
        let of_earlier = node.is_rejoined().then(|| node.record().last_sequence);
        node.tasks()
            .filter(|task| task.may_have_process())
            .for_each(|task| host.take_up(task));

        let (status, status_seen) = watch::channel(NodeStatus::default());
        let (desired_acks, acks) = mpsc::channel(DESIRED_ACKS_MAX);
        let (link_state, link_seen) = watch::channel(Link::initial_state());
        let timers = Timers::default();
        let executor = Executor::new(Arc::clone(&host), &inputs);
        let outputs = Outputs { status, desired_acks };
        let driver = Driver {
            node,
            store: store.clone(),
            executor,
            timers: timers.clone(),
            inputs: received,
            outputs,
            boot_id: Some(boot_id),
        };
        driver.announce();
        send(&inputs, Event::Restarted(restarted)).await;
        if let Some(sequence) = of_earlier {
            tracing::warn!(node = %identity.node_id, "this host was registered anew; tasks of the earlier node end with the first snapshot");
            // Nobody is left whom these reports would tell anything.
            send(&inputs, Event::Acknowledged { sequence }).await;
        }
        parts.spawn(async move { driver.run().await.context("the database") });
        let until = |stop: &CancellationToken, work: BoxFuture| stop.clone().run_until_cancelled_owned(work);
        let (exits, seen) = mpsc::channel(INPUTS_MAX);
        let observer = host.observer(exits);
        let work = [
            until(&stop, Box::pin(timers.run(inputs.clone()))),
            until(&stop, Box::pin(observer.run(stop.clone()))),
            until(&stop, Box::pin(forward_exits(seen, inputs.clone()))),
            until(
                &stop,
                Box::pin(
                    Audit {
                        host: Arc::clone(&host),
                        inputs: inputs.clone(),
                    }
                    .run(),
                ),
            ),
        ];
        for part in work {
            parts.spawn(async move {
                part.await;
                Ok(())
            });
        }
        let target = target(&config, &identity)?;
        let (trust, orders) = mpsc::channel(TRUST_ORDERS_MAX);
        let (keeper, identity_seen) = Keeper::new(target.clone(), &identity, orders);
        let keeper_stop = stop.clone();
        parts.spawn(async move {
            keeper.run(keeper_stop).await;
            Ok(())
        });
        let link = Link {
            target,
            facts,
            inputs: inputs.clone(),
            store,
            status: status_seen.clone(),
            desired_acks: acks,
            sampler: Arc::clone(&host.sampler),
            pulls: host.images.progress(),
            log_dir: config.log_dir(),
            trust,
            identity: identity_seen.clone(),
            state: link_state,
        };
        let link_stop = stop.clone();
        parts.spawn(async move {
            link.run(link_stop).await;
            Ok(())
        });
        Ok(Self {
            inputs,
            status: status_seen,
            link: link_seen,
            identity: identity_seen,
            stop,
            parts,
            host,
        })
    }

    /// How the link to the control plane is, now and later.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.link.clone()
    }

    /// How this node's identity is, now and later.
    pub fn identity(&self) -> watch::Receiver<IdentityState> {
        self.identity.clone()
    }

    /// The node's state, now and later.
    pub fn status(&self) -> watch::Receiver<NodeStatus> {
        self.status.clone()
    }

    /// Downloads under way.
    pub fn pull_progress(&self) -> watch::Receiver<crate::effects::images::PullProgress> {
        self.host.images.progress()
    }

    /// Waits until a part of the agent ends by itself, which is a failure. Cancel-safe.
    pub async fn failed(&mut self) -> anyhow::Error {
        loop {
            match self.parts.join_next().await {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return error,
                Some(Err(error)) => return anyhow::Error::new(error).context("a part of the agent panicked"),
                None => return anyhow::anyhow!("every part of the agent has ended"),
            }
        }
    }

    /// Stops every task of this agent and waits until nothing of them is left.
    ///
    /// # Errors
    /// Names the tasks that were not stopped within `limit`.
    pub async fn stop_all(&mut self, reason: &str, limit: Duration) -> anyhow::Result<()> {
        send(
            &self.inputs,
            Event::StopAll {
                reason: reason.into(),
            },
        )
        .await;
        // An answer comes after everything that was sent before, so what is looked at next is not from before the stop.
        let (reply, answer) = tokio::sync::oneshot::channel();
        let asked = self.inputs.send(Input::Ledger(reply)).await;
        anyhow::ensure!(
            asked.is_ok() && tokio::time::timeout(limit, answer).await.is_ok(),
            "the agent takes no orders: its database cannot store, or it has ended"
        );
        let stopped = |status: &NodeStatus| status.tasks.values().all(|status| *status == Status::Stopped);
        let waited =
            tokio::time::timeout(limit, async { self.status.wait_for(stopped).await.map(|_| ()) }).await;
        match waited {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(anyhow::anyhow!("the agent ended while it was stopping its tasks")),
            Err(_) => {
                let status = self.status.borrow();
                let left: Vec<_> = status
                    .tasks
                    .iter()
                    .filter(|(_, s)| **s != Status::Stopped)
                    .collect();
                Err(anyhow::anyhow!(
                    "still not stopped after {} s: {left:?}",
                    limit.as_secs()
                ))
            }
        }
    }

    /// Removes what the agent itself made on the host: nftables table, cgroup parent, run directory. For a private
    /// agent on its way out, after [`Agent::stop_all`].
    pub async fn remove_traces(&self) -> anyhow::Result<()> {
        self.host.remove_traces().await
    }

    /// Ends the agent; tasks go on. Effects under way have until `limit`; what is not finished is taken up again by
    /// the next start.
    pub async fn shutdown(mut self, limit: Duration) {
        self.stop.cancel();
        let Self {
            inputs,
            ref mut parts,
            ..
        } = self;
        drop(inputs);
        let joined = tokio::time::timeout(limit, async {
            while let Some(part) = parts.join_next().await {
                match part {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::error!(error = %Chain(error.as_ref()), "a part ended with an error")
                    }
                    Err(error) => tracing::error!(%error, "a part panicked"),
                }
            }
        });
        if joined.await.is_err() {
            tracing::warn!("effects are still under way; the next start takes them up again");
            parts.shutdown().await;
        }
    }
}

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn make_directories(config: &Config) -> anyhow::Result<()> {
    let make = |path: &Path, mode: u32| {
        let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.with_context(|| format!("create directory {}", path.display()))
    };
    make(&config.state_dir, 0o700)?;
    make(&config.log_dir(), 0o750)?;
    make(&config.run_dir, 0o711)
}

fn node_config(config: &Config) -> anyhow::Result<NodeConfig> {
    use berth_agent_core::desired::Protocol::{Tcp, Udp};
    let reserved = &config.reserved;
    let memory = sys::memory_total().context("read the host's memory")?;
    let all = sys::cpu_count() * 1024;
    anyhow::ensure!(
        reserved.cpu_units < all && u64::from(reserved.memory_mib) << 20 < memory,
        "configuration: reserved: {} CPU units and {} MiB leave nothing of {all} CPU units and {} MiB for tasks",
        reserved.cpu_units,
        reserved.memory_mib,
        memory >> 20
    );
    let tcp = reserved.tcp_ports.iter().map(|port| (Tcp, *port));
    let capacity = Capacity {
        cpu_units: all - reserved.cpu_units,
        memory_bytes: memory - (u64::from(reserved.memory_mib) << 20),
        reserved_ports: tcp
            .chain(reserved.udp_ports.iter().map(|port| (Udp, *port)))
            .collect(),
    };
    Ok(NodeConfig {
        capacity,
        task_range: config.task_cidr,
        log_retention_ms: i64::from(config.log_retention_s) * 1000,
        admission_deadline_ms: i64::from(config.admission_deadline_s) * 1000,
    })
}

async fn facts(config: &Config, node: &NodeConfig, host: &Host, boot_id: &str) -> anyhow::Result<Facts> {
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
            reserved_tcp_ports: config.reserved.tcp_ports.iter().map(|p| u32::from(*p)).collect(),
            reserved_udp_ports: config.reserved.udp_ports.iter().map(|p| u32::from(*p)).collect(),
            pids: 0,
        },
        attributes,
    })
}

/// The core as it was stored, and what the host says about it now.
async fn restore(
    config: NodeConfig,
    loaded: Loaded,
    host: &Host,
    boot_id: &str,
) -> anyhow::Result<(Node, Restarted)> {
    let host_rebooted = loaded.boot_id.is_some_and(|then| then != boot_id);
    let containers = host
        .observe()
        .await
        .context("list the containers of this instance")?;
    host.adopt_loggers(&containers).await;
    let restarted = Restarted {
        host_rebooted,
        containers,
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

async fn forward_exits(mut seen: mpsc::Receiver<berth_agent_core::event::Exit>, inputs: mpsc::Sender<Input>) {
    while let Some(exit) = seen.recv().await {
        send(&inputs, Event::Exited(exit)).await;
    }
}

async fn import_archives(config: &Config, host: &Host) {
    if config.images_dir.is_none() {
        return;
    }
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

fn target(config: &Config, identity: &Identity) -> anyhow::Result<Target> {
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
