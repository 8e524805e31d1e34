//! Owns the operations on subnets: made, listed, deleted. Which node has which part is `crate::subnets`'.

use std::collections::BTreeMap;

use berth_control_plane_core::{
    arn,
    subnets::{self, Asked, Design, KINDS, SUBNETS_MAX, ipv6},
};
use serde_json::{Value, json};

use super::{
    context::{Api, now_ms, seconds},
    error::ApiError,
    fields::Fields,
    idempotency::ClientToken,
    paging::Paging,
    records::{self, Attempts},
    tags,
};
use crate::{
    model::{Node, Subnet, SubnetClaim, SubnetKind, keys},
    store::{
        Compare, Operation, StoreError,
        typed::{self, Versioned},
    },
    subnets::settle,
};

/// Subnets of all clusters together.
const CLAIMS_MAX: usize = 1_000;
/// How many of the tasks that keep a subnet from being deleted are named.
const TASKS_NAMED_MAX: usize = 5;

/// By id, of every cluster.
type Claims = BTreeMap<String, SubnetClaim>;

/// Idempotent: a subnet of that name is returned as it is, if it is the one that is asked for.
pub(super) async fn create(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let whole = input.rest();
    let token = ClientToken::take(&mut input, "CreateSubnet", &whole)?;
    let cluster = input.string("cluster")?;
    let wanted = wanted(&mut input)?;
    input.finish()?;
    let cluster = records::active_cluster(api, cluster.as_deref()).await?;
    let mut attempts = Attempts::default();
    loop {
        if let Some(token) = &token
            && let Some(earlier) = token.earlier(api, &cluster).await?
        {
            return Ok(earlier);
        }
        let known = records::all::<Subnet>(api, &keys::subnets(&cluster)).await?;
        if let Some(same) = known.iter().find(|subnet| subnet.value.name == wanted.name) {
            return wanted
                .is_met_by(&same.value)
                .map(|()| json!({"subnet": respond(api, &same.value)}));
        }
        if known.len() >= SUBNETS_MAX {
            let problem = format!("cluster {cluster} has {SUBNETS_MAX} subnets: delete one that nobody uses");
            return Err(ApiError::LimitExceeded(problem));
        }
        let fresh = wanted.subnet(&cluster);
        let answer = json!({"subnet": respond(api, &fresh)});
        let (mut compare, mut operations) = claim(api, &fresh).await?;
        if let Some(token) = &token {
            let (missing, put) = token.record(api, &cluster, &answer).await?;
            compare.push(missing);
            operations.push(put);
        }
        match records::commit(api, compare, operations).await {
            Ok(true) => {
                settle(api.store.as_ref(), &cluster, now_ms()).await?;
                return Ok(answer);
            }
            Ok(false) => {}
            Err(ApiError::Store(StoreError::NoLease(_))) => api.token_lease.forget().await,
            Err(error) => return Err(error),
        }
        attempts.again().await?;
    }
}

/// What CreateSubnet asks for.
struct Wanted {
    name: String,
    design: Design,
    tags: crate::model::Tags,
}

fn wanted(input: &mut Fields) -> Result<Wanted, ApiError> {
    let name = input.required("name")?;
    if !arn::is_name(&name) {
        return Err(ApiError::field(
            "name",
            "must be 1 to 255 letters, digits, hyphens and underscores",
        ));
    }
    let range = input.required("cidrBlock")?;
    let node_prefix_len = input.integer("nodePrefixLength", 0, 32)?;
    let asked = Asked {
        cidr: range,
        ipv6_cidr: input.string("ipv6CidrBlock")?,
        node_prefix_len: node_prefix_len.and_then(|len| u8::try_from(len).ok()),
        kind: input.choice("kind", &KINDS)?,
        uplink: input.string("uplink")?,
        vlan_id: input.integer("vlanId", i64::MIN, i64::MAX)?,
        gateway: input.string("gateway")?,
        range: input.string("range")?,
    };
    let design = asked.design().map_err(|problems| {
        let all = problems
            .iter()
            .map(|problem| format!("{}: {}", problem.field, problem.what));
        ApiError::InvalidParameter(all.collect::<Vec<_>>().join("; "))
    })?;
    let tags = tags::take(input)?;
    Ok(Wanted { name, design, tags })
}

impl Wanted {
    fn subnet(&self, cluster: &str) -> Subnet {
        Subnet {
            id: subnets::id(uuid::Uuid::new_v4().as_u128()),
            cluster: cluster.to_owned(),
            name: self.name.clone(),
            kind: self.kind(),
            range: self.design.shape.range,
            node_prefix_len: self.design.shape.node_prefix_len,
            ipv6_prefix: self.design.ipv6_prefix,
            deleting: false,
            tags: self.tags.clone(),
            created_at: now_ms(),
            blocks: Default::default(),
        }
    }

    fn kind(&self) -> SubnetKind {
        let lan = self.design.lan.clone();
        lan.map_or(SubnetKind::Routed, SubnetKind::Lan)
    }

    fn is_met_by(&self, known: &Subnet) -> Result<(), ApiError> {
        let same = known.shape() == self.design.shape && known.ipv6_prefix == self.design.ipv6_prefix;
        if same && known.kind == self.kind() {
            return Ok(());
        }
        Err(ApiError::Conflict {
            message: format!(
                "the cluster has a subnet {} already: {}{} with parts of /{}, of kind {}",
                known.name,
                known.range,
                known
                    .ipv6_prefix
                    .map(|prefix| format!(" and {prefix}"))
                    .unwrap_or_default(),
                known.node_prefix_len,
                known.kind.name()
            ),
            resource_ids: vec![known.id.clone()],
        })
    }
}

/// What makes the subnet in one transaction, if its range is nobody's.
async fn claim(api: &Api, fresh: &Subnet) -> Result<(Vec<Compare>, Vec<Operation>), ApiError> {
    let (mut claims, unchanged) = claims(api).await?;
    // A version before wrote none there.
    for subnet in typed::all_json::<Subnet>(api.store.as_ref(), keys::SUBNETS).await? {
        let gateway = subnet.value.lan().and_then(|lan| lan.gateway);
        if let Some(claim) = claims.get_mut(&subnet.value.id) {
            claim.gateway = gateway;
        }
    }
    let claim = SubnetClaim {
        cluster: fresh.cluster.clone(),
        range: fresh.range,
        lan: fresh.lan().map(|lan| lan.network),
        gateway: fresh.lan().and_then(|lan| lan.gateway),
        ipv6_prefix: fresh.ipv6_prefix,
    };
    let overlaps = |(id, taken): (&String, &SubnetClaim)| {
        let (mine, theirs) = claim.overlap(taken)?;
        Some(format!(
            "{mine} overlaps {theirs}, which is {id} of cluster {}: no two subnets of a control plane may overlap",
            taken.cluster
        ))
    };
    if let Some(problem) = claims.iter().find_map(overlaps) {
        let field = if claim.lan.is_some() { "range" } else { "cidrBlock" };
        return Err(ApiError::field(field, problem));
    }
    let overlaps = |(id, taken): (&String, &SubnetClaim)| {
        let (mine, theirs) = claim.overlap_ipv6(taken)?;
        Some(format!(
            "{mine} overlaps {theirs}, which is of {id} of cluster {}: no two subnets of a control plane may overlap",
            taken.cluster
        ))
    };
    if let Some(problem) = claims.iter().find_map(overlaps) {
        return Err(ApiError::field("ipv6CidrBlock", problem));
    }
    for (id, other) in &claims {
        let of = format!("{id} of cluster {}", other.cluster);
        if let Some(gateway) = claim.takes_gateway_of(other) {
            let range = claim.range;
            let problem = format!(
                "{range} has {gateway} in it, which is the gateway of {of}: choose a range without it"
            );
            return Err(ApiError::field("range", problem));
        }
        if let Some(gateway) = other.takes_gateway_of(&claim) {
            let problem = format!(
                "{gateway} is inside of {}, of which tasks of {of} get addresses",
                other.range
            );
            return Err(ApiError::field("gateway", problem));
        }
    }
    if claims.len() >= CLAIMS_MAX {
        let problem = format!("there are {CLAIMS_MAX} subnets: delete some");
        return Err(ApiError::LimitExceeded(problem));
    }
    claims.insert(fresh.id.clone(), claim);
    let key = keys::subnet(&fresh.cluster, &fresh.id);
    let operations = vec![
        typed::put_json(keys::SUBNET_RANGES, &claims)?,
        typed::put_json(key.as_str(), fresh)?,
    ];
    Ok((vec![unchanged, Compare::Missing(key)], operations))
}

/// Every range that is taken, and what holds as long as they are.
async fn claims(api: &Api) -> Result<(Claims, Compare), ApiError> {
    let found = records::get::<Claims>(api, keys::SUBNET_RANGES).await?;
    Ok(match found {
        Some(found) => {
            let unchanged = found.unchanged();
            (found.value, unchanged)
        }
        None => (Claims::new(), Compare::Missing(keys::SUBNET_RANGES.into())),
    })
}

pub(super) async fn list(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let paging = Paging::take(&mut input, "ListSubnets")?;
    input.finish()?;
    let cluster = api.realm.cluster_name(cluster.as_deref())?;
    let page = paging
        .walk(api, &keys::subnets(&cluster), |subnet: Subnet| {
            Ok(Some(respond(api, &subnet)))
        })
        .await?;
    Ok(page.respond("subnets"))
}

/// Not while tasks have addresses of it. First no more tasks are placed in it, then those that are there are counted:
/// none can come in between.
pub(super) async fn delete(api: &Api, mut input: Fields) -> Result<Value, ApiError> {
    let cluster = input.string("cluster")?;
    let reference = input.required("subnet")?;
    input.finish()?;
    let cluster = api.realm.cluster_name(cluster.as_deref())?;
    let mut attempts = Attempts::default();
    loop {
        let subnet = find(api, &cluster, &reference).await?;
        let Some(subnet) = mark(api, subnet).await? else {
            attempts.again().await?;
            continue;
        };
        let tasks = users(api, &cluster, &subnet.value.id).await?;
        if !tasks.is_empty() {
            records::change(api, &subnet.key, |subnet: &mut Subnet| {
                subnet.deleting = false;
                Ok(())
            })
            .await?;
            return Err(in_use(&subnet.value, &tasks));
        }
        let (mut claims, unchanged) = claims(api).await?;
        claims.remove(&subnet.value.id);
        let operations = vec![
            typed::put_json(keys::SUBNET_RANGES, &claims)?,
            Operation::Delete {
                key: subnet.key.clone(),
            },
        ];
        if records::commit(api, vec![subnet.unchanged(), unchanged], operations).await? {
            return Ok(json!({"subnet": respond(api, &subnet.value)}));
        }
        attempts.again().await?;
    }
}

/// By id or name.
async fn find(api: &Api, cluster: &str, reference: &str) -> Result<Versioned<Subnet>, ApiError> {
    let all = records::all::<Subnet>(api, &keys::subnets(cluster)).await?;
    all.into_iter()
        .find(|subnet| subnet.value.id == reference || subnet.value.name == reference)
        .ok_or_else(|| {
            let reference: String = reference.chars().take(64).collect();
            ApiError::ResourceNotFound(format!("cluster {cluster} has no subnet {reference:?}"))
        })
}

/// None: somebody else changed it meanwhile.
async fn mark(api: &Api, mut subnet: Versioned<Subnet>) -> Result<Option<Versioned<Subnet>>, ApiError> {
    let unchanged = subnet.unchanged();
    subnet.value.deleting = true;
    let put = typed::put_json(subnet.key.as_str(), &subnet.value)?;
    if !records::commit(api, vec![unchanged], vec![put]).await? {
        return Ok(None);
    }
    records::get(api, &subnet.key).await
}

/// Tasks that hold an address of it.
async fn users(api: &Api, cluster: &str, subnet: &str) -> Result<Vec<String>, ApiError> {
    let mut tasks = Vec::new();
    for node in records::all::<Node>(api, &keys::nodes(cluster)).await? {
        let held = node.value.allocations.into_iter();
        tasks.extend(
            held.filter(|(_, held)| held.subnet.as_deref() == Some(subnet))
                .map(|(task, _)| task),
        );
    }
    Ok(tasks)
}

fn in_use(subnet: &Subnet, tasks: &[String]) -> ApiError {
    let named = tasks[..tasks.len().min(TASKS_NAMED_MAX)].join(", ");
    let more = tasks.len().saturating_sub(TASKS_NAMED_MAX);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    ApiError::Conflict {
        message: format!(
            "{} ({}) is used by {} tasks: {named}{more}. Stop them first",
            subnet.id,
            subnet.name,
            tasks.len()
        ),
        resource_ids: vec![subnet.id.clone()],
    }
}

fn respond(api: &Api, subnet: &Subnet) -> Value {
    let nodes: Vec<Value> = subnet
        .blocks
        .held()
        .map(|(node, block)| {
            json!({
                "containerInstanceArn": api.realm.container_instance(&subnet.cluster, node),
                "node": node,
                "cidrBlock": block.range,
                "nodeAddress": block.via,
                "ipv6CidrBlock": subnet.ipv6_prefix.map(|prefix| ipv6::below(prefix, block.range)),
                "nodeIpv6Address": block.via_ipv6,
                "problem": block.problem,
                "tasks": block.tasks(),
            })
        })
        .collect();
    let lan = subnet.lan();
    let mut answer = json!({
        "subnetId": subnet.id,
        "subnetArn": api.realm.subnet(&subnet.cluster, &subnet.id),
        "name": subnet.name,
        "cluster": subnet.cluster,
        "kind": subnet.kind.name(),
        "status": if subnet.deleting { "DELETING" } else { "ACTIVE" },
        "cidrBlock": lan.map_or(subnet.range, |lan| lan.network),
        "ipv6CidrBlock": subnet.ipv6_prefix,
        "nodePrefixLength": subnet.node_prefix_len,
        "freeNodeBlocks": subnet.blocks.free(subnet.shape()),
        "nodes": nodes,
        "tags": tags::respond(&subnet.tags),
        "createdAt": seconds(subnet.created_at),
    });
    if let Some(lan) = lan {
        answer["range"] = json!(subnet.range);
        answer["uplink"] = json!(lan.link.uplink());
        answer["vlanId"] = json!(lan.link.vlan_id());
        answer["gateway"] = json!(lan.gateway);
    }
    answer
}
