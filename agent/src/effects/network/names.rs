//! Owns the names that one instance uses on its host: links, table, hardware addresses. Never looks at the host.

use berth_agent_core::ids::TaskId;
use sha2::{Digest, Sha256};

use super::error::NetworkError;

/// Longest instance name: it is part of an nftables table name and of directory names.
const INSTANCE_CHARS_MAX: usize = 32;
/// Digits of the task id in a link name. With the prefix of 5 this fills the kernel's 15 characters (IFNAMSIZ − 1).
const LINK_TASK_DIGITS: usize = 10;

/// The names of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    instance: String,
    prefix: String,
    group: u32,
}

impl Names {
    /// Derives them from the instance's name.
    ///
    /// # Errors
    /// [`NetworkError::InstanceName`] when the name is not usable as an nftables identifier.
    pub(crate) fn new(instance: &str) -> Result<Self, NetworkError> {
        let valid = instance.len() <= INSTANCE_CHARS_MAX
            && instance.starts_with(|c: char| c.is_ascii_lowercase())
            && instance
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !valid {
            return Err(NetworkError::InstanceName {
                name: instance.chars().take(64).collect(),
            });
        }
        let hash = Sha256::digest(instance.as_bytes());
        Ok(Self {
            instance: instance.to_owned(),
            prefix: format!("b{}", hex::encode(&hash[..2])),
            // Never 0, the kernel's default group; the lowest bit marks strays.
            group: (u32::from_be_bytes([0x40 | (hash[2] & 0x3f), hash[3], hash[4], hash[5]])) & !1,
        })
    }

    /// The table in nftables' `inet` family.
    pub(crate) fn table(&self) -> &str {
        &self.instance
    }

    /// What every link name of this instance starts with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The link group of task links. Deleting by group is one operation for any number of links.
    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    /// The link group into which strays are moved to be deleted together.
    pub(crate) fn stray_group(&self) -> u32 {
        self.group | 1
    }

    /// The host's end of a task's link: 15 characters. Two tasks may share one (1 in 2⁴⁰): the alias tells.
    pub(crate) fn link(&self, task: &TaskId) -> String {
        format!("{}{}", self.prefix, &task.as_str()[..LINK_TASK_DIGITS])
    }

    /// Who a link belongs to, in full, kept in the link's alias.
    pub(crate) fn alias(&self, task: &TaskId) -> String {
        format!("{}/{task}", self.instance)
    }

    /// The task that an alias of this instance names.
    pub(crate) fn task_of_alias(&self, alias: &str) -> Option<TaskId> {
        alias
            .strip_prefix(&self.instance)?
            .strip_prefix('/')?
            .parse()
            .ok()
    }
}

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// The address of the task's eth0: unicast, locally administered (IEEE 802), from the task's id.
pub(super) fn task_mac(task: &TaskId) -> Mac {
    mac(0x0a, task)
}

/// The address of the host's end.
pub(super) fn host_mac(task: &TaskId) -> Mac {
    mac(0x0e, task)
}

fn mac(first: u8, task: &TaskId) -> Mac {
    let mut mac = [first, 0, 0, 0, 0, 0];
    // An id is 32 hex digits: the first ten always decode.
    let _ = hex::decode_to_slice(&task.as_str()[..10], &mut mac[1..]);
    mac
}

/// As people write it: `0a:01:23:45:67:89`.
pub(super) fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str) -> TaskId {
        id.parse().unwrap()
    }

    #[test]
    fn a_link_name_fits_the_kernel_and_names_instance_and_task() {
        let names = Names::new("berth").unwrap();
        let link = names.link(&task("0123456789abcdef0123456789abcdef"));
        assert_eq!(link.len(), 15);
        assert!(link.starts_with(names.prefix()) && link.ends_with("0123456789"));
        assert_ne!(names.prefix(), Names::new("berth-2").unwrap().prefix());
    }

    #[test]
    fn groups_of_an_instance_differ_and_are_not_the_default() {
        for instance in ["berth", "a", "berth-2", "z9"] {
            let names = Names::new(instance).unwrap();
            assert_ne!(names.group(), 0);
            assert_eq!(names.group() + 1, names.stray_group());
        }
    }

    #[test]
    fn an_alias_tells_the_task_and_only_this_instances() {
        let names = Names::new("berth").unwrap();
        let id = task("0123456789abcdef0123456789abcdef");
        assert_eq!(names.task_of_alias(&names.alias(&id)), Some(id.clone()));
        let other = Names::new("berth-2").unwrap();
        assert_eq!(names.task_of_alias(&other.alias(&id)), None);
        assert_eq!(names.task_of_alias("berth/x"), None);
    }

    #[test]
    fn hardware_addresses_are_unicast_and_locally_administered() {
        let id = task("ffeeddccbbaa99887766554433221100");
        for mac in [task_mac(&id), host_mac(&id)] {
            assert_eq!(mac[0] & 0b11, 0b10);
        }
        assert_eq!(format_mac(task_mac(&id)), "0a:ff:ee:dd:cc:bb");
    }

    #[test]
    fn instance_names_that_nftables_would_not_take_are_refused() {
        for bad in ["", "Berth", "1x", "a b", "a;b", "-a", &"a".repeat(33)] {
            assert!(Names::new(bad).is_err(), "{bad:?}");
        }
    }
}
