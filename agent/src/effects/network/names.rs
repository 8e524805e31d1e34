//! Owns the names that one instance uses on its host: links, table, hardware addresses. Never looks at the host.

use berth_agent_core::ids::{ContainerId, TaskId};
use sha2::{Digest, Sha256};

use super::error::NetworkError;

/// Longest instance name: it is part of an nftables table name and of directory names.
const INSTANCE_CHARS_MAX: usize = 32;
/// Digits of the task id in a link name. With the prefix of 5 this fills the kernel's 15 characters (IFNAMSIZ − 1).
const LINK_TASK_DIGITS: usize = 10;

/// Whose a network is: a task's, or in bridge mode one container's of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    pub task: TaskId,
    pub container: Option<ContainerId>,
}

impl From<&TaskId> for Owner {
    fn from(task: &TaskId) -> Self {
        Self {
            task: task.clone(),
            container: None,
        }
    }
}

impl Owner {
    /// One container of a task.
    pub fn container(task: &TaskId, container: &ContainerId) -> Self {
        Self {
            task: task.clone(),
            container: Some(container.clone()),
        }
    }

    /// 32 hexadecimal digits, which no other owner has.
    fn id(&self) -> &str {
        match &self.container {
            Some(container) => container.as_str(),
            None => self.task.as_str(),
        }
    }

    /// Of the file on which its namespace is mounted.
    pub(super) fn file_name(&self) -> String {
        self.joined('.')
    }

    /// Undoes [`file_name`](Self::file_name).
    pub(super) fn of_file(name: &str) -> Option<Self> {
        Self::split(name, '.')
    }

    fn joined(&self, by: char) -> String {
        match &self.container {
            Some(container) => format!("{}{by}{container}", self.task),
            None => self.task.to_string(),
        }
    }

    fn split(text: &str, by: char) -> Option<Self> {
        let (task, container) = match text.split_once(by) {
            Some((task, container)) => (task, Some(container.parse().ok()?)),
            None => (text, None),
        };
        Some(Self {
            task: task.parse().ok()?,
            container,
        })
    }
}

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

    /// The host's end of a link: 15 characters. Two owners may share one (1 in 2⁴⁰): the alias tells.
    pub(crate) fn link(&self, owner: &Owner) -> String {
        format!("{}{}", self.prefix, &owner.id()[..LINK_TASK_DIGITS])
    }

    /// What the name of every link starts with that is one VLAN of a link of the host: none of [`prefix`](Self::prefix), to
    /// which the rules for tasks apply.
    pub(crate) fn vlan_prefix(&self) -> String {
        format!("v{}", &self.prefix[1..])
    }

    /// The link that is one VLAN of a link of the host: 15 characters.
    pub(crate) fn vlan_link(&self, uplink: &str, id: u16) -> String {
        let hash = Sha256::digest(format!("{uplink}/{id}").as_bytes());
        format!("{}{}", self.vlan_prefix(), hex::encode(&hash[..5]))
    }

    /// What the name of every link starts with that is kept ready for a task: none of [`prefix`](Self::prefix), for it is no
    /// task's.
    pub(crate) fn ready_prefix(&self) -> String {
        format!("r{}", &self.prefix[1..])
    }

    /// The host's end of a pair that is kept ready: 15 characters.
    pub(crate) fn ready_link(&self, number: u64) -> String {
        format!("{}{:010x}", self.ready_prefix(), number & 0xff_ffff_ffff)
    }

    /// Who a link belongs to, in full, kept in the link's alias.
    pub(crate) fn alias(&self, owner: &Owner) -> String {
        format!("{}/{}", self.instance, owner.joined('/'))
    }

    /// Who an alias of this instance names.
    pub(crate) fn owner_of_alias(&self, alias: &str) -> Option<Owner> {
        let owner = alias.strip_prefix(&self.instance)?.strip_prefix('/')?;
        Owner::split(owner, '/')
    }
}

/// A hardware address.
pub(super) type Mac = [u8; 6];

/// The address of the owner's eth0: unicast, locally administered (IEEE 802), from the owner's id.
pub(super) fn task_mac(owner: &Owner) -> Mac {
    mac(0x0a, owner)
}

/// The address of the owner's link to its endpoints, beside an eth0 that has [`task_mac`].
pub(super) fn endpoints_mac(owner: &Owner) -> Mac {
    mac(0x06, owner)
}

/// The address of the host's end.
pub(super) fn host_mac(owner: &Owner) -> Mac {
    mac(0x0e, owner)
}

/// Of both ends of a pair that is kept ready, until it is an owner's.
pub(super) fn ready_mac(number: u64) -> Mac {
    let [.., a, b, c, d, e] = number.to_be_bytes();
    [0x02, a, b, c, d, e]
}

fn mac(first: u8, owner: &Owner) -> Mac {
    let mut mac = [first, 0, 0, 0, 0, 0];
    // An id is 32 hex digits: the first ten always decode.
    let _ = hex::decode_to_slice(&owner.id()[..10], &mut mac[1..]);
    mac
}

/// As people write it: `0a:01:23:45:67:89`.
pub(super) fn format_mac(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str) -> Owner {
        Owner::from(&id.parse().unwrap())
    }

    #[test]
    fn a_link_name_fits_the_kernel_and_names_instance_and_task() {
        let names = Names::new("berth").unwrap();
        let link = names.link(&task("0123456789abcdef0123456789abcdef"));
        assert_eq!(link.len(), 15);
        assert!(link.starts_with(names.prefix()) && link.ends_with("0123456789"));
        assert_ne!(names.prefix(), Names::new("berth-2").unwrap().prefix());
        let vlan = names.vlan_link("eth0", 7);
        assert_eq!(vlan.len(), 15);
        assert!(!vlan.starts_with(names.prefix()) && vlan.starts_with(&names.vlan_prefix()));
        assert_ne!(vlan, names.vlan_link("eth0", 8));
        let ready = names.ready_link(u64::MAX);
        assert_eq!(ready.len(), 15);
        assert!(!ready.starts_with(names.prefix()) && ready.starts_with(&names.ready_prefix()));
        assert_ne!(ready, names.ready_link(1));
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
        assert_eq!(names.owner_of_alias(&names.alias(&id)), Some(id.clone()));
        let container = "ffeeddccbbaa99887766554433221100".parse().unwrap();
        let part = Owner::container(&id.task, &container);
        assert_eq!(names.owner_of_alias(&names.alias(&part)), Some(part.clone()));
        assert_eq!(Owner::of_file(&part.file_name()), Some(part.clone()));
        assert!(names.link(&part).ends_with("ffeeddccbb"));
        let other = Names::new("berth-2").unwrap();
        assert_eq!(names.owner_of_alias(&other.alias(&id)), None);
        for bad in ["berth/x", "berth/0123456789abcdef0123456789abcdef/x"] {
            assert_eq!(names.owner_of_alias(bad), None);
        }
    }

    #[test]
    fn hardware_addresses_are_unicast_and_locally_administered() {
        let id = task("ffeeddccbbaa99887766554433221100");
        for mac in [
            task_mac(&id),
            host_mac(&id),
            endpoints_mac(&id),
            ready_mac(u64::MAX),
        ] {
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
