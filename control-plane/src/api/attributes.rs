//! Owns custom attributes of container instances. Never changes what a node says of itself.

use std::collections::BTreeMap;

use berth_control_plane_core::arn::Resource;
use serde_json::{Value, json};

use super::{
    context::Api,
    error::ApiError,
    fields::Fields,
    node_view,
    paging::Paging,
    records::{self, Attempts},
};
use crate::{
    model::{Node, attribute, keys},
    store::typed::{self, Versioned},
};

/// Most attributes in one call, and most that can be put on one node.
const ATTRIBUTES_MAX: usize = attribute::PUT_MAX;
const TARGET_TYPE: [&str; 1] = ["container-instance"];

/// One attribute of one node, as a request names it.
#[derive(Debug)]
struct Named {
    name: String,
    value: Option<String>,
    node: String,
    target: String,
}

impl Named {
    fn respond(&self) -> Value {
        let mut body = json!({"name": self.name, "targetType": TARGET_TYPE[0], "targetId": self.target});
        if let Some(value) = &self.value {
            body["value"] = value.clone().into();
        }
        body
    }
}

pub(super) async fn put(api: &Api, input: Fields) -> Result<Value, ApiError> {
    let (cluster, named) = parse(api, input).await?;
    change(api, &cluster, &named, |node, attribute| {
        let fresh = !node.attributes.contains_key(&attribute.name);
        if fresh && node.attributes.len() >= ATTRIBUTES_MAX {
            let problem = format!(
                "{} has {ATTRIBUTES_MAX} custom attributes already",
                attribute.target
            );
            return Err(ApiError::AttributeLimitExceeded(problem));
        }
        node.attributes
            .insert(attribute.name.clone(), attribute.value.clone());
        Ok(())
    })
    .await
}

/// An attribute that is not there, or has another value than the one given, is left alone.
pub(super) async fn delete(api: &Api, input: Fields) -> Result<Value, ApiError> {
    let (cluster, named) = parse(api, input).await?;
    change(api, &cluster, &named, |node, attribute| {
        let held = node.attributes.get(&attribute.name);
        if held.is_some_and(|held| attribute.value.is_none() || *held == attribute.value) {
            node.attributes.remove(&attribute.name);
        }
        Ok(())
    })
    .await
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let target = input.choice("targetType", &TARGET_TYPE)?;
    target.ok_or_else(|| ApiError::field("targetType", "is required"))?;
    let name = input.string("attributeName")?.filter(|name| !name.is_empty());
    let value = input.string("attributeValue")?.filter(|value| !value.is_empty());
    let paging = Paging::take(&mut input, "ListAttributes")?;
    input.finish()?;
    if value.is_some() && name.is_none() {
        return Err(ApiError::field("attributeValue", "needs attributeName"));
    }
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let mut found = Vec::new();
    for node in records::all::<Node>(api, &keys::nodes(&cluster)).await? {
        let target = api.realm.container_instance(&cluster, &node.value.id);
        for (held, has) in node_view::attributes(&node.value) {
            let wanted = name.as_ref().is_none_or(|name| *name == held) && (value.is_none() || value == has);
            if wanted && node.value.status != "INACTIVE" {
                let key = format!("{}/{held}", node.key);
                let named = Named {
                    name: held,
                    value: has,
                    node: String::new(),
                    target: target.clone(),
                };
                found.push((key, named.respond()));
            }
        }
    }
    // Keys of nodes come in order, and a node's attributes do: this is the order of `/nodes/CLUSTER/NODE/NAME`.
    Ok(paging.cut(found, false).respond("attributes"))
}

async fn parse(api: &Api, mut input: Fields) -> Result<(String, Vec<Named>), ApiError> {
    let cluster = input.string("cluster")?;
    let attributes = input.objects("attributes", ATTRIBUTES_MAX)?;
    input.finish()?;
    if attributes.is_empty() {
        return Err(ApiError::field("attributes", "is required"));
    }
    // Whether it is ACTIVE is asked last: complaints about the request come first.
    let name = api.realm.cluster_name(cluster.as_deref())?;
    let named = attributes
        .into_iter()
        .map(|one| parse_one(api, &name, one))
        .collect::<Result<_, _>>()?;
    Ok((records::active_cluster(api, Some(&name)).await?, named))
}

fn parse_one(api: &Api, cluster: &str, mut fields: Fields) -> Result<Named, ApiError> {
    let name = fields.required("name")?;
    let value = fields.string("value")?;
    let target = fields.required("targetId")?;
    let target_type = fields.choice("targetType", &TARGET_TYPE)?;
    let path = |field: &str| fields.path(field);
    if let Some(problem) = attribute::given_name_problem(&name) {
        return Err(ApiError::field(path("name"), problem));
    }
    if let Some(problem) = value.as_deref().and_then(attribute::value_problem) {
        return Err(ApiError::field(path("value"), problem));
    }
    if !target.starts_with("arn:") && target_type.is_none() {
        return Err(ApiError::field(
            path("targetType"),
            "is required when targetId is not a full ARN",
        ));
    }
    if target.starts_with("arn:") && !matches!(api.realm.own(&target)?, Resource::ContainerInstance { .. }) {
        return Err(ApiError::field(
            path("targetId"),
            "must be the ARN or id of a container instance",
        ));
    }
    let node = api.realm.container_instance_id(cluster, &target)?;
    let target = api.realm.container_instance(cluster, &node);
    fields.finish()?;
    Ok(Named {
        name,
        value,
        node,
        target,
    })
}

/// Edits all named nodes in one transaction, or none.
async fn change(
    api: &Api,
    cluster: &str,
    named: &[Named],
    edit: impl Fn(&mut Node, &Named) -> Result<(), ApiError>,
) -> Result<Value, ApiError> {
    let mut attempts = Attempts::default();
    loop {
        let mut nodes: BTreeMap<&str, Versioned<Node>> = BTreeMap::new();
        for attribute in named {
            if !nodes.contains_key(attribute.node.as_str()) {
                let found = records::get::<Node>(api, &keys::node(cluster, &attribute.node)).await?;
                let node = found
                    .filter(|node| node.value.status != "INACTIVE")
                    .ok_or_else(|| {
                        ApiError::TargetNotFound(format!("{}: no such container instance", attribute.target))
                    })?;
                nodes.insert(&attribute.node, node);
            }
            if let Some(node) = nodes.get_mut(attribute.node.as_str()) {
                edit(&mut node.value, attribute)?;
            }
        }
        let compare = nodes.values().map(Versioned::unchanged).collect();
        let puts: Result<_, _> = nodes
            .values()
            .map(|node| typed::put_json(node.key.as_str(), &node.value))
            .collect();
        if records::commit(api, compare, puts?).await? {
            return Ok(json!({"attributes": named.iter().map(Named::respond).collect::<Vec<_>>()}));
        }
        attempts.again().await?;
    }
}
