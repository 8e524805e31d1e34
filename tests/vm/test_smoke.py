"""From a fresh machine to a running task with limits, and the service's life under systemd."""

import json
import subprocess

import node
import payload
from node import ControlPlane, kernel
from story import Story
from suite import world

CONTROL_PLANE_SCORE_MAX = 2.0
RELOAD_SECONDS = 120


class Smoke(Story):
    """One command on a fresh host, and a task with limits that nothing systemd does takes away."""

    @classmethod
    def setUpClass(cls):
        cls.machine = world().machine(disks=[payload.bundle_disk()])
        cls.addClassCleanup(cls.machine.end)
        cls.machine.start().wait_booted()
        cls.plane = ControlPlane(cls.machine)

    def test_a_fresh_machine_has_nothing_of_it(self):
        self.assertEqual(self.machine.said("stat -fc %T /sys/fs/cgroup"), "cgroup2fs")
        for program in ("containerd", "runc", "nft", "berth-agent"):
            self.assertNotEqual(self.machine.run(f"command -v {program}", check=False).returncode, 0, program)
        # No way out: what is installed comes from the bundle.
        outside = self.machine.run("timeout 5 bash -c '>/dev/tcp/1.1.1.1/443'", check=False)
        self.assertNotEqual(outside.returncode, 0)

    def test_the_control_plane_package_starts_it(self):
        self.plane.install()
        self.assertEqual(self.plane.nodes(), [])
        self.assertEqual(self.machine.said("systemctl is-active berth-control-plane"), "active")

    def test_one_command_makes_it_a_node(self):
        command = self.plane.token()["command"]
        done = self.machine.run(node.bootstrap(command), seconds=node.BOOTSTRAP_SECONDS)
        print(done.stdout)
        self.assertEqual(len(self.plane.await_connected(1)), 1)
        self.assertEqual(self.machine.said("systemctl is-active berth-agent containerd"), "active\nactive")

    def test_the_aws_command_line_runs_a_task_with_limits(self):
        definition = self.plane.register("sleep 3600", cpu=256, memory=48)
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.machine.directory), "AWS_PAGER": "", "AWS_REGION": self.plane.api.region,
            "AWS_ACCESS_KEY_ID": self.plane.api.key_id, "AWS_SECRET_ACCESS_KEY": self.plane.api.secret, "NO_PROXY": "*",
        }
        command = [
            "aws", "ecs", "run-task", "--region", self.plane.api.region, "--output", "json",
            "--endpoint-url", f"http://127.0.0.1:{self.plane.api.port}", "--task-definition", definition,
            "--network-configuration", "awsvpcConfiguration={subnets=[subnet-default]}",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        type(self).task = json.loads(done.stdout)["tasks"][0]["taskArn"].rsplit("/", 1)[-1]
        self.plane.await_task(self.task, "RUNNING")
        limits, processes = kernel(self.machine, self.task)
        self.assertEqual(limits["c/memory.max"], str(48 << 20))
        self.assertEqual(limits["c/cpu.max"], "25000 100000")
        self.assertEqual(len(processes), 1, processes)
        self.assertIn("sleep 3600", processes[0])

    def test_the_agent_sees_what_containerd_sees(self):
        same = "readlink /proc/1/ns/mnt /proc/$(systemctl show -P MainPID berth-agent)/ns/mnt | uniq | wc -l"
        self.assertEqual(self.machine.said(same), "1", "the agent has a mount namespace of its own")

    def test_services_are_ready_watched_and_confined(self):
        for unit in ("berth-agent", "berth-control-plane"):
            facts = self.machine.said(f"systemctl show -p Type -p StatusText -p WatchdogTimestampMonotonic {unit}")
            facts = dict(line.split("=", 1) for line in facts.splitlines())
            self.assertEqual(facts["Type"], "notify", unit)
            self.assertNotIn(facts["WatchdogTimestampMonotonic"], ("", "0"), f"{unit} feeds no watchdog")
            said = self.machine.said(f"systemd-analyze security --no-pager {unit}", seconds=60)
            score = float(said.splitlines()[-1].split(":")[1].split()[0])
            print(f"systemd-analyze security {unit}: {score}; {facts['StatusText']}")
            if unit == "berth-control-plane":
                self.assertLessEqual(score, CONTROL_PLANE_SCORE_MAX, said)

    def test_restart_reload_and_reexec_change_no_task(self):
        before = kernel(self.machine, self.task)
        for command in ("systemctl restart berth-agent", "systemctl daemon-reload", "systemctl daemon-reexec"):
            self.machine.run(command, seconds=RELOAD_SECONDS)
            self.assertEqual(kernel(self.machine, self.task), before, f"after {command}")
        self.plane.await_connected(1)
        # A foreign unit in the slice is what makes systemd write its own idea of controllers.
        self.machine.run("systemd-run --wait --slice berth.slice -p MemoryMax=64M true", seconds=RELOAD_SECONDS)
        self.machine.run("systemctl daemon-reload", seconds=RELOAD_SECONDS)
        self.assertEqual(kernel(self.machine, self.task), before, "after a foreign unit in the slice")
        self.assertEqual(self.plane.task(self.task)["lastStatus"], "RUNNING")

    def test_a_stopped_task_leaves_nothing(self):
        self.plane.stop(self.task)
        left = self.machine.said(f"find /sys/fs/cgroup /run/berth -name '*{self.task}*'; grep {self.task} /proc/mounts", check=False)
        self.assertEqual(left, "")
