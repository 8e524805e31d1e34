//! Owns what the agent tells the service manager: how far a start is, its status in one line, that it is ready. Never
//! decides what ready is ([`health`](crate::health) does).

use std::time::Duration;

use berth_agent_core::report::Status;
use berth_service::{
    notify::Notifier,
    readiness::{Readiness, Report},
};
use tokio::sync::watch;

use crate::{driver::NodeStatus, health::Health, link::LinkState};

/// Between two status lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Asked for while a step of the start goes on, and how often.
const EXTENSION: Duration = Duration::from_secs(30);
const EXTENSION_INTERVAL: Duration = Duration::from_secs(10);

/// Tells of a start. Its steps have deadlines of their own; while one goes on, the service manager is asked for time.
#[derive(Clone, Debug)]
pub struct Starting {
    pub notifier: Notifier,
    pub health: Health,
}

impl Starting {
    /// Does `work`, which is `what`, for people.
    pub async fn step<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        self.notifier.status(what);
        self.health.pulse.beat();
        let mut ticks = tokio::time::interval(EXTENSION_INTERVAL);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.health.pulse.beat();
                    return done;
                }
                _ = ticks.tick() => {
                    self.notifier.extend_start(EXTENSION);
                    self.health.pulse.beat();
                }
            }
        }
    }
}

/// Says READY once it is true, and from then on what the node does.
pub async fn tell(
    notifier: Notifier,
    readiness: Readiness,
    mut status: watch::Receiver<NodeStatus>,
    mut link: watch::Receiver<LinkState>,
) {
    if !notifier.connected() {
        return;
    }
    let mut started = readiness.subscribe();
    if started.wait_for(Report::started).await.is_err() {
        return;
    }
    notifier.ready();
    let mut last = String::new();
    loop {
        let line = line(&status.borrow_and_update(), &link.borrow_and_update());
        if line != last {
            notifier.status(&line);
            last = line;
        }
        tokio::time::sleep(STATUS_INTERVAL).await;
        let changed = tokio::select! {
            changed = status.changed() => changed,
            changed = link.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// What `systemctl status` shows.
fn line(status: &NodeStatus, link: &LinkState) -> String {
    let count = |wanted: Status| status.tasks.values().filter(|status| **status == wanted).count();
    let mut parts = vec![format!("{} tasks running", count(Status::Running))];
    let pending = count(Status::Pending);
    if pending > 0 {
        parts.push(format!("{pending} pending"));
    }
    let ending = count(Status::Stopping) + count(Status::Deprovisioning);
    if ending > 0 {
        parts.push(format!("{ending} stopping"));
    }
    if let Some(impairment) = status.impairments.first() {
        parts.push(format!("impaired: {impairment}"));
    }
    parts.push(link.problem().unwrap_or_else(|| "link is up".into()));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn receive(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 2048];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn ready_is_said_when_it_is_true_and_the_status_follows() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let manager = UnixDatagram::bind(&socket).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let notifier = Notifier::new(Some(socket.as_os_str()), None).unwrap();
        let health = Health::default();
        let (status, seen) = watch::channel(NodeStatus::default());
        let (_link, link_seen) = watch::channel(crate::link::Link::initial_state());
        let telling = tokio::spawn(tell(notifier.clone(), health.readiness.clone(), seen, link_seen));
        let starting = Starting {
            notifier,
            health: health.clone(),
        };
        starting
            .step("waiting", tokio::time::sleep(Duration::from_millis(20)))
            .await;
        assert_eq!(receive(&manager), "STATUS=waiting");
        assert!(receive(&manager).starts_with("EXTEND_TIMEOUT_USEC="));
        health.stored(None);
        health.containerd(None);
        health.taken_up();
        health.driver_started();
        assert_eq!(receive(&manager), "READY=1");
        assert_eq!(receive(&manager), "STATUS=0 tasks running, link: connecting");
        let task = format!("{:032x}", 1).parse().unwrap();
        status.send_modify(|status| {
            status.tasks.insert(task, Status::Running);
        });
        assert_eq!(receive(&manager), "STATUS=1 tasks running, link: connecting");
        drop(status);
        telling.await.unwrap();
    }
}
