//! Owns the decisions of the control plane: which definitions are accepted, what a task is made of, where it
//! runs. PURE: no tokio, files, clock or randomness; the same inputs give the same outputs.
//!
//! The public face, in one place:
//!
//! ```text
//! arn::Realm { region, account }                      // configured, one per control plane
//!   .cluster(name) .task(cluster, id) .container_instance(cluster, id) .task_definition(family, revision)
//!   .container(cluster, task, id) -> String            // formatted ARNs
//!   .cluster_name(Option<&str>) -> Result<String, RefError>               // None: "default"
//!   .task_id(cluster, &str) / .container_instance_id(cluster, &str) -> Result<String, RefError>
//!   .task_definition_ref(&str) -> Result<TaskDefinitionRef, RefError>
//!   .own(&str) -> Result<Resource, RefError>           // for TagResource and friends: full ARNs only
//! arn::TaskDefinitionRef { Family(String), Revision(String, u32) }
//! arn::Resource { Cluster{name}, Task{cluster: Option, id}, ContainerInstance{cluster: Option, id},
//!                 TaskDefinition{family, revision}, Container{cluster, task, id} }
//! arn::is_name(&str) -> bool                           // 1–255 of [A-Za-z0-9_-]
//!
//! definition::register(&serde_json::Value) -> Result<Registered, Problems>
//! definition::Registered { family: String, definition: Value, tags: BTreeMap<String, String> }
//! definition::Problems: Display (all, joined by "; "), .iter() -> &Problem { path: String, message: String }
//!
//! task::Definition::from_echo(&Value) -> Result<Definition, EchoError>
//! task::Run<'a> { task_id: &str, task_arn: &str, cluster: &str, revision: u32, container_ids: &[String],
//!                 restart_after_reboot: bool, created_at_ms: i64 }
//! task::resolve(&Definition, &Run) -> Result<ResolvedTask, ResolveError>   // the fields of TaskSpec
//! Definition::requirements() -> Requirements
//! task::Requirements { cpu_units: u32, memory_bytes: u64, tcp_ports: Vec<u16>, udp_ports: Vec<u16>, address: bool,
//!                      architecture: Option<Architecture>, constraints: Vec<Expression>,
//!                      features: Vec<&'static str> }
//! task::FEATURES: &[&str]
//!
//! expression::Expression::parse(&str) -> Result<Expression, ExpressionError { column, message }>
//! expression.matches(&Subject<'_>) -> bool
//! expression::Subject<'a> { node_id, attributes, groups, running_tasks, connected, registered_at_ms, agent_version }
//!
//! placement::NodeView { id, status: NodeStatus, connected: bool, architecture: String ("amd64"),
//!     agent_version: String, registered_at_ms: i64, cpu_units: u32, memory_bytes: u64, task_addresses: u32,
//!     reserved_tcp_ports: Vec<u16>, reserved_udp_ports: Vec<u16>, allocations: Vec<Allocation>,
//!     attributes: BTreeMap<String, Option<String>>, features: Vec<String> }
//! placement::Allocation { cpu_units, memory_bytes, tcp_ports, udp_ports, address, stopping, group: String }
//! placement::NodeStatus { Active, Draining, Inactive }            // FromStr "ACTIVE" …
//! placement::Constraint { MemberOf(Expression), DistinctInstance } // ::parse(kind, Option<expression>)
//! placement::Strategy { Random, Spread(SpreadBy), Binpack(Resource) } // ::parse(kind, Option<field>)
//! placement::PlacementRequest<'a> { requirements: &Requirements, constraints: &[Constraint],
//!                                   strategy: &[Strategy], group: &str, seed: u64 }
//! placement::place(&[NodeView], &PlacementRequest) -> Placement { chosen: Option<String>, rejections: Vec<Rejection> }
//! placement::check(&NodeView, &PlacementRequest) -> Vec<Reason>   // empty: it fits (StartTask)
//! placement::Rejection { node: String, reasons: Vec<Reason> }      // .ecs() -> "RESOURCE:CPU", Display: in words
//! placement::Placement::overall() -> Overall { reason: String, detail: String }  // for RunTask `failures`
//! Requirements::allocation(group) -> placement::Allocation
//! ```

pub mod arn;
pub mod expression;
