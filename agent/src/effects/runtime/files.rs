//! Owns the files that are mounted into a container: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`. Never changes
//! them while it runs.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use berth_agent_core::{
    addresses::Address,
    desired::{NetworkMode, Networking},
    effect::StartContainer,
    ids::TaskId,
    oci::Mount,
};

use super::{Runtime, RuntimeError};

/// Below the run directory.
const TASKS: &str = "tasks";
/// A sibling's removal may take the task's empty directory away between its making and its use.
const MAKE_DIRECTORY_TRIES: usize = 3;
/// systemd-resolved's own list, where `/etc/resolv.conf` names only its stub on loopback.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// What a container finds under `/etc`.
struct Contents {
    hosts: String,
    hostname: String,
    resolv_conf: String,
}

/// Where the file is that a container, by its runtime id, has as `/etc/resolv.conf`.
pub fn resolv_conf(run_dir: &Path, task: &TaskId, id: &str) -> PathBuf {
    run_dir
        .join(TASKS)
        .join(task.as_str())
        .join(id)
        .join("resolv.conf")
}

impl Runtime {
    pub(super) fn task_directory(&self, task: &TaskId) -> PathBuf {
        self.config().run_dir.join(TASKS).join(task.as_str())
    }

    /// The name inside: the definition's, else of the host in its network, else the short id of whoever has the network.
    pub(super) fn hostname(&self, request: &StartContainer) -> String {
        let own = &request.spec.networking.hostname;
        match request.network {
            _ if !own.is_empty() => own.clone(),
            NetworkMode::Host => {
                let own = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
                Some(own.trim())
                    .filter(|name| !name.is_empty())
                    .unwrap_or("localhost")
                    .to_owned()
            }
            NetworkMode::Awsvpc | NetworkMode::None => request.task.short().to_owned(),
            NetworkMode::Bridge => request.spec.id.short().to_owned(),
        }
    }

    /// Where the files will be; read-only where the root is, as Docker has it.
    pub(super) fn file_mounts(&self, id: &str, request: &StartContainer) -> Vec<Mount> {
        let directory = self.task_directory(&request.task).join(id);
        let mount = |name: &str| {
            let (source, destination) = (
                directory.join(name).to_string_lossy().into_owned(),
                format!("/etc/{name}"),
            );
            if request.spec.readonly_root_filesystem {
                Mount::read_only(source, destination)
            } else {
                Mount::bind(source, destination)
            }
        };
        ["hosts", "hostname", "resolv.conf"].map(mount).into()
    }

    pub(super) async fn write_files(&self, id: &str, request: &StartContainer) -> Result<(), RuntimeError> {
        let directory = self.task_directory(&request.task).join(id);
        let disabled = request.spec.networking.disabled;
        let (hostname, mode, address) = match request.network {
            // Neither the host's network nor the task's address is its own.
            _ if disabled => (self.hostname(request), NetworkMode::None, None),
            mode => (self.hostname(request), mode, request.address),
        };
        let own = request.spec.networking.clone();
        let name_server = self.config().name_server;
        let at = directory.clone();
        let write = move || {
            let contents = Contents::new(&hostname, mode, address, name_server);
            write_all(&directory, &contents.with(&hostname, mode, &own))
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
        written
            .flatten()
            .map_err(|source| RuntimeError::File { path: at, source })
    }

    /// Removes an attempt's files, and the task's directory with the last of them. Without a task, looks for it.
    pub(super) async fn remove_files(&self, id: &str, task: Option<&TaskId>) -> Result<(), RuntimeError> {
        let tasks = self.config().run_dir.join(TASKS);
        let (at, id) = (tasks.clone(), id.to_owned());
        let known = task.map(|task| self.task_directory(task));
        let remove = move || match known {
            Some(directory) => remove_from(&directory, &id),
            None => remove_anywhere(&tasks, &id),
        };
        let removed = tokio::task::spawn_blocking(remove)
            .await
            .map_err(io::Error::other);
        removed
            .flatten()
            .map_err(|source| RuntimeError::File { path: at, source })
    }
}

fn write_all(directory: &Path, contents: &Contents) -> io::Result<()> {
    let mut tries = 1;
    while let Err(error) = fs::create_dir_all(directory) {
        if error.kind() != io::ErrorKind::NotFound || tries == MAKE_DIRECTORY_TRIES {
            return Err(error);
        }
        tries += 1;
    }
    let files = [
        ("hosts", &contents.hosts),
        ("hostname", &contents.hostname),
        ("resolv.conf", &contents.resolv_conf),
    ];
    for (name, content) in files {
        // Renamed into place: an earlier try's container keeps the file it has, and none is ever half written.
        let temporary = directory.join(format!(".{name}"));
        fs::write(&temporary, content)?;
        fs::rename(&temporary, directory.join(name))?;
    }
    Ok(())
}

fn remove_from(task: &Path, id: &str) -> io::Result<()> {
    gone_is_fine(fs::remove_dir_all(task.join(id)))?;
    match fs::remove_dir(task) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => gone_is_fine(other),
    }
}

fn remove_anywhere(tasks: &Path, id: &str) -> io::Result<()> {
    let entries = match fs::read_dir(tasks) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let task = entry?.path();
        if task.join(id).exists() {
            remove_from(&task, id)?;
        }
    }
    Ok(())
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Contents {
    /// `name_server` is for those who reach nothing of the host else.
    fn new(
        hostname: &str,
        mode: NetworkMode,
        address: Option<Address>,
        name_server: Option<Ipv4Addr>,
    ) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let hostname_line = format!("{hostname}\n");
        match mode {
            NetworkMode::Host => Self {
                hosts: read("/etc/hosts"),
                hostname: hostname_line,
                resolv_conf: read("/etc/resolv.conf"),
            },
            NetworkMode::Awsvpc | NetworkMode::Bridge if let Some(server) = name_server => Self {
                hosts: hosts(hostname, address),
                hostname: hostname_line,
                resolv_conf: asking(server, &read("/etc/resolv.conf")),
            },
            NetworkMode::Awsvpc | NetworkMode::Bridge | NetworkMode::None => {
                let mut resolv_conf = outside_resolv_conf(&read("/etc/resolv.conf"));
                if !resolv_conf.contains("nameserver") {
                    resolv_conf = outside_resolv_conf(&read(RESOLVED));
                }
                Self {
                    hosts: hosts(hostname, address),
                    hostname: hostname_line,
                    resolv_conf,
                }
            }
        }
    }
}

impl Contents {
    /// With what the definition adds or replaces.
    fn with(mut self, hostname: &str, mode: NetworkMode, own: &Networking) -> Self {
        let end_line = |text: &mut String| {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        };
        end_line(&mut self.hosts);
        if mode == NetworkMode::Host && !own.hostname.is_empty() {
            // The host's file knows only the host's name.
            self.hosts
                .push_str(&format!("{}\t{hostname}\n", Ipv4Addr::LOCALHOST));
        }
        for (name, address) in &own.extra_hosts {
            self.hosts.push_str(&format!("{address}\t{name}\n"));
        }
        if !own.dns_servers.is_empty() {
            self.resolv_conf = without(&self.resolv_conf, &["nameserver"]);
            for server in &own.dns_servers {
                self.resolv_conf.push_str(&format!("nameserver {server}\n"));
            }
        }
        if !own.dns_search_domains.is_empty() {
            self.resolv_conf = without(&self.resolv_conf, &["search", "domain"]);
            let domains = own.dns_search_domains.join(" ");
            self.resolv_conf.push_str(&format!("search {domains}\n"));
        }
        self
    }
}

/// The host's list with one server, which is asked first: what else it says of searching holds.
fn asking(server: Ipv4Addr, host: &str) -> String {
    format!("nameserver {server}\n{}", without(host, &["nameserver"]))
}

/// The lines of a resolv.conf that say something else.
fn without(resolv_conf: &str, keywords: &[&str]) -> String {
    let other = |line: &&str| {
        line.split_whitespace()
            .next()
            .is_none_or(|word| !keywords.contains(&word))
    };
    let lines = resolv_conf.lines().filter(other);
    lines.map(|line| format!("{line}\n")).collect()
}

/// Without an address of its own, the task's name is loopback's.
fn hosts(hostname: &str, address: Option<Address>) -> String {
    let own = address.map_or(Ipv4Addr::LOCALHOST, |address| address.ipv4);
    let ipv6 = address.and_then(|address| address.ipv6);
    let ipv6 = ipv6.map(|own| format!("{own}\t{hostname}\n")).unwrap_or_default();
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n{ipv6}")
}

/// The host's list without name servers that a task cannot reach from its own namespace: those on loopback, and
/// those tied to one of the host's links. It may come out empty; no foreign server is put in their place.
fn outside_resolv_conf(host: &str) -> String {
    let unreachable = |line: &str| {
        let mut words = line.split_whitespace();
        let server = if words.next() == Some("nameserver") {
            words.next().unwrap_or("")
        } else {
            ""
        };
        let loopback = server
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
        loopback || server.contains('%')
    };
    host.lines()
        .filter(|line| !unreachable(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_on_loopback_stay_behind() {
        let host = "# c\nnameserver 127.0.0.53\nnameserver\t10.0.0.2\nnameserver ::1\nnameserver fe80::1%eth0\nsearch a.b\noptions ndots:1\n";
        assert_eq!(
            outside_resolv_conf(host),
            "# c\nnameserver\t10.0.0.2\nsearch a.b\noptions ndots:1\n"
        );
        assert_eq!(outside_resolv_conf("nameserver 127.0.0.1\n"), "");
    }

    #[test]
    fn whoever_asks_the_agent_searches_as_the_host_does() {
        let host = "nameserver 127.0.0.53\noptions edns0\nsearch a.b\nnameserver 10.0.0.1\n";
        let server = Ipv4Addr::new(169, 254, 170, 3);
        assert_eq!(
            asking(server, host),
            "nameserver 169.254.170.3\noptions edns0\nsearch a.b\n"
        );
    }

    #[test]
    fn a_task_knows_its_own_name() {
        let address = Address::from(Ipv4Addr::new(10, 1, 2, 3));
        assert!(hosts("abc", Some(address)).ends_with("10.1.2.3\tabc\n"));
        let both = Address {
            ipv6: "fd00::a01:203".parse().ok(),
            ..address
        };
        assert!(hosts("abc", Some(both)).ends_with("10.1.2.3\tabc\nfd00::a01:203\tabc\n"));
        assert!(hosts("abc", None).starts_with("127.0.0.1\tlocalhost\n"));
    }

    #[test]
    fn what_the_definition_says_is_added_or_replaces() {
        let contents = |hosts: &str| Contents {
            hosts: hosts.into(),
            hostname: String::new(),
            resolv_conf: "nameserver 10.0.0.1\nsearch a\ndomain b\noptions ndots:1".into(),
        };
        let own = Networking {
            hostname: "mine".into(),
            extra_hosts: vec![("db".into(), "10.0.0.9".parse().unwrap())],
            dns_servers: vec!["10.0.0.2".parse().unwrap(), "fd00::1".parse().unwrap()],
            dns_search_domains: vec!["c".into(), "d.e".into()],
            disabled: false,
        };
        let made = contents("127.0.0.1 localhost").with("mine", NetworkMode::Host, &own);
        assert_eq!(made.hosts, "127.0.0.1 localhost\n127.0.0.1\tmine\n10.0.0.9\tdb\n");
        let servers = "nameserver 10.0.0.2\nnameserver fd00::1\n";
        assert_eq!(
            made.resolv_conf,
            format!("options ndots:1\n{servers}search c d.e\n")
        );
        let none = contents("x\n").with("h", NetworkMode::Host, &Networking::default());
        assert_eq!(none.hosts, "x\n");
        assert!(none.resolv_conf.contains("10.0.0.1\nsearch a\n"));
    }

    #[test]
    fn the_tasks_directory_goes_with_its_last_container() {
        let root = tempfile::tempdir().unwrap();
        let task = root.path().join("t");
        let contents = Contents::new("h", NetworkMode::None, None, None);
        write_all(&task.join("a-1"), &contents).unwrap();
        write_all(&task.join("a-1"), &contents).unwrap();
        write_all(&task.join("b-1"), &contents).unwrap();
        assert_eq!(fs::read_to_string(task.join("a-1/hostname")).unwrap(), "h\n");
        assert_eq!(fs::read_dir(task.join("a-1")).unwrap().count(), 3);
        remove_from(&task, "a-1").unwrap();
        assert!(task.join("b-1").exists());
        remove_anywhere(root.path(), "b-1").unwrap();
        assert!(!task.exists());
        remove_from(&task, "b-1").unwrap();
    }
}
