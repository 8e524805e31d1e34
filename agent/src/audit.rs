//! Owns the comparison of the host with the ledger: lists the host, never trusts the ledger alone, removes what nobody
//! answers for and says so. Its count of unowned objects must read 0. Limits that somebody changed are set again.
//!
//! An intent is stored before its object is made, so an object without an entry is either a leak or just being
//! released. Hence a suspect is only removed if a second listing, a moment later, still has it without an entry.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_agent_core::ledger::{HostObject, Ledger};
use tokio::sync::{mpsc, oneshot};

use crate::{driver::Input, effects::Host, metrics::METRICS, sys::Chain};

/// Between audits.
const INTERVAL: Duration = Duration::from_secs(60);
/// Between the two listings of one audit.
const SECOND_LOOK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct Audit {
    pub host: Arc<Host>,
    pub inputs: mpsc::Sender<Input>,
}

/// Lists could not be had; nothing was removed.
#[derive(Debug, thiserror::Error)]
#[error("list {what}")]
pub struct ListError {
    pub what: &'static str,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Audit {
    /// At once, then every minute.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let begun = Instant::now();
            let audited = self.once().await;
            METRICS.reconcile_audit.observe(begun.elapsed());
            match audited {
                Ok(0) => {}
                Ok(removed) => tracing::warn!(removed, "audit removed objects that nobody answered for"),
                Err(error) => tracing::warn!(error = %Chain(&error), "audit could not list the host"),
            }
            let cgroups = self.host.cgroups.clone();
            // What was changed is logged where it is found.
            let _ = tokio::task::spawn_blocking(move || cgroups.reassert_all()).await;
        }
    }

    /// One audit. Returns how many objects nobody answered for.
    pub async fn once(&self) -> Result<usize, ListError> {
        let Some(suspects) = self.unowned().await? else {
            return Ok(0);
        };
        if suspects.is_empty() {
            METRICS.set_leaked(&[]);
            return Ok(0);
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let Some(still) = self.unowned().await? else {
            return Ok(0);
        };
        let (strangers, leaks): (Vec<_>, Vec<_>) = suspects
            .intersection(&still)
            .cloned()
            .partition(|o| matches!(o, HostObject::Unnamed { .. }));
        if !strangers.is_empty() {
            tracing::debug!(?strangers, "objects in our places that no task made; left alone");
        }
        METRICS.set_leaked(&leaks);
        for leak in &leaks {
            tracing::warn!(object = ?leak, "nobody answers for this object; removing it");
        }
        self.host.remove_unowned(&leaks).await;
        Ok(leaks.len())
    }

    /// None when the driver has ended.
    async fn unowned(&self) -> Result<Option<BTreeSet<HostObject>>, ListError> {
        let objects = self.host.list().await?;
        let Some(ledger) = self.ledger().await else {
            return Ok(None);
        };
        Ok(Some(ledger.unowned(objects).into_iter().collect()))
    }

    async fn ledger(&self) -> Option<Ledger> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Ledger(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// Directories below `parent` as objects: those named after a task, and strangers.
pub fn directories(
    parent: &Path,
    of_task: impl Fn(berth_agent_core::ids::TaskId) -> HostObject,
    kind: &str,
) -> std::io::Result<Vec<HostObject>> {
    let entries = match std::fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut objects = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        objects.push(match name.parse() {
            Ok(task) => of_task(task),
            Err(_) => HostObject::Unnamed {
                kind: kind.into(),
                name,
            },
        });
    }
    Ok(objects)
}
