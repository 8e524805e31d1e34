//! The registry with real loggers: registration, death, replacement, adoption after a restart of the agent.
#![allow(clippy::unwrap_used)]

mod logs_support;

use std::{
    io::{Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_agent::logs::{
    AdoptError, LogQuery, LoggerCommand, LoggerRegistry, RegistryConfig, RegistryError, container_log, stream,
};
use berth_agent::metrics::METRICS;
use berth_service::notify::Notifier;
use logs_support::{Container, DEADLINE, id, kill, lives, logger_binary, manager::Manager, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An agent's registry, running.
struct Agent {
    registry: LoggerRegistry,
    /// What was asked to be placed: runtime id, pid.
    placed: Arc<Mutex<Vec<(String, u32)>>>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        Self::with(directory, Notifier::default())
    }

    fn with(directory: &Path, notifier: Notifier) -> Self {
        let placed = Arc::new(Mutex::new(Vec::new()));
        let seen = placed.clone();
        let (registry, server) = LoggerRegistry::listen(RegistryConfig {
            socket: socket(directory),
            logger: logger_binary().to_owned(),
            place: Arc::new(move |id, pid| seen.lock().unwrap().push((id.to_owned(), pid))),
            notifier,
        })
        .unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(server.run(stop.clone()));
        Self {
            registry,
            placed,
            stop,
            server,
        }
    }

    /// As SIGKILL would: nothing of it is left but what its loggers hold.
    async fn end(self) {
        self.stop.cancel();
        self.server.await.unwrap();
    }

    fn last_placed(&self) -> Option<u32> {
        self.placed.lock().unwrap().last().map(|(_, pid)| *pid)
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("run/loggers.sock")
}

fn command(directory: &Path, digit: char) -> LoggerCommand {
    LoggerCommand {
        logger: logger_binary().to_owned(),
        socket: socket(directory),
        runtime_id: format!("{}-1", id(digit)),
        path: container_log(&directory.join("t"), "web", &id(digit)).unwrap(),
        max_size_bytes: 0,
        max_files: 1,
        blocking: false,
        max_buffer_bytes: 0,
        discard: false,
        attributes: Default::default(),
    }
}

/// Everything in a container's log, in order.
async fn text(directory: &Path, digit: char) -> String {
    let mut lines = stream(LogQuery {
        task_dir: directory.join("t"),
        containers: vec![("web".into(), id(digit))],
        tail: 0,
        since_ms: 0,
        follow: false,
        alive: Arc::new(|_| false),
    });
    let mut text = Vec::new();
    while let Some(batch) = lines.recv().await {
        batch
            .unwrap()
            .iter()
            .for_each(|line| text.extend_from_slice(&line.data));
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_is_registered_when_it_is_ready_and_until_the_output_ends() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path());
    let command = command(directory.path(), 'a');
    assert!(!agent.registry.registered(&command.runtime_id));
    let mut container = Container::start(&command);
    assert!(agent.registry.registered(&command.runtime_id));
    assert_eq!(agent.registry.len(), 1);
    container.stdout.as_mut().unwrap().write_all(b"one\ntwo").unwrap();
    container.exit();
    until("the registry lets go", || agent.registry.is_empty().then_some(())).await;
    assert_eq!(text(directory.path(), 'a').await, "one\ntwo\n");
    assert!(agent.placed.lock().unwrap().is_empty(), "nothing was replaced");
    let mode = std::fs::metadata(socket(directory.path()))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    agent.end().await;
}

/// Agent and logger die together; the next agent is given the pipes and goes on from them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipes_outlive_agent_and_logger_in_the_service_managers_store() {
    const LINES: u64 = 400_000;
    let directory = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(directory.path());
    let command = command(directory.path(), '9');
    let first = Agent::with(directory.path(), manager.notifier());
    let mut container = Container::start(&command);
    manager.until_stored(2);
    let mut writer = Command::new("seq")
        .args(["1", &LINES.to_string()])
        .stdout(container.stdout.take().unwrap())
        .stderr(container.stderr.take().unwrap())
        .spawn()
        .unwrap();
    first.end().await;
    container.kill_logger();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        writer.try_wait().unwrap().is_none(),
        "the writer waits, and saw no SIGPIPE"
    );

    let second = Agent::with(directory.path(), manager.notifier());
    second.registry.take_back(manager.hand_over());
    assert!(second.registry.has_stored(&command.runtime_id));
    let path = command.path.clone().into_os_string();
    let arguments = |id: &str| {
        let pairs = [("id", id.into()), ("path", path.clone())];
        pairs.map(|(key, value)| (key.into(), value)).into()
    };
    let unknown = second.registry.resume("another-1", arguments("another-1")).await;
    assert!(matches!(unknown, Err(AdoptError::NotFound { .. })));
    let id = &command.runtime_id;
    second.registry.resume(id, arguments(id)).await.unwrap();
    second.registry.drop_unclaimed();
    let status = until("the writer ends", || writer.try_wait().unwrap()).await;
    assert!(status.success(), "the writer saw no SIGPIPE: {status}");
    until("the output ended", || second.registry.is_empty().then_some(())).await;
    // Its end is told to the manager, which lets go.
    manager.until_stored(0);
    let (mut next, text) = (1, text(directory.path(), '9').await);
    for line in text.lines() {
        let number: u64 = line.parse().expect("no line is broken");
        assert!(number <= next, "{next} was lost");
        next = next.max(number + 1);
    }
    assert_eq!(next, LINES + 1);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_could_not_be_written_are_counted() {
    let dropped = || {
        METRICS
            .log_lines_dropped
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path());
    let command = command(directory.path(), '6');
    // No log file can be made where a directory is.
    std::fs::create_dir_all(&command.path).unwrap();
    let mut container = Container::start(&command);
    container
        .stdout
        .as_mut()
        .unwrap()
        .write_all(b"1\n2\n3\n")
        .unwrap();
    until("the agent knows", || (dropped() == 3).then_some(())).await;
    container.exit();
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_pipes_of_containers_that_are_gone_are_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let mut manager = Manager::new(directory.path());
    let first = Agent::with(directory.path(), manager.notifier());
    let commands = ['7', '8'].map(|digit| command(directory.path(), digit));
    let mut containers = commands.each_ref().map(Container::start);
    manager.until_stored(4);
    first.registry.forget(&commands[0].runtime_id);
    manager.until_stored(2);
    first.end().await;
    let second = Agent::with(directory.path(), manager.notifier());
    second.registry.take_back(manager.hand_over());
    assert!(!second.registry.has_stored(&commands[0].runtime_id));
    second.registry.drop_unclaimed();
    manager.until_stored(0);
    assert!(!second.registry.has_stored(&commands[1].runtime_id));
    containers.iter_mut().for_each(Container::exit);
    second.end().await;
}

/// The writer is never disturbed, and every line is there, in order; those repeated are few.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_loggers_are_replaced_and_nothing_is_lost() {
    const LINES: u64 = 1_500_000;
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path());
    let command = command(directory.path(), 'b');
    let mut container = Container::start(&command);
    let mut writer = Command::new("seq")
        .args(["1", &LINES.to_string()])
        .stdout(container.stdout.take().unwrap())
        .stderr(container.stderr.take().unwrap())
        .spawn()
        .unwrap();
    container.kill_logger();
    let mut kills = 1;
    while writer.try_wait().unwrap().is_none() {
        let known = until("it is replaced", || {
            let known = agent.placed.lock().unwrap().len();
            (known >= kills || !agent.registry.registered(&command.runtime_id)).then_some(known)
        })
        .await;
        // Twenty quick deaths would make the registry wait between them: as it should, but not here.
        if known < kills || kills >= 6 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        kill(agent.last_placed().unwrap());
        kills += 1;
    }
    let status = until("the writer ends", || writer.try_wait().unwrap()).await;
    assert!(status.success(), "the writer saw no SIGPIPE: {status}");
    until("the output ended", || agent.registry.is_empty().then_some(())).await;
    assert!(
        agent
            .placed
            .lock()
            .unwrap()
            .iter()
            .all(|(id, _)| *id == command.runtime_id)
    );

    let (mut next, mut repeated) = (1, 0);
    for line in text(directory.path(), 'b').await.lines() {
        let number: u64 = line.parse().expect("no line is broken");
        assert!(number <= next, "{next} was lost");
        repeated += u64::from(number < next);
        next = next.max(number + 1);
    }
    println!("{kills} kills, {repeated} lines repeated");
    assert_eq!(next, LINES + 1);
    assert!(kills >= 3 && repeated <= kills as u64 * 64 * 1024 / 2);
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_again_adopts_its_loggers() {
    let directory = tempfile::tempdir().unwrap();
    let command = command(directory.path(), 'c');
    let first = Agent::start(directory.path());
    let mut container = Container::start(&command);
    let logger = container.logger.id();
    first.end().await;
    container
        .stdout
        .as_mut()
        .unwrap()
        .write_all(b"while nobody was there\n")
        .unwrap();

    let second = Agent::start(directory.path());
    assert!(!second.registry.registered(&command.runtime_id));
    let nobody = second
        .registry
        .adopt(&command.runtime_id, &[std::process::id()])
        .await;
    assert!(matches!(nobody, Err(AdoptError::NotFound { processes: 1, .. })));
    let foreign = second.registry.adopt("another-1", &[logger]).await;
    assert!(matches!(foreign, Err(AdoptError::NotFound { .. })));
    for _ in 0..2 {
        let pids = [std::process::id(), logger];
        second.registry.adopt(&command.runtime_id, &pids).await.unwrap();
        assert!(second.registry.registered(&command.runtime_id));
    }

    container
        .stdout
        .as_mut()
        .unwrap()
        .write_all(b"unfinished ")
        .unwrap();
    container.kill_logger();
    let replaced = until("it is replaced", || second.last_placed()).await;
    assert!(lives(replaced));
    container.stdout.as_mut().unwrap().write_all(b"line\n").unwrap();
    second.end().await;

    // And a logger that an agent started is found like one that the shim did.
    let third = Agent::start(directory.path());
    third
        .registry
        .adopt(&command.runtime_id, &[replaced])
        .await
        .unwrap();
    kill(replaced);
    until("it is replaced again", || third.last_placed()).await;
    container.exit();
    until("the output ended", || third.registry.is_empty().then_some(())).await;
    assert_eq!(
        text(directory.path(), 'c').await,
        "while nobody was there\nunfinished line\n"
    );
    third.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_logger_that_started_alone_is_adopted() {
    let directory = tempfile::tempdir().unwrap();
    let command = command(directory.path(), 'd');
    let mut container = Container::start(&command);
    let agent = Agent::start(directory.path());
    agent
        .registry
        .adopt(&command.runtime_id, &[container.logger.id()])
        .await
        .unwrap();
    container.stdout.as_mut().unwrap().write_all(b"alone\n").unwrap();
    container.exit();
    until("the output ended", || agent.registry.is_empty().then_some(())).await;
    assert_eq!(text(directory.path(), 'd').await, "alone\n");
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_container_has_no_new_logger() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path());
    let command = command(directory.path(), 'e');
    let mut container = Container::start(&command);
    agent.registry.forget(&command.runtime_id);
    agent.registry.forget("never seen");
    container.kill_logger();
    let error = until("nobody reads", || {
        container.stdout.as_mut().unwrap().write_all(b"x\n").err()
    })
    .await;
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    assert!(agent.last_placed().is_none());
    agent.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_and_delay_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(directory.path());
    let connect = || UnixStream::connect(socket(directory.path())).unwrap();
    let silent: Vec<_> = (0..50).map(|_| connect()).collect();
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"BLG1\xff\xff\xff\xff",
        b"BLG1\x00\x00\x00\x00",
        b"BLG1\x0f\x00\x00\x00id\0x\0path\0/tmp/x\0",
    ] {
        let mut link = connect();
        let _ = link.write_all(garbage);
        link.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = Vec::new();
        let _ = link.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{garbage:?} got {answer:?}");
    }
    let started = Instant::now();
    let command = command(directory.path(), 'f');
    let mut container = Container::start(&command);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(agent.registry.len(), 1);
    // Those who say nothing are not kept for ever.
    for mut link in silent {
        link.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(link.read(&mut [0]).unwrap(), 0);
    }
    container.exit();
    agent.end().await;
}

#[tokio::test]
async fn a_socket_in_use_is_left_alone_and_a_stale_one_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = socket(directory.path());
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    let config = || RegistryConfig {
        socket: socket(directory.path()),
        logger: logger_binary().to_owned(),
        place: Arc::new(|_, _| {}),
        notifier: Notifier::default(),
    };
    let other = UnixListener::bind(&path).unwrap();
    assert!(matches!(
        LoggerRegistry::listen(config()),
        Err(RegistryError::InUse { .. })
    ));
    drop(other);
    assert!(LoggerRegistry::listen(config()).is_ok());
}
