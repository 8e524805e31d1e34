//! Owns what one pull or import makes in containerd before its image record exists: a lease, unfinished writes,
//! active snapshots. Never leaves any of it behind: [`Workspace::close`] removes what is left, and what a killed
//! agent left goes with [`sweep`] or when the lease expires.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, ListRequest, Resource,
    leases_client::LeasesClient,
    snapshots::{Kind, ListSnapshotsRequest, RemoveSnapshotRequest, snapshots_client::SnapshotsClient},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tonic::{Request, metadata::AsciiMetadataValue};
use tracing::warn;

use super::{
    containerd::{Containerd, LABEL_INSTANCE, gone},
    digest::Digest,
    error::Cause,
};

/// The lease outlives the longest pull by this much, so that it cannot end under it.
const LEASE_MARGIN: Duration = Duration::from_secs(10 * 60);
/// An active snapshot whose unpacking was just given up may still be mounted.
const REMOVE_ATTEMPTS: u32 = 20;
const REMOVE_PAUSE: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Workspace {
    pub containerd: Containerd,
    lease: AsciiMetadataValue,
    id: String,
    snapshots: Mutex<BTreeSet<String>>,
}

/// How the names of leases and writes of this instance start.
fn prefix(instance: &str) -> String {
    format!("berth-images-{instance}-")
}

impl Workspace {
    /// Takes a lease that ends by itself some time after `deadline`.
    pub async fn open(containerd: Containerd, deadline: Duration) -> Result<Self, Cause> {
        let id = format!(
            "{}{}",
            prefix(&containerd.instance),
            uuid::Uuid::new_v4().simple()
        );
        let internal = |why: &str| Cause::Config(format!("lease {id}: {why}"));
        let expires = OffsetDateTime::now_utc() + deadline + LEASE_MARGIN;
        let expires = expires
            .format(&Rfc3339)
            .map_err(|_| internal("its end is no date"))?;
        let labels = HashMap::from([
            ("containerd.io/gc.expire".to_owned(), expires),
            (LABEL_INSTANCE.to_owned(), containerd.instance.clone()),
        ]);
        let lease = id.parse().map_err(|_| internal("its name is not ASCII"))?;
        let request = containerd.call(CreateRequest {
            id: id.clone(),
            labels,
        });
        let created = LeasesClient::new(containerd.channel()).create(request).await;
        created.map_err(|status| Cause::containerd("create lease", &id, status))?;
        Ok(Self {
            containerd,
            lease,
            id,
            snapshots: Mutex::default(),
        })
    }

    /// A request whose results belong to the lease, with a deadline.
    pub fn call<T>(&self, message: T) -> Request<T> {
        self.leased(self.containerd.call(message))
    }

    /// The same without a deadline of its own.
    pub fn stream<T>(&self, message: T) -> Request<T> {
        self.leased(self.containerd.stream(message))
    }

    fn leased<T>(&self, mut request: Request<T>) -> Request<T> {
        request
            .metadata_mut()
            .insert("containerd-lease", self.lease.clone());
        request
    }

    /// A name for a write or an active snapshot that nobody else uses.
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.id)
    }

    /// Keeps a blob that may be here already from being collected while the lease lives.
    pub async fn hold_blob(&self, digest: &Digest) -> Result<(), Cause> {
        self.hold(digest.to_string(), "content".to_owned()).await
    }

    /// The same for a committed snapshot.
    pub async fn hold_snapshot(&self, chain_id: &Digest) -> Result<(), Cause> {
        self.hold(
            chain_id.to_string(),
            format!("snapshots/{}", self.containerd.snapshotter),
        )
        .await
    }

    async fn hold(&self, id: String, r#type: String) -> Result<(), Cause> {
        let resource = Resource {
            id: id.clone(),
            r#type,
        };
        let request = AddResourceRequest {
            id: self.id.clone(),
            resource: Some(resource),
        };
        let added = LeasesClient::new(self.containerd.channel())
            .add_resource(self.containerd.call(request))
            .await;
        match added {
            Err(status) if status.code() != tonic::Code::AlreadyExists => {
                Err(Cause::containerd("add to lease", id, status))
            }
            _ => Ok(()),
        }
    }

    /// Notes an active snapshot, to be removed unless it is committed.
    pub fn began_snapshot(&self, key: &str) {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key.to_owned());
    }

    pub fn ended_snapshot(&self, key: &str) {
        self.snapshots
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    /// Ends the lease. Unless everything went well, first removes what is half made; then has containerd collect
    /// at once, so that nothing of it is left when this returns.
    pub async fn close(self, complete: bool) {
        if !complete {
            self.remove_active().await;
            self.abort_writes().await;
        }
        delete_lease(&self.containerd, &self.id, !complete).await;
        if !complete {
            // A write may have begun between the list and the end of the lease; after that none can.
            self.abort_writes().await;
        }
    }

    async fn remove_active(&self) {
        let keys = std::mem::take(&mut *self.snapshots.lock().unwrap_or_else(PoisonError::into_inner));
        for key in keys {
            if let Err(cause) = remove_snapshot(&self.containerd, &key).await {
                warn!(snapshot = key, error = %super::error::ImageError::new("clean up", cause).reason(), "left for containerd to collect");
            }
        }
    }

    async fn abort_writes(&self) {
        abort_writes(&self.containerd, &self.id).await;
    }
}

/// Removes what a killed agent of this instance left. Only while no pull of this instance is under way.
pub(super) async fn sweep(containerd: &Containerd) -> Result<usize, Cause> {
    let prefix = prefix(&containerd.instance);
    let mut removed = 0;
    for key in active_snapshots(containerd).await? {
        remove_snapshot(containerd, &key).await?;
        removed += 1;
    }
    removed += abort_writes(containerd, &prefix).await;
    let filters = vec![format!("labels.{LABEL_INSTANCE:?}=={:?}", containerd.instance)];
    let answer = LeasesClient::new(containerd.channel())
        .list(containerd.call(ListRequest { filters }))
        .await;
    let answer =
        answer.map_err(|status| Cause::containerd("list leases of", &containerd.instance, status))?;
    for lease in answer
        .into_inner()
        .leases
        .into_iter()
        .filter(|lease| lease.id.starts_with(&prefix))
    {
        delete_lease(containerd, &lease.id, false).await;
        removed += 1;
    }
    Ok(removed)
}

async fn active_snapshots(containerd: &Containerd) -> Result<Vec<String>, Cause> {
    let failed = |status| Cause::containerd("list snapshots of", &containerd.snapshotter, status);
    let filters = vec![format!(
        "kind==active,labels.{LABEL_INSTANCE:?}=={:?}",
        containerd.instance
    )];
    let request = ListSnapshotsRequest {
        snapshotter: containerd.snapshotter.clone(),
        filters,
    };
    let answer = SnapshotsClient::new(containerd.channel())
        .list(containerd.call(request))
        .await;
    let mut parts = answer.map_err(failed)?.into_inner();
    let mut keys = Vec::new();
    while let Some(part) = parts.message().await.map_err(failed)? {
        // Other active snapshots of this instance are its containers'.
        let ours = part
            .info
            .into_iter()
            .filter(|info| info.kind == Kind::Active as i32);
        keys.extend(
            ours.map(|info| info.name)
                .filter(|name| name.starts_with(&prefix(&containerd.instance))),
        );
    }
    Ok(keys)
}

/// Returns how many were aborted; what resists is left to the collector.
async fn abort_writes(containerd: &Containerd, prefix: &str) -> usize {
    let names = containerd.ingests(prefix).await.unwrap_or_default();
    let mut aborted = 0;
    for name in names {
        match containerd.abort(&name).await {
            Ok(()) => aborted += 1,
            Err(cause) => warn!(write = name, %cause, "left for containerd to collect"),
        }
    }
    aborted
}

pub(super) async fn remove_snapshot(containerd: &Containerd, key: &str) -> Result<(), Cause> {
    let mut client = SnapshotsClient::new(containerd.channel());
    let mut attempt = 1;
    loop {
        let message = RemoveSnapshotRequest {
            snapshotter: containerd.snapshotter.clone(),
            key: key.to_owned(),
        };
        let Err(status) = client
            .remove(containerd.call(message))
            .await
            .map(drop)
            .or_else(gone)
        else {
            return Ok(());
        };
        if attempt == REMOVE_ATTEMPTS {
            return Err(Cause::containerd("remove snapshot", key, status));
        }
        attempt += 1;
        tokio::time::sleep(REMOVE_PAUSE).await;
    }
}

async fn delete_lease(containerd: &Containerd, id: &str, collect_now: bool) {
    let request = containerd.call(DeleteRequest {
        id: id.to_owned(),
        sync: collect_now,
    });
    let deleted = LeasesClient::new(containerd.channel())
        .delete(request)
        .await
        .map(drop)
        .or_else(gone);
    if let Err(status) = deleted {
        warn!(lease = id, %status, "the lease is left to expire");
    }
}
