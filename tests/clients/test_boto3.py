"""boto3, unmodified: every operation that is served, with each raw answer held against botocore's model of ECS."""

import datetime
import json
import subprocess
import sys
import threading
import unittest
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError

import host
import shapes
from definitions import NETWORK, WAIT, container, definition, two_containers
from dev import Dev, shared

SERVED = {
    "CreateCluster", "DescribeClusters", "ListClusters", "DeleteCluster",
    "RegisterTaskDefinition", "DescribeTaskDefinition", "ListTaskDefinitions", "ListTaskDefinitionFamilies",
    "DeregisterTaskDefinition",
    "RunTask", "StartTask", "StopTask", "DescribeTasks", "ListTasks", "GetTaskProtection", "UpdateTaskProtection",
    "ListContainerInstances", "DescribeContainerInstances", "UpdateContainerInstancesState",
    "DeregisterContainerInstance",
    "TagResource", "UntagResource", "ListTagsForResource",
    "PutAttributes", "DeleteAttributes", "ListAttributes",
}
# Operations of ECS when this was written. What a later botocore adds, no table here can know.
MODELLED = 88
SECONDS = 10
# Waiters ask every 6 s unless told otherwise.
OFTEN = {"Delay": 1, "MaxAttempts": 30}


def client_of(node, service="ecs", **more):
    environment = node.environment()
    return boto3.session.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=more.pop("secret", environment["AWS_SECRET_ACCESS_KEY"]),
        region_name="us-east-1",
    ).client(
        service, endpoint_url=environment["BERTH_ENDPOINT_URL"],
        config=Config(
            connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 1}, proxies={}, **more
        ),
    )


class Boto3(unittest.TestCase):
    """Every answer that a test sees must be as the model has it."""

    # Operations of which some test has seen an answer.
    seen = set()

    def setUp(self):
        self.use(shared())

    def use(self, node):
        self.ecs = client_of(node)
        self.checker = shapes.Checker(self.ecs)

    def tearDown(self):
        Boto3.seen |= self.checker.seen
        self.assertEqual(self.checker.problems, [])

    def register(self, body):
        return self.ecs.register_task_definition(**body)["taskDefinition"]["taskDefinitionArn"]

    def run_tasks(self, name, **more):
        answer = self.ecs.run_task(taskDefinition=name, networkConfiguration=NETWORK, **more)
        self.assertEqual(answer["failures"], [])
        return [task["taskArn"] for task in answer["tasks"]]

    def stop(self, *tasks):
        for task in tasks:
            self.ecs.stop_task(task=task)
        self.ecs.get_waiter("tasks_stopped").wait(tasks=list(tasks), WaiterConfig=OFTEN)

    def node(self):
        return self.ecs.list_container_instances()["containerInstanceArns"][0]

    def refused(self, name, call, **arguments):
        """The words of the exception, which must be caught by its own class."""
        with self.assertRaises(getattr(self.ecs.exceptions, name)) as caught:
            call(**arguments)
        return caught.exception.response["Error"]["Message"]


class Answers(Boto3):
    def test_clusters(self):
        """clusters: create twice, describe with everything included, list, tag, delete; a deleted name is free again"""
        settings = [{"name": "containerInsights", "value": "enabled"}]
        tags = [{"key": "a", "value": "1"}]
        created = self.ecs.create_cluster(clusterName="b3", tags=tags, settings=settings)["cluster"]
        self.assertEqual(self.ecs.create_cluster(clusterName="b3")["cluster"], created)
        include = ["ATTACHMENTS", "CONFIGURATIONS", "SETTINGS", "STATISTICS", "TAGS"]
        answer = self.ecs.describe_clusters(clusters=["b3", "default", "missing"], include=include)
        described = {one["clusterName"]: one for one in answer["clusters"]}
        self.assertEqual((described["b3"]["settings"], described["b3"]["tags"]), (settings, tags))
        self.assertEqual(described["default"]["registeredContainerInstancesCount"], 1)
        self.assertEqual([one["reason"] for one in answer["failures"]], ["MISSING"])
        arn = created["clusterArn"]
        self.ecs.tag_resource(resourceArn=arn, tags=[{"key": "b", "value": "2"}])
        self.ecs.untag_resource(resourceArn=arn, tagKeys=["a"])
        self.assertEqual(self.ecs.list_tags_for_resource(resourceArn=arn)["tags"], [{"key": "b", "value": "2"}])
        self.assertEqual(self.ecs.delete_cluster(cluster=arn)["cluster"]["status"], "INACTIVE")
        self.refused("ClusterNotFoundException", self.ecs.list_tasks, cluster="b3")
        self.assertEqual(self.ecs.create_cluster(clusterName="b3")["cluster"]["tags"], [])
        self.ecs.delete_cluster(cluster="b3")

    def test_task_definition_comes_back(self):
        """every field that is honoured comes back as it was given, with what ECS adds"""
        full = container(
            "main", WAIT, cpu=64, memory=48, memoryReservation=32, entryPoint=["sh", "-c"], workingDirectory="/tmp",
            user="web", environment=[{"name": "A", "value": "1"}], dockerLabels={"team": "shop"}, startTimeout=30,
            readonlyRootFilesystem=True, ulimits=[{"name": "nofile", "softLimit": 64, "hardLimit": 128}],
            portMappings=[{"containerPort": 8080, "protocol": "tcp", "name": "web"}],
            logConfiguration={"logDriver": "json-file", "options": {"max-size": "1m", "max-file": "2"}},
            dependsOn=[{"containerName": "init", "condition": "SUCCESS"}],
        )
        init = container("init", "true") | {"essential": False}
        body = definition("b3-full", full, init, requiresCompatibilities=["EC2"], tags=[{"key": "k", "value": "v"}])
        registered = self.ecs.register_task_definition(**body)
        described = self.ecs.describe_task_definition(taskDefinition="b3-full", include=["TAGS"])
        for answer in (registered, described):
            echo = answer["taskDefinition"]
            self.assertEqual(answer["tags"], body["tags"])
            self.assertEqual((echo["family"], echo["status"], echo["revision"]), ("b3-full", "ACTIVE", 1))
            self.assertEqual((echo["cpu"], echo["memory"], echo["networkMode"]), ("128", "64", "awsvpc"))
            self.assertIsInstance(echo["registeredAt"], datetime.datetime)
            self.assertIn("EC2", echo["compatibilities"])
            for given, kept in zip(body["containerDefinitions"], echo["containerDefinitions"], strict=True):
                ports = [port | {"hostPort": port["containerPort"]} for port in given.get("portMappings", [])]
                expected = given | {"portMappings": ports}
                self.assertEqual({name: kept[name] for name in expected}, expected)
                self.assertEqual(kept["volumesFrom"], [])
        gone = self.ecs.deregister_task_definition(taskDefinition="b3-full:1")["taskDefinition"]
        self.assertEqual(gone["status"], "INACTIVE")
        self.assertIsInstance(gone["deregisteredAt"], datetime.datetime)

    def test_overrides(self):
        """overrides are what the container sees: command, environment, limit; and what the answer shows"""
        given = container(
            "main", "exit 1", memory=32, environment=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
        )
        name = self.register(definition("b3-overrides", given, memory="128"))
        limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null"
        script = f'test "$A$B$C" = 923 && test "$({limit})" = {48 << 20} && exit 7'
        change = {
            "name": "main", "command": ["sh", "-c", script], "memory": 48,
            "environment": [{"name": "C", "value": "3"}, {"name": "A", "value": "9"}],
        }
        [task] = self.run_tasks(name, overrides={"cpu": "256", "containerOverrides": [change]})
        self.ecs.get_waiter("tasks_stopped").wait(tasks=[task], WaiterConfig=OFTEN)
        described = self.ecs.describe_tasks(tasks=[task])["tasks"][0]
        self.assertEqual(described["containers"][0].get("exitCode"), 7, described)
        self.assertEqual(described["overrides"]["containerOverrides"], [change])
        self.assertEqual((described["overrides"]["cpu"], described["cpu"], described["memory"]), ("256", "256", "128"))
        self.assertEqual(described["containers"][0]["memory"], "48")

    def test_task_life(self):
        """a task from PROVISIONING to STOPPED: waiters, statuses, addresses, times in order, tags, filters"""
        self.register(two_containers("b3-life"))
        before = datetime.datetime.now(datetime.timezone.utc)
        tasks = self.run_tasks(
            "b3-life", count=2, startedBy="b3", group="b3-group", launchType="EC2", enableECSManagedTags=True,
            tags=[{"key": "run", "value": "1"}], placementStrategy=[{"type": "binpack", "field": "memory"}],
            placementConstraints=[{"type": "memberOf", "expression": "attribute:ecs.cpu-architecture exists"}],
        )
        first = self.ecs.describe_tasks(tasks=tasks)["tasks"]
        for task in first:
            self.assertIn(task["lastStatus"], ("PROVISIONING", "PENDING", "ACTIVATING", "RUNNING"))
        self.ecs.get_waiter("tasks_running").wait(tasks=tasks, WaiterConfig=OFTEN)
        answer = self.ecs.describe_tasks(tasks=[*tasks, "0" * 32], include=["TAGS"])
        self.assertEqual([one["reason"] for one in answer["failures"]], ["MISSING"])
        addresses = set()
        for task in answer["tasks"]:
            self.assertEqual((task["group"], task["startedBy"], task["launchType"]), ("b3-group", "b3", "EC2"))
            tags = {one["key"]: one["value"] for one in task["tags"]}
            self.assertEqual(tags, {"run": "1", "aws:ecs:clusterName": "default"})
            times = [task[name] for name in ("createdAt", "pullStartedAt", "pullStoppedAt", "startedAt")]
            self.assertEqual(times, sorted(times))
            self.assertLess(before - datetime.timedelta(seconds=1), times[0])
            for one in task["containers"]:
                addresses.add(one["networkInterfaces"][0]["privateIpv4Address"])
                self.assertRegex(one["imageDigest"], "^sha256:[0-9a-f]{64}$")
                self.assertTrue(one["runtimeId"])
        self.assertEqual(len(addresses), 2)
        for ask, more in (
            (self.ecs.get_task_protection, {}),
            (self.ecs.update_task_protection, {"protectionEnabled": True, "expiresInMinutes": 60}),
        ):
            answer = ask(cluster="default", tasks=tasks, **more)
            self.assertEqual([one["reason"] for one in answer["failures"]], ["TASK_NOT_VALID"] * 2)
            self.assertEqual(answer["protectedTasks"], [])
        self.assertEqual(set(self.ecs.list_tasks(startedBy="b3", launchType="EC2")["taskArns"]), set(tasks))
        self.assertEqual(self.ecs.list_tasks(family="b3-life", desiredStatus="STOPPED")["taskArns"], [])

        stopped = self.ecs.stop_task(task=tasks[0], reason="b3 is done")["task"]
        self.assertEqual(stopped["desiredStatus"], "STOPPED")
        self.stop(*tasks)
        for task in self.ecs.describe_tasks(tasks=tasks)["tasks"]:
            times = [task[name] for name in ("startedAt", "stoppingAt", "executionStoppedAt", "stoppedAt")]
            self.assertEqual(times, sorted(times))
            self.assertTrue(all(isinstance(at, datetime.datetime) for at in times))
            self.assertEqual(task["stopCode"], "UserInitiated")
            self.assertEqual([one["exitCode"] for one in task["containers"]], [0, 0])
        self.assertEqual(set(self.ecs.list_tasks(startedBy="b3", desiredStatus="STOPPED")["taskArns"]), set(tasks))

    def test_sdk_in_a_task(self):
        """the SDK's own reader of container metadata, and curl, inside of a container find out what the task is"""
        # Both are the host's, which the container sees below /host.
        main = container("main", WAIT, mountPoints=[{"sourceVolume": "host", "containerPath": "/host", "readOnly": True}])
        self.register(definition("b3-metadata", main, volumes=[{"name": "host", "host": {"sourcePath": "/"}}]))
        [task] = self.run_tasks("b3-metadata")
        self.ecs.get_waiter("tasks_running").wait(tasks=[task], WaiterConfig=OFTEN)
        pid = host.container_pids(shared().instance, task)[0]
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        uri = dict(variable.split("=", 1) for variable in variables if variable)["ECS_CONTAINER_METADATA_URI_V4"]
        script = (
            "import json, sys; from botocore.utils import ContainerMetadataFetcher; "
            "print(json.dumps(ContainerMetadataFetcher().retrieve_full_uri(sys.argv[1])))"
        )
        inside = ["nsenter", f"--target={pid}", "--all", "--root", "chroot", "/host"]
        for command in [sys.executable, "-c", script], ["/usr/bin/curl", "--silent", "--fail"]:
            command = [*inside, *command, f"{uri}/task"]
            answer = subprocess.run(command, capture_output=True, check=True, timeout=SECONDS)
            document = json.loads(answer.stdout)
            self.assertEqual((document["TaskARN"], document["Family"]), (task, "b3-metadata"))
        self.stop(task)

    def test_task_that_ends_by_itself(self):
        """an exit code, a failed start and a placement that fits nowhere are told as ECS tells them"""
        self.register(definition("b3-exit", container("main", "exit 3")))
        broken = container("main", WAIT) | {"image": "127.0.0.1:1/no-such:image"}
        self.register(definition("b3-pull", broken))
        self.register(definition("b3-huge", cpu="131072"))
        (ended,), (unpulled,) = self.run_tasks("b3-exit"), self.run_tasks("b3-pull")
        self.ecs.get_waiter("tasks_stopped").wait(tasks=[ended, unpulled], WaiterConfig=OFTEN)
        ended, unpulled = self.ecs.describe_tasks(tasks=[ended, unpulled])["tasks"]
        self.assertEqual((ended["stopCode"], ended["containers"][0]["exitCode"]), ("EssentialContainerExited", 3))
        self.assertEqual(unpulled["stopCode"], "TaskFailedToStart")
        self.assertRegex(unpulled["stoppedReason"], "^CannotPullContainerError.*127.0.0.1:1")
        answer = self.ecs.run_task(taskDefinition="b3-huge", networkConfiguration=NETWORK)
        self.assertEqual(answer["tasks"], [])
        self.assertEqual([one["reason"] for one in answer["failures"]], ["RESOURCE:CPU"])

    def test_fargate(self):
        """a definition made for FARGATE runs on a node of one's own"""
        body = definition("b3-fargate-run", cpu=".25 vCPU", memory="0.5 GB", requiresCompatibilities=["FARGATE"])
        self.register(body)
        (task,) = self.run_tasks("b3-fargate-run", launchType="FARGATE", platformVersion="LATEST")
        self.ecs.get_waiter("tasks_running").wait(tasks=[task], WaiterConfig=OFTEN)
        described = self.ecs.describe_tasks(tasks=[task])["tasks"][0]
        self.assertEqual([described[name] for name in ("launchType", "cpu", "memory")], ["FARGATE", "256", "512"])
        self.stop(task)

    def test_host_mode(self):
        """a task in host mode has its ports in networkBindings, and no interface"""
        port = 18_000 + shared().process.pid % 2_000
        self.register(
            definition("b3-host", container("main", WAIT, portMappings=[{"containerPort": port}]), mode="host")
        )
        answer = self.ecs.run_task(taskDefinition="b3-host")
        self.assertEqual(answer["failures"], [])
        arn = answer["tasks"][0]["taskArn"]
        self.ecs.get_waiter("tasks_running").wait(tasks=[arn], WaiterConfig=OFTEN)
        task = self.ecs.describe_tasks(tasks=[arn])["tasks"][0]
        binding = task["containers"][0]["networkBindings"][0]
        self.assertEqual((binding["containerPort"], binding["hostPort"], binding["protocol"]), (port, port, "tcp"))
        self.assertEqual((task["attachments"], task["containers"][0]["networkInterfaces"]), ([], []))
        again = self.ecs.run_task(taskDefinition="b3-host")
        self.assertEqual([one["reason"] for one in again["failures"]], ["RESOURCE:PORTS"])
        self.stop(arn)

    def test_container_instances(self):
        """nodes: list, describe with everything included, attributes, resources that a task takes, start_task, drain"""
        node = self.node()
        include = ["TAGS", "CONTAINER_INSTANCE_HEALTH"]
        answer = self.ecs.describe_container_instances(containerInstances=[node, "0" * 32], include=include)
        self.assertEqual([one["reason"] for one in answer["failures"]], ["MISSING"])
        described = answer["containerInstances"][0]
        self.assertEqual((described["status"], described["agentConnected"]), ("ACTIVE", True))
        self.assertIsInstance(described["registeredAt"], datetime.datetime)
        self.assertIn(described["healthStatus"]["overallStatus"], ("OK", "INITIALIZING"))
        self.assertTrue(described["versionInfo"]["agentVersion"])

        attribute = {"name": "b3.zone", "value": "x y", "targetType": "container-instance", "targetId": node}
        self.assertEqual(self.ecs.put_attributes(attributes=[attribute])["attributes"], [attribute])
        found = self.ecs.list_attributes(targetType="container-instance", attributeName="b3.zone")["attributes"]
        self.assertEqual(found, [attribute])
        self.ecs.delete_attributes(attributes=[attribute])
        found = self.ecs.list_attributes(targetType="container-instance", attributeName="b3.zone")["attributes"]
        self.assertEqual(found, [])

        def free(name):
            answer = self.ecs.describe_container_instances(containerInstances=[node])["containerInstances"][0]
            return next(one["integerValue"] for one in answer["remainingResources"] if one["name"] == name)

        self.register(definition("b3-node", cpu="256", memory="96"))
        cpu, memory = free("CPU"), free("MEMORY")
        started = self.ecs.start_task(
            taskDefinition="b3-node", containerInstances=[node, "0" * 32], networkConfiguration=NETWORK
        )
        self.assertEqual([one["reason"] for one in started["failures"]], ["MISSING"])
        task = started["tasks"][0]["taskArn"]
        self.assertEqual((free("CPU"), free("MEMORY")), (cpu - 256, memory - 96))
        try:
            answer = self.ecs.update_container_instances_state(containerInstances=[node], status="DRAINING")
            self.assertEqual(answer["containerInstances"][0]["status"], "DRAINING")
            self.assertEqual(self.ecs.list_container_instances(status="ACTIVE")["containerInstanceArns"], [])
            self.assertEqual(self.ecs.list_container_instances(status="DRAINING")["containerInstanceArns"], [node])
        finally:
            self.ecs.update_container_instances_state(containerInstances=[node], status="ACTIVE")
        self.ecs.tag_resource(resourceArn=task, tags=[{"key": "late", "value": "yes"}])
        self.assertEqual(self.ecs.list_tags_for_resource(resourceArn=task)["tags"], [{"key": "late", "value": "yes"}])
        self.stop(task)
        self.assertEqual((free("CPU"), free("MEMORY")), (cpu, memory))

    def test_identity(self):
        """STS says whose key it is; a wrong key is refused in STS's own words"""
        said = client_of(shared(), "sts").get_caller_identity()
        self.assertTrue(said["Arn"].endswith(f":user/{said['UserId']}"), said)
        with self.assertRaises(ClientError) as caught:
            client_of(shared(), "sts", secret="wrong").get_caller_identity()
        self.assertEqual(caught.exception.response["Error"]["Code"], "SignatureDoesNotMatch")


class Errors(Boto3):
    def test_exceptions_are_typed(self):
        """each refusal is caught by the class that the model has for it, and says what is wrong"""
        ecs, node = self.ecs, self.node()
        self.register(definition("b3-bad"))
        run = {"taskDefinition": "b3-bad", "networkConfiguration": NETWORK}
        self.register(definition("b3-fargate", cpu="256", memory="512", requiresCompatibilities=["FARGATE"]))
        fargate = run | {"taskDefinition": "b3-fargate", "launchType": "FARGATE"}
        attribute = {"name": "n", "targetType": "container-instance", "targetId": node}
        attributes = [attribute | {"name": f"n{number}"} for number in range(10)]
        register, put = ecs.register_task_definition, ecs.put_attributes
        put(attributes=attributes)
        self.addCleanup(ecs.delete_attributes, attributes=attributes)
        stranger = "arn:aws:ecs:us-east-1:999999999999:cluster/default"
        many = [{"key": str(number), "value": ""} for number in range(51)]

        def awsvpc(**more):
            return run | {"networkConfiguration": {"awsvpcConfiguration": {"subnets": ["subnet-default"]} | more}}

        for name, call, arguments, words in [
            ("ClusterNotFoundException", ecs.run_task, run | {"cluster": "nowhere"}, "nowhere"),
            ("ClusterNotFoundException", ecs.describe_tasks, {"cluster": "nowhere", "tasks": ["0" * 32]}, "nowhere"),
            ("ClusterNotFoundException", ecs.delete_cluster, {"cluster": "nowhere"}, "nowhere"),
            ("ClusterContainsContainerInstancesException", ecs.delete_cluster, {"cluster": "default"}, "Instances"),
            ("InvalidParameterException", ecs.describe_clusters, {"clusters": [stranger]}, "999999999999"),
            ("InvalidParameterException", ecs.create_cluster, {"clusterName": "a b"}, "clusterName"),
            ("InvalidParameterException", ecs.list_tasks, {"desiredStatus": "BOGUS"}, "desiredStatus: 'BOGUS'"),
            ("InvalidParameterException", ecs.list_tasks, {"nextToken": "!"}, "nextToken"),
            ("InvalidParameterException", ecs.list_clusters, {"maxResults": 101}, "maxResults"),
            ("InvalidParameterException", ecs.stop_task, {"task": "0" * 32}, "not found"),
            ("InvalidParameterException", ecs.run_task, awsvpc(subnets=["subnet-1"]), "subnet-1"),
            ("InvalidParameterException", ecs.run_task, awsvpc(securityGroups=["sg-1"]), "sg-1"),
            ("InvalidParameterException", ecs.run_task, {"taskDefinition": "b3-bad"}, "subnet-default"),
            ("InvalidParameterException", ecs.run_task, run | {"enableExecuteCommand": True}, "enableExecuteCommand"),
            ("InvalidParameterException", ecs.run_task, run | {"overrides": {"cpu": "1"}}, "overrides.cpu"),
            ("InvalidParameterException", ecs.run_task, run | {"tags": many}, "tags"),
            ("InvalidParameterException", ecs.run_task, run | {"placementConstraints": [
                {"type": "memberOf", "expression": "attribute:x =="}]}, "placementConstraints[0].expression"),
            ("InvalidParameterException", ecs.run_task, run | {"launchType": "FARGATE"}, "launch_type FARGATE"),
            ("PlatformUnknownException", ecs.run_task, fargate | {"platformVersion": "0.1"}, "0.1"),
            ("ClientException", ecs.run_task, run | {"taskDefinition": "nothing"}, "nothing"),
            ("ClientException", ecs.describe_task_definition, {"taskDefinition": "nothing"}, "Unable to describe"),
            ("ClientException", ecs.deregister_task_definition, {"taskDefinition": "nothing:1"}, "nothing:1"),
            ("ClientException", register, definition("b3-x", cpu="a lot"), "cpu"),
            ("ClientException", register, definition("b3-x", enableFaultInjection=True), "enableFaultInjection: not supported: "),
            ("TargetNotFoundException", put, {"attributes": [attribute | {"targetId": "0" * 32}]}, "0000"),
            ("AttributeLimitExceededException", put, {"attributes": [attribute | {"name": "n10"}]}, "10"),
            ("ServiceNotFoundException", ecs.list_tasks, {"serviceName": "web"}, "web"),
        ]:
            with self.subTest(name, words=words):
                self.assertIn(words, self.refused(name, call, **arguments))

    def test_wrong_secret(self):
        """a wrong secret is refused by the signature it makes"""
        with self.assertRaises(ClientError) as caught:
            client_of(shared(), secret="wrong").list_clusters()
        self.assertEqual(caught.exception.response["Error"]["Code"], "InvalidSignatureException")

    def test_every_operation_of_the_model(self):
        """all operations of ECS, each called with the least it takes: served, or ClientException by name"""
        model = self.ecs.meta.service_model
        names = set(model.operation_names)
        self.assertGreaterEqual(len(names), MODELLED)
        self.assertLessEqual(SERVED, names)
        unknown, unsupported = set(), set()
        ecs = client_of(shared(), parameter_validation=False)
        checker = shapes.Checker(ecs)
        methods = {operation: method for method, operation in ecs.meta.method_to_api_mapping.items()}
        for name in sorted(names):
            call = getattr(ecs, methods[name])
            shape = model.operation_model(name).input_shape
            try:
                call(**(shapes.least(shape) if shape else {}))
                self.assertIn(name, SERVED)
            except ClientError as error:
                code, words = error.response["Error"]["Code"], error.response["Error"]["Message"]
                if code == "UnknownOperationException":
                    unknown.add(name)
                elif name not in SERVED:
                    unsupported.add(name)
                    with self.subTest(name):
                        self.assertIsInstance(error, ecs.exceptions.ClientException)
                        self.assertEqual(words, f"{name} is not supported by this endpoint")
        self.assertEqual(checker.problems, [])
        self.assertEqual(unsupported | unknown, names - SERVED)
        self.assertLessEqual(len(unknown), len(names) - MODELLED, unknown)

    def test_waiter_fails_on_missing(self):
        """tasks_running fails at once on a task that is MISSING, and on one that is STOPPED"""
        waiter = self.ecs.get_waiter("tasks_running")
        with self.assertRaises(WaiterError) as caught:
            waiter.wait(tasks=["0" * 32], WaiterConfig=OFTEN)
        self.assertIn("MISSING", str(caught.exception))
        self.register(definition("b3-short", container("main", "exit 0")))
        tasks = self.run_tasks("b3-short")
        self.ecs.get_waiter("tasks_stopped").wait(tasks=tasks, WaiterConfig=OFTEN)
        with self.assertRaises(WaiterError) as caught:
            waiter.wait(tasks=tasks, WaiterConfig=OFTEN)
        self.assertIn("STOPPED", str(caught.exception))


class Deregistered(Boto3):
    def setUp(self):
        self.own = Dev().start()
        self.addCleanup(self.own.discard)
        self.use(self.own)

    def test_deregister_container_instance(self):
        """a node with tasks is deregistered by force only; its tasks stop, and new ones find no node"""
        node = self.node()
        self.register(definition("b3-last"))
        (task,) = self.run_tasks("b3-last")
        self.ecs.get_waiter("tasks_running").wait(tasks=[task], WaiterConfig=OFTEN)
        words = self.refused(
            "InvalidParameterException", self.ecs.deregister_container_instance, containerInstance=node
        )
        self.assertIn("Found running tasks", words)
        gone = self.ecs.deregister_container_instance(containerInstance=node, force=True)["containerInstance"]
        self.assertEqual(gone["status"], "INACTIVE")
        self.assertEqual(self.ecs.list_container_instances()["containerInstanceArns"], [])
        self.ecs.get_waiter("tasks_stopped").wait(tasks=[task], WaiterConfig=OFTEN)
        answer = self.ecs.run_task(taskDefinition="b3-last", networkConfiguration=NETWORK)
        self.assertEqual((answer["tasks"], len(answer["failures"])), ([], 1))
        self.assertEqual(self.ecs.delete_cluster(cluster="default")["cluster"]["status"], "INACTIVE")
        self.assertEqual(self.own.stop(), 0, self.own.said())
        self.assertEqual(self.own.listing(), set())


class TheCheckItself(Boto3):
    def test_it_sees_what_is_wrong(self):
        """an unknown member, a wrong type, an unknown enum value, and a null are all seen"""
        shape = self.ecs.meta.service_model.operation_model("DescribeTasks").output_shape
        good = {"tasks": [{"taskArn": "a", "createdAt": 1.5, "launchType": "EC2", "tags": []}], "failures": []}
        self.assertEqual(shapes.problems(shape, good), [])
        task = {"taskArn": 1, "createdAt": "now", "launchType": "LORRY", "tags": None, "odd": 1}
        bad = {"tasks": [task], "failures": {}}
        self.assertEqual(
            {problem.split(":")[0] for problem in shapes.problems(shape, bad)},
            {f"answer.tasks[0].{name}" for name in task} | {"answer.failures"},
        )


class Repeated(Boto3):
    def test_client_token(self):
        """one clientToken gives one task, also to several callers at once; with other parameters a conflict"""
        self.register(definition("b3-token"))
        request = {"taskDefinition": "b3-token", "networkConfiguration": NETWORK, "clientToken": "b3/one+token"}
        answers, threads = [], []
        for _ in range(4):
            threads.append(threading.Thread(target=lambda: answers.append(self.ecs.run_task(**request))))
            threads[-1].start()
        for thread in threads:
            thread.join()
        answers.append(self.ecs.run_task(**request))
        arns = {task["taskArn"] for answer in answers for task in answer["tasks"]}
        self.assertEqual((len(answers), len(arns)), (5, 1))
        self.assertEqual(self.ecs.list_tasks(family="b3-token")["taskArns"], list(arns))
        self.refused("ConflictException", self.ecs.run_task, **request | {"count": 2})
        self.refused("InvalidParameterException", self.ecs.run_task, **request | {"clientToken": "with space"})
        self.assertEqual(len(self.ecs.list_tasks(family="b3-token")["taskArns"]), 1)
        self.stop(*arns)

    def test_without_a_token_every_call_is_its_own(self):
        """boto3 makes a clientToken for each call: two equal calls start two tasks"""
        self.register(definition("b3-twice"))
        tasks = self.run_tasks("b3-twice") + self.run_tasks("b3-twice")
        self.assertEqual(len(set(tasks)), 2)
        self.stop(*tasks)


class Pages(Boto3):
    def collect(self, name, field, **arguments):
        """All items, and the sizes of the pages."""
        pages = self.ecs.get_paginator(name).paginate(**arguments, PaginationConfig={"PageSize": 3})
        pages = [page[field] for page in pages]
        return [item for page in pages for item in page], [len(page) for page in pages]

    def test_task_definitions(self):
        """eleven revisions and four families come in pages of three, in both orders, each once"""
        arns = [self.register(definition("b3-pages")) for _ in range(11)]
        for sort, expected in [("ASC", arns), ("DESC", arns[::-1])]:
            which = {"familyPrefix": "b3-pages", "sort": sort}
            items, sizes = self.collect("list_task_definitions", "taskDefinitionArns", **which)
            self.assertEqual((items, sizes), (expected, [3, 3, 3, 2]))
        families = [f"b3-many-{letter}" for letter in "abcd"]
        for family in families:
            self.register(definition(family))
        items, sizes = self.collect("list_task_definition_families", "families", familyPrefix="b3-many-")
        self.assertEqual((items, sizes), (families, [3, 1]))

    def test_clusters_and_attributes(self):
        """list_clusters, list_container_instances and list_attributes in pages of three"""
        names = [f"b3-cluster-{number}" for number in range(5)]
        arns = {self.ecs.create_cluster(clusterName=name)["cluster"]["clusterArn"] for name in names}
        items, sizes = self.collect("list_clusters", "clusterArns")
        self.assertLessEqual(arns, set(items))
        self.assertEqual((len(items), len(set(items))), (sum(sizes), sum(sizes)))
        self.assertEqual(set(sizes[:-1]), {3})
        for name in names:
            self.ecs.delete_cluster(cluster=name)
        self.assertEqual(self.collect("list_container_instances", "containerInstanceArns")[1], [1])
        node = self.node()
        attributes = [
            {"name": f"page{number}", "targetId": node, "targetType": "container-instance"} for number in range(4)
        ]
        self.ecs.put_attributes(attributes=attributes)
        items, sizes = self.collect("list_attributes", "attributes", targetType="container-instance")
        self.assertEqual(set(sizes[:-1]), {3})
        self.assertLessEqual({one["name"] for one in attributes}, {one["name"] for one in items})
        self.ecs.delete_attributes(attributes=attributes)

    def test_tasks(self):
        """seven stopped tasks come in pages of three"""
        self.register(definition("b3-seven", container("main", "true"), mode="none"))
        answer = self.ecs.run_task(taskDefinition="b3-seven", count=7)
        self.assertEqual(answer["failures"], [])
        tasks = {task["taskArn"] for task in answer["tasks"]}
        self.ecs.get_waiter("tasks_stopped").wait(tasks=list(tasks), WaiterConfig=OFTEN)
        items, sizes = self.collect("list_tasks", "taskArns", family="b3-seven", desiredStatus="STOPPED")
        self.assertEqual((set(items), sizes), (tasks, [3, 3, 1]))
