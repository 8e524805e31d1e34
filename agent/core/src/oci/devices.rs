//! Owns which devices a container may open, and which it finds in `/dev` beyond what runtimes put there. Never looks at
//! the host's: those arrive as facts.

use serde_json::{Value, json};

use super::OciSpec;

/// A device node of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
}

/// A device node that the container gets a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Absolute, in the container.
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    /// Permission bits: mode_t without the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Of `rwm`, what the container may do with it; a privileged one may do everything.
    pub access: String,
}

fn letter(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Character => "c",
        DeviceKind::Block => "b",
    }
}

/// The nodes that the runtime is to make.
pub(super) fn nodes(devices: &[Device]) -> Vec<Value> {
    let node = |device: &Device| {
        json!({
            "path": device.path,
            "type": letter(device.kind),
            "major": device.major,
            "minor": device.minor,
            "fileMode": device.mode,
            "uid": device.uid,
            "gid": device.gid,
        })
    };
    devices.iter().map(node).collect()
}

/// What the cgroup lets be opened: everything for the privileged. For others what the definition maps, and what every
/// program expects:
/// null, zero, full, random, urandom, tty, console, the pseudo terminals; and nodes may be made that cannot be opened
/// (Docker).
pub(super) fn rules(spec: &OciSpec) -> Vec<Value> {
    const ALLOWED: [(&str, Option<u32>, Option<u32>, &str); 11] = [
        ("c", None, None, "m"),
        ("b", None, None, "m"),
        ("c", Some(1), Some(3), "rwm"),
        ("c", Some(1), Some(5), "rwm"),
        ("c", Some(1), Some(7), "rwm"),
        ("c", Some(1), Some(8), "rwm"),
        ("c", Some(1), Some(9), "rwm"),
        ("c", Some(5), Some(0), "rwm"),
        ("c", Some(5), Some(1), "rwm"),
        ("c", Some(5), Some(2), "rwm"),
        ("c", Some(136), None, "rwm"),
    ];
    if spec.linux.privileged {
        return vec![json!({"allow": true, "access": "rwm"})];
    }
    let rule = |&(kind, major, minor, access): &(&str, Option<u32>, Option<u32>, &str)| {
        let mut rule = json!({"allow": true, "type": kind, "access": access});
        for (name, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[name] = json!(number);
            }
        }
        rule
    };
    // One that may not be opened has no rule.
    let own = spec.devices.iter().filter(|device| !device.access.is_empty());
    let own = own.map(|device| {
        json!({
            "allow": true,
            "type": letter(device.kind),
            "major": device.major,
            "minor": device.minor,
            "access": device.access,
        })
    });
    let deny_all = json!({"allow": false, "access": "rwm"});
    std::iter::once(deny_all)
        .chain(ALLOWED.iter().map(rule))
        .chain(own)
        .collect()
}
