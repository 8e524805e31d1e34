"""Published task definitions of modes awsvpc and bridge as tasks, with a local image in place of theirs: what their containers get
is seen from inside, over the network, and in the kernel's own files."""

import json
import os
import urllib.request
from pathlib import Path

import host
import image
from dev import shared, until
from test_boto3 import OFTEN, Boto3
from test_taskdefs import ANSWERED, DIRECTORY, without_nulls

# These do not run whatever their image is. taskdefs/expected.tsv has the whole of why.
REFUSED = {
    "Qbizinc__airflow-presto__ecs__task-definition.json": "healthCheck.command: begins with",
    "aws-samples__amazon-ecs-firelens-examples__examples__splitting-log-streams__fluent-bit__task_definition.json":
        "firelensConfiguration: not supported yet",
    "aws-samples__aws-containers-task-definitions__tomcat__tomcat_ec2.json":
        "portMappings[0].hostPort: 80 must be absent or equal to the containerPort 8080",
}
MIB = 1 << 20
# The first probe that succeeds makes a container healthy, and it comes at once.
HEALTHY_SECONDS = 10
HTTP_SECONDS = 5
LISTENING = "0A"
# Where every container has something mounted; these definitions mount nothing else.
PLAIN_MOUNTS = {"/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
PLAIN_MOUNTS_BELOW = ("/dev", "/proc", "/sys")


# The one of mode bridge that leaves the node's port to the node: others want port 80 of the machine.
BRIDGE = "aws-samples__aws-containers-task-definitions__nginx__nginx_ec2.json"


def definitions(mode="awsvpc"):
    """(file name, definition) of those of a mode, each container with a server of ours as its image."""
    for file in sorted(DIRECTORY.glob("*.json")):
        given = without_nulls(json.loads(file.read_text()))
        if given.get("networkMode") != mode:
            continue
        for name in ANSWERED:
            given.pop(name, None)
        for container in given["containerDefinitions"]:
            container["image"] = image.server(ports_of(container))
        yield file.name, given


def ports_of(container):
    return sorted(port["containerPort"] for port in container.get("portMappings", []))


def get(address, port, path):
    # No proxy of the caller's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}:{port}{path}", timeout=HTTP_SECONDS) as answer:
        return answer.read().decode()


class Tasks(Boto3):
    def test_they_run(self):
        """published awsvpc definitions, with a local image: command, environment, user, limits, ports, health, mounts"""
        seen = 0
        for file, given in definitions():
            with self.subTest(file=file):
                seen += 1
                if file in REFUSED:
                    message = self.refused("ClientException", self.ecs.register_task_definition, **given)
                    self.assertIn(REFUSED[file], message)
                else:
                    self.see(given)
        self.assertEqual(seen, 14)

    def test_they_run_in_bridge_mode(self):
        """a published definition of mode bridge, twice at a time: each answers at the node's port that networkBindings has"""
        given = dict(definitions("bridge"))[BRIDGE]
        answer = self.ecs.run_task(taskDefinition=self.register(given), count=2)
        self.assertEqual(answer["failures"], [])
        arns = [task["taskArn"] for task in answer["tasks"]]
        self.ecs.get_waiter("tasks_running").wait(tasks=arns, WaiterConfig=OFTEN)
        tasks = self.ecs.describe_tasks(tasks=arns)["tasks"]
        (asked,) = given["containerDefinitions"]
        (port,) = ports_of(asked)
        ports = set()
        for task in tasks:
            self.assertEqual(task["attachments"], [])
            ((binding,),) = (container["networkBindings"] for container in task["containers"])
            self.assertEqual(
                (binding["bindIP"], binding["containerPort"], binding["protocol"]), ("0.0.0.0", port, "tcp")
            )
            ports.add(binding["hostPort"])
        self.assertEqual(len(ports), 2)
        words = {until("an answer", lambda at=at: self.answer("127.0.0.1", at), HTTP_SECONDS) for at in ports}
        self.assertTrue(all("directory /srv" in told for told in words), words)
        self.stop(*arns)
        for at in ports:
            self.assertIsNone(self.answer("127.0.0.1", at), "nothing of it is left")

    def see(self, given):
        """One task of it, from its start until nothing of it is left."""
        kind = {"launchType": "FARGATE"} if "FARGATE" in given.get("requiresCompatibilities", []) else {}
        (arn,) = self.run_tasks(self.register(given), **kind)
        self.addCleanup(self.ecs.stop_task, task=arn)
        (asked,) = given["containerDefinitions"]
        healthy = "HEALTHY" if "healthCheck" in asked else "UNKNOWN"

        def running():
            (task,) = self.ecs.describe_tasks(tasks=[arn])["tasks"]
            self.assertNotEqual(task["lastStatus"], "STOPPED", task)
            return task if (task["lastStatus"], task["healthStatus"]) == ("RUNNING", healthy) else None

        task = until("the task to run, as healthy as it tells", running, HEALTHY_SECONDS)
        (container,) = task["containers"]
        self.assertEqual(container["image"], asked["image"])
        self.assertEqual((task["cpu"], task["memory"]), (given["cpu"], given["memory"]))
        # Their driver does not exist here, which the task says.
        warnings = [a["value"] for a in task["attributes"] if a["name"] == "berth.warning"]
        self.assertEqual(len(warnings), 1 if "logConfiguration" in asked else 0, task["attributes"])
        address = container["networkInterfaces"][0]["privateIpv4Address"]
        pids = host.container_pids(shared().instance, arn)
        self.inside(asked, address)
        self.in_the_kernel(given, asked, pids)
        self.stop(arn)
        self.assertEqual([pid for pid in pids if Path(f"/proc/{pid}").exists()], [])

    def inside(self, asked, address):
        """What its process found, as it tells on each of its ports."""
        told = {
            until("an answer", lambda port=port: self.answer(address, port), HTTP_SECONDS) for port in ports_of(asked)
        }
        self.assertEqual(len(told), 1)
        facts = [line.split(" ", 1) for line in told.pop().splitlines()]
        words = [value for kind, value in facts if kind == "word"]
        command = asked.get("command") or ["serve"]
        self.assertEqual([Path(words[0]).name, *words[1:]], command)
        environment = dict(value.split("=", 1) for kind, value in facts if kind == "env")
        listen = " ".join(map(str, ports_of(asked)))
        given = {pair["name"]: pair["value"] for pair in asked.get("environment", [])}
        for name, value in ({"PATH": "/bin", "LISTEN": listen} | given).items():
            self.assertEqual(environment.get(name), value, name)
        name, number = image.SERVER_USER
        self.assertIn(["user", f"{name} {number} {number}"], facts)
        self.assertIn(["directory", asked.get("workingDirectory", "/srv")], facts)
        mounts = {value.split()[4] for kind, value in facts if kind == "mount"}
        more = {path for path in mounts - PLAIN_MOUNTS if not path.startswith(PLAIN_MOUNTS_BELOW)}
        self.assertEqual((asked.get("mountPoints", []), more), ([], set()))
        self.assertTrue(PLAIN_MOUNTS <= mounts, mounts)

    def answer(self, address, port):
        try:
            return get(address, port, "/facts")
        except OSError:
            return None  # Not listening yet.

    def in_the_kernel(self, given, asked, pids):
        # The container's own process: others come and go, as probes do.
        pid = pids[0]
        _, number = image.SERVER_USER
        self.assertIn(f"\nUid:\t{number}\t{number}\t{number}\t{number}\n", Path(f"/proc/{pid}/status").read_text())
        self.assertNotEqual(os.readlink(f"/proc/{pid}/ns/net"), os.readlink("/proc/self/ns/net"))
        listening = set()
        for table in ("tcp", "tcp6"):
            rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
            listening |= {int(row[1].rsplit(":", 1)[1], 16) for row in rows if row[3] == LISTENING}
        self.assertEqual(sorted(listening), ports_of(asked))
        container, task = host.limits(pid), host.limits(pid, above=1)
        self.assertEqual(task["memory"], int(given["memory"]) * MIB)
        self.assertAlmostEqual(task["cpus"], int(given["cpu"]) / 1024)
        if "memory" in asked:
            self.assertEqual(container["memory"], asked["memory"] * MIB)
        else:
            self.assertGreaterEqual(container["memory"], task["memory"])
        self.assertEqual(container["shares"], max(asked.get("cpu", 0), 2))
