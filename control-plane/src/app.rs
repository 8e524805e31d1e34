//! Owns the parts of a control plane and their lifetimes: what starts, in which order, and that all of it ends. Never
//! does any of the work.

mod advertise;
pub mod first_key;
mod leader;
mod retention;

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::Router;
use nix::fcntl::{Flock, FlockArg};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::first_key::FirstKeyError;
use crate::{
    api::{self, ApiConfig},
    api_listener::{self, ApiTls, ApiTlsError},
    audit::{AUDIT_FILE, Audit, AuditError},
    backup::{BackupError, swap},
    config::{Config, ConfigError},
    link::{LinkConfig, LinkError, LinkServer},
    metrics::{MeasuredStore, measured},
    pki::{Authorities, PkiError},
    store::{SharedStore, StoreError, sqlite::SqliteStore},
};

pub(crate) use self::advertise::{host_of as advertised_host, is_loopback};
/// The authority's directory, in the state directory.
pub const PKI_DIRECTORY: &str = "pki";
/// The store's file, in the state directory.
pub const STORE_FILE: &str = "store.db";
/// Held as long as a control plane uses the state directory.
pub const LOCK_FILE: &str = "lock";

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("configuration")]
    Config {
        #[from]
        source: ConfigError,
    },
    #[error("{action} {}{}", path.display(), file_advice(source))]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is in use by another control plane: stop that one, or choose another state_dir", .0.display())]
    InUse(PathBuf),
    #[error("open the store {}{}", path.display(), space_advice(path))]
    Store { path: PathBuf, source: StoreError },
    #[error("the authority for nodes")]
    Pki {
        #[from]
        source: PkiError,
    },
    #[error("finish a restore that was cut off")]
    Restore {
        #[from]
        source: BackupError,
    },
    #[error("the API's certificate")]
    ApiTls {
        #[from]
        source: ApiTlsError,
    },
    #[error("the first admin key")]
    FirstKey {
        #[from]
        source: FirstKeyError,
    },
    #[error("the audit log")]
    Audit {
        #[from]
        source: AuditError,
    },
    #[error("{key}: listen on {address}{}", berth_service::http::advice(source))]
    Listen {
        key: &'static str,
        address: SocketAddr,
        source: io::Error,
    },
    #[error("serve nodes")]
    Link {
        #[from]
        source: LinkError,
    },
}

/// A disk with less room than that is full: SQLite calls it by many names.
const SPACE_BYTES_MIN: u64 = 1 << 20;

/// Says that the disk of a file is full, if it is.
fn space_advice(path: &Path) -> &'static str {
    let disk = path
        .parent()
        .and_then(|directory| nix::sys::statvfs::statvfs(directory).ok());
    let full = |disk: nix::sys::statvfs::Statvfs| {
        let bytes = disk.blocks_available().saturating_mul(disk.fragment_size());
        bytes < SPACE_BYTES_MIN || (disk.files() > 0 && disk.files_available() == 0)
    };
    if disk.is_some_and(full) {
        " (no space is left there: `df -h` and `df -i` say where; make some)"
    } else {
        ""
    }
}

/// What to do about a file that cannot be had.
fn file_advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            " (this process is user {}: run it as the owner of the state directory, or give it that with chown)",
            nix::unistd::geteuid()
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (no space is left: `df -h` and `df -i` say where; nothing was changed)".into()
        }
        io::ErrorKind::ReadOnlyFilesystem => " (the file system is mounted read-only)".into(),
        _ => String::new(),
    }
}

/// A control plane at work. Dropping it ends it without waiting; [`ControlPlane::shutdown`] waits.
#[derive(Debug)]
pub struct ControlPlane {
    api_addr: SocketAddr,
    links: LinkServer,
    authority: Arc<Authorities>,
    store: Arc<SqliteStore>,
    audit: Audit,
    stop: DropGuard,
    api: JoinHandle<()>,
    retention: JoinHandle<()>,
    // Last: the state directory is free when all else has ended.
    _lock: Flock<fs::File>,
}

impl ControlPlane {
    /// Opens the state and serves. Both listeners are bound, and the store is open, when this returns.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.check()?;
        let lock = take_state(&config.state_dir)?;
        if let Some(former) = swap::finish(&config.state_dir)? {
            tracing::warn!(former = %former.display(), "a restore that was cut off is finished");
        }
        let authority = Arc::new(Authorities::load_or_create(
            &config.state_dir.join(PKI_DIRECTORY),
        )?);
        let store = Arc::new(open_store(&config.state_dir.join(STORE_FILE)).await?);
        let audit = match Audit::open(&config.state_dir.join(AUDIT_FILE)) {
            Ok(audit) => audit,
            Err(error) => {
                store.close().await;
                return Err(error.into());
            }
        };
        match Self::serve(&config, lock, authority, store.clone(), audit.clone()).await {
            Ok(plane) => Ok(plane),
            Err(error) => {
                audit.close().await;
                store.close().await;
                Err(error)
            }
        }
    }

    async fn serve(
        config: &Config,
        lock: Flock<fs::File>,
        authority: Arc<Authorities>,
        store: Arc<SqliteStore>,
        audit: Audit,
    ) -> Result<Self, StartError> {
        let tls = config
            .api_tls
            .as_ref()
            .map(|files| ApiTls::load(&files.certificate, &files.key))
            .transpose()?;
        let (api_listener, api_addr) = listen("api_listen", config.api_listen).await?;
        let (node_listener, node_addr) = listen("node_listen", config.node_listen).await?;
        let shared: SharedStore = Arc::new(MeasuredStore::new(store.clone()));
        let advertise = advertise::advertised(config, node_addr);
        let link_config = LinkConfig {
            names: advertise::server_names(config, &advertise),
            advertise: Some(advertise),
            certificate_lifetime: config.node_certificate_lifetime,
            server_lifetime: None,
            node_silence: config.node_silence,
            heartbeat_interval: config.heartbeat_interval,
            audit: Some(audit.clone()),
        };
        let links = LinkServer::start(node_listener, authority.clone(), shared.clone(), link_config).await?;
        let api_config = ApiConfig {
            region: config.region.clone(),
            account_id: config.account_id.clone(),
            keys: config.keys.clone(),
            clock_skew_max: api::CLOCK_SKEW_MAX,
            unsupported_log_driver: config.unsupported_log_driver,
        };
        let router = measured(api::router(
            api_config,
            shared.clone(),
            links.nodes(),
            audit.clone(),
        ));
        let stop = CancellationToken::new();
        let url = api_url(api_addr, tls.as_ref());
        let own_authority = tls
            .as_ref()
            .and_then(ApiTls::own_authority)
            .map(Path::to_path_buf);
        let api = tokio::spawn(serve_api(api_listener, router, tls, stop.clone()));
        let sweep = retention::Retention::new(shared, config.stopped_task_retention);
        let retention = tokio::spawn(sweep.run(stop.clone()));
        tracing::info!(api = %api_addr, nodes = %links.address(), state = %config.state_dir.display(), "serving");
        // Last, when all that could fail has not: the file names an address that answers.
        let reached = first_key::Reached { url, own_authority };
        first_key::provide(config, &*store, &reached, &audit).await?;
        let stop = stop.drop_guard();
        Ok(Self {
            api_addr,
            links,
            authority,
            store,
            audit,
            stop,
            api,
            retention,
            _lock: lock,
        })
    }

    /// Where the API listens.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// Where nodes link.
    pub fn node_addr(&self) -> SocketAddr {
        self.links.address()
    }

    /// Who makes certificates for nodes.
    pub fn authority(&self) -> &Arc<Authorities> {
        &self.authority
    }

    /// The records.
    pub fn store(&self) -> SharedStore {
        self.store.clone()
    }

    /// Nodes that are linked now.
    pub fn connected_nodes(&self) -> usize {
        self.links.connected()
    }

    /// A part that ended although nobody asked for that.
    pub fn ended_part(&self) -> Option<&'static str> {
        if self.api.is_finished() {
            return Some("the API");
        }
        if self.links.ended() {
            return Some("the listener for nodes");
        }
        self.retention
            .is_finished()
            .then_some("the retention of stopped tasks")
    }

    /// Takes no more requests, finishes those under way until `deadline`, ends every link, and closes the store.
    /// What was acknowledged is on disk either way.
    pub async fn shutdown(self, deadline: Instant) {
        let Self {
            links,
            store,
            audit,
            stop,
            mut api,
            mut retention,
            _lock,
            ..
        } = self;
        drop(stop);
        // Together: a request that follows a log ends when its node's link does.
        tokio::join!(
            links.stop(deadline),
            join_by(deadline, "the API", &mut api),
            join_by(deadline, "retention", &mut retention),
        );
        audit.close().await;
        store.close().await;
        tracing::info!("stopped");
    }
}

/// The API and what keeps its certificate true, until told to stop.
async fn serve_api(listener: TcpListener, router: Router, tls: Option<ApiTls>, stop: CancellationToken) {
    let watch = async {
        if let Some(tls) = &tls {
            tls.clone().watch(stop.clone()).await;
        }
    };
    let limits = api_listener::Limits::default();
    let serve = api_listener::serve(listener, router, tls.clone(), limits, stop.clone());
    tokio::join!(serve, watch);
}

/// By which a caller on this host reaches the API.
fn api_url(address: SocketAddr, tls: Option<&ApiTls>) -> String {
    let Some(tls) = tls else {
        return format!("http://{address}");
    };
    match tls.name() {
        Some(name) => format!("https://{name}:{}", address.port()),
        None if address.ip().is_unspecified() => format!("https://localhost:{}", address.port()),
        None => format!("https://{address}"),
    }
}

/// Waits for a part; ends it at the deadline.
async fn join_by<T>(deadline: Instant, part: &'static str, handle: &mut JoinHandle<T>) {
    match tokio::time::timeout_at(deadline, &mut *handle).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::error!(part, %error, "a part of the control plane panicked"),
        Err(_) => {
            tracing::warn!(part, "did not end in time");
            handle.abort();
        }
    }
}

/// Makes the state directory if need be, for its owner alone, and locks it.
fn take_state(directory: &Path) -> Result<Flock<fs::File>, StartError> {
    let at = |action, path: &Path| {
        let path = path.to_path_buf();
        move |source| StartError::File { action, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(at("create the state directory", directory))?;
    lock_state(directory)
        .map_err(at("lock", &directory.join(LOCK_FILE)))?
        .ok_or_else(|| StartError::InUse(directory.into()))
}

/// The lock of a state directory; none: a control plane, or a restore, has it.
pub(crate) fn lock_state(directory: &Path) -> io::Result<Option<Flock<fs::File>>> {
    let file = open_private(&directory.join(LOCK_FILE))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

fn open_private(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Records hold the environment of containers, so the file is for its owner alone, whatever the directory allows.
async fn open_store(path: &Path) -> Result<SqliteStore, StartError> {
    let owned = path.to_path_buf();
    open_private(path).map_err(|source| StartError::File {
        action: "open",
        path: owned.clone(),
        source,
    })?;
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(owned)).await;
    let opened = opened.unwrap_or(Err(StoreError::Closed));
    opened.map_err(|source| StartError::Store {
        path: path.into(),
        source,
    })
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound
        .await
        .map_err(|source| StartError::Listen { key, address, source })
}
