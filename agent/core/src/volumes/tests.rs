use super::*;
use crate::{
    desired::{DesiredStatus, Limits, LogSpec, Millis, NetworkMode, Tmpfs},
    ids::TaskId,
};

fn container(name: &str, mount_points: &[(&str, &str, bool)], from: &[(&str, bool)]) -> ContainerSpec {
    let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
    let spec = serde_json::json!({
        "id": format!("{hex:0>32}"), "name": name, "image": "i", "entry_point": [], "command": [], "environment": [],
        "working_directory": "", "user": "", "cpu_units": 0, "memory_bytes": 0, "memory_reservation_bytes": 0,
        "essential": true, "depends_on": [], "stop_timeout_ms": 1, "start_timeout_ms": 1, "ports": [], "labels": {},
        "readonly_root_filesystem": false, "ulimits": [],
        "log": LogSpec { max_size_bytes: 1, max_files: 1, blocking: false, max_buffer_bytes: 0, discard: false, attributes: Default::default() },
    });
    let mut spec: ContainerSpec = serde_json::from_value(spec).unwrap();
    let point = |(volume, path, read_only): &(&str, &str, bool)| MountPoint {
        volume: (*volume).into(),
        path: (*path).into(),
        read_only: *read_only,
    };
    let taken = |(container, read_only): &(&str, bool)| VolumesFrom {
        container: (*container).into(),
        read_only: *read_only,
    };
    spec.volumes = ContainerVolumes {
        mount_points: mount_points.iter().map(point).collect(),
        from: from.iter().map(taken).collect(),
    };
    spec
}

fn task(containers: Vec<ContainerSpec>) -> TaskSpec {
    let local = |scope, mount| VolumeKind::Local {
        scope,
        mount,
        labels: BTreeMap::new(),
    };
    let bind = |recursive, read_only| LocalMount::Bind {
        path: "/srv".into(),
        recursive,
        read_only,
    };
    let nfs = |options: &[&str]| LocalMount::Nfs {
        server: "vm1".into(),
        path: "/export".into(),
        options: options.iter().map(|&option| option.into()).collect(),
    };
    let shared = Scope::Shared { autoprovision: true };
    let kinds = [
        ("host", VolumeKind::Host { path: "/h".into() }),
        ("empty", local(Scope::Task, LocalMount::Directory)),
        (
            "memory",
            local(Scope::Task, LocalMount::Memory { options: vec![] }),
        ),
        ("shared", local(shared, LocalMount::Directory)),
        ("bound", local(Scope::Task, bind(false, false))),
        ("bound-ro", local(shared, bind(true, true))),
        ("nfs", local(shared, nfs(&["ro", "rw", "hard"]))),
        ("nfs-ro", local(Scope::Task, nfs(&["rw", "ro"]))),
    ];
    let id: TaskId = "a".repeat(32).parse().unwrap();
    TaskSpec {
        id,
        arn: String::new(),
        cluster: String::new(),
        family: String::new(),
        revision: 1,
        desired: DesiredStatus::Running,
        network: NetworkMode::None,
        pid: Default::default(),
        ipc: Default::default(),
        limits: Limits::default(),
        charge: Limits::default(),
        containers,
        restart_after_reboot: false,
        stop_reason: String::new(),
        created_at: Millis(0),
        runtime: String::new(),
        subnet: None,
        lan: None,
        ephemeral_storage_bytes: 0,
        publish_ports: false,
        launch_type: "EC2".into(),
        group: String::new(),
        tags: Default::default(),
        volumes: kinds
            .map(|(name, kind)| Volume {
                name: name.into(),
                kind,
            })
            .into(),
    }
}

/// One line for each mount of the container of that name; every image declares what `images` says.
fn seen(task: &TaskSpec, name: &str, images: &[(&str, &[&str])]) -> Vec<String> {
    let declared: BTreeMap<String, Vec<String>> = images
        .iter()
        .map(|(name, paths)| {
            (
                (*name).to_owned(),
                paths.iter().map(|p| (*p).to_owned()).collect(),
            )
        })
        .collect();
    let of_image = |c: &ContainerSpec| declared.get(&c.name).map_or(&[][..], Vec::as_slice);
    let container = task.container_named(name).unwrap();
    let line = |mount: VolumeMount| {
        let source = match mount.source {
            MountSource::Host {
                volume,
                path,
                recursive,
            } => format!("{volume} {path}{}", if recursive { "" } else { " alone" }),
            MountSource::Task { volume } => format!("task {volume}"),
            MountSource::Shared { volume } => format!("shared {volume}"),
            MountSource::Image { number, container } => {
                let owner = task.container(&container).unwrap();
                format!("image {} {number}", owner.name)
            }
        };
        let read_only = if mount.read_only { " ro" } else { "" };
        let populate = if mount.populate { " filled" } else { "" };
        format!("{}: {source}{read_only}{populate}", mount.path)
    };
    mounts(task, container, &of_image).into_iter().map(line).collect()
}

#[test]
fn mount_points_of_every_kind() {
    let all = [
        ("host", "/1", false),
        ("host", "/2", true),
        ("empty", "/3", false),
        ("empty", "/4", true),
        ("memory", "/5", false),
        ("shared", "/6", false),
        ("bound", "/7", false),
        ("bound-ro", "/8", false),
        ("nothing", "/9", false),
        ("nfs", "/a", false),
        ("nfs-ro", "/b", false),
    ];
    assert_eq!(
        seen(&task(vec![container("a", &all, &[])]), "a", &[]),
        [
            "/1: host /h",
            "/2: host /h ro",
            "/3: task empty filled",
            "/4: task empty ro filled",
            "/5: task memory filled",
            "/6: shared shared filled",
            "/7: bound /srv alone filled",
            "/8: bound-ro /srv ro",
            "/a: task nfs filled",
            "/b: task nfs-ro ro",
        ]
    );
}

#[test]
fn volumes_are_taken_along_a_chain_and_own_ones_win() {
    let task = task(vec![
        container("c", &[("empty", "/x", false), ("empty", "/z", true)], &[]),
        container("b", &[("host", "/y", false)], &[("c", true)]),
        container(
            "a",
            &[("shared", "/y", false)],
            &[("b", false), ("missing", false)],
        ),
        container("last", &[("host", "/x", false)], &[]),
        container("two", &[], &[("c", false), ("last", false)]),
    ]);
    assert_eq!(
        seen(&task, "a", &[]),
        [
            "/x: task empty ro",
            "/y: shared shared filled",
            "/z: task empty ro"
        ]
    );
    assert_eq!(seen(&task, "two", &[]), ["/x: host /h", "/z: task empty ro"]);
}

#[test]
fn what_images_declare_is_made_where_nothing_else_is_and_taken_by_others() {
    let mut web = container("web", &[("empty", "/taken", false)], &[("app", true)]);
    web.linux.tmpfs.push(Tmpfs {
        path: "/tmp/".into(),
        size_bytes: 1,
        options: vec![],
    });
    let task = task(vec![container("app", &[], &[]), web]);
    let images: [(&str, &[&str]); 2] = [
        ("app", &["/data//", "/html"]),
        ("web", &["/html/", "/own", "/taken", "/tmp", "no/path"]),
    ];
    assert_eq!(
        seen(&task, "app", &images),
        ["/data: image app 0 filled", "/html: image app 1 filled"]
    );
    assert_eq!(
        seen(&task, "web", &images),
        [
            "/data: image app 0 ro",
            "/html: image app 1 ro",
            "/own: image web 1 filled",
            "/taken: task empty filled",
            "no/path: image web 4 filled",
        ]
    );
}

#[test]
fn a_circle_that_nobody_refused_ends() {
    let task = task(vec![
        container("a", &[("empty", "/a", false)], &[("b", false)]),
        container("b", &[("empty", "/b", false)], &[("a", false)]),
    ]);
    assert_eq!(seen(&task, "a", &[]), ["/a: task empty filled", "/b: task empty"]);
}

#[test]
fn paths_are_read_as_the_kernel_reads_them() {
    for (path, normal_path) in [
        ("/a/b", Some("/a/b")),
        ("//a/./b//", Some("/a/b")),
        ("/", Some("/")),
        ("/..a", Some("/..a")),
        ("/a/../b", None),
        ("a", None),
        ("", None),
        ("/a\0", None),
    ] {
        assert_eq!(normal(path).as_deref(), normal_path, "{path:?}");
    }
}
