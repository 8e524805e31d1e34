"""Owns what tests do with an installed Berth: its control plane's API, its nodes, and what the kernel says of its tasks."""

import json
import shlex
import time

from ecs import Api, ApiError

# The image that the bundle brings; see payload.
IMAGE = "127.0.0.1:1/busy:latest"
BUNDLE = "/mnt/disk/b"
UPGRADE = "/mnt/disk/c"
BOOTSTRAP_SECONDS = 420
INSTALL_SECONDS = 240
TASK_SECONDS = 120
SLICE = "/sys/fs/cgroup/berth.slice"
STATE = "/var/lib/berth"
COUNTER = "i=0; while :; do i=$((i+1)); echo $i; usleep 4000; done"


class ControlPlane:
    """The one on `machine`."""

    def __init__(self, machine):
        self.machine = machine
        self.api = None

    def install(self):
        """From the packages alone, with no network."""
        packages = f"{BUNDLE}/berth-control-plane_*.deb {BUNDLE}/berth_*.deb"
        self.machine.run(f"dpkg -i {packages}", seconds=INSTALL_SECONDS)
        self.connect()

    def connect(self):
        """With the key that the control plane made at its first start."""
        file = "/var/lib/berth-control-plane/admin.env"
        self.machine.until("the first key", lambda: self.machine.run(f"test -s {file}", check=False).returncode == 0)
        script = f"set -a; . {file}; env"
        lines = (line.partition("=") for line in self.machine.said(script).splitlines())
        variables = {name: value for name, _, value in lines}
        self.api = Api(
            self.machine.forward(8780), variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"],
            variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1",
        )
        return variables

    def berth(self, arguments, **options):
        """The `berth` command on the control plane's host."""
        script = f"set -a; . /var/lib/berth-control-plane/admin.env; set +a; berth {arguments}"
        return self.machine.run(script, **options)

    def token(self, arguments=""):
        """A new join token, as `berth token create -o json` tells it."""
        return json.loads(self.berth(f"token create -o json {arguments}").stdout)

    # -- tasks

    def register(self, script, *, family="busy", cpu=128, memory=64, network="awsvpc", volumes=(), **more):
        """A definition with one container that runs a shell script."""
        container = {
            "name": "main", "image": IMAGE, "essential": True, "command": ["sh", "-c", script], "memory": memory,
            # As process 1 a shell takes no notice of SIGTERM.
            "stopTimeout": 2,
            "logConfiguration": {"logDriver": "json-file", "options": {"max-size": "200m", "max-file": "2"}},
        }
        answer = self.api.call(
            "RegisterTaskDefinition", family=family, networkMode=network, cpu=str(cpu), memory=str(memory),
            containerDefinitions=[container | more], **({"volumes": list(volumes)} if volumes else {}),
        )
        return answer["taskDefinition"]["taskDefinitionArn"]

    def run(self, definition, **parameters):
        """Starts a task; its id."""
        network = {"awsvpcConfiguration": {"subnets": ["subnet-default"]}}
        answer = self.api.call("RunTask", taskDefinition=definition, networkConfiguration=network, **parameters)
        assert not answer["failures"], answer["failures"]
        return answer["tasks"][0]["taskArn"].rsplit("/", 1)[-1]

    def task(self, task):
        return self.api.call("DescribeTasks", tasks=[task])["tasks"][0]

    def await_task(self, task, status, seconds=TASK_SECONDS):
        """Waits for a status; the task."""
        def there():
            found = self.task(task)
            assert found["lastStatus"] != "STOPPED" or status == "STOPPED", found
            return found if found["lastStatus"] == status else None
        return self.machine.until(f"task {task} to be {status}", there, seconds)

    def start(self, script, **definition):
        """A running task with one container; its id."""
        task = self.run(self.register(script, **definition))
        self.await_task(task, "RUNNING")
        return task

    def stop(self, task):
        self.api.call("StopTask", task=task)
        return self.await_task(task, "STOPPED")

    def nodes(self):
        """Registered nodes. The first one makes the cluster."""
        try:
            arns = self.api.call("ListContainerInstances")["containerInstanceArns"]
        except ApiError as error:
            if "ClusterNotFoundException" not in str(error):
                raise
            return []
        if not arns:
            return []
        return self.api.call("DescribeContainerInstances", containerInstances=arns)["containerInstances"]

    def await_connected(self, count, seconds=TASK_SECONDS):
        def there():
            try:
                connected = [node for node in self.nodes() if node["agentConnected"]]
            except (OSError, ApiError):
                return None  # It is being restarted.
            return (connected,) if len(connected) == count else None
        return self.machine.until(f"{count} connected nodes", there, seconds)[0]


def bootstrap(command):
    """The command that a token was printed with, run in the bundle on this machine's disk."""
    return f"cd {BUNDLE} && {command.strip().removeprefix('sudo ')}"


# -- what the kernel says of a task


def kernel(machine, task):
    """A task's limits, from the files of cgroup v2, and the first process of each of its containers: pid, start, command."""
    script = f"""
        cd {SLICE}/{task} || exit 1
        grep -sH . c/memory.max c/memory.swap.max c/cpu.max c/pids.max c/*/memory.max c/*/cpu.max c/*/cpu.weight c/*/pids.max |
            sed 's/^/limit /'
        for pid in $(find c -name cgroup.procs -exec cat {{}} +); do
            # 1 in its own namespace; others come and go.
            [ "$(awk '$1 == "NSpid:" {{ print $NF }}' /proc/$pid/status)" = 1 ] || continue
            echo "process $pid $(cut -d ' ' -f 22 /proc/$pid/stat) $(tr '\\0' ' ' </proc/$pid/cmdline)"
        done"""
    lines = machine.said(script).splitlines()
    limits = dict(line.removeprefix("limit ").split(":", 1) for line in lines if line.startswith("limit "))
    return limits, sorted(line for line in lines if line.startswith("process "))


def log_lines(machine, task, container="main"):
    """What a container wrote, as the node keeps it."""
    script = f"cd {STATE}/logs/{task}/{container} && cat $(ls -r *-json.log*)"
    return [json.loads(line)["log"].rstrip("\n") for line in machine.said(script).splitlines()]


def counts_on(machine, task, seconds=TASK_SECONDS):
    """Waits until the counter has written more than it had at the call."""
    script = f"cat {STATE}/logs/{task}/main/*-json.log | wc -l"
    before = int(machine.said(script))
    machine.until("further lines", lambda: int(machine.said(script)) > before, seconds)


def counter_is_complete(lines):
    """Lines that a counter wrote: each number once, in order."""
    numbers = [int(line) for line in lines]
    expected = list(range(1, len(numbers) + 1))
    if numbers != expected:
        wrong = next(index for index, pair in enumerate(zip(numbers, expected)) if pair[0] != pair[1])
        raise AssertionError(f"line {wrong + 1} of {len(numbers)}: {numbers[max(0, wrong - 2) : wrong + 3]}")
    return len(numbers)
