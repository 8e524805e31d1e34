//! Owns the settings of the host that IPv6 of tasks needs: it is there, it is not switched off, and it is routed between
//! links. Never changes them where no task can have an IPv6 address.

use std::{fs, io};

use super::{Network, error::NetworkError, set};

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
const FORWARDING: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// For all links, and for those that are made from now on: tasks' are.
const DISABLED: [&str; 2] = [
    "/proc/sys/net/ipv6/conf/all/disable_ipv6",
    "/proc/sys/net/ipv6/conf/default/disable_ipv6",
];

/// Whether tasks can have IPv6 addresses on this host.
///
/// # Errors
/// [`NetworkError::NoIpv6`], which says why not.
pub(crate) fn check() -> Result<(), NetworkError> {
    for path in DISABLED {
        let why = match fs::read_to_string(path) {
            Ok(value) if value.trim() == "0" => continue,
            Ok(_) => format!("{path} is not 0"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "its kernel has none, or was started with ipv6.disable=1".to_owned()
            }
            Err(source) => {
                return Err(NetworkError::Setting {
                    path: path.into(),
                    value: "0".into(),
                    source,
                });
            }
        };
        return Err(NetworkError::NoIpv6 { why });
    }
    Ok(())
}

/// Who accepts router advertisements where.
fn accept_ra(link: &str) -> String {
    format!("{SETTINGS}/{link}/accept_ra")
}

fn disable_ipv6(link: &str) -> String {
    format!("{SETTINGS}/{link}/disable_ipv6")
}

impl Network {
    /// Lets the host route IPv6 between its links. From then on its kernel takes it for a router, which listens to no router
    /// advertisements and forgets the default routes that it has from them: links that did listen are told to go on all the
    /// same, before, also those of which no router was heard yet. Idempotent.
    pub(super) fn enable_ipv6(&self) -> Result<(), NetworkError> {
        check()?;
        // Where something else has made it a router, its links listen as that something wanted it.
        if fs::read_to_string(FORWARDING).is_ok_and(|value| value.trim() == "1") {
            return Ok(());
        }
        for link in self.listeners() {
            write(accept_ra(&link), "2")?;
            tracing::info!(
                link,
                "accept_ra is 2 now: this host forwards IPv6, and still hears its routers there"
            );
        }
        set(FORWARDING)
    }

    /// The host's links that hear routers as long as the host is none. Not those of tasks, nor those that are made from now on.
    fn listeners(&self) -> Vec<String> {
        let names = fs::read_dir(SETTINGS).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let own = [
            self.names.prefix().to_owned(),
            self.names.vlan_prefix(),
            self.names.ready_prefix(),
        ];
        let hears = |link: &String| {
            !["all", "default", "lo"].contains(&link.as_str())
                && !own.iter().any(|prefix| link.starts_with(prefix))
                && fs::read_to_string(accept_ra(link)).is_ok_and(|value| value.trim() == "1")
        };
        names.filter(hears).collect()
    }
}

/// In the caller's network namespace: the link has no address of IPv6, and hears of none. Nothing to do where the link cannot
/// have one.
pub(super) fn switch_off(link: &str) -> Result<(), NetworkError> {
    match write(disable_ipv6(link), "1") {
        Err(NetworkError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// In the caller's network namespace: the link can have addresses of IPv6. In a new namespace none can where the kernel was
/// started with `ipv6.disable_ipv6=1`, whatever the host's own settings are.
pub(super) fn switch_on(link: &str) -> Result<(), NetworkError> {
    write(disable_ipv6(link), "0")
}

/// In the caller's network namespace: nobody but us says what this link's addresses and routes are.
pub(super) fn ignore_advertisements(link: &str) -> Result<(), NetworkError> {
    write(accept_ra(link), "0")
}

fn write(path: String, value: &'static str) -> Result<(), NetworkError> {
    fs::write(&path, value).map_err(|source| NetworkError::Setting {
        path: path.into(),
        value: value.into(),
        source,
    })
}
