//! Owns the agent as a whole: builds the parts, connects them, joins them on the way out. With `executor` the only
//! place that spawns.

mod ports;
mod startup;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use berth_agent_core::{event::Event, report::Status};
use berth_service::{
    http,
    notify::{Notifier, ServiceManager},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Audit,
    boot,
    config::Config,
    dns,
    driver::{ClockWatch, Driver, INPUTS_MAX, Input, NodeStatus, Outputs, send},
    effects::{Given, Host, runtime},
    endpoints,
    executor::Executor,
    health::Health,
    identity::{IdentityState, Keeper},
    introspection::{Introspection, Sources},
    link::{Link, LinkState},
    metrics::{METRICS, Starts},
    ranges::{Answer, Ranges},
    service::{self, Starting},
    store::Store,
    sys::Chain,
    timers::Timers,
};
use startup::{
    facts, forward_exits, forward_holders, import_archives, make_directories, node_config, reserve_own,
    restore, target,
};

/// Answers to desired state that wait for the link.
const DESIRED_ACKS_MAX: usize = 256;
/// Words on whom to believe that wait to be taken.
const TRUST_ORDERS_MAX: usize = 8;
/// For the driver to take up what runs already.
const TAKE_UP_LIMIT: Duration = Duration::from_secs(120);
/// For downloads that are given up to clean up behind them.
const PULLS_LIMIT: Duration = Duration::from_secs(2);

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
    notifier: Notifier,
    server: http::Server,
}

impl Agent {
    /// Builds everything, finds what runs already, and connects. Returns once the agent works; the link may still be
    /// coming up.
    ///
    /// # Errors
    /// What is missing on this host and what to do about it. Nothing is left half made.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_as_service(config, ServiceManager::default()).await
    }

    /// As [`start`](Self::start), with what the service manager handed over: it is told how far the start is, that the
    /// agent is ready, and that it works, and keeps the pipes of containers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_as_service(config: Config, manager: ServiceManager) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let ServiceManager { notifier, fds } = manager;
        config.check()?;
        let identity = config.load_identity()?;
        make_directories(&config)?;
        let (boot_id, life) = boot::ids(&config.run_dir).context("read the host's boot id")?;
        let mut node_config = node_config(&config, &life)?;
        let (store, mut loaded) = Store::open(&config.database())?;
        for problem in &loaded.quarantined {
            tracing::error!(%problem, "a record of the database cannot be read; it is set aside");
        }
        let names = dns::NameTable::new(store.clone(), std::mem::take(&mut loaded.names));
        let health = Health::default();
        health.stored(None);
        let introspection = Introspection::default();
        let server = serve(&config, &health, &introspection)?;
        let starting = Starting {
            notifier: notifier.clone(),
            health: health.clone(),
        };
        let patience = Duration::from_secs(config.containerd_wait_s.into());
        let waiting = |problem: &str| health.containerd(Some(problem));
        let channel = runtime::connect(&config.containerd_address, patience, waiting);
        let channel = starting.step("waiting for containerd", channel).await?;
        health.containerd(None);
        let (inputs, received) = mpsc::channel(INPUTS_MAX);
        let stop = CancellationToken::new();
        let mut parts = JoinSet::new();
        let task_range = config.task_range()?;
        let given = loaded
            .node
            .as_ref()
            .map_or_else(Given::default, |node| Given::of(node, task_range));
        // What a boot took away leads nowhere, until it is made again.
        let same_boot = loaded.boot_id.as_ref() == Some(&life);
        let tasks = loaded.tasks.iter().filter(|_| same_boot);
        let published = tasks.filter(|task| task.is_published());
        let published = published.flat_map(|task| {
            let ports = task.published().into_iter();
            ports.map(|port| (task.spec.id.clone(), port))
        });
        let given = given.with_published(published.collect());
        let target = target(&config, &identity)?;
        let way = target.way();
        let host = Host::start(&config, channel, notifier.clone(), given, way);
        let (host, listening) = starting.step("setting up network and cgroups", host).await?;
        reserve_own(&config, &mut node_config.capacity, &listening);
        let host = Arc::new(host);
        host.loggers.take_back(fds);
        let serve_loggers = listening.loggers.run(stop.clone());
        parts.spawn(async move {
            serve_loggers.await;
            Ok(())
        });
        let gpus = config.gpus.gpus();
        let (gpus_present, gpus_seen) = watch::channel(gpus.present());
        let facts = facts(&config, &node_config, &host, &boot_id, gpus_seen).await?;
        let restored = restore(node_config, loaded, &host, &life);
        let (node, restarted) = starting.step("taking up what runs", restored).await?;
        let node = node.speaks_for(identity.node_id.clone());
        let of_earlier = node.is_rejoined().then(|| node.record().last_sequence);
        node.tasks()
            .filter(|task| task.may_have_process())
            .for_each(|task| host.take_up(task));
        let expected_archives = config.images_dir.is_some().then(|| host.images.expect_archives());

        let (status, status_seen) = watch::channel(NodeStatus::default());
        let (desired_acks, acks) = mpsc::channel(DESIRED_ACKS_MAX);
        let (link_state, link_seen) = watch::channel(Link::initial_state());
        let timers = Timers::default();
        let executor = Executor::new(Arc::clone(&host), &inputs, stop.clone());
        let (addresses, addresses_seen) = watch::channel(dns::Own::default());
        let (network, network_wanted) = watch::channel(node.wanted_network());
        let (network_answers, network_answered) = watch::channel(Answer::default());
        let outputs = Outputs {
            status,
            desired_acks,
            addresses,
            network,
        };
        let driver = Driver {
            node,
            store: store.clone(),
            executor,
            timers: timers.clone(),
            inputs: received,
            outputs,
            boot_id: Some(life),
            health: health.clone(),
            starts: Starts::default(),
            clock: ClockWatch::default(),
        };
        driver.announce();
        send(&inputs, Event::Restarted(restarted)).await;
        if let Some(sequence) = of_earlier {
            tracing::warn!(node = %identity.node_id, "this host was registered anew; tasks of the earlier node end with the first snapshot");
            // Nobody is left whom these reports would tell anything.
            send(&inputs, Event::Acknowledged { sequence }).await;
        }
        parts.spawn(async move { driver.run().await.context("the database") });
        health.driver_started();
        starting.step("taking up what runs", taken_up(&inputs)).await?;
        health.taken_up();
        METRICS.reconcile_start.observe(begun.elapsed());
        let (exits, seen) = mpsc::channel(INPUTS_MAX);
        let (holders, ended) = mpsc::channel(INPUTS_MAX);
        let observer = host.observer(exits, holders);
        let audit = Audit {
            host: Arc::clone(&host),
            inputs: inputs.clone(),
        };
        let ranges = Ranges {
            host: Arc::clone(&host),
            inputs: inputs.clone(),
            wanted: network_wanted.clone(),
            answers: network_answers,
        };
        let mut work: Vec<BoxFuture> = vec![
            Box::pin(ranges.run()),
            Box::pin(timers.run(inputs.clone())),
            Box::pin(observer.run(stop.clone())),
            Box::pin(forward_exits(seen, inputs.clone())),
            Box::pin(forward_holders(ended, inputs.clone())),
            Box::pin(audit.run()),
            Box::pin({
                let host = Arc::clone(&host);
                async move { host.network.keep_repaired().await }
            }),
            Box::pin({
                let host = Arc::clone(&host);
                async move { host.network.keep_ready().await }
            }),
            Box::pin(gpus.watch(gpus_present)),
            Box::pin(health.clone().watch_driver(inputs.clone(), notifier.clone())),
            Box::pin(health.clone().watch_link(link_seen.clone())),
            Box::pin(health.clone().watch_containerd(host.runtime.clone())),
            Box::pin(service::tell(
                notifier.clone(),
                health.readiness.clone(),
                status_seen.clone(),
                link_seen.clone(),
            )),
        ];
        if let Some(expected) = expected_archives {
            let host = Arc::clone(&host);
            work.push(Box::pin(async move { import_archives(&host, expected).await }));
        }
        for part in work {
            let stop = stop.clone();
            parts.spawn(async move {
                stop.run_until_cancelled(part).await;
                Ok(())
            });
        }
        let (trust, orders) = mpsc::channel(TRUST_ORDERS_MAX);
        let (keeper, identity_seen) = Keeper::new(target.clone(), &identity, orders);
        let keeper_stop = stop.clone();
        parts.spawn(async move {
            keeper.run(keeper_stop).await;
            Ok(())
        });
        introspection.provide(Sources {
            node_id: identity.node_id.to_string(),
            boot_id,
            runtime_version: facts.runtime_version.clone(),
            inputs: inputs.downgrade(),
            link: link_seen.clone(),
            identity: identity_seen.clone(),
            pulls: host.images.progress(),
            store: store.clone(),
            sampler: Arc::clone(&host.sampler),
            cgroups: host.cgroups.clone(),
            names: names.clone(),
            loggers: host.loggers.clone(),
            health,
            run_dir: config.run_dir.clone(),
        });
        let sources = endpoints::Sources {
            inputs: inputs.downgrade(),
            sampler: Arc::clone(&host.sampler),
            task_cidr: task_range,
            network: network_wanted,
            on_host: host.on_host(),
        };
        let served = host.endpoints.serve(listening.endpoints, sources, &stop);
        let served = served.context("serve the task metadata endpoint")?;
        parts.spawn(async move {
            served.await;
            Ok(())
        });
        if let Some(listeners) = listening.names {
            let resolver = dns::Resolver::new(&config.dns, addresses_seen, names.clone());
            let served = resolver.serve(listeners, stop.clone()).context("serve names")?;
            parts.spawn(async move {
                served.await;
                Ok(())
            });
        }
        let link = Link {
            target,
            facts,
            inputs: inputs.clone(),
            store,
            status: status_seen.clone(),
            desired_acks: acks,
            network: network_answered,
            sampler: Arc::clone(&host.sampler),
            pulls: host.images.progress(),
            names,
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
            notifier,
            server,
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
    pub async fn shutdown(self, limit: Duration) {
        self.notifier.stopping();
        self.stop.cancel();
        let Self {
            inputs,
            mut parts,
            host,
            server,
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
        if tokio::time::timeout(PULLS_LIMIT, host.images.close())
            .await
            .is_err()
        {
            tracing::debug!("downloads were cut off; the next start removes what they left");
        }
        server.stop().await;
    }
}

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Health, metrics and introspection, from before containerd is there.
fn serve(config: &Config, health: &Health, introspection: &Introspection) -> anyhow::Result<http::Server> {
    let listen = http::Listen {
        socket: config.introspection_socket(),
        socket_mode: 0o600,
        metrics: config.metrics_listen,
    };
    let metrics = introspection.clone();
    let registry = Arc::new(berth_service::metrics::registry(
        "berth-agent",
        env!("CARGO_PKG_VERSION"),
    ));
    let served = http::Served {
        readiness: health.readiness.clone(),
        pulse: health.pulse.clone(),
        metrics: Arc::new(move || {
            let (metrics, registry) = (metrics.clone(), Arc::clone(&registry));
            Box::pin(async move { metrics.metrics(&berth_service::metrics::encode(&registry)).await })
        }),
        more: introspection.routes(),
    };
    Ok(http::Server::start(&listen, served)?)
}

/// Waits until the driver has applied, and stored, everything that was sent before.
async fn taken_up(inputs: &mpsc::Sender<Input>) -> anyhow::Result<()> {
    let (reply, answer) = oneshot::channel();
    let asked = inputs.send(Input::Ledger(reply)).await;
    let answered = asked.is_ok() && matches!(tokio::time::timeout(TAKE_UP_LIMIT, answer).await, Ok(Ok(_)));
    anyhow::ensure!(
        answered,
        "the database did not store what runs within {} s: is its disk full or broken?",
        TAKE_UP_LIMIT.as_secs()
    );
    Ok(())
}
