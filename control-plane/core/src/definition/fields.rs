//! Owns the list of fields a task definition has in ECS, and which of them Berth honours. This table is the
//! only place that says "not yet": to honour a field, turn its `later` into `yes` here, check its values in
//! the module of its subject, and resolve it in `task`.
//!
//! Source: RegisterTaskDefinitionRequest of the ECS API model.

/// The type of a value.
#[derive(Debug)]
pub(super) enum Shape {
    Text,
    /// A 32-bit signed integer: ECS's `Integer` and `BoxedInteger`.
    Integer,
    Flag,
    Choice(&'static Choice),
    List(&'static Shape),
    /// Text by text.
    Map,
    Object(&'static [Field]),
}

/// An enumeration: what is honoured, what ECS knows besides, and what to do about the latter.
#[derive(Debug)]
pub(super) struct Choice {
    pub honoured: &'static [&'static str],
    pub later: &'static [&'static str],
    /// Completes "not supported yet"; may be empty.
    pub instead: &'static str,
}

/// One field of an object.
#[derive(Debug)]
pub(super) struct Field {
    pub name: &'static str,
    pub shape: Shape,
    pub required: bool,
    pub honoured: bool,
}

const fn yes(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
        honoured: true,
    }
}

const fn must(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: true,
        honoured: true,
    }
}

const fn later(name: &'static str, shape: Shape) -> Field {
    Field {
        name,
        shape,
        required: false,
        honoured: false,
    }
}

const fn all(honoured: &'static [&'static str]) -> Choice {
    Choice {
        honoured,
        later: &[],
        instead: "",
    }
}

use Shape::{Flag, Integer, Map, Text};

const fn list(shape: &'static Shape) -> Shape {
    Shape::List(shape)
}

const fn object(fields: &'static [Field]) -> Shape {
    Shape::Object(fields)
}

const fn one_of(choice: &'static Choice) -> Shape {
    Shape::Choice(choice)
}

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
    later("taskRoleArn", Text),
    later("executionRoleArn", Text),
    yes("networkMode", one_of(&NETWORK_MODE)),
    must("containerDefinitions", list(&object(CONTAINER))),
    later("volumes", list(&object(VOLUME))),
    yes("placementConstraints", list(&object(PLACEMENT_CONSTRAINT))),
    yes("requiresCompatibilities", list(&one_of(&COMPATIBILITY))),
    yes("cpu", Text),
    yes("memory", Text),
    yes("tags", list(&object(TAG))),
    later("pidMode", one_of(&all(&["host", "task"]))),
    later("ipcMode", one_of(&all(&["host", "task", "none"]))),
    later("proxyConfiguration", object(PROXY)),
    later("inferenceAccelerators", list(&object(INFERENCE_ACCELERATOR))),
    later("ephemeralStorage", object(&[must("sizeInGiB", Integer)])),
    yes("runtimePlatform", object(RUNTIME_PLATFORM)),
    later("enableFaultInjection", Flag),
    later("trustedExecutionConfiguration", object(TRUSTED_EXECUTION)),
];

const NETWORK_MODE: Choice = Choice {
    honoured: &["awsvpc", "host", "none"],
    later: &["bridge"],
    instead: "use awsvpc or host",
};

const COMPATIBILITY: Choice = Choice {
    honoured: &["EC2", "FARGATE", "EXTERNAL"],
    later: &["MANAGED_INSTANCES"],
    instead: "use EC2, FARGATE or EXTERNAL",
};

const PLACEMENT_CONSTRAINT: &[Field] = &[must("type", one_of(&all(&["memberOf"]))), yes("expression", Text)];

const TAG: &[Field] = &[must("key", Text), yes("value", Text)];

const RUNTIME_PLATFORM: &[Field] = &[
    yes("cpuArchitecture", one_of(&all(&["X86_64", "ARM64"]))),
    yes("operatingSystemFamily", one_of(&OPERATING_SYSTEM)),
];

const OPERATING_SYSTEM: Choice = Choice {
    honoured: &["LINUX"],
    later: &[
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
    instead: "nodes run LINUX",
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
    later(
        "repositoryCredentials",
        object(&[must("credentialsParameter", Text)]),
    ),
    yes("cpu", Integer),
    yes("memory", Integer),
    yes("memoryReservation", Integer),
    later("links", TEXTS),
    yes("portMappings", list(&object(PORT_MAPPING))),
    yes("essential", Flag),
    later("restartPolicy", object(RESTART_POLICY)),
    yes("entryPoint", TEXTS),
    yes("command", TEXTS),
    yes("environment", list(&object(ENVIRONMENT))),
    later(
        "environmentFiles",
        list(&object(&[
            must("value", Text),
            must("type", one_of(&all(&["s3"]))),
        ])),
    ),
    later("mountPoints", list(&object(MOUNT_POINT))),
    later(
        "volumesFrom",
        list(&object(&[yes("sourceContainer", Text), yes("readOnly", Flag)])),
    ),
    yes("linuxParameters", object(LINUX_PARAMETERS)),
    later("secrets", list(&object(SECRET))),
    yes("dependsOn", list(&object(DEPENDENCY))),
    yes("startTimeout", Integer),
    yes("stopTimeout", Integer),
    later("versionConsistency", one_of(&all(&["enabled", "disabled"]))),
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
    later("interactive", Flag),
    yes("pseudoTerminal", Flag),
    yes("dockerLabels", Map),
    yes("ulimits", list(&object(ULIMIT))),
    yes("logConfiguration", object(LOG_CONFIGURATION)),
    later("healthCheck", object(HEALTH_CHECK)),
    yes(
        "systemControls",
        list(&object(&[yes("namespace", Text), yes("value", Text)])),
    ),
    later("resourceRequirements", list(&object(RESOURCE_REQUIREMENT))),
    later("firelensConfiguration", object(FIRELENS)),
    later("credentialSpecs", TEXTS),
];

const PORT_MAPPING: &[Field] = &[
    yes("containerPort", Integer),
    yes("hostPort", Integer),
    yes("protocol", one_of(&all(&["tcp", "udp"]))),
    yes("name", Text),
    yes("appProtocol", one_of(&all(&["http", "http2", "grpc"]))),
    later("containerPortRange", Text),
];

const ENVIRONMENT: &[Field] = &[must("name", Text), yes("value", Text)];

const RESTART_POLICY: &[Field] = &[
    must("enabled", Flag),
    yes("ignoredExitCodes", list(&Integer)),
    yes("restartAttemptPeriod", Integer),
];

const MOUNT_POINT: &[Field] = &[
    yes("sourceVolume", Text),
    yes("containerPath", Text),
    yes("readOnly", Flag),
];

const SECRET: &[Field] = &[must("name", Text), must("valueFrom", Text)];

const DEPENDENCY: &[Field] = &[must("containerName", Text), must("condition", one_of(&CONDITION))];

const CONDITION: Choice = Choice {
    honoured: &["START", "COMPLETE", "SUCCESS"],
    later: &["HEALTHY"],
    instead: "use START, COMPLETE or SUCCESS",
};

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
    later("secretOptions", list(&object(SECRET))),
];

const LOG_DRIVER: Choice = Choice {
    honoured: &["json-file"],
    later: &[
        "syslog",
        "journald",
        "gelf",
        "fluentd",
        "awslogs",
        "splunk",
        "awsfirelens",
    ],
    instead: "use json-file",
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
    later("devices", list(&object(DEVICE))),
    later("initProcessEnabled", Flag),
    yes("sharedMemorySize", Integer),
    yes("tmpfs", list(&object(TMPFS))),
    later("maxSwap", Integer),
    later("swappiness", Integer),
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
    must(
        "type",
        one_of(&all(&["GPU", "InferenceAccelerator", "NeuronDevice"])),
    ),
    yes("sharingStrategy", object(&[yes("nvidiaMps", object(NVIDIA_MPS))])),
];

const NVIDIA_MPS: &[Field] = &[must("memory", Integer), yes("maxComputePercent", Integer)];

const FIRELENS: &[Field] = &[
    must("type", one_of(&all(&["fluentd", "fluentbit"]))),
    yes("options", Map),
];

const VOLUME: &[Field] = &[
    yes("name", Text),
    yes("host", object(&[yes("sourcePath", Text)])),
    yes("dockerVolumeConfiguration", object(DOCKER_VOLUME)),
    yes("efsVolumeConfiguration", object(EFS_VOLUME)),
    yes("s3filesVolumeConfiguration", object(S3FILES_VOLUME)),
    yes("fsxWindowsFileServerVolumeConfiguration", object(FSX_VOLUME)),
    yes("configuredAtLaunch", Flag),
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
