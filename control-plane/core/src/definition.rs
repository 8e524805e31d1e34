//! Owns what a task definition may say: checks a RegisterTaskDefinition request, all problems at once, and fills
//! in what AWS fills in. Never keeps a field that is not honoured, and never drops one in silence.
//!
//! First names and types against the table of ECS's fields (`shape`, `fields`), then values (the modules named
//! for their subject), then the defaults (`echo`).

mod container;
mod dependencies;
mod devices;
mod echo;
mod environment_files;
mod ephemeral_storage;
mod fields;
pub(crate) mod gpus;
mod health;
pub(crate) mod linux;
pub(crate) mod local_volume;
pub(crate) mod log;
pub(crate) mod log_attributes;
mod mount_options;
mod namespaces;
mod networking;
pub(crate) mod nfs;
mod overrides;
mod ports;
mod read;
mod restart;
mod roles;
mod schema;
mod shape;
pub(crate) mod sizes;
mod swap;
mod sysctls;
mod task_level;
#[cfg(test)]
mod tests;
mod tmpfs;
pub(crate) mod volumes;

use std::collections::BTreeMap;

use serde_json::Value;

pub use self::environment_files::{ENVIRONMENT_FILES_MAX, EnvironmentSource, StoredFile};
pub use self::log::UnsupportedLogDriver;
pub use crate::problems::{Problem, Problems};
use crate::tags;
pub use overrides::{OVERRIDES_CHARS_MAX, Overridden, override_definition};
pub(crate) use ports::port_range;

/// Largest definition, as compact JSON with defaults filled in.
pub const DEFINITION_BYTES_MAX: usize = 64 * 1024;
/// Most containers of one task.
pub const CONTAINERS_MAX: usize = 10;

/// A definition that was accepted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registered {
    pub family: String,
    /// The definition as AWS would echo it: camelCase, defaults filled in, nothing invented. Without ARN,
    /// revision, status and time, which are the caller's.
    pub definition: Value,
    pub tags: BTreeMap<String, String>,
}

/// Checks a RegisterTaskDefinition request.
///
/// Null and the empty list count as absent everywhere. Fields that only a DescribeTaskDefinition answer has are
/// left out, so that registering what was echoed gives the same again.
///
/// # Errors
/// Everything that is wrong with the request, each with its path.
pub fn register(input: &Value) -> Result<Registered, Problems> {
    register_where(input, UnsupportedLogDriver::default())
}

/// [`register`], where an operator decided about log drivers that do not exist yet.
///
/// # Errors
/// As [`register`].
pub fn register_where(input: &Value, absent: UnsupportedLogDriver) -> Result<Registered, Problems> {
    let mut problems = Problems::default();
    let registered = examine(input, DEFINITION_BYTES_MAX, &mut problems);
    if let (UnsupportedLogDriver::Refuse, Some(task)) = (absent, registered.definition.as_object()) {
        log::refuse_absent(task, &mut problems);
    }
    problems.or(registered)
}

/// Checks and fills in; what is returned is as good as the problems that were found allow.
fn examine(input: &Value, bytes_max: usize, problems: &mut Problems) -> Registered {
    let mut task = shape::check(input, problems);
    if !input.is_object() {
        return Registered::default();
    }
    task_level::check(&mut task, problems);
    roles::check(&mut task, "", problems);
    container::check(&task, problems);
    dependencies::check(&task, problems);
    volumes::check(&task, problems);
    namespaces::check(&task, problems);
    ports::check(&task, problems);
    ephemeral_storage::check(&task, problems);
    let tags = tags::check("tags", task.remove("tags").as_ref(), problems);
    let family = read::text(&task, "family").unwrap_or_default().to_string();
    // The size is that of the echo, so that an echo is never too large to be registered again.
    let bytes = serde_json::to_string(&echo::fill(&mut task)).map_or(0, |json| json.len());
    if bytes > bytes_max {
        problems.push(
            "",
            format!("the definition is {bytes} bytes, the limit is {bytes_max}"),
        );
    }
    echo::derive(&mut task);
    Registered {
        family,
        definition: Value::Object(task),
        tags,
    }
}
