use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt as _};

use nix::mount::{MntFlags, umount2};

use super::*;

struct Here {
    dir: tempfile::TempDir,
    volumes: Volumes,
    task: TaskId,
}

impl Here {
    fn new(host_paths: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host_paths = host_paths
            .iter()
            .map(|path| {
                if *path == "/" {
                    "/".into()
                } else {
                    dir.path().join(path)
                }
            })
            .collect();
        let places = Places::new(&dir.path().join("state"), &dir.path().join("run"), host_paths);
        Self {
            volumes: Volumes::new(places),
            dir,
            task: "a".repeat(32).parse().unwrap(),
        }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn task_dir(&self) -> PathBuf {
        self.path("state/volumes/tasks").join(self.task.as_str())
    }

    async fn prepare(&self, volumes: &[Volume]) -> Result<(), String> {
        let made = self.volumes.prepare(&self.task, volumes).await;
        made.map_err(|error| crate::sys::Chain(&error).to_string())
    }

    async fn fill(&self, source: MountSource, path: &str, image: &Path) -> Result<(), VolumeError> {
        let mount = VolumeMount {
            source,
            path: path.into(),
            read_only: false,
            populate: true,
        };
        let image = ImageMount {
            kind: "bind".into(),
            source: image.display().to_string(),
            options: vec![],
        };
        self.volumes.populate(&self.task, &[mount], Some(image)).await
    }
}

fn local(name: &str, scope: Scope, mount: LocalMount) -> Volume {
    Volume {
        name: name.into(),
        kind: VolumeKind::Local {
            scope,
            mount,
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        },
    }
}

fn on_host(name: &str, path: &Path) -> Volume {
    Volume {
        name: name.into(),
        kind: VolumeKind::Host {
            path: path.display().to_string(),
        },
    }
}

const SHARED: Scope = Scope::Shared { autoprovision: true };

#[tokio::test]
async fn volumes_of_a_task_are_made_found_again_and_removed() {
    let here = Here::new(&["/"]);
    let long = "x".repeat(255);
    let memory = LocalMount::Memory {
        options: vec!["size=1m".into(), "mode=751".into()],
    };
    let all = [
        local(&long, Scope::Task, LocalMount::Directory),
        local("memory", Scope::Task, memory),
        local("shared", SHARED, LocalMount::Directory),
        on_host("host", &here.path("host/made")),
    ];
    here.prepare(&all).await.unwrap();
    let of = |name: &str| {
        here.volumes
            .source(&here.task, &MountSource::Task { volume: name.into() })
            .0
    };
    fs::write(of("memory").join("f"), "").unwrap();
    fs::write(of(&long).join("f"), "").unwrap();
    here.prepare(&all).await.unwrap();
    assert!(of("memory").join("f").exists() && of(&long).join("f").exists());
    assert_eq!(fs::metadata(of("memory")).unwrap().mode() & 0o7777, 0o751);
    assert_eq!(fs::metadata(of(&long)).unwrap().mode() & 0o7777, 0o755);
    for own in ["state/volumes", "state/volumes/shared", "state/volumes/tasks"] {
        assert_eq!(
            fs::metadata(here.path(own)).unwrap().mode() & 0o7777,
            0o700,
            "{own}"
        );
    }
    let record = fs::read_to_string(of("memory").with_file_name("volume.json")).unwrap();
    assert!(
        record.contains("\"a\": \"b\"") && record.contains("size=1m"),
        "{record}"
    );
    let listed = HostObject::OfTask {
        kind: "volumes".into(),
        task: here.task.clone(),
    };
    assert_eq!(here.volumes.list().unwrap(), [listed]);

    here.volumes.remove(&here.task).await.unwrap();
    assert!(!here.task_dir().exists());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(here.dir.path().to_str().unwrap()), "{mounts}");
    assert!(here.path("host/made").is_dir() && here.path("state/volumes/shared/shared/data").is_dir());
    here.volumes.remove(&here.task).await.unwrap();
}

#[tokio::test]
async fn a_shared_volume_is_the_one_of_its_name_or_a_reason() {
    let here = Here::new(&["/"]);
    let must_be = Scope::Shared { autoprovision: false };
    let shared = |scope| [local("cache", scope, LocalMount::Directory)];
    let missing = here.prepare(&shared(must_be)).await.unwrap_err();
    assert_eq!(
        missing,
        "volume cache: this node has no shared volume of that name, and autoprovision is not set"
    );
    here.prepare(&shared(SHARED)).await.unwrap();
    here.prepare(&shared(must_be)).await.unwrap();
    let other = LocalMount::Bind {
        path: "/".into(),
        recursive: false,
        read_only: false,
    };
    let differs = here.prepare(&[local("cache", SHARED, other)]).await.unwrap_err();
    assert!(differs.contains("has other driverOpts"), "{differs}");
    fs::create_dir(here.path("state/volumes/shared/half")).unwrap();
    let half = [local("half", SHARED, LocalMount::Directory)];
    here.prepare(&half).await.unwrap();
    assert_eq!(here.volumes.remove_all().await.unwrap(), ["cache", "half"]);
    assert!(!here.path("state/volumes/tasks").exists());
    fs::remove_dir_all(here.path("state/volumes/shared")).unwrap();
    assert_eq!(here.volumes.remove_all().await.unwrap(), Vec::<String>::new());
    assert!(!here.path("state/volumes").exists());
}

#[tokio::test]
async fn where_paths_are_restricted_what_was_looked_at_is_what_is_held() {
    let here = Here::new(&["srv"]);
    fs::create_dir_all(here.path("srv/real")).unwrap();
    fs::write(here.path("srv/real/file"), "x").unwrap();
    fs::create_dir(here.path("etc")).unwrap();
    std::os::unix::fs::symlink("real", here.path("srv/link")).unwrap();
    std::os::unix::fs::symlink("../etc", here.path("srv/out")).unwrap();
    let link = on_host("link", &here.path("srv/link"));
    let file = on_host("file", &here.path("srv/real/file"));
    here.prepare(&[link.clone(), file]).await.unwrap();
    let held = |volume: &str| {
        let source = MountSource::Host {
            volume: volume.into(),
            path: "/unused".into(),
            recursive: true,
        };
        here.volumes.source(&here.task, &source).0
    };
    // Somebody who can write there leads it elsewhere meanwhile.
    fs::remove_file(here.path("srv/link")).unwrap();
    std::os::unix::fs::symlink("../etc", here.path("srv/link")).unwrap();
    assert_eq!(fs::read_to_string(held("link").join("file")).unwrap(), "x");
    assert_eq!(fs::read_to_string(held("file")).unwrap(), "x");
    let out = here
        .prepare(&[on_host("out", &here.path("srv/out"))])
        .await
        .unwrap_err();
    assert!(out.contains("open the path of the host"), "{out}");
    let outside = here
        .prepare(&[on_host("etc", &here.path("etc"))])
        .await
        .unwrap_err();
    assert!(outside.contains("volumes.host_paths"), "{outside}");
    here.volumes.remove(&here.task).await.unwrap();
    assert!(here.path("srv/real/file").exists() && !here.task_dir().exists());
}

#[tokio::test]
async fn an_empty_volume_begins_with_the_images_content_and_no_other_does() {
    let here = Here::new(&["/"]);
    let image = here.path("image");
    fs::create_dir_all(image.join("html/sub")).unwrap();
    fs::write(image.join("html/sub/index"), "x").unwrap();
    fs::write(image.join("file"), "").unwrap();
    let all = ["a", "b", "c", "d"].map(|name| local(name, Scope::Task, LocalMount::Directory));
    here.prepare(&all).await.unwrap();
    let source = |name: &str| MountSource::Task { volume: name.into() };
    let data = |name: &str| here.volumes.source(&here.task, &source(name)).0;
    here.fill(source("a"), "/html", &image).await.unwrap();
    assert_eq!(fs::read_to_string(data("a").join("sub/index")).unwrap(), "x");
    // Used since: it is not filled again.
    fs::remove_dir_all(data("a").join("sub")).unwrap();
    fs::write(data("a").join("own"), "").unwrap();
    here.fill(source("a"), "/html", &image).await.unwrap();
    assert!(!data("a").join("sub").exists());
    // A copy that was cut off is done again.
    fs::write(data("b").join("half"), "").unwrap();
    fs::write(data("b").with_file_name("filling"), "").unwrap();
    here.fill(source("b"), "/html", &image).await.unwrap();
    assert!(data("b").join("sub/index").exists() && !data("b").with_file_name("filling").exists());
    for path in ["/missing", "/file"] {
        here.fill(source("c"), path, &image).await.unwrap();
        assert_eq!(fs::read_dir(data("c")).unwrap().count(), 0);
    }
    let container = "c".repeat(32).parse().unwrap();
    let of_image = MountSource::Image { container, number: 3 };
    here.fill(of_image.clone(), "/html", &image).await.unwrap();
    let path = here.volumes.source(&here.task, &of_image).0;
    assert!(path.join("sub/index").exists() && path.starts_with(here.task_dir()));
    here.volumes.remove(&here.task).await.unwrap();
    assert!(!here.task_dir().exists());
}

#[tokio::test]
async fn a_mount_that_somebody_made_in_a_volume_is_taken_off_and_not_emptied() {
    let here = Here::new(&["/"]);
    let all = [local("v", Scope::Task, LocalMount::Directory)];
    here.prepare(&all).await.unwrap();
    let inside = here.task_dir().join("named/v/data/in");
    let outside = here.path("outside");
    for path in [&inside, &outside] {
        fs::create_dir(path).unwrap();
    }
    fs::write(outside.join("file"), "").unwrap();
    mounts::bind(open_directory(&outside).unwrap(), &inside).unwrap();
    here.volumes.remove(&here.task).await.unwrap();
    let left = umount2(&inside, MntFlags::MNT_DETACH);
    assert!(left.is_err() && outside.join("file").exists() && !here.task_dir().exists());
}
