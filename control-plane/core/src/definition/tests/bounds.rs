//! The edges of what is accepted: the last that is, and the first that is not, with the path that says so.

use super::*;
use crate::definition::linux;

/// `good` is accepted; of `bad` a problem is told whose path is `path`, and no other.
fn edge(path: &str, good: &Value, bad: &Value) {
    accepted(good);
    let problems = problems(bad);
    assert!(
        problems.len() == 1 && problems[0].starts_with(&format!("{path}: ")),
        "{path}: {problems:?}"
    );
}

fn of_container(name: &str, good: Value, bad: Value) {
    let path = format!("containerDefinitions[0].{name}");
    edge(&path, &container(name, good), &container(name, bad));
}

fn text(length: usize) -> String {
    "a".repeat(length)
}

#[test]
fn texts_are_as_long_as_they_may_be() {
    of_container("image", json!(text(255)), json!(text(256)));
    of_container("image", json!("a"), json!("a b"));
    for (bad, good) in [
        ("a:b:c", "a:b"),
        ("a b", "ab"),
        ("a:", "a"),
        (":a", "a"),
        ("a:b\tc", "a:bc"),
    ] {
        of_container("user", json!(good), json!(bad));
    }
    for (name, extra, good) in [
        ("a", 4095, true),
        ("a", 4096, false),
        ("", 10, false),
        ("aa", 4094, true),
    ] {
        let labels = container("dockerLabels", json!({name: text(extra)}));
        assert_eq!(problems(&labels).is_empty(), good, "{name:?} and {extra} bytes");
    }
    let linux = |devices: Value| container("linuxParameters", json!({"devices": devices}));
    let device = |length: usize| json!([{"hostPath": format!("/{}", text(length - 1))}]);
    let path = "containerDefinitions[0].linuxParameters.devices";
    edge(
        &format!("{path}[0].hostPath"),
        &linux(device(4095)),
        &linux(device(4096)),
    );
    let many = |count: usize| -> Value {
        (0..count)
            .map(|n| json!({"hostPath": format!("/dev/d{n}")}))
            .collect()
    };
    edge(path, &linux(many(100)), &linux(many(101)));
    let tmpfs = |count: usize| -> Value {
        let all: Value = (0..count)
            .map(|n| json!({"containerPath": format!("/t{n}"), "size": 1}))
            .collect();
        container("linuxParameters", json!({"tmpfs": all}))
    };
    edge(
        "containerDefinitions[0].linuxParameters.tmpfs",
        &tmpfs(100),
        &tmpfs(101),
    );
}

#[test]
fn roles_are_names_and_arns_of_iam() {
    let arn = |path: usize, name: usize| {
        format!(
            "arn:aws:iam::123456789012:role/{}{}",
            "p".repeat(path),
            text(name)
        )
    };
    let role = |role: &str| with(good(), "/taskRoleArn", json!(role));
    for (good, bad) in [
        (text(64), text(65)),
        (arn(0, 64), arn(0, 65)),
        (
            "arn:aws-cn:iam::123456789012:role/a/b".into(),
            "arn:aws-CN:iam::123456789012:role/a".into(),
        ),
        (arn(0, 1), "arn:aws:iam::12345678901:role/a".into()),
        (arn(0, 1), "arn:aws:iam::12345678901x:role/a".into()),
        (arn(0, 1), "arn:aws:iam:us-east-1:123456789012:role/a".into()),
        (arn(0, 1), "arn:aws:sts::123456789012:role/a".into()),
        (arn(0, 1), "arn:awsx:iam::123456789012:role/a".into()),
        (arn(0, 1), "arn:aws:iam::123456789012:user/a".into()),
        (arn(0, 1), "arn:aws:iam::123456789012:role/".into()),
        (arn(0, 1), "arn:aws:iam::123456789012:role/p q/a".into()),
        (
            format!("arn:aws:iam::123456789012:role/{}/a", text(511)),
            format!("arn:aws:iam::123456789012:role/{}/a", text(512)),
        ),
    ] {
        edge("taskRoleArn", &role(&good), &role(&bad));
    }
}

#[test]
fn a_cycle_is_found_among_as_many_containers_as_a_task_may_have() {
    let ring = |count: usize| {
        let one = |n: usize| {
            json!({"name": format!("c{n}"), "image": "a", "memory": 8,
                   "dependsOn": [{"containerName": format!("c{}", (n + 1) % count), "condition": "START"}]})
        };
        with(good(), "/containerDefinitions", (0..count).map(one).collect())
    };
    let told = problems(&ring(10));
    assert!(told.len() == 1 && told[0].contains("c9"), "{told:?}");
    // More are refused for their number, and not looked at.
    let told = problems(&ring(11));
    assert!(told.len() == 1 && told[0].contains("the limit is 10"), "{told:?}");
}

#[test]
fn attributes_are_required_by_what_a_definition_has() {
    let without_sizes = |pointer: &str| {
        let both = without(without(good(), "/cpu"), "/memory");
        let both = with(both, "/containerDefinitions/1/memory", json!(64));
        match pointer {
            "" => both,
            pointer => with(both, pointer, json!("1024")),
        }
    };
    let has = |input: &Value| {
        let attributes = accepted(input).definition["requiresAttributes"].to_string();
        attributes.contains("ecs.capability.task-cpu-mem-limit")
    };
    assert!(!has(&without_sizes("")));
    assert!(has(&without_sizes("/cpu")));
    assert!(has(&without_sizes("/memory")));
}

#[test]
fn the_last_security_option_that_speaks_of_a_thing_counts() {
    let options = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
    for (all, seccomp, forbidden) in [
        (&[][..], "", false),
        (&["seccomp:builtin"], "", false),
        (&["seccomp:web", "seccomp=builtin"], "", false),
        (
            &["seccomp:builtin", "no-new-privileges", "seccomp:web"],
            "web",
            true,
        ),
        (
            &[
                "no-new-privileges:true",
                "no-new-privileges=false",
                "seccomp:unconfined",
            ],
            "unconfined",
            false,
        ),
    ] {
        let all = options(all);
        assert_eq!(
            (linux::seccomp(&all).as_str(), linux::no_new_privileges(&all)),
            (seccomp, forbidden),
            "{all:?}"
        );
    }
}

#[test]
fn labels_of_a_volume_are_as_long_as_containerd_keeps_them() {
    let volume = |name: &str, length: usize| {
        let labels = json!({name: text(length)});
        let volume = json!([{"name": "v", "dockerVolumeConfiguration": {"scope": "task", "labels": labels}}]);
        with(good(), "/volumes", volume)
    };
    let path = "volumes[0].dockerVolumeConfiguration.labels";
    edge(&format!("{path}.ab"), &volume("ab", 4094), &volume("ab", 4095));
}

#[test]
fn the_last_of_ro_and_rw_counts() {
    for (options, read_only) in [
        ("bind", false),
        ("bind,ro", true),
        ("bind,ro,rw", false),
        ("rw,rbind,ro", true),
    ] {
        let mount = local_volume::parse("none", "/srv", options).unwrap();
        assert!(
            matches!(mount, local_volume::Mount::Bind { read_only: found, .. } if found == read_only),
            "{options}"
        );
    }
}

#[test]
fn sizes_of_logs_have_edges() {
    let log = |option: &str, value: &str| {
        let options = json!({"max-size": "1m", "mode": "non-blocking", option: value});
        container(
            "logConfiguration",
            json!({"logDriver": "json-file", "options": options}),
        )
    };
    for (option, good, bad) in [
        ("max-size", "4096", "4095"),
        ("max-size", "1024g", "1025g"),
        ("max-file", "1", "0"),
        ("max-file", "1000", "1001"),
        ("max-file", "10", "+10"),
        ("max-buffer-size", "1", "0"),
        ("max-buffer-size", "256m", "257m"),
    ] {
        let path = format!("containerDefinitions[0].logConfiguration.options.{option}");
        edge(&path, &log(option, good), &log(option, bad));
    }
}

#[test]
fn names_on_the_network_have_edges_and_are_told() {
    let host = |name: &str, value: Value| {
        let host = with(good(), "/networkMode", json!("host"));
        with(host, &format!("/containerDefinitions/0/{name}"), value)
    };
    let path = |name: &str| format!("containerDefinitions[0].{name}");
    edge(
        &path("hostname"),
        &host("hostname", json!(text(64))),
        &host("hostname", json!(text(65))),
    );
    for (good, bad) in [
        ("a.b-c.d1", "a..b"),
        ("a-b", "a-"),
        ("a", "-a"),
        ("a.b", "a.b."),
        ("a", "a_b"),
    ] {
        edge(
            &path("hostname"),
            &host("hostname", json!(good)),
            &host("hostname", json!(bad)),
        );
    }
    let domains = |name: &str| host("dnsSearchDomains", json!([name]));
    edge(
        &path("dnsSearchDomains[0]"),
        &domains(&text(254)),
        &domains(&text(255)),
    );
    assert_eq!(
        problems(&domains("a b")),
        [format!(
            "{}: \"a b\" is not a name: 1 to 254 of letters, digits, -, _ and ., ending with a letter or digit",
            path("dnsSearchDomains[0]")
        )]
    );
}

/// What overrides add does not count, whatever its characters.
#[test]
fn overrides_of_a_large_definition_fit() {
    let large = container("command", json!(["x".repeat(DEFINITION_BYTES_MAX - 1_000)]));
    let definition = accepted(&large).definition;
    let value = "\u{1f980}".repeat(8_000);
    let overrides =
        json!({"containerOverrides": [{"name": "nginx", "environment": [{"name": "A", "value": value}]}]});
    if let Err(problems) = override_definition(&definition, &overrides) {
        panic!("{problems}");
    }
}

#[test]
fn overrides_with_bad_names_are_told_once() {
    // One of its own, so that what is added stands at another place than in the overrides.
    let own = container("environment", json!([{"name": "B", "value": "y"}]));
    let definition = accepted(&own).definition;
    for (name, why) in [("", "is empty"), ("A=B", "\"A=B\" contains =")] {
        let variable = json!([{"name": name, "value": "x"}]);
        let overrides = json!({"containerOverrides": [{"name": "nginx", "environment": variable}]});
        let problems = override_definition(&definition, &overrides).unwrap_err();
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [format!(
                "overrides.containerOverrides[0].environment[0].name: {why}"
            )]
        );
    }
}

#[test]
fn ports_have_edges() {
    let port = |mapping: Value| container("portMappings", json!([mapping]));
    let path = |name: &str| format!("containerDefinitions[0].portMappings[0].{name}");
    for (good, bad) in [(1, 0), (65_535, 65_536)] {
        edge(
            &path("containerPort"),
            &port(json!({"containerPort": good})),
            &port(json!({"containerPort": bad})),
        );
    }
    let bridge = |mapping: Value| with(port(mapping), "/networkMode", json!("bridge"));
    edge(
        &path("hostPort"),
        &bridge(json!({"containerPort": 1, "hostPort": 65_535})),
        &bridge(json!({"containerPort": 1, "hostPort": 65_536})),
    );
    for (good, bad) in [("1-2", "0-2"), ("1-2", "2-2"), ("65534-65535", "65534-65536")] {
        edge(
            &path("containerPortRange"),
            &bridge(json!({"containerPortRange": good})),
            &bridge(json!({"containerPortRange": bad})),
        );
    }
    for bad in ["+1-2", "1-+2", "-2", "1-", "1-2-3", "1 -2"] {
        let bad = bridge(json!({"containerPortRange": bad}));
        edge(
            &path("containerPortRange"),
            &bridge(json!({"containerPortRange": "1-2"})),
            &bad,
        );
    }
    // Containers in bridge mode share the host's ports, and have their own.
    let both = |mapping: Value| {
        let first = with(good(), "/networkMode", json!("bridge"));
        let first = with(first, "/containerDefinitions/0/portMappings", json!([mapping]));
        with(first, "/containerDefinitions/1/portMappings", json!([mapping]))
    };
    edge(
        "containerDefinitions[1].portMappings[0].hostPort",
        &both(json!({"containerPort": 80})),
        &both(json!({"containerPort": 80, "hostPort": 8080})),
    );
    edge(
        "containerDefinitions",
        &bridge(json!({"containerPortRange": "1-1000"})),
        &bridge(json!({"containerPortRange": "1-1001"})),
    );
    for (good, bad) in [
        (text(64), text(65)),
        ("a-1_b".into(), "-a".into()),
        ("0".into(), "a.b".into()),
    ] {
        let named = |name: &str| port(json!({"containerPort": 80, "name": name}));
        edge(&path("name"), &named(&good), &named(&bad));
    }
    // Of all containers together.
    let many = |count: usize| {
        let ports = |from: usize, to: usize| {
            (from..to)
                .map(|n| json!({"containerPort": 1000 + n}))
                .collect::<Value>()
        };
        let first = with(good(), "/containerDefinitions/0/portMappings", ports(0, 50));
        with(first, "/containerDefinitions/1/portMappings", ports(50, count))
    };
    edge("containerDefinitions", &many(100), &many(101));
}

#[test]
fn lists_and_maps_have_as_many_entries_as_a_node_takes() {
    let command = |count: usize| container("command", json!(vec!["x"; count]));
    edge(
        "containerDefinitions[0].command",
        &command(1_000),
        &command(1_001),
    );
    let labels = |count: usize| {
        let all: serde_json::Map<String, Value> = (0..count).map(|n| (format!("l{n}"), json!(""))).collect();
        container("dockerLabels", all.into())
    };
    edge(
        "containerDefinitions[0].dockerLabels",
        &labels(1_000),
        &labels(1_001),
    );
    let constraints = |count: usize| {
        let one = json!({"type": "memberOf", "expression": "attribute:a == b"});
        with(good(), "/placementConstraints", json!(vec![one; count]))
    };
    edge("placementConstraints", &constraints(10), &constraints(11));
}

#[test]
fn kernel_parameters_have_edges() {
    let control =
        |name: &str, value: &str| container("systemControls", json!([{"namespace": name, "value": value}]));
    let path = |name: &str| format!("containerDefinitions[0].systemControls[0].{name}");
    let net = "net.core.somaxconn";
    edge(
        &path("value"),
        &control(net, &text(1_024)),
        &control(net, &text(1_025)),
    );
    for (good, bad) in [("1", ""), ("1\t2", "1\n2")] {
        edge(&path("value"), &control(net, good), &control(net, bad));
    }
    for bad in [
        "net.",
        "net",
        "net..a",
        "net.a/b",
        "fs.mqueue.",
        "kernel.panic",
        "x",
    ] {
        edge(
            &path("namespace"),
            &control("fs.mqueue.msg_max", "1"),
            &control(bad, "1"),
        );
    }
}

#[test]
fn swap_has_edges() {
    let of = |parameters: Value| {
        let host = with(good(), "/networkMode", json!("host"));
        with(host, "/containerDefinitions/0/linuxParameters", parameters)
    };
    let path = |name: &str| format!("containerDefinitions[0].linuxParameters.{name}");
    let swap = |max_swap: i64, swappiness: i64| of(json!({"maxSwap": max_swap, "swappiness": swappiness}));
    edge(&path("maxSwap"), &swap(0, 60), &swap(-1, 60));
    edge(&path("swappiness"), &swap(8, 0), &swap(8, -1));
    edge(&path("swappiness"), &swap(8, 100), &swap(8, 101));
    edge(&path("swappiness"), &swap(8, 60), &of(json!({"swappiness": 60})));
}

#[test]
fn memory_file_systems_have_options_of_mount() {
    let tmpfs = |option: &str| {
        let one = json!({"containerPath": "/t", "size": 1, "mountOptions": [option]});
        container("linuxParameters", json!({"tmpfs": [one]}))
    };
    for (good, bad) in [
        ("mode=1777", "mode=01777"),
        ("mode=7", "mode="),
        ("mode=755", "mode=788"),
        ("uid=4294967295", "uid=4294967296"),
        ("gid=0", "gid=+1"),
        ("gid=0", "gid="),
        ("nr_inodes=10k", "nr_inodes=k"),
        ("nr_blocks=1g", "nr_blocks=1t"),
        ("mpol=bind:0-1", "mpol="),
        ("mpol=interleave", "mpol=a,b"),
        ("noexec", "noexec=1"),
        ("ro", "uid"),
        ("ro", "bind"),
    ] {
        let path = "containerDefinitions[0].linuxParameters.tmpfs[0].mountOptions[0]";
        edge(path, &tmpfs(good), &tmpfs(bad));
    }
    let size = |size: i64| {
        container(
            "linuxParameters",
            json!({"tmpfs": [{"containerPath": "/t", "size": size}]}),
        )
    };
    edge(
        "containerDefinitions[0].linuxParameters.tmpfs[0].size",
        &size(1),
        &size(0),
    );
    let shared = |size: i64| container("linuxParameters", json!({"sharedMemorySize": size}));
    edge(
        "containerDefinitions[0].linuxParameters.sharedMemorySize",
        &shared(1),
        &shared(0),
    );
}

#[test]
fn mounts_have_edges() {
    let mount = |path: &str| {
        let volumes = with(good(), "/volumes", json!([{"name": "v"}]));
        with(
            volumes,
            "/containerDefinitions/0/mountPoints",
            json!([{"sourceVolume": "v", "containerPath": path}]),
        )
    };
    let long = |length: usize| format!("/{}", text(length - 1));
    let path = "containerDefinitions[0].mountPoints[0].containerPath";
    for (good, bad) in [
        (long(4_095), long(4_096)),
        ("/a/../..".replace("..", "b"), "/a/..".into()),
        ("/proc.d".into(), "/proc".into()),
        ("/data".into(), "/".into()),
        ("/data".into(), "/proc/sys".into()),
        ("/data".into(), "data".into()),
    ] {
        edge(path, &mount(&good), &mount(&bad));
    }
}

#[test]
fn what_is_inside_a_refused_field_is_not_refused_again() {
    use crate::definition::{
        schema::{Field, Shape, never, object, yes},
        shape,
    };
    const INNER: &[Field] = &[never("inner", Shape::Text, "for a reason")];
    const OUTER: &[Field] = &[
        never("refused", object(INNER), "as a whole"),
        yes("honoured", object(INNER)),
    ];
    let given = json!({"refused": {"inner": "x"}, "honoured": {"inner": "x"}});
    let mut problems = Problems::default();
    shape::object("", given.as_object().unwrap(), OUTER, true, &mut problems);
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("refused: ") && told[1].starts_with("honoured.inner: "),
        "{told:?}"
    );
}

#[test]
fn what_was_given_instead_is_named() {
    for (given, kind) in [
        (json!("1"), "a string"),
        (json!(true), "a boolean"),
        (json!({}), "an object"),
        (json!([1]), "an array"),
    ] {
        let told = problems(&container("memory", given));
        let expected = format!("containerDefinitions[0].memory: expected an integer, got {kind}");
        assert_eq!(told, [expected]);
    }
    let told = problems(&container("memory", json!(1.5)));
    assert_eq!(
        told,
        ["containerDefinitions[0].memory: expected an integer of 32 bits, got 1.5"]
    );
    let told = problems(&container("user", json!(1.5)));
    assert_eq!(
        told,
        ["containerDefinitions[0].user: expected a string, got a number with a fraction"]
    );
    let told = problems(&container("user", json!(7)));
    assert_eq!(
        told,
        ["containerDefinitions[0].user: expected a string, got an integer"]
    );
}

#[test]
fn sizes_of_tasks_have_edges() {
    let task = |name: &str, value: &str| with(good(), &format!("/{name}"), json!(value));
    edge("cpu", &task("cpu", "196608"), &task("cpu", "196609"));
    edge(
        "memory",
        &task("memory", "2147483647"),
        &task("memory", "2147483648"),
    );
    // What all containers have together is at most the task's.
    let units = |of_first: u32| container("cpu", json!(of_first));
    edge("cpu", &units(512 - 128), &units(512 - 127));
    edge(
        "containerDefinitions[0].memory",
        &container("memory", json!(1024)),
        &container("memory", json!(1025)),
    );
    // What is no text is told once.
    let constraint = json!([{"type": "memberOf", "expression": 5}]);
    let told = problems(&with(good(), "/placementConstraints", constraint));
    assert_eq!(
        told,
        ["placementConstraints[0].expression: expected a string, got an integer"]
    );
}

#[test]
fn options_of_a_memory_volume_are_of_its_mount() {
    for good in ["size=64m", "size=50%", "size=1", "noexec,mode=700", "ro,nosuid"] {
        local_volume::parse("tmpfs", "tmpfs", good).unwrap();
    }
    for bad in [
        "size=0",
        "size=",
        "size=1mm",
        "size=m",
        "size=+1",
        "shared",
        "rprivate",
        "ro,unbindable",
        "bind",
    ] {
        assert!(local_volume::parse("tmpfs", "tmpfs", bad).is_err(), "{bad}");
    }
}

#[test]
fn environment_files_have_edges() {
    let file = |value: &str| container("environmentFiles", json!([{"type": "s3", "value": value}]));
    let url = |length: usize| format!("https://h/{}", text(length - "https://h/".len()));
    let key = |length: usize| format!("arn:aws:s3:::abc/{}.env", text(length - ".env".len()));
    let bucket = |length: usize| format!("arn:aws:s3:::{}/a.env", text(length));
    for (good, bad) in [
        (url(2_048), url(2_049)),
        (key(512), key(513)),
        (bucket(3), bucket(2)),
        (bucket(63), bucket(64)),
        (
            "arn:aws-cn:s3:::a.b-c/a.env".into(),
            "arn:aws-xx:s3:::abc/a.env".into(),
        ),
        (
            "arn:aws:s3:::abc/a b.env".into(),
            "arn:aws:s3:::abc/a\tb.env".into(),
        ),
        (key(8), "arn:aws:s3:::abc/a.txt".into()),
        (key(8), "arn:aws:s3:::Abc/a.env".into()),
        (
            format!("https://{}/", text(253)),
            format!("https://{}/", text(254)),
        ),
        ("https://h".into(), "https://".into()),
        ("https://h:65535/a?b=c".into(), "https://h:65536/".into()),
        ("https://h:1".into(), "https://h:0".into()),
        ("https://[::1]:8080/".into(), "https://[::g]/".into()),
        ("https://[::1]".into(), "https://[::1]x".into()),
        ("https://h:80".into(), "https://h:+80".into()),
        ("https://a_b.c/".into(), "https://a b/".into()),
        ("https://h/@".into(), "https://user@h/".into()),
        ("http://h/a".into(), "ftp://h/a".into()),
        ("http://h/a".into(), "http://h/a#b".into()),
    ] {
        edge(
            "containerDefinitions[0].environmentFiles[0].value",
            &file(&good),
            &file(&bad),
        );
    }
    let many = |count: usize| {
        let one = json!({"type": "s3", "value": "https://h/a.env"});
        container("environmentFiles", json!(vec![one; count]))
    };
    edge("containerDefinitions[0].environmentFiles", &many(10), &many(11));
    for (value, open) in [
        ("http://h/a", true),
        ("http://127.0.0.1:80/a", false),
        ("http://localhost?a", false),
        ("http://[::1]:80", false),
        ("http://127.0.0.1.example/a", true),
        ("https://h/a", false),
        ("arn:aws:s3:::abc/a.env", false),
    ] {
        assert_eq!(
            EnvironmentSource::parse(value).unwrap().is_open(),
            open,
            "{value}"
        );
    }
}

#[test]
fn what_is_no_number_of_gpus_is_told_once() {
    let path = "containerDefinitions[0].resourceRequirements[0].value";
    let gpus = |value: Value| container("resourceRequirements", json!([{"type": "GPU", "value": value}]));
    edge(path, &gpus(json!("1")), &gpus(json!(1)));
    edge(path, &gpus(json!("1")), &gpus(json!("0")));
}
