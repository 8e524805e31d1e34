//! Owns how a container's specification is changed for the devices of CDI that it gets: as the CDI project's own code does
//! it. What a device needs wins over what image and definition say. Never looks at the host: the numbers of its device nodes
//! arrive.

use serde_json::{Map, Value, json};

use super::{Device, DeviceKind, OciSpec};
use crate::cdi::{self, NodeKind};

/// Permission bits of a node that nobody gave any: those of the OCI runtimes.
const MODE_DEFAULT: u32 = 0o666;

/// Which device a node opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeNumbers {
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
}

/// What is changed, and what the host knew to say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceEdits {
    edits: cdi::Edits,
    /// One for each of its device nodes.
    numbers: Vec<NodeNumbers>,
}

/// The specification says all of a node by itself: the host need not have one.
pub fn given(node: &cdi::DeviceNode) -> Option<NodeNumbers> {
    let major = node.major.filter(|major| *major != 0)?;
    Some(NodeNumbers {
        kind: node.kind.map(kind)?,
        major,
        minor: node.minor.unwrap_or(0),
    })
}

/// Whether the specification says that it is another kind of device than it is.
pub fn contradicts(node: &cdi::DeviceNode, found: NodeNumbers) -> bool {
    node.kind.is_some_and(|wanted| kind(wanted) != found.kind)
}

fn kind(kind: NodeKind) -> DeviceKind {
    match kind {
        NodeKind::Character => DeviceKind::Character,
        NodeKind::Block => DeviceKind::Block,
    }
}

impl DeviceEdits {
    /// With the numbers of each of the edits' device nodes; a node without is left out.
    pub fn new(mut edits: cdi::Edits, numbers: Vec<NodeNumbers>) -> Self {
        edits.device_nodes.truncate(numbers.len());
        Self { edits, numbers }
    }
}

impl OciSpec {
    /// For the devices of CDI that it gets. After its user and its devices, both of which this changes.
    pub fn edits(mut self, edits: DeviceEdits) -> Self {
        let DeviceEdits { edits, numbers } = edits;
        let variables = edits.env.iter().filter_map(|one| one.split_once('='));
        self.env
            .extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        // Root is one already.
        for gid in edits.additional_gids.into_iter().filter(|gid| *gid != 0) {
            if !self.user.additional_gids.contains(&gid) {
                self.user.additional_gids.push(gid);
            }
        }
        for (node, numbers) in edits.device_nodes.iter().zip(numbers) {
            self.devices.retain(|device| device.path != node.path);
            self.devices.push(Device {
                access: node.access().to_owned(),
                kind: numbers.kind,
                major: numbers.major,
                minor: numbers.minor,
                mode: node.file_mode.unwrap_or(MODE_DEFAULT),
                uid: node.uid.unwrap_or(self.user.uid),
                gid: node.gid.unwrap_or(self.user.gid),
                path: node.path.clone(),
            });
        }
        for mount in edits.mounts {
            self.device_mounts
                .retain(|other| other.container_path != mount.container_path);
            self.device_mounts.push(mount);
        }
        self.hooks.extend(edits.hooks);
        self
    }
}

/// One mount, as it is given; where it says nothing it is a bind mount.
pub(super) fn mount(mount: &cdi::Mount) -> Value {
    let kind = match mount.kind.as_str() {
        "" | "none" => "bind",
        kind => kind,
    };
    let mut options: Vec<&str> = mount.options.iter().map(String::as_str).collect();
    if kind == "bind" && !options.iter().any(|option| matches!(*option, "bind" | "rbind")) {
        options.push("rbind");
    }
    json!({
        "destination": mount.container_path,
        "type": kind,
        "source": mount.host_path,
        "options": options,
    })
}

/// The `hooks` part; none without any.
pub(super) fn hooks(spec: &OciSpec) -> Option<Value> {
    let mut hooks: Map<String, Value> = Map::new();
    for hook in &spec.hooks {
        let mut written = json!({"path": hook.path});
        for (name, texts) in [("args", &hook.args), ("env", &hook.env)] {
            if !texts.is_empty() {
                written[name] = json!(texts);
            }
        }
        if let Some(timeout) = hook.timeout {
            written["timeout"] = json!(timeout);
        }
        let of_its_time = hooks.entry(hook.when.name()).or_insert_with(|| json!([]));
        of_its_time.as_array_mut()?.push(written);
    }
    (!hooks.is_empty()).then(|| hooks.into())
}
