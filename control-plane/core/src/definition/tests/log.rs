//! Log drivers and their options.

use super::*;
use crate::task::{Definition, required_features};

const DRIVER: &str = "containerDefinitions[0].logConfiguration.logDriver";

fn log(driver: &str, options: Value) -> Value {
    container(
        "logConfiguration",
        json!({"logDriver": driver, "options": options}),
    )
}

fn attributes(input: &Value) -> Vec<String> {
    let definition = accepted(input).definition;
    let attributes = definition["requiresAttributes"].as_array().unwrap();
    let names = attributes.iter().filter_map(|a| a["name"].as_str());
    names
        .filter(|name| name.contains("log"))
        .map(str::to_string)
        .collect()
}

#[test]
fn drivers_that_do_not_exist_yet_are_kept_as_they_are() {
    let options = json!({
        "awslogs-group": "/ecs/web", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "ecs",
        "awslogs-create-group": "true", "awslogs-datetime-format": "%Y", "mode": "non-blocking",
        "max-buffer-size": "25m",
    });
    let input = log("awslogs", options.clone());
    let registered = accepted(&input).definition;
    assert_eq!(
        registered["containerDefinitions"][0]["logConfiguration"],
        json!({"logDriver": "awslogs", "options": options})
    );
    assert_eq!(
        attributes(&input),
        ["com.amazonaws.ecs.capability.logging-driver.awslogs"]
    );
    let role = with(
        input,
        "/executionRoleArn",
        json!("arn:aws:iam::123456789012:role/r"),
    );
    assert_eq!(
        attributes(&role),
        [
            "com.amazonaws.ecs.capability.logging-driver.awslogs",
            "ecs.capability.execution-role-awslogs"
        ]
    );
    for driver in ["fluentd", "gelf", "journald", "splunk", "syslog"] {
        let input = log(driver, json!({"anything": "x"}));
        let name = format!("com.amazonaws.ecs.capability.logging-driver.{driver}");
        assert_eq!(attributes(&input), [name]);
        let role = with(
            input,
            "/executionRoleArn",
            json!("arn:aws:iam::123456789012:role/r"),
        );
        assert_eq!(attributes(&role).len(), 1, "{driver}");
    }
    assert_eq!(
        attributes(&log("json-file", json!({}))),
        ["com.amazonaws.ecs.capability.logging-driver.json-file"]
    );
    assert_eq!(attributes(&good()), [""; 0]);
}

#[test]
fn what_is_honoured_of_their_options_is_judged() {
    let size = json!({"awslogs-group": "x", "max-size": "1x"});
    assert_eq!(
        problems(&log("awslogs", size)),
        [
            "containerDefinitions[0].logConfiguration.options.max-size: \"1x\" is not a size: expected bytes, 64k, \
          10m or 1g"
        ]
    );
    let number = json!({"awslogs-group": 1});
    assert_eq!(
        problems(&log("awslogs", number)),
        ["containerDefinitions[0].logConfiguration.options.awslogs-group: expected a string, got an integer"]
    );
}

#[test]
fn an_operator_may_refuse_them() {
    let refuse = UnsupportedLogDriver::Refuse;
    let both = with(
        log("awslogs", json!({"max-size": "1x"})),
        "/containerDefinitions/1/logConfiguration",
        json!({"logDriver": "syslog"}),
    );
    let says = |driver| {
        format!(
            "{driver}: not supported yet, and the control plane's unsupported_log_driver is \"refuse\"; use json-file"
        )
    };
    let found: Vec<String> = register_where(&both, refuse)
        .unwrap_err()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found[1..],
        [
            format!("{DRIVER}: {}", says("awslogs")),
            format!(
                "containerDefinitions[1].logConfiguration.logDriver: {}",
                says("syslog")
            ),
        ]
    );
    assert!(found[0].contains("max-size"), "all problems at once");
    let json_file = log("json-file", json!({}));
    assert_eq!(register_where(&json_file, refuse).unwrap(), accepted(&json_file));
}

#[test]
fn tasks_say_where_their_output_is_instead() {
    let input = log(
        "awslogs",
        json!({"awslogs-group": "x", "max-size": "1m", "max-file": "7", "mode": "blocking"}),
    );
    let definition = Definition::from_echo(&accepted(&input).definition).unwrap();
    let warnings = definition.warnings(&"0a".repeat(16));
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    assert_eq!(
        warning,
        "container nginx: log driver awslogs is not supported yet: nothing is sent anywhere, and its output is kept \
         on its node as with json-file; read it with `berth logs 0a0a0a0a0a0a --container nginx`"
    );
    let log = &definition.containers[0].log;
    assert_eq!(
        (log.max_size_bytes, log.max_files, log.blocking),
        (Some(1 << 20), Some(7), true)
    );
    assert!(
        definition
            .refused_log_driver()
            .unwrap()
            .starts_with(&format!("{DRIVER}: awslogs: not supported yet"))
    );

    let plain = Definition::from_echo(&accepted(&good()).definition).unwrap();
    assert_eq!(
        (plain.warnings("0a").len(), plain.refused_log_driver()),
        (0, None)
    );
}

#[test]
fn who_waits_has_no_buffer() {
    for driver in ["json-file", "awslogs"] {
        let both = json!({"mode": "blocking", "max-buffer-size": "1m"});
        assert_eq!(
            problems(&log(driver, both)),
            [
                "containerDefinitions[0].logConfiguration.options.max-buffer-size: mode blocking has no buffer: leave \
              one of the two out"
            ]
        );
        accepted(&log(driver, json!({"mode": "blocking"})));
        let buffered = accepted(&log(
            driver,
            json!({"mode": "non-blocking", "max-buffer-size": "256m"}),
        ))
        .definition;
        let definition = Definition::from_echo(&buffered).unwrap();
        let log = &definition.containers[0].log;
        assert_eq!((log.blocking, log.max_buffer_bytes), (false, Some(256 << 20)));
        assert!(required_features(&definition).contains(&"log.buffer"));
    }
    let plain = Definition::from_echo(&accepted(&good()).definition).unwrap();
    assert!(!required_features(&plain).contains(&"log.buffer"));
    let blocking = accepted(&log("json-file", json!({"mode": "blocking"}))).definition;
    assert!(required_features(&Definition::from_echo(&blocking).unwrap()).contains(&"log.buffer"));
}

#[test]
fn a_driver_that_keeps_nothing_takes_what_every_driver_takes() {
    let input = log("none", json!({"mode": "blocking"}));
    let definition = Definition::from_echo(&accepted(&input).definition).unwrap();
    assert!(definition.containers[0].log.is_discarded());
    let plain = &definition.containers[1].log;
    assert!(!plain.is_discarded() && !plain.has_attributes());
    assert!(required_features(&definition).contains(&"log.none"));
    assert!(definition.warnings("0a").is_empty());
    assert_eq!(
        attributes(&input),
        ["com.amazonaws.ecs.capability.logging-driver.none"]
    );
    accepted(&container("logConfiguration", json!({"logDriver": "none"})));
    let at = "containerDefinitions[0].logConfiguration.options";
    for option in ["max-size", "max-file", "labels", "tag", "compress", "env"] {
        assert_eq!(
            problems(&log("none", json!({option: "1m"}))),
            [format!(
                "{at}.{option}: log driver none keeps nothing: leave it out, or use json-file"
            )]
        );
    }
    assert_eq!(
        problems(&log("none", json!({"colour": "red", "mode": "maybe"}))),
        [
            format!("{at}.colour: unknown option of none"),
            format!("{at}.mode: expected one of blocking, non-blocking; got \"maybe\""),
        ]
    );
}

#[test]
fn labels_and_a_tag_go_into_every_line() {
    let options = json!({"labels": "team", "labels-regex": "^x", "tag": "{{.Name}}", "compress": "false"});
    let labelled = with(
        log("json-file", options.clone()),
        "/containerDefinitions/0/dockerLabels",
        json!({"team": "a", "xy": "b", "other": "c"}),
    );
    let definition = Definition::from_echo(&accepted(&labelled).definition).unwrap();
    let log_of = &definition.containers[0].log;
    let expected = [("team", "a"), ("xy", "b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(log_of.attributes, BTreeMap::from(expected));
    assert_eq!(log_of.tag.as_deref(), Some("{{.Name}}"));
    assert!(required_features(&definition).contains(&"log.attributes"));
    // Those of a driver that does not exist yet are its own.
    let absent = accepted(&log("fluentd", options)).definition;
    assert!(
        !Definition::from_echo(&absent).unwrap().containers[0]
            .log
            .has_attributes()
    );
    let large = with(
        labelled,
        "/containerDefinitions/0/dockerLabels/xy",
        json!("b".repeat(4090)),
    );
    assert_eq!(
        problems(&large),
        [
            "containerDefinitions[0].logConfiguration.options: the labels come to 4097 bytes in every line, the limit is \
             4096"
        ]
    );
}
