//! RunTask and StartTask.

use berth_control_plane::model::Node;
use berth_proto::node::v1::{DesiredStatus, NetworkMode};
use serde_json::{Value, json};

use crate::world::{MIB, World, awsvpc, host, id_of, network};

fn run_body(definition: &str) -> Value {
    json!({"taskDefinition": definition, "networkConfiguration": network()})
}

/// `body` with one field set.
fn with(mut body: Value, field: &str, value: Value) -> Value {
    body[field] = value;
    body
}

#[tokio::test]
async fn a_task_is_placed_recorded_and_wanted_on_its_node() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let body = json!({
        "taskDefinition": "web", "networkConfiguration": network(), "startedBy": "me", "launchType": "FARGATE",
        "tags": [{"key": "team", "value": "a"}], "enableECSManagedTags": true,
    });
    let answer = world.ok("RunTask", body).await;
    assert_eq!(answer["failures"], json!([]));
    let task = &answer["tasks"][0];
    let id = id_of(task["taskArn"].as_str().unwrap());
    assert_eq!(
        task["taskArn"],
        format!("arn:aws:ecs:eu-central-1:123456789012:task/default/{id}")
    );
    assert_eq!(id_of(task["containerInstanceArn"].as_str().unwrap()), node);
    assert_eq!(
        (&task["lastStatus"], &task["desiredStatus"]),
        (&json!("PROVISIONING"), &json!("RUNNING"))
    );
    assert_eq!(
        (&task["launchType"], &task["startedBy"]),
        (&json!("FARGATE"), &json!("me"))
    );
    assert_eq!(
        (&task["cpu"], &task["memory"], &task["group"]),
        (&json!("256"), &json!("512"), &json!("family:web"))
    );
    assert_eq!(
        (&task["version"], &task["connectivity"]),
        (&json!(1), &json!("CONNECTED"))
    );
    assert!(task["createdAt"].is_f64() && task.get("startedAt").is_none());
    let tags = json!([{"key": "aws:ecs:clusterName", "value": "default"}, {"key": "team", "value": "a"}]);
    assert_eq!(task["tags"], tags);
    assert_eq!(task["attachments"][0]["type"], "ElasticNetworkInterface");
    assert_eq!(task["attachments"][0]["status"], "PRECREATED");
    assert_eq!(task["containers"].as_array().unwrap().len(), 2);
    assert_eq!(task["containers"][0]["lastStatus"], "PENDING");
    assert_eq!(task["overrides"]["containerOverrides"][0], json!({"name": "web"}));

    let spec = world.desired(&node, &id).await.unwrap();
    assert_eq!(spec.desired_status(), DesiredStatus::Running);
    assert_eq!(spec.network_mode(), NetworkMode::Awsvpc);
    assert_eq!(
        (spec.charged_cpu_units, spec.charged_memory_bytes),
        (256, 512 * MIB)
    );
    assert_eq!(spec.task_arn, task["taskArn"].as_str().unwrap());
    assert_eq!(spec.containers.len(), 2);
    assert_eq!(spec.containers[0].depends_on[0].container_name, "cache");
    let arn = task["containers"][0]["containerArn"].as_str().unwrap();
    assert_eq!(spec.containers[0].container_id, id_of(arn));
    let held = world.allocation(&node, &id).await.unwrap();
    assert_eq!(
        (held.cpu_units, held.memory_bytes, held.address, held.stopping),
        (256, 512 * MIB, true, false)
    );
    assert_eq!(held.group, "family:web");
}

#[tokio::test]
async fn what_fits_nowhere_fails_at_once_with_every_nodes_reason() {
    let (world, node) = World::with_node().await;
    let mut large = awsvpc("large");
    large["cpu"] = json!("4096");
    large["memory"] = json!("8192");
    world.register_as(large).await;
    let answer = world.ok("RunTask", run_body("large")).await;
    assert_eq!(answer["tasks"], json!([]));
    let failure = &answer["failures"][0];
    assert!(
        failure["reason"].as_str().unwrap().starts_with("RESOURCE:"),
        "{failure}"
    );
    assert!(
        failure["detail"].as_str().unwrap().contains(&node[..12]),
        "{failure}"
    );
    world.assert_nothing_runs().await;
}

#[tokio::test]
async fn without_a_node_there_is_a_failure() {
    let world = World::new().await;
    world.ok("CreateCluster", json!({})).await;
    world.register("web").await;
    let answer = world.ok("RunTask", run_body("web")).await;
    assert_eq!(
        (
            answer["tasks"].as_array().unwrap().len(),
            answer["failures"].as_array().unwrap().len()
        ),
        (0, 1)
    );
    assert!(!answer["failures"][0]["reason"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn as_many_as_fit_run_and_the_rest_fails() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let answer = world
        .ok("RunTask", with(run_body("web"), "count", json!(10)))
        .await;
    // 2048 CPU units, 256 each; 4096 MiB, 512 each.
    assert_eq!(answer["tasks"].as_array().unwrap().len(), 8);
    assert_eq!(answer["failures"].as_array().unwrap().len(), 2);
    let remaining = world
        .ok(
            "DescribeContainerInstances",
            json!({"containerInstances": [node]}),
        )
        .await;
    let remaining = &remaining["containerInstances"][0]["remainingResources"];
    assert_eq!(
        (&remaining[0]["integerValue"], &remaining[1]["integerValue"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test]
async fn racing_calls_never_overcommit() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let calls = (0..12).map(|_| world.ok("RunTask", run_body("web")));
    let answers = futures_util::future::join_all(calls).await;
    let placed: usize = answers
        .iter()
        .map(|answer| answer["tasks"].as_array().unwrap().len())
        .sum();
    assert_eq!(placed, 8);
    assert_eq!(world.node(&node).await.allocations.len(), 8);
}

#[tokio::test]
async fn a_node_that_reports_meanwhile_loses_nothing() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let reports = async {
        for index in 0..60 {
            world.edit_node(&node, |node| node.connectivity_at = index).await;
            tokio::task::yield_now().await;
        }
    };
    let calls = futures_util::future::join_all((0..8).map(|_| world.ok("RunTask", run_body("web"))));
    let (answers, ()) = futures_util::future::join(calls, reports).await;
    assert!(answers.iter().all(|answer| answer["failures"] == json!([])));
    let node = world.node(&node).await;
    assert_eq!((node.allocations.len(), node.connectivity_at), (8, 59));
}

#[tokio::test]
async fn spread_binpack_and_constraints_decide_where() {
    let (world, first) = World::with_node().await;
    let second = world
        .add_node("default", |node| {
            node.attributes.insert("rack".into(), Some("b".into()));
        })
        .await;
    world.register("web").await;
    let nodes = |answer: &Value| -> Vec<String> {
        let tasks = answer["tasks"].as_array().unwrap();
        tasks
            .iter()
            .map(|task| id_of(task["containerInstanceArn"].as_str().unwrap()))
            .collect()
    };
    let member = json!([{"type": "memberOf", "expression": "attribute:rack == b"}]);
    let answer = world
        .ok("RunTask", with(run_body("web"), "placementConstraints", member))
        .await;
    assert_eq!(nodes(&answer), std::slice::from_ref(&second));
    let body = with(
        with(run_body("web"), "count", json!(2)),
        "placementConstraints",
        json!([{"type": "distinctInstance"}]),
    );
    let mut where_to = nodes(&world.ok("RunTask", with(body, "group", json!("pair"))).await);
    where_to.sort();
    let mut both = vec![first.clone(), second.clone()];
    both.sort();
    assert_eq!(where_to, both);
    let pack = json!([{"type": "binpack", "field": "memory"}]);
    let answer = world
        .ok("RunTask", with(run_body("web"), "placementStrategy", pack))
        .await;
    assert_eq!(nodes(&answer), [second]);
    let spread = json!([{"type": "spread", "field": "instanceId"}]);
    let answer = world
        .ok("RunTask", with(run_body("web"), "placementStrategy", spread))
        .await;
    assert_eq!(nodes(&answer), [first]);
}

#[tokio::test]
async fn ports_of_the_host_are_held_until_the_node_says_stopped() {
    let (world, node) = World::with_node().await;
    world.register_as(host("edge", 8080)).await;
    let body = json!({"taskDefinition": "edge"});
    let answer = world.ok("RunTask", body.clone()).await;
    let id = id_of(answer["tasks"][0]["taskArn"].as_str().unwrap());
    assert_eq!(answer["tasks"][0]["attachments"], json!([]));
    assert_eq!(
        world.ok("RunTask", body.clone()).await["failures"][0]["reason"],
        "RESOURCE:PORTS"
    );
    world.ok("StopTask", json!({"task": id})).await;
    assert_eq!(
        world.ok("RunTask", body.clone()).await["failures"][0]["reason"],
        "RESOURCE:PORTS"
    );
    let described = world
        .ok(
            "DescribeContainerInstances",
            json!({"containerInstances": [node]}),
        )
        .await;
    let remaining = &described["containerInstances"][0]["remainingResources"];
    assert_eq!(remaining[0]["integerValue"], 2048);
    assert_eq!(remaining[2]["stringSetValue"], json!(["22", "8080"]));
    world.report_stopped(&id).await;
    assert_eq!(world.ok("RunTask", body).await["failures"], json!([]));
}

#[tokio::test]
async fn a_client_token_runs_once() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let body = with(run_body("web"), "clientToken", json!("token/1"));
    let first = world.ok("RunTask", body.clone()).await;
    assert_eq!(world.ok("RunTask", body.clone()).await, first);
    assert_eq!(world.node(&node).await.allocations.len(), 1);
    let other = with(body.clone(), "count", json!(2));
    let answer = world.call("RunTask", other).await;
    assert!(answer.refused("ConflictException").contains("token/1"));
    assert_eq!(answer.json()["resourceIds"], json!([]));
    // The same one sent several times at once.
    let body = with(run_body("web"), "clientToken", json!("token-2"));
    let answers = futures_util::future::join_all((0..6).map(|_| world.ok("RunTask", body.clone()))).await;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(world.node(&node).await.allocations.len(), 2);
    let bad = with(run_body("web"), "clientToken", json!("no spaces"));
    world.refused("RunTask", bad, "InvalidParameterException").await;
}

#[tokio::test]
async fn overrides_are_what_the_task_runs_and_is_charged_and_shows() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let overrides = json!({
        "cpu": "512", "memory": "1 GB", "taskRoleArn": "job",
        "containerOverrides": [{
            "name": "cache", "command": ["migrate"], "environment": [{"name": "A", "value": "9"}],
            "cpu": 33, "memory": 99, "memoryReservation": 66,
        }],
    });
    let started = json!({
        "taskDefinition": "web", "networkConfiguration": network(), "overrides": overrides,
        "containerInstances": [node],
    });
    for (operation, body) in [
        ("RunTask", with(run_body("web"), "overrides", overrides.clone())),
        ("StartTask", started),
    ] {
        let answer = world.ok(operation, body).await;
        let arn = answer["tasks"][0]["taskArn"].as_str().unwrap();
        let described = world.ok("DescribeTasks", json!({"tasks": [arn]})).await;
        for task in [&answer["tasks"][0], &described["tasks"][0]] {
            assert_eq!((&task["cpu"], &task["memory"]), (&json!("512"), &json!("1024")));
            let mut shown = overrides.clone();
            let named = &mut shown["containerOverrides"];
            *named = json!([{"name": "web"}, named[0]]);
            shown["inferenceAcceleratorOverrides"] = json!([]);
            assert_eq!(task["overrides"], shown);
            let cache = &task["containers"][1];
            assert_eq!(
                (&cache["cpu"], &cache["memory"], &cache["memoryReservation"]),
                (&json!("33"), &json!("99"), &json!("66"))
            );
        }
        let spec = world.desired(&node, &id_of(arn)).await.unwrap();
        assert_eq!(
            (spec.charged_cpu_units, spec.charged_memory_bytes),
            (512, 1024 * MIB)
        );
        let limits = spec.limits.unwrap();
        assert_eq!((limits.cpu_units, limits.memory_bytes), (512, 1024 * MIB));
        let cache = &spec.containers[1];
        assert_eq!(cache.command, ["migrate"]);
        assert!(cache.environment.iter().any(|v| v.key == "A" && v.value == "9"));
        assert_eq!(
            (
                cache.cpu_units,
                cache.memory_bytes,
                cache.memory_reservation_bytes
            ),
            (33, 99 * MIB, 66 * MIB)
        );
        let held = world.allocation(&node, &id_of(arn)).await.unwrap();
        assert_eq!((held.cpu_units, held.memory_bytes), (512, 1024 * MIB));
    }
    // The definition is what it was.
    let described = world
        .ok("DescribeTaskDefinition", json!({"taskDefinition": "web"}))
        .await;
    assert_eq!(described["taskDefinition"]["cpu"], "256");
}

#[tokio::test]
async fn a_client_token_covers_the_overrides() {
    let (world, _) = World::with_node().await;
    world.register("web").await;
    let body = with(run_body("web"), "clientToken", json!("token"));
    let other = with(body.clone(), "overrides", json!({"taskRoleArn": "job"}));
    let first = world.ok("RunTask", other.clone()).await;
    assert_eq!(world.ok("RunTask", other).await, first);
    world.refused("RunTask", body, "ConflictException").await;
}

#[tokio::test]
async fn bad_requests_say_what_and_leave_nothing() {
    let (world, _) = World::with_node().await;
    world.register("web").await;
    world.register_as(host("edge", 8080)).await;
    let web = || run_body("web");
    let vpc = |config: Value| {
        with(
            web(),
            "networkConfiguration",
            json!({"awsvpcConfiguration": config}),
        )
    };
    for (body, words) in [
        (json!({}), "taskDefinition: is required"),
        (with(web(), "count", json!(11)), "count: must be between 1 and 10"),
        (with(web(), "count", json!("2")), "count: must be a whole number"),
        (with(web(), "bogus", json!(1)), "bogus: unknown field"),
        (
            with(web(), "launchType", json!("MOON")),
            "launchType: 'MOON' is not a valid value",
        ),
        (
            with(web(), "launchType", json!("MANAGED_INSTANCES")),
            "launchType: 'MANAGED_INSTANCES' is not supported",
        ),
        (
            with(web(), "launchType", json!("EXTERNAL")),
            "does not support launch_type EXTERNAL",
        ),
        (
            with(web(), "platformVersion", json!("1.4.0")),
            "platformVersion: must be absent with launch type EC2",
        ),
        (
            with(web(), "propagateTags", json!("SERVICE")),
            "propagateTags: 'SERVICE' is only valid",
        ),
        (
            with(web(), "enableExecuteCommand", json!(true)),
            "enableExecuteCommand: not supported yet",
        ),
        (
            with(web(), "overrides", json!({"cpu": "1"})),
            "overrides.cpu: 1 is not a size of FARGATE",
        ),
        (
            with(
                web(),
                "overrides",
                json!({"containerOverrides": [{"name": "nobody", "command": ["x"]}]}),
            ),
            "overrides.containerOverrides[0].name: no container is named \"nobody\"",
        ),
        (
            with(web(), "overrides", json!([])),
            "overrides: expected an object",
        ),
        (
            with(web(), "overrides", json!({"colour": 1})),
            "overrides.colour: unknown field",
        ),
        (
            with(
                web(),
                "capacityProviderStrategy",
                json!([{"capacityProvider": "x"}]),
            ),
            "capacityProviderStrategy: not",
        ),
        (
            with(web(), "group", json!("service:x")),
            "group: the prefix service:",
        ),
        (with(web(), "startedBy", json!("a b")), "startedBy: must be"),
        (
            with(web(), "placementConstraints", json!([{"type": "near"}])),
            "placementConstraints[0].type: 'near'",
        ),
        (
            with(
                web(),
                "placementConstraints",
                json!([{"type": "memberOf", "expression": "attribute:x =="}]),
            ),
            "placementConstraints[0].expression: column",
        ),
        (
            with(
                web(),
                "placementStrategy",
                json!([{"type": "binpack", "field": "luck"}]),
            ),
            "placementStrategy[0].field",
        ),
        (
            json!({"taskDefinition": "web"}),
            "Network Configuration must be provided",
        ),
        (
            with(web(), "taskDefinition", json!("edge")),
            "Network Configuration is not valid",
        ),
        (
            vpc(json!({"subnets": ["subnet-1"]})),
            "The subnet ID 'subnet-1' does not exist",
        ),
        (
            vpc(json!({"subnets": []})),
            "networkConfiguration.awsvpcConfiguration.subnets: is required",
        ),
        (
            vpc(json!({"subnets": ["subnet-default"], "securityGroups": ["sg-1"]})),
            "'sg-1' does not exist",
        ),
        (
            vpc(json!({"subnets": ["subnet-default"], "assignPublicIp": "MAYBE"})),
            "'MAYBE' is not a valid value",
        ),
    ] {
        let message = world.refused("RunTask", body, "InvalidParameterException").await;
        assert!(message.contains(words), "{message} lacks {words}");
    }
    for (reference, words) in [
        ("nope", "TaskDefinition not found"),
        ("web:9", "TaskDefinition not found"),
    ] {
        let message = world
            .refused("RunTask", run_body(reference), "ClientException")
            .await;
        assert!(message.contains(words), "{message}");
    }
    let other = with(
        with(web(), "launchType", json!("FARGATE")),
        "platformVersion",
        json!("9"),
    );
    world.refused("RunTask", other, "PlatformUnknownException").await;
    world
        .refused(
            "RunTask",
            with(web(), "cluster", json!("nope")),
            "ClusterNotFoundException",
        )
        .await;
    world
        .ok("DeregisterTaskDefinition", json!({"taskDefinition": "web:1"}))
        .await;
    let message = world
        .refused("RunTask", run_body("web:1"), "ClientException")
        .await;
    assert!(message.contains("inactive"), "{message}");
    world.assert_nothing_runs().await;
}

#[tokio::test]
async fn tags_of_the_definition_are_propagated_when_asked() {
    let (world, _) = World::with_node().await;
    let tags = json!([{"key": "team", "value": "def"}, {"key": "tier", "value": "1"}]);
    world.register_as(with(awsvpc("web"), "tags", tags)).await;
    let body = with(run_body("web"), "tags", json!([{"key": "team", "value": "run"}]));
    let answer = world
        .ok("RunTask", with(body, "propagateTags", json!("TASK_DEFINITION")))
        .await;
    let expected = json!([{"key": "team", "value": "run"}, {"key": "tier", "value": "1"}]);
    assert_eq!(answer["tasks"][0]["tags"], expected);
    assert_eq!(
        world.ok("RunTask", run_body("web")).await["tasks"][0]["tags"],
        json!([])
    );
}

#[tokio::test]
async fn the_tag_for_a_runtime_is_a_name_that_a_node_offers_and_stays_so() {
    let (world, _) = World::with_node().await;
    world.register("web").await;
    let tagged = |value: &str| {
        let tags = json!([{"key": "berth.runtime", "value": value}]);
        with(run_body("web"), "tags", tags)
    };
    for bad in ["", "RunC", "a/b"] {
        let message = world
            .refused("RunTask", tagged(bad), "InvalidParameterException")
            .await;
        assert!(message.contains("berth.runtime is"), "{message}");
    }
    let answer = world.ok("RunTask", tagged("crun")).await;
    assert_eq!(answer["failures"][0]["reason"], "ATTRIBUTE");
    let detail = answer["failures"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("does not offer the runtime crun"), "{detail}");
    world.assert_nothing_runs().await;

    let node = world
        .add_node("default", |node: &mut Node| {
            node.features.push("runtime.crun".into())
        })
        .await;
    let answer = world.ok("RunTask", tagged("crun")).await;
    let arn = answer["tasks"][0]["taskArn"].as_str().unwrap();
    let spec = world.desired(&node, &id_of(arn)).await.unwrap();
    assert_eq!(spec.runtime, "crun");
    assert!(spec.required_features.iter().any(|f| f == "runtime.crun"));
    let other = json!({"resourceArn": arn, "tags": [{"key": "berth.runtime", "value": "runc"}]});
    let message = world
        .refused("TagResource", other, "InvalidParameterException")
        .await;
    assert!(
        message.contains("berth.runtime is decided when a task is started"),
        "{message}"
    );
}

#[tokio::test]
async fn the_tag_for_a_restart_after_a_reboot_is_true_or_false_and_stays_so() {
    let (world, node) = World::with_node().await;
    world.register("web").await;
    let tagged = |value: &str| {
        let tags = json!([{"key": "berth.restart-after-reboot", "value": value}]);
        with(run_body("web"), "tags", tags)
    };
    for bad in ["yes", "TRUE", "1", ""] {
        let message = world
            .refused("RunTask", tagged(bad), "InvalidParameterException")
            .await;
        assert!(message.contains("berth.restart-after-reboot"), "{message}");
    }
    for (value, restarts) in [("true", true), ("false", false)] {
        let task = world.ok("RunTask", tagged(value)).await["tasks"][0].clone();
        let arn = task["taskArn"].as_str().unwrap();
        let spec = world.desired(&node, &id_of(arn)).await.unwrap();
        assert_eq!(spec.restart_after_reboot, restarts);
        let needed = spec.required_features.iter().any(|f| f == "restart.after-reboot");
        assert_eq!(needed, restarts);
        let other = json!([{"key": "berth.restart-after-reboot", "value": (!restarts).to_string()}]);
        let changed = json!({"resourceArn": arn, "tags": other});
        let message = world
            .refused("TagResource", changed, "InvalidParameterException")
            .await;
        assert!(message.contains("cannot be changed"), "{message}");
        let removed = json!({"resourceArn": arn, "tagKeys": ["berth.restart-after-reboot"]});
        world
            .refused("UntagResource", removed, "InvalidParameterException")
            .await;
    }
}

#[tokio::test]
async fn a_task_that_restarts_goes_only_where_that_is_known() {
    let world = World::new().await;
    world.ok("CreateCluster", json!({})).await;
    world
        .add_node("default", |node: &mut Node| {
            node.features.retain(|feature| feature != "restart.after-reboot");
        })
        .await;
    world.register("web").await;
    let tags = json!([{"key": "berth.restart-after-reboot", "value": "true"}]);
    let answer = world.ok("RunTask", with(run_body("web"), "tags", tags)).await;
    assert_eq!(answer["tasks"], json!([]));
    assert!(
        answer["failures"][0].to_string().contains("restart.after-reboot"),
        "{answer}"
    );
}

#[tokio::test]
async fn start_task_goes_where_it_is_told_or_says_why_not() {
    let (world, good) = World::with_node().await;
    let draining = world
        .add_node("default", |node: &mut Node| node.status = "DRAINING".into())
        .await;
    let small = world
        .add_node("default", |node: &mut Node| node.cpu_units = 128)
        .await;
    world.register("web").await;
    let unknown = "0".repeat(32);
    let body = with(
        run_body("web"),
        "containerInstances",
        json!([good, draining, small, unknown]),
    );
    let answer = world.ok("StartTask", body.clone()).await;
    assert_eq!(answer["tasks"].as_array().unwrap().len(), 1);
    assert_eq!(
        id_of(answer["tasks"][0]["containerInstanceArn"].as_str().unwrap()),
        good
    );
    let failures = answer["failures"].as_array().unwrap();
    assert_eq!(failures.len(), 3);
    assert_eq!(id_of(failures[0]["arn"].as_str().unwrap()), draining);
    assert_eq!(failures[1]["reason"], "RESOURCE:CPU");
    assert_eq!(failures[2]["reason"], "MISSING");
    let twice = with(body, "containerInstances", json!([good, good]));
    world
        .refused("StartTask", twice, "InvalidParameterException")
        .await;
    world
        .refused("StartTask", run_body("web"), "InvalidParameterException")
        .await;
}

/// Registers `logged`, whose first container's log driver does not exist yet.
async fn register_with_awslogs(world: &World) -> crate::client::Answer {
    let mut definition = awsvpc("logged");
    definition["containerDefinitions"][0]["logConfiguration"] = json!({"logDriver": "awslogs", "options": {"awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1"}});
    world.call("RegisterTaskDefinition", definition).await
}

#[tokio::test]
async fn a_log_driver_that_does_not_exist_yet_is_replaced_and_the_task_says_so() {
    let (world, _) = World::with_node().await;
    register_with_awslogs(&world).await.ok();
    let launched = &world.ok("RunTask", run_body("logged")).await["tasks"][0];
    let arn = launched["taskArn"].as_str().unwrap();
    let described = &world.ok("DescribeTasks", json!({"tasks": [arn]})).await["tasks"][0];
    let explained = world.berth("ExplainTask", json!({"task": arn})).await.ok();
    let [text] = &explained["warnings"].as_array().unwrap()[..] else {
        panic!("{explained}");
    };
    let command = format!("`berth logs {} --container web`", &id_of(arn)[..12]);
    assert!(
        text.as_str()
            .unwrap()
            .starts_with("container web: log driver awslogs "),
        "{text}"
    );
    assert!(text.as_str().unwrap().ends_with(&command), "{text}");
    for task in [launched, described] {
        assert_eq!(
            task["attributes"],
            json!([{"name": "berth.warning", "value": text}])
        );
    }
}

#[tokio::test]
async fn log_drivers_that_do_not_exist_yet_can_be_refused() {
    let (world, node) = World::with_node().await;
    register_with_awslogs(&world).await.ok();
    let world = world.refusing_log_drivers();
    let says = "containerDefinitions[0].logConfiguration.logDriver: awslogs: not supported yet, and the control \
                plane's unsupported_log_driver is \"refuse\"; use json-file";
    let again = register_with_awslogs(&world).await;
    assert_eq!(again.refused("ClientException"), says);
    // Registered when it was not refused.
    assert_eq!(
        world
            .refused("RunTask", run_body("logged"), "ClientException")
            .await,
        says
    );
    let body = with(run_body("logged"), "containerInstances", json!([node]));
    assert_eq!(world.refused("StartTask", body, "ClientException").await, says);
}

#[tokio::test]
async fn gpus_are_one_containers_alone_until_nothing_of_its_task_is_left() {
    let (world, node) = World::with_node().await;
    let ids: Vec<String> = (0..2).map(|n| format!("nvidia.com/gpu={n}")).collect();
    world.edit_node(&node, |node| node.gpus.clone_from(&ids)).await;
    let mut definition = awsvpc("train");
    definition["requiresCompatibilities"] = json!(["EC2"]);
    definition["containerDefinitions"][1]["resourceRequirements"] = json!([{"type": "GPU", "value": "1"}]);
    world.register_as(definition).await;
    let mut tasks = Vec::new();
    for id in &ids {
        let answer = world.ok("RunTask", run_body("train")).await;
        let task = &answer["tasks"][0];
        assert_eq!(task["containers"][1]["gpuIds"], json!([id]), "{answer}");
        assert!(task["containers"][0].get("gpuIds").is_none());
        let arn = task["taskArn"].as_str().unwrap();
        let spec = world.desired(&node, &id_of(arn)).await.unwrap();
        assert_eq!(spec.containers[1].gpu_ids, std::slice::from_ref(id));
        assert!(spec.containers[0].gpu_ids.is_empty());
        assert!(spec.required_features.contains(&"gpu.cdi".to_owned()));
        tasks.push(id_of(arn));
    }
    let third = world.ok("RunTask", run_body("train")).await;
    assert_eq!(third["failures"][0]["reason"], "RESOURCE:GPU", "{third}");
    let gpus = async |field: &str| {
        let body = json!({"containerInstances": [node]});
        let answer = world.ok("DescribeContainerInstances", body).await;
        let all = answer["containerInstances"][0][field].as_array().unwrap().clone();
        all.into_iter().find(|one| one["name"] == "GPU").unwrap()
    };
    let registered = gpus("registeredResources").await;
    assert_eq!(
        (&registered["type"], &registered["stringSetValue"]),
        (&json!("STRINGSET"), &json!(ids))
    );
    assert_eq!(gpus("remainingResources").await["stringSetValue"], json!([]));
    // Neither the wish to stop it nor its processes' end frees a device: only that nothing is left.
    world.ok("StopTask", json!({"task": tasks[0]})).await;
    let still = world.ok("RunTask", run_body("train")).await;
    assert_eq!(still["failures"][0]["reason"], "RESOURCE:GPU");
    world.report_stopped(&tasks[0]).await;
    assert_eq!(
        gpus("remainingResources").await["stringSetValue"],
        json!([ids[0]])
    );
    let again = world.ok("RunTask", run_body("train")).await;
    assert_eq!(again["tasks"][0]["containers"][1]["gpuIds"], json!([ids[0]]));
    // A run may ask for none of the definition's, or for more than there are.
    let overrides = json!({"containerOverrides": [{"name": "cache", "resourceRequirements": [{"type": "GPU", "value": "3"}]}]});
    let more = world
        .ok("RunTask", with(run_body("train"), "overrides", overrides))
        .await;
    let detail = more["failures"][0]["detail"].as_str().unwrap();
    assert!(detail.contains("needs 3 of its GPUs, 0 of 2 are free"), "{more}");
}
