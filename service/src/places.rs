//! Owns how much askers take of something at a time: all together, and each address, so that none keeps the others out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// How much there is at a time.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub all: usize,
    /// For one address.
    pub of_one: usize,
}

/// What is taken of some places. Cheap to clone: all clones count together.
#[derive(Clone, Debug)]
pub struct Taken {
    places: Places,
    now: Arc<Mutex<Now>>,
}

#[derive(Debug, Default)]
struct Now {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// One place, until dropped.
#[derive(Debug)]
pub struct Place {
    taken: Taken,
    of: IpAddr,
}

impl Taken {
    pub fn new(places: Places) -> Self {
        Self {
            places,
            now: Arc::default(),
        }
    }

    /// None: all are taken, or all that this address may have.
    pub fn take(&self, of: IpAddr) -> Option<Place> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let own = now.of.get(&of).copied().unwrap_or_default();
        if now.all >= self.places.all || own >= self.places.of_one {
            return None;
        }
        now.all += 1;
        now.of.insert(of, own + 1);
        let taken = self.clone();
        Some(Place { taken, of })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut now = self.taken.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.all -= 1;
        if let Some(own) = now.of.get_mut(&self.of) {
            *own -= 1;
            if *own == 0 {
                now.of.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn none_has_more_than_its_share_and_what_is_dropped_is_free() {
        let taken = Taken::new(Places { all: 3, of_one: 2 });
        let [a, b] = [1, 2].map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
        let first = taken.take(a).unwrap();
        let second = taken.take(a).unwrap();
        assert!(taken.take(a).is_none(), "its share");
        let third = taken.clone().take(b).unwrap();
        assert!(taken.take(b).is_none(), "all");
        drop(first);
        assert!(taken.take(b).is_some());
        assert!(taken.take(a).is_some());
        drop((second, third));
        assert!(taken.now.lock().unwrap().of.is_empty());
    }
}
