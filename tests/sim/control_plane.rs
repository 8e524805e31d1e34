//! Owns a model of the control plane: what it wants, and what it was told. Asserts order and once-only application.

use std::collections::BTreeMap;

use berth_agent_core::{
    desired::{DesiredStatus, Position, TaskSpec},
    event::Event,
    ids::TaskId,
    report::{Report, Status},
};

#[derive(Debug)]
pub struct ControlPlane {
    pub desired: BTreeMap<TaskId, TaskSpec>,
    /// Last status of every task ever wanted.
    pub known: BTreeMap<TaskId, Status>,
    pub applied: u64,
    /// The node skips numbers once per boot of its host.
    pub gaps_allowed: u32,
    /// Tasks that begin again after a reboot, and how often: the only ones that may go back.
    pub restarts: BTreeMap<TaskId, u32>,
    revision: u64,
}

impl ControlPlane {
    pub fn new() -> Self {
        Self {
            desired: BTreeMap::new(),
            known: BTreeMap::new(),
            applied: 0,
            gaps_allowed: 0,
            restarts: BTreeMap::new(),
            revision: 1,
        }
    }

    fn position(&mut self) -> Position {
        self.revision += 1;
        Position {
            store_id: "sim".into(),
            epoch: 1,
            revision: self.revision,
        }
    }

    pub fn snapshot(&mut self) -> Event {
        Event::Snapshot {
            position: self.position(),
            tasks: self.desired.values().cloned().collect(),
            refused: Vec::new(),
            removals_confirmed: false,
        }
    }

    pub fn want(&mut self, spec: TaskSpec) -> Event {
        self.known.insert(spec.id.clone(), Status::Pending);
        self.desired.insert(spec.id.clone(), spec.clone());
        Event::Delta {
            position: self.position(),
            changed: vec![spec],
            removed: Vec::new(),
            refused: Vec::new(),
        }
    }

    pub fn stop(&mut self, id: &TaskId) -> Option<Event> {
        let spec = self.desired.get_mut(id)?;
        spec.desired = DesiredStatus::Stopped;
        let spec = spec.clone();
        Some(Event::Delta {
            position: self.position(),
            changed: vec![spec],
            removed: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Applies a report once. A task reported STOPPED is no longer wanted, which the node is told.
    pub fn report(&mut self, report: &Report) -> Option<Event> {
        if report.sequence <= self.applied {
            return None;
        }
        if report.sequence != self.applied + 1 {
            assert!(
                self.gaps_allowed > 0,
                "reports come in order, without a gap: {} after {}",
                report.sequence,
                self.applied
            );
            self.gaps_allowed -= 1;
        }
        self.applied = report.sequence;
        let id = &report.task.id;
        let last = self.known.insert(id.clone(), report.task.facts.status);
        let status = report.task.facts.status;
        if last.is_some_and(|last| status < last) {
            let restarts = self.restarts.get_mut(id).filter(|left| **left > 0);
            let restarts =
                restarts.unwrap_or_else(|| panic!("task {id} went back from {last:?} to {status:?}"));
            assert_eq!(status, Status::Pending, "task {id} begins anew");
            *restarts -= 1;
        }
        if status != Status::Stopped {
            return None;
        }
        self.desired.remove(id)?;
        Some(Event::Delta {
            position: self.position(),
            changed: Vec::new(),
            removed: vec![id.clone()],
            refused: Vec::new(),
        })
    }
}
