"""The AWS command line, unmodified: version 1 (PyPI) with what dev.env sets, version 2 (Debian's, older than
AWS_ENDPOINT_URL_ECS) with --endpoint-url."""

import json
import socket
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

from definitions import definition, two_containers
from dev import ROOT, shared, until

COMMAND_SECONDS = 60
# What both versions end with when a waiter gives up.
WAITER_FAILED = 255
SUBNETS = "awsvpcConfiguration={subnets=[subnet-default]}"


class Commands:
    """The tests; version by version they differ in nothing but the program."""

    def setUp(self):
        self.environment = shared().environment()
        self.url = self.environment["BERTH_ENDPOINT_URL"]

    def run_aws(self, *arguments, environment=None):
        return subprocess.run(
            [*self.program(), *arguments], capture_output=True, text=True, timeout=COMMAND_SECONDS,
            env=self.environment | (environment or {}), stdin=subprocess.DEVNULL,
        )

    def ecs(self, *arguments):
        """The answer, parsed; `{}` where it prints nothing."""
        done = self.run_aws("ecs", *arguments, "--output", "json")
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return json.loads(done.stdout or "{}")

    def text(self, *arguments):
        """One value of the answer, as scripts take it."""
        done = self.run_aws("ecs", *arguments, "--output", "text")
        self.assertEqual(done.returncode, 0, f"{arguments}: {done.stderr}")
        return done.stdout.strip()

    def register(self, body):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(body, file)
            file.flush()
            return self.text(
                "register-task-definition", "--cli-input-json", f"file://{file.name}",
                "--query", "taskDefinition.taskDefinitionArn",
            )

    def run_task(self, name, *more):
        return self.ecs("run-task", "--task-definition", name, "--network-configuration", SUBNETS, *more)

    def test_program_is_the_version_that_is_meant(self):
        """the program under test is the major version it is taken for"""
        said = self.run_aws("--version").stdout
        self.assertRegex(said, rf"^aws-cli/{self.VERSION}\.")

    def test_task_life(self):
        """register, run, wait, describe, reach, list, stop, wait: the whole life of a two-container task"""
        family = f"life{self.VERSION}"
        arn = self.register(two_containers(family))
        self.assertRegex(arn, rf"^arn:aws:ecs:us-east-1:\d{{12}}:task-definition/{family}:1$")
        described = self.ecs("describe-task-definition", "--task-definition", family)["taskDefinition"]
        self.assertEqual((described["taskDefinitionArn"], described["status"]), (arn, "ACTIVE"))
        self.assertEqual(described["containerDefinitions"][1]["dependsOn"][0]["condition"], "START")

        answer = self.run_task(family, "--launch-type", "EC2", "--started-by", family, "--count", "1")
        self.assertEqual(answer["failures"], [])
        task = answer["tasks"][0]["taskArn"]
        self.assertEqual(answer["tasks"][0]["desiredStatus"], "RUNNING")
        self.text("wait", "tasks-running", "--tasks", task)

        running = self.ecs("describe-tasks", "--tasks", task)["tasks"][0]
        self.assertEqual((running["lastStatus"], running["connectivity"]), ("RUNNING", "CONNECTED"))
        self.assertEqual({one["lastStatus"] for one in running["containers"]}, {"RUNNING"})
        attachment = running["attachments"][0]
        details = {one["name"]: one["value"] for one in attachment["details"]}
        address = details["privateIPv4Address"]
        self.assertEqual((attachment["type"], attachment["status"]), ("ElasticNetworkInterface", "ATTACHED"))
        self.assertEqual(details["subnetId"], "subnet-default")
        self.assertRegex(details["macAddress"], "^([0-9a-f]{2}:){5}[0-9a-f]{2}$")
        for one in running["containers"]:
            self.assertEqual(one["networkInterfaces"][0]["privateIpv4Address"], address)
        self.assertEqual(self.heard(address), f"from-{family}\n")

        self.assertEqual(self.ecs("list-tasks", "--family", family)["taskArns"], [task])
        self.assertEqual(self.text("list-tasks", "--started-by", family, "--query", "taskArns[0]"), task)
        stopping = self.ecs("stop-task", "--task", task, "--reason", "seen enough")["task"]
        self.assertEqual((stopping["desiredStatus"], stopping["stopCode"]), ("STOPPED", "UserInitiated"))
        self.text("wait", "tasks-stopped", "--tasks", task)
        stopped = self.ecs("describe-tasks", "--tasks", task)["tasks"][0]
        self.assertEqual((stopped["lastStatus"], stopped["stoppedReason"]), ("STOPPED", "seen enough"))
        self.assertEqual([one["exitCode"] for one in stopped["containers"]], [0, 0])
        self.assertEqual(stopped["attachments"][0]["status"], "DELETED")
        self.assertEqual(self.ecs("list-tasks", "--family", family)["taskArns"], [])
        self.assertEqual(
            self.ecs("list-tasks", "--family", family, "--desired-status", "STOPPED")["taskArns"], [task]
        )

    def heard(self, address):
        """What the task says to somebody on the host; its server listens to one after the other."""

        def ask():
            try:
                with socket.create_connection((address, 8080), timeout=5) as stream:
                    return stream.makefile().read()
            except OSError:
                return None

        return until(f"an answer of {address}", ask)

    def test_clusters(self):
        """create-, describe-, list- and delete-cluster"""
        name = f"extra{self.VERSION}"
        created = self.ecs("create-cluster", "--cluster-name", name, "--tags", "key=team,value=shop")["cluster"]
        self.assertEqual((created["status"], created["tags"]), ("ACTIVE", [{"key": "team", "value": "shop"}]))
        self.assertIn(created["clusterArn"], self.ecs("list-clusters")["clusterArns"])
        answer = self.ecs(
            "describe-clusters", "--clusters", name, "default", "nowhere", "--include", "STATISTICS", "SETTINGS"
        )
        self.assertEqual([one["clusterName"] for one in answer["clusters"]], [name, "default"])
        self.assertEqual([one["registeredContainerInstancesCount"] for one in answer["clusters"]], [0, 1])
        self.assertEqual(answer["failures"][0]["reason"], "MISSING")
        self.assertEqual(self.ecs("delete-cluster", "--cluster", name)["cluster"]["status"], "INACTIVE")
        self.assertNotIn(created["clusterArn"], self.ecs("list-clusters")["clusterArns"])

    def test_task_definitions(self):
        """revisions are listed in both orders, families by prefix; a deregistered one is INACTIVE and does not run"""
        family = f"revised{self.VERSION}"
        arns = [self.register(definition(family)) for _ in range(3)]
        listed = ("list-task-definitions", "--family-prefix", family)
        self.assertEqual(self.ecs(*listed)["taskDefinitionArns"], arns)
        self.assertEqual(self.ecs(*listed, "--sort", "DESC")["taskDefinitionArns"], arns[::-1])
        self.assertEqual(self.ecs(*listed, "--page-size", "1")["taskDefinitionArns"], arns)
        families = self.ecs("list-task-definition-families", "--family-prefix", "revised", "--status", "ACTIVE")
        self.assertIn(family, families["families"])
        gone = self.ecs("deregister-task-definition", "--task-definition", f"{family}:2")["taskDefinition"]
        self.assertEqual(gone["status"], "INACTIVE")
        self.assertEqual(self.ecs(*listed, "--status", "INACTIVE")["taskDefinitionArns"], [arns[1]])
        refused = self.run_aws("ecs", "run-task", "--task-definition", f"{family}:2")
        self.assertEqual(refused.returncode, self.REFUSED)
        self.assertIn(f"TaskDefinition is inactive: {family}:2", refused.stderr)

    def test_container_instances(self):
        """a node is listed, described, found by attribute, drained and made ACTIVE again"""
        family = f"placed{self.VERSION}"
        self.register(definition(family))
        node = self.text("list-container-instances", "--query", "containerInstanceArns[0]")
        described = self.ecs("describe-container-instances", "--container-instances", node)
        described = described["containerInstances"][0]
        self.assertEqual((described["status"], described["agentConnected"]), ("ACTIVE", True))
        registered = {one["name"]: one for one in described["registeredResources"]}
        self.assertEqual(registered["CPU"]["integerValue"] % 1024, 0)
        self.assertGreater(registered["MEMORY"]["integerValue"], 0)

        attribute = f"rack{self.VERSION}"
        target = f"name={attribute},targetType=container-instance,targetId={node}"
        self.ecs("put-attributes", "--attributes", f"{target},value=a")
        found = self.ecs(
            "list-attributes", "--target-type", "container-instance", "--attribute-name", attribute,
            "--attribute-value", "a",
        )["attributes"]
        self.assertEqual([(one["targetId"], one["value"]) for one in found], [(node, "a")])
        filtered = self.ecs("list-container-instances", "--filter", f"attribute:{attribute} == b")
        self.assertEqual(filtered["containerInstanceArns"], [])
        there, elsewhere = (
            self.run_task(family, "--placement-constraints", f"type=memberOf,expression=attribute:{attribute}=={value}")
            for value in "ab"
        )
        self.assertEqual(there["tasks"][0]["containerInstanceArn"], node)
        self.assertEqual((elsewhere["tasks"], len(elsewhere["failures"])), ([], 1))
        self.ecs("delete-attributes", "--attributes", target)
        task = there["tasks"][0]["taskArn"]

        state = ("update-container-instances-state", "--container-instances", node, "--status")
        try:
            drained = self.ecs(*state, "DRAINING")["containerInstances"][0]
            self.assertEqual(drained["status"], "DRAINING")
            refused = self.run_task(family)
            self.assertEqual((refused["tasks"], len(refused["failures"])), ([], 1))
            self.assertIn("DRAINING", json.dumps(refused["failures"]))
            # What runs goes on.
            listed = self.ecs("list-tasks", "--container-instance", node, "--family", family)
            self.assertEqual(listed["taskArns"], [task])
        finally:
            self.assertEqual(self.ecs(*state, "ACTIVE")["containerInstances"][0]["status"], "ACTIVE")
        again = self.run_task(family)
        self.assertEqual(again["failures"], [])
        for one in [task, again["tasks"][0]["taskArn"]]:
            self.ecs("stop-task", "--task", one)

    def test_tags(self):
        """tag-resource, list-tags-for-resource and untag-resource on a task definition"""
        arn = self.register(definition(f"tagged{self.VERSION}", tags=[{"key": "team", "value": "shop"}]))
        self.ecs("tag-resource", "--resource-arn", arn, "--tags", "key=stage,value=test")
        tags = self.ecs("list-tags-for-resource", "--resource-arn", arn)["tags"]
        self.assertEqual({one["key"]: one["value"] for one in tags}, {"team": "shop", "stage": "test"})
        self.ecs("untag-resource", "--resource-arn", arn, "--tag-keys", "team")
        tags = self.ecs("describe-task-definition", "--task-definition", arn, "--include", "TAGS")["tags"]
        self.assertEqual(tags, [{"key": "stage", "value": "test"}])

    def test_identity(self):
        """sts get-caller-identity says whose key it is"""
        done = self.run_aws("sts", "get-caller-identity", "--endpoint-url", self.url, "--output", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        said, key = json.loads(done.stdout), self.environment["AWS_ACCESS_KEY_ID"]
        self.assertRegex(said["Account"], r"^\d{12}$")
        self.assertEqual((said["UserId"], said["Arn"]), (key, f"arn:aws:iam::{said['Account']}:user/{key}"))

    def test_bad_input(self):
        """each mistake ends with the exit code that scripts know, a typed error, and words that say what is wrong"""
        family = f"bad{self.VERSION}"
        self.register(definition(family))
        run = ("run-task", "--task-definition", family, "--network-configuration")
        missing = "arn:aws:ecs:us-east-1:000000000000:task/default/" + "0" * 32
        refused = [
            ({"AWS_SECRET_ACCESS_KEY": "wrong"}, ("list-tasks",), "InvalidSignatureException", "secret access key"),
            ({"AWS_ACCESS_KEY_ID": "AKIAN"}, ("list-tasks",), "UnrecognizedClientException", "AKIAN is not known"),
            ({"AWS_SESSION_TOKEN": "t"}, ("list-tasks",), "UnrecognizedClientException", "Unset AWS_SESSION_TOKEN"),
            ({"AWS_DEFAULT_REGION": "eu-west-1"}, ("list-tasks",), "InvalidSignatureException", "AWS_REGION=us-east-1"),
            ({}, ("list-tasks", "--cluster", "nowhere"), "ClusterNotFoundException", "nowhere"),
            ({}, ("list-tasks", "--desired-status", "BOGUS"), "InvalidParameterException", "'BOGUS'"),
            ({}, ("describe-task-definition", "--task-definition", "nothing"),
             "ClientException", "Unable to describe task definition"),
            ({}, ("create-service", "--service-name", "s", "--task-definition", family),
             "ClientException", "CreateService is not supported by this endpoint"),
            ({}, ("run-task", "--task-definition", "nothing:7"), "ClientException", "not found: nothing:7"),
            ({}, run[:-1], "InvalidParameterException", "subnet-default"),
            ({}, (*run, SUBNETS, "--count", "11"), "InvalidParameterException", "count: must be between 1 and 10"),
            ({}, (*run, "awsvpcConfiguration={subnets=[subnet-1]}"), "InvalidParameterException",
             "networkConfiguration.awsvpcConfiguration.subnets: The subnet ID 'subnet-1' does not exist"),
        ]
        cases = [(*case, self.REFUSED) for case in refused] + [
            ({}, ("wait", "tasks-running", "--tasks", missing), "TasksRunning", "MISSING", WAITER_FAILED),
            ({}, ("stop-task",), "--task", "required", self.USAGE),
        ]
        with ThreadPoolExecutor(4) as pool:
            outcomes = pool.map(lambda case: self.run_aws("ecs", *case[1], environment=case[0]), cases)
            for (environment, arguments, kind, words, code), done in zip(cases, outcomes):
                with self.subTest(arguments=arguments, environment=environment):
                    self.assertEqual(done.returncode, code, done.stderr)
                    self.assertIn(kind, done.stderr)
                    self.assertIn(words, done.stderr)
                    self.assertEqual(done.stdout, "")

    def test_bad_definition(self):
        """every problem of a definition is named by its path, at once; nothing is registered"""
        body = definition(f"worse{self.VERSION}", cpu="many")
        body["containerDefinitions"][0] |= {"links": ["other"], "memory": 3, "healthCheck": {"command": ["CMD", "x"], "interval": 3}}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(body, file)
            file.flush()
            done = self.run_aws("ecs", "register-task-definition", "--cli-input-json", f"file://{file.name}")
        self.assertEqual(done.returncode, self.REFUSED)
        for path in ["cpu", "containerDefinitions[0].links", "containerDefinitions[0].memory",
                     "containerDefinitions[0].healthCheck.interval"]:
            self.assertIn(f"{path}: ", done.stderr)
        families = self.ecs("list-task-definition-families", "--family-prefix", "worse")["families"]
        self.assertNotIn(body["family"], families)


class Version1(Commands, unittest.TestCase):
    VERSION = 1
    # What it ends with when the service refused, and when the request could not even be made.
    REFUSED, USAGE = 255, 2

    def program(self):
        return [ROOT / "target/venv/bin/aws"]


class Version2(Commands, unittest.TestCase):
    VERSION = 2
    REFUSED, USAGE = 254, 252

    def program(self):
        return ["/usr/bin/aws", "--endpoint-url", self.url]
