//! What a container is changed by for the devices of CDI that it gets.

use super::*;
use crate::{
    cdi::{DeviceName, Format, Library, Spec},
    desired::Tmpfs,
};

const GPU: NodeNumbers = NodeNumbers {
    kind: DeviceKind::Character,
    major: 195,
    minor: 0,
};

fn edits(container_edits: Value) -> crate::cdi::Edits {
    let text = json!({
        "cdiVersion": "0.6.0", "kind": "v.com/gpu",
        "devices": [{"name": "0", "containerEdits": container_edits}],
    });
    let spec = Spec::parse(&text.to_string(), Format::Json).unwrap();
    let name: DeviceName = "v.com/gpu=0".parse().unwrap();
    Library::new(vec![vec![spec]]).edits(&[name]).unwrap()
}

fn changed(spec: OciSpec, container_edits: Value) -> Value {
    let edits = edits(container_edits);
    let numbers = edits
        .device_nodes
        .iter()
        .map(|node| given(node).unwrap_or(GPU))
        .collect();
    spec.edits(DeviceEdits::new(edits, numbers)).build().unwrap()
}

#[test]
fn the_environment_of_a_device_wins() {
    let own = [
        ("A".to_owned(), "own".to_owned()),
        ("B".to_owned(), "own".to_owned()),
    ];
    let spec = some().environment(&strings(&["A=image"]), &own);
    let spec = changed(spec, json!({"env": ["A=device", "C=x=y"]}));
    let env = at(&spec, "/process/env").as_array().unwrap();
    for one in ["A=device", "B=own", "C=x=y"] {
        assert!(env.contains(&json!(one)), "{env:?}");
    }
    assert_eq!(
        env.iter()
            .filter(|v| v.as_str().unwrap().starts_with("A="))
            .count(),
        1
    );
}

#[test]
fn nodes_are_made_and_may_be_opened_as_far_as_the_device_says() {
    let user = User {
        uid: 7,
        gid: 8,
        additional_gids: vec![9],
    };
    let same = Device {
        path: "/dev/gpu0".into(),
        kind: DeviceKind::Block,
        major: 1,
        minor: 1,
        mode: 0o600,
        uid: 0,
        gid: 0,
        access: "r".into(),
    };
    let spec = changed(
        some().user(user).devices(vec![same]),
        json!({
            "deviceNodes": [
                {"path": "/dev/gpu0"},
                {"path": "/dev/ctl", "type": "b", "major": 10, "minor": 3, "fileMode": 0o640, "uid": 0, "gid": 44, "permissions": "rw"},
                {"path": "/dev/shut", "permissions": "none"},
            ],
            "additionalGids": [0, 44, 9, 44],
        }),
    );
    assert_eq!(
        at(&spec, "/linux/devices"),
        &json!([
            {"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 0o666, "uid": 7, "gid": 8},
            {"path": "/dev/ctl", "type": "b", "major": 10, "minor": 3, "fileMode": 0o640, "uid": 0, "gid": 44},
            {"path": "/dev/shut", "type": "c", "major": 195, "minor": 0, "fileMode": 0o666, "uid": 7, "gid": 8},
        ])
    );
    let rules = at(&spec, "/linux/resources/devices").as_array().unwrap();
    let rule = |kind: &str, major: u32, minor: u32, access: &str| json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
    assert_eq!(
        rules[rules.len() - 2..],
        [rule("c", 195, 0, "rwm"), rule("b", 10, 3, "rw")]
    );
    assert_eq!(at(&spec, "/process/user/additionalGids"), &json!([9, 44]));
}

#[test]
fn a_node_that_is_given_in_full_needs_no_host_and_one_of_another_kind_contradicts() {
    let edits = edits(json!({"deviceNodes": [
        {"path": "/a", "type": "b", "major": 8, "minor": 1}, {"path": "/b", "type": "b"}, {"path": "/c"},
        {"path": "/d", "type": "u"}, {"path": "/e", "type": "c", "major": 0},
    ]}));
    let full = edits.device_nodes.iter().map(given).collect::<Vec<_>>();
    let first = NodeNumbers {
        kind: DeviceKind::Block,
        major: 8,
        minor: 1,
    };
    assert_eq!(full, [Some(first), None, None, None, None]);
    let against = |numbers| -> Vec<bool> {
        let nodes = edits.device_nodes.iter();
        nodes.map(|node| contradicts(node, numbers)).collect()
    };
    assert_eq!(against(GPU), [true, true, false, false, false]);
    assert_eq!(against(first), [false, false, false, true, true]);
    // One whose numbers nobody knows is not made with another's.
    let spec = some().edits(DeviceEdits::new(edits, vec![GPU])).build().unwrap();
    assert_eq!(at(&spec, "/linux/devices").as_array().unwrap().len(), 1);
}

#[test]
fn mounts_of_a_device_replace_what_is_at_their_place() {
    let options = crate::desired::LinuxOptions {
        tmpfs: vec![Tmpfs {
            path: "/usr/lib/gpu".into(),
            size_bytes: MIB,
            options: vec![],
        }],
        ..Default::default()
    };
    let spec = some()
        .linux(&options)
        .mount(Mount::volume("/v", "/opt/gpu/lib"))
        .mount(Mount::volume("/w", "/opt"))
        .mount(Mount::bind("/run/h", "/etc/hosts"));
    let spec = changed(
        spec,
        json!({"mounts": [
            {"hostPath": "/host/lib", "containerPath": "/opt/gpu/lib", "options": ["ro", "nosuid"]},
            {"hostPath": "/host/smi", "containerPath": "/usr/lib/gpu", "type": "bind", "options": ["bind", "ro"]},
            {"hostPath": "tmpfs", "containerPath": "/scratch", "type": "tmpfs"},
        ]}),
    );
    let mounts = at(&spec, "/mounts").as_array().unwrap();
    let own: Vec<(&str, &str, &Value)> = mounts
        .iter()
        .map(|m| {
            (
                m["destination"].as_str().unwrap(),
                m["source"].as_str().unwrap(),
                &m["options"],
            )
        })
        .filter(|(place, ..)| {
            !place.starts_with("/dev") && !place.starts_with("/proc") && !place.starts_with("/sys")
        })
        .collect();
    assert_eq!(
        own,
        [
            ("/opt", "/w", &json!(["rbind", "rprivate", "rw"])),
            ("/scratch", "tmpfs", &json!([])),
            ("/etc/hosts", "/run/h", &json!(["rbind", "rprivate", "rw"])),
            ("/opt/gpu/lib", "/host/lib", &json!(["ro", "nosuid", "rbind"])),
            ("/usr/lib/gpu", "/host/smi", &json!(["bind", "ro"])),
        ]
    );
}

#[test]
fn hooks_are_the_runtimes_as_they_are_given() {
    let spec = changed(
        some(),
        json!({"hooks": [
            {"hookName": "createContainer", "path": "/h/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 3},
            {"hookName": "poststop", "path": "/h/b"},
            {"hookName": "createContainer", "path": "/h/c"},
        ]}),
    );
    assert_eq!(
        spec["hooks"],
        json!({
            "createContainer": [
                {"path": "/h/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 3},
                {"path": "/h/c"},
            ],
            "poststop": [{"path": "/h/b"}],
        })
    );
    let without = some().build().unwrap();
    assert!(without.get("hooks").is_none());
}
