//! Owns what the runc shim is told beside the specification: its cgroup, its binary. Never starts it.

use prost::Message;
use prost_types::Any;

use super::OciRuntime;

/// containerd compares this name as it is: a leading slash passes Containers.Create and fails Tasks.Create.
const RUNC_OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// The type of a specification's `Any`, as containerd's own client writes it.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// The fields of `containerd.runc.v1.Options` that are used here; the numbers are the protocol's.
#[derive(Clone, PartialEq, Message)]
struct RuncOptions {
    #[prost(string, tag = "3")]
    shim_cgroup: String,
    #[prost(string, tag = "6")]
    binary_name: String,
}

impl OciRuntime {
    /// What its shim is told. Shims of other types have options of their own, and stay in containerd's cgroup.
    pub(super) fn options(&self, shim_cgroup: String) -> Option<Any> {
        let runc = self.kind.starts_with("io.containerd.runc.");
        runc.then(|| runc_options(shim_cgroup, self.binary.as_deref()))
    }
}

/// Options of the runc v2 shim, which crun shares.
fn runc_options(shim_cgroup: String, binary_name: Option<&str>) -> Any {
    let options = RuncOptions {
        shim_cgroup,
        binary_name: binary_name.unwrap_or_default().to_owned(),
    };
    Any {
        type_url: RUNC_OPTIONS_TYPE.to_owned(),
        value: options.encode_to_vec(),
    }
}

/// The specification as containerd stores it: JSON in an `Any`.
pub(super) fn spec_any(spec: &serde_json::Value) -> Any {
    Any {
        type_url: SPEC_TYPE.to_owned(),
        value: spec.to_string().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_the_protocols() {
        let any = runc_options("/a".into(), Some("crun"));
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        assert_eq!(any.value, b"\x1a\x02/a\x32\x04crun");
    }

    #[test]
    fn only_the_shim_of_runc_is_told_runcs_options() {
        let of = |kind: &str| OciRuntime {
            kind: kind.into(),
            binary: None,
        };
        assert!(of("io.containerd.runc.v2").options("/a".into()).is_some());
        assert!(of("io.containerd.runsc.v1").options("/a".into()).is_none());
    }
}
