//! Owns the way in for an operator who configured no key: a first admin key, made when there is none, and the file that
//! hands it over. Never touches a key that somebody else made.
//!
//! The file is written before the key is stored. A crash in between leaves a file whose key is worth nothing; the next
//! start finds no admin in the store, and makes another key and another file. So nobody is locked out, and no key is
//! good that nobody can know.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    api,
    audit::{Audit, AuditError, Event, Outcome},
    config::Config,
    link::now,
    model::{ApiKeyRecord, Role, keys},
    pki::{PkiError, write_private},
    store::{
        Compare, Store, Transaction,
        typed::{self, RecordError},
    },
};

/// The first admin key and where to use it, as a shell can source it; in the state directory.
pub const ADMIN_ENV_FILE: &str = "admin.env";
const NAME: &str = "first-admin";
const ACCESS_KEY: &str = "AWS_ACCESS_KEY_ID";
const SECRET_KEY: &str = "AWS_SECRET_ACCESS_KEY";

/// Why there is no first key.
#[derive(Debug, thiserror::Error)]
pub enum FirstKeyError {
    #[error("make a key")]
    Random { source: io::Error },
    #[error("write {}", path.display())]
    Write { path: PathBuf, source: PkiError },
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the store")]
    Store {
        #[from]
        source: RecordError,
    },
    #[error("the audit log")]
    Audit {
        #[from]
        source: AuditError,
    },
}

/// How a caller on this host reaches the API.
#[derive(Debug)]
pub(super) struct Reached {
    pub url: String,
    /// What a client has to believe, if no authority of the system signed the API's certificate.
    pub own_authority: Option<PathBuf>,
}

/// Makes a first admin key if no admin could call otherwise, and keeps its file true to where the API is now.
pub(super) async fn provide(
    config: &Config,
    store: &dyn Store,
    reached: &Reached,
    audit: &Audit,
) -> Result<(), FirstKeyError> {
    let path = config.state_dir.join(ADMIN_ENV_FILE);
    let stored = typed::all_json::<ApiKeyRecord>(store, keys::API_KEYS).await?;
    let has_admin = !config.keys.is_empty() || stored.iter().any(|key| key.value.role == Role::Admin);
    if has_admin {
        let known = read(&path)?;
        let Some((id, secret)) = known else { return Ok(()) };
        let mut stored = stored.iter().map(|key| &key.value);
        if stored.any(|key| key.access_key_id == id && key.secret == secret) {
            return write(&path, config, reached, &id, &secret);
        }
        // Revoked: a file that only seems to open the door would be taken for a fault of the door.
        tracing::info!(file = %path.display(), "removed: its access key is revoked");
        return fs::remove_file(&path).map_err(|source| FirstKeyError::Read { path, source });
    }
    let key = api::new_key().map_err(|error| FirstKeyError::Random {
        source: io::Error::other(error),
    })?;
    write(&path, config, reached, &key.access_key_id, &key.secret)?;
    let event = Event::new("control-plane", "CreateApiKey")
        .target("accessKeyId", key.access_key_id.as_str())
        .target("role", Role::Admin.name());
    let intent = audit.intend(event).await?;
    let record = ApiKeyRecord {
        access_key_id: key.access_key_id,
        secret: key.secret,
        name: NAME.into(),
        role: Role::Admin,
        created_at: now(),
        created_by: None,
    };
    let at = keys::api_key(&record.access_key_id);
    let transaction = Transaction {
        compare: vec![Compare::Missing(at.clone())],
        operations: vec![typed::put_json(at, &record)?],
    };
    store.commit(transaction).await.map_err(RecordError::from)?;
    intent.conclude(Outcome::Done).await;
    tracing::info!(
        file = %path.display(), key = record.access_key_id,
        "there was no admin key: a first one is made, and is in the file; `sudo berth` finds it there"
    );
    Ok(())
}

fn write(
    path: &Path,
    config: &Config,
    reached: &Reached,
    id: &str,
    secret: &str,
) -> Result<(), FirstKeyError> {
    let (region, url) = (&config.region, &reached.url);
    // The form of dev.env of `berth dev`: one reader for both.
    let mut text = format!(
        "# Written by berth-control-plane: the first admin key. For `berth` and the AWS command line: . THIS_FILE\n\
         export {ACCESS_KEY}={id}\nexport {SECRET_KEY}={secret}\nexport AWS_DEFAULT_REGION={region}\n\
         export BERTH_ENDPOINT_URL={url}\nexport AWS_ENDPOINT_URL_ECS={url}\n"
    );
    // A shell must take it as it is.
    let plain = |path: &str| {
        path.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b))
    };
    if let Some(own) = reached
        .own_authority
        .as_deref()
        .and_then(Path::to_str)
        .filter(|own| plain(own))
    {
        text.push_str(&format!("export AWS_CA_BUNDLE={own}\n"));
    }
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    write_private(path, &text).map_err(|source| FirstKeyError::Write {
        path: path.into(),
        source,
    })
}

/// Key id and secret in the file. None: there is no file, or no key in it.
fn read(path: &Path) -> Result<Option<(String, String)>, FirstKeyError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(FirstKeyError::Read {
                path: path.into(),
                source,
            });
        }
    };
    let value = |name: &str| {
        let prefix = format!("export {name}=");
        text.lines()
            .find_map(|line| line.strip_prefix(&prefix))
            .map(str::to_owned)
    };
    Ok(value(ACCESS_KEY).zip(value(SECRET_KEY)))
}
