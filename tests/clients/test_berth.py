"""The `berth` command, as people and scripts use it."""

import json
import re
import subprocess
import tempfile
import time
import unittest

from definitions import WAIT, container, definition, two_containers
from dev import BERTH, PLAIN_ENVIRONMENT, Dev, shared, until
from image import BUSYBOX

COMMAND_SECONDS = 60
# From docs/cli.md.
REFUSED, USAGE, NOT_FOUND, NO_ENDPOINT, UNFIT, TASK_FAILED = 1, 2, 3, 4, 5, 6
# Writes a line, and another when it is told to stop.
TALK = "echo up; trap 'echo down; exit 0' TERM; sleep 3600 & wait"


class Berth(unittest.TestCase):
    def setUp(self):
        self.environment = PLAIN_ENVIRONMENT | {"BERTH_STATE_DIR": str(shared().state_dir)}

    def berth(self, *arguments, environment=None, stdin=""):
        return subprocess.run(
            [BERTH, *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS, input=stdin,
            env=self.environment | (environment or {}),
        )

    def said(self, *arguments):
        """What a command that succeeds prints."""
        done = self.berth(*arguments)
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return done.stdout

    def parsed(self, *arguments):
        return json.loads(self.said(*arguments, "-o", "json"))

    def file(self, body):
        file = tempfile.NamedTemporaryFile("w", suffix=".json")
        self.addCleanup(file.close)
        file.write(body if isinstance(body, str) else json.dumps(body))
        file.flush()
        return file.name

    def run_file(self, body):
        """The id of a task that runs."""
        return self.said("run", "--detach", "--file", self.file(body)).strip()

    def wait_running(self, task):
        until(f"{task} to run", lambda: self.parsed("inspect", task)["lastStatus"] == "RUNNING")


class Tasks(Berth):
    def test_task_life(self):
        """run --file, ps, inspect, why, logs -f, stop: every command names the task by a prefix of its id"""
        said = self.said("run", "--file", self.file(two_containers("cli")))
        found = re.match(r"task ([0-9a-f]{12}) is RUNNING at ([\d.]+)\n", said)
        self.assertTrue(found, said)
        short, address = found.groups()

        listed = self.said("ps")
        row = next(line for line in listed.splitlines() if line.startswith(short))
        self.assertEqual(row.split()[1:6], ["cli:1", "RUNNING", "-", address, "2/2"])
        task = next(one for one in self.parsed("ps")["tasks"] if f"/{short}" in one["taskArn"])
        whole = task["taskArn"].rsplit("/", 1)[-1]
        self.assertIn(whole, self.said("ps", "-o", "wide"))
        for name in (task["taskArn"], whole, short, short.upper()):
            self.assertEqual(self.parsed("inspect", name)["taskArn"], task["taskArn"])
        self.assertEqual(json.loads(self.said("inspect", "cli:1"))["taskDefinition"]["family"], "cli")
        self.assertRegex(self.said("why", short), rf"^task {short} is RUNNING for .*all that must run is running")
        self.assertEqual(self.parsed("why", short)["lastStatus"], "RUNNING")
        heard = until("the client's answer", lambda: self.said("logs", short, "--container", "client"))
        self.assertEqual(heard, "from-cli\n")
        self.assertIn("client | from-cli", self.said("logs", short))

        follower = subprocess.Popen(
            [BERTH, "logs", "-f", short], env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.addCleanup(follower.kill)
        said = self.said("stop", short, "--reason", "enough")
        self.assertRegex(said, rf"^task {short} is STOPPED: enough; server: exit code 0; client: exit code 0")
        out, errors = follower.communicate(timeout=COMMAND_SECONDS)
        self.assertEqual((follower.returncode, errors), (0, ""))
        self.assertIn("client | from-cli", out)
        self.assertNotIn(short, self.said("ps"))
        self.assertIn("STOPPED", next(line for line in self.said("ps", "-a").splitlines() if line.startswith(short)))
        self.assertIn("stopped: enough", self.said("why", short))
        self.assertIn("client | from-cli", self.said("logs", short))

    def test_a_log_driver_that_does_not_exist_yet(self):
        """awslogs: the task runs, ps marks it and tells, why and inspect tell, logs has the output"""
        options = {"awslogs-group": "/ecs/x", "awslogs-region": "eu-central-1", "awslogs-create-group": "true"}
        log = {"logDriver": "awslogs", "options": options}
        task = self.run_file(definition("cli-awslogs", container("main", TALK, logConfiguration=log)))
        self.wait_running(task)
        told = f"container main: log driver awslogs is not supported yet.*`berth logs {task[:12]} --container main`"
        listed = self.said("ps")
        self.assertRegex(listed, rf"(?m)^{task[:12]} .* RUNNING ! ")
        self.assertRegex(listed, rf"(?m)^! {task[:12]}: {told}$")
        self.assertRegex(self.said("why", task), rf"(?m)^warning: {told}$")
        warnings = [a["value"] for a in self.parsed("inspect", task)["attributes"] if a["name"] == "berth.warning"]
        self.assertRegex("".join(warnings), rf"^{told}$")
        until("its output", lambda: "up" in self.said("logs", task, "--container", "main"))

    def test_logs(self):
        """logs -f shows lines as they come, ends when the task stops with the last line in it; --tail and -o json"""
        task = self.run_file(definition("cli-logs", container("main", TALK)))
        self.wait_running(task)
        follower = subprocess.Popen(
            [BERTH, "logs", "-f", task], stdout=subprocess.PIPE, text=True, env=self.environment
        )
        self.addCleanup(follower.kill)
        self.addCleanup(follower.stdout.close)
        self.assertEqual(follower.stdout.readline(), "up\n")
        self.assertIsNone(follower.poll())
        began = time.monotonic()
        self.said("stop", "--detach", task)
        self.assertEqual(follower.stdout.read(), "down\n")
        self.assertEqual(follower.wait(COMMAND_SECONDS), 0)
        self.assertLess(time.monotonic() - began, 20)
        self.assertEqual(self.said("logs", task, "--tail", "1"), "down\n")
        self.assertRegex(self.said("logs", task, "--timestamps"), r"^\d{4}-\d\d-\d\dT[\d:.]+Z up\n")
        lines = [json.loads(line) for line in self.said("logs", task, "-o", "json").splitlines()]
        self.assertEqual([(line["container"], line["stream"], line["line"]) for line in lines],
                         [("main", "stdout", "up\n"), ("main", "stdout", "down\n")])

    def test_run_image(self):
        """run IMAGE makes a definition of its flags, shows the output and ends with the container's exit code"""
        done = self.berth(
            "run", BUSYBOX, "--name", "cli-image", "--cpu", "128", "--memory", "32", "--env", "GREETING=hi there",
            "--workdir", "/tmp", "--user", "web", "--read-only", "--follow",
            "--", "sh", "-c", "echo $GREETING $FROM_IMAGE; pwd; id -u; touch /tmp/x || exit 7",
        )
        self.assertEqual(done.stdout, "hi there yes\n/tmp\n1000\n", done.stderr)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertIn("exit code 7", done.stderr)
        done = self.berth("run", BUSYBOX, "--cpu", "128", "--follow", "--", "true")
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_unique_prefix(self):
        """a prefix that fits several tasks is refused with the candidates, and nothing is stopped"""
        body = self.file(definition("cli-many", container("main", "true"), mode="none"))

        def twins():
            ids = [task["taskArn"].rsplit("/", 1)[-1] for task in self.parsed("ps", "-a")["tasks"]]
            digits = [one[0] for one in ids]
            return next(([one for one in ids if one[0] == digit] for digit in digits if digits.count(digit) > 1), None)

        # Of seventeen ids, two begin with the same of sixteen digits.
        for _ in range(17):
            if twins():
                break
            self.said("run", "--detach", "--file", body)
        ids = twins()
        done = self.berth("stop", ids[0][0])
        self.assertEqual(done.returncode, NOT_FOUND)
        self.assertIn("fits several", done.stderr)
        for one in ids[:10]:
            self.assertIn(one, done.stderr)
        self.assertEqual(self.parsed("inspect", ids[0])["taskArn"].rsplit("/", 1)[-1], ids[0])

    def test_nodes_and_version(self):
        """nodes and version, for people and for programs"""
        table = self.said("nodes").splitlines()
        self.assertRegex(table[0], "^NODE +STATUS +AGENT +TASKS +CPU FREE +MIB FREE")
        self.assertRegex(table[1], "^[0-9a-f]{12} +ACTIVE +connected ")
        node = self.parsed("nodes")["containerInstances"][0]
        found = self.parsed("inspect", table[1].split()[0])
        self.assertEqual(found["containerInstanceArn"], node["containerInstanceArn"])
        self.assertRegex(self.said("version"), r"^berth (\S+)\ncontrol plane \1\n$")
        completion = self.said("completion", "bash")
        subprocess.run(["bash", "-n"], input=completion, text=True, check=True)


class Mistakes(Berth):
    def test_exit_codes(self):
        """each kind of failure has its exit code, and says on standard error what to do"""
        home = str(Dev.base / "home")
        url = shared().environment()["BERTH_ENDPOINT_URL"]
        keys = {"AWS_ACCESS_KEY_ID": "X", "AWS_SECRET_ACCESS_KEY": "y"}
        wrong = keys | {"BERTH_ENDPOINT_URL": url, "BERTH_STATE_DIR": home}
        silent = wrong | {"BERTH_ENDPOINT_URL": "http://127.0.0.1:1"}
        huge = self.file(definition("cli-huge", cpu="131072"))
        odd = self.file(definition("cli-odd", container("main", WAIT, links=["other"])))
        broken = self.file(definition("cli-pull", container("main", WAIT) | {"image": "127.0.0.1:1/no:image"}))
        failing = self.file(definition("cli-fail", container("main", "exit 9")))
        for arguments, environment, code, words in [
            (("ps",), {"BERTH_STATE_DIR": home}, NO_ENDPOINT, "sudo berth dev"),
            (("ps",), wrong, NO_ENDPOINT, "AWS_SECRET_ACCESS_KEY"),
            (("ps",), silent, NO_ENDPOINT, "http://127.0.0.1:1"),
            (("ps",), wrong | {"BERTH_ENDPOINT_URL": "http://192.0.2.1"}, NO_ENDPOINT, "not encrypted"),
            (("ps", "--cluster", "nowhere"), {}, REFUSED, "nowhere"),
            (("stop", "f" * 32), {}, NOT_FOUND, "berth ps -a"),
            (("logs", "zzz"), {}, NOT_FOUND, "zzz"),
            (("why", "f" * 31), {}, NOT_FOUND, "f" * 31),
            (("inspect", "nothing:1"), {}, NOT_FOUND, "nothing:1"),
            (("frobnicate",), {}, USAGE, "frobnicate"),
            (("run",), {}, USAGE, "IMAGE"),
            (("run", "--file", "/nonexistent.json"), {}, USAGE, "/nonexistent.json"),
            (("run", "--file", self.file("{")), {}, USAGE, "is not JSON"),
            (("run", "--file", self.file("[]")), {}, USAGE, "not a task definition"),
            (("run", "--file", odd), {}, REFUSED, "containerDefinitions[0].links: not supported yet"),
            (("run", "--file", huge), {}, TASK_FAILED, "RESOURCE:CPU"),
            (("run", "--file", broken), {}, TASK_FAILED, ""),
            (("run", "--file", failing, "--follow"), {}, 9, "exit code 9"),
        ]:
            with self.subTest(arguments=arguments, environment=environment):
                done = self.berth(*arguments, environment=environment)
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)
                self.assertIn(words, done.stderr)

    def test_dev_refuses(self):
        """berth dev refuses what is taken or wrong, by name, and makes nothing"""
        used, fresh = shared(), Dev()
        # There is a route to it.
        self.wait_running(self.run_file(definition("cli-route")))
        port = used.environment()["BERTH_ENDPOINT_URL"].rsplit("/", 1)[-1]
        for flags, words in [
            (("--state-dir", used.state_dir), f"process {used.process.pid}"),
            (("--instance", used.instance), used.instance),
            (("--instance", "No Name"), "No Name"),
            (("--listen", port), port),
            (("--listen", "0.0.0.0:0"), "loopback"),
            (("--task-cidr", used.cidr), "overlaps"),
            (("--task-cidr", "10.250.0.0/30"), "/29"),
            (("--containerd", "/nonexistent.sock"), "/nonexistent.sock"),
            (("--logger", "/nonexistent"), "/nonexistent"),
            (("--state-dir", Dev.base / ("x" * 70)), "70 characters"),
        ]:
            with self.subTest(flags=flags):
                base = {
                    "--state-dir": fresh.state_dir, "--instance": fresh.instance, "--listen": "127.0.0.1:0",
                    "--node-listen": "127.0.0.1:0",
                }
                merged = [word for pair in (base | dict([flags])).items() for word in pair]
                done = self.berth("dev", *merged)
                self.assertEqual(done.returncode, UNFIT, done.stderr)
                self.assertIn(words, done.stderr)
        self.assertFalse(fresh.state_dir.exists())
        self.assertEqual(fresh.listing(), set())
