//! Owns when the host is looked at for what others did to it: when the kernel says that something was changed, so that it costs
//! nothing while nothing is. The table, which all tasks have, and the tasks are looked after beside each other.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tracing::{debug, error, warn};

use super::{
    Network, NetworkError,
    firewall::{is_own_run, let_through},
    notices::{Noticed, Notices},
    repair::{Failing, Repaired},
};
use crate::{
    metrics::{METRICS, NetworkRepair},
    sys::Chain,
};

/// From a notice to the look: what is done in several steps is seen as one.
const SETTLE: Duration = Duration::from_millis(300);
/// Between two looks, whatever happens: one costs some 20 µs per link of the host.
const PAUSE: Duration = Duration::from_secs(1);
/// After a repair that did not succeed.
const RETRY: Duration = Duration::from_secs(5);

/// What was noticed and not looked at yet.
#[derive(Debug, Default)]
struct Due {
    noticed: Mutex<Noticed>,
    links: Notify,
    tables: Notify,
}

impl Due {
    fn lock(&self) -> MutexGuard<'_, Noticed> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, more: Noticed) {
        if more.links {
            self.links.notify_one();
        }
        if more.is_of_tables() {
            self.tables.notify_one();
        }
        self.lock().add(more);
    }

    fn take_links(&self) -> bool {
        std::mem::take(&mut self.lock().links)
    }

    /// What was noticed of tables.
    fn take_tables(&self) -> Noticed {
        let mut noticed = self.lock();
        let links = noticed.links;
        let tables = std::mem::take(&mut *noticed);
        noticed.links = links;
        tables
    }
}

impl Network {
    /// Repairs what others change, from now on: what they changed before is found at the first look. Cancel-safe.
    pub async fn keep_repaired(&self) {
        loop {
            if let Err(error) = self.watch().await {
                warn!(error = %Chain(&error), "cannot listen to changes of the network; trying again");
            }
            sleep(RETRY).await;
        }
    }

    async fn watch(&self) -> Result<(), NetworkError> {
        let mut listening = self.notices.lock().await;
        let due = Due::default();
        due.add(Noticed {
            links: true,
            // What came while nobody listened is not known.
            tables_lost: listening.is_none(),
            ..Noticed::default()
        });
        // Given back when this is cancelled, and not after an error.
        let notices = match listening.take() {
            Some(notices) => notices,
            None => Notices::open(self.names.table())?,
        };
        let notices = listening.insert(notices);
        let watched = tokio::select! {
            failed = listen(notices, &due) => failed,
            never = self.look_after_table(&due) => match never {},
            never = self.look_after_tasks(&due) => match never {},
        };
        *listening = None;
        watched
    }

    async fn look_after_table(&self, due: &Due) -> std::convert::Infallible {
        loop {
            let noticed = due.take_tables();
            let repaired = self.repair_table(&noticed).await;
            sleep(PAUSE).await;
            if repaired {
                due.tables.notified().await;
            } else {
                let _ = timeout(RETRY, due.tables.notified()).await;
                due.lock().tables_lost = true;
            }
        }
    }

    async fn look_after_tasks(&self, due: &Due) -> std::convert::Infallible {
        let mut failing = Failing::default();
        loop {
            let repaired = match due.take_links() {
                true => self.repair_tasks(&mut failing).await,
                false => Repaired::All,
            };
            sleep(PAUSE).await;
            match repaired {
                Repaired::All => due.links.notified().await,
                Repaired::Busy => due.lock().links = true,
                Repaired::NotAll => {
                    let _ = timeout(RETRY, due.links.notified()).await;
                    due.lock().links = true;
                }
            }
        }
    }

    /// Puts the instance's table in place where somebody else changed it. False: that could not be done.
    async fn repair_table(&self, noticed: &Noticed) -> bool {
        // The kernel itself has port 0.
        let others = |port: &&u32| **port != 0 && !is_own_run(**port);
        let changed = noticed.writers.iter().any(|port| others(&port));
        if changed || noticed.tables_lost {
            let applied = self.firewall.apply().await;
            let problem = applied.as_ref().err().map(|error| Chain(error).to_string());
            let is_news = self.firewall.note(problem);
            if let Err(error) = applied {
                match is_news {
                    true => {
                        error!(error = %Chain(&error), "cannot put the nftables table in place; trying until it can be");
                    }
                    false => debug!("the nftables table cannot be put in place yet"),
                }
                return false;
            }
            if changed || is_news {
                METRICS.network_repaired(NetworkRepair::Table);
                warn!(
                    table = self.names.table(),
                    "somebody changed the nftables table; it is as it was again"
                );
            }
        }
        if (noticed.tables || noticed.tables_lost)
            && self.pass_other_firewalls
            && let Err(error) = let_through(&self.names, self.has_ipv6()).await
        {
            warn!(error = %Chain(&error), "cannot have another firewall let tasks through");
        }
        true
    }
}

async fn listen(notices: &mut Notices, due: &Due) -> Result<(), NetworkError> {
    loop {
        notices.wait().await?;
        sleep(SETTLE).await;
        due.add(notices.take()?);
    }
}
