use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::*;

const NODE: &str = "0123456789abcdef0123456789abcdef";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes())
        .unwrap()
        .1
        .contents
}

#[test]
fn an_authority_is_made_once_and_its_key_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pki");
    let first = Authority::load_or_create(&path).unwrap();
    assert_eq!((mode(&path), mode(&path.join(KEY_FILE))), (0o700, 0o600));
    let again = Authority::load_or_create(&path).unwrap();
    assert_eq!(first.certificate_pem(), again.certificate_pem());
    assert!(!format!("{first:?}{:?}", first.issue_node(NODE, "default").unwrap()).contains("PRIVATE"));
}

#[test]
fn a_key_that_others_can_read_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    Authority::load_or_create(directory.path()).unwrap();
    let key = directory.path().join(KEY_FILE);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Authority::load_or_create(directory.path())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("mode 0640") && error.contains("chmod 600") && error.contains(KEY_FILE),
        "{error}"
    );
}

#[test]
fn a_lost_key_is_not_replaced_and_a_making_cut_short_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let (key, certificate) = (
        directory.path().join(KEY_FILE),
        directory.path().join(CERTIFICATE_FILE),
    );
    Authority::load_or_create(directory.path()).unwrap();
    fs::remove_file(&certificate).unwrap();
    Authority::load_or_create(directory.path()).unwrap();
    fs::remove_file(&key).unwrap();
    let lost = Authority::load_or_create(directory.path());
    assert!(matches!(lost, Err(PkiError::KeyMissing { .. })), "{lost:?}");
}

#[test]
fn certificate_and_key_of_two_authorities_are_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::load_or_create(one.path()).unwrap();
    Authority::load_or_create(two.path()).unwrap();
    fs::copy(
        one.path().join(CERTIFICATE_FILE),
        two.path().join(CERTIFICATE_FILE),
    )
    .unwrap();
    assert!(matches!(
        Authority::load_or_create(two.path()),
        Err(PkiError::NotAnAuthority { .. })
    ));
    fs::write(two.path().join(CERTIFICATE_FILE), "nonsense").unwrap();
    assert!(matches!(
        Authority::load_or_create(two.path()),
        Err(PkiError::NotAnAuthority { .. })
    ));
}

#[test]
fn a_node_certificate_names_node_and_cluster_and_is_for_clients_only() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(directory.path()).unwrap();
    let identity = authority.issue_node(NODE, "edge-1").unwrap();
    let der = der(&identity.certificate_pem);
    assert_eq!(
        Peer::from_der(&der).unwrap(),
        Peer {
            node_id: NODE.into(),
            cluster: "edge-1".into()
        }
    );
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !certificate.is_ca());
    let validity = certificate.validity();
    let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
    assert_eq!(days, 365);
    assert!(validity.is_valid());
}

#[test]
fn names_that_could_leave_their_place_in_the_store_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(directory.path()).unwrap();
    for (node, cluster) in [
        ("../..", "default"),
        (&*NODE.to_uppercase(), "default"),
        (NODE, "a/b"),
        (NODE, ""),
    ] {
        assert!(
            matches!(authority.issue_node(node, cluster), Err(PkiError::Name { .. })),
            "{node} {cluster}"
        );
    }
    let server = authority
        .issue_server(&["localhost".into(), "127.0.0.1".into()])
        .unwrap();
    assert!(
        Peer::from_der(&der(&server.certificate_pem)).is_err(),
        "a server is no node"
    );
    assert!(Peer::from_der(b"nonsense").is_err());
}

#[test]
fn a_node_identity_is_written_with_a_private_key() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::load_or_create(&directory.path().join("pki")).unwrap();
    authority
        .issue_node(NODE, "default")
        .unwrap()
        .write_to(directory.path())
        .unwrap();
    assert_eq!(mode(&directory.path().join("node.key")), 0o600);
    assert!(
        read_private(&directory.path().join("node.key"))
            .unwrap()
            .contains("PRIVATE KEY")
    );
}

/// Every file of a directory.
fn listing(directory: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

#[test]
fn each_step_of_a_replacement_survives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let load = || Authorities::load_or_create(path).unwrap();
    let hashes = |authorities: &Authorities| -> Vec<String> {
        authorities.trusted().all().map(Authority::fingerprint).collect()
    };
    let first = hashes(&load());
    assert_eq!(first.len(), 1);
    load().begin().unwrap();
    let begun = load();
    assert_eq!(
        (begun.trusted().phase(), hashes(&begun)[0].clone()),
        (Phase::Begun, first[0].clone())
    );
    assert!(matches!(begun.begin(), Err(PkiError::Step(_))));
    assert!(matches!(begun.finish(), Err(PkiError::Step(_))));
    begun.activate().unwrap();
    let activated = load();
    let both = hashes(&activated);
    assert_eq!(activated.trusted().phase(), Phase::Activated);
    assert_eq!(
        both[1], first[0],
        "the old one is believed, and the new one issues"
    );
    assert!(matches!(activated.activate(), Err(PkiError::Step(_))));
    activated.finish().unwrap();
    assert_eq!(
        (load().trusted().phase(), hashes(&load())),
        (Phase::Steady, vec![both[0].clone()])
    );
    let left: Vec<String> = listing(path).into_keys().collect();
    assert_eq!(
        left,
        ["authorities.json", "authority-2.key", "authority-2.pem"],
        "nothing of the old one"
    );
    assert_eq!(mode(&path.join("authority-2.key")), 0o600);
    // And once more.
    let again = load();
    again.begin().unwrap();
    again.activate().unwrap();
    again.finish().unwrap();
    assert!(listing(path).contains_key("authority-3.key"));
}

/// A crash leaves the files that a step writes before its rename, and none of those after.
#[test]
fn a_step_cut_short_was_not_taken_or_is_finished_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let authorities = Authorities::load_or_create(path).unwrap();
    let phase = || Authorities::load_or_create(path).unwrap().trusted().phase();
    let first = authorities.trusted().active().fingerprint();

    // Of begin: the key alone, then both files, without the state.
    authorities.begin().unwrap();
    let state = path.join(STATE_FILE);
    let begun = fs::read(&state).unwrap();
    fs::remove_file(&state).unwrap();
    assert_eq!(phase(), Phase::Steady);
    fs::remove_file(path.join("authority-2.pem")).unwrap();
    assert_eq!(phase(), Phase::Steady);
    Authorities::load_or_create(path).unwrap().begin().unwrap();
    assert_eq!(phase(), Phase::Begun);
    assert_eq!(fs::read(&state).unwrap(), begun);

    // Of activate: the voucher, without the state.
    Authorities::load_or_create(path).unwrap().activate().unwrap();
    let activated = fs::read(&state).unwrap();
    fs::write(&state, &begun).unwrap();
    assert_eq!(phase(), Phase::Begun);
    assert_eq!(
        Authorities::load_or_create(path)
            .unwrap()
            .trusted()
            .active()
            .fingerprint(),
        first
    );
    Authorities::load_or_create(path).unwrap().activate().unwrap();
    assert_eq!(fs::read(&state).unwrap(), activated);

    // Of finish: the state, with all or some of the old files still there.
    let before = listing(path);
    Authorities::load_or_create(path).unwrap().finish().unwrap();
    let finished = listing(path);
    let retired = String::from_utf8(finished[STATE_FILE].clone())
        .unwrap()
        .replace("\"retired\": null", "\"retired\": \"authority\"");
    for kept in ["authority.key", "authority.pem", "authority-2-voucher.pem"] {
        fs::write(path.join(kept), &before[kept]).unwrap();
        fs::write(&state, &retired).unwrap();
        assert_eq!(phase(), Phase::Steady, "{kept}");
        assert_eq!(listing(path), finished, "{kept}");
    }
}

#[test]
fn a_damaged_state_is_named_and_nothing_new_is_made() {
    let directory = tempfile::tempdir().unwrap();
    Authorities::load_or_create(directory.path())
        .unwrap()
        .begin()
        .unwrap();
    fs::write(directory.path().join(STATE_FILE), "{").unwrap();
    let error = Authorities::load_or_create(directory.path()).unwrap_err();
    assert!(
        matches!(error, PkiError::State { .. }) && error.to_string().contains(STATE_FILE),
        "{error}"
    );
}
