use super::*;

#[track_caller]
fn only(input: &Value, problem: &str) {
    assert_eq!(problems(input), [problem], "{input}");
}

#[test]
fn unknown_and_unsupported_fields_are_told_apart() {
    for (name, value, says) in [
        (
            "memmory",
            json!(3),
            "containerDefinitions[0].memmory: unknown field (did you mean memory?)",
        ),
        (
            "healthcheck",
            json!({}),
            "containerDefinitions[0].healthcheck: unknown field (did you mean healthCheck?)",
        ),
        (
            "replicas",
            json!(3),
            "containerDefinitions[0].replicas: unknown field",
        ),
        ("a.b", json!(3), "containerDefinitions[0][\"a.b\"]: unknown field"),
        (
            "links",
            json!(["x"]),
            "containerDefinitions[0].links: not supported yet; leave it out: let the containers reach one another at \
             127.0.0.1, in mode awsvpc, or by a port of the host",
        ),
    ] {
        only(&container(name, value), says);
    }
    only(
        &with(good(), "/ephemeralStorage", json!({"sizeInGiB": 20})),
        "ephemeralStorage.sizeInGiB: 20 is below the minimum of 21 GiB",
    );
    only(
        &with(good(), "/ephemeralStorage", json!({"sizeInGiB": 201})),
        "ephemeralStorage.sizeInGiB: 201 is above the maximum of 200 GiB",
    );
    only(
        &with(good(), "/netwrokMode", json!("host")),
        "netwrokMode: unknown field (did you mean networkMode?)",
    );
}

#[test]
fn what_is_never_supported_says_why() {
    for (name, value, says) in [
        (
            "/proxyConfiguration",
            json!({"containerName": "envoy"}),
            "proxyConfiguration: not supported: nodes set up no App Mesh proxy",
        ),
        (
            "/inferenceAccelerators",
            json!([{"deviceName": "d", "deviceType": "eia2.medium"}]),
            "inferenceAccelerators: not supported: AWS has ended Elastic Inference",
        ),
        (
            "/enableFaultInjection",
            json!(true),
            "enableFaultInjection: not supported: nodes serve no endpoint",
        ),
        (
            "/trustedExecutionConfiguration",
            json!({"isolationMode": "SHARED"}),
            "trustedExecutionConfiguration: not supported: nodes have no sandbox that can be attested",
        ),
        (
            "/containerDefinitions/0/credentialSpecs",
            json!(["credentialspec:arn:aws:s3:::b/k"]),
            "containerDefinitions[0].credentialSpecs: not supported: they name accounts of an Active Directory domain",
        ),
    ] {
        let found = problems(&with(good(), name, value));
        assert!(found.len() == 1 && found[0].starts_with(says), "{found:?}");
    }
}

#[test]
fn what_asks_for_nothing_is_accepted_of_any_field() {
    for (name, value) in [
        ("/enableFaultInjection", json!(false)),
        ("/proxyConfiguration", json!(null)),
        ("/inferenceAccelerators", json!([])),
        ("/containerDefinitions/0/credentialSpecs", json!([])),
        ("/containerDefinitions/0/links", json!(null)),
    ] {
        accepted(&with(good(), name, value));
    }
}

#[test]
fn a_field_that_is_not_supported_is_still_looked_into() {
    let proxy = json!({"containername": "x", "properties": [{"name": 5}]});
    let found = problems(&with(good(), "/proxyConfiguration", proxy));
    assert!(
        found[0].starts_with("proxyConfiguration: not supported: "),
        "{found:?}"
    );
    assert_eq!(
        found[1..],
        [
            "proxyConfiguration.containername: unknown field (did you mean containerName?)",
            "proxyConfiguration.containerName: required",
            "proxyConfiguration.properties[0].name: expected a string, got an integer",
        ]
    );
}

#[test]
fn wrong_types_are_named() {
    for (name, value, says) in [
        (
            "memory",
            json!("256"),
            "memory: expected an integer, got a string",
        ),
        (
            "memory",
            json!(1.5),
            "memory: expected an integer of 32 bits, got 1.5",
        ),
        (
            "memory",
            json!(4_294_967_296_i64),
            "memory: expected an integer of 32 bits, got 4294967296",
        ),
        (
            "essential",
            json!("true"),
            "essential: expected true or false, got a string",
        ),
        (
            "command",
            json!("nginx"),
            "command: expected an array, got a string",
        ),
        (
            "command",
            json!([null]),
            "command[0]: expected a string, got null",
        ),
        (
            "environment",
            json!({"A": "1"}),
            "environment: expected an array, got an object",
        ),
        (
            "environment",
            json!(["A=1"]),
            "environment[0]: expected an object, got a string",
        ),
        (
            "dockerLabels",
            json!({"a": 1}),
            "dockerLabels.a: expected a string, got an integer",
        ),
        ("command", json!(["a\0b"]), "command[0]: contains a NUL character"),
        ("image", json!(null), "image: required"),
    ] {
        only(
            &container(name, value),
            &format!("containerDefinitions[0].{says}"),
        );
    }
    only(
        &with(good(), "/cpu", json!(256)),
        "cpu: expected a string, got an integer",
    );
    only(&json!([]), "expected an object, got an array");
    assert_eq!(problems(&json!({})).len(), 2); // family, containerDefinitions
}

#[test]
fn bad_choices_list_the_good_ones() {
    only(
        &with(good(), "/networkMode", json!("brigde")),
        "networkMode: expected one of awsvpc, bridge, host, none; got \"brigde\"",
    );
    only(
        &with(good(), "/requiresCompatibilities", json!(["ec2"])),
        "requiresCompatibilities[0]: expected one of EC2, FARGATE, EXTERNAL; got \"ec2\"",
    );
    only(
        &with(good(), "/requiresCompatibilities", json!(["MANAGED_INSTANCES"])),
        "requiresCompatibilities[0]: MANAGED_INSTANCES: not supported: tasks run on the cluster's own nodes; use EC2, FARGATE or EXTERNAL",
    );
    only(
        &container(
            "logConfiguration",
            json!({"logDriver": "awsfirelens", "options": {"Name": "x"}}),
        ),
        "containerDefinitions[0].logConfiguration.logDriver: awsfirelens: not supported yet; a log router that \
         nobody configures may exit and take its task down; use json-file",
    );
    only(
        &with(
            good(),
            "/runtimePlatform",
            json!({"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"}),
        ),
        "runtimePlatform.operatingSystemFamily: WINDOWS_SERVER_2022_CORE: not supported: nodes run LINUX; build the image for it",
    );
}

#[test]
fn fargate_needs_awsvpc_to_be_named() {
    let fargate = with(good(), "/requiresCompatibilities", json!(["FARGATE"]));
    only(
        &without(fargate.clone(), "/networkMode"),
        "networkMode: FARGATE needs awsvpc, and where none is given ECS has bridge",
    );
    only(
        &with(fargate, "/networkMode", json!("bridge")),
        "networkMode: FARGATE needs awsvpc, got bridge",
    );
}

#[test]
fn ranges_of_ports_must_agree() {
    let ports =
        |mode: &str, ports: Value| with(container("portMappings", ports), "/networkMode", json!(mode));
    let range = |range: &str| json!([{"containerPortRange": range}]);
    for (definition, says) in [
        (
            ports("bridge", range("80")),
            "[0].containerPortRange: \"80\" is not a range: FIRST-LAST, of 1 to 65535",
        ),
        (
            ports("awsvpc", range("90-80")),
            "[0].containerPortRange: \"90-80\" is not a range: FIRST-LAST, of 1 to 65535",
        ),
        (
            ports("host", range("80-90")),
            "[0].containerPortRange: ECS has it in bridge and awsvpc, not in host",
        ),
        (
            ports("bridge", json!([{"containerPortRange": "80-90", "hostPort": 80}])),
            "[0].containerPortRange: leave hostPort out: the range says it",
        ),
        (
            ports(
                "awsvpc",
                json!([{"containerPortRange": "80-90"}, {"containerPort": 85}]),
            ),
            "[1].containerPort: 85/tcp is taken by containerDefinitions[0].portMappings[0] already",
        ),
        (
            ports("bridge", json!([{"containerPort": 80, "hostPort": 70_000}])),
            "[0].hostPort: 70000 is not a port: expected 0, for any, to 65535",
        ),
        (
            ports(
                "bridge",
                json!([{"containerPort": 80, "hostPort": 90}, {"containerPort": 81, "hostPort": 90}]),
            ),
            "[1].hostPort: host port 90/tcp is taken by containerDefinitions[0].portMappings[0] already",
        ),
    ] {
        only(
            &definition,
            &format!("containerDefinitions[0].portMappings{says}"),
        );
    }
    only(
        &ports("bridge", range("1000-2000")),
        "containerDefinitions: 1001 ports in all, the limit is 1000",
    );
}

#[test]
fn task_sizes_have_bounds() {
    for (pointer, value, says) in [
        ("/cpu", "127", "cpu: 127 is below the minimum of 128 CPU units"),
        (
            "/cpu",
            "200000",
            "cpu: 200000 is above the maximum of 196608 CPU units",
        ),
        (
            "/cpu",
            "many",
            "cpu: \"many\" is not a size: expected CPU units, or vCPUs as in \"1 vCPU\"",
        ),
        (
            "/memory",
            "1 TB",
            "memory: \"1 TB\" is not a size: expected MiB, or GB as in \"2 GB\"",
        ),
        (
            "/memory",
            "9999999999",
            "memory: 9999999999 is above the maximum of 2147483647 MiB",
        ),
    ] {
        let definition = without(
            without(good(), "/containerDefinitions/1/cpu"),
            "/containerDefinitions/0/memory",
        );
        only(&with(definition, pointer, json!(value)), says);
    }
}

#[test]
fn fargate_has_its_own_rules() {
    let fargate = || with(good(), "/requiresCompatibilities", json!(["FARGATE"]));
    accepted(&fargate());
    let odd = "memory: 1536 MiB does not go with cpu 512 in FARGATE: use 1024 to 4096 in steps of 1024";
    for (definition, says) in [
        (
            with(fargate(), "/networkMode", json!("host")),
            "networkMode: FARGATE needs awsvpc, got host",
        ),
        (without(fargate(), "/cpu"), "cpu: required by FARGATE"),
        (without(fargate(), "/memory"), "memory: required by FARGATE"),
        (
            with(fargate(), "/cpu", json!("300")),
            "cpu: 300 is not a size of FARGATE: use one of 256, 512, 1024, 2048, 4096, 8192, 16384",
        ),
        (with(fargate(), "/memory", json!("1536")), odd),
        (
            with(fargate(), "/containerDefinitions/0/stopTimeout", json!(121)),
            "containerDefinitions[0].stopTimeout: 121 is above the maximum of 120 s",
        ),
    ] {
        assert!(
            problems(&definition).contains(&says.to_string()),
            "{says}: {:?}",
            problems(&definition)
        );
    }
}

#[test]
fn container_values_have_bounds() {
    for (name, value, says) in [
        (
            "name",
            json!("a b"),
            "name: \"a b\" is not a name: 1 to 255 of A-Z a-z 0-9 - _",
        ),
        (
            "image",
            json!("nginx latest"),
            "image: \"nginx latest\" is not an image reference: 1 to 255 letters, digits and - _ : . / # @ +",
        ),
        ("memory", json!(3), "memory: 3 is below the minimum of 6 MiB"),
        (
            "memoryReservation",
            json!(5),
            "memoryReservation: 5 is below the minimum of 6 MiB",
        ),
        (
            "memoryReservation",
            json!(300),
            "memory: 256 MiB is less than the memoryReservation of 300 MiB",
        ),
        (
            "memory",
            json!(2048),
            "memory: 2048 MiB is more than the task's 1024 MiB",
        ),
        ("cpu", json!(-1), "cpu: -1 is below the minimum of 0 CPU units"),
        (
            "stopTimeout",
            json!(0),
            "stopTimeout: 0 is below the minimum of 1 s",
        ),
        (
            "startTimeout",
            json!(86_401),
            "startTimeout: 86401 is above the maximum of 86400 s",
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "restartAttemptPeriod": 59}),
            "restartPolicy.restartAttemptPeriod: 59 is below the minimum of 60 s",
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "restartAttemptPeriod": 1801}),
            "restartPolicy.restartAttemptPeriod: 1801 is above the maximum of 1800 s",
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "ignoredExitCodes": [0, -1]}),
            "restartPolicy.ignoredExitCodes[1]: -1 is not an exit code: expected 0 to 255",
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "ignoredExitCodes": vec![256; 1]}),
            "restartPolicy.ignoredExitCodes[0]: 256 is not an exit code: expected 0 to 255",
        ),
        (
            "restartPolicy",
            json!({"enabled": true, "ignoredExitCodes": vec![1; 51]}),
            "restartPolicy.ignoredExitCodes: 51 exit codes, the limit is 50",
        ),
        (
            "workingDirectory",
            json!("srv"),
            "workingDirectory: \"srv\" is not an absolute path",
        ),
        (
            "user",
            json!("a:b:c"),
            "user: \"a:b:c\" is not a user: expected user, user:group, uid or uid:gid",
        ),
        (
            "environment",
            json!([{"name": ""}]),
            "environment[0].name: is empty",
        ),
        (
            "environment",
            json!([{"name": "A=B"}]),
            "environment[0].name: \"A=B\" contains =",
        ),
        (
            "environment",
            json!([{"value": "1"}]),
            "environment[0].name: required",
        ),
        (
            "dockerLabels",
            json!({"": "x"}),
            "dockerLabels: a label without a name",
        ),
        (
            "ulimits",
            json!([{"name": "nofile", "softLimit": 2, "hardLimit": 1}]),
            "ulimits[0].softLimit: 2 is above the hardLimit of 1",
        ),
        (
            "ulimits",
            json!([{"name": "nofile", "softLimit": -1, "hardLimit": 1}]),
            "ulimits[0].softLimit: -1 is above the hardLimit of 1",
        ),
        (
            "ulimits",
            json!([{"name": "core", "softLimit": -2, "hardLimit": 1}]),
            "ulimits[0].softLimit: -2 is below the minimum of -1, unlimited",
        ),
        (
            "ulimits",
            json!([{"name": "core", "softLimit": 0, "hardLimit": 0}, {"name": "core", "softLimit": 1, "hardLimit": 1}]),
            "ulimits[1].name: core is set twice",
        ),
    ] {
        only(
            &container(name, value),
            &format!("containerDefinitions[0].{says}"),
        );
    }
    only(
        &with(good(), "/family", json!("web/1")),
        "family: \"web/1\" is not a name: 1 to 255 of A-Z a-z 0-9 - _",
    );
}

#[test]
fn roles_are_arns_or_names() {
    let expected = "expected arn:aws:iam::ACCOUNT:role/NAME with an account of 12 digits, or the role's name";
    for field in ["taskRoleArn", "executionRoleArn"] {
        only(
            &with(
                good(),
                &format!("/{field}"),
                json!("arn:aws:iam::XXXXXXXXXXXX:role/web"),
            ),
            &format!("{field}: \"arn:aws:iam::XXXXXXXXXXXX:role/web\" is not a role: {expected}"),
        );
    }
}

#[test]
fn containers_must_agree() {
    only(
        &with(good(), "/containerDefinitions/1/name", json!("nginx"))
            .tap(|d| without(d, "/containerDefinitions/0/dependsOn")),
        "containerDefinitions[1].name: \"nginx\" is the name of containerDefinitions[0] already",
    );
    let optional = with(
        container("essential", json!(false)),
        "/containerDefinitions/1/essential",
        json!(false),
    );
    only(
        &optional,
        "containerDefinitions: at least one container must be essential",
    );
    only(
        &with(good(), "/containerDefinitions/1/memoryReservation", json!(800)),
        "memory: the containers reserve 1056 MiB together, the task has 1024 MiB",
    );
    only(
        &with(good(), "/containerDefinitions/0/cpu", json!(400)),
        "cpu: the containers have 528 CPU units together, the task has 512",
    );
    only(
        &without(good(), "/memory"),
        "containerDefinitions[1].memory: memory or memoryReservation is required when the task has no memory",
    );
    let many = (0..11)
        .map(|n| json!({"name": format!("c{n}"), "image": "x"}))
        .collect::<Vec<_>>();
    only(
        &with(good(), "/containerDefinitions", json!(many)),
        "containerDefinitions: 11 containers, the limit is 10",
    );
    only(
        &with(good(), "/containerDefinitions", json!([])),
        "containerDefinitions: required",
    );
}

#[test]
fn ports_must_agree() {
    let ports = |ports: Value| container("portMappings", ports);
    for (definition, says) in [
        (ports(json!([{"hostPort": 80}])), "[0].containerPort: required"),
        (
            ports(json!([{"containerPort": 0}])),
            "[0].containerPort: 0 is not a port: expected 1 to 65535",
        ),
        (
            ports(json!([{"containerPort": 65_536}])),
            "[0].containerPort: 65536 is not a port: expected 1 to 65535",
        ),
        (
            ports(json!([{"containerPort": 80, "hostPort": 8080}])),
            "[0].hostPort: 8080 must be absent or equal to the containerPort 80 in mode awsvpc",
        ),
        (
            ports(json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "tcp"}])),
            "[1].containerPort: 80/tcp is taken by containerDefinitions[0].portMappings[0] already",
        ),
        (
            ports(json!([{"containerPort": 80, "name": "Web"}])),
            "[0].name: \"Web\" is not a port name: 1 to 64 of a-z 0-9 - _, not - first",
        ),
        (
            ports(json!([{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}])),
            "[1].name: \"a\" is the name of containerDefinitions[0].portMappings[0] already",
        ),
        (
            ports(json!([{"containerPort": 80, "protocol": "sctp"}])),
            "[0].protocol: expected one of tcp, udp; got \"sctp\"",
        ),
        (
            with(good(), "/networkMode", json!("none")),
            "[0]: networkMode none has no ports",
        ),
    ] {
        only(
            &definition,
            &format!("containerDefinitions[0].portMappings{says}"),
        );
    }
    // Containers of one task share its address: the port is taken for all of them.
    only(
        &with(
            good(),
            "/containerDefinitions/1/portMappings",
            json!([{"containerPort": 80}]),
        ),
        "containerDefinitions[1].portMappings[0].containerPort: 80/tcp is taken by \
         containerDefinitions[0].portMappings[0] already",
    );
}

#[test]
fn dependencies_must_name_containers_and_have_an_order() {
    let depends = |on: &str| container("dependsOn", json!([{"containerName": on, "condition": "START"}]));
    let at = "containerDefinitions[0].dependsOn";
    only(
        &depends("rediss"),
        &format!("{at}[0].containerName: no container is named \"rediss\" (did you mean redis?)"),
    );
    only(
        &depends("nginx"),
        &format!("{at}[0].containerName: a container cannot depend on itself"),
    );
    only(
        &with(
            good(),
            "/containerDefinitions/0/dependsOn/0/condition",
            json!("SUCCESS"),
        ),
        &format!(
            "{at}[0].condition: SUCCESS cannot be waited for: \"redis\" is essential and its end ends the task"
        ),
    );
    let back = json!([{"containerName": "nginx", "condition": "START"}]);
    only(
        &with(good(), "/containerDefinitions/1/dependsOn", back),
        &format!("{at}: the dependencies form a cycle: nginx -> redis -> nginx"),
    );
}

#[test]
fn log_options_are_refused_by_name() {
    for (name, value, says) in [
        (
            "max-size",
            "10x",
            "max-size: \"10x\" is not a size: expected bytes, 64k, 10m or 1g",
        ),
        (
            "max-size",
            "100",
            "max-size: 100 is below the minimum of 4096 bytes",
        ),
        (
            "max-size",
            "2000g",
            "max-size: 2000g is above the maximum of 1099511627776 bytes",
        ),
        ("max-file", "0", "max-file: \"0\" is not a number from 1 to 1000"),
        (
            "max-file",
            "+3",
            "max-file: \"+3\" is not a number from 1 to 1000",
        ),
        (
            "mode",
            "Blocking",
            "mode: expected one of blocking, non-blocking; got \"Blocking\"",
        ),
        (
            "max-buffer-size",
            "0",
            "max-buffer-size: 0 is below the minimum of 1 bytes",
        ),
        (
            "max-buffer-size",
            "257m",
            "max-buffer-size: 257m is above the maximum of 268435456 bytes",
        ),
        (
            "compress",
            "true",
            "compress: not supported: rotated files stay as they are, for those who read them; choose a smaller \
             max-size or max-file",
        ),
        (
            "env",
            "A",
            "env: not supported: it would write parts of the environment, which may be secret, into every line; use \
             labels",
        ),
        (
            "env-regex",
            "A",
            "env-regex: not supported: it would write parts of the environment, which may be secret, into every \
             line; use labels",
        ),
        (
            "labels-regex",
            "(",
            "labels-regex: \"(\" is not a regular expression",
        ),
        (
            "tag",
            "{{.DaemonName}}",
            "tag: \".DaemonName\" is not known here: expected a text, in which {{.ID}}, {{.FullID}}, {{.Name}} and \
             {{.ImageName}} stand for the container's",
        ),
        (
            "max-sise",
            "1m",
            "max-sise: unknown option of json-file (did you mean max-size?)",
        ),
    ] {
        let configuration = json!({"logDriver": "json-file", "options": {name: value}});
        let path = "containerDefinitions[0].logConfiguration.options";
        only(
            &container("logConfiguration", configuration),
            &format!("{path}.{says}"),
        );
    }
    let secret = json!({"logDriver": "json-file", "secretOptions": [{"name": "a", "valueFrom": "b"}]});
    only(
        &container("logConfiguration", secret),
        "containerDefinitions[0].logConfiguration.secretOptions: not supported yet; no log driver sends output \
         anywhere yet, so it needs no secret; leave it out",
    );
}

#[test]
fn placement_constraints_are_parsed_when_they_are_registered() {
    let constraint = |constraint: Value| with(good(), "/placementConstraints", json!([constraint]));
    for (definition, says) in [
        (
            constraint(json!({"type": "memberOf", "expression": "attribute:rack is 7"})),
            "[0].expression: column 16: expected an operator such as == or in, found \"is\"",
        ),
        (
            constraint(json!({"type": "memberOf"})),
            "[0].expression: required by memberOf",
        ),
        (
            constraint(json!({"type": "distinctInstance"})),
            "[0].type: expected one of memberOf; got \"distinctInstance\"",
        ),
    ] {
        assert!(
            problems(&definition).contains(&format!("placementConstraints{says}")),
            "{:?}",
            problems(&definition)
        );
    }
}

#[test]
fn a_definition_has_a_size() {
    let large = container("command", json!(["x".repeat(DEFINITION_BYTES_MAX)]));
    let found = problems(&large);
    assert!(
        found.len() == 1 && found[0].ends_with("bytes, the limit is 65536"),
        "{found:?}"
    );
}

#[test]
fn lists_and_maps_have_a_length() {
    let labels: serde_json::Map<String, Value> = (0..1_001).map(|n| (n.to_string(), json!(""))).collect();
    let at = "containerDefinitions[0]";
    only(
        &container("dockerLabels", Value::Object(labels)),
        &format!("{at}.dockerLabels: 1001 entries, the limit is 1000"),
    );
    only(
        &container("command", json!(vec!["x"; 1_001])),
        &format!("{at}.command: 1001 entries, the limit is 1000"),
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let input = json!({
        "family": "a b",
        "networkMode": "mesh",
        "tags": [{"key": "aws:x", "value": "1"}],
        "containerDefinitions": [
            {"name": "a", "image": "x", "memory": "64", "cpus": 1},
            {"name": "b", "image": "x", "memory": 3, "dependsOn": [{"containerName": "c", "condition": "START"}]},
        ],
    });
    assert_eq!(
        problems(&input),
        [
            "networkMode: expected one of awsvpc, bridge, host, none; got \"mesh\"",
            "containerDefinitions[0].cpus: unknown field (did you mean cpu?)",
            "containerDefinitions[0].memory: expected an integer, got a string",
            "family: \"a b\" is not a name: 1 to 255 of A-Z a-z 0-9 - _",
            "containerDefinitions[1].memory: 3 is below the minimum of 6 MiB",
            "containerDefinitions[1].dependsOn[0].containerName: no container is named \"c\"",
            "tags[0].key: \"aws:x\" starts with aws:, which is reserved",
        ]
    );
}

trait Tap: Sized {
    fn tap(self, change: impl FnOnce(Self) -> Self) -> Self {
        change(self)
    }
}
impl Tap for Value {}

#[test]
fn a_cycle_is_told_once_though_a_container_is_named_twice() {
    let start = |name: &str| json!({"containerName": name, "condition": "START"});
    let input = with(
        good(),
        "/containerDefinitions/0/dependsOn",
        json!([start("redis"), start("redis")]),
    );
    let input = with(
        input,
        "/containerDefinitions/1/dependsOn",
        json!([start("nginx")]),
    );
    assert_eq!(
        problems(&input),
        ["containerDefinitions[0].dependsOn: the dependencies form a cycle: nginx -> redis -> nginx"]
    );
}
