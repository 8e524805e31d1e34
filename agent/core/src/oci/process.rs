//! Owns the `process` part: what runs, as whom, with which environment, capabilities and limits. Never reads the
//! image's files.

use serde_json::{Value, json};

use super::{HostFacts, OciError, OciSpec, init, linux::NOFILE_DEFAULT};
use crate::{
    desired::{ContainerSpec, Ulimit},
    image::ImageConfig,
};

/// `PATH` where neither the image nor the definition sets one (Docker's `DefaultPathEnv`).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What AppArmor calls a process without a profile.
pub const APPARMOR_UNCONFINED: &str = "unconfined";

/// ECS's names of resource limits and the kernel's.
const ULIMITS: [(&str, &str); 15] = [
    ("core", "RLIMIT_CORE"),
    ("cpu", "RLIMIT_CPU"),
    ("data", "RLIMIT_DATA"),
    ("fsize", "RLIMIT_FSIZE"),
    ("locks", "RLIMIT_LOCKS"),
    ("memlock", "RLIMIT_MEMLOCK"),
    ("msgqueue", "RLIMIT_MSGQUEUE"),
    ("nice", "RLIMIT_NICE"),
    ("nofile", "RLIMIT_NOFILE"),
    ("nproc", "RLIMIT_NPROC"),
    ("rss", "RLIMIT_RSS"),
    ("rtprio", "RLIMIT_RTPRIO"),
    ("rttime", "RLIMIT_RTTIME"),
    ("sigpending", "RLIMIT_SIGPENDING"),
    ("stack", "RLIMIT_STACK"),
];

/// What to run: a definition's entry point also discards the image's command, as Docker and ECS have it; an entry
/// point of one empty string discards the image's and is none itself.
pub fn argv(image: &ImageConfig, spec: &ContainerSpec) -> Vec<String> {
    let (entry, command) = match (spec.entry_point.as_slice(), spec.command.as_slice()) {
        ([], []) => (&image.entrypoint[..], &image.cmd[..]),
        ([], command) => (&image.entrypoint[..], command),
        ([none], command) if none.is_empty() => (&[][..], command),
        (entry, command) => (entry, command),
    };
    [entry, command].concat()
}

/// `capabilities` is the bounding set.
pub(super) fn process(spec: &OciSpec, capabilities: &[&str]) -> Result<Value, OciError> {
    if spec.args.is_empty() {
        return Err(OciError::NoCommand);
    }
    no_nul("the command", &spec.args)?;
    // For other users execve would clear these two anyway; Docker leaves them out.
    let own = if spec.user.uid == 0 { capabilities } else { &[] };
    let mut process = json!({
        "terminal": spec.terminal,
        "user": {"uid": spec.user.uid, "gid": spec.user.gid, "additionalGids": spec.user.additional_gids},
        "args": init::arguments(spec),
        "env": environment(&spec.hostname, &spec.image_env, &spec.env)?,
        "cwd": working_directory(&spec.image_working_dir, &spec.working_directory)?,
        "capabilities": {"bounding": capabilities, "effective": own, "permitted": own},
        "rlimits": rlimits(&spec.ulimits, &spec.host)?,
        // False is Docker's default: setuid programs of the image work.
        "noNewPrivileges": spec.linux.no_new_privileges,
        // Always written: without it the process inherits containerd's −998.
        "oomScoreAdj": spec.host.oom_score_adj_min.max(0),
    });
    if let Some(profile) = apparmor(spec)? {
        process["apparmorProfile"] = json!(profile);
    }
    Ok(process)
}

/// Runtimes know no profile of any name where there is no AppArmor, and there everything is unconfined.
fn apparmor(spec: &OciSpec) -> Result<Option<&str>, OciError> {
    match (spec.linux.apparmor.as_str(), spec.host.apparmor) {
        ("", _) | (APPARMOR_UNCONFINED, false) => Ok(None),
        (name, true) => Ok(Some(name)),
        (name, false) => Err(OciError::AppArmorMissing(name.to_owned())),
    }
}

/// `PATH` and `HOSTNAME`, then the image's, then the definition's: the last of a name wins and keeps the first's place.
fn environment(
    hostname: &str,
    image: &[String],
    definition: &[(String, String)],
) -> Result<Vec<String>, OciError> {
    let defaults = [("PATH", DEFAULT_PATH), ("HOSTNAME", hostname)];
    // An image's entry without '=' sets nothing.
    let image = image.iter().filter_map(|entry| entry.split_once('='));
    let definition = definition
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let mut all: Vec<(&str, &str)> = Vec::new();
    for (name, value) in defaults.into_iter().chain(image).chain(definition) {
        if name.is_empty() || name.contains('=') {
            return Err(OciError::EnvironmentName(name.to_owned()));
        }
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    let env: Vec<String> = all
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    no_nul("the environment", &env)?;
    Ok(env)
}

fn working_directory(image: &str, definition: &str) -> Result<String, OciError> {
    let directory = match (image, definition) {
        ("", "") => "/".to_owned(),
        (image, "") if image.starts_with('/') => image.to_owned(),
        // Docker reads an image's relative directory from the root.
        (image, "") => format!("/{image}"),
        (_, own) if own.starts_with('/') => own.to_owned(),
        (_, own) => return Err(OciError::RelativeWorkingDirectory(own.to_owned())),
    };
    no_nul("the working directory", std::slice::from_ref(&directory))?;
    Ok(directory)
}

fn rlimits(ulimits: &[Ulimit], host: &HostFacts) -> Result<Vec<Value>, OciError> {
    let mut written: Vec<(&str, u64, u64)> = Vec::new();
    for ulimit in ulimits {
        let known = ULIMITS.iter().find(|(name, _)| *name == ulimit.name);
        let (_, kind) = known.ok_or_else(|| OciError::UnknownUlimit(ulimit.name.clone()))?;
        if written.iter().any(|(other, ..)| other == kind) {
            return Err(OciError::RepeatedUlimit(ulimit.name.clone()));
        }
        let range = || OciError::UlimitRange {
            name: ulimit.name.clone(),
            soft: ulimit.soft,
            hard: ulimit.hard,
        };
        let (soft, hard) = (
            limit(ulimit.soft).ok_or_else(range)?,
            limit(ulimit.hard).ok_or_else(range)?,
        );
        if soft > hard {
            return Err(range());
        }
        written.push((kind, soft, hard));
    }
    if !written.iter().any(|(kind, ..)| *kind == "RLIMIT_NOFILE") {
        let default = NOFILE_DEFAULT.min(host.nofile_max);
        written.push(("RLIMIT_NOFILE", default, default));
    }
    let json = |(kind, soft, hard): (&str, u64, u64)| json!({"type": kind, "soft": soft, "hard": hard});
    Ok(written.into_iter().map(json).collect())
}

/// −1 is the kernel's RLIM_INFINITY.
fn limit(value: i64) -> Option<u64> {
    if value == -1 {
        Some(u64::MAX)
    } else {
        u64::try_from(value).ok()
    }
}

fn no_nul(what: &'static str, texts: &[String]) -> Result<(), OciError> {
    if texts.iter().any(|text| text.contains('\0')) {
        Err(OciError::NulByte { what })
    } else {
        Ok(())
    }
}
