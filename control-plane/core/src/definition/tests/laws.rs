use proptest::prelude::*;

use super::*;

/// Any JSON, with names of fields among its keys, so that it gets past the first look.
pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-10_i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        prop::sample::select(vec![
            "web",
            "redis",
            "nginx",
            "awsvpc",
            "host",
            "none",
            "bridge",
            "tcp",
            "udp",
            "80-90",
            "START",
            "HEALTHY",
            "CMD-SHELL",
            "SUCCESS",
            "FARGATE",
            "512",
            "1 vCPU",
            "2 GB",
            "json-file",
            "10m",
            "memberOf",
            "attribute:a == b",
            "X86_64",
            "LINUX",
            "nofile",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any_key(), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    let known = prop::sample::select(vec![
        "family",
        "networkMode",
        "containerDefinitions",
        "cpu",
        "memory",
        "tags",
        "key",
        "value",
        "name",
        "image",
        "portMappings",
        "containerPort",
        "containerPortRange",
        "hostPort",
        "protocol",
        "dependsOn",
        "containerName",
        "condition",
        "essential",
        "environment",
        "ulimits",
        "softLimit",
        "hardLimit",
        "logConfiguration",
        "logDriver",
        "options",
        "max-size",
        "placementConstraints",
        "type",
        "expression",
        "requiresCompatibilities",
        "memoryReservation",
        "stopTimeout",
        "healthCheck",
        "interval",
        "retries",
    ]);
    prop_oneof![8 => known.prop_map(str::to_string), 1 => ".{0,8}"]
}

/// Where in a good definition something is replaced.
fn any_place() -> impl Strategy<Value = String> {
    prop::sample::select(vec![
        "/family",
        "/networkMode",
        "/cpu",
        "/memory",
        "/tags",
        "/requiresCompatibilities",
        "/placementConstraints",
        "/runtimePlatform",
        "/volumes",
        "/containerDefinitions",
        "/containerDefinitions/0",
        "/containerDefinitions/1",
        "/containerDefinitions/0/name",
        "/containerDefinitions/0/cpu",
        "/containerDefinitions/0/memory",
        "/containerDefinitions/0/environment",
        "/containerDefinitions/0/portMappings",
        "/containerDefinitions/0/ulimits",
        "/containerDefinitions/0/portMappings/0",
        "/containerDefinitions/0/dependsOn",
        "/containerDefinitions/1/dependsOn",
        "/containerDefinitions/0/logConfiguration",
        "/containerDefinitions/0/stopTimeout",
        "/containerDefinitions/1/user",
        "/containerDefinitions/0/dockerLabels",
        "/containerDefinitions/0/command",
        "/containerDefinitions/1/essential",
        "/containerDefinitions/1/healthCheck",
    ])
    .prop_map(str::to_string)
}

pub(super) fn registers_or_explains(input: &Value) -> Result<(), TestCaseError> {
    match register(input) {
        Ok(registered) => {
            let again = register(&registered.definition);
            prop_assert_eq!(again.map(|r| r.definition), Ok(registered.definition.clone()));
            let typed = crate::task::Definition::from_echo(&registered.definition);
            prop_assert!(typed.is_ok(), "{:?} of {}", typed, registered.definition);
        }
        Err(problems) => {
            prop_assert!(!problems.is_empty());
            let paths: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let mut unique = paths.clone();
            unique.dedup();
            prop_assert_eq!(paths, unique);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_json_gives_a_definition_or_problems(input in any_json()) {
        registers_or_explains(&input)?;
    }

    #[test]
    fn any_change_of_a_good_definition_gives_a_definition_or_problems(
        changes in prop::collection::vec((any_place(), any_json()), 1..3)
    ) {
        let mut input = good();
        for (place, value) in changes {
            let (parent, _) = place.rsplit_once('/').unwrap_or_default();
            let open = input.pointer(parent).is_some_and(|v| v.is_object() || v.is_array());
            input = if open { with(input, &place, value) } else { input };
        }
        registers_or_explains(&input)?;
    }

    #[test]
    fn registering_an_echo_changes_nothing(
        mode in prop::sample::select(vec!["awsvpc", "bridge", "host", "none"]),
        cpu in prop::option::of(prop::sample::select(vec!["256", ".5 vCPU", "2 vCPU", "1000"])),
        memory in prop::option::of(prop::sample::select(vec!["2 GB", "1024", "3000"])),
        external in any::<bool>(),
        containers in prop::collection::vec((any::<bool>(), 0..100_i64, 6..90_i64, any::<bool>(), any::<bool>()), 1..10),
    ) {
        let container = |(at, (essential, cpu, memory, port, log)): (usize, &(bool, i64, i64, bool, bool))| json!({
            "name": format!("c{at}"),
            "image": "x",
            "essential": if at == 0 { Value::Null } else { json!(essential) },
            "cpu": cpu,
            "memory": memory,
            "portMappings": if *port && mode != "none" { json!([{"containerPort": 1000 + at}]) } else { Value::Null },
            "logConfiguration": if *log { json!({"logDriver": "json-file"}) } else { Value::Null },
            "dependsOn": if at == 0 { json!([]) } else { json!([{"containerName": "c0", "condition": "START"}]) },
        });
        let input = json!({
            "family": "f",
            "networkMode": mode,
            "cpu": cpu,
            "memory": memory,
            "requiresCompatibilities": if external { json!(["EXTERNAL"]) } else { Value::Null },
            "containerDefinitions": containers.iter().enumerate().map(container).collect::<Vec<_>>(),
        });
        let too_much_cpu = containers.iter().map(|c| c.1).sum::<i64>() > 256 && cpu == Some("256")
            || containers.iter().map(|c| c.1).sum::<i64>() > 512 && cpu == Some(".5 vCPU");
        prop_assert_eq!(register(&input).is_ok(), !too_much_cpu, "{:?}", register(&input));
        registers_or_explains(&input)?;
    }
}
