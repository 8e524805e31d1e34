//! Owns making the host like the control plane's word of the cluster's network, now and again: on each word, and often enough
//! that what somebody else changed is put right. Tells the core what can be used, and the link what to answer.

use std::{sync::Arc, time::Duration};

use berth_agent_core::{
    desired::Position,
    event::Event,
    network::{AppliedNetwork, WantedNetwork},
};
use berth_proto::node::v1 as wire;
use tokio::sync::{mpsc, watch};

use crate::{
    convert,
    driver::{Input, send},
    effects::Host,
    sys::Chain,
};

/// Between two looks at the host, where there is anything to look after: a listing of its routes, half a millisecond.
const INTERVAL: Duration = Duration::from_secs(4);
/// Between two looks whether the node's own range is the node's.
const OWN_INTERVAL: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What the control plane is answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// None: nothing was said yet.
    pub position: Option<Position>,
    pub applied: AppliedNetwork,
}

impl Answer {
    pub(crate) fn to_wire(&self) -> Option<wire::NetworkAck> {
        let problem = |(subnet, reason): (&_, &String)| wire::RangeProblem {
            subnet_id: ToString::to_string(subnet),
            reason: reason.clone(),
        };
        let limit = |(subnet, tasks): (&_, &u32)| wire::RangeLimit {
            subnet_id: ToString::to_string(subnet),
            tasks: *tasks,
        };
        Some(wire::NetworkAck {
            position: Some(convert::position_to_wire(self.position.as_ref()?)),
            problems: self.applied.problems.iter().map(problem).collect(),
            limits: self.applied.limits.iter().map(limit).collect(),
        })
    }
}

#[derive(Debug)]
pub struct Ranges {
    pub host: Arc<Host>,
    pub inputs: mpsc::Sender<Input>,
    /// The latest word.
    pub wanted: watch::Receiver<WantedNetwork>,
    pub answers: watch::Sender<Answer>,
}

impl Ranges {
    /// For as long as the agent runs.
    pub async fn run(self) {
        let own = look_at_own(Arc::clone(&self.host), self.inputs.clone());
        tokio::join!(self.of_cluster(), own);
    }

    async fn of_cluster(mut self) {
        let mut told: Option<Answer> = None;
        let (mut failing, mut told_of_ipv6) = (false, false);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            // Where nothing was ever said, there is nothing to look after.
            let idle = wanted.position.is_none();
            if wanted.lacks_ipv6_peers() && !told_of_ipv6 {
                told_of_ipv6 = true;
                tracing::warn!(
                    "other nodes' tasks are not reached by IPv6: this node, or every other, has no IPv6 address for that \
                     (network.node_address_v6)"
                );
            }
            if !idle {
                match self.host.network.configure(&wanted).await {
                    Ok(applied) => {
                        failing = false;
                        let answer = Answer {
                            position: wanted.position,
                            applied,
                        };
                        if told.as_ref() != Some(&answer) {
                            self.tell(&answer).await;
                            told = Some(answer);
                        }
                    }
                    Err(error) => {
                        if !failing {
                            tracing::warn!(error = %Chain(&error), "the cluster's network cannot be set up; trying on");
                        }
                        failing = true;
                    }
                }
            }
            let pause = if failing { RETRY } else { INTERVAL };
            tokio::select! {
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(pause), if !idle => {}
            }
        }
    }

    async fn tell(&self, answer: &Answer) {
        for (subnet, problem) in &answer.applied.problems {
            tracing::warn!(%subnet, problem, "no task gets an address of this node's part of the subnet");
        }
        for problem in &answer.applied.unreached {
            tracing::warn!(problem, "another node's tasks are not reached");
        }
        send(&self.inputs, Event::NetworkApplied(answer.applied.clone())).await;
        self.answers.send_replace(answer.clone());
    }
}

/// Tells the core when something else of the host has the node's own range of addresses, and when no more. Tasks that have some go
/// on: the host knows the way to them.
async fn look_at_own(host: Arc<Host>, inputs: mpsc::Sender<Input>) {
    let mut told = None;
    loop {
        match host.network.range_problem().await {
            Ok(problem) if problem != told => {
                if let Some(problem) = &problem {
                    tracing::warn!(
                        problem,
                        "tasks and that network do not reach each other: set task_cidr to a range that nothing else uses"
                    );
                }
                told.clone_from(&problem);
                send(&inputs, Event::OwnRange { problem }).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "cannot look whether task_cidr is routed elsewhere")
            }
        }
        tokio::time::sleep(OWN_INTERVAL).await;
    }
}
