//! The control plane as a process: what it says, and how it ends.
#![allow(clippy::unwrap_used)] // Clippy does not see that helpers of a test binary are tests too.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest wait for anything.
const SOON: Duration = Duration::from_secs(20);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-control-plane"));
    command.env_remove("RUST_LOG");
    command
}

fn write_config(directory: &Path, api_listen: &str) -> std::path::PathBuf {
    let path = directory.join("config.toml");
    let text = format!(
        "state_dir = '{0}/state'\nrun_dir = '{0}/run'\napi_listen = '{api_listen}'\nnode_listen = '127.0.0.1:0'\n[[keys]]\n\
         access_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 'very-secret'\n",
        directory.display()
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// Kills the process if the test does not get to its end.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Process {
    /// Serving, as it says itself.
    fn serve(config: &Path) -> Self {
        let mut child = command()
            .arg("serve")
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let process = Self(child);
        let mut lines = log.lines().map_while(Result::ok);
        let served = lines.by_ref().find(|line| {
            assert!(!line.contains("very-secret"));
            line.contains("serving")
        });
        assert!(served.is_some(), "it ended before it served");
        // Read on, or a full pipe would hold it up.
        std::thread::spawn(move || lines.count());
        process
    }

    fn end(&mut self) -> std::process::ExitStatus {
        let started = Instant::now();
        while started.elapsed() < SOON {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end");
    }
}

#[test]
fn says_its_version() {
    let output = run(&["version"]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("berth-control-plane {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_configuration_that_cannot_work_ends_with_78_and_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), "0.0.0.0:0");
    let output = run(&["serve", "--config", config.to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("api_listen") && said.contains("not a loopback address"),
        "{said}"
    );
    assert!(!directory.path().join("state").exists(), "nothing was made");
    let output = run(&["serve", "--config", "/none.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert_eq!(run(&["serve", "--nonsense"]).status.code(), Some(2));
}

#[test]
fn stops_on_a_signal_and_a_second_one_is_kept_out_meanwhile() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let directory = tempfile::tempdir().unwrap();
        let config = write_config(directory.path(), "127.0.0.1:0");
        let mut process = Process::serve(&config);
        let elsewhere = format!("run_dir={}", directory.path().join("elsewhere").display());
        for (more, words) in [
            (vec![], "somebody listens there already"),
            (vec!["--set", &elsewhere], "in use by another control plane"),
        ] {
            let second = run(&[&["serve", "--config", config.to_str().unwrap()], &more[..]].concat());
            let said = String::from_utf8(second.stderr).unwrap();
            assert_eq!(second.status.code(), Some(1), "{said}");
            assert!(said.contains(words), "{said}");
        }
        kill(Pid::from_raw(process.0.id().try_into().unwrap()), signal).unwrap();
        assert!(process.end().success(), "{signal}");
    }
}

#[test]
fn starts_again_after_sigkill() {
    let directory = tempfile::tempdir().unwrap();
    let config = write_config(directory.path(), "127.0.0.1:0");
    drop(Process::serve(&config));
    drop(Process::serve(&config));
}
