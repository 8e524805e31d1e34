//! The store of environment files, and what tasks get of it.

use berth_proto::node::v1::environment_file::Source;
use serde_json::{Value, json};

use crate::world::{World, awsvpc, id_of, network};

const ARN: &str = "arn:aws:s3:::config/web.env";

async fn put(world: &World, arn: &str, content: &str) -> Value {
    let body = json!({"arn": arn, "content": content});
    world.berth("PutEnvironmentFile", body).await.ok()
}

/// Registers a definition whose first container has these files.
async fn with_files(world: &World, files: &[&str]) {
    let mut definition = awsvpc("web");
    let file = |value: &&str| json!({"type": "s3", "value": value});
    definition["containerDefinitions"][0]["environmentFiles"] = files.iter().map(file).collect();
    world.register_as(definition).await;
}

fn run() -> Value {
    json!({"taskDefinition": "web", "networkConfiguration": network()})
}

#[tokio::test]
async fn a_file_is_put_listed_replaced_and_deleted_and_never_shown() {
    let world = World::new().await;
    let made = put(&world, ARN, "A=secret\n# x\nB=2").await;
    let file = &made["environmentFile"];
    assert_eq!(
        (&file["arn"], &file["variables"], &file["bytes"]),
        (&json!(ARN), &json!(2), &json!(16))
    );
    put(&world, "arn:aws-cn:s3:::config/web.env", "A=secret2").await;
    put(&world, "arn:aws:s3:::config/a/b.env", "A=secret").await;
    let listed = world.berth("ListEnvironmentFiles", json!({})).await.ok();
    let names: Vec<_> = listed["environmentFiles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| (&file["arn"], &file["variables"]))
        .collect();
    // The partition of an ARN is no part of the name.
    let other = json!("arn:aws:s3:::config/a/b.env");
    assert_eq!(names, [(&other, &json!(1)), (&json!(ARN), &json!(1))]);
    assert!(!listed.to_string().contains("secret") && !made.to_string().contains("secret"));
    world
        .berth("DeleteEnvironmentFile", json!({"arn": ARN}))
        .await
        .ok();
    let again = world.berth("DeleteEnvironmentFile", json!({"arn": ARN})).await;
    again.refused("ResourceNotFoundException");
    assert_eq!(
        world.stored("/environment-file").await.matches("secret").count(),
        1
    );
}

#[tokio::test]
async fn what_is_no_file_is_refused_by_its_line() {
    let world = World::new().await;
    for (arn, content, part) in [
        (ARN, "A=1\nsecret", "content: line 2 has no ="),
        (ARN, "", "content"),
        (ARN, &*"x".repeat((64 << 10) + 1), "content: it has 65537 bytes"),
        (
            "config/web.env",
            "A=1",
            "arn: \"config/web.env\" is not the ARN of a file",
        ),
        (
            "arn:aws:s3:::config/web",
            "A=1",
            "arn: \"web\" does not end in .env",
        ),
    ] {
        let body = json!({"arn": arn, "content": content});
        let answer = world.berth("PutEnvironmentFile", body).await;
        let message = answer.refused("InvalidParameterException");
        assert!(message.contains(part) && !message.contains("secret"), "{message}");
    }
}

#[tokio::test]
async fn a_task_gets_what_the_store_had_when_it_was_run() {
    let (world, node) = World::with_node().await;
    put(&world, ARN, "A=1").await;
    with_files(&world, &["https://config.example/web", ARN]).await;
    let answer = world.ok("RunTask", run()).await;
    put(&world, ARN, "A=2").await;
    let id = id_of(answer["tasks"][0]["taskArn"].as_str().unwrap());
    let spec = world.desired(&node, &id).await.unwrap();
    assert!(spec.required_features.contains(&"environment-files".to_owned()));
    let files: Vec<_> = spec.containers[0]
        .environment_files
        .iter()
        .map(|file| file.source.clone().unwrap())
        .collect();
    assert_eq!(files[0], Source::Url("https://config.example/web".into()));
    let Source::Variables(stored) = &files[1] else {
        panic!("{files:?}")
    };
    let pair = &stored.variables[0];
    assert_eq!((pair.key.as_str(), pair.value.as_str()), ("A", "1"));
    assert_eq!(stored.variables.len(), 1);
}

#[tokio::test]
async fn a_task_whose_file_is_not_stored_is_refused_with_the_path() {
    let (world, _) = World::with_node().await;
    with_files(&world, &["https://config.example/web", ARN]).await;
    let message = world.refused("RunTask", run(), "InvalidParameterException").await;
    assert!(
        message.starts_with(
            "containerDefinitions[0].environmentFiles[1].value: ResourceInitializationError: no environment file is \
             stored as arn:aws:s3:::config/web.env"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn a_task_has_only_so_much_of_the_store() {
    let (world, _) = World::with_node().await;
    let large = format!("A={}", "x".repeat((64 << 10) - 2));
    let names = [1, 2, 3].map(|n| format!("arn:aws:s3:::config/{n}.env"));
    for name in &names {
        put(&world, name, &large).await;
    }
    with_files(&world, &[&names[0], &names[1]]).await;
    assert_eq!(world.ok("RunTask", run()).await["failures"], json!([]));
    with_files(&world, &[&names[0], &names[1], &names[2]]).await;
    let message = world.refused("RunTask", run(), "InvalidParameterException").await;
    assert!(
        message.contains("come to 196605 bytes, the limit is 131072"),
        "{message}"
    );
}
