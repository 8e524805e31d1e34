"""Owns the task definitions of these tests, as one would write them for Amazon ECS."""

from image import BUSYBOX

# The awsvpc configuration of every task: until there are networks, a cluster has one subnet.
NETWORK = {"awsvpcConfiguration": {"subnets": ["subnet-default"], "securityGroups": ["sg-default"]}}
# Ends at once when told to.
WAIT = "trap 'exit 0' TERM; sleep 3600 & wait"


def container(name, script, **more):
    return {
        "name": name, "image": BUSYBOX, "essential": True, "stopTimeout": 2, "command": ["sh", "-c", script], **more,
    }


def definition(family, *containers, mode="awsvpc", cpu="128", memory="64", **more):
    return {
        "family": family, "networkMode": mode, "cpu": cpu, "memory": memory,
        "containerDefinitions": list(containers) or [container("main", WAIT)], **more,
    }


def two_containers(family):
    """A server that answers on port 8080, and a client that starts after it and asks it over loopback."""
    serve = "trap 'exit 0' TERM; while true; do echo from-$NAME | nc -l -p 8080 & wait $!; done"
    ask = f"until nc 127.0.0.1 8080; do sleep 0.1; done; {WAIT}"
    return definition(
        family,
        container(
            "server", serve, cpu=64, memory=32, portMappings=[{"containerPort": 8080}],
            environment=[{"name": "NAME", "value": family}],
        ),
        container("client", ask, dependsOn=[{"containerName": "server", "condition": "START"}]),
    )
