use super::*;

const CONTAINER: &str = "containerDefinitions[0]";

/// In mode host, with these fields of the first container.
fn of(fields: Value) -> Value {
    let mut definition = with(good(), "/networkMode", json!("host"));
    let container = definition["containerDefinitions"][0].as_object_mut().unwrap();
    container.extend(fields.as_object().unwrap().clone());
    definition
}

#[test]
fn names_and_resolvers_are_kept_as_they_were_given() {
    let fields = json!({
        "hostname": "db-1.example",
        "extraHosts": [{"hostname": "a_b.c", "ipAddress": "10.0.0.1"}, {"hostname": "a", "ipAddress": "fd00::1"}],
        "dnsServers": ["10.0.0.2", "fd00::2"],
        "dnsSearchDomains": ["example.com"],
    });
    for mode in ["host", "none"] {
        let definition = with(of(fields.clone()), "/networkMode", json!(mode));
        let definition = with(definition, "/containerDefinitions/0/portMappings", json!([]));
        let echo = accepted(&definition).definition;
        for (name, value) in fields.as_object().unwrap() {
            assert_eq!(&echo["containerDefinitions"][0][name], value);
        }
    }
    let why = "ECS does not support it in awsvpc, where the containers of a task are one host";
    assert_eq!(
        problems(&with(of(fields), "/networkMode", json!("awsvpc"))),
        ["hostname", "extraHosts", "dnsServers", "dnsSearchDomains"]
            .map(|name| format!("{CONTAINER}.{name}: {why}"))
    );
}

#[test]
fn bad_names_and_addresses_are_named() {
    let found = problems(&of(json!({
        "hostname": "-a",
        "extraHosts": [{"hostname": "a b", "ipAddress": "host-gateway"}, {"hostname": "a"}],
        "dnsServers": ["10.0.0.0/8", "dns.example"],
        "dnsSearchDomains": ["", "a.", "a\nnameserver 10.0.0.9"],
    })));
    let paths: Vec<&str> = found
        .iter()
        .map(|problem| problem.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "extraHosts[1].ipAddress",
            "hostname",
            "extraHosts[0].hostname",
            "extraHosts[0].ipAddress",
            "dnsServers[0]",
            "dnsServers[1]",
            "dnsSearchDomains[0]",
            "dnsSearchDomains[1]",
            "dnsSearchDomains[2]",
        ]
        .map(|path| format!("{CONTAINER}.{path}"))
    );
    for name in ["", "a..b", "a_b", "a-", &"h".repeat(65)] {
        assert_eq!(problems(&of(json!({"hostname": name}))).len(), 1, "{name}");
    }
    accepted(&of(json!({"hostname": "h".repeat(64)})));
}

#[test]
fn a_container_without_a_network_has_no_ports_and_is_not_for_fargate() {
    let definition = with(good(), "/containerDefinitions/1/disableNetworking", json!(true));
    assert_eq!(
        accepted(&definition).definition["compatibilities"],
        json!(["EC2"])
    );
    assert_eq!(
        problems(&with(definition, "/requiresCompatibilities", json!(["FARGATE"]))),
        ["containerDefinitions[1].disableNetworking: FARGATE does not have it"]
    );
    assert_eq!(
        problems(&container("disableNetworking", json!(true))),
        [format!(
            "{CONTAINER}.disableNetworking: nothing reaches the portMappings of a container without a network"
        )]
    );
}
