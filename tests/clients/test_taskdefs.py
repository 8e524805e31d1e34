"""Task definitions that people published, through boto3: each registers and comes back as it was but for the documented
defaults, or is refused with every problem that taskdefs/expected.tsv lists for it."""

import csv
import json
from collections import defaultdict
from pathlib import Path

from test_boto3 import Boto3

DIRECTORY = Path(__file__).parent / "taskdefs"
# What only an answer has, or follows from the rest.
ANSWERED = {
    "taskDefinitionArn", "revision", "status", "requiresAttributes", "compatibilities", "registeredAt", "registeredBy",
}
# What is filled in where a definition does not say it; lists are empty.
FILLED_IN = {"cpu": 0, "essential": True, "protocol": "tcp", "interval": 30, "timeout": 5, "retries": 3}


def is_absent(value):
    return value is None or value == [] or value == ""


def without_nulls(value):
    if isinstance(value, dict):
        return {name: without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


class Published(Boto3):
    def test_each_registers_or_is_refused(self):
        """published task definitions: round trip, or refused with the problems that are listed"""
        ecs = self.ecs
        expected = defaultdict(list)
        with (DIRECTORY / "expected.tsv").open() as lines:
            for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                expected[row["file"]].append(row["problem"])
        files = sorted(DIRECTORY.glob("*.json"))
        self.assertEqual(len(files), 30)
        for file in files:
            # What botocore cannot write: null, and what a described definition has besides.
            given = without_nulls(json.loads(file.read_text()))
            for name in ANSWERED:
                given.pop(name, None)
            with self.subTest(file=file.name):
                if file.name in expected:
                    with self.assertRaises(ecs.exceptions.ClientException) as caught:
                        ecs.register_task_definition(**given)
                    message = caught.exception.response["Error"]["Message"]
                    self.assertEqual(message, "; ".join(expected[file.name]))
                    continue
                arn = ecs.register_task_definition(**given)["taskDefinition"]["taskDefinitionArn"]
                answer = ecs.describe_task_definition(taskDefinition=arn, include=["TAGS"])
                self.assertEqual(answer["tags"], given.pop("tags", None) or [])
                kept = answer["taskDefinition"]
                self.bridge = given.get("networkMode") in (None, "bridge")
                for name in ANSWERED:
                    kept.pop(name, None)
                self.same(given, kept, file.name)

    def same(self, given, kept, path):
        """What is kept is what was given, and where nothing was, a default."""
        if isinstance(given, dict) and isinstance(kept, dict):
            for name in given.keys() | kept.keys():
                here = f"{path}.{name}"
                if name == "hostPort" and is_absent(given.get(name)):
                    # In bridge mode it is the node's to choose.
                    self.assertEqual(kept[name], 0 if self.bridge else given["containerPort"], here)
                elif is_absent(given.get(name)):
                    self.assertIn(kept.get(name, []), ([], FILLED_IN.get(name)), here)
                else:
                    self.same(given[name], kept.get(name), here)
        elif isinstance(given, list) and isinstance(kept, list):
            self.assertEqual(len(given), len(kept), path)
            for at, (one, other) in enumerate(zip(given, kept)):
                self.same(one, other, f"{path}[{at}]")
        else:
            self.assertEqual(given, kept, path)
