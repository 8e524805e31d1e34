//! Owns the parts of ECS's answers that are shown to people. What is missing reads as empty: an answer of a newer
//! or older control plane still makes a table.

use serde::Deserialize;

use crate::ids::last_part;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    pub task_arn: String,
    pub cluster_arn: String,
    pub task_definition_arn: String,
    pub container_instance_arn: Option<String>,
    pub group: Option<String>,
    pub last_status: String,
    /// UNKNOWN also where nobody checks it.
    pub health_status: Option<String>,
    pub desired_status: String,
    pub connectivity: Option<String>,
    pub stop_code: Option<String>,
    pub stopped_reason: Option<String>,
    pub cpu: Option<String>,
    pub memory: Option<String>,
    /// Seconds since the Unix epoch, with a fraction; so are the others.
    pub created_at: Option<f64>,
    pub started_at: Option<f64>,
    pub stopped_at: Option<f64>,
    pub containers: Vec<Container>,
    pub attachments: Vec<Attachment>,
    pub attributes: Vec<NameValue>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub image: Option<String>,
    pub last_status: String,
    pub exit_code: Option<i32>,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    #[serde(rename = "type")]
    pub kind: String,
    pub details: Vec<NameValue>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NameValue {
    pub name: String,
    pub value: Option<String>,
}

impl Task {
    pub fn id(&self) -> &str {
        last_part(&self.task_arn)
    }

    pub fn node_id(&self) -> &str {
        self.container_instance_arn.as_deref().map_or("-", last_part)
    }

    /// `family:revision`.
    pub fn definition(&self) -> &str {
        last_part(&self.task_definition_arn)
    }

    /// The task's own address; none in host mode and before it has one.
    pub fn address(&self) -> Option<&str> {
        self.attachments
            .iter()
            .flat_map(|attachment| &attachment.details)
            .find(|detail| detail.name == "privateIPv4Address")
            .and_then(|detail| detail.value.as_deref())
    }

    /// What people should know of it.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        let named = self.attributes.iter().filter(|a| a.name == "berth.warning");
        named.filter_map(|attribute| attribute.value.as_deref())
    }

    pub fn is_stopped(&self) -> bool {
        self.last_status == "STOPPED"
    }

    pub fn is_running(&self) -> bool {
        self.last_status == "RUNNING"
    }

    /// Why it stopped, with what each container has to say.
    pub fn why_stopped(&self) -> String {
        let reason = self.stopped_reason.as_deref().unwrap_or("no reason given");
        let mut reasons = vec![reason.to_owned()];
        for container in &self.containers {
            let exit = container.exit_code.map(|code| format!("exit code {code}"));
            // One that failed the task before it ran has said so already.
            let own = container.reason.clone().filter(|own| own != reason);
            let said = [exit, own].into_iter().flatten().collect::<Vec<_>>().join(", ");
            if !said.is_empty() {
                reasons.push(format!("{}: {said}", container.name));
            }
        }
        reasons.join("; ")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerInstance {
    pub container_instance_arn: String,
    pub status: String,
    pub agent_connected: bool,
    pub running_tasks_count: u32,
    pub pending_tasks_count: u32,
    pub version_info: VersionInfo,
    pub registered_resources: Vec<Resource>,
    pub remaining_resources: Vec<Resource>,
    pub attributes: Vec<NameValue>,
    pub registered_at: Option<f64>,
    pub health_status: Health,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Health {
    pub details: Vec<HealthDetail>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HealthDetail {
    pub status: String,
    pub status_reason: Option<String>,
}

impl Health {
    /// What is wrong, as far as it has a reason. Being silent has a column of its own.
    pub fn problem(&self) -> String {
        let impaired = self.details.iter().filter(|detail| detail.status == "IMPAIRED");
        let reasons: Vec<&str> = impaired
            .filter_map(|detail| detail.status_reason.as_deref())
            .collect();
        reasons.join("; ")
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VersionInfo {
    pub agent_version: Option<String>,
    pub docker_version: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource {
    pub name: String,
    pub integer_value: i64,
}

impl ContainerInstance {
    pub fn id(&self) -> &str {
        last_part(&self.container_instance_arn)
    }

    /// `free/all` of CPU or MEMORY.
    pub fn free_of(&self, name: &str) -> String {
        let find = |resources: &[Resource]| {
            resources
                .iter()
                .find(|resource| resource.name == name)
                .map_or(0, |resource| resource.integer_value)
        };
        format!(
            "{}/{}",
            find(&self.remaining_resources),
            find(&self.registered_resources)
        )
    }

    pub fn attribute(&self, name: &str) -> &str {
        let found = self.attributes.iter().find(|attribute| attribute.name == name);
        found
            .and_then(|attribute| attribute.value.as_deref())
            .unwrap_or("-")
    }
}

/// A join token, as `BerthV1.ListJoinTokens` tells it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinToken {
    pub token_id: String,
    pub cluster: String,
    pub attributes: Vec<NameValue>,
    pub uses: u32,
    pub uses_left: u32,
    pub created_by: String,
    /// Seconds since the Unix epoch, with a fraction.
    pub created_at: Option<f64>,
    pub expires_at: Option<f64>,
}

impl JoinToken {
    pub fn expires_at_ms(&self) -> i64 {
        (self.expires_at.unwrap_or_default() * 1000.0) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_task_says_why_with_its_containers() {
        let task: Task = serde_json::from_value(serde_json::json!({
            "taskArn": "arn:aws:ecs:r:0:task/default/0a", "stoppedReason": "Essential container in task exited",
            "containers": [
                {"name": "web", "exitCode": 137, "reason": "OutOfMemoryError: over 64 MiB"},
                {"name": "sidecar"},
            ],
            "newField": [1],
        }))
        .unwrap();
        assert_eq!(
            task.why_stopped(),
            "Essential container in task exited; web: exit code 137, OutOfMemoryError: over 64 MiB"
        );
    }

    #[test]
    fn a_reason_is_said_once() {
        let reason = "CannotPullContainerError: manifest unknown";
        let task: Task = serde_json::from_value(serde_json::json!({
            "stoppedReason": reason, "containers": [{"name": "web", "reason": reason}],
        }))
        .unwrap();
        assert_eq!(task.why_stopped(), reason);
    }

    #[test]
    fn the_address_is_in_the_attachment() {
        let task: Task = serde_json::from_value(serde_json::json!({"attachments": [
            {"type": "ElasticNetworkInterface", "details": [
                {"name": "subnetId", "value": "subnet-default"}, {"name": "privateIPv4Address", "value": "10.89.0.2"},
            ]},
        ]}))
        .unwrap();
        assert_eq!(task.address(), Some("10.89.0.2"));
    }
}
