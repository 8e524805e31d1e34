use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// As nvidia-ctk writes it for two GPUs, shortened.
const NVIDIA: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - ../libnvidia-allocator.so.1::/usr/lib/gbm/nvidia-drm_gbm.so
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    env:
    - NVIDIA_CTK_DEBUG=false
  mounts:
  - containerPath: /usr/bin/nvidia-smi
    hostPath: /usr/bin/nvidia-smi
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/card1
      fileMode: 438
      permissions: rw
      type: c
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/dri/card1
    - path: /dev/nvidia0
  name: GPU-7e9b6d47
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
    additionalGids: [44]
  name: 1
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
    - path: /dev/dri/card1
  name: all
"#;

fn nvidia() -> Spec {
    Spec::parse(NVIDIA, Format::Yaml).unwrap()
}

fn kinds() -> Vec<Kind> {
    ["nvidia.com/gpu", "amd.com/gpu"]
        .iter()
        .map(|kind| kind.parse().unwrap())
        .collect()
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

fn names(library: &Library) -> Vec<String> {
    library.gpus(&kinds()).iter().map(ToString::to_string).collect()
}

fn with(devices: Value) -> Spec {
    let text = json!({"cdiVersion": "0.6.0", "kind": "amd.com/gpu", "devices": devices}).to_string();
    Spec::parse(&text, Format::Json).unwrap()
}

fn device(name: &str, nodes: &[&str]) -> Value {
    let nodes: Vec<Value> = nodes.iter().map(|path| json!({"path": path})).collect();
    json!({"name": name, "containerEdits": {"deviceNodes": nodes}})
}

#[test]
fn a_gpu_counts_once_by_its_vendors_id_and_all_of_them_not_at_all() {
    let library = Library::new(vec![vec![nvidia()]]);
    assert_eq!(
        names(&library),
        ["nvidia.com/gpu=GPU-7e9b6d47", "nvidia.com/gpu=1"]
    );
    // Also where there is one.
    let one = with(json!([
        device("0", &["/dev/dri/card0"]),
        device("all", &["/dev/dri/card0"])
    ]));
    assert_eq!(names(&Library::new(vec![vec![one]])), ["amd.com/gpu=0"]);
    // By any other name. Those without a node are what they say they are.
    let named = with(json!([
        device("a", &["/dev/a"]),
        device("b", &["/dev/b", "/dev/b-part"]),
        device("both", &["/dev/a", "/dev/b", "/dev/b-part"]),
        device("c", &[]),
        device("d", &[]),
    ]));
    let found = names(&Library::new(vec![vec![named]]));
    assert_eq!(
        found,
        ["amd.com/gpu=a", "amd.com/gpu=b", "amd.com/gpu=c", "amd.com/gpu=d"]
    );
    // Two parts of one GPU have its node in common.
    let parts = with(json!([
        device("0:0", &["/dev/0", "/dev/cap1"]),
        device("0:1", &["/dev/0", "/dev/cap2"])
    ]));
    assert_eq!(
        names(&Library::new(vec![vec![parts]])),
        ["amd.com/gpu=0:0", "amd.com/gpu=0:1"]
    );
    let other =
        json!({"cdiVersion": "1.0.0", "kind": "vendor.com/net", "devices": [device("x", &["/dev/x"])]});
    let other = Spec::parse(&other.to_string(), Format::Json).unwrap();
    assert!(names(&Library::new(vec![vec![other]])).is_empty());
}

#[test]
fn a_later_directory_wins_and_two_files_of_one_contradict_each_other() {
    let first = with(json!([device("0", &["/dev/old"]), device("1", &["/dev/one"])]));
    let later = with(json!([device("0", &["/dev/new"])]));
    let library = Library::new(vec![vec![first.clone()], vec![later.clone()]]);
    assert_eq!(names(&library), ["amd.com/gpu=1", "amd.com/gpu=0"]);
    let edits = library.edits(&[name("amd.com/gpu=0")]).unwrap();
    assert_eq!(edits.device_nodes[0].path, "/dev/new");
    let library = Library::new(vec![vec![first, later]]);
    assert_eq!(names(&library), ["amd.com/gpu=1"]);
    assert_eq!(
        library.ambiguous().map(ToString::to_string).collect::<Vec<_>>(),
        ["amd.com/gpu=0"]
    );
    assert_eq!(
        library.edits(&[name("amd.com/gpu=0")]).unwrap_err().to_string(),
        "GPU amd.com/gpu=0 is not in the CDI specifications of this node any more"
    );
}

#[test]
fn what_all_devices_need_comes_first_and_once() {
    let library = Library::new(vec![vec![nvidia()]]);
    let edits = library
        .edits(&[name("nvidia.com/gpu=1"), name("nvidia.com/gpu=0")])
        .unwrap();
    let paths: Vec<&str> = edits.device_nodes.iter().map(|n| n.path.as_str()).collect();
    assert_eq!(
        paths,
        ["/dev/nvidiactl", "/dev/nvidia1", "/dev/nvidia0", "/dev/dri/card1"]
    );
    assert_eq!(edits.env, ["NVIDIA_VISIBLE_DEVICES=void"]);
    assert_eq!((edits.hooks.len(), edits.mounts.len()), (1, 1));
    assert_eq!(edits.hooks[0].when, Hooks::CreateContainer);
    assert_eq!(edits.hooks[0].env, ["NVIDIA_CTK_DEBUG=false"]);
    assert_eq!(edits.additional_gids, [44]);
    let card = &edits.device_nodes[3];
    assert_eq!(
        (card.file_mode, card.access(), card.kind),
        (Some(0o666), "rw", Some(NodeKind::Character))
    );
    assert_eq!(edits.device_nodes[0].access(), "rwm");
}

#[test]
fn what_is_not_known_or_not_safe_is_refused_by_name() {
    let spec = |edits: Value| {
        let spec =
            json!({"cdiVersion": "0.7.0", "kind": "v.com/gpu", "containerEdits": edits, "devices": []});
        Spec::parse(&spec.to_string(), Format::Json)
    };
    for (edits, says) in [
        (
            json!({"intelRdt": {"closID": "a"}}),
            "it has intelRdt, which is not supported",
        ),
        (
            json!({"netDevices": []}),
            "it has netDevices, which is not supported",
        ),
        (json!({"surprise": 1}), "unknown field `surprise`"),
        (json!({"env": ["A"]}), "env \"A\" is not NAME=value"),
        (json!({"env": ["=A"]}), "is not NAME=value"),
        (json!({"env": ["A=\u{0}"]}), "has a NUL"),
        (
            json!({"deviceNodes": [{"path": "dev/a"}]}),
            "deviceNodes.path \"dev/a\" is not an absolute path",
        ),
        (
            json!({"deviceNodes": [{"path": "/a", "hostPath": "/x/../y"}]}),
            "deviceNodes.hostPath",
        ),
        (
            json!({"deviceNodes": [{"path": "/a", "permissions": "rx"}]}),
            "not of r, w and m",
        ),
        (
            json!({"deviceNodes": [{"path": "/a", "fileMode": 65_535}]}),
            "not permission bits",
        ),
        (
            json!({"deviceNodes": [{"path": "/a", "type": "p"}]}),
            "unknown variant `p`",
        ),
        (
            json!({"deviceNodes": [{"path": "/a", "major": -1}]}),
            "invalid value",
        ),
        (
            json!({"mounts": [{"hostPath": "/a", "containerPath": "/.."}]}),
            "mounts.containerPath",
        ),
        (
            json!({"mounts": [{"hostPath": "a", "containerPath": "/b"}]}),
            "mounts.hostPath",
        ),
        (
            json!({"mounts": [{"hostPath": "a", "containerPath": "/b", "type": "nfs"}]}),
            "neither bind nor tmpfs",
        ),
        (
            json!({"hooks": [{"hookName": "prestop", "path": "/a"}]}),
            "unknown variant `prestop`",
        ),
        (
            json!({"hooks": [{"hookName": "poststop", "path": "a"}]}),
            "hooks.path",
        ),
        (
            json!({"hooks": [{"hookName": "poststop", "path": "/a", "timeout": 0}]}),
            "not 1 to 3600 s",
        ),
        (
            json!({"env": vec!["A=1"; 1_001]}),
            "env: more than a container can use",
        ),
    ] {
        let problem = spec(edits.clone()).unwrap_err().to_string();
        assert!(problem.contains(says), "{edits}: {problem}");
    }
    assert!(
        spec(json!({"intelRdt": null, "env": null, "deviceNodes": [{"path": "/a", "type": ""}]})).is_ok()
    );
    let whole = |version: &str, kind: &str, devices: Value| {
        let spec = json!({"cdiVersion": version, "kind": kind, "devices": devices});
        Spec::parse(&spec.to_string(), Format::Json)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    for (version, kind, devices, says) in [
        ("0.2.0", "v.com/gpu", json!([]), "its cdiVersion is \"0.2.0\""),
        ("2.0.0", "v.com/gpu", json!([]), "its cdiVersion is"),
        (
            "0.8.0",
            "gpu",
            json!([]),
            "\"gpu\" is not of the form vendor/class",
        ),
        ("0.8.0", "1v/gpu", json!([]), "vendor/class"),
        ("1.1.0", "v.com/gpu", json!([{"name": "a/b"}]), "a device's name"),
        (
            "1.0.0",
            "v.com/gpu",
            json!([{"name": "a"}, {"name": "a"}]),
            "device v.com/gpu=a is there twice",
        ),
        (
            "0.3.0",
            "v.com/gpu",
            json!(vec![json!({"name": "a"}); 1_025]),
            "devices: more than",
        ),
    ] {
        let said = whole(version, kind, devices);
        assert!(said.contains(says), "{says}: {said}");
    }
    assert_eq!(
        Spec::parse(&" ".repeat(SPEC_BYTES_MAX + 1), Format::Yaml),
        Err(CdiError::TooLong)
    );
}

#[test]
fn names_are_qualified() {
    for good in ["nvidia.com/gpu=0", "a/b=c", "v-1.x/c_d=GPU-1:2.3_4"] {
        assert_eq!(name(good).to_string(), good);
    }
    for bad in [
        "", "a", "a/b", "a/b=", "=c", "/b=c", "a/=c", "a/b=-c", "a/b=c-", "a/b=c d", "a/b/c=d", "á/b=c",
    ] {
        assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
    }
    assert!(format!("a/b={}", "c".repeat(252)).parse::<DeviceName>().is_err());
}

proptest! {
    /// Whatever is written, there is an answer; and what is accepted keeps the bounds.
    #[test]
    fn any_text_is_a_specification_or_is_refused(text in "\\PC{0,200}", json in any::<bool>()) {
        let _ = Spec::parse(&text, if json { Format::Json } else { Format::Yaml });
    }

    #[test]
    fn one_changed_anywhere_is_read_or_refused(at in 0..NVIDIA.len(), with in "[-:\\[\\]{}\"'#&*!|> \n\ta0]{0,3}", cut in 0..4_usize) {
        let end = (at + cut).min(NVIDIA.len());
        let text = format!("{}{with}{}", &NVIDIA[..at], &NVIDIA[end..]);
        if let Ok(spec) = Spec::parse(&text, Format::Yaml) {
            let library = Library::new(vec![vec![spec.clone()]]);
            let all: Vec<DeviceName> = spec.devices.iter().map(|(name, _)| name.clone()).collect();
            let edits = library.edits(&all).unwrap();
            prop_assert!(edits.device_nodes.iter().all(|n| n.path.starts_with('/') && !n.path.contains("..")));
            prop_assert!(edits.hooks.iter().all(|h| h.path.starts_with('/')));
            prop_assert!(edits.env.iter().all(|v| v.contains('=')));
            prop_assert!(library.gpus(&kinds()).iter().all(|gpu| all.contains(gpu) && gpu.name() != "all"));
        }
    }

    #[test]
    fn names_that_are_read_are_written_the_same(text in "[a-z./=0:-]{0,16}") {
        if let Ok(name) = text.parse::<DeviceName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }
}
