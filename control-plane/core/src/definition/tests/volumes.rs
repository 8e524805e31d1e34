use super::*;

/// A definition with these volumes, mounted so by its first container.
fn task(volumes: Value, mount_points: Value) -> Value {
    let task = with(good(), "/volumes", volumes);
    with(task, "/containerDefinitions/0/mountPoints", mount_points)
}

fn docker(configuration: Value) -> Value {
    let volume = json!([{"name": "v", "dockerVolumeConfiguration": configuration}]);
    task(volume, json!([]))
}

const DOCKER: &str = "volumes[0].dockerVolumeConfiguration";

#[test]
fn volumes_of_every_kind_are_echoed_and_only_a_scope_is_filled_in() {
    let volumes = json!([
        {"name": "only-a-name"},
        {"name": "empty", "host": {}},
        {"name": "nowhere", "host": {"sourcePath": ""}},
        {"name": "logs", "host": {"sourcePath": "/var/log/"}},
        {"name": "cache", "dockerVolumeConfiguration": {
            "scope": "shared", "autoprovision": true, "driver": "local", "labels": {"a": ""},
        }},
        {"name": "memory", "dockerVolumeConfiguration": {
            "scope": "task", "driverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=10m,uid=1000,noexec"},
        }},
        {"name": "bound", "configuredAtLaunch": false, "dockerVolumeConfiguration": {
            "scope": "shared", "driverOpts": {"type": "none", "device": "/srv", "o": "bind,ro"},
        }},
        {"name": "far", "dockerVolumeConfiguration": {
            "scope": "shared", "driverOpts": {"type": "nfs", "device": ":/export", "o": "addr=10.0.0.1,rw,nfsvers=4,soft"},
        }},
    ]);
    let mount_points = json!([
        {"sourceVolume": "logs", "containerPath": "/logs", "readOnly": true},
        {"sourceVolume": "logs", "containerPath": "/logs/again/"},
        {"sourceVolume": "cache", "containerPath": "/etc/hosts"},
        {"sourceVolume": "memory", "containerPath": "/proc/meminfo"},
    ]);
    let echo = accepted(&task(volumes.clone(), mount_points.clone())).definition;
    assert_eq!(echo["volumes"], volumes);
    assert_eq!(echo["containerDefinitions"][0]["mountPoints"], mount_points);
    let echo = accepted(&docker(json!({"autoprovision": true}))).definition;
    let filled = json!({"autoprovision": true, "scope": "task"});
    assert_eq!(echo["volumes"][0]["dockerVolumeConfiguration"], filled);
    let attributes = echo["requiresAttributes"].as_array().unwrap();
    let plugin = json!({"name": "com.amazonaws.ecs.capability.docker-plugin.local"});
    assert!(attributes.contains(&plugin), "{attributes:?}");
}

#[test]
fn names_are_there_once_and_mount_points_name_a_volume() {
    assert_eq!(
        problems(&task(
            json!([{"name": "data"}, {"name": "da.ta"}, {"name": "data"}, {}]),
            json!([
                {"sourceVolume": "dta", "containerPath": "/a"},
                {"sourceVolume": "others", "containerPath": "/b"},
                {"containerPath": "/c"},
                {"sourceVolume": "data"},
            ]),
        )),
        [
            "containerDefinitions[0].mountPoints[2].sourceVolume: required",
            "containerDefinitions[0].mountPoints[3].containerPath: required",
            "volumes[3].name: required",
            "volumes[1].name: \"da.ta\" is not a name: 1 to 255 of A-Z a-z 0-9 - _",
            "volumes[2].name: \"data\" is the name of volumes[0] already",
            "containerDefinitions[0].mountPoints[0].sourceVolume: no volume is named \"dta\" (did you mean data?)",
            "containerDefinitions[0].mountPoints[1].sourceVolume: no volume is named \"others\"",
        ]
    );
}

#[test]
fn a_place_is_absolute_taken_once_and_not_the_kernels() {
    let at = |path: &str| json!({"sourceVolume": "v", "containerPath": path});
    let mounted = task(
        json!([{"name": "v"}]),
        json!([
            at("data"),
            at("/a/../b"),
            at("/"),
            at("//."),
            at("/proc"),
            at("/proc/sys"),
            at("/data"),
            at("/data//./"),
            at("/scratch"),
            at(&format!("/{}", "x".repeat(4095))),
        ]),
    );
    let path = "/containerDefinitions/0/linuxParameters";
    let mounted = with(
        mounted,
        path,
        json!({"tmpfs": [{"containerPath": "/scratch/", "size": 1}]}),
    );
    let said = problems(&mounted);
    for (at, says) in [
        (0, "\"data\" is not an absolute path without .."),
        (1, "\"/a/../b\" is not an absolute path without .."),
        (2, "/ is the image's"),
        (3, "/ is the image's"),
        (4, "\"/proc\" is the kernel's"),
        (5, "\"/proc/sys\" is the kernel's"),
        (7, "\"/data\" is where mountPoints[6] is"),
        (8, "\"/scratch\" is where linuxParameters.tmpfs[0] is"),
        (9, "4096 bytes, the limit of a path is 4095"),
    ] {
        let line = format!("containerDefinitions[0].mountPoints[{at}].containerPath: {says}");
        assert!(said.contains(&line), "{line}: {said:#?}");
    }
    assert_eq!(said.len(), 9, "{said:#?}");
}

#[test]
fn a_volume_is_of_one_kind_and_some_kinds_are_refused() {
    let kinds = |volume: Value| problems(&task(json!([volume]), json!([])));
    assert_eq!(
        kinds(json!({"name": "v", "host": {"sourcePath": "srv"}, "dockerVolumeConfiguration": {}})),
        [
            "volumes[0]: has host and dockerVolumeConfiguration: a volume is one of them",
            "volumes[0].host.sourcePath: \"srv\" is not an absolute path without ..",
        ]
    );
    for (kind, value) in [
        ("efsVolumeConfiguration", json!({"fileSystemId": "fs-1"})),
        ("s3filesVolumeConfiguration", json!({"fileSystemArn": "arn"})),
        (
            "fsxWindowsFileServerVolumeConfiguration",
            json!({
                "fileSystemId": "fs-1", "rootDirectory": "x",
                "authorizationConfig": {"credentialsParameter": "x", "domain": "y"},
            }),
        ),
        ("configuredAtLaunch", json!(true)),
    ] {
        let said = kinds(with(json!({"name": "v"}), &format!("/{kind}"), value));
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(
            said[0].starts_with(&format!("volumes[0].{kind}: not supported")),
            "{said:?}"
        );
    }
}

#[test]
fn drivers_and_their_options_are_those_of_dockers_local() {
    for (options, name, says) in [
        (
            json!({"tpye": "tmpfs"}),
            "tpye",
            "no option of the driver local (did you mean type?)",
        ),
        (
            json!({"size": "1g"}),
            "size",
            "not supported: a volume on the disk has no size of its own",
        ),
        (
            json!({"o": "bind", "type": "none"}),
            "device",
            "required with the others",
        ),
        (json!({"device": "/srv"}), "type", "required with the others"),
        (
            json!({"type": "none", "device": "/srv"}),
            "o",
            "type none needs bind or rbind",
        ),
        (
            json!({"type": "none", "device": "srv", "o": "bind"}),
            "device",
            "\"srv\" is not an absolute path without ..",
        ),
        (
            json!({"type": "bind", "device": "/srv", "o": "bind,noexec"}),
            "o",
            "\"noexec\": expected bind or rbind, and ro or rw",
        ),
        (
            json!({"type": "tmpfs", "device": "tmpfs", "o": "size=0"}),
            "o",
            "\"size=0\" is not a size, as in size=64m",
        ),
        (
            json!({"type": "tmpfs", "device": "tmpfs", "o": "size=1mm"}),
            "o",
            "\"size=1mm\" is not a size, as in size=64m",
        ),
        (
            json!({"type": "tmpfs", "device": "tmpfs", "o": "noexce"}),
            "o",
            "\"noexce\" is not a mount option of ECS for a tmpfs (did you mean noexec?)",
        ),
        (
            json!({"type": "nfs", "device": "/x", "o": "addr=10.0.0.1"}),
            "device",
            "\"/x\": expected :/PATH, what the server exports",
        ),
        (
            json!({"type": "nfs4", "device": ":/x", "o": "rw,hart"}),
            "o",
            "needs addr=HOST, the server's name or address",
        ),
        (
            json!({"type": "ext4", "device": "/dev/sdb"}),
            "type",
            "\"ext4\": not supported; use nfs, tmpfs, or none with o=bind",
        ),
    ] {
        let said = problems(&docker(json!({"driverOpts": options})));
        let first = format!("{DOCKER}.driverOpts.{name}: {says}");
        assert!(said.contains(&first), "{said:?} without {first}");
    }
    let memory = json!({"type": "tmpfs", "device": "tmpfs", "o": ",ro,size=50%"});
    accepted(&docker(json!({"driverOpts": memory, "scope": "task"})));
    assert_eq!(
        problems(&docker(json!({"driverOpts": memory, "scope": "shared"}))),
        [format!(
            "{DOCKER}.driverOpts.type: a shared volume outlives its tasks, and memory is freed with the last: use scope task"
        )]
    );
    assert_eq!(
        problems(&docker(
            json!({"driver": "rexray/ebs", "labels": {"": "x", "long": "x".repeat(4096)}})
        )),
        [
            format!("{DOCKER}.driver: \"rexray/ebs\": only local: others are plugins of Docker"),
            format!("{DOCKER}.labels[\"\"]: a label has a name, and at most 4096 bytes with its value"),
            format!("{DOCKER}.labels.long: a label has a name, and at most 4096 bytes with its value"),
        ]
    );
}

#[test]
fn fargate_has_empty_volumes_only() {
    let fargate = |volume: Value| {
        let task = with(good(), "/requiresCompatibilities", json!(["FARGATE"]));
        problems(&with(task, "/volumes", json!([volume])))
    };
    assert_eq!(fargate(json!({"name": "v", "host": {}})), Vec::<String>::new());
    assert_eq!(
        fargate(json!({"name": "v", "host": {"sourcePath": "/srv"}})),
        ["volumes[0].host.sourcePath: FARGATE does not have it"]
    );
    assert_eq!(
        fargate(json!({"name": "v", "dockerVolumeConfiguration": {"scope": "task"}})),
        [format!("{DOCKER}: FARGATE does not have it")]
    );
    let compatibilities = |volume: Value| {
        let echo = accepted(&with(good(), "/volumes", json!([volume]))).definition;
        echo["compatibilities"].clone()
    };
    assert_eq!(compatibilities(json!({"name": "v"})), json!(["EC2", "FARGATE"]));
    let host = json!({"name": "v", "host": {"sourcePath": "/srv"}});
    assert_eq!(compatibilities(host), json!(["EC2"]));
}

#[test]
fn volumes_from_names_other_containers_and_has_an_order() {
    let from = |of: Value| with(good(), "/containerDefinitions/1/volumesFrom", of);
    assert_eq!(
        problems(&from(json!([
            {"sourceContainer": "redis"}, {"sourceContainer": "ngnix"}, {"sourceContainer": "other"},
            {"sourceContainer": "other", "readOnly": true}, {"readOnly": true},
        ]))),
        [
            "containerDefinitions[1].volumesFrom[4].sourceContainer: required",
            "containerDefinitions[1].volumesFrom[0].sourceContainer: a container has its own volumes anyway",
            "containerDefinitions[1].volumesFrom[3].sourceContainer: \"other\" is there twice",
            "containerDefinitions[1].volumesFrom[1].sourceContainer: no container is named \"ngnix\" (did you mean nginx?)",
            "containerDefinitions[1].volumesFrom[2].sourceContainer: no container is named \"other\"",
        ]
    );
    // nginx depends on redis.
    assert_eq!(
        problems(&from(json!([{"sourceContainer": "nginx"}]))),
        [
            "containerDefinitions[0].volumesFrom: it waits for its source to start, and that waits for it: nginx -> redis -> nginx"
        ]
    );
    let other_way = with(
        good(),
        "/containerDefinitions/0/volumesFrom",
        json!([{"sourceContainer": "redis", "readOnly": true}]),
    );
    let echo = accepted(&other_way).definition;
    let first = &echo["containerDefinitions"][0]["volumesFrom"];
    assert_eq!(*first, json!([{"sourceContainer": "redis", "readOnly": true}]));
}
