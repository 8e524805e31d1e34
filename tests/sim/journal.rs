//! Owns the record of what one run of a core was given, and the proof that the same input gives the same state.

use berth_agent_core::{
    change::Change,
    desired::Millis,
    event::Event,
    ledger::Ledger,
    node::{Node, NodeRecord},
    task::Task,
};

use crate::world::config;

/// The state a core began with, and every input since, with what came of it.
#[derive(Debug)]
pub struct Journal {
    record: NodeRecord,
    tasks: Vec<Task>,
    ledger: Ledger,
    pub entries: Vec<(Millis, Event, Change)>,
}

impl Journal {
    pub fn of(node: &Node) -> Self {
        Self {
            record: node.record().clone(),
            tasks: node.tasks().cloned().collect(),
            ledger: node.ledger().clone(),
            entries: Vec::new(),
        }
    }

    /// A fresh core that is given the same input, as it was written down, does and becomes the same.
    pub fn replays_to(&self, node: &Node) {
        let mut replayed = Node::load(
            config(),
            self.record.clone(),
            self.tasks.clone(),
            self.ledger.clone(),
        );
        for (now, event, change) in &self.entries {
            let json = serde_json::to_string(event).unwrap();
            let event = serde_json::from_str(&json).unwrap();
            assert_eq!(
                &replayed.apply(*now, event),
                change,
                "the replay parts at {now:?} {json}"
            );
        }
        assert_eq!(replayed.record(), node.record());
        assert_eq!(replayed.ledger(), node.ledger());
        assert!(replayed.tasks().eq(node.tasks()), "tasks differ after the replay");
        assert_eq!(replayed.resources().used(), node.resources().used());
    }
}
