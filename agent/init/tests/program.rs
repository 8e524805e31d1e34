//! The program as it is shipped, on this host: as a usual process, and as the first of a PID namespace.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

/// Bytes: it is mapped into every container that asks for it.
const BINARY_BYTES_MAX: u64 = 2 << 20;

fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("berth-init");
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../scripts/build-helpers");
        let status = Command::new(script).arg(&directory).arg("berth-init").status();
        assert!(status.unwrap().success());
        directory.join("berth-init")
    })
}

/// `sh -c script` below it.
fn under(options: &[&str], script: &str) -> Command {
    let mut command = Command::new(program());
    command.args(options).args(["--", "sh", "-c", script]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn code(options: &[&str], script: &str) -> Option<i32> {
    under(options, script).status().unwrap().code()
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    BufReader::new(out).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

fn send(child: &Child, signal: i32) {
    let sent = Command::new("kill")
        .args([format!("-{signal}"), child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
}

#[test]
fn it_is_small_and_says_what_is_wrong() {
    assert!(fs::metadata(program()).unwrap().len() <= BINARY_BYTES_MAX);
    for arguments in [&[][..], &["--nonsense", "--", "x"], &["--init", "--"]] {
        let output = Command::new(program()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125));
        assert!(output.stderr.starts_with(b"berth-init: "));
    }
}

#[test]
fn it_ends_as_its_program_ended() {
    for options in [&[][..], &["--init"]] {
        assert_eq!(code(options, "exit 0"), Some(0));
        assert_eq!(code(options, "exit 7"), Some(7));
        let missing = Command::new(program())
            .args(options)
            .args(["--", "/no/such"])
            .output();
        assert_eq!(missing.as_ref().unwrap().status.code(), Some(127));
        assert!(String::from_utf8_lossy(&missing.unwrap().stderr).contains("cannot execute /no/such"));
        let directory = Command::new(program())
            .args(options)
            .args(["--", "/etc"])
            .output();
        assert_eq!(directory.unwrap().status.code(), Some(126));
    }
    assert_eq!(code(&["--init"], "kill -KILL $$"), Some(137));
    assert_eq!(code(&["--init"], "kill -TERM $$"), Some(143));
    // Without, it is the program.
    assert_eq!(under(&[], "kill -TERM $$").status().unwrap().signal(), Some(15));
}

#[test]
fn signals_reach_the_program_and_nobody_else() {
    for (signal, name) in [
        (15, "TERM"),
        (1, "HUP"),
        (10, "USR1"),
        (28, "WINCH"),
        (37, "RTMIN+3"),
    ] {
        let script = format!("trap 'exit 9' {name}; echo ready; while true; do sleep 0.05; done");
        let mut child = Command::new(program())
            .args(["--init", "--", "bash", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(first_line(&mut child), "ready");
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(9), "{name}");
    }
    // None is blocked or ignored for the program.
    let output = under(&["--init"], "grep -E '^Sig(Blk|Ign)' /proc/self/status")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let plain = Command::new("grep")
        .args(["-E", "^Sig(Blk|Ign)", "/proc/self/status"])
        .output()
        .unwrap();
    let without_sigpipe = |text: &str| {
        let mask = |line: &str| {
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap() & !(1 << 12)
        };
        text.lines().map(mask).collect::<Vec<_>>()
    };
    assert_eq!(
        without_sigpipe(&text),
        without_sigpipe(&String::from_utf8(plain.stdout).unwrap())
    );
}

#[test]
fn orphans_come_to_it_and_are_reaped() {
    // In a PID namespace, where it is the first, and without one.
    for before in [&["unshare", "--pid", "--fork", "--mount-proc"][..], &["env"]] {
        let script = "(sh -c 'sleep 0.1 & echo $!' > /tmp/$0; true) & wait; orphan=$(cat /tmp/$0); \
                      sleep 0.5; test -e /proc/$orphan && echo remains || echo reaped; exit 3";
        let name = format!("berth-init-{}-{}", std::process::id(), before[0]);
        let output = Command::new(before[0])
            .args(&before[1..])
            .arg(program())
            .args(["--init", "--", "sh", "-c", script, &name])
            .output()
            .unwrap();
        let _ = fs::remove_file(format!("/tmp/{name}"));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "reaped\n",
            "{before:?} {output:?}"
        );
        assert_eq!(output.status.code(), Some(3));
    }
}

#[test]
fn an_open_input_is_waited_for() {
    let said = |options: &[&str]| {
        let script = "timeout 0.3 cat; echo $?; set -- /proc/$$/fd/*; echo $#";
        let mut child = under(options, script).stdin(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success());
        let mut lines = said.lines().map(|line| line.trim().parse::<u32>().unwrap());
        (lines.next().unwrap(), lines.next().unwrap())
    };
    let (code, descriptors) = said(&[]);
    assert_eq!(code, 0, "the end was read");
    for options in [&["--open-stdin"][..], &["--open-stdin", "--init"]] {
        assert_eq!(said(options), (124, descriptors), "{options:?}");
    }
}

#[test]
fn what_holds_a_namespace_reaps_too_and_no_signal_from_inside_ends_it() {
    // The shell is beside the holder in its namespace, and neither is the other's parent.
    let mut holder = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(program())
        .arg("--hold")
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", holder.id());
    let inside = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        let pid = fs::read_to_string(&children).ok()?.trim().to_owned();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "berth-init").then_some(pid)
    });
    let inside = inside.unwrap();
    let script = "(sleep 0.2 & echo $! > /tmp/$0); orphan=$(cat /tmp/$0); kill -TERM 1; kill -KILL 1; sleep 0.6; \
                  test -e /proc/1/comm && test -e /proc/$orphan && echo remains || cat /proc/1/comm";
    let name = format!("berth-hold-{}", std::process::id());
    let output = Command::new("nsenter")
        .args(["--target", &inside, "--pid", "--mount", "sh", "-c", script, &name])
        .output()
        .unwrap();
    let _ = fs::remove_file(format!("/tmp/{name}"));
    let _ = holder.kill();
    holder.wait().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "berth-init\n",
        "{output:?}"
    );
}
