//! Owns the API's dealings with stored records: reading them, and changing one under compare with bounded retries.
//! Never knows what a record means.

use std::time::Duration;

use rand::Rng;
use serde::{Serialize, de::DeserializeOwned};

use super::{context::Api, error::ApiError};
use crate::{
    model::{self, keys},
    store::{
        Committed, Compare, Operation, Transaction,
        typed::{self, Versioned},
    },
};

/// How often a transaction is tried when others change the same records.
const ATTEMPTS_MAX: u32 = 12;
/// The longest pause before the second try; it doubles with every further one, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Counts tries, and waits between them.
#[derive(Debug, Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Call after a conflict: waits a random time, or gives up.
    pub async fn again(&mut self) -> Result<(), ApiError> {
        self.0 += 1;
        if self.0 >= ATTEMPTS_MAX {
            return Err(ApiError::Contended(self.0));
        }
        let longest = PAUSE_FIRST.saturating_mul(1 << (self.0 - 1)).min(PAUSE_MAX);
        let pause = rand::rng().random_range(Duration::ZERO..=longest);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

pub(super) async fn get<T: DeserializeOwned>(api: &Api, key: &str) -> Result<Option<Versioned<T>>, ApiError> {
    Ok(typed::get_json(api.store.as_ref(), key).await?)
}

/// Every record under `prefix`, page by page.
pub(super) async fn all<T: DeserializeOwned>(api: &Api, prefix: &str) -> Result<Vec<Versioned<T>>, ApiError> {
    Ok(typed::all_json(api.store.as_ref(), prefix).await?)
}

/// All operations if every compare holds; otherwise false.
pub(super) async fn commit(
    api: &Api,
    compare: Vec<Compare>,
    operations: Vec<Operation>,
) -> Result<bool, ApiError> {
    Ok(matches!(
        api.store.commit(Transaction { compare, operations }).await?,
        Committed::Done(_)
    ))
}

/// Changes one record, reading it again when somebody else was faster. `None`: it does not exist. The change must
/// leave the record alone when it fails.
pub(super) async fn change<T: Serialize + DeserializeOwned>(
    api: &Api,
    key: &str,
    mut change: impl FnMut(&mut T) -> Result<(), ApiError>,
) -> Result<Option<Versioned<T>>, ApiError> {
    let mut attempts = Attempts::default();
    loop {
        let Some(mut record) = get::<T>(api, key).await? else {
            return Ok(None);
        };
        change(&mut record.value)?;
        let put = typed::put_json(key, &record.value)?;
        if commit(api, vec![record.unchanged()], vec![put]).await? {
            return Ok(Some(record));
        }
        attempts.again().await?;
    }
}

/// The cluster that a request names (none: "default"), which must be ACTIVE.
pub(super) async fn active_cluster(api: &Api, named: Option<&str>) -> Result<String, ApiError> {
    let name = api.realm.cluster_name(named)?;
    let found = get::<model::Cluster>(api, &keys::cluster(&name)).await?;
    match found {
        Some(cluster) if cluster.value.status == "ACTIVE" => Ok(name),
        _ => Err(ApiError::ClusterNotFound(format!(
            "{name}: create it with CreateCluster, or name another one"
        ))),
    }
}
