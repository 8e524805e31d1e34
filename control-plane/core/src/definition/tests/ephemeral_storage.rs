//! `ephemeralStorage`, which FARGATE has too.

use super::*;
use crate::task::Definition;

#[test]
fn a_size_is_echoed_needs_a_node_that_knows_it_and_can_be_overridden() {
    let fargate = with(good(), "/requiresCompatibilities", json!(["FARGATE"]));
    for size in [21, 200] {
        let given = with(fargate.clone(), "/ephemeralStorage", json!({"sizeInGiB": size}));
        let echo = accepted(&given).definition;
        assert_eq!(echo["ephemeralStorage"], json!({"sizeInGiB": size}));
        assert!(echo["compatibilities"].to_string().contains("FARGATE"));
        let read = Definition::from_echo(&echo).unwrap();
        assert_eq!(read.ephemeral_storage_gib, Some(size));
        assert!(read.requirements().features.contains(&"storage.ephemeral"));
        let less = json!({"ephemeralStorage": {"sizeInGiB": 22}});
        let overridden = override_definition(&echo, &less).unwrap();
        let read = Definition::from_echo(&overridden.definition).unwrap();
        assert_eq!(read.ephemeral_storage_gib, Some(22));
        let bad = json!({"ephemeralStorage": {"sizeInGiB": 500}});
        let problems = override_definition(&echo, &bad).unwrap_err();
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            ["overrides.ephemeralStorage.sizeInGiB: 500 is above the maximum of 200 GiB"]
        );
    }
    let none = Definition::from_echo(&accepted(&fargate).definition).unwrap();
    assert_eq!(none.ephemeral_storage_gib, None);
    assert!(!none.requirements().features.contains(&"storage.ephemeral"));
    assert_eq!(
        problems(&with(good(), "/ephemeralStorage", json!({}))),
        ["ephemeralStorage.sizeInGiB: required"]
    );
}
