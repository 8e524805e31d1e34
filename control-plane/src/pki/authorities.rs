//! Owns which authorities are believed, which of them issues, and the steps from one to the next. Never decides when
//! they are taken.
//!
//! One authority replaces another in three steps. *Begin* makes the next one: both are believed, the old one issues.
//! *Activate* lets the new one issue; the old one vouches for it, so that a node that has not heard of the new one
//! believes the listener all the same. *Finish* forgets the old one. Each step is one rename of [`STATE_FILE`]: files
//! that it names are there before, and removed after. Cut short, a step has been taken or it has not.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::KeyPair;
use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use x509_parser::pem::parse_x509_pem;

use super::{Authority, FIRST_NAME, NodeIdentity, PkiError, files, peer};

/// Which authorities there are, in their directory. Not there before the first is replaced.
pub const STATE_FILE: &str = "authorities.json";
/// The first authority's files begin with this; those of later ones have a number behind it.
const FIRST: &str = "authority";

/// Where a replacement stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// There is one authority.
    Steady,
    /// The next one is believed, too.
    Begun,
    /// The new one issues; the old one is still believed.
    Activated,
}

impl Phase {
    /// As the API names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steady => "STEADY",
            Self::Begun => "BEGUN",
            Self::Activated => "ACTIVATED",
        }
    }
}

/// The state file. Authorities are named by what their files begin with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    active: String,
    /// Counts authorities, so that no name comes twice.
    made: u32,
    next: Option<String>,
    previous: Option<String>,
    /// Not believed any more; its files are to be removed.
    retired: Option<String>,
}

/// The authorities of one control plane.
#[derive(Debug)]
pub struct Authorities {
    directory: PathBuf,
    state: Mutex<State>,
    trusted: watch::Sender<Arc<Trusted>>,
}

/// Whom to believe at one point in time.
#[derive(Debug)]
pub struct Trusted {
    phase: Phase,
    active: Arc<Authority>,
    other: Option<Arc<Authority>>,
    /// The old one's certificate for the new one, DER.
    voucher: Option<Vec<u8>>,
}

/// The server's certificate, DER, with what stands behind it, and its key.
pub(crate) struct ServerChain {
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) key: KeyPair,
    /// When to make another.
    pub(crate) renew_at: OffsetDateTime,
}

impl Authorities {
    /// Those that live in `directory`; on the first call one is made, and the directory with it.
    ///
    /// # Errors
    /// As [`Authority::load_or_create`], and [`PkiError::State`].
    pub fn load_or_create(directory: &Path) -> Result<Self, PkiError> {
        files::create_directory(directory)?;
        let state = read_state(&directory.join(STATE_FILE))?;
        if state.is_none() {
            Authority::load_or_create(directory)?;
        }
        let mut state = state.unwrap_or(State {
            active: FIRST.into(),
            made: 1,
            next: None,
            previous: None,
            retired: None,
        });
        clean(directory, &mut state)?;
        let trusted = Trusted::load(directory, &state)?;
        Ok(Self {
            directory: directory.into(),
            state: Mutex::new(state),
            trusted: watch::Sender::new(Arc::new(trusted)),
        })
    }

    /// Whom to believe now.
    pub fn trusted(&self) -> Arc<Trusted> {
        self.trusted.borrow().clone()
    }

    /// Whom to believe, from now on.
    pub fn watch(&self) -> watch::Receiver<Arc<Trusted>> {
        self.trusted.subscribe()
    }

    /// The certificates that nodes have to believe, PEM.
    pub fn certificate_pem(&self) -> String {
        self.trusted().all().map(|one| one.certificate_pem()).collect()
    }

    /// An identity for a node, key and all: for who has both control plane and node in hand.
    pub fn issue_node(&self, node_id: &str, cluster: &str) -> Result<NodeIdentity, PkiError> {
        let identity = self.trusted().active.issue_node(node_id, cluster)?;
        Ok(NodeIdentity {
            authority_pem: self.certificate_pem(),
            ..identity
        })
    }

    /// Makes the authority that is to replace the active one; both are believed from here on. Blocks on the disk.
    pub fn begin(&self) -> Result<(), PkiError> {
        self.step(|directory, state| {
            if state.next.is_some() || state.previous.is_some() {
                return Err(PkiError::Step(
                    "the authority is being replaced already: activate or finish that first",
                ));
            }
            // Files of that name are of a step that was cut short: nothing was issued by them.
            let number = state.made + 1;
            let name = format!("{FIRST}-{number}");
            let subject = format!("{FIRST_NAME} {number}");
            Authority::create(
                &key_path(directory, &name),
                &certificate_path(directory, &name),
                &subject,
            )?;
            Ok(State {
                made: number,
                next: Some(name),
                ..state.clone()
            })
        })
    }

    /// Lets the new authority issue. The old one is still believed. Blocks on the disk.
    pub fn activate(&self) -> Result<(), PkiError> {
        self.step(|directory, state| {
            let next = state.next.clone().ok_or(PkiError::Step(
                "there is no new authority to activate: begin with making one",
            ))?;
            let (old, new) = (load(directory, &state.active)?, load(directory, &next)?);
            files::write_public(&voucher_path(directory, &next), &old.vouch_for(&new)?.pem())?;
            Ok(State {
                active: next,
                next: None,
                previous: Some(state.active.clone()),
                ..state.clone()
            })
        })
    }

    /// Believes the old authority no longer, and removes its files. Blocks on the disk.
    pub fn finish(&self) -> Result<(), PkiError> {
        self.step(|_, state| {
            let previous = state.previous.clone().ok_or(PkiError::Step(
                "there is no old authority to forget: begin with making a new one, and activate it",
            ))?;
            Ok(State {
                previous: None,
                retired: Some(previous),
                ..state.clone()
            })
        })
    }

    fn step(&self, next: impl FnOnce(&Path, &State) -> Result<State, PkiError>) -> Result<(), PkiError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = next(&self.directory, &state)?;
        // What cannot be loaded must not become the state.
        let trusted = Trusted::load(&self.directory, &taken)?;
        write_state(&self.directory, &taken)?;
        *state = taken;
        self.trusted.send_replace(Arc::new(trusted));
        clean(&self.directory, &mut state)
    }
}

impl Trusted {
    fn load(directory: &Path, state: &State) -> Result<Self, PkiError> {
        let (phase, other) = match (&state.next, &state.previous) {
            (None, None) => (Phase::Steady, None),
            (Some(next), _) => (Phase::Begun, Some(next)),
            (None, Some(previous)) => (Phase::Activated, Some(previous)),
        };
        let voucher = match phase {
            Phase::Activated => Some(read_der(&voucher_path(directory, &state.active))?),
            Phase::Steady | Phase::Begun => None,
        };
        Ok(Self {
            phase,
            active: Arc::new(load(directory, &state.active)?),
            other: other.map(|name| load(directory, name)).transpose()?.map(Arc::new),
            voucher,
        })
    }

    /// Where a replacement stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The one that issues.
    pub fn active(&self) -> &Authority {
        &self.active
    }

    /// The one that comes or goes, while one replaces the other.
    pub fn other(&self) -> Option<&Authority> {
        self.other.as_deref()
    }

    /// The one that issues first.
    pub fn all(&self) -> impl Iterator<Item = &Authority> {
        std::iter::once(&*self.active).chain(self.other())
    }

    /// Every certificate to believe, DER.
    pub fn certificates_der(&self) -> Vec<Vec<u8>> {
        self.all().map(|one| one.certificate_der().to_vec()).collect()
    }

    /// Which of them signed this certificate, if one did. The signature itself was verified by TLS.
    pub fn issuer_of(&self, certificate_der: &[u8]) -> Option<&Authority> {
        let signer = peer::signed_by(certificate_der)?;
        self.all().find(|one| one.facts.key_identifier == signer)
    }

    /// What the node listener shows: its own certificate, then all that leads from it to an authority a node may know.
    pub(crate) fn server_chain(&self, names: &[String], lifetime: Duration) -> Result<ServerChain, PkiError> {
        let (key, leaf) = self.active.server_leaf(names, lifetime)?;
        let mut chain = vec![leaf.der().to_vec()];
        chain.extend(self.voucher.clone());
        chain.push(self.active.certificate_der().to_vec());
        if self.phase == Phase::Activated {
            chain.extend(self.other().map(|old| old.certificate_der().to_vec()));
        }
        let good_for = (self.active.not_after() - OffsetDateTime::now_utc()).min(lifetime);
        Ok(ServerChain {
            chain,
            key,
            renew_at: OffsetDateTime::now_utc() + good_for * 2 / 3,
        })
    }
}

impl std::fmt::Debug for ServerChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerChain")
            .field("renew_at", &self.renew_at)
            .finish_non_exhaustive()
    }
}

fn key_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.key"))
}

fn certificate_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.pem"))
}

fn voucher_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}-voucher.pem"))
}

fn load(directory: &Path, name: &str) -> Result<Authority, PkiError> {
    let (key, certificate) = (key_path(directory, name), certificate_path(directory, name));
    if certificate.exists() && !key.exists() {
        return Err(PkiError::KeyMissing { certificate, key });
    }
    Authority::load_pair(&key, &certificate)
}

fn read_der(path: &Path) -> Result<Vec<u8>, PkiError> {
    let text = files::read(path)?;
    let (_, pem) = parse_x509_pem(text.as_bytes()).map_err(|error| PkiError::NotAnAuthority {
        path: path.into(),
        source: format!("not PEM: {error}").into(),
    })?;
    Ok(pem.contents)
}

fn read_state(path: &Path) -> Result<Option<State>, PkiError> {
    if !path.exists() {
        return Ok(None);
    }
    serde_json::from_str(&files::read(path)?)
        .map(Some)
        .map_err(|source| PkiError::State {
            path: path.into(),
            source,
        })
}

fn write_state(directory: &Path, state: &State) -> Result<(), PkiError> {
    let path = directory.join(STATE_FILE);
    let text = serde_json::to_string_pretty(state).map_err(|source| PkiError::State {
        path: path.clone(),
        source,
    })?;
    files::write_private(&path, &text)
}

/// Removes what a retired authority left; the last part of finishing, also after a crash.
fn clean(directory: &Path, state: &mut State) -> Result<(), PkiError> {
    let Some(retired) = &state.retired else {
        return Ok(());
    };
    // The key first: it is the part that could do harm.
    let paths = [
        key_path(directory, retired),
        certificate_path(directory, retired),
        voucher_path(directory, retired),
        voucher_path(directory, &state.active),
    ];
    for path in paths {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let action = "remove";
                return Err(PkiError::File { action, path, source });
            }
            _ => {}
        }
    }
    let cleaned = State {
        retired: None,
        ..state.clone()
    };
    write_state(directory, &cleaned)?;
    *state = cleaned;
    Ok(())
}
