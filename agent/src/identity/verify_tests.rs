//! Whom a node believes, and whom not.

#![allow(clippy::unwrap_used)]

use rustls::{
    client::danger::ServerCertVerifier,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use time::{Duration, OffsetDateTime};

use super::{
    certificate::CaHash,
    testing::Authority,
    verify::{BundleVerifier, PinError, PinnedVerifier},
};

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn leaf(authority: &Authority) -> CertificateDer<'static> {
    let hour = Duration::hours(1);
    authority
        .server(&["cp.example", "127.0.0.1"], now() - hour, now() + hour)
        .0
}

/// The verdict of a host that knows `hash`, at `at`, about a server that sends `chain` under `name`.
fn verdict(
    hash: CaHash,
    chain: &[CertificateDer<'static>],
    name: &'static str,
    at: OffsetDateTime,
) -> Result<CertificateDer<'static>, PinError> {
    let verifier = PinnedVerifier::new(hash);
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp() as u64));
    let name = ServerName::try_from(name).unwrap();
    let said = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at);
    let outcome = verifier.outcome().unwrap();
    assert_eq!(said.is_ok(), outcome.is_ok(), "TLS is told what was found");
    outcome.map(|proof| proof.authority)
}

#[test]
fn the_authority_of_the_hash_and_a_certificate_of_it_are_believed() {
    let authority = Authority::new();
    let chain = [leaf(&authority), authority.der()];
    let hash = CaHash::of(&authority.der());
    assert_eq!(
        verdict(hash, &chain, "cp.example", now()).unwrap(),
        authority.der()
    );
    assert_eq!(
        verdict(hash, &chain, "127.0.0.1", now()).unwrap(),
        authority.der()
    );
}

#[test]
fn another_hash_is_refused_and_both_are_named() {
    let (authority, other) = (Authority::new(), Authority::new());
    let chain = [leaf(&authority), authority.der()];
    let refused = verdict(CaHash::of(&other.der()), &chain, "cp.example", now()).unwrap_err();
    assert!(refused.is_untrusted());
    let said = refused.to_string();
    for hash in [CaHash::of(&other.der()), CaHash::of(&authority.der())] {
        assert!(said.contains(&hash.to_string()), "{said}");
    }
    let alone = verdict(CaHash::of(&authority.der()), &chain[..1], "cp.example", now()).unwrap_err();
    assert!(alone.to_string().contains("no authority at all"), "{alone}");
}

#[test]
fn the_right_authority_beside_a_certificate_of_another_is_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let hash = CaHash::of(&authority.der());
    for chain in [
        vec![leaf(&other), authority.der()],
        vec![leaf(&other), other.der(), authority.der()],
        vec![leaf(&other), authority.der(), other.der()],
    ] {
        let refused = verdict(hash, &chain, "cp.example", now()).unwrap_err();
        assert!(
            matches!(refused, PinError::Foreign { .. }) && refused.is_untrusted(),
            "{refused}"
        );
    }
}

#[test]
fn the_hash_of_what_is_no_authority_is_refused() {
    let authority = Authority::new();
    let leaf = leaf(&authority);
    let refused = verdict(
        CaHash::of(&leaf),
        &[leaf.clone(), authority.der()],
        "cp.example",
        now(),
    );
    assert!(matches!(refused.unwrap_err(), PinError::NotAnAuthority { .. }));
    // An authority that serves with its own certificate is none either.
    let own = verdict(
        CaHash::of(&authority.der()),
        &[authority.der()],
        "cp.example",
        now(),
    );
    assert!(own.is_err());
}

#[test]
fn dates_and_names_are_told_apart_from_distrust() {
    let authority = Authority::new();
    let chain = [leaf(&authority), authority.der()];
    let hash = CaHash::of(&authority.der());
    let past = OffsetDateTime::from_unix_timestamp(1_550_000_000).unwrap();
    let early = verdict(hash, &chain, "cp.example", past).unwrap_err();
    assert!(matches!(early, PinError::NotYet { .. }) && !early.is_untrusted());
    assert!(
        early
            .to_string()
            .starts_with("this host's clock says 2019-02-12 "),
        "{early}"
    );
    let late = verdict(hash, &chain, "cp.example", now() + Duration::hours(2)).unwrap_err();
    assert!(
        matches!(late, PinError::Expired { .. }) && !late.is_untrusted(),
        "{late}"
    );
    let name = verdict(hash, &chain, "other.example", now()).unwrap_err();
    assert!(
        matches!(name, PinError::Name { .. }) && !name.is_untrusted(),
        "{name}"
    );
    assert!(name.to_string().contains("node_names"), "{name}");
}

#[test]
fn an_expired_certificate_of_a_foreign_authority_is_not_taken_for_a_clock_problem_only() {
    let (authority, other) = (Authority::new(), Authority::new());
    let day = Duration::days(1);
    let (expired, _) = other.server(&["cp.example"], now() - day * 2, now() - day);
    let refused = verdict(
        CaHash::of(&authority.der()),
        &[expired, authority.der()],
        "cp.example",
        now(),
    );
    assert!(refused.is_err());
}

#[test]
fn a_bundle_believes_each_of_its_authorities_and_says_which() {
    let (old, new, other) = (Authority::new(), Authority::new(), Authority::new());
    let name = ServerName::try_from("cp.example").unwrap();
    for authority in [&old, &new] {
        let verifier = BundleVerifier::new(&[old.der(), new.der()]).unwrap();
        assert_eq!(verifier.proved_by(), None);
        let chain = [leaf(authority), authority.der()];
        verifier
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
            .unwrap();
        assert_eq!(verifier.proved_by(), Some(authority.der()));
    }
    let verifier = BundleVerifier::new(&[old.der(), new.der()]).unwrap();
    let refused = verifier.verify_server_cert(&leaf(&other), &[other.der()], &name, &[], UnixTime::now());
    assert!(refused.is_err() && verifier.proved_by().is_none());
}
