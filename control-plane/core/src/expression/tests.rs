use super::*;
use proptest::prelude::*;

fn matches(expression: &str) -> bool {
    let attributes = BTreeMap::from(
        [
            ("ecs.os-type", Some("linux")),
            ("ecs.instance-type", Some("t2.small")),
            ("rack", Some("7")),
            ("site name", Some("shop 12")),
            ("gpu", None),
        ]
        .map(|(k, v)| (k.to_string(), v.map(str::to_string))),
    );
    let groups = BTreeMap::from([("service:web".to_string(), 2), ("family:batch".to_string(), 1)]);
    let subject = Subject {
        node_id: "0123456789abcdef0123456789abcdef",
        attributes: &attributes,
        groups: &groups,
        running_tasks: 3,
        connected: true,
        agent_version: "1.20.3",
        registered_at_ms: 1_529_360_908_000, // 2018-06-18T22:28:28Z
    };
    Expression::parse(expression)
        .unwrap_or_else(|e| panic!("{expression}: {e}"))
        .matches(&subject)
}

#[test]
fn what_matches_and_what_does_not() {
    for (expression, expected) in [
        ("attribute:ecs.os-type == linux", true),
        ("attribute:ecs.os-type==linux", true),
        ("attribute:ecs.os-type equals linux", true),
        ("attribute:ecs.os-type == \"linux\"", true),
        ("attribute:ecs.os-type == 'linux'", true),
        ("attribute:ecs.os-type == Linux", false),
        ("attribute:ecs.os-type != windows", true),
        ("attribute:ecs.os-type not_equals linux", false),
        ("attribute:ecs.instance-type in [t2.small, t2.medium]", true),
        ("attribute:ecs.instance-type in [t2.medium]", false),
        ("attribute:ecs.instance-type not_in [t2.medium]", true),
        ("attribute:ecs.instance-type !in [t2.small]", false),
        ("attribute:ecs.instance-type =~ t2.*", true),
        ("attribute:ecs.instance-type =~ t2", false), // the whole value must match
        ("attribute:ecs.instance-type =~ t[23]\\.(small|large)", true),
        ("(attribute:ecs.instance-type =~ t2.*)", true),
        ("attribute:ecs.instance-type matches \"t2.*\"", true),
        ("attribute:ecs.instance-type !~ t2.*", false),
        ("attribute:ecs.instance-type not_matches t3.*", true),
        ("attribute:gpu exists", true),
        ("attribute:gpu == yes", false),
        ("attribute:gpu not_exists", false),
        ("attribute:ssd exists", false),
        ("attribute:ssd !exists", true),
        ("attribute:ssd == yes", false),
        ("attribute:ssd != yes", true),
        ("attribute:ssd not_in [yes]", true),
        ("attribute:ssd > 1", false),
        ("attribute:rack > 6", true),
        ("attribute:rack >= 7", true),
        ("attribute:rack greater_than 7", false),
        ("attribute:rack < 10", true), // as numbers: "7" < "10" is false as text
        ("attribute:rack less_than_equal 7.0", true),
        ("attribute:ecs.os-type > 1", false),
        ("task:group == service:web", true),
        ("task:group == service:db", false),
        ("task:group != service:web", false),
        ("task:group in [service:db, family:batch]", true),
        ("not(task:group == service:db)", true),
        ("task:group =~ service:.*", true),
        ("runningTasksCount == 3", true),
        ("runningTasksCount < 3", false),
        ("runningTasksCount <= 3", true),
        ("agentConnected == true", true),
        ("agentConnected != true", false),
        ("agentVersion >= 1.9.0", true),
        ("agentVersion < 1.20.3", false),
        ("agentVersion == 1.20.3", true),
        ("containerInstanceId == 0123456789abcdef0123456789abcdef", true),
        ("registeredAt == 2018-06-18", true),
        ("registeredAt >= 2018-06-18 and registeredAt < 2018-06-19", true),
        ("registeredAt > 2018-06-18", false), // the day is over only at its end
        ("registeredAt > 2018-06-18T22:28:27Z", true),
        ("registeredAt != 2018-06-18", false),
    ] {
        assert_eq!(matches(expression), expected, "{expression}");
    }
}

#[test]
fn not_binds_tighter_than_and_and_tighter_than_or() {
    let (t, f) = ("attribute:gpu exists", "attribute:ssd exists");
    for (expression, expected) in [
        (format!("{t} or {f} and {f}"), true),
        (format!("({t} or {f}) and {f}"), false),
        (format!("not {f} and {t}"), true),
        (format!("not ({f} and {t})"), true),
        (format!("!{t} || {t}"), true),
        (format!("! {t} && {t}"), false),
        (format!("!!{t}"), true),
        (format!("{t}&&{t}||{f}"), true),
        ("attribute:rack == 7&&attribute:rack == 8".to_string(), false),
    ] {
        assert_eq!(matches(&expression), expected, "{expression}");
    }
}

#[test]
fn errors_name_the_column() {
    let deep = "(".repeat(DEPTH_MAX + 1);
    let long = "x".repeat(EXPRESSION_CHARS_MAX + 1);
    let many = format!("attribute:x in [{}]", vec!["a"; VALUES_MAX + 1].join(","));
    for (expression, column, says) in [
        ("", 1, "found the end"),
        ("   ", 4, "found the end"),
        ("rack == 7", 1, "expected attribute:NAME, task:group"),
        ("attribute: == 7", 12, "attribute's name"),
        ("attribute:rack", 15, "expected an operator"),
        (
            "attribute:rack is 7",
            16,
            "expected an operator such as == or in, found \"is\"",
        ),
        ("attribute:rack ==", 18, "expected a value, found the end"),
        (
            "attribute:rack == 7 attribute:x exists",
            21,
            "expected `and`, `or` or the end",
        ),
        ("attribute:rack == 7 and", 24, "found the end"),
        ("attribute:rack in 7", 19, "expected `[`"),
        ("attribute:rack in [7", 21, "expected `,` or `]`"),
        ("attribute:rack in []", 20, "expected a value"),
        ("attribute:rack > high", 18, "expected a number, found \"high\""),
        (
            "attribute:rack =~ [a",
            19,
            "not a usable pattern: unclosed character class",
        ),
        ("attribute:rack =~ \"a)(b\"", 19, "not a usable pattern"),
        ("attribute:rack =~ (\\w{500}){500}", 19, "not a usable pattern"),
        ("attribute:rack == \"7", 19, "never closed"),
        ("(attribute:rack == 7", 21, "expected `)`"),
        ("registeredAt > soon", 16, "expected a date"),
        ("agentVersion > new", 16, "expected a version"),
        ("agentConnected exists", 16, "does not take this operator"),
        ("runningTasksCount =~ 3", 19, "does not take this operator"),
        ("attribute:ä == 7", 11, "attribute's name"),
        (&deep, DEPTH_MAX + 1, "nested deeper than 32"),
        (&long, EXPRESSION_CHARS_MAX + 1, "the limit is 2000"),
        (&many, 217, "more than 100 values"),
    ] {
        let error = Expression::parse(expression).unwrap_err();
        assert!(error.message.contains(says), "{expression}: {error}");
        assert_eq!(error.column, column, "{expression}: {error}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,120}") {
        let _ = Expression::parse(&text);
    }

    #[test]
    fn no_heap_of_words_makes_parser_or_evaluator_panic(words in prop::collection::vec(prop::sample::select(vec![
        "attribute:rack", "attribute:", "task:group", "registeredAt", "agentVersion", "==", "!=", "=~", "!~", "in",
        "!in", "<", ">=", "exists", "!", "not", "and", "or", "&&", "(", ")", "[", "]", ",", "7", "t2.*", "\"", "'", "é",
        "2018-06-18", "\\",
    ]), 0..24), space in prop::bool::ANY) {
        let text = words.join(if space { " " } else { "" });
        if Expression::parse(&text).is_ok() {
            matches(&text);
        }
    }
}
