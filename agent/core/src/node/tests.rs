mod environment;
mod faults;
mod gpus;
mod health;
mod lan;
mod network;
mod ports;
mod reboot;
mod restart;

use std::net::Ipv4Addr;

use super::*;

use crate::{
    container::{Container, Life, OOM_REASON},
    desired::{
        Condition, ContainerSpec, Dependency, DesiredStatus, Limits, LogSpec, NetworkMode, PortMapping,
        Protocol, TaskSpec,
    },
    effect::{Effect, SignalKind},
    event::{Exit, Failure, Restarted},
    ids::{Attempt, ContainerId},
    image::{ImageConfig, ResolvedImage},
    report::Status,
};

const MIB: u64 = 1 << 20;

fn node() -> Node {
    let capacity = Capacity {
        cpu_units: 1024,
        memory_bytes: 1024 * MIB,
        reserved_ports: [(Protocol::Tcp, 22)].into(),
    };
    let task_range = "10.0.0.0/29".parse().unwrap();
    Node::new(NodeConfig {
        capacity,
        task_range,
        boot_id: "boot".into(),
        dynamic_ports: Default::default(),
        log_retention_ms: 1_000,
        admission_deadline_ms: 60_000,
    })
}

fn container(n: u64, name: &str) -> ContainerSpec {
    ContainerSpec {
        id: format!("{n:032x}").parse().unwrap(),
        name: name.into(),
        image: "busy".into(),
        image_digest: String::new(),
        entry_point: vec![],
        command: vec![],
        environment: vec![],
        environment_files: vec![],
        working_directory: String::new(),
        user: String::new(),
        cpu_units: 0,
        memory_bytes: 0,
        memory_reservation_bytes: 0,
        essential: true,
        depends_on: vec![],
        stop_timeout_ms: 30_000,
        start_timeout_ms: 60_000,
        ports: vec![],
        labels: Default::default(),
        readonly_root_filesystem: false,
        ulimits: vec![],
        log: LogSpec {
            max_size_bytes: MIB,
            max_files: 2,
            blocking: false,
            max_buffer_bytes: 0,
            discard: false,
            attributes: Default::default(),
        },
        linux: Default::default(),
        networking: Default::default(),
        pseudo_terminal: false,
        interactive: false,
        restart: None,
        volumes: Default::default(),
        health_check: None,
        gpus: vec![],
    }
}

fn task(n: u64, cpu_units: u32, containers: Vec<ContainerSpec>) -> TaskSpec {
    TaskSpec {
        id: format!("{n:032x}").parse().unwrap(),
        arn: String::new(),
        cluster: "default".into(),
        family: "f".into(),
        revision: 1,
        desired: DesiredStatus::Running,
        network: NetworkMode::Awsvpc,
        pid: Default::default(),
        ipc: Default::default(),
        limits: Limits::default(),
        charge: Limits {
            cpu_units,
            memory_bytes: 64 * MIB,
        },
        containers,
        restart_after_reboot: false,
        stop_reason: String::new(),
        created_at: Millis(0),
        volumes: vec![],
        runtime: String::new(),
        subnet: None,
        lan: None,
        ephemeral_storage_bytes: 0,
        publish_ports: false,
        launch_type: "EC2".into(),
        group: String::new(),
        tags: Default::default(),
    }
}

fn position(revision: u64) -> Position {
    Position {
        store_id: "store".into(),
        epoch: 1,
        revision,
    }
}

fn snapshot(revision: u64, tasks: Vec<TaskSpec>) -> Event {
    Event::Snapshot {
        position: position(revision),
        tasks,
        refused: vec![],
        removals_confirmed: false,
    }
}

fn stop(revision: u64, mut spec: TaskSpec) -> Event {
    spec.desired = DesiredStatus::Stopped;
    Event::Delta {
        position: position(revision),
        changed: vec![spec],
        removed: vec![],
        refused: vec![],
    }
}

fn done(lane: Lane, completion: Completion) -> Event {
    Event::Completed { lane, completion }
}

fn image() -> Completion {
    Completion::ImageReady(Box::new(ResolvedImage {
        reference: "busy".into(),
        digest: "sha256:d".into(),
        resolved: "sha256:r".into(),
        chain_id: "sha256:c".into(),
        config: ImageConfig::default(),
    }))
}

/// Completes every effect well until nothing is under way, but leaves processes running.
fn settle(node: &mut Node, now: Millis, first: Change) -> Vec<Report> {
    let mut reports = first.reports;
    let mut queue: std::collections::VecDeque<Effect> = first.effects.into();
    while let Some(effect) = queue.pop_front() {
        let completion = match &effect {
            Effect::PrepareHost(_) => Completion::HostReady {
                mac_address: "02:00:00:00:00:01".into(),
                warnings: vec![],
            },
            Effect::PullImage { .. } => image(),
            Effect::FetchEnvironment(fetch) => environment::fetched(fetch),
            Effect::Start(start) => Completion::Started {
                attempt: start.attempt,
                pid: 7,
                warnings: vec![],
            },
            Effect::Signal { .. } => Completion::Signalled,
            Effect::Remove { .. } => Completion::Removed,
            Effect::ReleaseHost { .. } => Completion::HostReleased,
            Effect::RemoveLogs { .. } => Completion::LogsRemoved,
            // Those of health complete them by themselves.
            Effect::Probe(_) | Effect::Cancel(_) => continue,
        };
        let change = node.apply(now, done(effect.lane(), completion));
        assert!(change.anomalies.is_empty(), "{:?}", change.anomalies);
        queue.extend(change.effects);
        reports.extend(change.reports);
        if let Effect::Signal {
            task,
            container,
            attempt,
            kind,
        } = effect
        {
            let code = if kind == SignalKind::Kill { 137 } else { 143 };
            let change = node.apply(now, Event::Exited(exit(&task, &container, attempt, code)));
            queue.extend(change.effects);
            reports.extend(change.reports);
        }
    }
    reports
}

fn exit(task: &TaskId, container: &ContainerId, attempt: Attempt, code: i32) -> Exit {
    Exit {
        task: task.clone(),
        container: container.clone(),
        attempt,
        pid: 7,
        code,
        at: Millis(9),
        oom_killed: false,
        holder_ended: false,
    }
}

fn run(node: &mut Node, now: Millis, event: Event) -> Vec<Report> {
    let change = node.apply(now, event);
    settle(node, now, change)
}

fn statuses(reports: &[Report]) -> Vec<Status> {
    let mut statuses: Vec<_> = reports.iter().map(|r| r.task.facts.status).collect();
    statuses.dedup();
    statuses
}

#[test]
fn a_task_goes_up_and_down_and_says_so() {
    let mut node = node();
    let spec = task(1, 256, vec![container(10, "a")]);
    let up = run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    assert_eq!(statuses(&up), [Status::Pending, Status::Running]);
    let facts = &up.last().unwrap().task.facts;
    assert_eq!(facts.address, Some(Ipv4Addr::new(10, 0, 0, 1).into()));
    assert_eq!(facts.containers[0].image_digest.as_deref(), Some("sha256:d"));
    assert_eq!(facts.containers[0].resolved_digest.as_deref(), Some("sha256:r"));
    assert_eq!(node.resources().used().cpu_units, 256);

    let down = run(&mut node, Millis(5), stop(2, spec));
    assert_eq!(
        statuses(&down),
        [Status::Stopping, Status::Deprovisioning, Status::Stopped]
    );
    let last = &down.last().unwrap().task;
    assert_eq!(last.facts.stop.as_ref().unwrap().0, StopCode::UserInitiated);
    assert_eq!(last.facts.containers[0].exit_code, Some(143));
    assert_eq!(node.resources().used().cpu_units, 0);
    let owned: Vec<_> = node.ledger().entries().collect();
    assert!(
        matches!(owned.as_slice(), [Owned::Logs(_)]),
        "only its logs are kept: {owned:?}"
    );
}

#[test]
fn pull_and_network_begin_together() {
    let change = node().apply(Millis(0), snapshot(1, vec![task(1, 0, vec![container(10, "a")])]));
    let kinds: Vec<_> = change
        .effects
        .iter()
        .map(|e| matches!(e, Effect::PullImage { .. }))
        .collect();
    assert_eq!(kinds, [false, true]);
    assert!(matches!(change.effects[0], Effect::PrepareHost(_)));
}

#[test]
fn what_does_not_fit_waits_with_a_reason_and_wakes_when_processes_are_gone() {
    let mut node = node();
    let first = task(1, 1024, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![first.clone()]));
    let second = task(2, 512, vec![container(20, "a")]);
    let both = vec![first.clone(), second.clone()];
    let reports = run(&mut node, Millis(1), snapshot(2, both));
    let waiting = reports[0].task.facts.waiting.clone().unwrap();
    assert_eq!(waiting, "RESOURCE:CPU: wants 512 CPU units, 0 of 1024 are free");

    let reports = run(&mut node, Millis(2), stop(3, first));
    let started = reports
        .iter()
        .any(|r| r.task.id == second.id && r.task.facts.status == Status::Running);
    assert!(
        started,
        "the same event that freed the CPU starts the waiting task"
    );
}

#[test]
fn what_can_never_fit_fails_at_once() {
    let too_much = task(1, 4096, vec![container(10, "a")]);
    let reports = run(&mut node(), Millis(0), snapshot(1, vec![too_much]));
    let (code, reason) = reports.last().unwrap().task.facts.stop.clone().unwrap();
    assert_eq!(code, StopCode::TaskFailedToStart);
    assert_eq!(reason, "RESOURCE:CPU: wants 4096 CPU units, the node has 1024");

    let mut reserved = task(2, 0, vec![container(20, "a")]);
    reserved.network = NetworkMode::Host;
    reserved.containers[0].ports.push(PortMapping {
        container_port: 22,
        host_port: 22,
        protocol: Protocol::Tcp,
        last_container_port: None,
    });
    let reports = run(&mut node(), Millis(0), snapshot(1, vec![reserved]));
    assert!(
        reports
            .last()
            .unwrap()
            .task
            .facts
            .stop
            .clone()
            .unwrap()
            .1
            .contains("22/tcp is reserved")
    );
}

#[test]
fn without_a_free_address_a_task_waits_until_the_quarantine_ends() {
    let mut node = node();
    let specs: Vec<_> = (1..=7)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(1, specs.clone()));
    let waits = node.task(&specs[6].id).unwrap().waiting().unwrap();
    assert_eq!(
        waits,
        "RESOURCE:ENI: no free address in 10.0.0.0/29: 6 are in use, 0 rest after use"
    );
    run(&mut node, Millis(10), stop(2, specs[0].clone()));
    assert_eq!(
        node.task(&specs[6].id).unwrap().status(),
        Status::Pending,
        "the address rests"
    );
    run(
        &mut node,
        Millis(10 + crate::addresses::QUARANTINE_MS),
        Event::Timer(TimerKey::Quarantine),
    );
    assert_eq!(node.task(&specs[6].id).unwrap().status(), Status::Running);
}

#[test]
fn a_wait_ends_at_its_deadline() {
    let mut node = node();
    let first = task(1, 1024, vec![container(10, "a")]);
    let second = task(2, 512, vec![container(20, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![first, second.clone()]));
    let reports = run(
        &mut node,
        Millis(60_000),
        Event::Timer(TimerKey::Admission(second.id)),
    );
    let (code, reason) = reports.last().unwrap().task.facts.stop.clone().unwrap();
    assert_eq!(code, StopCode::TaskFailedToStart);
    assert!(reason.ends_with("waited 60 s for it"), "{reason}");
}

#[test]
fn an_essential_exit_stops_the_task_and_keeps_its_code() {
    let mut node = node();
    let mut side = container(11, "side");
    side.essential = false;
    let spec = task(1, 0, vec![container(10, "main"), side]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let id = |i: usize| spec.containers[i].id.clone();

    let reports = run(
        &mut node,
        Millis(1),
        Event::Exited(exit(&spec.id, &id(1), Attempt(1), 0)),
    );
    assert_eq!(
        statuses(&reports),
        [Status::Running],
        "a container that is not essential may end"
    );
    let mut oom = exit(&spec.id, &id(0), Attempt(1), 137);
    oom.oom_killed = true;
    let reports = run(&mut node, Millis(2), Event::Exited(oom));
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!(
        (facts.status, facts.stop.as_ref().unwrap().0),
        (Status::Stopped, StopCode::EssentialContainerExited)
    );
    assert_eq!(
        (
            facts.containers[0].exit_code,
            facts.containers[0].reason.as_deref()
        ),
        (Some(137), Some(OOM_REASON))
    );
}

#[test]
fn dependents_start_after_and_stop_before() {
    let mut node = node();
    let mut init = container(10, "init");
    init.essential = false;
    let mut main = container(11, "main");
    main.depends_on = vec![Dependency {
        container: "init".into(),
        condition: Condition::Success,
    }];
    let mut side = container(12, "side");
    side.depends_on = vec![Dependency {
        container: "main".into(),
        condition: Condition::Start,
    }];
    let spec = task(1, 0, vec![side, main, init]);
    let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    settle(&mut node, Millis(0), change);
    let life = |node: &Node, name: &str| {
        let id = &spec.container_named(name).unwrap().id;
        node.task(&spec.id).unwrap().container(id).life
    };
    assert_eq!(
        (life(&node, "init"), life(&node, "main")),
        (Life::Running, Life::Waiting)
    );
    let waiting = node.task(&spec.id).unwrap().waiting().unwrap();
    assert_eq!(waiting, "container side waits for container main to START");

    let init = spec.container_named("init").unwrap().id.clone();
    run(
        &mut node,
        Millis(1),
        Event::Exited(exit(&spec.id, &init, Attempt(1), 0)),
    );
    assert_eq!(
        (life(&node, "main"), life(&node, "side")),
        (Life::Running, Life::Running)
    );

    let change = node.apply(Millis(2), stop(2, spec.clone()));
    let signalled: Vec<_> = change.effects.iter().map(|e| e.lane()).collect();
    let side = spec.container_named("side").unwrap().id.clone();
    assert_eq!(
        signalled,
        [Lane::Lifecycle(spec.id.clone(), side)],
        "the dependent first, alone"
    );
}

#[test]
fn a_failed_dependency_fails_its_essential_dependent() {
    let mut node = node();
    let mut init = container(10, "init");
    init.essential = false;
    let mut main = container(11, "main");
    main.depends_on = vec![Dependency {
        container: "init".into(),
        condition: Condition::Success,
    }];
    let spec = task(1, 0, vec![main, init.clone()]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let reports = run(
        &mut node,
        Millis(1),
        Event::Exited(exit(&spec.id, &init.id, Attempt(1), 3)),
    );
    let facts = &reports.last().unwrap().task.facts;
    let (code, reason) = facts.stop.clone().unwrap();
    assert_eq!(
        (code, facts.status),
        (StopCode::TaskFailedToStart, Status::Stopped)
    );
    assert_eq!(reason, "dependency init exited with 3, SUCCESS was needed");
    assert_eq!(facts.containers[0].exit_code, Some(143));
}

#[test]
fn who_takes_volumes_waits_for_their_start_and_sees_them_but_does_not_stop_first() {
    let mut node = node();
    let first = container(10, "first");
    let mut taker = container(11, "taker");
    let from = crate::volumes::VolumesFrom {
        container: "first".into(),
        read_only: true,
    };
    taker.volumes.from = vec![from];
    let mut spec = task(1, 0, vec![taker.clone(), first.clone()]);
    spec.network = NetworkMode::None;
    let mut change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let mut started = Vec::new();
    while !change.effects.is_empty() {
        let mut next = Change::default();
        for effect in std::mem::take(&mut change.effects) {
            let completion = match &effect {
                Effect::PrepareHost(_) => Completion::HostReady {
                    mac_address: String::new(),
                    warnings: vec![],
                },
                Effect::PullImage { .. } => match image() {
                    Completion::ImageReady(mut image) => {
                        image.config.volumes = vec!["/data".into()];
                        Completion::ImageReady(image)
                    }
                    other => other,
                },
                Effect::Start(start) => {
                    let mounts = start
                        .mounts
                        .iter()
                        .map(|m| (m.path.clone(), m.read_only, m.populate));
                    started.push((start.spec.name.clone(), mounts.collect::<Vec<_>>()));
                    Completion::Started {
                        attempt: start.attempt,
                        pid: 1,
                        warnings: vec![],
                    }
                }
                other => panic!("{other:?}"),
            };
            next.effects
                .extend(node.apply(Millis(0), done(effect.lane(), completion)).effects);
        }
        change = next;
    }
    let data = |read_only, filled| vec![("/data".to_owned(), read_only, filled)];
    let expected = [
        ("first".to_owned(), data(false, true)),
        ("taker".to_owned(), data(true, false)),
    ];
    assert_eq!(started, expected);
    let change = node.apply(Millis(1), stop(2, spec));
    assert_eq!(change.effects.len(), 2, "{:?}", change.effects);
}

#[test]
fn volumes_of_what_cannot_be_started_or_told_are_not_taken() {
    for known in [true, false] {
        let mut node = node();
        let mut first = container(10, "first");
        first.essential = false;
        let mut taker = container(11, "taker");
        let from = |name: &str| crate::volumes::VolumesFrom {
            container: name.into(),
            read_only: false,
        };
        taker.volumes.from = vec![from(if known { "first" } else { "nobody" })];
        let spec = task(1, 0, vec![taker, first.clone()]);
        let change = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
        let pull = Lane::Pull(spec.id.clone(), first.id.clone());
        let failure = Failure {
            kind: "CannotPullContainerError".into(),
            message: "no".into(),
            retryable: false,
        };
        drop(change);
        let change = node.apply(Millis(0), done(pull, Completion::Failed(failure)));
        let stopped = change.reports.last().map(|r| r.task.facts.stop.clone());
        let reason = match known {
            true => stopped.flatten().unwrap().1,
            false => node.task(&spec.id).unwrap().stop.clone().unwrap().1,
        };
        let expected = if known {
            "dependency first did not run"
        } else {
            "takes volumes of \"nobody\", which the task does not have"
        };
        assert_eq!(reason, expected);
    }
}

#[test]
fn a_clock_that_is_set_neither_shortens_nor_lengthens_a_stop() {
    for by_ms in [3_600_000, -3_600_000] {
        let mut node = node();
        let spec = task(1, 0, vec![container(10, "a")]);
        let begin = Millis(10_000_000);
        run(&mut node, begin, snapshot(1, vec![spec.clone()]));
        let lane = Lane::Lifecycle(spec.id.clone(), spec.containers[0].id.clone());
        node.apply(begin, stop(2, spec.clone()));
        node.apply(begin.plus(10), done(lane, Completion::Signalled));
        let killed = |change: &Change| {
            let kill = |effect: &Effect| {
                matches!(
                    effect,
                    Effect::Signal {
                        kind: SignalKind::Kill,
                        ..
                    }
                )
            };
            change.effects.iter().any(kill)
        };
        let set = begin.plus(by_ms);
        let change = node.apply(set.plus(1_000), Event::ClockStepped { by_ms });
        assert!(!killed(&change));
        let key = TimerKey::Stop(spec.id.clone(), spec.containers[0].id.clone());
        assert!(
            change.timers.contains(&(key.clone(), set.plus(30_000))),
            "{:?}",
            change.timers
        );
        assert_eq!(node.deadline(&spec.id).unwrap().at, set.plus(30_000));
        assert!(!killed(&node.apply(set.plus(29_999), Event::Timer(key.clone()))));
        assert!(killed(&node.apply(set.plus(30_000), Event::Timer(key))));
    }
}

#[test]
fn sigkill_follows_the_stop_timeout_and_is_repeated() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let lane = Lane::Lifecycle(spec.id.clone(), spec.containers[0].id.clone());
    let kind = |change: &Change| match change.effects.as_slice() {
        [Effect::Signal { kind, .. }] => Some(*kind),
        _ => None,
    };
    let change = node.apply(Millis(100), stop(2, spec.clone()));
    assert_eq!(kind(&change), Some(SignalKind::Stop));
    node.apply(Millis(110), done(lane.clone(), Completion::Signalled));
    let deadline = node.deadline(&spec.id).unwrap();
    assert_eq!((deadline.at, deadline.then), (Millis(30_100), "SIGKILL is sent"));
    let timer = Event::Timer(TimerKey::Stop(spec.id.clone(), spec.containers[0].id.clone()));
    assert_eq!(
        kind(&node.apply(Millis(30_099), timer.clone())),
        None,
        "not a moment early"
    );
    assert_eq!(
        kind(&node.apply(Millis(30_100), timer.clone())),
        Some(SignalKind::Kill)
    );
    node.apply(Millis(30_110), done(lane, Completion::Signalled));
    assert_eq!(
        node.impairments(),
        Vec::<String>::new(),
        "the kernel has a moment to end it"
    );
    assert_eq!(kind(&node.apply(Millis(40_100), timer)), Some(SignalKind::Kill));
    assert_eq!(
        node.task(&spec.id).unwrap().status(),
        Status::Stopping,
        "never STOPPED with a process alive"
    );
    assert_eq!(node.impairments().len(), 1);
}

#[test]
fn a_stop_signal_that_could_not_be_sent_is_sent_again() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let lane = Lane::Lifecycle(spec.id.clone(), spec.containers[0].id.clone());
    node.apply(Millis(100), stop(2, spec));
    let failure = Failure {
        kind: "RuntimeError".into(),
        message: "containerd is away".into(),
        retryable: true,
    };
    let change = node.apply(Millis(110), done(lane.clone(), Completion::Failed(failure)));
    assert_eq!(change.effects, [], "not at once");
    let (key, at) = change.timers.last().cloned().unwrap();
    assert_eq!(key, TimerKey::Retry(lane));
    let change = node.apply(at, Event::Timer(key));
    let again = matches!(
        change.effects.as_slice(),
        [Effect::Signal {
            kind: SignalKind::Stop,
            ..
        }]
    );
    assert!(again, "{:?}", change.effects);
}

/// As where a profile of AppArmor takes no signals.
#[test]
fn a_stop_signal_that_cannot_be_sent_at_all_is_followed_by_the_kill() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let (id, timeout) = (spec.containers[0].id.clone(), spec.containers[0].stop_timeout_ms);
    let lane = Lane::Lifecycle(spec.id.clone(), id.clone());
    let key = TimerKey::Stop(spec.id.clone(), id);
    let change = node.apply(Millis(100), stop(2, spec));
    let kill_at = Millis(100).plus(i64::from(timeout));
    assert!(
        change.timers.contains(&(key.clone(), kill_at)),
        "{:?}",
        change.timers
    );
    let failure = Failure {
        kind: "RuntimeError".into(),
        message: "permission denied".into(),
        retryable: false,
    };
    let change = node.apply(Millis(110), done(lane, Completion::Failed(failure)));
    assert_eq!(change.effects, []);
    let change = node.apply(kill_at, Event::Timer(key));
    let killed = matches!(
        change.effects.as_slice(),
        [Effect::Signal {
            kind: SignalKind::Kill,
            ..
        }]
    );
    assert!(killed, "{:?}", change.effects);
}

#[test]
fn a_pull_that_fails_stops_the_task_with_ecs_words() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let failure = Failure {
        kind: "CannotPullContainerError".into(),
        message: "no such image".into(),
        retryable: true,
    };
    let lane = Lane::Pull(spec.id.clone(), spec.containers[0].id.clone());
    let change = node.apply(Millis(1), done(lane, Completion::Failed(failure)));
    let stop = node.task(&spec.id).unwrap().stop.clone().unwrap();
    assert_eq!(
        stop,
        (
            StopCode::TaskFailedToStart,
            "CannotPullContainerError: no such image".into()
        )
    );
    let cancelled = change
        .effects
        .iter()
        .any(|e| matches!(e, Effect::Cancel(Lane::Host(_))));
    assert!(
        cancelled,
        "the network that is being made is given up: {:?}",
        change.effects
    );
}

#[test]
fn a_stop_while_pulling_cancels_and_awaits_every_lane() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    let change = node.apply(Millis(1), stop(2, spec.clone()));
    assert_eq!(
        change.effects.len(),
        2,
        "host and pull are cancelled: {:?}",
        change.effects
    );
    let pull = Lane::Pull(spec.id.clone(), spec.containers[0].id.clone());
    assert_eq!(
        node.apply(Millis(2), done(pull, Completion::Cancelled)).effects,
        []
    );
    let change = node.apply(
        Millis(3),
        done(Lane::Host(spec.id.clone()), Completion::Cancelled),
    );
    assert!(
        matches!(change.effects.as_slice(), [Effect::ReleaseHost { .. }]),
        "{:?}",
        change.effects
    );
}

#[test]
fn a_foreign_or_older_store_is_refused() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(5, vec![spec]));
    let refused = |node: &mut Node, position: Position| {
        let change = node.apply(
            Millis(1),
            Event::Snapshot {
                position,
                tasks: vec![],
                refused: vec![],
                removals_confirmed: false,
            },
        );
        change.desired_ack.unwrap().refused
    };
    let foreign = Position {
        store_id: "other".into(),
        epoch: 9,
        revision: 99,
    };
    assert!(
        refused(&mut node, foreign)
            .unwrap()
            .contains("follows store store")
    );
    assert!(refused(&mut node, position(4)).unwrap().contains("newer"));
    assert_eq!(
        node.tasks().filter(|t| t.status() == Status::Running).count(),
        1,
        "nothing was stopped"
    );
}

/// The node as it is after a restart, speaking for `id`.
fn restarted_as(node: &Node, id: u64) -> Node {
    let record = serde_json::from_str(&serde_json::to_string(node.record()).unwrap()).unwrap();
    let mut node = Node::load(
        node.config.clone(),
        record,
        node.tasks().cloned(),
        Ledger::default(),
    )
    .speaks_for(format!("{id:032x}").parse().unwrap());
    let restarted = Restarted {
        host_rebooted: false,
        containers: vec![],
        ..Restarted::default()
    };
    node.apply(Millis(0), Event::Restarted(restarted));
    node
}

#[test]
fn a_host_that_was_registered_anew_follows_its_new_control_plane_and_ends_what_was_before() {
    let specs: Vec<_> = (1..=4)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    let mut node = restarted_as(&node(), 1);
    run(&mut node, Millis(0), snapshot(7, specs.clone()));
    let foreign = Event::Snapshot {
        position: Position {
            store_id: "other".into(),
            epoch: 1,
            revision: 1,
        },
        tasks: vec![],
        refused: vec![],
        removals_confirmed: false,
    };
    let mut same = restarted_as(&node, 1);
    assert!(!same.is_rejoined());
    let change = same.apply(Millis(1), foreign.clone());
    assert!(
        change
            .desired_ack
            .unwrap()
            .refused
            .unwrap()
            .contains("register --force")
    );

    let mut anew = restarted_as(&node, 2);
    assert!(anew.is_rejoined() && anew.record().position.is_none());
    let wanted = |node: &Node| node.tasks().filter(|t| !t.forgotten).count();
    assert_eq!(
        wanted(&anew),
        4,
        "they go on until the new control plane has spoken"
    );
    let anew_again = restarted_as(&anew, 2);
    assert!(anew_again.is_rejoined(), "until then it stays so over restarts");
    let change = anew.apply(Millis(1), foreign.clone());
    assert_eq!(change.desired_ack.unwrap().refused, None);
    assert_eq!(wanted(&anew), 0);
    assert!(!restarted_as(&anew, 2).is_rejoined());

    // From now on the guards are as before.
    let change = anew.apply(Millis(3), snapshot(9, vec![]));
    assert!(change.desired_ack.unwrap().refused.is_some());
}

#[test]
fn a_snapshot_that_would_stop_most_tasks_unexplained_is_held() {
    let mut node = node();
    let specs: Vec<_> = (1..=4)
        .map(|n| task(n, 0, vec![container(n * 16, "a")]))
        .collect();
    run(&mut node, Millis(0), snapshot(1, specs.clone()));
    let change = node.apply(Millis(1), snapshot(2, specs[..2].to_vec()));
    assert!(change.desired_ack.unwrap().refused.unwrap().contains("2 of 4"));
    let change = node.apply(Millis(1), snapshot(3, specs[..3].to_vec()));
    assert_eq!(
        change.desired_ack.unwrap().refused,
        None,
        "a single one is stopped"
    );
}

#[test]
fn a_reboot_stops_what_ran_and_cleans_up() {
    let mut node = node();
    let spec = task(1, 256, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec]));
    let restarted = Restarted {
        host_rebooted: true,
        containers: vec![],
        ..Restarted::default()
    };
    let reports = run(&mut node, Millis(9), Event::Restarted(restarted));
    let facts = &reports.last().unwrap().task.facts;
    assert_eq!(
        (facts.status, facts.stop.as_ref().unwrap().0),
        (Status::Stopped, StopCode::HostRestarted)
    );
}

#[test]
fn a_stored_node_goes_on_where_it_was() {
    let mut node = node();
    let spec = task(1, 256, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    let json = serde_json::to_string(node.task(&spec.id).unwrap()).unwrap();
    let config = node.config.clone();
    let mut node = Node::load(
        config,
        node.record().clone(),
        [serde_json::from_str(&json).unwrap()],
        node.ledger().clone(),
    );
    assert_eq!(node.resources().used().cpu_units, 256);
    let observed = crate::event::Observed {
        task: spec.id.clone(),
        container: spec.containers[0].id.clone(),
        attempt: Attempt(1),
        state: crate::event::ObservedState::Running { pid: 7 },
    };
    let restarted = Restarted {
        host_rebooted: false,
        containers: vec![observed],
        ..Restarted::default()
    };
    let change = node.apply(Millis(9), Event::Restarted(restarted));
    assert_eq!(
        (change.effects, change.reports),
        (vec![], vec![]),
        "nothing is touched, nothing is news"
    );
}

#[test]
fn a_task_is_forgotten_once_nobody_wants_it_and_its_logs_are_gone() {
    let mut node = node();
    let spec = task(1, 0, vec![container(10, "a")]);
    run(&mut node, Millis(0), snapshot(1, vec![spec.clone()]));
    run(&mut node, Millis(1), stop(2, spec.clone()));
    let forget = Event::Delta {
        position: position(3),
        changed: vec![],
        removed: vec![spec.id.clone()],
        refused: vec![],
    };
    run(&mut node, Millis(2), forget);
    assert!(node.task(&spec.id).is_some(), "its logs are kept");
    run(
        &mut node,
        Millis(2_000),
        Event::Timer(TimerKey::Retention(spec.id.clone())),
    );
    assert!(node.task(&spec.id).is_none());
    assert_eq!(node.ledger().entries().count(), 0);
}

#[test]
fn a_refused_spec_is_reported_stopped() {
    let id: TaskId = format!("{:032x}", 5).parse().unwrap();
    let change = node().apply(
        Millis(0),
        Event::Snapshot {
            position: position(1),
            tasks: vec![],
            refused: vec![faults::refused(&id, false)],
            removals_confirmed: false,
        },
    );
    let [report] = change.reports.as_slice() else {
        panic!("one report")
    };
    assert_eq!(
        (&report.task.id, report.task.facts.status),
        (&id, Status::Stopped)
    );
}
