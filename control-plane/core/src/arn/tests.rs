use super::*;
use proptest::prelude::*;

const ID: &str = "0123456789abcdef0123456789abcdef";
const OLD_ID: &str = "01234567-89ab-cdef-0123-456789abcdef";

fn here() -> Realm {
    Realm {
        region: "eu-north-1".into(),
        account: "123456789012".into(),
    }
}

#[test]
fn arns_are_formatted_in_the_long_form() {
    let at = "arn:aws:ecs:eu-north-1:123456789012";
    assert_eq!(here().cluster("shop"), format!("{at}:cluster/shop"));
    assert_eq!(here().task("shop", ID), format!("{at}:task/shop/{ID}"));
    assert_eq!(
        here().container_instance("shop", ID),
        format!("{at}:container-instance/shop/{ID}")
    );
    assert_eq!(
        here().task_definition("web", 7),
        format!("{at}:task-definition/web:7")
    );
    assert_eq!(
        here().container("shop", ID, ID),
        format!("{at}:container/shop/{ID}/{ID}")
    );
}

#[test]
fn every_arn_we_format_parses_back() {
    for arn in [
        here().cluster("shop"),
        here().task("shop", ID),
        here().container_instance("shop", ID),
        here().task_definition("web", 7),
        here().container("shop", ID, ID),
    ] {
        assert_eq!(arn.parse::<Arn>().unwrap().to_string(), arn);
        assert!(here().own(&arn).is_ok());
    }
}

#[test]
fn a_cluster_is_named_by_name_or_arn_and_defaults() {
    let arn = here().cluster("shop");
    for (input, name) in [
        (None, "default"),
        (Some(""), "default"),
        (Some("shop"), "shop"),
        (Some(arn.as_str()), "shop"),
    ] {
        assert_eq!(here().cluster_name(input).as_deref(), Ok(name), "{input:?}");
    }
    for bad in [
        "a b",
        "a/b",
        "ä",
        "arn:aws:ecs:eu-north-1:123456789012:cluster/",
        &"x".repeat(256),
    ] {
        assert!(
            matches!(here().cluster_name(Some(bad)), Err(RefError::Malformed { .. })),
            "{bad}"
        );
    }
    let task = here().task("shop", ID);
    assert!(matches!(
        here().cluster_name(Some(&task)),
        Err(RefError::WrongKind { kind: "task", .. })
    ));
}

#[test]
fn a_task_is_named_by_id_short_or_long_arn() {
    let long = here().task("shop", ID);
    let short = format!("arn:aws:ecs:eu-north-1:123456789012:task/{ID}");
    for input in [ID, &long, &short] {
        assert_eq!(here().task_id("shop", input).as_deref(), Ok(ID), "{input}");
    }
    assert_eq!(here().task_id("shop", OLD_ID).as_deref(), Ok(OLD_ID));
    assert_eq!(
        here().task_id("lab", &long).unwrap_err().to_string(),
        format!("{long} belongs to cluster shop, the request is for cluster lab")
    );
    for bad in ["", "web", &ID[1..], &ID.to_uppercase()] {
        assert!(
            matches!(here().task_id("shop", bad), Err(RefError::Malformed { .. })),
            "{bad}"
        );
    }
}

#[test]
fn a_container_instance_is_named_like_a_task() {
    let long = here().container_instance("shop", ID);
    let short = format!("arn:aws:ecs:eu-north-1:123456789012:container-instance/{ID}");
    for input in [ID, &long, &short] {
        assert_eq!(
            here().container_instance_id("shop", input).as_deref(),
            Ok(ID),
            "{input}"
        );
    }
    let task = here().task("shop", ID);
    assert!(here().container_instance_id("shop", &task).is_err());
}

#[test]
fn a_task_definition_is_named_by_family_revision_or_arn() {
    let arn = here().task_definition("web", 7);
    for (input, expected) in [
        ("web", TaskDefinitionRef::Family("web".into())),
        ("web:7", TaskDefinitionRef::Revision("web".into(), 7)),
        (&arn, TaskDefinitionRef::Revision("web".into(), 7)),
    ] {
        assert_eq!(here().task_definition_ref(input), Ok(expected), "{input}");
    }
    for bad in [
        "",
        "web:",
        "web:0",
        "web:+7",
        "web:-1",
        "web:7:8",
        "web:99999999999",
        "we b",
        ":7",
    ] {
        assert!(here().task_definition_ref(bad).is_err(), "{bad}");
    }
}

#[test]
fn an_arn_of_elsewhere_is_never_taken_for_ours() {
    for foreign in [
        "arn:aws:ecs:us-east-1:123456789012:cluster/shop",
        "arn:aws:ecs:eu-north-1:999999999999:cluster/shop",
    ] {
        assert!(
            matches!(here().cluster_name(Some(foreign)), Err(RefError::Foreign { .. })),
            "{foreign}"
        );
    }
    for broken in [
        "arn:aws:s3:::bucket",
        "arn:aws:ecs:eu-north-1:123456789012:pod/x",
        "shop",
    ] {
        assert!(
            matches!(here().own(broken), Err(RefError::Malformed { .. })),
            "{broken}"
        );
    }
}

proptest! {
    #[test]
    fn no_string_makes_the_parsers_panic(s in ".{0,80}", tail in "[a-z/:0-9-]{0,80}") {
        for input in [s, format!("arn:aws:ecs:eu-north-1:123456789012:{tail}")] {
            if let Ok(arn) = input.parse::<Arn>() {
                prop_assert_eq!(arn.to_string().parse::<Arn>(), Ok(arn));
            }
            let _ = (here().cluster_name(Some(&input)), here().task_id("c", &input));
            let _ = (here().task_definition_ref(&input), here().own(&input));
        }
    }
}
