//! Which containers begin with berth-init, and how.

use super::*;

fn with_init() -> OciSpec {
    some().init(Some("/usr/bin/berth-init".into()))
}

fn mounted(spec: &Value) -> Option<Value> {
    let mounts = at(spec, "/mounts").as_array().unwrap();
    mounts.iter().find(|mount| mount["destination"] == INIT).cloned()
}

#[test]
fn a_container_whose_input_stays_open_begins_with_berth_init() {
    let plain = with_init().build().unwrap();
    assert_eq!(at(&plain, "/process/args"), &json!(["/bin/true"]));
    assert_eq!(mounted(&plain), None);

    let open = with_init().interactive(true).build().unwrap();
    assert_eq!(
        at(&open, "/process/args"),
        &json!(["/sbin/berth-init", "--open-stdin", "--", "/bin/true"])
    );
    let mount = mounted(&open).unwrap();
    assert_eq!(mount["source"], "/usr/bin/berth-init");
    assert_eq!(mount["options"], json!(["rbind", "rprivate", "ro"]));

    // A terminal stays open by itself.
    let terminal = some().interactive(true).terminal(true).build().unwrap();
    assert_eq!(at(&terminal, "/process/args"), &json!(["/bin/true"]));
}

#[test]
fn an_init_process_has_the_program_below_it() {
    let options = LinuxOptions {
        init_process: true,
        ..LinuxOptions::default()
    };
    let spec = with_init().linux(&options).terminal(true).build().unwrap();
    assert_eq!(
        at(&spec, "/process/args"),
        &json!(["/sbin/berth-init", "--init", "--", "/bin/true"])
    );
    assert!(mounted(&spec).is_some());
    let both = with_init().linux(&options).interactive(true).build().unwrap();
    assert_eq!(
        at(&both, "/process/args"),
        &json!(["/sbin/berth-init", "--open-stdin", "--init", "--", "/bin/true"])
    );
    assert_eq!(some().linux(&options).build(), Err(OciError::InitMissing));
}

#[test]
fn where_it_is_needed_and_missing_nothing_is_built() {
    assert_eq!(some().interactive(true).build(), Err(OciError::InitMissing));
    let nothing = OciSpec::new(vec![], "/c", V1)
        .init(Some("/i".into()))
        .interactive(true);
    assert_eq!(nothing.build(), Err(OciError::NoCommand));
}
