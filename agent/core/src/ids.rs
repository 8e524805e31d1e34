//! Owns the names of things: a container id can never be passed as a task id. Never makes one up: ids are
//! given by the control plane, or derived from it.

use serde::{Deserialize, Serialize};

/// A string that is not 32 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: ids are 32 lower-case hexadecimal digits")]
pub struct InvalidId(pub String);

macro_rules! id { ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
    $(#[$doc])*
    #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
    #[serde(try_from = "String", into = "String")]
    pub struct $name(Box<str>);

    impl $name {
        /// The 32 digits.
        pub fn as_str(&self) -> &str { &self.0 }
        /// The first twelve digits: enough for people and for link names, not for identity.
        pub fn short(&self) -> &str { &self.0[..12] }
    }

    impl std::fmt::Display for $name {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str(&self.0) }
    }

    impl std::str::FromStr for $name {
        type Err = InvalidId;
        /// 32 hex digits: safe as a cgroup name, path segment and DNS label.
        fn from_str(s: &str) -> Result<Self, InvalidId> { hex32(s).map(Self) }
    }

    impl TryFrom<String> for $name {
        type Error = InvalidId;
        fn try_from(s: String) -> Result<Self, InvalidId> { hex32(&s).map(Self) }
    }

    impl From<$name> for String {
        fn from(id: $name) -> String { id.0.into() }
    }
)+}}

id!(
    /// One run of a task definition on this node.
    TaskId,
    /// One container of one task. Its *name* is the user's: another type, and never in a path.
    ContainerId,
    /// A host with an agent: the ECS container instance.
    NodeId,
);

const SUBNET_PREFIX: &str = "subnet-";
const SUBNET_DIGITS: usize = 17;

/// A subnet of the node's cluster: `subnet-` and 17 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubnetId(Box<str>);

impl std::fmt::Display for SubnetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A string that is no id of a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a subnet: subnet- and 17 lower-case hexadecimal digits")]
pub struct InvalidSubnetId(pub String);

impl std::str::FromStr for SubnetId {
    type Err = InvalidSubnetId;

    fn from_str(s: &str) -> Result<Self, InvalidSubnetId> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match s.strip_prefix(SUBNET_PREFIX) {
            Some(digits) if digits.len() == SUBNET_DIGITS && digits.bytes().all(hex) => Ok(Self(s.into())),
            _ => Err(InvalidSubnetId(s.chars().take(64).collect())),
        }
    }
}

impl TryFrom<String> for SubnetId {
    type Error = InvalidSubnetId;

    fn try_from(s: String) -> Result<Self, InvalidSubnetId> {
        s.parse()
    }
}

impl From<SubnetId> for String {
    fn from(id: SubnetId) -> Self {
        id.0.into()
    }
}

fn hex32(s: &str) -> Result<Box<str>, InvalidId> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if s.len() == 32 && s.bytes().all(hex) {
        Ok(s.into())
    } else {
        Err(InvalidId(s.chars().take(64).collect()))
    }
}

/// One start of one container. Counts from 1; a restart is a new attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Attempt(pub u32);

impl Attempt {
    /// The first start.
    pub const FIRST: Self = Self(1);

    /// The one after it.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// The id under which containerd knows one attempt of a container: also its snapshot's key.
/// At most 43 characters; containerd allows 76.
pub fn runtime_id(container: &ContainerId, attempt: Attempt) -> String {
    format!("{container}-{}", attempt.0)
}

/// The container and attempt that a [`runtime_id`] names.
pub fn parse_runtime_id(id: &str) -> Option<(ContainerId, Attempt)> {
    let (container, attempt) = id.split_once('-')?;
    Some((container.parse().ok()?, Attempt(attempt.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_32_lower_case_hex_digits_are_an_id() {
        let good = "0123456789abcdef0123456789abcdef";
        assert_eq!(good.parse::<TaskId>().unwrap().as_str(), good);
        for bad in [
            "",
            "0123",
            &good.to_uppercase(),
            &good.replace('0', "/"),
            &format!("{good}0"),
        ] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_17_lower_case_hex_digits_are_a_subnet() {
        let good = "subnet-0123456789abcdef0";
        assert_eq!(good.parse::<SubnetId>().unwrap().to_string(), good);
        for bad in [
            "",
            "subnet-default",
            "subnet-0123456789abcdef",
            "subnet-0123456789ABCDEF0",
            &good[7..],
        ] {
            assert!(bad.parse::<SubnetId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_runtime_id_names_its_attempt() {
        let id: ContainerId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(
            parse_runtime_id(&runtime_id(&id, Attempt(7))),
            Some((id, Attempt(7)))
        );
        assert_eq!(parse_runtime_id("x-1"), None);
    }
}
