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

#[test]
fn what_a_task_shares_is_its_holders() {
    let shared = |pid, ipc| {
        some()
            .sharing(pid, ipc)
            .held_by(Some(7), Some("/run/b/shm/t".into()))
    };
    let namespaces = |spec: &Value, kind: &str| {
        let all = at(spec, "/linux/namespaces").as_array().unwrap().clone();
        all.into_iter().find(|one| one["type"] == kind).unwrap()
    };
    let shm = |spec: &Value| {
        let mounts = at(spec, "/mounts").as_array().unwrap();
        let all: Vec<_> = mounts
            .iter()
            .filter(|m| m["destination"] == "/dev/shm")
            .cloned()
            .collect();
        assert_eq!(all.len(), 1, "{all:?}");
        all[0].clone()
    };
    let both = shared(PidMode::Task, IpcMode::Task).build().unwrap();
    assert_eq!(
        namespaces(&both, "pid"),
        json!({"type": "pid", "path": "/proc/7/ns/pid"})
    );
    assert_eq!(
        namespaces(&both, "ipc"),
        json!({"type": "ipc", "path": "/proc/7/ns/ipc"})
    );
    assert_eq!(shm(&both)["source"], "/run/b/shm/t");
    assert_eq!(shm(&both)["options"], json!(["rbind", "rprivate", "rw"]));
    let pid = shared(PidMode::Task, IpcMode::Container).build().unwrap();
    assert_eq!(namespaces(&pid, "ipc"), json!({"type": "ipc"}));
    assert_eq!(shm(&pid)["type"], "tmpfs");
    let ipc = shared(PidMode::Container, IpcMode::Task).build().unwrap();
    assert_eq!(namespaces(&ipc, "pid"), json!({"type": "pid"}));
    let volume = shared(PidMode::Task, IpcMode::Task).mount(Mount::volume("/v", "/dev/shm"));
    assert_eq!(shm(&volume.build().unwrap())["source"], "/v");
    for (pid, ipc) in [
        (PidMode::Task, IpcMode::Container),
        (PidMode::Container, IpcMode::Task),
    ] {
        assert_eq!(some().sharing(pid, ipc).build(), Err(OciError::NoHolder));
    }
}
