//! `pidMode` and `ipcMode`, and what cannot be had beside them.

use super::*;

#[test]
fn modes_are_echoed_and_are_none_of_fargates() {
    for (name, mode) in [("pidMode", "host"), ("ipcMode", "host"), ("ipcMode", "none")] {
        let definition = with(good(), &format!("/{name}"), json!(mode));
        let echo = accepted(&definition).definition;
        assert_eq!(echo[name], mode);
        assert!(!echo["compatibilities"].to_string().contains("FARGATE"), "{echo}");
        let says = match name {
            "pidMode" => "pidMode: FARGATE has only task, got host",
            _ => "ipcMode: FARGATE does not have it",
        };
        let fargate = with(definition, "/requiresCompatibilities", json!(["FARGATE"]));
        assert!(
            problems(&fargate).contains(&says.to_owned()),
            "{:?}",
            problems(&fargate)
        );
    }
}

#[test]
fn what_is_the_nodes_or_not_there_cannot_be_changed() {
    let shared = container("linuxParameters", json!({"sharedMemorySize": 8}));
    for (mode, says) in [
        ("host", "is the node's with ipcMode host: leave it out"),
        ("none", "there is no /dev/shm with ipcMode none: leave it out"),
    ] {
        let found = problems(&with(shared.clone(), "/ipcMode", json!(mode)));
        assert_eq!(
            found,
            [format!(
                "containerDefinitions[0].linuxParameters.sharedMemorySize: {says}"
            )]
        );
    }
    let controls = container(
        "systemControls",
        json!([
            {"namespace": "kernel.shmmax", "value": "1"}, {"namespace": "fs.mqueue.msg_max", "value": "1"},
            {"namespace": "net.core.somaxconn", "value": "1"},
        ]),
    );
    let found = problems(&with(controls.clone(), "/ipcMode", json!("host")));
    let says = |at: usize, name: &str| {
        format!(
            "containerDefinitions[0].systemControls[{at}].namespace: {name} would change the node with ipcMode host: set it on the node"
        )
    };
    assert_eq!(found, [says(0, "kernel.shmmax"), says(1, "fs.mqueue.msg_max")]);
    accepted(&with(controls, "/ipcMode", json!("none")));
}

#[test]
fn what_a_task_shares_is_taken_and_only_its_processes_by_fargate() {
    for name in ["pidMode", "ipcMode"] {
        let definition = with(good(), &format!("/{name}"), json!("task"));
        let echo = accepted(&definition).definition;
        assert_eq!(echo[name], "task");
        let fargate = echo["compatibilities"].to_string().contains("FARGATE");
        assert_eq!(fargate, name == "pidMode", "{echo}");
    }
    let shared = container("linuxParameters", json!({"sharedMemorySize": 8}));
    accepted(&with(shared, "/ipcMode", json!("task")));
    let controls = container(
        "systemControls",
        json!([{"namespace": "kernel.shmmax", "value": "1"}]),
    );
    accepted(&with(controls, "/ipcMode", json!("task")));
}
