//! Owns what `berth run` registers: a task definition made of flags, or read from a file. What a definition may
//! say is decided by the control plane, which names the field it refuses; here only flags are checked.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::arguments::{Network, RunArgs};

/// ECS allows 255 characters of `[A-Za-z0-9_-]` in a name.
const NAME_LENGTH_MAX: usize = 255;
/// In files made by `aws ecs describe-task-definition`, and not accepted by RegisterTaskDefinition.
const ANSWER_FIELDS: [&str; 9] = [
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

#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("--{flag} {given:?}: {expected}")]
    Flag {
        flag: &'static str,
        given: String,
        expected: &'static str,
    },
    #[error("{path} is not JSON")]
    NotJson {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{path} is not a task definition: it is no JSON object with \"family\" and \"containerDefinitions\""
    )]
    NotADefinition { path: PathBuf },
}

/// The definition that the flags of `berth run IMAGE` describe. `variable` reads the environment.
pub fn from_flags(
    image: &str,
    args: &RunArgs,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, DefinitionError> {
    let name = match &args.name {
        Some(name) => checked_name(name)?,
        None => name_of(image),
    };
    let mut container = Map::new();
    container.insert("name".into(), json!(name));
    container.insert("image".into(), json!(image));
    container.insert("essential".into(), json!(true));
    let lists = [
        (
            "command",
            args.command.iter().map(|word| json!(word)).collect::<Vec<_>>(),
        ),
        (
            "entryPoint",
            args.entrypoint.iter().map(|word| json!(word)).collect(),
        ),
        (
            "environment",
            args.env
                .iter()
                .map(|text| environment(text, variable))
                .collect::<Result<_, _>>()?,
        ),
        (
            "portMappings",
            args.port
                .iter()
                .map(|text| port(text))
                .collect::<Result<_, _>>()?,
        ),
    ];
    for (field, values) in lists.into_iter().filter(|(_, values)| !values.is_empty()) {
        container.insert(field.into(), values.into());
    }
    if let Some(user) = &args.user {
        container.insert("user".into(), json!(user));
    }
    if let Some(directory) = &args.workdir {
        container.insert("workingDirectory".into(), json!(directory));
    }
    if args.read_only {
        container.insert("readonlyRootFilesystem".into(), json!(true));
    }
    if let Some(seconds) = args.stop_timeout {
        container.insert("stopTimeout".into(), json!(seconds));
    }
    Ok(json!({
        "family": name,
        "networkMode": match args.network { Network::Awsvpc => "awsvpc", Network::Host => "host" },
        "cpu": args.cpu,
        "memory": args.memory,
        "containerDefinitions": [container],
    }))
}

/// The definition in a file, without what only answers of ECS have.
pub fn from_file(path: PathBuf, text: &str) -> Result<Value, DefinitionError> {
    let mut definition: Value = match serde_json::from_str(text) {
        Ok(definition) => definition,
        Err(source) => return Err(DefinitionError::NotJson { path, source }),
    };
    if let Some(inner) = definition.get_mut("taskDefinition") {
        definition = inner.take();
    }
    let Some(fields) = definition.as_object_mut() else {
        return Err(DefinitionError::NotADefinition { path });
    };
    if !fields.contains_key("family") || !fields.contains_key("containerDefinitions") {
        return Err(DefinitionError::NotADefinition { path });
    }
    for field in ANSWER_FIELDS {
        fields.remove(field);
    }
    Ok(definition)
}

/// The request that runs a registered definition once: in one of these subnets, if it is to have an address of its own.
pub fn run_request(cluster: &str, definition_arn: &str, subnets: &[String], token: &str) -> Value {
    let mut request = json!({
        "cluster": cluster, "taskDefinition": definition_arn, "count": 1, "startedBy": "berth-run",
        "clientToken": token,
    });
    if !subnets.is_empty() {
        request["networkConfiguration"] =
            json!({"awsvpcConfiguration": {"subnets": subnets, "securityGroups": ["sg-default"]}});
    }
    request
}

fn checked_name(name: &str) -> Result<String, DefinitionError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.chars().all(allowed) {
        let expected = "names have 1 to 255 letters, digits, hyphens and underscores";
        return Err(DefinitionError::Flag {
            flag: "name",
            given: name.into(),
            expected,
        });
    }
    Ok(name.into())
}

/// `registry:5000/team/nginx:1.22` → `nginx`.
fn name_of(image: &str) -> String {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    let bare = last.split(':').next().unwrap_or(last);
    let name: String = bare
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .take(NAME_LENGTH_MAX)
        .collect();
    if name.is_empty() { "task".into() } else { name }
}

fn environment(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Value, DefinitionError> {
    let refused = |expected| DefinitionError::Flag {
        flag: "env",
        given: text.into(),
        expected,
    };
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (
            text,
            variable(text).ok_or_else(|| refused("not set here: write NAME=VALUE"))?,
        ),
    };
    if name.is_empty() {
        return Err(refused("write NAME=VALUE, or NAME to take the value it has here"));
    }
    Ok(json!({"name": name, "value": value}))
}

fn port(text: &str) -> Result<Value, DefinitionError> {
    let expected =
        "write a port from 1 to 65535, or PORT/udp (a task has its own address: ports are not mapped)";
    let refused = || DefinitionError::Flag {
        flag: "port",
        given: text.into(),
        expected,
    };
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = number.parse().map_err(|_| refused())?;
    if number == 0 || !["tcp", "udp"].contains(&protocol) {
        return Err(refused());
    }
    Ok(json!({"containerPort": number, "protocol": protocol}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Cli, Command};
    use clap::Parser;

    fn run_args(words: &[&str]) -> Box<RunArgs> {
        let cli = Cli::try_parse_from(["berth", "run"].iter().chain(words)).unwrap();
        let Command::Run(args) = cli.command else {
            panic!("not run")
        };
        args
    }

    fn defined(words: &[&str]) -> Result<Value, DefinitionError> {
        let args = run_args(words);
        from_flags(args.image.as_deref().unwrap(), &args, &|name| {
            (name == "HERE").then(|| "value".into())
        })
    }

    #[test]
    fn an_image_alone_is_enough() {
        assert_eq!(
            defined(&["127.0.0.1:5000/team/nginx:1.22"]).unwrap(),
            json!({
                "family": "nginx", "networkMode": "awsvpc", "cpu": "256", "memory": "512",
                "containerDefinitions": [
                    {"name": "nginx", "image": "127.0.0.1:5000/team/nginx:1.22", "essential": true},
                ],
            })
        );
    }

    #[test]
    fn flags_become_fields() {
        let flags = [
            "busybox",
            "--name",
            "job",
            "--cpu",
            "1 vCPU",
            "--memory",
            "64",
            "--env",
            "A=b=c",
            "--env",
            "HERE",
            "-p",
            "80",
            "-p",
            "53/udp",
            "--network",
            "host",
            "--user",
            "1:1",
            "--workdir",
            "/w",
            "--read-only",
            "--stop-timeout",
            "5",
            "--entrypoint",
            "sh",
            "--",
            "-c",
            "exit 3",
        ];
        assert_eq!(
            defined(&flags).unwrap(),
            json!({
                "family": "job", "networkMode": "host", "cpu": "1 vCPU", "memory": "64",
                "containerDefinitions": [{
                    "name": "job", "image": "busybox", "essential": true, "command": ["-c", "exit 3"],
                    "entryPoint": ["sh"],
                    "environment": [{"name": "A", "value": "b=c"}, {"name": "HERE", "value": "value"}],
                    "portMappings": [
                        {"containerPort": 80, "protocol": "tcp"}, {"containerPort": 53, "protocol": "udp"},
                    ],
                    "user": "1:1", "workingDirectory": "/w", "readonlyRootFilesystem": true, "stopTimeout": 5,
                }],
            })
        );
    }

    #[test]
    fn bad_flags_are_named() {
        for (words, flag) in [
            (["--env", "NOT_SET"], "env"),
            (["--env", "=x"], "env"),
            (["--port", "0"], "port"),
            (["--port", "80:80"], "port"),
            (["--port", "80/icmp"], "port"),
            (["--name", "a b"], "name"),
        ] {
            let error = defined(&["busybox", words[0], words[1]]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--{flag} ")), "{error}");
        }
    }

    #[test]
    fn images_have_names() {
        for (image, name) in [
            ("nginx", "nginx"),
            ("r:5000/a/b.c:tag", "b-c"),
            ("r/web@sha256:0123", "web"),
            ("r/", "task"),
        ] {
            assert_eq!(name_of(image), name, "{image}");
        }
    }

    #[test]
    fn a_described_definition_runs_as_it_is() {
        let text = r#"{"taskDefinition": {"family": "f", "containerDefinitions": [], "revision": 3, "status": "ACTIVE"}}"#;
        assert_eq!(
            from_file("f.json".into(), text).unwrap(),
            json!({"family": "f", "containerDefinitions": []})
        );
        for bad in ["[]", "{}", "{"] {
            assert!(
                from_file("f.json".into(), bad)
                    .unwrap_err()
                    .to_string()
                    .contains("f.json"),
                "{bad}"
            );
        }
    }

    #[test]
    fn only_a_task_in_a_subnet_has_a_network() {
        let network = |subnets: &[String]| run_request("c", "d", subnets, "t")["networkConfiguration"].take();
        let both = ["subnet-a".to_owned(), "subnet-b".to_owned()];
        assert_eq!(network(&both)["awsvpcConfiguration"]["subnets"], json!(both));
        assert!(network(&[]).is_null());
    }

    #[test]
    fn a_file_and_flags_that_it_says_itself_exclude_each_other() {
        for words in [
            ["--file", "f", "--env", "A=b"],
            ["--file", "f", "--cpu", "1"],
            ["--file", "f", "image", "--detach"],
        ] {
            assert!(
                Cli::try_parse_from(["berth", "run"].iter().chain(&words)).is_err(),
                "{words:?}"
            );
        }
    }
}
