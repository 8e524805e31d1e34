//! Owns the form of a specification, and its bounds. What is not known is refused: a container must not get half of what
//! its device needs.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{CdiError, DeviceName, Format, Kind, SPEC_BYTES_MAX, yaml};

const DEVICES_MAX: usize = 1_024;
/// Variables, nodes, mounts, hooks or groups of one set of edits.
const EDITS_MAX: usize = 1_000;
/// Longest text of an edit, bytes.
const TEXT_BYTES_MAX: usize = 4_096;
/// Arguments or variables of one hook.
const HOOK_TEXTS_MAX: usize = 256;
/// Seconds.
const HOOK_TIMEOUT_MAX: i64 = 3_600;
/// Permission bits: mode_t without the type.
const MODE_MAX: u32 = 0o7777;

/// One file of specifications: a kind of devices, what each changes of a container, and what all change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    pub kind: Kind,
    /// Once for a container that gets any.
    pub edits: Edits,
    /// In the order of the file; names are unique.
    pub devices: Vec<(DeviceName, Edits)>,
}

/// What is changed of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`.
    #[serde(deserialize_with = "list")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "list")]
    pub device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "list")]
    pub mounts: Vec<Mount>,
    #[serde(deserialize_with = "list")]
    pub hooks: Vec<Hook>,
    #[serde(deserialize_with = "list")]
    pub additional_gids: Vec<u32>,
    /// Known, and refused.
    intel_rdt: Option<Value>,
    net_devices: Option<Value>,
}

/// What kind of device a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum NodeKind {
    #[serde(rename = "c", alias = "u")]
    Character,
    #[serde(rename = "b")]
    Block,
}

/// A device node that the container gets. What is absent is as the host's node has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceNode {
    /// Absolute, in the container.
    pub path: String,
    /// Absolute, on the host. Empty: as `path`.
    #[serde(default)]
    pub host_path: String,
    #[serde(default, rename = "type", deserialize_with = "node_kind")]
    pub kind: Option<NodeKind>,
    #[serde(default)]
    pub major: Option<u32>,
    #[serde(default)]
    pub minor: Option<u32>,
    /// Absent: what runtimes give, 0666.
    #[serde(default)]
    pub file_mode: Option<u32>,
    /// Of `rwm`; empty: all, `none`: nothing.
    #[serde(default)]
    pub permissions: String,
    /// Absent: the container's user, unless that is root.
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(default)]
    pub gid: Option<u32>,
}

impl DeviceNode {
    /// Where the host has it.
    pub fn on_host(&self) -> &str {
        match self.host_path.as_str() {
            "" => &self.path,
            path => path,
        }
    }

    /// Of `rwm`, what the container may do with it.
    pub fn access(&self) -> &str {
        match self.permissions.as_str() {
            "" => "rwm",
            "none" => "",
            some => some,
        }
    }
}

/// A file or directory of the host that the container sees.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    pub host_path: String,
    /// Absolute.
    pub container_path: String,
    /// Empty: a bind mount.
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default, deserialize_with = "list")]
    pub options: Vec<String>,
}

/// When the runtime executes a hook, in its spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Hooks {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Hooks {
    /// As the OCI runtime specification spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }
}

/// A program that the runtime executes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    #[serde(rename = "hookName")]
    pub when: Hooks,
    /// Absolute.
    pub path: String,
    /// The first is the program's name.
    #[serde(default, deserialize_with = "list")]
    pub args: Vec<String>,
    #[serde(default, deserialize_with = "list")]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<Value>,
    #[serde(default, deserialize_with = "list")]
    devices: Vec<WrittenDevice>,
    #[serde(default)]
    container_edits: Option<Edits>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenDevice {
    #[serde(deserialize_with = "name")]
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Option<Value>,
    #[serde(default)]
    container_edits: Option<Edits>,
}

/// Null is an empty list.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// YAML takes `name: 0` for a number; it is the name of a first device all the same.
fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Name {
        Text(String),
        Number(u64),
    }
    Name::deserialize(from).map(|name| match name {
        Name::Text(text) => text,
        Name::Number(number) => number.to_string(),
    })
}

/// The empty text is no kind.
fn node_kind<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NodeKind>, D::Error> {
    match Value::deserialize(from)? {
        Value::String(text) if text.is_empty() => Ok(None),
        Value::Null => Ok(None),
        kind => NodeKind::deserialize(kind)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

impl Spec {
    /// Reads and checks one file.
    ///
    /// # Errors
    /// [`CdiError`]: it is none, or has what is not known here.
    pub fn parse(text: &str, format: Format) -> Result<Self, CdiError> {
        if text.len() > SPEC_BYTES_MAX {
            return Err(CdiError::TooLong);
        }
        let written: Written = match format {
            Format::Json => {
                serde_json::from_str(text).map_err(|error| CdiError::Format(error.to_string()))?
            }
            Format::Yaml => {
                let value = yaml::read(text).map_err(CdiError::Format)?;
                serde_json::from_value(value).map_err(|error| CdiError::Format(error.to_string()))?
            }
        };
        if !is_known(&written.cdi_version) {
            return Err(CdiError::Version(shortened(&written.cdi_version)));
        }
        let unfit = |error: super::InvalidName| CdiError::Format(error.to_string());
        let kind: Kind = written.kind.parse().map_err(unfit)?;
        if written.devices.len() > DEVICES_MAX {
            return Err(CdiError::TooMuch("devices"));
        }
        let mut devices: Vec<(DeviceName, Edits)> = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        for device in written.devices {
            let name = DeviceName::new(&kind, &device.name).map_err(unfit)?;
            if !names.insert(name.clone()) {
                return Err(CdiError::Repeated(name.to_string()));
            }
            devices.push((name, device.container_edits.unwrap_or_default().checked()?));
        }
        Ok(Self {
            kind,
            edits: written.container_edits.unwrap_or_default().checked()?,
            devices,
        })
    }
}

impl Edits {
    /// Has what `more` has too, after its own.
    pub(super) fn extend(&mut self, more: &Self) {
        self.env.extend_from_slice(&more.env);
        self.device_nodes.extend_from_slice(&more.device_nodes);
        self.mounts.extend_from_slice(&more.mounts);
        self.hooks.extend_from_slice(&more.hooks);
        self.additional_gids.extend_from_slice(&more.additional_gids);
    }

    fn checked(self) -> Result<Self, CdiError> {
        for (what, there) in [
            ("intelRdt", self.intel_rdt.is_some()),
            (
                "netDevices",
                self.net_devices.as_ref().is_some_and(|v| !v.is_null()),
            ),
        ] {
            if there {
                return Err(CdiError::Unsupported(what));
            }
        }
        for (what, count) in [
            ("env", self.env.len()),
            ("deviceNodes", self.device_nodes.len()),
            ("mounts", self.mounts.len()),
            ("hooks", self.hooks.len()),
            ("additionalGids", self.additional_gids.len()),
        ] {
            if count > EDITS_MAX {
                return Err(CdiError::TooMuch(what));
            }
        }
        self.env.iter().try_for_each(|one| variable("env", one))?;
        self.device_nodes.iter().try_for_each(check_node)?;
        self.mounts.iter().try_for_each(check_mount)?;
        self.hooks.iter().try_for_each(check_hook)?;
        Ok(self)
    }
}

fn check_node(node: &DeviceNode) -> Result<(), CdiError> {
    path("deviceNodes.path", &node.path)?;
    path("deviceNodes.hostPath", node.on_host())?;
    let mut letters = node.access().chars();
    if letters.any(|c| !"rwm".contains(c)) || node.access().len() > 3 {
        return Err(bad(
            "deviceNodes.permissions",
            &node.permissions,
            "not of r, w and m",
        ));
    }
    if node.file_mode.is_some_and(|mode| mode > MODE_MAX) {
        let mode = node.file_mode.unwrap_or_default().to_string();
        return Err(bad("deviceNodes.fileMode", &mode, "not permission bits"));
    }
    Ok(())
}

fn check_mount(mount: &Mount) -> Result<(), CdiError> {
    path("mounts.containerPath", &mount.container_path)?;
    if mount.options.len() > HOOK_TEXTS_MAX {
        return Err(CdiError::TooMuch("mounts.options"));
    }
    mount
        .options
        .iter()
        .try_for_each(|option| text("mounts.options", option))?;
    match mount.kind.as_str() {
        "" | "bind" | "none" => path("mounts.hostPath", &mount.host_path),
        "tmpfs" => text("mounts.hostPath", &mount.host_path),
        other => Err(bad("mounts.type", other, "neither bind nor tmpfs")),
    }
}

fn check_hook(hook: &Hook) -> Result<(), CdiError> {
    path("hooks.path", &hook.path)?;
    if hook.args.len() > HOOK_TEXTS_MAX || hook.env.len() > HOOK_TEXTS_MAX {
        return Err(CdiError::TooMuch("hooks.args or hooks.env"));
    }
    hook.args.iter().try_for_each(|one| text("hooks.args", one))?;
    hook.env.iter().try_for_each(|one| variable("hooks.env", one))?;
    match hook.timeout {
        Some(timeout) if !(1..=HOOK_TIMEOUT_MAX).contains(&timeout) => {
            Err(bad("hooks.timeout", &timeout.to_string(), "not 1 to 3600 s"))
        }
        _ => Ok(()),
    }
}

fn path(what: &'static str, path: &str) -> Result<(), CdiError> {
    text(what, path)?;
    if path.starts_with('/') && path.len() > 1 && !path.split('/').any(|part| part == "..") {
        return Ok(());
    }
    Err(bad(what, path, "not an absolute path without .."))
}

fn variable(what: &'static str, variable: &str) -> Result<(), CdiError> {
    text(what, variable)?;
    match variable.find('=') {
        None | Some(0) => Err(bad(what, variable, "not NAME=value")),
        Some(_) => Ok(()),
    }
}

fn text(what: &'static str, text: &str) -> Result<(), CdiError> {
    if text.len() > TEXT_BYTES_MAX || text.contains('\0') {
        return Err(bad(what, text, "too long, or has a NUL"));
    }
    Ok(())
}

fn bad(what: &'static str, value: &str, problem: &'static str) -> CdiError {
    CdiError::Value {
        what,
        value: shortened(value),
        problem,
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// 0.3.0 to 1.0.0, and what differs from them in the last number only. What later ones have is refused by name, so
/// that one of them that has nothing new can be used.
fn is_known(version: &str) -> bool {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => (3..=8).contains(&minor),
        (Some(Ok(1)), Some(Ok(_))) => true,
        _ => false,
    }
}
