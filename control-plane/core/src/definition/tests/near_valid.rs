//! Definitions that are nearly right, made from the table of fields: so that values get past the first look, and no field
//! is left out of the laws when it is added.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};

use super::{laws::registers_or_explains, *};
use crate::definition::{
    fields::TASK_DEFINITION,
    schema::{Field, Shape, Support},
};

/// How likely something is, of 1000.
const HOSTILE: u32 = 4;
const HONOURED: u32 = 150;
const REFUSED: u32 = 3;
const REQUIRED: u32 = 995;
/// Deeper than any parser of requests goes.
const NESTING_MAX: usize = 500;
/// Of what is generated this many of 100 must be accepted, and refused, or the generator tries too little.
const EACH_OUTCOME_PERCENT_MIN: usize = 3;

/// What nobody should send: of any type, anywhere.
fn hostile() -> BoxedStrategy<Value> {
    let texts = vec![
        "",
        " ",
        "\0",
        "a\0b",
        "../../etc/passwd",
        "/..",
        "ä\u{301}\u{202e}💥",
        "\u{feff}",
        "=",
        ":",
        "@",
        "1e400",
        "-0",
        "0x10",
        "99999999999999999999999999 GB",
        "0.00000000000000000000000000001 vCPU",
    ];
    let numbers = vec![
        i64::MIN,
        i64::from(i32::MIN),
        -1,
        0,
        i64::from(i32::MAX),
        i64::from(i32::MAX) + 1,
        i64::MAX,
    ];
    let nested = (1..NESTING_MAX, any::<bool>()).prop_map(|(depth, array)| {
        let wrap = |inner: Value| {
            if array {
                json!([inner])
            } else {
                json!({"name": inner})
            }
        };
        (0..depth).fold(json!(1), |inner, _| wrap(inner))
    });
    prop_oneof![
        8 => prop::sample::select(texts).prop_map(Value::from),
        4 => prop::sample::select(numbers).prop_map(Value::from),
        2 => any::<u64>().prop_map(Value::from),
        2 => any::<f64>().prop_map(Value::from),
        2 => any::<String>().prop_map(Value::from),
        2 => (0..70_000_usize).prop_map(|length| Value::from("x".repeat(length))),
        1 => (0..1_200_usize).prop_map(|length| Value::from(vec![Value::Null; length])),
        1 => nested,
        2 => laws::any_json(),
    ]
    .boxed()
}

/// Required in fact, though ECS's model does not say so.
const EXPECTED: [&str; 4] = ["containerPort", "expression", "namespace", "value"];

/// Texts that suit a field of that name; the last one does not.
fn text(name: &str) -> BoxedStrategy<Value> {
    let apt: &[&str] = match name {
        "family" | "name" | "containerName" | "sourceContainer" | "sourceVolume" => {
            &["web", "redis", "side", ""]
        }
        // A health check's begins so, and a container's may.
        "command" => &["CMD", "true", ""],
        "image" => &["nginx", "localhost:5000/a/b:1.2", "quay.io/a@sha256:00", "Nginx"],
        "cpu" => &["256", "1 vCPU", ".5 vcpu", "512", "0.1 vCPU"],
        "memory" => &["1024", "2 GB", "4GB", "0.5 gb", "5"],
        "user" => &["www", "www:adm", "0", "1:2", ":"],
        "workingDirectory" | "containerPath" | "hostPath" => &["/srv", "/a/b", "/c", "srv"],
        "namespace" => &["net.core.somaxconn", "kernel.msgmax", "kernel.panic"],
        "ipAddress" => &["10.0.0.1", "::1", "10.0.0.256"],
        "expression" => &["attribute:a == b", "attribute:ecs.os-type == linux", "=="],
        "taskRoleArn" | "executionRoleArn" => &["arn:aws:iam::123456789012:role/r", "role"],
        "add" | "drop" => &["SYS_PTRACE", "NET_ADMIN", "ALL", "CAP_CHOWN"],
        "mountOptions" => &["ro", "mode=1777", "size=1", "bind"],
        "dockerSecurityOptions" => &["no-new-privileges", "no-new-privileges:false", "label:x"],
        "dnsServers" => &["10.0.0.2", "fd00::2", "dns"],
        "value" => &[
            "arn:aws:s3:::config/web.env",
            "https://config.example/web",
            "1",
            "x y",
        ],
        "hostname" => &["web", "web.local", "-"],
        _ => &["a", "1", "x y", "a.b"],
    };
    let mut weighted: Vec<_> = apt
        .iter()
        .map(|text| (20, Just(Value::from(*text)).boxed()))
        .collect();
    if let Some(last) = weighted.last_mut() {
        last.0 = 1;
    }
    weighted.push((1, ".{0,12}".prop_map(Value::from).boxed()));
    prop::strategy::Union::new_weighted(weighted).boxed()
}

fn integer(name: &str) -> BoxedStrategy<Value> {
    let bounds: &[i64] = match name {
        "memory" | "memoryReservation" => &[6, 64, 256, 5],
        "containerPort" | "hostPort" => &[80, 443, 65_535, 65_536],
        "ignoredExitCodes" => &[0, 1, 255, 256],
        "restartAttemptPeriod" => &[60, 300, 1_800, 59],
        "softLimit" | "hardLimit" => &[-1, 1_024, 65_536, -2],
        "interval" => &[5, 30, 300, 4],
        "timeout" => &[2, 5, 60, 1],
        "retries" => &[1, 3, 10, 0],
        "startTimeout" | "stopTimeout" => &[1, 30, 120, 0],
        _ => &[0, 1, 5, 60],
    };
    // The last one of each is out of bounds.
    let weights = bounds.iter().zip([10, 10, 10, 1]);
    let each = weights.map(|(value, weight)| (weight, Just(Value::from(*value)).boxed()));
    prop::strategy::Union::new_weighted(each.collect()).boxed()
}

fn value(name: &'static str, shape: &'static Shape) -> BoxedStrategy<Value> {
    let right = match shape {
        Shape::Text => text(name),
        Shape::Integer => integer(name),
        Shape::Flag => any::<bool>().prop_map(Value::from).boxed(),
        Shape::Choice(choice) => {
            let refused: Vec<_> = [choice.later, choice.never].concat();
            let honoured = prop::sample::select(choice.honoured).prop_map(Value::from);
            if refused.is_empty() {
                honoured.boxed()
            } else {
                let refused = prop::sample::select(refused).prop_map(Value::from);
                prop_oneof![40 => honoured, 1 => refused].boxed()
            }
        }
        Shape::List(element) => prop::collection::vec(value(name, element), 1..3)
            .prop_map(Value::from)
            .boxed(),
        Shape::Map => prop::collection::btree_map(
            prop::sample::select(vec!["max-size", "max-file"]),
            prop::sample::select(vec!["3", "64k", "10m"]).prop_map(Value::from),
            0..3,
        )
        .prop_map(|map| Value::Object(map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()))
        .boxed(),
        Shape::Object(fields) => object(fields),
    };
    prop_oneof![1000 - HOSTILE => right, HOSTILE => hostile()].boxed()
}

fn object(fields: &'static [Field]) -> BoxedStrategy<Value> {
    let member = |field: &'static Field| {
        let likely = match (field.required, field.support) {
            (true, _) => REQUIRED,
            (false, Support::Honoured) if EXPECTED.contains(&field.name) => REQUIRED,
            (false, Support::Honoured) => HONOURED,
            (false, _) => REFUSED,
        };
        let there = prop::bool::weighted(f64::from(likely) / 1000.0);
        let value = value(field.name, &field.shape);
        there.prop_flat_map(move |there| match there {
            true => value.clone().prop_map(Some).boxed(),
            false => Just(None).boxed(),
        })
    };
    let members: Vec<_> = fields.iter().map(member).collect();
    members
        .prop_map(|values| {
            let named = fields.iter().zip(values);
            let there = named.filter_map(|(field, value)| Some((field.name.to_owned(), value?)));
            Value::Object(there.collect())
        })
        .boxed()
}

/// As the table has it, with a mode, one size for all and the volumes that are mounted: most would be refused for want of
/// these alone.
fn near_valid() -> impl Strategy<Value = Value> {
    let mode = prop::sample::select(vec!["awsvpc", "host", "none"]);
    (object(TASK_DEFINITION), mode, prop::bool::weighted(0.9)).prop_map(|(mut input, mode, sized)| {
        if let Some(task) = input.as_object_mut().filter(|_| sized) {
            task.entry("networkMode").or_insert(json!(mode));
            task.entry("memory").or_insert(json!("2048"));
            task.insert(
                "volumes".into(),
                json!([{"name": "web"}, {"name": "redis"}, {"name": "side"}]),
            );
        }
        input
    })
}

#[test]
fn what_is_nearly_valid_is_accepted_and_refused() {
    let mut runner = TestRunner::deterministic();
    let all = near_valid();
    let tries = 400;
    let good = (0..tries)
        .filter(|_| register(&all.new_tree(&mut runner).unwrap().current()).is_ok())
        .count();
    let least = tries * EACH_OUTCOME_PERCENT_MIN / 100;
    assert!(
        (least..=tries - least).contains(&good),
        "{good} of {tries} are accepted"
    );
}

proptest! {
    #![proptest_config(Config::with_cases(400))]

    #[test]
    fn what_is_nearly_valid_gives_a_definition_or_problems(input in near_valid()) {
        registers_or_explains(&input)?;
    }

    #[test]
    fn a_hostile_value_anywhere_gives_a_definition_or_problems(
        name in prop::sample::select(TASK_DEFINITION.iter().map(|field| field.name).collect::<Vec<_>>()),
        value in hostile(),
    ) {
        registers_or_explains(&with(good(), &format!("/{name}"), value.clone()))?;
        registers_or_explains(&value)?;
    }
}
