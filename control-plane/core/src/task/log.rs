//! Owns what a definition asks for its containers' output, and what is said where it gets something else.

use std::collections::BTreeMap;

use super::{Definition, EchoError, LOG, LogSpec};
use crate::definition::log::{self, JSON_FILE, NONE};
use crate::definition::log_attributes::{self, Named};
use crate::definition::sizes::parse_bytes;

/// How a container's output is asked to be kept. Absent values are `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// As ECS names it.
    pub driver: String,
    pub max_size_bytes: Option<u64>,
    pub max_files: Option<u32>,
    /// The container waits for a disk that does not keep up.
    pub blocking: bool,
    pub max_buffer_bytes: Option<u64>,
    /// Of the container's labels, added to every line.
    pub attributes: BTreeMap<String, String>,
    /// Likewise; names what only a run knows.
    pub tag: Option<String>,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            driver: JSON_FILE.into(),
            max_size_bytes: None,
            max_files: None,
            blocking: false,
            max_buffer_bytes: None,
            attributes: BTreeMap::new(),
            tag: None,
        }
    }
}

impl LogOptions {
    /// Its output is kept nowhere.
    pub fn is_discarded(&self) -> bool {
        self.driver == NONE
    }

    /// Something is added to every line.
    pub fn has_attributes(&self) -> bool {
        !self.attributes.is_empty() || self.tag.is_some()
    }

    /// `labels` are the container's.
    pub(super) fn read(
        driver: String,
        options: &BTreeMap<String, String>,
        labels: &BTreeMap<String, String>,
    ) -> Result<Self, EchoError> {
        let option = |name: &str| options.get(name).cloned();
        let bad = |field, value| move || EchoError::Value { field, value };
        let bytes = |name| {
            let value = option(name);
            let parsed = value.map(|value| parse_bytes(&value).ok_or_else(bad(name, value)));
            parsed.transpose()
        };
        // Those of other drivers are theirs.
        let own = driver == JSON_FILE;
        let attributes = own.then(|| log_attributes::of_labels(options, labels));
        let attributes = attributes
            .transpose()
            .map_err(|problem| bad("labels", problem)())?;
        Ok(Self {
            attributes: attributes.unwrap_or_default(),
            tag: option("tag").filter(|tag| own && !tag.is_empty()),
            driver,
            max_size_bytes: bytes("max-size")?,
            max_buffer_bytes: bytes("max-buffer-size")?,
            blocking: options.get("mode").is_some_and(|mode| mode == "blocking"),
            max_files: option("max-file")
                .map(|value| value.parse().map_err(|_| bad("max-file", value)()))
                .transpose()?,
        })
    }

    pub(super) fn resolve(&self, container: Named<'_>) -> LogSpec {
        let mut attributes = self.attributes.clone();
        if let Some(tag) = &self.tag {
            // It was judged when it was registered: what it names is known of every container.
            let _ = log_attributes::add_tag(&mut attributes, tag, container);
        }
        LogSpec {
            discard: self.is_discarded(),
            attributes,
            max_size_bytes: self.max_size_bytes.unwrap_or(LOG.max_size_bytes),
            max_files: self.max_files.unwrap_or(LOG.max_files),
            blocking: self.blocking,
            max_buffer_bytes: self.max_buffer_bytes.unwrap_or(LOG.max_buffer_bytes),
        }
    }
}

impl Definition {
    /// What people should know of tasks of this definition: where one gets something else than it asks for. The first
    /// twelve digits of `task_id` name the task in what they are told to do.
    pub fn warnings(&self, task_id: &str) -> Vec<String> {
        let task = task_id.get(..12).unwrap_or(task_id);
        let elsewhere = self.containers.iter().filter(|c| log::is_absent(&c.log.driver));
        let elsewhere = elsewhere.map(|container| {
                let (name, driver) = (&container.name, &container.log.driver);
                format!(
                    "container {name}: log driver {driver} is not supported yet: nothing is sent anywhere, and its \
                     output is kept on its node as with json-file; read it with `berth logs {task} --container {name}`"
                )
            });
        elsewhere.chain(self.open_files()).collect()
    }

    /// Why tasks of this definition are not started where log drivers that do not exist yet are refused. It may have
    /// been registered before they were.
    pub fn refused_log_driver(&self) -> Option<String> {
        let mut containers = self.containers.iter().enumerate();
        let (at, container) = containers.find(|(_, c)| log::is_absent(&c.log.driver))?;
        let path = format!("containerDefinitions[{at}].logConfiguration.logDriver");
        Some(format!("{path}: {}", log::refusal(&container.log.driver)))
    }
}
