//! The control plane's program as a service manager sees it: notification, health, metrics, signals, exit codes.

#![allow(clippy::unwrap_used)]

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixDatagram, UnixStream},
        process::{CommandExt as _, ExitStatusExt as _},
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Builds run beside the tests.
const SOON: Duration = Duration::from_secs(60);
const KEYS: &str = "[[keys]]\naccess_key_id = 'AKIDEXAMPLE00001'\nsecret_access_key = 'hush'\n";

struct Ground {
    dir: tempfile::TempDir,
    notify: UnixDatagram,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "state_dir = '{0}/state'\nrun_dir = '{0}/run'\napi_listen = '127.0.0.1:0'\nnode_listen = '127.0.0.1:0'\n{KEYS}",
            dir.path().display()
        );
        std::fs::write(dir.path().join("cp.toml"), text).unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(SOON)).unwrap();
        Self { dir, notify }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth-control-plane"));
        command
            .args(arguments)
            .arg("--config")
            .arg(self.path("cp.toml"))
            .env("NOTIFY_SOCKET", self.path("notify"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn serve(&self, more: &[&str]) -> Running {
        Running(self.command(&[&["serve"], more].concat()).spawn().unwrap())
    }

    /// The first message that has this in it.
    fn hear(&self, wanted: &str) -> String {
        let mut buffer = [0; 4_096];
        loop {
            let length = self
                .notify
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if message.contains(wanted) {
                return message;
            }
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.path("run/control-plane.sock")).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// How a start ends that cannot work, and what it says.
    fn refusal(&self, more: &[&str]) -> (Option<i32>, String) {
        let output = self.command(&[&["serve"], more].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < SOON, "does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn it_is_ready_when_it_serves_and_says_so_until_it_is_stopped() {
    let ground = Ground::new();
    let mut running = ground.serve(&[]);
    ground.hear("READY=1");
    assert!(ground.get("/livez").starts_with("HTTP/1.1 200"));
    let ready = ground.get("/readyz?verbose");
    assert!(
        ready.starts_with("HTTP/1.1 200") && ready.contains("[+] store: ok"),
        "{ready}"
    );
    let status = ground.hear("STATUS=API on 127.0.0.1:");
    assert!(status.contains("0 connected"), "{status}");
    let api = status
        .strip_prefix("STATUS=API on ")
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .to_owned();
    let mut unsigned = TcpStream::connect(api).unwrap();
    unsigned
        .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .unwrap();
    unsigned.read_to_end(&mut Vec::new()).unwrap();
    let metrics = ground.get("/metrics");
    for line in [
        "berth_build_info{program=\"berth-control-plane\"",
        "berth_ready 1",
        "berth_condition{condition=\"listeners\"} 1",
        "berth_api_requests_total{operation=\"other\",outcome=\"refused\"} 1",
        "berth_api_request_duration_seconds_count{operation=\"other\"} 1",
        "berth_store_transactions_total{outcome=\"done\"}",
        "berth_store_duration_seconds_bucket{",
        "berth_state_dir_free_bytes ",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert_eq!(metrics.matches("# EOF").count(), 1);
    let mode = std::fs::metadata(ground.path("run/control-plane.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    running.signal(Signal::SIGHUP);
    running.signal(Signal::SIGTERM);
    ground.hear("STOPPING=1");
    assert_eq!(running.wait().code(), Some(0));
    assert!(!ground.path("run/control-plane.sock").exists());
}

#[test]
fn the_watchdog_is_fed_while_the_store_answers() {
    let ground = Ground::new();
    let mut command = ground.command(&["serve"]);
    command.env("WATCHDOG_USEC", "400000");
    let running = Running(command.spawn().unwrap());
    ground.hear("READY=1");
    for _ in 0..3 {
        ground.hear("WATCHDOG=1");
    }
    drop(running);
}

#[test]
fn a_signal_is_heard_at_any_time_of_the_start() {
    let ground = Ground::new();
    for delay in 0..12 {
        let mut running = ground.serve(&[]);
        std::thread::sleep(Duration::from_millis(delay * 7));
        running.signal(Signal::SIGTERM);
        let begun = Instant::now();
        let status = running.wait();
        // Before the program has taken the signal over, the kernel ends it.
        let asked = status.code() == Some(0) || status.signal() == Some(15);
        assert!(
            asked && begun.elapsed() < Duration::from_secs(12),
            "after {delay}: {status}"
        );
    }
    let _running = ground.serve(&[]);
    ground.hear("READY=1");
}

#[test]
fn layers_decide_and_the_origin_is_shown() {
    let ground = Ground::new();
    std::fs::create_dir(ground.path("cp.conf.d")).unwrap();
    std::fs::write(ground.path("cp.conf.d/10-site.toml"), "region = 'eu-west-1'\n").unwrap();
    let output = ground
        .command(&["config", "show", "--origin", "--set", "node_silence_seconds=20"])
        .env("BERTH_CONTROL_PLANE__ACCOUNT_ID", "123456789012")
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    for line in [
        "region = \"eu-west-1\"  # ",
        "10-site.toml:1\n",
        "account_id = \"123456789012\"  # environment variable BERTH_CONTROL_PLANE__ACCOUNT_ID",
        "node_silence_seconds = 20  # --set",
        "heartbeat_interval_seconds = 5  # default",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn a_configuration_that_cannot_work_ends_with_78_and_its_place() {
    let ground = Ground::new();
    for (more, words) in [
        (
            vec!["--set", "regoin=x"],
            "--set: regoin is not a setting: known are `state_dir`",
        ),
        (
            vec!["--set", "region=Europe"],
            "--set: region: \"Europe\" is not a region",
        ),
        (
            vec!["--set", "account_id=1"],
            "account_id: \"1\" is not twelve digits",
        ),
    ] {
        let (code, text) = ground.refusal(&more);
        assert!(code == Some(78) && text.contains(words), "{code:?} {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let mut validate = ground.command(&["config", "validate"]);
    assert_eq!(validate.output().unwrap().status.code(), Some(0));
    std::fs::write(ground.path("cp.toml"), "region = \n").unwrap();
    let output = ground.command(&["config", "validate"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(78) && text.contains("cp.toml:1:"),
        "{text}"
    );
    let wrong = ground.command(&["serve", "--nonsense"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn what_the_host_does_not_give_is_said_with_what_to_do() {
    let ground = Ground::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for key in ["api_listen", "node_listen", "metrics_listen"] {
        let (code, text) = ground.refusal(&["--set", &format!("{key}={address}")]);
        let said = text.contains(&format!(
            "{key}: listen on {address} (`ss -ltnp` says who has the port"
        ));
        assert!(code == Some(1) && said, "{code:?} {text}");
    }
    let (code, text) = ground.refusal(&["--set", "node_listen=192.0.2.1:1"]);
    assert!(
        code == Some(1) && text.contains("no interface of this host has the address"),
        "{text}"
    );
    std::fs::write(ground.path("file"), "").unwrap();
    let (code, text) = ground.refusal(&[
        "--set",
        &format!("state_dir={}", ground.path("file/state").display()),
    ]);
    assert!(
        code == Some(1) && text.contains("create the state directory"),
        "{text}"
    );
}

#[test]
fn an_unreadable_file_is_named_with_who_may_read_it() {
    const NOBODY: u32 = 65_534;
    let ground = Ground::new();
    std::fs::set_permissions(ground.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut first = ground.serve(&[]);
    ground.hear("READY=1");
    first.signal(Signal::SIGTERM);
    first.wait();
    std::fs::create_dir(ground.path("run-of-nobody")).unwrap();
    std::os::unix::fs::chown(ground.path("run-of-nobody"), Some(NOBODY), Some(NOBODY)).unwrap();
    let run_dir = format!("run_dir={}", ground.path("run-of-nobody").display());
    let output = ground
        .command(&["serve", "--set", &run_dir])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && text.contains("this process is user 65534"),
        "{text}"
    );
}

/// A file system of a few pages, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_called_that() {
    let ground = Ground::new();
    let full = Tmpfs(ground.path("full"));
    std::fs::create_dir(&full.0).unwrap();
    let mount = nix::mount::mount(
        Some("tmpfs"),
        &full.0,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=16k"),
    );
    mount.expect("a file system can be mounted: run as root");
    let (code, text) = ground.refusal(&["--set", &format!("state_dir={}", full.0.join("state").display())]);
    assert!(
        code == Some(1) && text.contains("no space is left"),
        "{code:?} {text}"
    );
}
