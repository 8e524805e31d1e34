//! Owns sharing: concurrent wishes for one image are one flight, which goes on while anyone waits for it and is
//! cancelled when the last one leaves. Every flight is tracked and joined on the way out.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{assemble::Assembled, error::ImageError};

type Outcome = Result<Assembled, ImageError>;

/// Flights by canonical reference.
#[derive(Clone, Debug)]
pub(super) struct Flights {
    flights: Arc<Mutex<HashMap<String, Flight>>>,
    pub tracker: TaskTracker,
    /// Cancels every flight, now and later.
    pub closing: CancellationToken,
}

#[derive(Debug)]
struct Flight {
    waiting: usize,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// A place in a flight. Dropping it gives the place up.
#[derive(Debug)]
pub(super) struct Seat {
    flights: Flights,
    key: String,
    cancel: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Flights {
    pub fn new() -> Self {
        Self {
            flights: Arc::default(),
            tracker: TaskTracker::new(),
            closing: CancellationToken::new(),
        }
    }

    /// Joins the flight for `key`, or starts one. A flight that was cancelled is waited for first, so that its
    /// cleaning up and the new flight do not meet. None once the flights are closed.
    pub async fn join<F>(&self, key: &str, start: impl Fn(CancellationToken) -> F) -> Option<Seat>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        loop {
            let mut landing = {
                let mut flights = self.lock();
                if self.closing.is_cancelled() {
                    return None;
                }
                match flights.get_mut(key) {
                    Some(flight) if flight.cancel.is_cancelled() => flight.outcome.clone(),
                    Some(flight) => {
                        flight.waiting += 1;
                        return Some(self.seat(key, flight));
                    }
                    None => {
                        let flight = self.start(key, &start);
                        let seat = self.seat(key, &flight);
                        flights.insert(key.to_owned(), flight);
                        return Some(seat);
                    }
                }
            };
            // An error means that it has landed.
            while landing.changed().await.is_ok() {}
        }
    }

    fn start<F>(&self, key: &str, start: impl Fn(CancellationToken) -> F) -> Flight
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let cancel = self.closing.child_token();
        let (land, outcome) = watch::channel(None);
        let work = start(cancel.clone());
        let (this, key) = (self.clone(), key.to_owned());
        self.tracker.spawn(async move {
            let landed = Landing {
                flights: this,
                key,
                land,
            };
            let outcome = work.await;
            landed.land.send_replace(Some(outcome));
        });
        Flight {
            waiting: 1,
            cancel,
            outcome,
        }
    }

    fn seat(&self, key: &str, flight: &Flight) -> Seat {
        Seat {
            flights: self.clone(),
            key: key.to_owned(),
            cancel: flight.cancel.clone(),
            outcome: flight.outcome.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Cancels all flights and waits until they have cleaned up.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Takes the flight off the list when its task ends, even by a panic.
struct Landing {
    flights: Flights,
    key: String,
    land: watch::Sender<Option<Outcome>>,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

impl Seat {
    /// The flight's outcome; none if its task died.
    pub async fn outcome(mut self) -> Option<Outcome> {
        let landed = self.outcome.wait_for(Option::is_some).await;
        landed.ok()?.clone()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // The flight under this key may be another one by now.
        if let Some(flight) = flights.get_mut(&self.key)
            && flight.outcome.same_channel(&self.outcome)
        {
            flight.waiting -= 1;
            if flight.waiting == 0 {
                self.cancel.cancel();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use berth_agent_core::image::ImageConfig;

    use super::{super::digest::Digest, *};

    fn assembled() -> Assembled {
        let digest = Digest::of(b"x");
        Assembled {
            digest: digest.clone(),
            resolved: digest.clone(),
            chain_id: digest,
            config: ImageConfig::default(),
        }
    }

    #[tokio::test]
    async fn everyone_shares_one_flight() {
        let flights = Flights::new();
        let starts = Arc::new(AtomicUsize::new(0));
        let start = |_cancel| {
            starts.fetch_add(1, Ordering::Relaxed);
            async {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(assembled())
            }
        };
        let mut seats = Vec::new();
        for _ in 0..10 {
            seats.push(flights.join("a", start).await.unwrap());
        }
        drop(seats.pop());
        for seat in seats {
            assert_eq!(seat.outcome().await.unwrap().unwrap(), assembled());
        }
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        flights.close().await;
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels_and_the_next_waits_for_the_cleaning_up() {
        let flights = Flights::new();
        let cleaned = Arc::new(AtomicUsize::new(0));
        let start = |cancel: CancellationToken| {
            let cleaned = Arc::clone(&cleaned);
            async move {
                cancel.cancelled().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                cleaned.fetch_add(1, Ordering::Relaxed);
                Ok(assembled())
            }
        };
        drop(flights.join("a", start).await);
        let second = flights.join("a", start).await;
        assert_eq!(cleaned.load(Ordering::Relaxed), 1);
        drop(second);
        flights.close().await;
        assert_eq!(cleaned.load(Ordering::Relaxed), 2);
        assert!(flights.join("a", start).await.is_none());
    }
}
