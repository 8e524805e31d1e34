//! Owns the values of `dockerVolumeConfiguration`, as Docker's own driver `local` takes them. Other drivers are plugins of
//! Docker, and there is no Docker. Never mounts anything.

use serde_json::Value;

use super::mount_options::{For, word};
use super::nfs::Nfs;
use super::read::{Object, inner, text};
use super::{nfs, tmpfs, volumes};
use crate::problems::{Problems, child, hint, shown};

const LOCAL: &str = "local";
/// Docker's options of the driver: a file system's type, what is mounted, and mount options.
const OPTIONS: [&str; 3] = ["type", "device", "o"];
/// Labels, and with them what is kept beside a volume, bytes.
const LABEL_BYTES_MAX: usize = 4096;

pub(super) fn check(path: &str, volume: &Object, problems: &mut Problems) {
    if let Some(driver) = text(volume, "driver").filter(|driver| *driver != LOCAL) {
        let message = format!("{}: only {LOCAL}: others are plugins of Docker", shown(driver));
        problems.push(format!("{path}.driver"), message);
    }
    for (name, value) in inner(volume, "labels").into_iter().flatten() {
        let bytes = name.len() + value.as_str().map_or(0, str::len);
        if name.is_empty() || bytes > LABEL_BYTES_MAX {
            let message = format!("a label has a name, and at most {LABEL_BYTES_MAX} bytes with its value");
            problems.push(child(&format!("{path}.labels"), name), message);
        }
    }
    let Some(options) = inner(volume, "driverOpts").filter(|options| !options.is_empty()) else {
        return;
    };
    let path_of = |name: &str| child(&format!("{path}.driverOpts"), name);
    for name in options.keys().filter(|name| !OPTIONS.contains(&name.as_str())) {
        let message = match name.as_str() {
            "size" => "not supported: a volume on the disk has no size of its own".to_owned(),
            _ => format!(
                "no option of the driver {LOCAL}{}",
                hint(name, OPTIONS.into_iter())
            ),
        };
        problems.push(path_of(name), message);
    }
    let given = |name: &str| options.get(name).and_then(Value::as_str);
    let (Some(kind), Some(device)) = (given("type"), given("device")) else {
        for name in ["type", "device"]
            .into_iter()
            .filter(|name| !options.contains_key(*name))
        {
            problems.push(path_of(name), "required with the others");
        }
        return;
    };
    let wrong = match parse(kind, device, given("o").unwrap_or_default()) {
        Ok(Mount::Memory { .. }) if text(volume, "scope") == Some("shared") => {
            let message =
                "a shared volume outlives its tasks, and memory is freed with the last: use scope task";
            vec![("type", message.to_owned())]
        }
        Ok(_) => Vec::new(),
        Err(wrong) => wrong,
    };
    for (name, message) in wrong {
        problems.push(path_of(name), message);
    }
}

/// What the options of a volume that was accepted say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mount {
    /// A file system in memory.
    Memory { options: Vec<String> },
    /// A directory of the host, with or without what is mounted below it.
    Bind {
        device: String,
        recursive: bool,
        read_only: bool,
    },
    /// What a server exports.
    Nfs(Nfs),
}

/// Or which options are wrong, and why.
pub(crate) fn parse(kind: &str, device: &str, o: &str) -> Result<Mount, Vec<(&'static str, String)>> {
    if let "nfs" | "nfs4" = kind {
        return nfs::parse(device, o, kind == "nfs4").map(Mount::Nfs);
    }
    parse_local(kind, device, o).map_err(|wrong| vec![wrong])
}

fn parse_local(kind: &str, device: &str, o: &str) -> Result<Mount, (&'static str, String)> {
    let options = || o.split(',').filter(|option| !option.is_empty());
    match kind {
        "tmpfs" => {
            for option in options() {
                check_memory_option(option).map_err(|message| ("o", message))?;
            }
            Ok(Mount::Memory {
                options: options().map(str::to_owned).collect(),
            })
        }
        "none" | "bind" => {
            let known = ["bind", "rbind", "ro", "rw"];
            if let Some(other) = options().find(|option| !known.contains(option)) {
                let message = format!("{}: expected bind or rbind, and ro or rw", shown(other));
                return Err(("o", message));
            }
            let has = |name: &str| options().any(|option| option == name);
            if !has("bind") && !has("rbind") {
                return Err(("o", format!("type {kind} needs bind or rbind")));
            }
            volumes::check_path(device).map_err(|message| ("device", message))?;
            let last = options().rfind(|option| matches!(*option, "ro" | "rw"));
            Ok(Mount::Bind {
                device: volumes::normal(device),
                recursive: has("rbind"),
                read_only: last == Some("ro"),
            })
        }
        other => {
            let message = format!(
                "{}: not supported; use nfs, tmpfs, or none with o=bind",
                shown(other)
            );
            Err(("type", message))
        }
    }
}

/// As those of `linuxParameters.tmpfs`, and `size`, which is an option here.
fn check_memory_option(option: &str) -> Result<(), String> {
    let Some(size) = option.strip_prefix("size=") else {
        // They have a meaning only in a container.
        if word(option) == Some(For::Propagation) {
            return Err(format!(
                "{option}: not supported; the mount is the node's, and what containers mount below it stays theirs"
            ));
        }
        return tmpfs::check_option(option);
    };
    let digits = size.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', '%']);
    let suffix = size.len() - digits.len();
    let positive = digits.bytes().all(|b| b.is_ascii_digit()) && digits.parse::<u64>().is_ok_and(|n| n > 0);
    if suffix <= 1 && positive {
        Ok(())
    } else {
        Err(format!("{} is not a size, as in size=64m", shown(option)))
    }
}
