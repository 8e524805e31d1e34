//! Environment files that the node fetches.

use super::*;
use crate::{
    effect::FetchEnvironment,
    environment::{EnvironmentFile, Fetching, Variables},
    event::Failure,
};

const URL: &str = "https://config.example/web";

fn variables(pairs: &[(&str, &str)]) -> Variables {
    Variables(
        pairs
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect(),
    )
}

pub(super) fn fetched(fetch: &FetchEnvironment) -> Completion {
    let file = |url: &String| (url.clone(), variables(&[("FETCHED", url), ("B", "fetched")]));
    Completion::EnvironmentReady(fetch.urls.iter().map(file).collect())
}

/// Two containers of which one has files: of the control plane's, then of a server.
fn spec(n: u64) -> TaskSpec {
    let mut with = container(n * 16, "with");
    with.environment = vec![("A".into(), "own".into())];
    with.environment_files = vec![
        EnvironmentFile::Variables(variables(&[("A", "stored"), ("B", "stored")])),
        EnvironmentFile::Url(URL.into()),
    ];
    let mut other = container(n * 16 + 1, "other");
    other.essential = false;
    task(n, 256, vec![with, other])
}

fn lane(spec: &TaskSpec) -> Lane {
    Lane::Environment(spec.id.clone())
}

fn failed(retryable: bool) -> Completion {
    Completion::Failed(Failure {
        kind: "ResourceInitializationError".into(),
        message: "no answer".into(),
        retryable,
    })
}

fn fetches(change: &Change) -> usize {
    let fetch = |effect: &&Effect| matches!(effect, Effect::FetchEnvironment(_));
    change.effects.iter().filter(fetch).count()
}

fn starts(change: &Change) -> Vec<&crate::effect::StartContainer> {
    let starts = change.effects.iter().filter_map(|effect| match effect {
        Effect::Start(start) => Some(start.as_ref()),
        _ => None,
    });
    starts.collect()
}

/// Everything of the task is ready but what is fetched.
fn ready(node: &mut Node, spec: &TaskSpec) -> Change {
    let first = node.apply(Millis(0), snapshot(1, vec![spec.clone()]));
    assert_eq!(fetches(&first), 1, "{:?}", first.effects);
    let mut all = Change::default();
    for lane in first.effects.iter().map(Effect::lane) {
        let completion = match &lane {
            Lane::Host(_) => Completion::HostReady {
                mac_address: "02:00:00:00:00:01".into(),
                warnings: vec![],
            },
            Lane::Pull(..) => image(),
            _ => continue,
        };
        let change = node.apply(Millis(1), done(lane, completion));
        all.effects.extend(change.effects);
    }
    all
}

#[test]
fn a_container_starts_with_its_files_and_the_others_do_not_wait_for_them() {
    let spec = spec(1);
    let mut node = node();
    let change = ready(&mut node, &spec);
    let started: Vec<_> = starts(&change).iter().map(|start| &start.spec.name).collect();
    assert_eq!(started, ["other"]);
    let waiting = node.task(&spec.id).unwrap().waiting();
    assert_eq!(waiting.as_deref(), Some("fetches environment files"));

    let files = [(URL.to_owned(), variables(&[("B", "late"), ("C", "fetched")]))].into();
    let change = node.apply(Millis(2), done(lane(&spec), Completion::EnvironmentReady(files)));
    let start = starts(&change)[0];
    // The first file wins, and the definition over all of them.
    assert_eq!(
        Variables(start.spec.environment.clone()).0,
        variables(&[("B", "stored"), ("C", "fetched"), ("A", "own")]).0
    );
    assert_eq!(start.spec.environment_files, []);
}

#[test]
fn what_may_help_is_tried_again_and_then_the_task_fails_to_start() {
    let spec = spec(1);
    let mut node = node();
    ready(&mut node, &spec);
    let mut now = 10;
    for _ in 1..crate::task::START_TRIES_MAX {
        let change = node.apply(Millis(now), done(lane(&spec), failed(true)));
        assert_eq!(fetches(&change), 0);
        let task = node.task(&spec.id).unwrap();
        assert_eq!(
            task.waiting().as_deref(),
            Some("ResourceInitializationError: no answer")
        );
        let (key, at) = change.timers.last().unwrap().clone();
        assert_eq!(key, TimerKey::Retry(lane(&spec)));
        now = at.0;
        assert_eq!(fetches(&node.apply(at, Event::Timer(key))), 1);
    }
    node.apply(Millis(now), done(lane(&spec), failed(true)));
    let task = node.task(&spec.id).unwrap();
    let reason = "ResourceInitializationError: no answer".to_owned();
    assert_eq!(task.stop, Some((StopCode::TaskFailedToStart, reason)));
}

#[test]
fn what_cannot_help_is_not_tried_again() {
    let spec = spec(1);
    let mut node = node();
    ready(&mut node, &spec);
    node.apply(Millis(2), done(lane(&spec), failed(false)));
    assert_eq!(node.task(&spec.id).unwrap().phase, Phase::Stopping);
}

#[test]
fn a_stop_gives_up_the_fetch_and_waits_for_its_end() {
    let mut spec = spec(1);
    spec.containers.truncate(1);
    let mut node = node();
    ready(&mut node, &spec);
    let change = node.apply(Millis(2), stop(2, spec.clone()));
    assert!(change.effects.contains(&Effect::Cancel(lane(&spec))));
    assert_eq!(node.task(&spec.id).unwrap().phase, Phase::Stopping);
    let reports = run(&mut node, Millis(3), done(lane(&spec), Completion::Cancelled));
    assert_eq!(reports.last().unwrap().task.facts.status, Status::Stopped);
}

#[test]
fn a_restart_of_the_agent_fetches_what_was_under_way_and_keeps_what_was_fetched() {
    let spec = spec(1);
    let mut node = node();
    ready(&mut node, &spec);
    let change = node.apply(Millis(2), Event::Restarted(Default::default()));
    assert_eq!(fetches(&change), 1);
    settle(&mut node, Millis(3), change);
    let kept = node.task(&spec.id).unwrap().environment.clone();
    assert!(matches!(kept, Fetching::Done(_)), "{kept:?}");
    let change = node.apply(
        Millis(4),
        Event::Restarted(crate::event::Restarted {
            host_rebooted: true,
            ..Default::default()
        }),
    );
    assert_eq!(fetches(&change), 0);
}

#[test]
fn no_words_of_a_completion_show_what_a_file_holds() {
    let spec = spec(1);
    let mut node = node();
    let files = [(URL.to_owned(), variables(&[("A", "secret")]))].into();
    // Of a task that is not known, and of one that fetches nothing.
    for spec in [&spec, &task(2, 256, vec![container(32, "main")])] {
        run(
            &mut node,
            Millis(0),
            snapshot(1, vec![task(2, 256, vec![container(32, "main")])]),
        );
        let completion = Completion::EnvironmentReady(Clone::clone(&files));
        let change = node.apply(Millis(1), done(lane(spec), completion));
        let said = format!("{:?}", change.anomalies);
        assert!(!change.anomalies.is_empty() && !said.contains("secret"), "{said}");
    }
}
