//! Owns the control plane as a service of its host: what it tells the service manager, when it is ready, and that it
//! is restarted when it hangs. Never does any of the control plane's work.

#[cfg(test)]
mod tests;

use std::{
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    time::Duration,
};

use berth_service::{
    http::{self, Listen, ListenError, Served},
    liveness::Pulse,
    metrics as process,
    notify::Notifier,
    readiness::{Condition, Needed, Readiness},
};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, timeout};

use crate::{
    app::{ControlPlane, StartError},
    config::Config,
    metrics::{Census, MeasuredStore, metrics},
    store::{Compare, SharedStore, StoreError, Transaction, typed::IDENTITY_KEY},
};

/// From the signal to the end.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How often the store is asked whether it works, where no watchdog asks for more.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Longest answer of a store that works.
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Without a proof of life for so long, `/livez` fails.
const PULSE_LIMIT: Duration = Duration::from_secs(60);
/// The socket is for its owner and, by the unit, a group of administrators.
const SOCKET_MODE: u32 = 0o660;
/// Nobody writes this key: that it is missing is asked of the thread that writes.
const PROBE_KEY: &str = "/probe";

/// Why the service ended without being asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("health and metrics")]
    Listen(#[from] ListenError),
    #[error("{0} ended by itself")]
    Part(&'static str),
}

/// Runs a control plane until `asked_to_end`, at whatever moment that comes.
///
/// # Errors
/// It cannot start, or a part of it ended.
pub async fn run(
    config: Config,
    notifier: Notifier,
    asked_to_end: impl Future<Output = ()>,
) -> Result<(), ServiceError> {
    let mut asked_to_end = pin!(asked_to_end);
    let readiness = Readiness::new();
    let store = readiness.condition("store", Needed::ToStart, "is being opened");
    let listeners = readiness.condition("listeners", Needed::ToStart, "are not bound yet");
    let pulse = Pulse::new(PULSE_LIMIT);
    let scrape = Scrape::new(readiness.clone(), &config);
    let listen = Listen {
        socket: config.socket(),
        socket_mode: SOCKET_MODE,
        metrics: config.metrics_listen,
    };
    let served = Served {
        readiness: readiness.clone(),
        pulse: pulse.clone(),
        metrics: scrape.clone().text(),
        more: axum::Router::new(),
    };
    let server = http::Server::start(&listen, served)?;
    if let Some(address) = server.metrics_address() {
        tracing::info!(%address, "health and metrics on TCP");
    }
    notifier.status("starting");
    let plane = tokio::select! {
        started = ControlPlane::start(config) => started?,
        () = asked_to_end.as_mut() => {
            tracing::info!("asked to end before the start was done");
            return Ok(());
        }
    };
    listeners.ok();
    scrape.store(plane.store());
    let prover = Prover {
        store: plane.store(),
        limit: PROBE_LIMIT,
        condition: store,
        pulse,
        notifier: notifier.clone(),
    };
    let keeper = Keeper {
        plane: &plane,
        notifier: &notifier,
        readiness,
        prover,
    };
    let ended = keeper.keep(asked_to_end).await;
    notifier.stopping();
    notifier.status("stopping");
    plane.shutdown(Instant::now() + SHUTDOWN).await;
    server.stop().await;
    ended
}

/// Proves again and again that the control plane works, and says so.
struct Keeper<'a> {
    plane: &'a ControlPlane,
    notifier: &'a Notifier,
    readiness: Readiness,
    prover: Prover,
}

impl Keeper<'_> {
    async fn keep(&self, mut asked_to_end: Pin<&mut impl Future<Output = ()>>) -> Result<(), ServiceError> {
        let interval = self
            .notifier
            .keep_alive_interval()
            .unwrap_or(PROBE_INTERVAL)
            .min(PROBE_INTERVAL);
        let (mut announced, mut status) = (false, String::new());
        loop {
            tokio::select! {
                () = self.prover.prove() => {}
                () = asked_to_end.as_mut() => return Ok(()),
            }
            if let Some(part) = self.plane.ended_part() {
                return Err(ServiceError::Part(part));
            }
            if !announced && self.readiness.report().started() {
                self.notifier.ready();
                announced = true;
            }
            let now = self.status();
            if now != status {
                self.notifier.status(&now);
                status = now;
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = asked_to_end.as_mut() => return Ok(()),
            }
        }
    }

    fn status(&self) -> String {
        match self.readiness.report().first_failure() {
            Some((name, reason)) => format!("not ready: {name}: {reason}"),
            None => format!(
                "API on {}, nodes on {}, {} connected",
                self.plane.api_addr(),
                self.plane.node_addr(),
                self.plane.connected_nodes()
            ),
        }
    }
}

/// Asks the store for a sign of life, and passes it on.
struct Prover {
    store: SharedStore,
    limit: Duration,
    condition: Condition,
    pulse: Pulse,
    notifier: Notifier,
}

impl Prover {
    /// A store that answers, if only with an error, is alive: a restart makes no room on a disk. One that does not
    /// answer is not, nor is the runtime if this is not reached.
    async fn prove(&self) {
        match timeout(self.limit, probe(&self.store)).await {
            Ok(Ok(())) => self.condition.ok(),
            Ok(Err(error)) => self.condition.fail(chain(&error)),
            Err(_) => {
                self.condition
                    .fail(format!("did not answer within {:?}", self.limit));
                return;
            }
        }
        self.pulse.beat();
        self.notifier.keep_alive();
    }
}

/// Asks both threads of the store; writes nothing.
async fn probe(store: &SharedStore) -> Result<(), StoreError> {
    store.get(IDENTITY_KEY).await?;
    let nothing = Transaction {
        compare: vec![Compare::Missing(PROBE_KEY.into())],
        operations: vec![],
    };
    store.commit(nothing).await.map(|_| ())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// What `/metrics` answers: before the store is open, without what is counted in it.
struct Scrape {
    base: Registry,
    state_dir: std::path::PathBuf,
    counted: OnceLock<(Census, Registry)>,
}

impl Scrape {
    fn new(readiness: Readiness, config: &Config) -> Arc<Self> {
        let mut base = process::registry("berth-control-plane", env!("CARGO_PKG_VERSION"));
        process::register_readiness(&mut base, readiness);
        metrics().register(&mut base);
        Arc::new(Self {
            base,
            state_dir: config.state_dir.clone(),
            counted: OnceLock::new(),
        })
    }

    fn store(&self, store: SharedStore) {
        self.counted.get_or_init(|| {
            let mut registry = Registry::default();
            let store: SharedStore = Arc::new(MeasuredStore::new(store));
            let census = Census::new(store, self.state_dir.clone(), &mut registry);
            (census, registry)
        });
    }

    fn text(self: Arc<Self>) -> Arc<dyn Fn() -> http::Text + Send + Sync> {
        Arc::new(move || {
            let scrape = self.clone();
            Box::pin(async move { scrape.collect().await })
        })
    }

    async fn collect(&self) -> String {
        let base = process::encode(&self.base);
        let Some((census, registry)) = self.counted.get() else {
            return base;
        };
        if let Err(error) = census.refresh().await {
            tracing::warn!(error = chain(&error), "nodes and tasks cannot be counted");
            return base;
        }
        // One end for both.
        base.trim_end_matches("# EOF\n").to_owned() + &process::encode(registry)
    }
}
