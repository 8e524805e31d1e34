//! `resourceRequirements`: how many GPUs a container has to itself.

use super::*;
use crate::task::Definition;

fn asks(requirements: Value) -> Value {
    container("resourceRequirements", requirements)
}

#[track_caller]
fn refused(definition: &Value, says: &str) {
    assert_eq!(problems(definition), [says]);
}

#[test]
fn gpus_are_echoed_as_given_and_are_beyond_fargate() {
    let given = asks(json!([{"type": "GPU", "value": "2"}]));
    let echo = accepted(&given).definition;
    assert_eq!(
        echo["containerDefinitions"][0]["resourceRequirements"],
        json!([{"type": "GPU", "value": "2"}])
    );
    assert_eq!(echo["compatibilities"], json!(["EC2"]));
    let read = Definition::from_echo(&echo).unwrap();
    assert_eq!((read.containers[0].gpus, read.containers[1].gpus), (2, 0));
    assert_eq!(read.requirements().gpus, 2);
    assert!(read.requirements().features.contains(&"gpu.cdi"));
    let none = Definition::from_echo(&accepted(&good()).definition).unwrap();
    assert!(!none.requirements().features.contains(&"gpu.cdi"));
}

#[test]
fn what_is_no_number_of_gpus() {
    let at = "containerDefinitions[0].resourceRequirements";
    for (value, message) in [
        ("0", "\"0\" is not a number of GPUs: expected 1 to 64"),
        ("65", "\"65\" is not a number of GPUs: expected 1 to 64"),
        ("+1", "\"+1\" is not a number of GPUs: expected 1 to 64"),
        ("1.5", "\"1.5\" is not a number of GPUs: expected 1 to 64"),
        ("all", "\"all\" is not a number of GPUs: expected 1 to 64"),
        ("", "\"\" is not a number of GPUs: expected 1 to 64"),
    ] {
        refused(
            &asks(json!([{"type": "GPU", "value": value}])),
            &format!("{at}[0].value: {message}"),
        );
    }
    refused(
        &asks(json!([{"type": "GPU"}])),
        &format!("{at}[0].value: required"),
    );
    refused(
        &asks(json!([{"type": "GPU", "value": "1"}, {"type": "GPU", "value": "1"}])),
        &format!("{at}[1].type: GPU is required by resourceRequirements[0] already"),
    );
    refused(
        &asks(json!([{"type": "GPU", "value": "1", "sharingStrategy": {"nvidiaMps": {"memory": 1}}}])),
        &format!("{at}[0].sharingStrategy: not supported: a container has its GPUs to itself; leave it out"),
    );
    refused(
        &with(
            asks(json!([{"type": "GPU", "value": "1"}])),
            "/requiresCompatibilities",
            json!(["FARGATE"]),
        ),
        &format!("{at}: FARGATE has no GPUs; leave FARGATE out of requiresCompatibilities"),
    );
}

#[test]
fn the_other_types_are_refused_with_the_reason() {
    for kind in ["InferenceAccelerator", "NeuronDevice"] {
        refused(
            &asks(json!([{"type": kind, "value": "a"}])),
            &format!(
                "containerDefinitions[0].resourceRequirements[0].type: {kind}: not supported: only AWS's own hosts \
                 have it; use GPU"
            ),
        );
    }
}

#[test]
fn a_run_may_ask_for_another_number() {
    let registered = accepted(&asks(json!([{"type": "GPU", "value": "2"}]))).definition;
    let with = |requirements: Value| json!({"containerOverrides": [{"name": "nginx", "resourceRequirements": requirements}]});
    let one = with(json!([{"type": "GPU", "value": "1"}]));
    let overridden = override_definition(&registered, &one).unwrap();
    let read = Definition::from_echo(&overridden.definition).unwrap();
    assert_eq!(read.requirements().gpus, 1);
    assert_eq!(
        overridden.echo["containerOverrides"][0],
        one["containerOverrides"][0]
    );
    let problems =
        override_definition(&registered, &with(json!([{"type": "GPU", "value": "0"}]))).unwrap_err();
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let path = "overrides.containerOverrides[0].resourceRequirements[0].value";
    assert_eq!(
        said,
        [format!("{path}: \"0\" is not a number of GPUs: expected 1 to 64")]
    );
}
