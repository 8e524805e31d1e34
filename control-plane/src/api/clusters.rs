//! Owns the operations on clusters. Never starts or stops anything: a cluster is a name that nodes and tasks carry.

use berth_control_plane_core::arn;
use serde_json::{Value, json};

use super::{
    context::{Api, now_ms},
    error::ApiError,
    fields::Fields,
    paging::Paging,
    records::{self, Attempts},
    tags,
    tasks::counts::{self, Counts},
};
use crate::{
    model::{Cluster, Node, keys},
    store::{Compare, typed},
};

/// Most clusters one call may describe.
const DESCRIBE_MAX: usize = 100;
const INCLUDE: [&str; 5] = ["ATTACHMENTS", "CONFIGURATIONS", "SETTINGS", "STATISTICS", "TAGS"];

/// Idempotent: an ACTIVE cluster of that name is returned as it is.
pub(super) async fn create(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let name = input.string("clusterName")?.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| arn::DEFAULT_CLUSTER.to_owned());
    if !arn::is_name(&name) {
        return Err(ApiError::field(
            "clusterName",
            "must be 1 to 255 letters, digits, hyphens and underscores",
        ));
    }
    let tags = tags::take(&mut input)?;
    let settings = settings(&mut input)?;
    for field in [
        "configuration",
        "capacityProviders",
        "defaultCapacityProviderStrategy",
        "serviceConnectDefaults",
    ] {
        input.unsupported(field)?;
    }
    input.finish()?;
    let key = keys::cluster(&name);
    let fresh = Cluster {
        name,
        status: "ACTIVE".to_owned(),
        tags,
        settings,
        created_at: now_ms(),
    };
    let mut attempts = Attempts::default();
    loop {
        let compare = match records::get::<Cluster>(api, &key).await? {
            Some(found) if found.value.status == "ACTIVE" => {
                return Ok(json!({"cluster": respond(api, &found.value, None, &INCLUDE)}));
            }
            // A deleted cluster's name may be used again.
            Some(found) => found.unchanged(),
            None => Compare::Missing(key.clone()),
        };
        if records::commit(api, vec![compare], vec![typed::put_json(key.as_str(), &fresh)?]).await? {
            return Ok(json!({"cluster": respond(api, &fresh, None, &INCLUDE)}));
        }
        attempts.again().await?;
    }
}

fn settings(input: &mut Fields) -> Result<Vec<Value>, ApiError> {
    let one = |mut setting: Fields| {
        let name = setting.choice("name", &["containerInsights"])?;
        let name = name.ok_or_else(|| ApiError::field(setting.path("name"), "is required"))?;
        let value = setting
            .choice("value", &["enabled", "disabled", "enhanced"])?
            .unwrap_or("disabled");
        setting.finish()?;
        Ok(json!({"name": name, "value": value}))
    };
    input.objects("settings", 1)?.into_iter().map(one).collect()
}

pub(super) async fn describe(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let named = input.strings("clusters")?.unwrap_or_default();
    let include = input.choices("include", &INCLUDE)?;
    input.finish()?;
    if named.len() > DESCRIBE_MAX {
        return Err(ApiError::field(
            "clusters",
            format_args!("can have at most {DESCRIBE_MAX} entries"),
        ));
    }
    let named = if named.is_empty() {
        vec![arn::DEFAULT_CLUSTER.to_owned()]
    } else {
        named
    };
    let (mut clusters, mut failures) = (Vec::new(), Vec::new());
    for reference in named {
        let name = api.realm.cluster_name(Some(&reference))?;
        match records::get::<Cluster>(api, &keys::cluster(&name)).await? {
            Some(cluster) => {
                let counts = counts::of(api, &name).await?;
                clusters.push(respond(api, &cluster.value, Some(&counts), &include));
            }
            None => failures.push(json!({"arn": api.realm.cluster(&name), "reason": "MISSING"})),
        }
    }
    Ok(json!({"clusters": clusters, "failures": failures}))
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let paging = Paging::take(&mut input, "ListClusters")?;
    input.finish()?;
    let arn = |cluster: Cluster| Ok((cluster.status == "ACTIVE").then(|| api.realm.cluster(&cluster.name)));
    Ok(paging
        .walk(api, keys::CLUSTERS, arn)
        .await?
        .respond("clusterArns"))
}

/// Marks it INACTIVE; it stays describable, and its name may be used again.
pub(super) async fn delete(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let reference = input.required("cluster")?;
    input.finish()?;
    let name = api.realm.cluster_name(Some(&reference))?;
    let mut attempts = Attempts::default();
    loop {
        let found = records::get::<Cluster>(api, &keys::cluster(&name)).await?;
        let mut cluster = found.ok_or_else(|| ApiError::ClusterNotFound(name.clone()))?;
        if cluster.value.status == "ACTIVE" {
            let nodes = records::all::<Node>(api, &keys::nodes(&name)).await?;
            if nodes.iter().any(|node| node.value.status != "INACTIVE") {
                return Err(ApiError::ClusterContainsContainerInstances);
            }
            if !counts::of(api, &name).await?.is_idle() {
                return Err(ApiError::ClusterContainsTasks);
            }
        }
        cluster.value.status = "INACTIVE".to_owned();
        let put = typed::put_json(cluster.key.as_str(), &cluster.value)?;
        if records::commit(api, vec![cluster.unchanged()], vec![put]).await? {
            return Ok(json!({"cluster": respond(api, &cluster.value, None, &INCLUDE)}));
        }
        attempts.again().await?;
    }
}

fn respond(api: &Api, cluster: &Cluster, counts: Option<&Counts>, include: &[&str]) -> Value {
    let idle = Counts::default();
    let counts = counts.unwrap_or(&idle);
    let with = |what: &str, value: Value| if include.contains(&what) { value } else { json!([]) };
    let settings = match cluster.settings.is_empty() {
        true => json!([{"name": "containerInsights", "value": "disabled"}]),
        false => json!(cluster.settings),
    };
    json!({
        "clusterArn": api.realm.cluster(&cluster.name),
        "clusterName": cluster.name,
        "status": cluster.status,
        "registeredContainerInstancesCount": counts.nodes,
        "runningTasksCount": counts.total.running,
        "pendingTasksCount": counts.total.pending,
        "activeServicesCount": 0,
        "statistics": with("STATISTICS", counts.statistics()),
        "tags": with("TAGS", tags::respond(&cluster.tags)),
        "settings": with("SETTINGS", settings),
        "capacityProviders": [],
        "defaultCapacityProviderStrategy": [],
    })
}
