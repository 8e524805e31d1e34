//! containerd: whether it answers, its version, and what of it the agent uses.

use std::path::Path;

use super::Finding;
use crate::{
    config::{Config, runtimes::NamedRuntime},
    effects::runtime::{Containerd, Snapshotter, probe},
    sys::Chain,
};

/// The oldest containerd that has what the agent uses.
const VERSION_MIN: (u32, u32) = (1, 6);
const CHECK: &str = "containerd";

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let socket = &config.containerd_address;
    let mut findings = match probe(socket).await {
        Ok(Containerd {
            version,
            snapshotters,
        }) => {
            vec![
                judge_version(&version),
                judge_snapshotter(&snapshotters, &config.snapshotter),
                mounts(socket),
            ]
        }
        Err(error) => vec![Finding::problem(
            CHECK,
            format!("{}: {}", socket.display(), Chain(&error)),
            absent_advice(socket),
        )],
    };
    findings.push(runtime_programs(config));
    findings.extend(
        config
            .runtimes
            .iter()
            .map(|(name, runtime)| named_runtime(name, runtime)),
    );
    findings
}

fn absent_advice(socket: &Path) -> &'static str {
    if socket.exists() {
        "is it running? systemctl status containerd; a restart leaves containers running"
    } else {
        "install and start it (apt install containerd; systemctl start containerd), or set containerd_address"
    }
}

/// Versions come as `1.6.20~ds1`, `v1.7.2`, `2.0.0-rc.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn judge_version(text: &str) -> Finding {
    let (major, minor) = VERSION_MIN;
    match parse_version(text) {
        Some(version) if version >= VERSION_MIN => Finding::ok(CHECK, text),
        Some(_) => Finding::problem(
            CHECK,
            format!("version {text} is too old"),
            format!("Berth needs {major}.{minor} or newer: upgrade containerd"),
        ),
        None => Finding::warning(
            CHECK,
            format!("its version {text:?} cannot be read"),
            format!("make sure that it is {major}.{minor} or newer"),
        ),
    }
}

fn judge_snapshotter(there: &[Snapshotter], wanted: &str) -> Finding {
    const CHECK: &str = "snapshotter";
    match there.iter().find(|one| one.name == wanted) {
        Some(Snapshotter { error: None, .. }) => Finding::ok(CHECK, wanted),
        Some(Snapshotter {
            error: Some(error), ..
        }) => Finding::problem(
            CHECK,
            format!("{wanted} did not start: {error}"),
            "mend what it names and restart containerd, or set `snapshotter`",
        ),
        None => {
            let usable = there.iter().filter(|one| one.error.is_none());
            let names: Vec<&str> = usable.map(|one| one.name.as_str()).collect();
            Finding::problem(
                CHECK,
                format!("containerd has no {wanted}"),
                format!("set `snapshotter` to one of: {}", names.join(", ")),
            )
        }
    }
}

/// The shim and the OCI runtime are looked for where services find programs; containerd's own PATH may differ.
fn runtime_programs(config: &Config) -> Finding {
    const CHECK: &str = "runtime";
    let runtime = config.runtime_binary.as_deref().unwrap_or("runc");
    let mut wanted = vec![runtime.to_owned()];
    if config.runtime == "io.containerd.runc.v2" {
        wanted.push("containerd-shim-runc-v2".into());
    }
    let missing: Vec<String> = wanted.iter().filter(|name| !is_program(name)).cloned().collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, wanted.join(", "));
    }
    Finding::problem(
        CHECK,
        format!("{} not found", missing.join(", ")),
        "install it (apt install containerd runc), or set `runtime_binary`",
    )
}

/// A warning: without it the node offers the others, and runs what does not ask for this one.
fn named_runtime(name: &str, runtime: &NamedRuntime) -> Finding {
    const CHECK: &str = "runtime";
    let wanted: Vec<String> = shim(&runtime.kind)
        .into_iter()
        .chain(runtime.binary.clone())
        .collect();
    let missing: Vec<&str> = wanted
        .iter()
        .map(String::as_str)
        .filter(|program| !is_program(program))
        .collect();
    if missing.is_empty() {
        return Finding::ok(CHECK, format!("{name}: {}", wanted.join(", ")));
    }
    let missing = missing.join(", ");
    Finding::warning(
        CHECK,
        format!("{name}: {missing} not found, so that tasks which ask for it do not come to this node"),
        format!(
            "install it where containerd finds programs, or take [runtimes.{name}] out of the configuration"
        ),
    )
}

/// The program that containerd starts for a runtime: for `io.containerd.runc.v2` it is `containerd-shim-runc-v2`.
fn shim(kind: &str) -> Option<String> {
    let mut parts = kind.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    Some(format!("containerd-shim-{name}-{version}"))
}

fn is_program(name: &str) -> bool {
    const PLACES: [&str; 6] = [
        "/usr/local/sbin",
        "/usr/local/bin",
        "/usr/sbin",
        "/usr/bin",
        "/sbin",
        "/bin",
    ];
    if name.contains('/') {
        return Path::new(name).is_file();
    }
    PLACES.iter().any(|place| Path::new(place).join(name).is_file())
}

/// containerd must see what the agent mounts: a task's network namespace is a mount.
fn mounts(socket: &Path) -> Finding {
    const CHECK: &str = "mounts";
    let namespace = |pid: String| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace("self".into());
    let Some(theirs) = listener(socket).and_then(|pid| namespace(pid.to_string())) else {
        return Finding::warning(
            CHECK,
            "containerd's mount namespace cannot be read",
            "run this check as root, on the host itself and not in a container",
        );
    };
    if own.as_ref() == Some(&theirs) {
        return Finding::ok(CHECK, "containerd sees what is mounted here");
    }
    Finding::warning(
        CHECK,
        "containerd has a mount namespace of its own",
        "it does not see the tasks' network namespaces unless its mounts are slaves of the host's: remove what makes one \
         from its unit, or run both in the same container",
    )
}

/// Who listens on a socket (unix(7), SO_PEERCRED).
fn listener(socket: &Path) -> Option<i32> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let credentials =
        nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    Some(credentials.pid())
}

#[cfg(test)]
mod tests {
    use super::{super::Outcome, *};

    #[test]
    fn versions_are_read_as_distributions_write_them() {
        for (text, outcome) in [
            ("1.6.20~ds1", Outcome::Ok),
            ("v1.7.2", Outcome::Ok),
            ("2.0.0-rc.1", Outcome::Ok),
            ("1.5.9", Outcome::Problem),
            ("unknown", Outcome::Warning),
        ] {
            assert_eq!(judge_version(text).outcome, outcome, "{text}");
        }
    }

    #[test]
    fn a_snapshotter_must_be_there_and_have_started() {
        let one = |name: &str, error: Option<&str>| Snapshotter {
            name: name.into(),
            error: error.map(str::to_owned),
        };
        let there = [one("overlayfs", None), one("zfs", Some("no pool"))];
        assert_eq!(judge_snapshotter(&there, "overlayfs").outcome, Outcome::Ok);
        assert!(judge_snapshotter(&there, "zfs").found.contains("no pool"));
        assert!(judge_snapshotter(&there, "btrfs").advice.ends_with("overlayfs"));
    }

    #[test]
    fn a_named_runtime_that_is_not_there_is_a_warning_that_names_what_is_missing() {
        let runtime = |kind: &str, binary: Option<&str>| NamedRuntime {
            kind: kind.into(),
            binary: binary.map(str::to_owned),
        };
        let none = named_runtime("quick", &runtime("io.containerd.no-such.v1", None));
        assert_eq!(none.outcome, Outcome::Warning);
        assert!(
            none.found
                .starts_with("quick: containerd-shim-no-such-v1 not found"),
            "{none:?}"
        );
        let none = named_runtime("quick", &runtime("io.containerd.runc.v2", Some("/no/such")));
        assert!(none.found.contains("/no/such not found"), "{none:?}");
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        assert!(is_program("sh") && is_program("/bin/sh"));
        assert!(!is_program("no-such-runtime") && !is_program("/no/such/runtime"));
    }
}
