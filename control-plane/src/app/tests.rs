//! A whole control plane in one process.

use std::{os::unix::fs::PermissionsExt, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    api::ApiKey,
    model::{Idempotent, Task},
    store::{Transaction, typed},
};

const SOON: Duration = Duration::from_secs(10);

fn config(directory: &Path) -> Config {
    let key = ApiKey {
        access_key_id: "AKIDEXAMPLE00001".into(),
        secret: "secret".into(),
    };
    let mut config = Config::new(directory, vec![key]);
    config.api_listen.set_port(0);
    config.node_listen = "127.0.0.1:0".parse().unwrap();
    config
}

fn deadline() -> Instant {
    Instant::now() + SOON
}

#[tokio::test]
async fn starts_serves_and_stops() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let plane = ControlPlane::start(config(&state)).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(plane.api_addr()).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::time::timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 4"),
        "an unsigned request is answered, and refused: {answer}"
    );
    tokio::net::TcpStream::connect(plane.node_addr()).await.unwrap();
    for (file, mode) in [
        ("", 0o700),
        (STORE_FILE, 0o600),
        (LOCK_FILE, 0o600),
        ("pki/authority.key", 0o600),
    ] {
        let found = fs::metadata(state.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let authority = plane.authority().certificate_pem().to_owned();
    let (api, nodes) = (plane.api_addr(), plane.node_addr());
    plane.shutdown(deadline()).await;
    for address in [api, nodes] {
        assert!(
            tokio::net::TcpStream::connect(address).await.is_err(),
            "{address} still listens"
        );
    }
    let again = ControlPlane::start(config(&state)).await.unwrap();
    assert_eq!(
        again.authority().certificate_pem(),
        authority,
        "the same authority after a restart"
    );
    again.shutdown(deadline()).await;
}

#[tokio::test]
async fn a_state_directory_has_one_control_plane() {
    let directory = tempfile::tempdir().unwrap();
    let plane = ControlPlane::start(config(directory.path())).await.unwrap();
    let second = ControlPlane::start(config(directory.path())).await.unwrap_err();
    assert!(
        second.to_string().contains("in use by another control plane"),
        "{second}"
    );
    plane.shutdown(deadline()).await;
    ControlPlane::start(config(directory.path()))
        .await
        .unwrap()
        .shutdown(deadline())
        .await;
}

#[tokio::test]
async fn a_port_in_use_and_a_damaged_store_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let busy = Config {
        node_listen: address,
        ..config(directory.path())
    };
    let error = ControlPlane::start(busy).await.unwrap_err().to_string();
    assert!(
        error.contains("node_listen") && error.contains(&address.to_string()),
        "{error}"
    );
    // Nothing half started keeps the directory.
    ControlPlane::start(config(directory.path()))
        .await
        .unwrap()
        .shutdown(deadline())
        .await;
    fs::write(directory.path().join(STORE_FILE), "nonsense".repeat(1_000)).unwrap();
    let error = ControlPlane::start(config(directory.path())).await.unwrap_err();
    assert!(
        matches!(
            &error,
            StartError::Store {
                source: StoreError::Corrupt { .. },
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn old_stopped_tasks_and_tokens_are_forgotten_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.stopped_task_retention = Duration::from_secs(1);
    let plane = ControlPlane::start(config).await.unwrap();
    let store = plane.store();
    let task = |id: &str, status: &str, stopped_at: Option<i64>| {
        let task = Task {
            last_status: status.into(),
            stopped_at,
            ..crate::link::test_task("a", id)
        };
        typed::put_json(format!("/tasks/default/{id}"), &task).unwrap()
    };
    let now = crate::link::now();
    let token = |key: &str, created_at| {
        let record = Idempotent {
            request_sha256: "".into(),
            response: serde_json::json!({}),
            created_at,
        };
        typed::put_json(format!("/idempotency/default/RunTask/{key}"), &record).unwrap()
    };
    let join_token = |id: &str, expires_at| {
        let record = crate::model::JoinToken {
            id: id.into(),
            secret_sha256: "".into(),
            cluster: "default".into(),
            attributes: Default::default(),
            uses: 1,
            uses_left: 1,
            joined: Default::default(),
            created_by: "".into(),
            created_at: 0,
            expires_at,
        };
        typed::put_json(crate::model::keys::join_token(id), &record).unwrap()
    };
    let operations = vec![
        task("old", "STOPPED", Some(now - 60_000)),
        task("soon", "STOPPED", Some(now + 1_000)),
        task("later", "STOPPED", Some(now + 600_000)),
        task("running", "RUNNING", None),
        token("old", now - 25 * 3_600_000),
        token("new", now),
        join_token("01", now - 25 * 3_600_000),
        join_token("02", now - 3_600_000),
    ];
    store
        .commit(Transaction {
            compare: vec![],
            operations,
        })
        .await
        .unwrap();
    let exists = async |key: &str| store.get(key).await.unwrap().is_some();
    let started = Instant::now();
    while exists("/tasks/default/soon").await {
        assert!(started.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(started.elapsed() > Duration::from_secs(1), "not before its time");
    assert!(!exists("/tasks/default/old").await && !exists("/idempotency/default/RunTask/old").await);
    assert!(!exists("/join-tokens/01").await);
    for kept in [
        "/join-tokens/02",
        "/tasks/default/later",
        "/tasks/default/running",
        "/idempotency/default/RunTask/new",
    ] {
        assert!(exists(kept).await, "{kept}");
    }
    assert!(exists("/leaders/retention").await);
    plane.shutdown(deadline()).await;
}

#[tokio::test]
async fn one_leads_and_another_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let store: SharedStore = Arc::new(SqliteStore::open(directory.path().join("db")).unwrap());
    let mut one = leader::Claim::new(store.clone(), "x");
    let mut two = leader::Claim::new(store.clone(), "x");
    assert!(one.hold().await.unwrap() && one.hold().await.unwrap());
    assert!(!two.hold().await.unwrap());
    one.resign().await.unwrap();
    assert!(two.hold().await.unwrap() && !one.hold().await.unwrap());
}

/// The access keys in the store.
async fn keys_in(plane: &ControlPlane) -> Vec<crate::model::ApiKeyRecord> {
    let found = typed::all_json(&*plane.store(), crate::model::keys::API_KEYS)
        .await
        .unwrap();
    found.into_iter().map(|key| key.value).collect()
}

#[tokio::test]
async fn without_any_key_a_first_one_is_made_and_handed_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path());
    config.keys.clear();
    let file = directory.path().join(first_key::ADMIN_ENV_FILE);
    // As a crash between the file and the store leaves it.
    fs::write(
        &file,
        "export AWS_ACCESS_KEY_ID=BERTHLOST\nexport AWS_SECRET_ACCESS_KEY=lost\n",
    )
    .unwrap();
    let plane = ControlPlane::start(config.clone()).await.unwrap();
    let made = keys_in(&plane).await;
    assert_eq!((made.len(), made[0].role), (1, crate::model::Role::Admin));
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&made[0].secret) && text.contains(&made[0].access_key_id));
    assert!(text.contains(&format!("AWS_ENDPOINT_URL_ECS=http://{}", plane.api_addr())));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    plane.shutdown(deadline()).await;

    // The next start makes no other, and the file follows the address.
    let plane = ControlPlane::start(config.clone()).await.unwrap();
    let kept = keys_in(&plane).await;
    assert_eq!(kept[0].access_key_id, made[0].access_key_id);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&made[0].secret) && text.contains(&plane.api_addr().to_string()));

    // Without it, and with another way in, its file goes.
    let operations = vec![crate::store::Operation::Delete {
        key: crate::model::keys::api_key(&made[0].access_key_id),
    }];
    let compare = vec![];
    plane
        .store()
        .commit(Transaction { compare, operations })
        .await
        .unwrap();
    plane.shutdown(deadline()).await;
    let configured = super::tests::config(directory.path());
    let plane = ControlPlane::start(configured).await.unwrap();
    assert!(keys_in(&plane).await.is_empty() && !file.exists());
    plane.shutdown(deadline()).await;
}
