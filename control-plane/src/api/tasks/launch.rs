//! Owns bringing tasks into the world: choosing nodes on a view, and writing all of it in one transaction that
//! only holds if the view still does. Never waits for a node.

use std::collections::BTreeMap;

use berth_control_plane_core::{
    placement::{self, Allocation, Constraint, NodeView, PlacementRequest, Strategy},
    subnets::Lan,
    task::{self, ContainerDefinition, Definition, Requirements, ResolvedTask, Run, StoredFiles},
};
use prost::Message;
use serde_json::{Value, json};

use super::{rules, shape, spec};
use crate::{
    api::{
        container_instances,
        context::{Api, new_id, now_ms},
        error::ApiError,
        idempotency::ClientToken,
        node_view,
        records::{self, Attempts},
    },
    model::{ContainerHealth, Node, Subnet, Tags, Task, TaskContainer, TaskDefinition, keys},
    store::{
        Operation, StoreError,
        typed::{self, Versioned},
    },
    subnets::of_cluster,
};

/// All that tasks of one call have in common.
#[derive(Debug)]
pub(super) struct Launch {
    pub cluster: String,
    pub definition: TaskDefinition,
    /// With the overrides.
    pub parsed: Definition,
    /// As ECS echoes them.
    pub overrides: Value,
    /// What earlier tasks of the revision resolved images to, by container name.
    pub image_digests: BTreeMap<String, String>,
    /// What of the store their environment files are.
    pub environment_files: StoredFiles,
    pub requirements: Requirements,
    pub group: String,
    pub started_by: Option<String>,
    pub launch_type: String,
    pub subnets: Vec<String>,
    pub security_groups: Vec<String>,
    pub tags: Tags,
    /// Start again after a restart of the host.
    pub restart_after_reboot: bool,
    /// Their ports are their nodes' too.
    pub publish_ports: bool,
    /// The runtime their tag names.
    pub runtime: Option<String>,
}

/// Where the tasks are to go.
#[derive(Debug)]
pub(super) enum Want<'a> {
    /// Wherever they fit best.
    Place {
        count: usize,
        constraints: &'a [Constraint],
        strategy: &'a [Strategy],
    },
    /// One on each of these nodes.
    On(&'a [String]),
}

/// Nodes by index with what is held there, one entry per task; and what could not be placed.
#[derive(Debug, Default)]
struct Plan {
    chosen: Vec<(usize, Allocation)>,
    failures: Vec<Value>,
}

impl Launch {
    /// Places and writes, again on a fresh view whenever somebody else changed a chosen node. What fits nowhere is
    /// in the answer's `failures`; the rest runs all the same.
    pub async fn commit(
        &self,
        api: &Api,
        want: &Want<'_>,
        token: Option<&ClientToken>,
    ) -> Result<Value, ApiError> {
        let _turn = api.placing.lock().await;
        let mut attempts = Attempts::default();
        loop {
            // Also after a conflict: the other one may have been this same request, sent twice.
            if let Some(token) = token
                && let Some(earlier) = token.earlier(api, &self.cluster).await?
            {
                return Ok(earlier);
            }
            let mut nodes = records::all::<Node>(api, &keys::nodes(&self.cluster)).await?;
            let subnets = self.read_subnets(api).await?;
            let plan = self.plan(api, want, &nodes, &subnets)?;
            if plan.chosen.is_empty() {
                return Ok(json!({"tasks": [], "failures": plan.failures}));
            }
            if let Some(answer) = self.write(api, plan, &mut nodes, &subnets, token).await? {
                return Ok(answer);
            }
            attempts.again().await?;
        }
    }

    /// Those of the cluster, if the tasks are to have addresses of some.
    async fn read_subnets(&self, api: &Api) -> Result<Vec<Versioned<Subnet>>, ApiError> {
        if self.requirements.subnets.is_empty() {
            return Ok(Vec::new());
        }
        Ok(of_cluster(api.store.as_ref(), &self.cluster).await?)
    }

    fn plan(
        &self,
        api: &Api,
        want: &Want<'_>,
        nodes: &[Versioned<Node>],
        subnets: &[Versioned<Subnet>],
    ) -> Result<Plan, ApiError> {
        let view = |node: &Versioned<Node>| {
            let open = subnets.iter().map(|subnet| &subnet.value).filter(|s| !s.deleting);
            let pools = node_view::pools(&node.value, open);
            node_view::view(&node.value).map(|view| NodeView { pools, ..view })
        };
        let mut views = nodes.iter().map(view).collect::<Result<Vec<_>, _>>()?;
        match want {
            Want::Place {
                count,
                constraints,
                strategy,
            } => Ok(self.plan_anywhere(api, *count, constraints, strategy, &mut views)),
            Want::On(wanted) => Ok(self.plan_on(api, wanted, &views)),
        }
    }

    fn plan_anywhere(
        &self,
        api: &Api,
        count: usize,
        constraints: &[Constraint],
        strategy: &[Strategy],
        views: &mut [NodeView],
    ) -> Plan {
        let mut plan = Plan::default();
        for _ in 0..count {
            let placed = placement::place(views, &self.request(constraints, strategy));
            let chosen = placed
                .chosen
                .as_ref()
                .and_then(|id| views.iter().position(|view| view.id == *id));
            match chosen {
                Some(index) => {
                    // The next one sees this one.
                    let held = views[index].allocate(&self.requirements, &self.group);
                    views[index].allocations.push(held.clone());
                    plan.chosen.push((index, held));
                }
                None => {
                    let overall = placed.overall();
                    plan.failures.push(json!({
                        "arn": api.realm.cluster(&self.cluster),
                        "reason": overall.reason,
                        "detail": overall.detail,
                    }));
                }
            }
        }
        plan
    }

    fn plan_on(&self, api: &Api, wanted: &[String], views: &[NodeView]) -> Plan {
        let mut plan = Plan::default();
        for id in wanted {
            let Some(index) = views.iter().position(|view| view.id == *id) else {
                plan.failures
                    .push(container_instances::missing(api, &self.cluster, id));
                continue;
            };
            let reasons = placement::check(&views[index], &self.request(&[], &[]));
            match reasons.first() {
                None => {
                    let held = views[index].allocate(&self.requirements, &self.group);
                    plan.chosen.push((index, held));
                }
                Some(first) => {
                    let detail: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                    plan.failures.push(json!({
                        "arn": api.realm.container_instance(&self.cluster, id),
                        "reason": first.ecs(),
                        "detail": detail.join("; "),
                    }));
                }
            }
        }
        plan
    }

    fn request<'a>(
        &'a self,
        constraints: &'a [Constraint],
        strategy: &'a [Strategy],
    ) -> PlacementRequest<'a> {
        PlacementRequest {
            requirements: &self.requirements,
            constraints,
            strategy,
            group: &self.group,
            seed: rand::random(),
        }
    }

    /// One transaction: every chosen node by compare, every task, every desired spec, and the client token.
    /// `None`: a compare did not hold.
    async fn write(
        &self,
        api: &Api,
        plan: Plan,
        nodes: &mut [Versioned<Node>],
        subnets: &[Versioned<Subnet>],
        token: Option<&ClientToken>,
    ) -> Result<Option<Value>, ApiError> {
        let (mut operations, mut tasks) = (Vec::new(), Vec::new());
        for (index, held) in &plan.chosen {
            let node = &mut nodes[*index].value;
            let mut task = self.task(&node.id);
            if let Some(subnet) = &held.subnet {
                task.subnets = vec![subnet.clone()];
            }
            let lan = subnets
                .iter()
                .find(|subnet| Some(&subnet.value.id) == held.subnet.as_ref())
                .and_then(|subnet| subnet.value.lan());
            let resolved = self.resolve(api, &task, held, lan)?;
            for (container, resolved) in task.containers.iter_mut().zip(&resolved.containers) {
                container.gpus.clone_from(&resolved.gpus);
            }
            node.allocations
                .insert(task.id.clone(), node_view::stored(held.clone()));
            operations.push(Operation::Put {
                key: keys::desired(&task.node, &task.id),
                value: spec::message(resolved).encode_to_vec().into(),
                lease: None,
            });
            operations.push(typed::put_json(keys::task(&self.cluster, &task.id), &task)?);
            tasks.push(shape::task(api, &task, Some(node), true));
        }
        let answer = json!({"tasks": tasks, "failures": plan.failures});
        // A part that was taken back meanwhile may be another node's.
        let used = |subnet: &&Versioned<Subnet>| {
            let id = Some(&subnet.value.id);
            plan.chosen.iter().any(|(_, held)| held.subnet.as_ref() == id)
        };
        let mut compare: Vec<_> = subnets.iter().filter(used).map(Versioned::unchanged).collect();
        let touched: BTreeMap<usize, ()> = plan.chosen.iter().map(|(index, _)| (*index, ())).collect();
        for index in touched.into_keys() {
            compare.push(nodes[index].unchanged());
            operations.push(typed::put_json(nodes[index].key.as_str(), &nodes[index].value)?);
        }
        if let Some(token) = token {
            let (missing, put) = token.record(api, &self.cluster, &answer).await?;
            compare.push(missing);
            operations.push(put);
        }
        match records::commit(api, compare, operations).await {
            Ok(done) => Ok(done.then_some(answer)),
            Err(ApiError::Store(StoreError::NoLease(_))) => {
                api.token_lease.forget().await;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn task(&self, node: &str) -> Task {
        let mode = rules::network_mode(&self.parsed);
        let containers = &self.parsed.containers;
        let id = new_id();
        Task {
            warnings: self.parsed.warnings(&id),
            node_warnings: vec![],
            id,
            cluster: self.cluster.clone(),
            node: node.to_owned(),
            family: self.definition.family.clone(),
            revision: self.definition.revision,
            group: self.group.clone(),
            started_by: self.started_by.clone(),
            launch_type: self.launch_type.clone(),
            desired_status: "RUNNING".to_owned(),
            last_status: "PROVISIONING".to_owned(),
            cpu: self.parsed.cpu_units.map(|units| units.to_string()),
            memory: self.parsed.memory_mib.map(|mib| mib.to_string()),
            ephemeral_storage_gib: self.parsed.ephemeral_storage_gib,
            overrides: self.overrides.clone(),
            attachment_id: (mode == "awsvpc").then(|| uuid::Uuid::new_v4().to_string()),
            network_mode: mode.to_owned(),
            subnets: self.subnets.clone(),
            security_groups: self.security_groups.clone(),
            containers: containers.iter().map(|one| self.container(one)).collect(),
            tags: self.tags.clone(),
            version: 1,
            ipv4_address: None,
            ipv6_address: None,
            mac_address: None,
            stop_code: None,
            stopped_reason: None,
            waiting_reason: None,
            created_at: now_ms(),
            pull_started_at: None,
            pull_stopped_at: None,
            started_at: None,
            stopping_at: None,
            execution_stopped_at: None,
            stopped_at: None,
        }
    }

    fn resolve(
        &self,
        api: &Api,
        task: &Task,
        held: &Allocation,
        lan: Option<&Lan>,
    ) -> Result<ResolvedTask, ApiError> {
        let container_ids: Vec<String> = task
            .containers
            .iter()
            .map(|container| container.id.clone())
            .collect();
        let run = Run {
            task_id: &task.id,
            task_arn: &api.realm.task(&self.cluster, &task.id),
            cluster: &self.cluster,
            revision: self.definition.revision,
            container_ids: &container_ids,
            image_digests: &self.image_digests,
            environment_files: &self.environment_files,
            gpus: &held.gpus,
            subnet: held.subnet.as_deref(),
            lan,
            restart_after_reboot: self.restart_after_reboot,
            publish_ports: self.publish_ports,
            launch_type: &task.launch_type,
            group: &task.group,
            tags: &task.tags,
            runtime: self.runtime.as_deref(),
            created_at_ms: task.created_at,
        };
        task::resolve(&self.parsed, &run)
            .map_err(|error| ApiError::Server(format!("task definition cannot be resolved: {error}")))
    }

    fn container(&self, definition: &ContainerDefinition) -> TaskContainer {
        TaskContainer {
            pins: definition.is_pinned() && !self.image_digests.contains_key(&definition.name),
            ..container(definition)
        }
    }
}

fn container(definition: &ContainerDefinition) -> TaskContainer {
    let ports = definition.ports.iter();
    TaskContainer {
        id: new_id(),
        name: definition.name.clone(),
        image: definition.image.clone(),
        pins: false,
        resolved_digest: None,
        last_status: "PENDING".to_owned(),
        exit_code: None,
        reason: None,
        runtime_id: None,
        image_digest: None,
        restart_count: 0,
        cpu: definition.cpu_units.to_string(),
        memory: definition.memory_mib.map(|mib| mib.to_string()),
        memory_reservation: definition.memory_reservation_mib.map(|mib| mib.to_string()),
        ports: ports
            .map(|port| {
                (
                    port.container_port,
                    port.host_port,
                    port.protocol.as_str().to_owned(),
                )
            })
            .collect(),
        bindings: vec![],
        gpus: vec![],
        essential: definition.essential,
        discards_output: definition.log.is_discarded(),
        health: definition
            .health_check
            .as_ref()
            .map(|_| ContainerHealth::unknown()),
    }
}
