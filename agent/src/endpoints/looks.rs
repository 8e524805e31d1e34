//! Owns how many threads look at the host's disks at a time: one that hangs there is over when the disk answers and not before,
//! whoever gave up waiting for it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::Refused;

/// Of all tasks: normally a look takes less than a millisecond.
const LOOKS_MAX: usize = 4;

/// Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Looks {
    places: Arc<Semaphore>,
    patience: Duration,
}

impl Looks {
    /// For a place and a look together `patience` is waited.
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            places: Arc::new(Semaphore::new(LOOKS_MAX)),
            patience,
        }
    }

    /// # Errors
    /// [`Refused::Away`] when the disks do not answer in time, or others wait for them in all places.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let looked = async {
            let place = self
                .places
                .clone()
                .acquire_owned()
                .await
                .map_err(|_| Refused::Away)?;
            let look = move || {
                let found = look();
                drop(place);
                found
            };
            let looked = tokio::task::spawn_blocking(look).await;
            looked.map_err(|_| Refused::Away)
        };
        let looked = tokio::time::timeout(self.patience, looked).await;
        looked.unwrap_or(Err(Refused::Away))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn looks_that_hang_are_bounded_and_keep_their_places_until_they_end() {
        let looks = Looks::new(Duration::from_millis(30));
        let (ends, hanging): (Vec<_>, Vec<_>) = (0..LOOKS_MAX)
            .map(|_| {
                let (end, wait) = mpsc::channel::<()>();
                (end, looks.run(move || wait.recv().is_err()))
            })
            .unzip();
        for looked in join_all(hanging).await {
            assert!(matches!(looked, Err(Refused::Away)), "{looked:?}");
        }
        let refused = looks.run(|| 7).await;
        assert!(matches!(refused, Err(Refused::Away)), "{refused:?}");

        drop(ends);
        let looks = Looks {
            patience: Duration::from_secs(60),
            ..looks
        };
        assert_eq!(looks.run(|| 7).await.unwrap(), 7);
    }
}
