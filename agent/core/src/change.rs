//! Owns what one event changes: everything the caller must store, and then do.

use std::collections::BTreeSet;

use crate::{
    desired::{Millis, Position},
    effect::Effect,
    event::TimerKey,
    ids::TaskId,
    ledger::LedgerWrite,
    network::WantedNetwork,
    report::Report,
};

/// The outcome of one event. Stored as a whole before any effect runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Tasks whose record changed, or is gone.
    pub tasks: BTreeSet<TaskId>,
    /// The node's own record (position, sequence, addresses) changed.
    pub node: bool,
    pub ledger: Vec<LedgerWrite>,
    /// For the outbox.
    pub reports: Vec<Report>,
    /// Reports up to here left the outbox.
    pub acknowledged: Option<u64>,
    /// Answer to a snapshot or delta; sent once the change is durable.
    pub desired_ack: Option<DesiredAck>,
    pub effects: Vec<Effect>,
    /// Setting a timer again moves it. There is no cancelling: a timer that fires late finds nothing to do.
    pub timers: Vec<(TimerKey, Millis)>,
    /// The host has to be made like that; the latest wins.
    pub network: Option<WantedNetwork>,
    /// What could not happen, and did. Simulation asserts that there is none.
    pub anomalies: Vec<String>,
}

/// Whether a desired state was taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredAck {
    pub position: Position,
    /// Why it was refused as a whole; the node keeps what it had.
    pub refused: Option<String>,
    /// It would be taken over if an operator confirmed it.
    pub confirmable: bool,
}

impl Change {
    /// Nothing to store and nothing to do.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}
