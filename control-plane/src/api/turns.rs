//! Owns how much of the API is taken at once, and by whom: calls that are carried out, and large bodies that are held in
//! memory. Who sends slowly holds nothing that others need, and who may only read cannot take it all. Never knows what a
//! call does.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::{link::source, model::Role};

/// Most calls carried out at once; their bodies have come, and are signed.
const CALLS_MAX: usize = 128;
/// Of those, most by keys that only read.
const READERS_MAX: usize = 64;
/// A longer body needs a place. Shorter ones of all connections together are 16 MiB.
pub(super) const SMALL_BODY_BYTES: usize = 16 << 10;
/// Most larger bodies held at once; each is at most 1 MiB.
const BODIES_MAX: usize = 64;
/// Of those, most of one key from one address.
const BODIES_PER_CALLER_MAX: usize = 16;
/// How long a call may wait for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(2);

/// A place, or two of them, until it is dropped.
pub(super) type Turn = Vec<OwnedSemaphorePermit>;
type CallerKey = (String, Option<IpAddr>);

/// Counts what is taken.
#[derive(Debug)]
pub(super) struct Turns {
    calls: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    /// Only of callers who hold or wait for a place.
    callers: Mutex<HashMap<CallerKey, Weak<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            calls: Arc::new(Semaphore::new(CALLS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            bodies: Arc::new(Semaphore::new(BODIES_MAX)),
            callers: Mutex::default(),
        }
    }
}

impl Turns {
    /// The turn of a call whose caller is known. Waits a little.
    pub async fn call(&self, role: Role) -> Result<Turn, ApiError> {
        let own = match role {
            Role::Admin => None,
            Role::ReadOnly => Some(self.readers.clone()),
        };
        take(own.into_iter().chain([self.calls.clone()])).await
    }

    /// The place of a large body of a caller who is not verified yet: that takes the whole of it. Waits a little.
    pub async fn body(&self, access_key_id: &str, address: Option<IpAddr>) -> Result<Turn, ApiError> {
        let own = self.of((access_key_id.to_owned(), address.map(source)));
        take([own, self.bodies.clone()]).await
    }

    fn of(&self, caller: CallerKey) -> Arc<Semaphore> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.retain(|_, held| held.strong_count() > 0);
        let known = callers.get(&caller).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let places = Arc::new(Semaphore::new(BODIES_PER_CALLER_MAX));
            callers.insert(caller, Arc::downgrade(&places));
            places
        })
    }
}

/// One place of each, in this order: who waits for its own share holds nobody else's.
async fn take(all: impl IntoIterator<Item = Arc<Semaphore>>) -> Result<Turn, ApiError> {
    let taking = async {
        let mut turn = Turn::new();
        for one in all {
            turn.push(one.acquire_owned().await.map_err(|_| ApiError::Busy)?);
        }
        Ok(turn)
    };
    tokio::time::timeout(TURN_DEADLINE, taking)
        .await
        .map_err(|_| ApiError::Busy)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_only_reads_leaves_places_for_others() {
        let turns = Turns::default();
        let mut held = Vec::new();
        for _ in 0..READERS_MAX {
            held.push(turns.call(Role::ReadOnly).await.unwrap());
        }
        assert!(matches!(turns.call(Role::ReadOnly).await, Err(ApiError::Busy)));
        for _ in 0..CALLS_MAX - READERS_MAX {
            held.push(turns.call(Role::Admin).await.unwrap());
        }
        assert!(matches!(turns.call(Role::Admin).await, Err(ApiError::Busy)));
        held.clear();
        turns.call(Role::ReadOnly).await.unwrap();
    }

    #[tokio::test]
    async fn one_caller_has_its_share_of_large_bodies_and_is_forgotten() {
        let turns = Turns::default();
        let address = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let mut held = Vec::new();
        for _ in 0..BODIES_PER_CALLER_MAX {
            held.push(turns.body("AKIDREADER", address(1)).await.unwrap());
        }
        let more = turns.body("AKIDREADER", address(1)).await;
        assert!(matches!(more, Err(ApiError::Busy)));
        turns.body("AKIDREADER", address(2)).await.unwrap();
        turns.body("AKIDADMIN", address(1)).await.unwrap();
        held.clear();
        turns.body("AKIDREADER", address(1)).await.unwrap();
        assert!(turns.callers.lock().unwrap().len() <= 1);
    }
}
