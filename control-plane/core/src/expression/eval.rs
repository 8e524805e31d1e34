//! Owns what an expression means for one node. Never fails: what cannot be compared does not match.

use std::cmp::Ordering;

use super::parse::{number, version};
use super::{Bound, Field, Node, Subject, Test};

/// Depth is bounded by the parser.
pub(super) fn holds(node: &Node, subject: &Subject<'_>) -> bool {
    match node {
        Node::All(nodes) => nodes.iter().all(|n| holds(n, subject)),
        Node::Any(nodes) => nodes.iter().any(|n| holds(n, subject)),
        Node::Not(node) => !holds(node, subject),
        Node::Test(field, test) => passes(field, test, subject),
    }
}

fn passes(field: &Field, test: &Test, subject: &Subject<'_>) -> bool {
    match test {
        Test::Not(test) => !passes(field, test, subject),
        Test::Exists => match field {
            Field::Attribute(name) => subject.attributes.contains_key(name),
            _ => true,
        },
        Test::OneOf(values) => any_value(field, subject, |found| values.iter().any(|v| v == found)),
        Test::Matches(pattern) => any_value(field, subject, |found| pattern.is_match(found)),
        Test::Order(order, Bound::Time { from_ms, to_ms }) => {
            let at = subject.registered_at_ms;
            let ordering = if at < *from_ms {
                Ordering::Less
            } else if at < *to_ms {
                Ordering::Equal
            } else {
                Ordering::Greater
            };
            order.accepts(ordering)
        }
        Test::Order(order, Bound::Number(bound)) => any_value(field, subject, |found| {
            number(found)
                .and_then(|n| n.partial_cmp(bound))
                .is_some_and(|o| order.accepts(o))
        }),
        Test::Order(order, Bound::Version(bound)) => any_value(field, subject, |found| {
            version(found).is_some_and(|v| order.accepts(v.cmp(bound)))
        }),
    }
}

/// Whether one of the values the node has for this subject is accepted: an attribute has none or one, a node
/// has as many groups as run there.
fn any_value(field: &Field, subject: &Subject<'_>, accept: impl Fn(&str) -> bool) -> bool {
    match field {
        Field::Attribute(name) => subject
            .attributes
            .get(name)
            .and_then(Option::as_deref)
            .is_some_and(accept),
        Field::Group => subject
            .groups
            .iter()
            .any(|(group, tasks)| *tasks > 0 && accept(group)),
        Field::AgentConnected => accept(if subject.connected { "true" } else { "false" }),
        Field::AgentVersion => accept(subject.agent_version),
        Field::RunningTasks => accept(&subject.running_tasks.to_string()),
        Field::NodeId => accept(subject.node_id),
        // Compared as a time, never as text.
        Field::RegisteredAt => false,
    }
}
