//! Owns the question whether this kernel can carry a task's network, asked in a namespace that ends with its thread: the
//! host's own network is never touched.

use std::{fs::File, os::fd::AsRawFd};

use berth_agent_core::addresses::Range;
use nix::sched::{CloneFlags, unshare};

use super::{
    error::NetworkError,
    firewall::{self, Drops, Firewall, Wanted},
    names::Names,
    netlink::{Socket, VethPair},
    threads::{Threads, block_on},
};

/// As good as any for what nobody asks.
const ENDPOINT_PORT: u16 = 51_679;
const RESOLVER_PORT: u16 = 51_680;
const LINK: &str = "probe0";
const PEER: &str = "probe1";
/// Locally administered, as every one of ours.
const MACS: [[u8; 6]; 2] = [[0x0a, 0, 0, 0, 0, 1], [0x0a, 0, 0, 0, 0, 2]];

/// Makes a namespace, a veth pair and the instance's whole table in it, and forgets all of it.
///
/// # Errors
/// What this kernel, or its `nft`, cannot do.
pub(crate) async fn probe(instance: &str, range: Range) -> Result<(), NetworkError> {
    let names = Names::new(instance)?;
    let work = move || {
        let failed = |step: &'static str| {
            move |source: std::io::Error| NetworkError::Namespace {
                step,
                netns: "of a probe".into(),
                source,
            }
        };
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed("create")(errno.into()))?;
        let own = File::open("/proc/thread-self/ns/net").map_err(failed("open"))?;
        block_on(async move {
            let pair = VethPair {
                host_name: LINK,
                host_mac: MACS[0],
                group: names.group(),
                mtu: None,
                task_name: PEER,
                task_mac: MACS[1],
                task_netns: own.as_raw_fd(),
            };
            let socket = Socket::open()?;
            socket
                .with("create a veth pair", LINK, async |netlink| {
                    netlink.create_veth(&pair).await
                })
                .await?;
            Firewall::new(
                names.into(),
                Wanted::new(range, vec![], ENDPOINT_PORT).resolver(Some(RESOLVER_PORT)),
            )
            .apply()
            .await
        })
    };
    Threads::default().run("probe", "the kernel", (), work).await?;
    Ok(())
}

/// Chains of other firewalls that drop what tasks send and get, and the prefix of this instance's links.
///
/// # Errors
/// When `nft` cannot list.
pub(crate) async fn foreign_drops(instance: &str, ipv6: bool) -> Result<(Vec<Drops>, String), NetworkError> {
    let names = Names::new(instance)?;
    let drops = firewall::foreign_drops(&names, ipv6).await?;
    Ok((drops, names.prefix().to_owned()))
}
