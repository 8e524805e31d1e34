//! Owns the store of environment files: put, listed, deleted, and read when tasks are made. Never shows or logs what a
//! file holds: only its node is told.

use berth_control_plane_core::{
    definition::StoredFile,
    task::{Definition, STORED_BYTES_MAX, StoredFiles},
};
use berth_environment_file::parse;
use serde_json::{Value, json};

use super::{
    context::{Api, Caller, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    paging::Paging,
    records::{self, Attempts},
};
use crate::{
    model::{EnvironmentFile, keys},
    store::{Compare, Operation, typed},
};

/// Most files in the store.
const FILES_MAX: usize = 1_000;

/// Stores a file, or another content of it. Tasks that were started go on with what they have.
pub(super) async fn put(api: &Api, caller: &Caller, mut input: Fields) -> Result<Value, ApiError> {
    let file = named(&mut input)?;
    let content = input.required("content")?;
    input.finish()?;
    let variables = parse(content.as_bytes()).map_err(|invalid| ApiError::field("content", invalid))?;
    let record = EnvironmentFile {
        arn: file.to_string(),
        bytes: content.len(),
        variables: variables.len(),
        changed_by: caller.access_key_id.clone(),
        changed_at: now_ms(),
    };
    let key = keys::environment_file(&file.bucket, &file.key);
    let content_key = keys::environment_file_content(&file.bucket, &file.key);
    let mut attempts = Attempts::default();
    loop {
        let found = records::get::<EnvironmentFile>(api, &key).await?;
        let compare = match &found {
            Some(found) => found.unchanged(),
            None if count(api).await? >= FILES_MAX => {
                let problem =
                    format!("there are {FILES_MAX} environment files: delete those that nobody uses");
                return Err(ApiError::LimitExceeded(problem));
            }
            None => Compare::Missing(key.clone()),
        };
        let operations = vec![
            typed::put_json(key.as_str(), &record)?,
            typed::put_json(content_key.as_str(), &content)?,
        ];
        if records::commit(api, vec![compare], operations).await? {
            return Ok(json!({"environmentFile": respond(&record)}));
        }
        attempts.again().await?;
    }
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let paging = Paging::take(&mut input, "ListEnvironmentFiles")?;
    input.finish()?;
    let page = paging
        .walk(api, keys::ENVIRONMENT_FILES, |file: EnvironmentFile| {
            Ok(Some(respond(&file)))
        })
        .await?;
    Ok(page.respond("environmentFiles"))
}

/// No task starts with it any more; those that did go on.
pub(super) async fn delete(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let file = named(&mut input)?;
    input.finish()?;
    let mut attempts = Attempts::default();
    loop {
        let key = keys::environment_file(&file.bucket, &file.key);
        let found = records::get::<EnvironmentFile>(api, &key).await?;
        let found = found
            .ok_or_else(|| ApiError::ResourceNotFound(format!("no environment file is stored as {file}")))?;
        let delete = |key| Operation::Delete { key };
        let content = keys::environment_file_content(&file.bucket, &file.key);
        if records::commit(api, vec![found.unchanged()], vec![delete(key), delete(content)]).await? {
            return Ok(json!({"environmentFile": respond(&found.value)}));
        }
        attempts.again().await?;
    }
}

/// What tasks of the definition need of the store.
pub(super) async fn of_tasks(api: &Api, definition: &Definition) -> Result<StoredFiles, ApiError> {
    let mut files = StoredFiles::new();
    for (path, file) in definition.stored_files() {
        if files.contains_key(file) {
            continue;
        }
        let key = keys::environment_file_content(&file.bucket, &file.key);
        let found = records::get::<String>(api, &key).await?;
        let content = found.ok_or_else(|| {
            ApiError::field(
                path,
                format_args!(
                    "ResourceInitializationError: no environment file is stored as {file}: put it there with `berth \
                     env-file put`"
                ),
            )
        })?;
        let variables = parse(content.value.as_bytes())
            .map_err(|invalid| ApiError::Server(format!("the stored {file} cannot be used: {invalid}")))?;
        files.insert(file.clone(), variables);
    }
    let bytes = definition.stored_bytes(&files);
    if bytes > STORED_BYTES_MAX {
        return Err(ApiError::InvalidParameter(format!(
            "the stored environment files of the containers come to {bytes} bytes, the limit is {STORED_BYTES_MAX}: \
             shorten them, or serve them to the nodes over https"
        )));
    }
    Ok(files)
}

fn named(input: &mut Fields) -> Result<StoredFile, ApiError> {
    let arn = input.required("arn")?;
    StoredFile::from_arn(&arn).map_err(|problem| ApiError::field("arn", problem))
}

async fn count(api: &Api) -> Result<usize, ApiError> {
    let all = records::all::<EnvironmentFile>(api, keys::ENVIRONMENT_FILES).await?;
    Ok(all.len())
}

fn respond(file: &EnvironmentFile) -> Value {
    json!({
        "arn": file.arn,
        "bytes": file.bytes,
        "variables": file.variables,
        "changedBy": file.changed_by,
        "changedAt": seconds(file.changed_at),
    })
}
