//! Owns the values of `linuxParameters`, `privileged` and `dockerSecurityOptions`: what a container's processes may do
//! to the kernel. Never knows what a node's kernel has to give.

use super::read::{Object, flag, inner, objects, requires, texts};
use super::{devices, swap, tmpfs};
use crate::problems::{Problems, hint, shown};

/// What ECS lets be added and dropped (KernelCapabilities), besides `ALL`.
const CAPABILITIES: [&str; 37] = [
    "AUDIT_CONTROL",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];
const ALL: &str = "ALL";
/// The only one that FARGATE lets be added.
const FARGATE_CAPABILITY: &str = "SYS_PTRACE";
const NO_NEW_PRIVILEGES: &str = "no-new-privileges";
/// Longest name of a seccomp profile, in bytes.
const PROFILE_BYTES_MAX: usize = 64;
/// Longest name of an AppArmor profile, in bytes.
const APPARMOR_BYTES_MAX: usize = 255;

/// One of `dockerSecurityOptions`, in Docker's spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SecurityOption {
    NoNewPrivileges(bool),
    /// Empty: Docker's default profile.
    Seccomp(String),
    AppArmor(String),
}

pub(super) fn check(task: &Object, path: &str, container: &Object, problems: &mut Problems) {
    if let Some(capabilities) = inner(container, "linuxParameters").and_then(|l| inner(l, "capabilities")) {
        check_capabilities(
            &format!("{path}.linuxParameters.capabilities"),
            capabilities,
            problems,
        );
    }
    if let Some(parameters) = inner(container, "linuxParameters") {
        tmpfs::check(&format!("{path}.linuxParameters"), parameters, problems);
        devices::check(&format!("{path}.linuxParameters"), parameters, problems);
        swap::check(path, container, parameters, problems);
    }
    for (at, option) in texts(container, "dockerSecurityOptions") {
        if let Err(message) = parse_security_option(option) {
            problems.push(format!("{path}.dockerSecurityOptions[{at}]"), message);
        }
    }
    if requires(task, "FARGATE") {
        for (beyond, message) in beyond_fargate(container) {
            problems.push(format!("{path}.{beyond}"), message);
        }
    }
}

/// Whether a container asks for what FARGATE does not have.
pub(super) fn is_beyond_fargate(task: &Object) -> bool {
    objects(task, "containerDefinitions").any(|(_, container)| !beyond_fargate(container).is_empty())
}

fn beyond_fargate(container: &Object) -> Vec<(String, String)> {
    let mut beyond = Vec::new();
    if flag(container, "privileged") {
        beyond.push(("privileged".into(), "FARGATE has no privileged containers".into()));
    }
    if texts(container, "dockerSecurityOptions").next().is_some() {
        let message = "FARGATE has no security options";
        beyond.push(("dockerSecurityOptions".into(), message.into()));
    }
    let parameters = inner(container, "linuxParameters");
    for name in ["devices", "sharedMemorySize", "tmpfs", "maxSwap", "swappiness"] {
        if parameters.is_some_and(|parameters| parameters.contains_key(name)) {
            beyond.push((
                format!("linuxParameters.{name}"),
                "FARGATE does not have it".into(),
            ));
        }
    }
    let capabilities = parameters.and_then(|l| inner(l, "capabilities"));
    for (at, name) in capabilities.into_iter().flat_map(|c| texts(c, "add")) {
        if is_capability(name) && name != FARGATE_CAPABILITY {
            let message = format!("FARGATE lets only {FARGATE_CAPABILITY} be added, got {name}");
            beyond.push((format!("linuxParameters.capabilities.add[{at}]"), message));
        }
    }
    beyond
}

fn is_capability(name: &str) -> bool {
    name == ALL || CAPABILITIES.contains(&name)
}

fn check_capabilities(path: &str, capabilities: &Object, problems: &mut Problems) {
    for list in ["add", "drop"] {
        for (at, name) in texts(capabilities, list).filter(|(_, name)| !is_capability(name)) {
            let bare = name.to_ascii_uppercase();
            let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
            let hint = hint(bare, CAPABILITIES.into_iter().chain([ALL]));
            let message = format!("{} is not a capability of ECS{hint}", shown(name));
            problems.push(format!("{path}.{list}[{at}]"), message);
        }
    }
}

/// Whether these options, which were accepted, forbid new privileges: the last that speaks of it counts, as in Docker.
pub(crate) fn no_new_privileges(options: &[String]) -> bool {
    let said = said(options, |option| match option {
        SecurityOption::NoNewPrivileges(forbidden) => Some(forbidden),
        _ => None,
    });
    said.unwrap_or(false)
}

/// The seccomp profile that these options, which were accepted, name last; empty: Docker's default.
pub(crate) fn seccomp(options: &[String]) -> String {
    let said = said(options, |option| match option {
        SecurityOption::Seccomp(name) => Some(name),
        _ => None,
    });
    said.unwrap_or_default()
}

/// The AppArmor profile that these options, which were accepted, name last; empty: none is named.
pub(crate) fn apparmor(options: &[String]) -> String {
    let said = said(options, |option| match option {
        SecurityOption::AppArmor(name) => Some(name),
        _ => None,
    });
    said.unwrap_or_default()
}

fn said<T>(options: &[String], what: impl Fn(SecurityOption) -> Option<T>) -> Option<T> {
    let mut parsed = options.iter().rev().filter_map(|o| parse_security_option(o).ok());
    parsed.find_map(what)
}

/// What an option as Docker spells it asks for, or why it is refused.
fn parse_security_option(option: &str) -> Result<SecurityOption, String> {
    let (name, value) = match option.find([':', '=']) {
        Some(at) => (&option[..at], Some(&option[at + 1..])),
        None => (option, None),
    };
    match (name, value) {
        (NO_NEW_PRIVILEGES, None | Some("true")) => Ok(SecurityOption::NoNewPrivileges(true)),
        (NO_NEW_PRIVILEGES, Some("false")) => Ok(SecurityOption::NoNewPrivileges(false)),
        ("seccomp", Some("builtin")) => Ok(SecurityOption::Seccomp(String::new())),
        ("seccomp", Some(name)) if is_profile_name(name) => Ok(SecurityOption::Seccomp(name.into())),
        ("seccomp", _) => Err(
            "seccomp: expected seccomp:unconfined, seccomp:builtin, or seccomp: and the name of a profile on the node, \
             1 to 64 letters, digits and _ . -, without its directory and .json"
                .into(),
        ),
        ("apparmor", Some(name)) if is_apparmor_name(name) => Ok(SecurityOption::AppArmor(name.into())),
        ("apparmor", _) => Err(
            "apparmor: expected apparmor:unconfined, or apparmor: and the name of a profile that is loaded on the node, \
             1 to 255 letters, digits and _ . - + /, beginning with a letter, a digit or /"
                .into(),
        ),
        ("label", _) => Err(
            "label: not supported: containers have no SELinux label of their own; leave it out, or use apparmor: \
             where nodes have that"
                .into(),
        ),
        ("credentialspec", _) => Err("credentialspec: not supported; it is for Active Directory".into()),
        _ => {
            let expected = "expected no-new-privileges, no-new-privileges:true or no-new-privileges:false";
            Err(format!("{} is not a security option: {expected}", shown(option)))
        }
    }
}

/// As profiles are named, by a word or after a program's path, without those of other namespaces.
fn is_apparmor_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-+/".contains(&b);
    (1..=APPARMOR_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
        && name.bytes().all(plain)
}

/// The name of a file, and never of another directory.
fn is_profile_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    (1..=PROFILE_BYTES_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(plain)
}
