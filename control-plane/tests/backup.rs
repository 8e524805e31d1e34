//! Backup and restore by the program itself, beside and in place of one that serves.
#![allow(clippy::unwrap_used)] // Clippy does not see that helpers of a test binary are tests too.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use berth_control_plane::{
    app::ControlPlane,
    config::Config,
    model::{Cluster, StoreIdentity, keys},
    store::{Store, Transaction, sqlite::SqliteStore, typed},
};

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        world.write_config("state");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self, state: &str) {
        let text = format!(
            "state_dir = '{}'\napi_listen = '127.0.0.1:0'\nnode_listen = '127.0.0.1:0'\n",
            self.path(state).display()
        );
        fs::write(self.path("config.toml"), text).unwrap();
    }

    async fn start(&self) -> ControlPlane {
        ControlPlane::start(Config::load(&self.path("config.toml")).unwrap())
            .await
            .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_berth-control-plane"))
            .args(arguments)
            .arg("--config")
            .arg(self.path("config.toml"))
            .output()
            .unwrap()
    }

    fn backup(&self, name: &str) -> Output {
        self.run(&["backup", "--to", self.path(name).to_str().unwrap()])
    }

    fn restore(&self, name: &str, more: &[&str]) -> Output {
        let path = self.path(name);
        self.run(&[&["restore", "--from", path.to_str().unwrap()], more].concat())
    }

    /// Every file of the state directory with its content, but the lock.
    fn state(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let (mut all, mut directories) = (Vec::new(), vec![self.path("state")]);
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.file_name().is_some_and(|name| name != "lock") {
                    let content = fs::read(&path).unwrap();
                    all.push((path, content));
                }
            }
        }
        all.sort();
        all
    }
}

async fn put(plane: &ControlPlane, name: &str) {
    let cluster = Cluster {
        name: name.into(),
        status: "ACTIVE".into(),
        tags: Default::default(),
        settings: vec![],
        created_at: 0,
    };
    let transaction = Transaction {
        compare: vec![],
        operations: vec![typed::put_json(keys::cluster(name), &cluster).unwrap()],
    };
    plane.store().commit(transaction).await.unwrap();
}

async fn has(plane: &ControlPlane, name: &str) -> bool {
    plane.store().get(&keys::cluster(name)).await.unwrap().is_some()
}

async fn identity(store: &dyn Store) -> StoreIdentity {
    typed::identity(store).await.unwrap()
}

async fn stop(plane: ControlPlane) {
    plane
        .shutdown(tokio::time::Instant::now() + Duration::from_secs(10))
        .await;
}

#[track_caller]
fn ok(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_at_the_backup_is_there_after_the_restore_with_a_higher_epoch() {
    let world = World::new();
    let plane = world.start().await;
    put(&plane, "before").await;
    let (authority, first) = (
        plane.authority().certificate_pem(),
        identity(&*plane.store()).await,
    );
    let admin = fs::read_to_string(world.path("state/admin.env")).unwrap();
    ok(&world.backup("one.backup"));
    let mode = fs::metadata(world.path("one.backup"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let names: Vec<_> = fs::read_dir(world.dir.path())
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "nothing is left beside it: {names:?}");
    put(&plane, "after").await;
    assert!(refused(&world.backup("one.backup")).contains("is there already"));
    assert!(refused(&world.restore("one.backup", &["--replace"])).contains("stop it first"));
    stop(plane).await;
    assert!(refused(&world.restore("one.backup", &[])).contains("--replace"));

    let said = ok(&world.restore("one.backup", &["--replace"]));
    assert!(
        said.contains("the former state is in") && said.contains("revoke them again"),
        "{said}"
    );
    let plane = world.start().await;
    assert!(has(&plane, "before").await && !has(&plane, "after").await);
    let second = identity(&*plane.store()).await;
    assert_eq!(second.store_id, first.store_id);
    assert!(second.epoch > first.epoch);
    assert_eq!(plane.authority().certificate_pem(), authority);
    assert!(world.path("state/admin.env").is_file());
    let key = |text: &str| text.lines().nth(1).unwrap().to_owned();
    assert_eq!(
        key(&fs::read_to_string(world.path("state/admin.env")).unwrap()),
        key(&admin)
    );
    stop(plane).await;

    // Once more, from the same backup: the epoch rises again, and the former is whole.
    ok(&world.restore("one.backup", &["--replace"]));
    let plane = world.start().await;
    assert!(identity(&*plane.store()).await.epoch > second.epoch);
    stop(plane).await;
    let former = fs::read_dir(world.path("state"))
        .unwrap()
        .map(|f| f.unwrap().path());
    let mut formers: Vec<_> = former
        .filter(|path| path.to_string_lossy().contains("former-"))
        .collect();
    formers.sort();
    let store = SqliteStore::open(formers[0].join("store.db")).unwrap();
    assert!(store.get(&keys::cluster("after")).await.unwrap().is_some());
    store.close().await;
    let log = fs::read_to_string(world.path("state/audit.log")).unwrap();
    assert!(log.contains("RestoreBackup"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_host_takes_over_from_the_backup_alone() {
    let world = World::new();
    let plane = world.start().await;
    put(&plane, "kept").await;
    ok(&world.backup("b"));
    let authority = plane.authority().certificate_pem();
    stop(plane).await;
    world.write_config("elsewhere");
    ok(&world.restore("b", &[]));
    for (name, mode) in [
        ("store.db", 0o600),
        ("pki/authority.key", 0o600),
        ("admin.env", 0o600),
        ("", 0o700),
    ] {
        let path = world.path("elsewhere").join(name);
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            mode,
            "{name}"
        );
    }
    let plane = world.start().await;
    assert!(has(&plane, "kept").await);
    assert_eq!(plane.authority().certificate_pem(), authority);
    stop(plane).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_refused_and_nothing_is_changed() {
    let world = World::new();
    let plane = world.start().await;
    put(&plane, "kept").await;
    ok(&world.backup("good"));
    stop(plane).await;
    let (before, good) = (world.state(), fs::read(world.path("good")).unwrap());
    let mut damaged: Vec<Vec<u8>> = vec![vec![], b"nonsense".to_vec(), good[..good.len() / 2].to_vec()];
    damaged.push(good[..good.len() - 4].to_vec());
    for part in 1..8 {
        // In a run of zeros another bit may stand for the same content, which is no damage then.
        let spoilt = (good.len() * part / 8..).find_map(|place| {
            let mut one = good.clone();
            one[place] ^= 0x10;
            (unpacked(&one) != unpacked(&good)).then_some(one)
        });
        damaged.push(spoilt.unwrap());
    }
    for (number, bytes) in damaged.iter().enumerate() {
        fs::write(world.path("bad"), bytes).unwrap();
        let said = refused(&world.restore("bad", &["--replace"]));
        assert!(
            said.contains("is no backup that can be restored"),
            "{number}: {said}"
        );
        assert_eq!(world.state(), before, "{number}");
    }
    refused(&world.restore("none", &["--replace"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_of_others_write_nothing_where_it_does_not_belong() {
    let world = World::new();
    let plane = world.start().await;
    ok(&world.backup("good"));
    stop(plane).await;
    let before = world.state();
    for name in ["../escaped", "lock", "pki/../../escaped"] {
        repack(&world.path("good"), &world.path("evil"), |manifest| {
            manifest["files"][1]["path"] = name.into();
        });
        let said = refused(&world.restore("evil", &["--replace"]));
        assert!(said.contains("does not belong there"), "{said}");
    }
    repack(&world.path("good"), &world.path("later"), |manifest| {
        manifest["format"] = 99.into()
    });
    assert!(refused(&world.restore("later", &["--replace"])).contains("has format 99"));
    repack(&world.path("good"), &world.path("other"), |manifest| {
        manifest["storeId"] = "x".into()
    });
    assert!(refused(&world.restore("other", &["--replace"])).contains("not the one that its manifest names"));
    assert_eq!(world.state(), before);
    assert!(!world.path("escaped").exists());
}

fn unpacked(archive: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let mut archive = flate2::read::GzDecoder::new(archive);
    std::io::Read::read_to_end(&mut archive, &mut content).ok()?;
    Some(content)
}

/// The same archive with another manifest.
fn repack(from: &Path, to: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(from).unwrap()));
    let out = flate2::write::GzEncoder::new(fs::File::create(to).unwrap(), flate2::Compression::fast());
    let (mut out, mut change) = (tar::Builder::new(out), Some(change));
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut header) = (entry.path().unwrap().into_owned(), entry.header().clone());
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        if let Some(change) = change.take() {
            let mut manifest = serde_json::from_slice(&content).unwrap();
            change(&mut manifest);
            content = manifest.to_string().into_bytes();
            header.set_size(content.len() as u64);
        }
        out.append_data(&mut header, path, content.as_slice()).unwrap();
    }
    out.into_inner().unwrap().finish().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_state_there_is_nothing_to_back_up() {
    let world = World::new();
    assert!(refused(&world.backup("x")).contains("no control plane's state"));
    assert!(!world.path("x").exists() && !world.path("state").exists());
}
