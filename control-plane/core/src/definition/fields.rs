//! Owns the list of fields a task definition has in ECS, and which of them Berth honours. This table is the
//! only place that says "not yet" or "never", and why: to honour a field, turn its `later` into `yes` here, check
//! its values in the module of its subject, and resolve it in `task`.
//!
//! Source: RegisterTaskDefinitionRequest of the ECS API model.

use super::schema::Shape::{Flag, Integer, Map, Text};
use super::schema::{Choice, Field, Shape, all, later_but, list, must, never, object, one_of, yes};

const TEXTS: Shape = list(&Text);

/// What a DescribeTaskDefinition answer has besides. Accepted and left out, so that a described definition can
/// be registered again: they state facts about another revision and ask for nothing.
pub(super) const RESPONSE_FIELDS: &[&str] = &[
    "taskDefinitionArn",
    "revision",
    "status",
    "requiresAttributes",
    "compatibilities",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
    "deleteRequestedAt",
];

/// RegisterTaskDefinitionRequest.
pub(super) const TASK_DEFINITION: &[Field] = &[
    must("family", Text),
    yes("taskRoleArn", Text),
    yes("executionRoleArn", Text),
    yes("networkMode", one_of(&NETWORK_MODE)),
    must("containerDefinitions", list(&object(CONTAINER))),
    yes("volumes", list(&object(VOLUME))),
    yes("placementConstraints", list(&object(PLACEMENT_CONSTRAINT))),
    yes("requiresCompatibilities", list(&one_of(&COMPATIBILITY))),
    yes("cpu", Text),
    yes("memory", Text),
    yes("tags", list(&object(TAG))),
    yes("pidMode", one_of(&PID_MODE)),
    yes("ipcMode", one_of(&IPC_MODE)),
    never(
        "proxyConfiguration",
        object(PROXY),
        "nodes set up no App Mesh proxy, and AWS has ended App Mesh; run the proxy as a container of the task \
         and let the application connect through it at 127.0.0.1",
    ),
    never(
        "inferenceAccelerators",
        list(&object(INFERENCE_ACCELERATOR)),
        "AWS has ended Elastic Inference, and no other host has its accelerators; leave it out",
    ),
    yes("ephemeralStorage", object(&[must("sizeInGiB", Integer)])),
    yes("runtimePlatform", object(RUNTIME_PLATFORM)),
    never(
        "enableFaultInjection",
        Flag,
        "nodes serve no endpoint that AWS Fault Injection Service could call; leave it out, and inject faults \
         from a container of the task",
    ),
    never(
        "trustedExecutionConfiguration",
        object(TRUSTED_EXECUTION),
        "nodes have no sandbox that can be attested; leave it out, and choose nodes that you trust in \
         placementConstraints",
    ),
];

const NETWORK_MODE: Choice = Choice {
    honoured: &["awsvpc", "bridge", "host", "none"],
    ..all(&[])
};

const PID_MODE: Choice = Choice {
    honoured: &["host", "task"],
    ..all(&[])
};

const IPC_MODE: Choice = Choice {
    honoured: &["host", "task", "none"],
    ..all(&[])
};

const COMPATIBILITY: Choice = Choice {
    honoured: &["EC2", "FARGATE", "EXTERNAL"],
    never: &["MANAGED_INSTANCES"],
    instead: "tasks run on the cluster's own nodes; use EC2, FARGATE or EXTERNAL",
    ..all(&[])
};

const PLACEMENT_CONSTRAINT: &[Field] = &[must("type", one_of(&all(&["memberOf"]))), yes("expression", Text)];

const TAG: &[Field] = &[must("key", Text), yes("value", Text)];

const RUNTIME_PLATFORM: &[Field] = &[
    yes("cpuArchitecture", one_of(&all(&["X86_64", "ARM64"]))),
    yes("operatingSystemFamily", one_of(&OPERATING_SYSTEM)),
];

const OPERATING_SYSTEM: Choice = Choice {
    honoured: &["LINUX"],
    never: &[
        "WINDOWS_SERVER_2019_FULL",
        "WINDOWS_SERVER_2019_CORE",
        "WINDOWS_SERVER_2016_FULL",
        "WINDOWS_SERVER_2004_CORE",
        "WINDOWS_SERVER_2022_CORE",
        "WINDOWS_SERVER_2022_FULL",
        "WINDOWS_SERVER_2025_CORE",
        "WINDOWS_SERVER_2025_FULL",
        "WINDOWS_SERVER_20H2_CORE",
    ],
    instead: "nodes run LINUX; build the image for it",
    ..all(&[])
};

const PROXY: &[Field] = &[
    yes("type", one_of(&all(&["APPMESH"]))),
    must("containerName", Text),
    yes("properties", list(&object(NAME_VALUE))),
];

const INFERENCE_ACCELERATOR: &[Field] = &[must("deviceName", Text), must("deviceType", Text)];

const TRUSTED_EXECUTION: &[Field] = &[
    must(
        "isolationMode",
        one_of(&all(&["SHARED", "ISOLATED_SANDBOX", "CONFIDENTIAL_SANDBOX"])),
    ),
    yes("attestationPolicy", Text),
];

const NAME_VALUE: &[Field] = &[yes("name", Text), yes("value", Text)];

const CONTAINER: &[Field] = &[
    must("name", Text),
    must("image", Text),
    later_but(
        "repositoryCredentials",
        object(&[must("credentialsParameter", Text)]),
        "leave it out: the node logs in to the registry with its own registries.credentials",
    ),
    yes("cpu", Integer),
    yes("memory", Integer),
    yes("memoryReservation", Integer),
    later_but(
        "links",
        TEXTS,
        "leave it out: let the containers reach one another at 127.0.0.1, in mode awsvpc, or by a port of the host",
    ),
    yes("portMappings", list(&object(PORT_MAPPING))),
    yes("essential", Flag),
    yes("restartPolicy", object(RESTART_POLICY)),
    yes("entryPoint", TEXTS),
    yes("command", TEXTS),
    yes("environment", list(&object(ENVIRONMENT))),
    yes("environmentFiles", list(&object(ENVIRONMENT_FILE))),
    yes("mountPoints", list(&object(MOUNT_POINT))),
    yes(
        "volumesFrom",
        list(&object(&[must("sourceContainer", Text), yes("readOnly", Flag)])),
    ),
    yes("linuxParameters", object(LINUX_PARAMETERS)),
    later_but(
        "secrets",
        list(&object(SECRET)),
        "there is no store of secrets; use environment, which whoever may describe the definition can read",
    ),
    yes("dependsOn", list(&object(DEPENDENCY))),
    yes("startTimeout", Integer),
    yes("stopTimeout", Integer),
    yes("versionConsistency", one_of(&all(&["enabled", "disabled"]))),
    yes("hostname", Text),
    yes("user", Text),
    yes("workingDirectory", Text),
    yes("disableNetworking", Flag),
    yes("privileged", Flag),
    yes("readonlyRootFilesystem", Flag),
    yes("dnsServers", TEXTS),
    yes("dnsSearchDomains", TEXTS),
    yes(
        "extraHosts",
        list(&object(&[must("hostname", Text), must("ipAddress", Text)])),
    ),
    yes("dockerSecurityOptions", TEXTS),
    yes("interactive", Flag),
    yes("pseudoTerminal", Flag),
    yes("dockerLabels", Map),
    yes("ulimits", list(&object(ULIMIT))),
    yes("logConfiguration", object(LOG_CONFIGURATION)),
    yes("healthCheck", object(HEALTH_CHECK)),
    yes(
        "systemControls",
        list(&object(&[yes("namespace", Text), yes("value", Text)])),
    ),
    yes("resourceRequirements", list(&object(RESOURCE_REQUIREMENT))),
    later_but(
        "firelensConfiguration",
        object(FIRELENS),
        "a log router that nobody configures may exit and take its task down; leave the router out and use json-file",
    ),
    never(
        "credentialSpecs",
        TEXTS,
        "they name accounts of an Active Directory domain, and nodes belong to none; put a keytab in the container",
    ),
];

const PORT_MAPPING: &[Field] = &[
    yes("containerPort", Integer),
    yes("hostPort", Integer),
    yes("protocol", one_of(&all(&["tcp", "udp"]))),
    yes("name", Text),
    yes("appProtocol", one_of(&all(&["http", "http2", "grpc"]))),
    yes("containerPortRange", Text),
];

const ENVIRONMENT: &[Field] = &[must("name", Text), yes("value", Text)];

const ENVIRONMENT_FILE: &[Field] = &[must("value", Text), must("type", one_of(&all(&["s3"])))];

const RESTART_POLICY: &[Field] = &[
    must("enabled", Flag),
    yes("ignoredExitCodes", list(&Integer)),
    yes("restartAttemptPeriod", Integer),
];

const MOUNT_POINT: &[Field] = &[
    must("sourceVolume", Text),
    must("containerPath", Text),
    yes("readOnly", Flag),
];

const SECRET: &[Field] = &[must("name", Text), must("valueFrom", Text)];

const DEPENDENCY: &[Field] = &[must("containerName", Text), must("condition", one_of(&CONDITION))];

const CONDITION: Choice = all(&["START", "COMPLETE", "SUCCESS", "HEALTHY"]);

const ULIMIT: &[Field] = &[
    must("name", one_of(&ULIMIT_NAME)),
    must("softLimit", Integer),
    must("hardLimit", Integer),
];

const ULIMIT_NAME: Choice = all(&[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
]);

const LOG_CONFIGURATION: &[Field] = &[
    must("logDriver", one_of(&LOG_DRIVER)),
    yes("options", Map),
    later_but(
        "secretOptions",
        list(&object(SECRET)),
        "no log driver sends output anywhere yet, so it needs no secret; leave it out",
    ),
];

const LOG_DRIVER: Choice = Choice {
    // But for the first two they do not exist yet: what becomes of their output is in `log`.
    honoured: &[
        "json-file",
        // Of ECS's agent, though not of its API model.
        "none",
        "syslog",
        "journald",
        "gelf",
        "fluentd",
        "awslogs",
        "splunk",
    ],
    later: &["awsfirelens"],
    instead: "a log router that nobody configures may exit and take its task down; use json-file",
    ..all(&[])
};

const HEALTH_CHECK: &[Field] = &[
    must("command", TEXTS),
    yes("interval", Integer),
    yes("timeout", Integer),
    yes("retries", Integer),
    yes("startPeriod", Integer),
];

const LINUX_PARAMETERS: &[Field] = &[
    yes("capabilities", object(&[yes("add", TEXTS), yes("drop", TEXTS)])),
    yes("devices", list(&object(DEVICE))),
    yes("initProcessEnabled", Flag),
    yes("sharedMemorySize", Integer),
    yes("tmpfs", list(&object(TMPFS))),
    yes("maxSwap", Integer),
    yes("swappiness", Integer),
];

const DEVICE: &[Field] = &[
    must("hostPath", Text),
    yes("containerPath", Text),
    yes("permissions", list(&one_of(&all(&["read", "write", "mknod"])))),
];

const TMPFS: &[Field] = &[
    must("containerPath", Text),
    must("size", Integer),
    yes("mountOptions", TEXTS),
];

const RESOURCE_REQUIREMENT: &[Field] = &[
    yes("value", Text),
    must("type", one_of(&RESOURCE_TYPE)),
    never(
        "sharingStrategy",
        object(&[yes("nvidiaMps", object(NVIDIA_MPS))]),
        "a container has its GPUs to itself; leave it out",
    ),
];

const RESOURCE_TYPE: Choice = Choice {
    honoured: &["GPU"],
    never: &["InferenceAccelerator", "NeuronDevice"],
    instead: "only AWS's own hosts have it; use GPU",
    ..all(&[])
};

const NVIDIA_MPS: &[Field] = &[must("memory", Integer), yes("maxComputePercent", Integer)];

const FIRELENS: &[Field] = &[
    must("type", one_of(&all(&["fluentd", "fluentbit"]))),
    yes("options", Map),
];

const VOLUME: &[Field] = &[
    must("name", Text),
    yes("host", object(&[yes("sourcePath", Text)])),
    yes("dockerVolumeConfiguration", object(DOCKER_VOLUME)),
    later_but(
        "efsVolumeConfiguration",
        object(EFS_VOLUME),
        "mount the file system on the nodes and use host.sourcePath",
    ),
    never(
        "s3filesVolumeConfiguration",
        object(S3FILES_VOLUME),
        "only AWS's own hosts can mount an S3 file system; use another volume",
    ),
    never(
        "fsxWindowsFileServerVolumeConfiguration",
        object(FSX_VOLUME),
        "its shares are for Windows containers, and nodes run LINUX; use another volume",
    ),
    later_but(
        "configuredAtLaunch",
        Flag,
        "RunTask takes no volumeConfigurations; use host or dockerVolumeConfiguration",
    ),
];

const DOCKER_VOLUME: &[Field] = &[
    yes("scope", one_of(&all(&["task", "shared"]))),
    yes("autoprovision", Flag),
    yes("driver", Text),
    yes("driverOpts", Map),
    yes("labels", Map),
];

const ENABLED: Choice = all(&["ENABLED", "DISABLED"]);

const EFS_VOLUME: &[Field] = &[
    must("fileSystemId", Text),
    yes("rootDirectory", Text),
    yes("transitEncryption", one_of(&ENABLED)),
    yes("transitEncryptionPort", Integer),
    yes(
        "authorizationConfig",
        object(&[yes("accessPointId", Text), yes("iam", one_of(&ENABLED))]),
    ),
];

const S3FILES_VOLUME: &[Field] = &[
    must("fileSystemArn", Text),
    yes("rootDirectory", Text),
    yes("transitEncryptionPort", Integer),
    yes("accessPointArn", Text),
];

const FSX_VOLUME: &[Field] = &[
    must("fileSystemId", Text),
    must("rootDirectory", Text),
    must(
        "authorizationConfig",
        object(&[must("credentialsParameter", Text), must("domain", Text)]),
    ),
];

/// TaskOverride. What is overridden becomes a part of the definition, and is refused there where it is not honoured.
pub(super) const OVERRIDES: &[Field] = &[
    yes("containerOverrides", list(&object(CONTAINER_OVERRIDE))),
    yes("cpu", Text),
    never(
        "inferenceAcceleratorOverrides",
        list(&object(&[yes("deviceName", Text), yes("deviceType", Text)])),
        "AWS has ended Elastic Inference, and no other host has its accelerators; leave it out",
    ),
    yes("executionRoleArn", Text),
    yes("memory", Text),
    yes("taskRoleArn", Text),
    yes("ephemeralStorage", object(&[must("sizeInGiB", Integer)])),
];

const CONTAINER_OVERRIDE: &[Field] = &[
    must("name", Text),
    yes("command", TEXTS),
    yes("environment", list(&object(ENVIRONMENT))),
    yes("environmentFiles", list(&object(ENVIRONMENT_FILE))),
    yes("cpu", Integer),
    yes("memory", Integer),
    yes("memoryReservation", Integer),
    yes("resourceRequirements", list(&object(RESOURCE_REQUIREMENT))),
];
