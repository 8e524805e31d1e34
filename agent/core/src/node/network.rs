//! Owns how the node's part of the cluster's network is taken over: what is new is used once the agent has looked whether
//! the host can have it; what is taken away is used no more at once, but for the tasks that have addresses of it.

use std::{collections::BTreeSet, net::IpAddr};

use super::Node;
use crate::{
    change::Change,
    desired::Millis,
    ids::{SubnetId, TaskId},
    network::{AppliedNetwork, Network, WantedNetwork},
};

impl Node {
    /// What the host has to be made like, as of now.
    pub fn wanted_network(&self) -> WantedNetwork {
        let network = self.record.network.as_ref();
        let lans = network.map(|network| network.lans.clone()).unwrap_or_default();
        let ranges = network.map(|network| network.ranges.clone()).unwrap_or_default();
        let own = self.record.addresses.range(None);
        let all: Vec<_> = own.into_iter().chain(ranges.values().copied()).collect();
        let kept = self.record.addresses.held_outside(&all);
        let of_lans = self.tasks.values().filter(|task| task.spec.lan.is_some());
        let of_lans: Vec<_> = of_lans.filter_map(|task| Some(task.address?.ipv4)).collect();
        let (mut kept_lan, mut all_kept) = (Vec::new(), Vec::new());
        for address in kept {
            match address {
                IpAddr::V4(own) if of_lans.contains(&own) => kept_lan.push(own),
                _ => all_kept.push(address),
            }
        }
        WantedNetwork {
            kept: all_kept,
            kept_lan,
            lans,
            peers: network.map(|network| network.peers.clone()).unwrap_or_default(),
            position: network.map(|network| network.position.clone()),
            ranges,
        }
    }

    pub(super) fn on_network(&mut self, network: Network, change: &mut Change) {
        // A registration anew is another store's, or another node's part of the same one.
        let known = [
            self.record.position.as_ref(),
            self.record.network.as_ref().map(|network| &network.position),
        ];
        if !self.rejoined && !known.into_iter().flatten().all(|known| network.follows(known)) {
            // Its desired state is refused as well, which says why.
            return;
        }
        self.record.addresses.keep_subnets(&network.ranges);
        self.record.network = Some(network);
        change.node = true;
        change.network = Some(self.wanted_network());
    }

    /// Returns the tasks whose facts changed.
    pub(super) fn on_network_applied(
        &mut self,
        applied: AppliedNetwork,
        now: Millis,
        change: &mut Change,
    ) -> BTreeSet<TaskId> {
        // What was taken away meanwhile is not used again.
        let named = |(subnet, range): &(&_, &_)| {
            let network = self.record.network.as_ref();
            network.is_some_and(|network| network.ranges.get(*subnet) == Some(*range))
        };
        let usable = applied.ranges.iter().filter(named);
        let usable = usable.map(|(subnet, range)| (subnet.clone(), *range)).collect();
        if self.record.addresses.use_subnets(&usable) {
            change.node = true;
            self.admission_due = true;
        }
        let lost = applied.lost.keys().cloned().collect();
        for (id, reason) in &applied.lost {
            if let Some(task) = self.tasks.get_mut(id) {
                task.on_network_lost(reason, now);
            }
        }
        self.applied = applied;
        lost
    }

    /// For an operator.
    pub(super) fn network_impairments(&self) -> impl Iterator<Item = String> {
        // A network outside need not be there on every node.
        let is_used = |subnet: &SubnetId| {
            let mut tasks = self.tasks.values().filter(|task| task.holds_host());
            let network = self.record.network.as_ref();
            network.is_none_or(|network| !network.lans.contains_key(subnet))
                || tasks.any(|task| task.spec.subnet.as_ref() == Some(subnet))
        };
        let problems = self.applied.problems.iter();
        let problems = problems.filter(move |(subnet, _)| is_used(subnet));
        let unused = problems.map(|(subnet, problem)| format!("{subnet} is not used here: {problem}"));
        let own = self.range_problem.iter();
        let own = own.map(|problem| format!("{problem}: set task_cidr to a range that nothing else uses"));
        own.chain(unused).chain(self.applied.unreached.iter().cloned())
    }
}
