//! Joining, against a control plane that speaks TLS as the real one does.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use hyper_util::client::proxy::matcher::Matcher;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::identity::testing::{Authority, NODE, Served};

const TOKEN: &str = "berth1.abcdef.secret";

struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn args(&self, served: &Served) -> RegisterArgs {
        RegisterArgs {
            control_plane: served.address(),
            ca_hash: CaHash::of(&served.authority.der()),
            token_file: None,
            attributes: vec![("rack".into(), "7".into())],
            state_dir: Some(self.state()),
            config: DEFAULT_FILE.into(),
            force: false,
            json: false,
        }
    }

    async fn join(&self, args: &RegisterArgs) -> Result<Joined, RegisterError> {
        let dialer = Dialer::new(Matcher::builder().build());
        join(args, Some(TOKEN.into()), &dialer, &mut Output::new(true)).await
    }

    /// Not there at first.
    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("var/state")
    }

    fn files(&self) -> IdentityFiles {
        IdentityFiles::new(&self.state())
    }
}

fn said(error: &RegisterError) -> String {
    sys::Chain(error).to_string()
}

#[tokio::test]
async fn a_host_joins_and_then_is_joined() {
    let (host, served) = (Host::new(), Served::start().await);
    let joined = host.join(&host.args(&served)).await.unwrap();
    assert_eq!((joined.identity.node_id.as_str(), joined.already), (NODE, false));
    assert_eq!(joined.identity.cluster, "default");
    let asked = served.registers.lock().unwrap()[0].clone();
    assert_eq!(
        (asked.token.as_str(), &asked.attributes["rack"]),
        (TOKEN, &"7".to_owned())
    );
    assert!(!asked.description.unwrap().hostname.is_empty());
    let key = host.files().directory().join("node.key");
    assert_eq!(std::fs::metadata(key).unwrap().mode() & 0o777, 0o600);
    assert!(host.join(&host.args(&served)).await.unwrap().already);
    assert_eq!(
        served.registers.lock().unwrap().len(),
        1,
        "nothing was asked for again"
    );
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_with_the_same_key() {
    let (host, served) = (Host::new(), Served::start().await);
    served.refuse(Some(Code::Unavailable));
    let lost = host.join(&host.args(&served)).await.unwrap_err();
    assert_eq!(lost.exit_code(), 1);
    assert!(
        said(&lost).contains("run the same command again"),
        "{}",
        said(&lost)
    );
    assert!(host.files().load().unwrap().is_none());
    served.refuse(None);
    host.join(&host.args(&served)).await.unwrap();
    let keys: Vec<_> = served
        .registers
        .lock()
        .unwrap()
        .iter()
        .map(Served::key_of)
        .collect();
    assert_eq!(keys[0], keys[1]);
    let forced = RegisterArgs {
        force: true,
        ..host.args(&served)
    };
    host.join(&forced).await.unwrap();
    assert_ne!(Served::key_of(&served.registers.lock().unwrap()[2]), keys[0]);
}

#[tokio::test]
async fn the_key_of_a_revoked_node_is_not_used_again() {
    let (host, served) = (Host::new(), Served::start().await);
    served.refuse(Some(Code::PermissionDenied));
    assert_eq!(host.join(&host.args(&served)).await.unwrap_err().exit_code(), 3);
    served.refuse(None);
    host.join(&host.args(&served)).await.unwrap();
    let registers = served.registers.lock().unwrap();
    assert_ne!(Served::key_of(&registers[0]), Served::key_of(&registers[1]));
}

#[tokio::test]
async fn each_failure_has_its_exit_code_and_leaves_no_identity() {
    let (host, served) = (Host::new(), Served::start().await);
    let good = host.args(&served);
    served.refuse(Some(Code::Unauthenticated));
    let refused = host.join(&good).await.unwrap_err();
    assert_eq!(refused.exit_code(), 3);
    assert!(
        said(&refused).contains("berth token create"),
        "{}",
        said(&refused)
    );
    let other = Authority::new();
    let mut args = host.args(&served);
    args.ca_hash = CaHash::of(&other.der());
    let untrusted = host.join(&args).await.unwrap_err();
    assert_eq!(untrusted.exit_code(), 4, "{}", said(&untrusted));
    let mut args = host.args(&served);
    args.control_plane = "https://127.0.0.1:1".into();
    let unreachable = host.join(&args).await.unwrap_err();
    assert_eq!(unreachable.exit_code(), 1);
    assert!(
        said(&unreachable).contains("node_listen"),
        "{}",
        said(&unreachable)
    );
    args.control_plane = "https://no-such-name.invalid:8781".into();
    assert!(said(&host.join(&args).await.unwrap_err()).contains("resolv.conf"));
    for wrong in [
        "http://127.0.0.1:1",
        "https://u:p@h:1",
        "https://h/path",
        "h:1",
        "",
    ] {
        args.control_plane = wrong.into();
        assert_eq!(host.join(&args).await.unwrap_err().exit_code(), 2, "{wrong}");
    }
    assert!(!host.dir.path().join("var").exists(), "nothing is left behind");
    assert_eq!(
        served.registers.lock().unwrap().len(),
        1,
        "the token went to nobody else"
    );
}

#[tokio::test]
async fn a_refusal_takes_away_only_what_it_made() {
    let (host, served) = (Host::new(), Served::start().await);
    let left = || {
        let mut names: Vec<_> = std::fs::read_dir(host.state())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    };
    std::fs::create_dir_all(host.state()).unwrap();
    std::fs::write(host.state().join("agent.db"), "").unwrap();
    served.refuse(Some(Code::Unauthenticated));
    host.join(&host.args(&served)).await.unwrap_err();
    assert_eq!(left(), ["agent.db"]);
    // An answer may have been lost: its key is kept for the next try, whatever comes in between.
    served.refuse(Some(Code::Unavailable));
    host.join(&host.args(&served)).await.unwrap_err();
    let kept = left();
    assert_eq!(kept, ["agent.db", "identity.join", "identity.lock"]);
    served.refuse(Some(Code::Unauthenticated));
    host.join(&host.args(&served)).await.unwrap_err();
    assert_eq!(left(), kept);
}

#[tokio::test]
async fn where_the_state_is_says_the_configuration_unless_a_flag_does() {
    let (host, served) = (Host::new(), Served::start().await);
    let file = host.dir.path().join("agent.toml");
    let args = RegisterArgs {
        state_dir: None,
        config: file.clone(),
        ..host.args(&served)
    };
    let missing = host.join(&args).await.unwrap_err();
    assert_eq!(
        (missing.exit_code(), said(&missing).contains("--config")),
        (2, true)
    );
    std::fs::write(&file, "state_dir = 7").unwrap();
    let wrong = host.join(&args).await.unwrap_err();
    assert_eq!(wrong.exit_code(), 2);
    assert!(
        said(&wrong).contains("state_dir") && said(&wrong).contains("--state-dir"),
        "{}",
        said(&wrong)
    );
    // A drop-in over the file; what else is missing there is no business of joining.
    std::fs::write(&file, "state_dir = '/nonexistent'\n").unwrap();
    std::fs::create_dir(host.dir.path().join("agent.conf.d")).unwrap();
    let text = format!("state_dir = {:?}\n", host.state());
    std::fs::write(host.dir.path().join("agent.conf.d/50-here.toml"), text).unwrap();
    let joined = host.join(&args).await.unwrap();
    assert_eq!(joined.directory, host.state().join("identity"));
}

#[tokio::test]
async fn what_is_no_tls_is_said_to_be_none() {
    let (host, served) = (Host::new(), Served::start().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut args = host.args(&served);
    args.control_plane = format!("https://{}", listener.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let refused = host.join(&args).await.unwrap_err();
    assert!(said(&refused).contains("there is no TLS"), "{}", said(&refused));
    answering.abort();
}

#[tokio::test]
async fn a_server_that_cannot_be_the_one_gets_no_token() {
    let host = Host::new();
    let (authority, other) = (Authority::new(), Authority::new());
    let hour = Duration::hours(1);
    let now = OffsetDateTime::now_utc();
    let expired = authority.server(&["127.0.0.1"], now - hour * 2, now - hour);
    let future = authority.server(&["127.0.0.1"], now + hour, now + hour * 2);
    let misnamed = authority.server(&["cp.example"], now - hour, now + hour);
    let foreign = other.server(&["127.0.0.1"], now - hour, now + hour);
    for ((leaf, key), code, word) in [
        (expired, 1, "was valid until"),
        (future, 1, "this host's clock says"),
        (misnamed, 1, "node_names"),
        (foreign, 4, "does not come from it"),
    ] {
        let chain = [leaf, authority.der()];
        let served = Served::start_with(Authority::new(), &chain, &key).await;
        let args = RegisterArgs {
            ca_hash: CaHash::of(&authority.der()),
            ..host.args(&served)
        };
        let refused = host.join(&args).await.unwrap_err();
        assert_eq!(refused.exit_code(), code, "{}", said(&refused));
        assert!(said(&refused).contains(word), "{word}: {}", said(&refused));
        assert!(served.registers.lock().unwrap().is_empty(), "{word}");
    }
}

#[tokio::test]
async fn an_identity_that_is_there_is_not_lost_without_force() {
    let (host, first, second) = (Host::new(), Served::start().await, Served::start().await);
    host.join(&host.args(&first)).await.unwrap();
    let refused = host.join(&host.args(&second)).await.unwrap_err();
    assert_eq!(refused.exit_code(), 1);
    assert!(said(&refused).contains("another control plane") && said(&refused).contains("--force"));
    let joined = host
        .join(&RegisterArgs {
            force: true,
            ..host.args(&second)
        })
        .await
        .unwrap();
    assert!(joined.kept.unwrap().join("node.key").is_file());
    let now = host.files().load().unwrap().unwrap();
    assert_eq!(now.authorities, [second.authority.der()]);
}

#[tokio::test]
async fn a_token_comes_from_a_file_that_is_private_and_looks_like_one() {
    let (host, served) = (Host::new(), Served::start().await);
    let path = host.dir.path().join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    let args = RegisterArgs {
        token_file: Some(path.clone()),
        ..host.args(&served)
    };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = host.join(&args).await.unwrap_err();
    assert!(
        said(&exposed).contains("chmod 600") && exposed.exit_code() == 2,
        "{}",
        said(&exposed)
    );
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read_token(&args, None).unwrap(), TOKEN);
    let without = host.args(&served);
    for wrong in [
        None,
        Some(""),
        Some("abc"),
        Some("berth1.x"),
        Some("berth2.x.y"),
        Some("berth1.x.y z"),
    ] {
        let refused = read_token(&without, wrong.map(Into::into)).unwrap_err();
        assert_eq!(refused.exit_code(), 2);
        assert!(wrong.is_none_or(|w| w.len() < 2 || !said(&refused).contains(&format!("{w} "))));
    }
}

#[tokio::test]
async fn a_host_joins_through_a_proxy() {
    let host = Host::new();
    let authority = Authority::new();
    let now = OffsetDateTime::now_utc();
    let (leaf, key) = authority.server(&["cp.example"], now - Duration::HOUR, now + Duration::HOUR);
    let chain = [leaf, authority.der()];
    let served = Served::start_with(authority, &chain, &key).await;
    let proxy = crate::identity::testing::proxy_to(served.listen).await;
    let args = RegisterArgs {
        control_plane: "https://cp.example:8781".into(),
        ..host.args(&served)
    };
    let dialer = Dialer::new(
        Matcher::builder()
            .https(format!("http://user:pw@{}", proxy.address))
            .build(),
    );
    let joined = join(&args, Some(TOKEN.into()), &dialer, &mut Output::new(true))
        .await
        .unwrap();
    assert_eq!(joined.identity.node_id.as_str(), NODE);
    let asked = proxy.asked.lock().unwrap().clone();
    assert!(
        asked
            .iter()
            .any(|head| head.starts_with("CONNECT cp.example:8781 ")),
        "{asked:?}"
    );
}
