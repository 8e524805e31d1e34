//! What RunTask and StartTask may change.

use proptest::prelude::*;

use super::*;

fn applied(definition: &Value, overrides: &Value) -> Overridden {
    let registered = accepted(definition).definition;
    override_definition(&registered, overrides).unwrap_or_else(|problems| panic!("{overrides}: {problems}"))
}

#[track_caller]
fn refused(definition: &Value, overrides: &Value, expected: &[&str]) {
    let registered = accepted(definition).definition;
    let problems = override_definition(&registered, overrides).unwrap_err();
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(said, expected, "{overrides}");
}

fn one(field: &str, value: Value) -> Value {
    json!({"containerOverrides": [{"name": "nginx", field: value}]})
}

#[test]
fn what_is_overridden_replaces_what_was_registered() {
    let given = container(
        "environment",
        json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),
    );
    let given = with(given, "/containerDefinitions/0/command", json!(["serve"]));
    let overrides = json!({
        "cpu": "1 vCPU",
        "memory": "2 GB",
        "taskRoleArn": "arn:aws:iam::123456789012:role/job",
        "executionRoleArn": "pull",
        "containerOverrides": [{
            "name": "nginx",
            "command": ["migrate", "--all"],
            "environment": [{"name": "A", "value": "9"}, {"name": "C"}],
            "cpu": 7,
            "memory": 99,
            "memoryReservation": 98,
        }],
    });
    let Overridden { definition, echo } = applied(&given, &overrides);
    let mut expected = accepted(&given).definition;
    expected["cpu"] = json!("1024");
    expected["memory"] = json!("2048");
    expected["taskRoleArn"] = json!("arn:aws:iam::123456789012:role/job");
    expected["executionRoleArn"] = json!("pull");
    let nginx = &mut expected["containerDefinitions"][0];
    nginx["command"] = json!(["migrate", "--all"]);
    // The override's come last, and what they replace is gone.
    nginx["environment"] = json!([{"name": "B", "value": "2"}, {"name": "A", "value": "9"}, {"name": "C"}]);
    nginx["cpu"] = json!(7);
    nginx["memory"] = json!(99);
    nginx["memoryReservation"] = json!(98);
    let attributes = expected["requiresAttributes"].as_array_mut().unwrap();
    attributes.insert(0, json!({"name": "com.amazonaws.ecs.capability.task-iam-role"}));
    assert_eq!(definition, expected);
    // As asked for, and every container by name.
    let mut asked = overrides;
    asked["containerOverrides"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "redis"}));
    asked["inferenceAcceleratorOverrides"] = json!([]);
    assert_eq!(echo, asked);
}

#[test]
fn environment_files_replace_those_of_the_definition() {
    let files = |value: &str| json!([{"type": "s3", "value": value}]);
    let given = container("environmentFiles", files("arn:aws:s3:::config/web.env"));
    let Overridden { definition, .. } = applied(&given, &one("environmentFiles", files("https://a/b")));
    assert_eq!(
        definition["containerDefinitions"][0]["environmentFiles"],
        files("https://a/b")
    );
    let Overridden { definition, .. } = applied(&good(), &one("environmentFiles", files("https://a/b")));
    assert_eq!(
        definition["containerDefinitions"][0]["environmentFiles"],
        files("https://a/b")
    );
    let at = "overrides.containerOverrides[0].environmentFiles";
    refused(
        &given,
        &one("environmentFiles", files("arn:aws:s3:::config/web")),
        &[&format!(
            "{at}[0].value: \"web\" does not end in .env: expected arn:aws:s3:::BUCKET/KEY.env"
        )],
    );
}

#[test]
fn what_says_nothing_changes_nothing() {
    let plain = json!({
        "containerOverrides": [{"name": "nginx"}, {"name": "redis"}], "inferenceAcceleratorOverrides": [],
    });
    for overrides in [
        json!({}),
        json!({"containerOverrides": [], "cpu": null}),
        json!({"containerOverrides": [{"name": "redis", "command": [], "environment": null}]}),
        json!({"taskRoleArn": "", "inferenceAcceleratorOverrides": []}),
    ] {
        let Overridden { definition, echo } = applied(&good(), &overrides);
        assert_eq!(definition, accepted(&good()).definition, "{overrides}");
        assert_eq!(echo, plain, "{overrides}");
    }
}

#[test]
fn a_definition_of_an_earlier_version_is_not_judged_anew() {
    let mut registered = accepted(&good()).definition;
    registered["containerDefinitions"][0]["memory"] = json!(1);
    let done = override_definition(&registered, &json!({"containerOverrides": [{"name": "nginx"}]})).unwrap();
    assert_eq!(done.definition, registered);
    assert!(override_definition(&registered, &json!({"cpu": "256"})).is_err());
}

#[test]
fn overrides_are_held_to_the_table() {
    let at = "overrides.containerOverrides[0]";
    for (overrides, expected) in [
        (json!([]), "overrides: expected an object".to_owned()),
        (json!({"colour": 1}), "overrides.colour: unknown field".to_owned()),
        (json!({"cpu": 512}), "overrides.cpu: expected a string, got an integer".to_owned()),
        (json!({"containerOverrides": [{"cpu": 1}]}), format!("{at}.name: required")),
        (
            json!({"containerOverrides": [{"name": "web"}]}),
            format!("{at}.name: no container is named \"web\""),
        ),
        (
            json!({"containerOverrides": [{"name": "nginx"}, {"name": "nginx", "cpu": 1}]}),
            "overrides.containerOverrides[1].name: \"nginx\" is overridden by containerOverrides[0] already".to_owned(),
        ),
        (one("image", json!("x")), format!("{at}.image: unknown field")),
        (one("command", json!("x")), format!("{at}.command: expected an array, got a string")),
        (
            one("environment", json!([{"name": "OK"}, {"name": "A=B"}])),
            format!("{at}.environment[1].name: \"A=B\" contains ="),
        ),
        (one("environment", json!([{"name": ""}])), format!("{at}.environment[0].name: is empty")),
        (
            json!({"inferenceAcceleratorOverrides": [{"deviceName": "a"}]}),
            "overrides.inferenceAcceleratorOverrides: not supported: AWS has ended Elastic Inference, and no other host \
             has its accelerators; leave it out"
                .to_owned(),
        ),
    ] {
        refused(&good(), &overrides, &[&expected]);
    }
}

#[test]
fn overrides_have_the_bounds_of_definitions() {
    let at = "overrides.containerOverrides[0]";
    for (overrides, expected) in [
        (json!({"cpu": "200000"}), "overrides.cpu: 200000 is above the maximum of 196608 CPU units".to_owned()),
        (
            json!({"memory": "big"}),
            "overrides.memory: \"big\" is not a size: expected MiB, or GB as in \"2 GB\"".to_owned(),
        ),
        (one("memory", json!(5)), format!("{at}.memory: 5 is below the minimum of 6 MiB")),
        (one("memory", json!(4096)), format!("{at}.memory: 4096 MiB is more than the task's 1024 MiB")),
        (one("cpu", json!(-1)), format!("{at}.cpu: -1 is below the minimum of 0 CPU units")),
        (
            json!({"taskRoleArn": "a b"}),
            "overrides.taskRoleArn: \"a b\" is not a role: expected arn:aws:iam::ACCOUNT:role/NAME with an account of 12 \
             digits, or the role's name"
                .to_owned(),
        ),
        // What the override brings about elsewhere names the place in the definition.
        (
            one("memoryReservation", json!(300)),
            "overrides: containerDefinitions[0].memory: 256 MiB is less than the memoryReservation of 300 MiB".to_owned(),
        ),
        (
            one("cpu", json!(500)),
            "overrides: cpu: the containers have 628 CPU units together, the task has 512".to_owned(),
        ),
        (
            json!({"cpu": "128", "containerOverrides": [{"name": "nginx", "cpu": 500}]}),
            "overrides.cpu: the containers have 628 CPU units together, the task has 128".to_owned(),
        ),
        (
            json!({"memory": "128"}),
            "overrides: containerDefinitions[0].memory: 256 MiB is more than the task's 128 MiB".to_owned(),
        ),
    ] {
        refused(&good(), &overrides, &[&expected]);
    }
}

#[test]
fn fargate_keeps_its_sizes() {
    let fargate = with(good(), "/requiresCompatibilities", json!(["FARGATE"]));
    let overrides = json!({"cpu": "300", "memory": "1024"});
    let sizes = "256, 512, 1024, 2048, 4096, 8192, 16384";
    refused(
        &fargate,
        &overrides,
        &[&format!(
            "overrides.cpu: 300 is not a size of FARGATE: use one of {sizes}"
        )],
    );
    assert_eq!(
        applied(&good(), &overrides).definition["compatibilities"],
        json!(["EC2"])
    );
    let larger = json!({"cpu": "1024", "memory": "2048"});
    assert_eq!(
        applied(&fargate, &larger).definition["compatibilities"],
        json!(["EC2", "FARGATE"])
    );
}

#[test]
fn all_problems_are_told_at_once_and_each_once() {
    let overrides = json!({
        "cpu": 1, "memory": "?",
        "containerOverrides": [{"name": "nginx", "memory": 1, "colour": 2}, {"name": "web"}],
    });
    let memory = "overrides.memory: \"?\" is not a size: expected MiB, or GB as in \"2 GB\"";
    refused(
        &good(),
        &overrides,
        &[
            "overrides.containerOverrides[0].colour: unknown field",
            "overrides.cpu: expected a string, got an integer",
            "overrides.containerOverrides[1].name: no container is named \"web\"",
            memory,
            "overrides.containerOverrides[0].memory: 1 is below the minimum of 6 MiB",
        ],
    );
}

#[test]
fn overrides_have_a_size() {
    let of_length = |n: usize| one("command", json!(["é".repeat(n)]));
    let around = of_length(0).to_string().chars().count();
    applied(&good(), &of_length(OVERRIDES_CHARS_MAX - around));
    refused(
        &good(),
        &of_length(OVERRIDES_CHARS_MAX - around + 1),
        &["overrides: 8193 characters as JSON, the limit is 8192"],
    );
    // They do not count as part of the definition, which may be as large as it may be.
    let rest = accepted(&container("command", json!([""]))).definition;
    let rest =
        serde_json::to_string(&without(without(rest, "/compatibilities"), "/requiresAttributes")).unwrap();
    let largest = container("command", json!(["x".repeat(DEFINITION_BYTES_MAX - rest.len())]));
    applied(
        &largest,
        &one("environment", json!([{"name": "A", "value": "x".repeat(8000)}])),
    );
}

proptest! {
    #[test]
    fn any_overrides_give_a_definition_or_problems(
        field in prop::sample::select(vec!["cpu", "memory", "taskRoleArn", "containerOverrides", "x"]),
        value in super::laws::any_json(),
        inner in prop::sample::select(vec!["name", "command", "environment", "cpu", "memory", "environmentFiles"]),
        inner_value in super::laws::any_json(),
    ) {
        let registered = accepted(&good()).definition;
        let one = json!({"name": "nginx", inner: inner_value});
        for overrides in [json!({field: value}), json!({"containerOverrides": [one]})] {
            match override_definition(&registered, &overrides) {
                Ok(done) => prop_assert!(crate::task::Definition::from_echo(&done.definition).is_ok()),
                Err(problems) => {
                    prop_assert!(!problems.is_empty());
                    prop_assert!(problems.iter().all(|p| p.path.starts_with("overrides")), "{}", problems);
                }
            }
        }
    }
}
