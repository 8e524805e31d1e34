"""How `berth dev` ends: in order, by force, and what a start after that finds."""

import subprocess
import time
import unittest

import host
from definitions import NETWORK, container, definition, two_containers
from dev import BERTH, PLAIN_ENVIRONMENT, Dev, until
from test_boto3 import OFTEN, client_of

# All kinds of things that a running awsvpc task has on the host.
KINDS = {"process", "cgroup", "mount", "netns", "link", "route", "nftables", "socket"}
# Ignores SIGTERM: only the end of its stopTimeout ends it.
STUBBORN = "trap '' TERM; while true; do sleep 1; done"
COUNT = "n=0; while true; do echo $n; n=$((n + 1)); sleep 0.1; done"


class Ends(unittest.TestCase):
    def setUp(self):
        self.dev = Dev()
        self.addCleanup(self.dev.discard)
        self.assertEqual(self.dev.listing(), set())

    def client(self):
        return client_of(self.dev)

    def run_tasks(self, *bodies):
        """One of each, RUNNING."""
        ecs, tasks = self.client(), []
        for body in bodies:
            ecs.register_task_definition(**body)
            network = {"networkConfiguration": NETWORK} if body["networkMode"] == "awsvpc" else {}
            answer = ecs.run_task(taskDefinition=body["family"], **network)
            self.assertEqual(answer["failures"], [])
            tasks.append(answer["tasks"][0]["taskArn"])
        ecs.get_waiter("tasks_running").wait(tasks=tasks, WaiterConfig=OFTEN)
        return tasks

    def pids(self, tasks):
        return {task: host.container_pids(self.dev.instance, task) for task in tasks}

    def started(self, tasks):
        answer = self.client().describe_tasks(tasks=tasks)
        return {task["taskArn"]: (task["lastStatus"], task["startedAt"]) for task in answer["tasks"]}

    def connected(self):
        ecs = self.client()
        arns = ecs.list_container_instances()["containerInstanceArns"]
        return ecs.describe_container_instances(containerInstances=arns)["containerInstances"][0]["agentConnected"]

    def counted(self, task):
        """The numbers in the log of a container that counts."""
        done = subprocess.run(
            [BERTH, "--state-dir", self.dev.state_dir, "logs", task], capture_output=True, text=True, timeout=30,
            env=PLAIN_ENVIRONMENT, check=True,
        )
        return [int(line) for line in done.stdout.split()]

    def test_sigterm_leaves_nothing(self):
        """SIGTERM with tasks in every mode: exit code 0, nothing left on the host, databases and keys kept"""
        self.dev.start()
        stubborn = definition("stubborn", container("main", STUBBORN), mode="host")
        self.run_tasks(two_containers("pair"), stubborn, definition("none", mode="none"))
        self.assertLessEqual(KINDS, host.kinds(self.dev.listing()))
        self.assertTrue((self.dev.state_dir / "dev.env").exists())
        self.assertEqual(self.dev.stop(), 0, self.dev.said())
        self.assertEqual(self.dev.listing(), set())
        self.assertIn("nothing is left on this host", self.dev.said())
        self.assertFalse((self.dev.state_dir / "dev.env").exists())
        self.assertTrue((self.dev.state_dir / "keys.env").exists())

        # What was acknowledged is still known, and its end is told.
        self.dev.start()
        ecs = self.client()
        self.assertEqual(len(ecs.list_task_definitions()["taskDefinitionArns"]), 3)
        stopped = ecs.list_tasks(desiredStatus="STOPPED")["taskArns"]
        for task in ecs.describe_tasks(tasks=stopped)["tasks"]:
            self.assertEqual((task["lastStatus"], task["stoppedReason"]), ("STOPPED", "berth dev ended"))
        self.assertEqual(len(stopped), 3)
        self.assertEqual(self.dev.stop(), 0, self.dev.said())
        self.assertEqual(self.dev.listing(), set())

    def test_sigterm_while_tasks_come_up(self):
        """SIGTERM while tasks are on their way up: exit code 0 and nothing left"""
        self.dev.start()
        ecs = self.client()
        ecs.register_task_definition(**definition("rising"))
        answer = ecs.run_task(taskDefinition="rising", count=8, networkConfiguration=NETWORK)
        self.assertEqual(answer["failures"], [])
        self.assertEqual(self.dev.stop(), 0, self.dev.said())
        self.assertEqual(self.dev.listing(), set())

    def test_tasks_outlive_it(self):
        """after kill -9 or an end with --keep-tasks a new start finds the same processes; --stop-all ends all"""
        self.dev.start()
        counting = definition("count", container("main", COUNT))
        tasks = self.run_tasks(counting, two_containers("pair"), definition("host", mode="host"))
        pids, started = self.lasting(tasks), self.started(tasks)
        self.assertTrue(all(pids.values()), pids)
        self.dev.kill()
        self.assertEqual(self.same(pids), pids)

        self.dev.start("--keep-tasks")
        until("the node to be connected", self.connected)
        self.assertEqual((self.same(pids), self.started(tasks)), (pids, started))
        self.assertEqual(self.dev.stop(), 0, self.dev.said())
        self.assertIn("tasks and containerd go on", self.dev.said())
        self.assertEqual(self.same(pids), pids)

        self.dev.start()
        until("the node to be connected", self.connected)
        self.assertEqual((self.same(pids), self.started(tasks)), (pids, started))
        numbers = self.counted(tasks[0])
        self.assertEqual(numbers, list(range(len(numbers))), "no line is lost or repeated meanwhile")
        self.assertGreater(len(numbers), 10)
        more = self.run_tasks(definition("later"))
        self.assertTrue(all(self.pids(more).values()))

        self.dev.kill()
        self.assertLessEqual(KINDS - {"socket"}, host.kinds(self.dev.listing()))
        done = self.dev.stop_all()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.dev.listing(), set())

    def lasting(self, tasks):
        """Their processes, without those that a shell starts and reaps all the time."""
        pids = self.pids(tasks)
        time.sleep(1)
        return self.same(pids)

    def same(self, pids):
        """Those of these processes that are there now."""
        now = self.pids(pids)
        return {task: [pid for pid in before if pid in now[task]] for task, before in pids.items()}

    def test_purge(self):
        """--purge removes the state directory, too"""
        self.dev.start("--purge")
        self.assertEqual(self.dev.stop(), 0, self.dev.said())
        self.assertFalse(self.dev.state_dir.exists())
        self.assertEqual(self.dev.listing(), set())
