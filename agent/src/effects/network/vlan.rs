//! Owns the links that are one VLAN of a link of the host each: made for the first task there, and removed after the last.
//! Never touches one of somebody else's.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use berth_agent_core::lan::LanLink;

use super::{
    error::NetworkError,
    ipv6,
    lan::{IS_DOWN, find_uplink},
    names::{Names, Owner},
    netlink::{Link, Netlink, Socket},
    repair::Attachments,
    threads::block_on,
};

/// The turn of those that make or remove such links: one is not removed while a task comes to it. Never taken over a wait
/// for the network.
#[derive(Clone, Debug, Default)]
pub(super) struct Turn(Arc<Mutex<()>>);

impl Turn {
    /// Only on a thread of its own.
    pub(super) fn take(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the link for one VLAN if it is there not yet, and sees to it that the host is no host of that. In the host's
/// namespace, on whose thread it is: its settings are those of the thread's namespace.
pub(super) async fn prepare(
    names: &Names,
    host: &Netlink,
    (uplink, id): (&str, u16),
    ipv6: bool,
) -> Result<(), NetworkError> {
    let uplink = find_uplink(host, uplink).await?;
    let name = names.vlan_link(&uplink.name, id);
    if let Some(found) = host.link(&name).await?
        && found.peer_index != uplink.index
    {
        host.delete_link(&found).await?;
    }
    if host.link(&name).await?.is_none() && !host.create_vlan(&uplink, &name, id).await? {
        return Err(NetworkError::VlanTaken {
            uplink: uplink.name,
            id,
        });
    }
    let link = host.link(&name).await?;
    let link = link.ok_or(NetworkError::LinkVanished { link: name.clone() })?;
    let alias = format!("{}/vlan/{}/{id}", names.table(), uplink.name);
    host.configure(&link, Some(&alias), false, ipv6).await?;
    // Before it hears anything.
    if ipv6 {
        ipv6::switch_off(&name)?;
    }
    for (path, value) in settings(&name) {
        let failed = |source| NetworkError::Setting {
            path: path.clone().into(),
            value: value.into(),
            source,
        };
        fs::write(&path, value).map_err(failed)?;
    }
    match host.up(&link).await {
        Err(error) if error.is_errno(libc::ENETDOWN) => Err(NetworkError::UplinkIdle {
            uplink: uplink.name,
            state: IS_DOWN,
        }),
        up => up,
    }
}

/// By which the host routes nothing from there, and answers for none of its addresses (ip-sysctl.rst of the kernel). What
/// else comes in is dropped by the table.
fn settings(link: &str) -> [(String, &'static str); 3] {
    let setting = |name| format!("/proc/sys/net/ipv4/conf/{link}/{name}");
    [
        (setting("forwarding"), "0"),
        (setting("rp_filter"), "1"),
        (setting("arp_ignore"), "8"),
    ]
}

/// Removes the link that a task was on if it was the last there. Only on a thread of its own.
pub(super) fn leave(
    names: &Names,
    attachments: &Attachments,
    turn: &Turn,
    left: &LanLink,
) -> Result<(), NetworkError> {
    let LanLink::Vlan { uplink, id } = left else {
        return Ok(());
    };
    remove_unused(names, attachments, turn, &names.vlan_link(uplink, *id))
}

/// Removes a link by its name, unless a task came to it meanwhile. Idempotent. Only on a thread of its own.
pub(super) fn remove_unused(
    names: &Names,
    attachments: &Attachments,
    turn: &Turn,
    name: &str,
) -> Result<(), NetworkError> {
    let _turn = turn.take();
    if attachments.uplinks(names).contains(name) {
        return Ok(());
    }
    let remove = async |host: &Netlink| match host.link(name).await? {
        Some(link) => host.delete_link(&link).await,
        None => Ok(()),
    };
    block_on(async { Socket::open()?.with("delete", name, remove).await })
}

/// Those of `links` that no task is on. None as long as there are namespaces of tasks that are not known: they may be.
pub(super) fn unused<'a>(
    names: &Names,
    attachments: &Attachments,
    namespaces: &[Owner],
    links: &'a [Link],
) -> Vec<&'a Link> {
    if !namespaces.iter().all(|owner| attachments.get(owner).is_some()) {
        return Vec::new();
    }
    let used = attachments.uplinks(names);
    let prefix = names.vlan_prefix();
    let ours = links.iter().filter(|link| link.name.starts_with(&prefix));
    ours.filter(|link| !used.contains(&link.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_no_host_of_a_vlan_of_its_tasks() {
        let names = Names::new("berth").unwrap();
        let link = names.vlan_link("eth0", 7);
        let of = settings(&link).map(|(path, value)| {
            let name = path.strip_prefix(&format!("/proc/sys/net/ipv4/conf/{link}/"));
            format!("{}={value}", name.unwrap())
        });
        assert_eq!(of, ["forwarding=0", "rp_filter=1", "arp_ignore=8"]);
        // The kernel has them: of every link alike.
        for (path, _) in settings("lo") {
            assert!(std::path::Path::new(&path).exists(), "{path}");
        }
    }
}
