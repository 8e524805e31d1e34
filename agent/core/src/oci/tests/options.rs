//! What a definition asks of the kernel beyond Docker's defaults.

use super::*;
use crate::desired::{IpcMode, LinuxOptions, PidMode, Tmpfs};

fn with(options: LinuxOptions) -> Value {
    some().linux(&options).build().unwrap()
}

fn capabilities(add: &[&str], drop: &[&str]) -> LinuxOptions {
    LinuxOptions {
        capabilities_add: strings(add),
        capabilities_drop: strings(drop),
        ..LinuxOptions::default()
    }
}

#[test]
fn capabilities_are_changed_as_docker_changes_them() {
    let bounding = |add: &[&str], drop: &[&str]| -> Vec<String> {
        let spec = with(capabilities(add, drop));
        let set = at(&spec, "/process/capabilities/bounding");
        assert_eq!(set, at(&spec, "/process/capabilities/effective"));
        assert_eq!(set, at(&spec, "/process/capabilities/permitted"));
        serde_json::from_value(set.clone()).unwrap()
    };
    assert_eq!(bounding(&[], &["ALL"]), Vec::<String>::new());
    assert_eq!(bounding(&["SYSLOG"], &["ALL"]), ["CAP_SYSLOG"]);
    let changed = bounding(&["SYS_PTRACE", "KILL"], &["MKNOD"]);
    assert_eq!(changed.len(), 14);
    assert!(changed.contains(&"CAP_SYS_PTRACE".to_owned()) && !changed.contains(&"CAP_MKNOD".to_owned()));
    assert!(bounding(&["MKNOD"], &["MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
    let all = bounding(&["ALL"], &["SYS_ADMIN"]);
    assert_eq!(all.len(), 40);
    assert!(!all.contains(&"CAP_SYS_ADMIN".to_owned()));
}

#[test]
fn open_files_are_limited_whatever_else_is() {
    let kinds = |names: &[&str]| -> Vec<String> {
        let ulimits: Vec<Ulimit> = names.iter().map(|name| ulimit(name, 5, 5)).collect();
        let spec = some().ulimits(&ulimits).build().unwrap();
        let all = at(&spec, "/process/rlimits").as_array().unwrap();
        all.iter()
            .map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(kinds(&["core"]), ["RLIMIT_CORE", "RLIMIT_NOFILE"]);
    assert_eq!(kinds(&["nofile"]), ["RLIMIT_NOFILE"]);
}

/// The options of the mount at `destination`.
fn options_at(spec: &Value, destination: &str) -> Vec<String> {
    let mounts = at(spec, "/mounts").as_array().unwrap();
    let mount = mounts.iter().find(|m| m["destination"] == destination).unwrap();
    serde_json::from_value(mount["options"].clone()).unwrap()
}

#[test]
fn the_size_of_shared_memory_is_that_of_dev_shm_alone() {
    let plain = some().build().unwrap();
    let sized = with(LinuxOptions {
        shared_memory_bytes: 1 << 20,
        ..LinuxOptions::default()
    });
    for mount in at(&plain, "/mounts").as_array().unwrap() {
        let destination = mount["destination"].as_str().unwrap();
        let mut expected = options_at(&plain, destination);
        if destination == "/dev/shm" {
            expected.push("size=1048576".into());
        }
        assert_eq!(options_at(&sized, destination), expected, "{destination}");
    }
}

#[test]
fn beside_a_privileged_container_sysfs_alone_is_mounted_writable() {
    let spec = some().beside_privileged(true).build().unwrap();
    let read_only = |destination: &str| options_at(&spec, destination).iter().any(|option| option == "ro");
    assert!(!read_only("/sys") && read_only("/sys/fs/cgroup"));
}

#[test]
fn a_reservation_is_at_most_the_limit() {
    let build = |memory_bytes, memory_reservation_bytes| {
        let limits = Limits {
            memory_bytes,
            memory_reservation_bytes,
            ..Limits::default()
        };
        some().limits(limits).build().is_ok()
    };
    assert!(build(8, 8) && build(0, 8) && build(8, 0));
    assert!(!build(8, 9));
}

#[test]
fn capabilities_are_named_without_the_kernels_prefix() {
    for name in ["ALL", "CHOWN", "SYS_ADMIN", "CHECKPOINT_RESTORE"] {
        assert!(capabilities::is_capability(name), "{name}");
    }
    for name in ["", "all", "CAP_CHOWN", "chown", "NO_SUCH"] {
        assert!(!capabilities::is_capability(name), "{name}");
    }
}

#[test]
fn what_the_host_lacks_is_not_in_all_and_cannot_be_added() {
    // Bit 24 is CAP_SYS_RESOURCE.
    let host = HostFacts {
        capabilities: V1.capabilities & !(1 << 24),
        ..V1
    };
    let build = |options| OciSpec::new(strings(&["x"]), "/c", host).linux(&options).build();
    let all = build(capabilities(&["ALL"], &[])).unwrap();
    assert_eq!(
        at(&all, "/process/capabilities/bounding")
            .as_array()
            .unwrap()
            .len(),
        40
    );
    assert_eq!(
        build(capabilities(&["SYS_RESOURCE"], &[])),
        Err(OciError::CapabilityMissing("CAP_SYS_RESOURCE".into()))
    );
    assert_eq!(
        build(capabilities(&[], &["CAP_CHOWN"])),
        Err(OciError::UnknownCapability("CAP_CHOWN".into()))
    );
}

#[test]
fn added_capabilities_widen_the_system_call_filter() {
    let allows = |spec: &Value| {
        at(spec, "/linux/seccomp/syscalls/0/names")
            .to_string()
            .contains("\"mount\"")
    };
    assert!(!allows(&some().build().unwrap()));
    assert!(allows(&with(capabilities(&["SYS_ADMIN"], &[]))));
}

#[test]
fn a_terminal_is_asked_for_only_where_it_is_wanted() {
    for terminal in [false, true] {
        let spec = some().terminal(terminal).build().unwrap();
        assert_eq!(at(&spec, "/process/terminal"), &json!(terminal));
    }
}

#[test]
fn the_filter_is_dockers_none_or_the_one_that_is_named() {
    let of = |seccomp: &str, privileged, profile: Option<&str>| {
        let options = LinuxOptions {
            seccomp: seccomp.into(),
            privileged,
            ..LinuxOptions::default()
        };
        let profile = profile.map(|text| super::super::seccomp_profile::Profile::parse(text).unwrap());
        let spec = some().linux(&options).seccomp(profile).build();
        spec.map(|spec| {
            at(&spec, "/linux/seccomp/defaultAction")
                .as_str()
                .map(str::to_owned)
        })
    };
    let traps = Some(r#"{"defaultAction": "SCMP_ACT_TRAP"}"#);
    assert_eq!(of("", false, None).unwrap().as_deref(), Some("SCMP_ACT_ERRNO"));
    assert_eq!(of("", true, None).unwrap(), None);
    for privileged in [false, true] {
        assert_eq!(of("unconfined", privileged, None).unwrap(), None);
        assert_eq!(
            of("mine", privileged, traps).unwrap().as_deref(),
            Some("SCMP_ACT_TRAP")
        );
        let missing = OciError::SeccompMissing("mine".into());
        assert_eq!(of("mine", privileged, None).unwrap_err(), missing);
    }
}

#[test]
fn an_apparmor_profile_is_named_where_there_is_apparmor() {
    let of = |name: &str, privileged, apparmor| {
        let options = LinuxOptions {
            apparmor: name.into(),
            privileged,
            ..LinuxOptions::default()
        };
        let host = HostFacts { apparmor, ..V1 };
        let spec = OciSpec::new(strings(&["x"]), "/c", host).linux(&options).build();
        spec.map(|spec| spec["process"].get("apparmorProfile").cloned())
    };
    for privileged in [false, true] {
        assert_eq!(of("mine", privileged, true), Ok(Some(json!("mine"))));
        assert_eq!(of("unconfined", privileged, true), Ok(Some(json!("unconfined"))));
        assert_eq!(of("unconfined", privileged, false), Ok(None));
        assert_eq!(of("", privileged, true), Ok(None));
        let missing = OciError::AppArmorMissing("mine".into());
        assert_eq!(of("mine", privileged, false), Err(missing));
    }
}

#[test]
fn no_new_privileges_is_written() {
    let options = LinuxOptions {
        no_new_privileges: true,
        ..LinuxOptions::default()
    };
    assert_eq!(at(&with(options), "/process/noNewPrivileges"), &json!(true));
}

#[test]
fn a_privileged_container_may_do_what_others_may_not() {
    let device = Device {
        path: "/dev/sda".into(),
        kind: DeviceKind::Block,
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: "rwm".into(),
    };
    let build = |privileged| {
        let options = LinuxOptions {
            privileged,
            ..LinuxOptions::default()
        };
        some()
            .linux(&options)
            .devices(vec![device.clone()])
            .build()
            .unwrap()
    };
    let privileged = build(true);
    assert_eq!(
        at(&privileged, "/linux/devices"),
        &json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0, "fileMode": 0o660, "uid": 0, "gid": 6}])
    );
    assert_eq!(
        at(&privileged, "/linux/resources/devices"),
        &json!([{"allow": true, "access": "rwm"}])
    );
    let set = at(&privileged, "/process/capabilities/bounding")
        .as_array()
        .unwrap();
    assert_eq!(set.len(), 41);
    for field in ["seccomp", "maskedPaths", "readonlyPaths"] {
        assert!(privileged["linux"].get(field).is_none(), "{field}");
    }
    let read_only = |spec: &Value| at(spec, "/mounts").to_string().matches("\"ro\"").count();
    assert_eq!(read_only(&privileged), 0);

    let beside = some().beside_privileged(true).build().unwrap();
    assert_eq!(read_only(&beside), 1);
    let of_itself = at(&beside, "/linux/readonlyPaths").as_array().unwrap();
    assert!(of_itself.contains(&json!("/sys")));

    let plain = build(false);
    assert!(
        !at(&plain, "/linux/readonlyPaths")
            .as_array()
            .unwrap()
            .contains(&json!("/sys"))
    );
    // Which devices it gets, and may open, is said beforehand.
    assert_ne!(
        at(&plain, "/linux/resources/devices"),
        at(&privileged, "/linux/resources/devices")
    );
    assert_eq!(read_only(&plain), 2);
    assert!(plain["linux"].get("seccomp").is_some() && plain["linux"].get("maskedPaths").is_some());
}

fn sysctls(all: &[(&str, &str)]) -> LinuxOptions {
    let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    LinuxOptions {
        sysctls: all.iter().map(pair).collect(),
        ..LinuxOptions::default()
    }
}

#[test]
fn kernel_parameters_are_added_to_the_defaults_and_replace_them() {
    let spec = with(sysctls(&[
        ("net.ipv4.ip_unprivileged_port_start", "1024"),
        ("kernel.sem", "1 2 3 4"),
    ]));
    assert_eq!(
        at(&spec, "/linux/sysctl"),
        &json!({
            "net.ipv4.ip_unprivileged_port_start": "1024",
            "net.ipv4.ping_group_range": "0 2147483647",
            "kernel.sem": "1 2 3 4",
        })
    );
    // What another container of the task sets is not undone.
    let beside = some()
        .task_sysctls(&strings(&["net.ipv4.ip_unprivileged_port_start"]))
        .build()
        .unwrap();
    assert_eq!(
        at(&beside, "/linux/sysctl"),
        &json!({"net.ipv4.ping_group_range": "0 2147483647"})
    );
}

#[test]
fn kernel_parameters_of_the_host_are_refused() {
    let refused = |network, name: &str| {
        let built = some().network(network).linux(&sysctls(&[(name, "1")])).build();
        built == Err(OciError::SysctlOfHost(name.to_owned()))
    };
    for (name, own, in_host_mode) in [
        ("net.core.somaxconn", true, false),
        ("fs.mqueue.msg_max", true, true),
        ("kernel.shmmax", true, true),
        ("kernel.shm", false, false),
        ("kernel.core_pattern", false, false),
        ("vm.swappiness", false, false),
        ("net.", false, false),
        ("net..x", false, false),
        ("net.x/../../kernel/core_pattern", false, false),
        ("fs.mqueue", false, false),
        ("", false, false),
    ] {
        assert_eq!(!refused(Network::Private, name), own, "{name}");
        assert_eq!(!refused(Network::Host, name), in_host_mode, "{name}");
    }
}

#[test]
fn file_systems_in_memory_are_mounted_before_the_agents_files() {
    let options = LinuxOptions {
        shared_memory_bytes: 5 * MIB,
        tmpfs: vec![Tmpfs {
            path: "/etc".into(),
            size_bytes: MIB,
            options: strings(&["exec", "mode=700"]),
        }],
        ..LinuxOptions::default()
    };
    let spec = some()
        .mount(Mount::bind("/a", "/etc/hosts"))
        .linux(&options)
        .build()
        .unwrap();
    let all = at(&spec, "/mounts").as_array().unwrap();
    assert_eq!(all.len(), 9);
    assert_eq!(
        all[6]["options"].as_array().unwrap().last(),
        Some(&json!("size=5242880"))
    );
    assert_eq!(
        all[7],
        json!({
            "destination": "/etc", "type": "tmpfs", "source": "tmpfs",
            "options": ["noexec", "nosuid", "nodev", "exec", "mode=700", "size=1048576"],
        })
    );
    let mut relative = options;
    relative.tmpfs[0].path = "etc".into();
    let refused = OciError::RelativeMount("etc".into());
    assert_eq!(some().linux(&relative).build(), Err(refused));
}

fn fuse(access: &str) -> Device {
    Device {
        path: "/dev/f".into(),
        kind: DeviceKind::Character,
        major: 10,
        minor: 229,
        mode: 0o660,
        uid: 0,
        gid: 9,
        access: access.into(),
    }
}

#[test]
fn a_mapped_device_is_made_and_may_be_opened_as_it_was_allowed() {
    let spec = some().devices(vec![fuse("r")]).build().unwrap();
    assert_eq!(
        at(&spec, "/linux/devices"),
        &json!([{"path": "/dev/f", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 0, "gid": 9}])
    );
    let rules = at(&spec, "/linux/resources/devices").as_array().unwrap();
    assert_eq!(
        rules.last().unwrap(),
        &json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"})
    );
    let block = Device {
        kind: DeviceKind::Block,
        ..fuse("rwm")
    };
    let spec = some().devices(vec![block]).build().unwrap();
    assert_eq!(at(&spec, "/linux/devices/0/type"), "b");
    assert!(some().build().unwrap().pointer("/linux/devices").is_none());
}

fn swap(max_swap_bytes: Option<u64>, swappiness: Option<u32>) -> LinuxOptions {
    LinuxOptions {
        max_swap_bytes,
        swappiness,
        ..LinuxOptions::default()
    }
}

#[test]
fn swap_is_beyond_memory_and_only_where_it_is_counted() {
    let limits = |memory_bytes| Limits {
        memory_bytes,
        ..Limits::default()
    };
    let build = |host, memory, options: LinuxOptions| {
        let spec = OciSpec::new(strings(&["x"]), "/c", host);
        spec.limits(limits(memory)).linux(&options).build()
    };
    let counted = HostFacts {
        swap_limit: true,
        ..V1
    };
    let spec = build(counted, 100, swap(Some(20), Some(7))).unwrap();
    let memory = at(&spec, "/linux/resources/memory");
    assert_eq!(memory, &json!({"limit": 100, "swap": 120, "swappiness": 7}));
    let none = build(counted, 100, swap(Some(0), None)).unwrap();
    assert_eq!(
        at(&none, "/linux/resources/memory"),
        &json!({"limit": 100, "swap": 100})
    );
    let blind = HostFacts {
        swap_limit: false,
        ..V1
    };
    for (host, memory, options, error) in [
        (blind, 100, swap(Some(20), None), OciError::SwapNotCounted),
        (blind, 100, swap(Some(0), None), OciError::SwapNotCounted),
        (counted, 0, swap(Some(20), None), OciError::SwapWithoutMemory),
        (
            HostFacts {
                cgroups: Cgroups::Unified,
                ..counted
            },
            100,
            swap(Some(20), Some(0)),
            OciError::SwappinessOnV2,
        ),
    ] {
        assert_eq!(build(host, memory, options), Err(error));
    }
}

#[test]
fn one_without_a_ceiling_does_not_use_the_swap_of_another() {
    let beside = |cgroups, swaps, memory_bytes| {
        let spec = OciSpec::new(strings(&["x"]), "/c", HostFacts { cgroups, ..V1 });
        let limits = Limits {
            memory_bytes,
            ..Limits::default()
        };
        let spec = spec.limits(limits).task_swaps(swaps).build().unwrap();
        let found = |pointer| spec.pointer(pointer).cloned();
        (
            found("/linux/resources/memory/swappiness"),
            found("/linux/resources/unified/memory.swap.max"),
        )
    };
    assert_eq!(beside(Cgroups::V1, true, 0), (Some(json!(0)), None));
    assert_eq!(beside(Cgroups::Unified, true, 0), (None, Some(json!("0"))));
    for cgroups in [Cgroups::V1, Cgroups::Unified] {
        assert_eq!(beside(cgroups, false, 0), (None, None));
        assert_eq!(beside(cgroups, true, 100), (None, None));
    }
}

#[test]
fn namespaces_are_the_containers_own_unless_shared() {
    let kinds = |pid, ipc| -> Vec<String> {
        let spec = some().sharing(pid, ipc).build().unwrap();
        let all = at(&spec, "/linux/namespaces").as_array().unwrap();
        all.iter()
            .map(|one| one["type"].as_str().unwrap().to_owned())
            .collect()
    };
    let has = |pid, ipc, kind: &str| kinds(pid, ipc).iter().any(|one| one == kind);
    for ipc in [IpcMode::Container, IpcMode::None] {
        assert!(has(PidMode::Container, ipc, "pid") && has(PidMode::Container, ipc, "ipc"));
    }
    assert!(!has(PidMode::Host, IpcMode::Container, "pid"));
    assert!(has(PidMode::Host, IpcMode::Container, "ipc"));
    assert!(!has(PidMode::Container, IpcMode::Host, "ipc"));
}

#[test]
fn shared_memory_is_whose_the_ipc_is() {
    let shm = |ipc| -> Vec<Value> {
        let spec = some().sharing(PidMode::Container, ipc).build().unwrap();
        let mounts = at(&spec, "/mounts").as_array().unwrap();
        mounts
            .iter()
            .filter(|one| one["destination"] == "/dev/shm")
            .cloned()
            .collect()
    };
    assert_eq!(shm(IpcMode::Container)[0]["type"], "tmpfs");
    let host = shm(IpcMode::Host);
    assert_eq!(
        (&host[0]["type"], &host[0]["source"]),
        (&json!("bind"), &json!("/dev/shm"))
    );
    assert_eq!(
        (
            shm(IpcMode::Container).len(),
            host.len(),
            shm(IpcMode::None).len()
        ),
        (1, 1, 0)
    );
    let mut options = sysctls(&[("kernel.msgmax", "9")]);
    let host = |options: &LinuxOptions| {
        some()
            .sharing(PidMode::Container, IpcMode::Host)
            .linux(options)
            .build()
    };
    assert_eq!(
        host(&options),
        Err(OciError::SysctlOfHost("kernel.msgmax".into()))
    );
    options.sysctls.clear();
    assert!(host(&options).is_ok());
}
