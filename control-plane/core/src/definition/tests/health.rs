use super::*;

const CHECK: &str = "containerDefinitions[0].healthCheck";

fn check(value: Value) -> Value {
    container("healthCheck", value)
}

#[test]
fn a_health_check_is_kept_with_the_defaults_that_aws_fills_in() {
    for (given, kept) in [
        (
            json!({"command": ["CMD-SHELL", "exit 0"]}),
            json!({"command": ["CMD-SHELL", "exit 0"], "interval": 30, "timeout": 5, "retries": 3}),
        ),
        (
            json!({"command": ["CMD", "a", ""], "interval": 5, "timeout": 2, "retries": 1, "startPeriod": 0}),
            json!({"command": ["CMD", "a", ""], "interval": 5, "timeout": 2, "retries": 1, "startPeriod": 0}),
        ),
        (
            json!({"command": ["CMD", "a"], "interval": 300, "timeout": 60, "retries": 10, "startPeriod": 300}),
            json!({"command": ["CMD", "a"], "interval": 300, "timeout": 60, "retries": 10, "startPeriod": 300}),
        ),
        (
            json!({"command": ["CMD", "a"], "interval": null, "startPeriod": null}),
            json!({"command": ["CMD", "a"], "interval": 30, "timeout": 5, "retries": 3}),
        ),
    ] {
        let echo = accepted(&check(given)).definition;
        assert_eq!(echo["containerDefinitions"][0]["healthCheck"], kept);
        assert!(echo["containerDefinitions"][1].get("healthCheck").is_none());
        let attribute = json!({"name": "ecs.capability.container-health-check"});
        assert!(
            echo["requiresAttributes"]
                .as_array()
                .unwrap()
                .contains(&attribute)
        );
        assert_eq!(accepted(&echo).definition, echo);
    }
    let attributes = &accepted(&good()).definition["requiresAttributes"];
    assert!(!attributes.to_string().contains("health"), "{attributes}");
}

#[test]
fn all_bounds_are_told_at_once() {
    let low = json!({"command": ["CMD", "a"], "interval": 4, "timeout": 1, "retries": 0, "startPeriod": -1});
    assert_eq!(
        problems(&check(low)),
        [
            format!("{CHECK}.interval: 4 is below the minimum of 5 s"),
            format!("{CHECK}.timeout: 1 is below the minimum of 2 s"),
            format!("{CHECK}.retries: 0 is below the minimum of 1"),
            format!("{CHECK}.startPeriod: -1 is below the minimum of 0 s"),
        ]
    );
    let high =
        json!({"command": ["CMD", "a"], "interval": 301, "timeout": 61, "retries": 11, "startPeriod": 301});
    assert_eq!(
        problems(&check(high)),
        [
            format!("{CHECK}.interval: 301 is above the maximum of 300 s"),
            format!("{CHECK}.timeout: 61 is above the maximum of 60 s"),
            format!("{CHECK}.retries: 11 is above the maximum of 10"),
            format!("{CHECK}.startPeriod: 301 is above the maximum of 300 s"),
        ]
    );
}

#[test]
fn a_command_says_how_it_is_run_and_then_what() {
    for (command, says) in [
        (json!(null), ".command: required"),
        (json!([]), ".command: required"),
        (json!(["CMD"]), ".command: has no command after CMD"),
        (json!(["CMD-SHELL"]), ".command: has no command after CMD-SHELL"),
        (json!(["CMD", "", "a"]), ".command[1]: is empty"),
        (
            json!(["NONE"]),
            ".command: NONE: leave healthCheck out; an image's own health check is not used anyway",
        ),
        (
            json!(["curl", "-f"]),
            ".command: begins with \"curl\": expected CMD or CMD-SHELL",
        ),
        (
            json!(["CMD", 5]),
            ".command[1]: expected a string, got an integer",
        ),
        (
            json!([5, "CMD"]),
            ".command[0]: expected a string, got an integer",
        ),
    ] {
        assert_eq!(
            problems(&check(json!({"command": command}))),
            [format!("{CHECK}{says}")]
        );
    }
}

#[test]
fn healthy_is_waited_for_only_of_what_is_checked() {
    let condition = "/containerDefinitions/0/dependsOn/0/condition";
    let waits = with(good(), condition, json!("HEALTHY"));
    assert_eq!(
        problems(&waits),
        [
            "containerDefinitions[0].dependsOn[0].condition: HEALTHY cannot be waited for: \"redis\" has no healthCheck"
        ]
    );
    let checked = with(
        waits,
        "/containerDefinitions/1/healthCheck",
        json!({"command": ["CMD", "redis-cli", "ping"]}),
    );
    // Also of an essential one, whose end nobody could wait for.
    let echo = accepted(&checked).definition;
    assert_eq!(
        echo["containerDefinitions"][0]["dependsOn"][0]["condition"],
        "HEALTHY"
    );
}
