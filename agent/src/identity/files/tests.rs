//! Tests of how an identity is kept on the disk.

use std::sync::{Arc, atomic::AtomicI64};

use rcgen::KeyPair;

use super::{super::testing::Authority, *};

const OLD: &str = "00000000000000000000000000000001";
const NEW: &str = "00000000000000000000000000000002";

struct Parts {
    certificate: String,
    key: String,
    authorities: Vec<CertificateDer<'static>>,
}

fn parts(node: &str) -> Parts {
    let (authority, key) = (Authority::new(), KeyPair::generate().unwrap());
    Parts {
        certificate: certificate::to_pem(&[authority.node(node, &key)]),
        key: key.serialize_pem(),
        authorities: vec![authority.der()],
    }
}

fn install(files: &IdentityFiles, parts: &Parts, keep: bool) -> Result<Option<PathBuf>, IdentityError> {
    let lock = files.lock()?;
    files.install(&lock, &parts.certificate, &parts.key, &parts.authorities, keep)
}

/// Which node the files make, and that all three are of the same.
fn node(files: &IdentityFiles, known: &[&Parts]) -> Option<String> {
    let identity = files.load().unwrap()?;
    let of = |parts: &&&Parts| parts.certificate == identity.certificate_pem;
    let parts = known.iter().find(of).expect("a certificate that was installed");
    assert_eq!(
        (&parts.key, &parts.authorities),
        (&identity.key_pem, &identity.authorities)
    );
    Some(identity.node_id.to_string())
}

fn failing_after(dir: &Path, steps: i64) -> IdentityFiles {
    IdentityFiles {
        steps_left: Some(Arc::new(AtomicI64::new(steps))),
        ..IdentityFiles::new(dir)
    }
}

/// Steps until one succeeds: enough of them to know that every step was the last one once.
const STEPS_MAX: i64 = 40;

#[test]
fn a_first_identity_is_whole_or_not_there_at_every_step_that_fails() {
    let new = parts(NEW);
    let dir = tempfile::tempdir().unwrap();
    let mut failures = 0;
    for steps in 0..STEPS_MAX {
        let files = failing_after(dir.path(), steps);
        let done = install(&files, &new, false);
        let whole = IdentityFiles::new(dir.path());
        let found = node(&whole, &[&new]);
        match done {
            Ok(_) => {
                assert_eq!(found.as_deref(), Some(NEW));
                assert!(failures > 8, "{failures} steps failed first");
                return;
            }
            Err(_) => failures += 1,
        }
        let _ = fs::remove_dir_all(whole.directory());
    }
    panic!("never installed");
}

#[test]
fn a_later_identity_is_the_old_or_the_new_at_every_step_that_fails() {
    let (old, new) = (parts(OLD), parts(NEW));
    for keep in [false, true] {
        let mut done = false;
        for steps in 0..STEPS_MAX {
            let dir = tempfile::tempdir().unwrap();
            let whole = IdentityFiles::new(dir.path());
            install(&whole, &old, false).unwrap();
            let installed = install(&failing_after(dir.path(), steps), &new, keep);
            let found = node(&whole, &[&old, &new]).expect("there is always one");
            if installed.is_ok() {
                assert_eq!(found, NEW);
                done = true;
            }
            // And what an interruption left is no obstacle.
            install(&whole, &new, keep).unwrap();
            assert_eq!(node(&whole, &[&new]).as_deref(), Some(NEW));
        }
        assert!(done);
    }
}

#[test]
fn the_old_identity_is_kept_aside_when_asked_for() {
    let (old, new) = (parts(OLD), parts(NEW));
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    assert_eq!(install(&files, &old, true).unwrap(), None);
    let aside = install(&files, &new, true).unwrap().unwrap();
    assert_eq!(fs::read_to_string(aside.join(KEY)).unwrap(), old.key);
    assert_eq!(fs::metadata(aside.join(KEY)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(files.directory()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn a_join_goes_on_with_its_key_until_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    let lock = files.lock().unwrap();
    let make = || Ok(KeyPair::generate().unwrap().serialize_pem());
    let key = files.pending_key(&lock, make).unwrap();
    assert_eq!(files.pending_key(&lock, make).unwrap(), key);
    let path = dir.path().join("identity.join/node.key");
    assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    let authority = Authority::new();
    let issued = authority.node(NEW, &KeyPair::from_pem(&key).unwrap());
    let pem = certificate::to_pem(&[issued]);
    files
        .install(&lock, &pem, &key, &[authority.der()], false)
        .unwrap();
    assert_ne!(
        files.pending_key(&lock, make).unwrap(),
        key,
        "the next join has a key of its own"
    );
}

#[test]
fn one_process_at_a_time_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    let held = files.lock().unwrap();
    assert!(matches!(files.lock(), Err(IdentityError::Busy { .. })));
    drop(held);
    files.lock().unwrap();
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    install(&files, &parts(OLD), false).unwrap();
    let whole: Vec<_> = [KEY, CERTIFICATE, AUTHORITY]
        .map(|name| (name, fs::read_to_string(files.directory().join(name)).unwrap()))
        .into();
    let other = KeyPair::generate().unwrap().serialize_pem();
    for (name, kept) in &whole {
        let path = files.directory().join(name);
        let half = kept[..kept.len() / 2].to_owned();
        let mut wrong = vec![String::new(), "spoilt\n".into(), half];
        if *name == KEY {
            wrong.push(other.clone());
        }
        for content in wrong {
            fs::write(&path, &content).unwrap();
            let said = files.load().unwrap_err().to_string();
            assert!(
                said.contains(&format!("{} cannot be used", path.display()))
                    && said.contains("register --force"),
                "{name} with {content:?}: {said}"
            );
            assert!(content.is_empty() || !said.contains(content.trim()), "{said}");
        }
        fs::write(&path, kept).unwrap();
    }
    assert!(files.load().unwrap().is_some());
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    install(&files, &parts(NEW), false).unwrap();
    fs::set_permissions(files.directory().join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
    let refused = files.load().unwrap_err();
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[test]
fn authorities_are_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let files = IdentityFiles::new(dir.path());
    let parts = parts(NEW);
    install(&files, &parts, false).unwrap();
    let both = [parts.authorities[0].clone(), Authority::new().der()];
    for steps in 0..STEPS_MAX {
        let failing = failing_after(dir.path(), steps);
        let stored = failing.store_authorities(&files.lock().unwrap(), &both);
        let found = files.load().unwrap().unwrap().authorities;
        assert!(found == both || (stored.is_err() && found == parts.authorities));
    }
    assert_eq!(files.load().unwrap().unwrap().authorities, both);
}
