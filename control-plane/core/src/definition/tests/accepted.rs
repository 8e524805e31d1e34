use super::*;

#[test]
fn what_aws_would_echo() {
    let registered = accepted(&with(good(), "/tags", json!([{"key": "team", "value": "shop"}])));
    assert_eq!(registered.family, "web");
    assert_eq!(registered.tags.get("team").map(String::as_str), Some("shop"));
    assert_eq!(
        registered.definition,
        json!({
            "family": "web",
            "networkMode": "awsvpc",
            "cpu": "512",
            "memory": "1024",
            "containerDefinitions": [
                {
                    "name": "nginx",
                    "image": "127.0.0.1:5000/nginx:1.22",
                    "cpu": 0,
                    "memory": 256,
                    "essential": true,
                    "portMappings": [{"containerPort": 80, "hostPort": 80, "protocol": "tcp"}],
                    "dependsOn": [{"containerName": "redis", "condition": "START"}],
                    "environment": [],
                    "mountPoints": [],
                    "volumesFrom": [],
                    "systemControls": [],
                },
                {
                    "name": "redis",
                    "image": "redis",
                    "cpu": 128,
                    "essential": true,
                    "portMappings": [],
                    "environment": [],
                    "mountPoints": [],
                    "volumesFrom": [],
                    "systemControls": [],
                },
            ],
            "volumes": [],
            "placementConstraints": [],
            "compatibilities": ["EC2", "FARGATE"],
            "requiresAttributes": [
                {"name": "ecs.capability.container-ordering"},
                {"name": "ecs.capability.task-cpu-mem-limit"},
                {"name": "ecs.capability.task-eni"},
            ],
        })
    );
}

#[test]
fn sizes_become_strings_of_integers() {
    let definition = with(with(good(), "/cpu", json!(".5 vCPU")), "/memory", json!("2 GB"));
    let echo = accepted(&definition).definition;
    assert_eq!((&echo["cpu"], &echo["memory"]), (&json!("512"), &json!("2048")));
}

#[test]
fn roles_are_kept_as_they_were_given() {
    let given = with(
        good(),
        "/taskRoleArn",
        json!("arn:aws:iam::123456789012:role/web"),
    );
    let echo = accepted(&with(given, "/executionRoleArn", json!("pull"))).definition;
    assert_eq!(echo["taskRoleArn"], "arn:aws:iam::123456789012:role/web");
    assert_eq!(echo["executionRoleArn"], "pull");
    let attributes = echo["requiresAttributes"].as_array().unwrap();
    assert!(attributes.contains(&json!({"name": "com.amazonaws.ecs.capability.task-iam-role"})));
    // What templates leave where no role was filled in.
    let none = with(
        with(good(), "/taskRoleArn", json!("")),
        "/executionRoleArn",
        json!(""),
    );
    assert_eq!(accepted(&none).definition, accepted(&good()).definition);
}

#[test]
fn null_and_the_empty_list_are_absent_everywhere() {
    let plain = accepted(&good()).definition;
    for pointer in [
        "/taskRoleArn",
        "/volumes",
        "/tags",
        "/pidMode",
        "/proxyConfiguration",
        "/inferenceAccelerators",
        "/placementConstraints",
        "/containerDefinitions/0/secrets",
        "/containerDefinitions/0/mountPoints",
        "/containerDefinitions/0/healthCheck",
        "/containerDefinitions/0/command",
        "/containerDefinitions/0/ulimits",
        "/containerDefinitions/0/stopTimeout",
        "/containerDefinitions/0/portMappings/0/hostPort",
    ] {
        assert_eq!(
            accepted(&with(good(), pointer, Value::Null)).definition,
            plain,
            "{pointer}"
        );
    }
    for pointer in [
        "/volumes",
        "/containerDefinitions/0/links",
        "/containerDefinitions/0/environmentFiles",
    ] {
        assert_eq!(
            accepted(&with(good(), pointer, json!([]))).definition,
            plain,
            "{pointer}"
        );
    }
}

#[test]
fn a_flag_that_is_off_asks_for_nothing() {
    for enabled in [false, true] {
        let init = container("linuxParameters", json!({"initProcessEnabled": enabled}));
        let found = accepted(&init).definition;
        let echo = &found["containerDefinitions"][0]["linuxParameters"];
        assert_eq!(echo["initProcessEnabled"], enabled);
        assert!(
            found["compatibilities"].to_string().contains("FARGATE"),
            "{found}"
        );
    }
}

#[test]
fn every_field_that_is_honoured_is_kept_as_it_was_given() {
    for (name, value) in [
        ("command", json!(["nginx", "-g", "daemon off;"])),
        ("entryPoint", json!(["/bin/sh", "-c"])),
        (
            "environment",
            json!([{"name": "B", "value": "2"}, {"name": "A", "value": ""}, {"name": "C"}]),
        ),
        ("workingDirectory", json!("/srv")),
        ("user", json!("1000:www-data")),
        ("cpu", json!(10)),
        ("memory", json!(6)),
        ("memoryReservation", json!(256)),
        ("essential", json!(true)),
        ("stopTimeout", json!(1)),
        ("startTimeout", json!(86_400)),
        ("dockerLabels", json!({"com.example/x": "1"})),
        ("dockerLabels", json!({})),
        ("readonlyRootFilesystem", json!(true)),
        ("pseudoTerminal", json!(true)),
        ("interactive", json!(true)),
        ("restartPolicy", json!({"enabled": false})),
        (
            "restartPolicy",
            json!({"enabled": true, "ignoredExitCodes": [0, 255], "restartAttemptPeriod": 60}),
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "restartAttemptPeriod": 1800}),
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "ignoredExitCodes": vec![1; 50]}),
        ),
        (
            "ulimits",
            json!([{"name": "nofile", "softLimit": 1024, "hardLimit": -1}]),
        ),
        ("logConfiguration", json!({"logDriver": "json-file"})),
        (
            "logConfiguration",
            json!({"logDriver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}),
        ),
        (
            "logConfiguration",
            json!({"logDriver": "json-file", "options": {"mode": "non-blocking", "max-buffer-size": "4m"}}),
        ),
        ("image", json!("public.ecr.aws/x/y@sha256:0123456789abcdef")),
    ] {
        let echo = accepted(&container(name, value.clone())).definition;
        assert_eq!(echo["containerDefinitions"][0][name], value, "{name}");
    }
    let port = json!([{"containerPort": 53, "hostPort": 53, "protocol": "udp", "name": "dns", "appProtocol": "grpc"}]);
    let echo = accepted(&container("portMappings", port.clone())).definition;
    assert_eq!(echo["containerDefinitions"][0]["portMappings"], port);
}

#[test]
fn task_fields_that_are_honoured_are_kept() {
    for (name, value) in [
        (
            "runtimePlatform",
            json!({"cpuArchitecture": "ARM64", "operatingSystemFamily": "LINUX"}),
        ),
        (
            "placementConstraints",
            json!([{"type": "memberOf", "expression": "attribute:rack == 7"}]),
        ),
        ("requiresCompatibilities", json!(["EC2", "FARGATE", "EXTERNAL"])),
    ] {
        assert_eq!(
            accepted(&with(good(), &format!("/{name}"), value.clone())).definition[name],
            value
        );
    }
}

#[test]
fn compatibilities_follow_from_mode_and_size() {
    let small = |mode: &str| {
        with(
            without(without(good(), "/cpu"), "/memory"),
            "/networkMode",
            json!(mode),
        )
    };
    let sized = |definition: Value| {
        with(
            with(definition, "/containerDefinitions/0/memory", json!(64)),
            "/containerDefinitions/1/memory",
            json!(64),
        )
    };
    let portless = |definition: Value| with(definition, "/containerDefinitions/0/portMappings", json!([]));
    for (definition, expected) in [
        (good(), json!(["EC2", "FARGATE"])),
        (sized(small("awsvpc")), json!(["EC2"])),
        (
            with(
                sized(small("awsvpc")),
                "/requiresCompatibilities",
                json!(["EXTERNAL"]),
            ),
            json!(["EXTERNAL", "EC2"]),
        ),
        (sized(small("host")), json!(["EXTERNAL", "EC2"])),
        (portless(sized(small("none"))), json!(["EXTERNAL", "EC2"])),
    ] {
        assert_eq!(
            accepted(&definition).definition["compatibilities"],
            expected,
            "{definition}"
        );
    }
}

#[test]
fn bridge_has_ports_of_the_host_and_is_what_is_meant_where_no_mode_is_given() {
    let ports = json!([
        {"containerPort": 80},
        {"containerPort": 80, "hostPort": 8080},
        {"containerPortRange": "90-99", "protocol": "udp"},
    ]);
    let both = with(
        container("portMappings", ports),
        "/containerDefinitions/1/portMappings",
        json!([{"containerPort": 80, "hostPort": 81}]),
    );
    let named = accepted(&with(both.clone(), "/networkMode", json!("bridge"))).definition;
    assert_eq!(
        named["containerDefinitions"][0]["portMappings"],
        json!([
            {"containerPort": 80, "hostPort": 0, "protocol": "tcp"},
            {"containerPort": 80, "hostPort": 8080, "protocol": "tcp"},
            {"containerPortRange": "90-99", "protocol": "udp"},
        ])
    );
    assert_eq!(named["compatibilities"], json!(["EXTERNAL", "EC2"]));
    // Nothing is invented.
    let absent = accepted(&without(both, "/networkMode")).definition;
    assert_eq!(absent, without(named, "/networkMode"));
}

#[test]
fn one_port_number_serves_tcp_and_udp() {
    let ports = json!([{"containerPort": 53}, {"containerPort": 53, "protocol": "udp"}]);
    accepted(&container("portMappings", ports));
}

#[test]
fn a_described_definition_can_be_registered() {
    let described = json!({
        "taskDefinitionArn": "arn:aws:ecs:eu-north-1:123456789012:task-definition/web:3",
        "revision": 3,
        "status": "INACTIVE",
        "registeredAt": 1_763_719_577.123,
        "registeredBy": "arn:aws:iam::123456789012:root",
        "requiresAttributes": [{"name": "x"}],
        "compatibilities": ["EC2"],
    });
    let mut definition = good();
    definition
        .as_object_mut()
        .unwrap()
        .extend(described.as_object().unwrap().clone());
    assert_eq!(accepted(&definition), accepted(&good()));
}

#[test]
fn an_init_container_may_be_waited_for() {
    for condition in ["COMPLETE", "SUCCESS"] {
        let definition = with(good(), "/containerDefinitions/1/essential", json!(false));
        accepted(&with(
            definition,
            "/containerDefinitions/0/dependsOn/0/condition",
            json!(condition),
        ));
    }
}

#[test]
fn soft_limits_count_against_the_task_where_they_are_given() {
    // Hard limits together above the task's are allowed: the task's own limit holds.
    let definition = container("memory", json!(1024));
    let definition = with(
        definition,
        "/containerDefinitions/0/memoryReservation",
        json!(512),
    );
    let definition = with(definition, "/containerDefinitions/1/memory", json!(512));
    accepted(&definition);
}
