"""Owns the run: which tests there are, how their outcomes are told, and that the node they share ends well.

suite.py COUNTS DIR [TEST…]; see `run`. Into the file COUNTS go the numbers of tests that passed and failed. Without a
TEST it runs all, in lanes that are processes of their own, each with a node of its own: most of the time goes into
starting clients, and several nodes on one host must not meet.
"""

import faulthandler
import subprocess
import sys
import time
import traceback
import unittest
from pathlib import Path

import dev

LANES = {
    "aws1": ["test_aws.Version1"],
    "aws2": ["test_aws.Version2"],
    "rest": ["test_boto3", "test_taskdefs", "test_published_tasks", "test_berth", "test_dev"],
}
# Far beyond what all of it takes. Then something hangs, and a traceback says where.
WATCHDOG_SECONDS = 900


class Report(unittest.TestResult):
    """One line per test; why, for those that failed."""

    def __init__(self):
        super().__init__()
        self.passed, self.failed = 0, 0
        self.inside, self.began, self.reasons = False, 0.0, []

    def startTest(self, test):
        super().startTest(test)
        self.inside, self.began, self.reasons = True, time.monotonic(), []

    def stopTest(self, test):
        self.inside = False
        self.tell(name_of(test))
        super().stopTest(test)

    def addError(self, test, err):
        if not self.inside:
            # The set-up of a class, or a module that cannot be loaded.
            self.began, self.reasons = time.monotonic(), []
        self.reasons.append(self._exc_info_to_string(err, test))
        if not self.inside:
            self.tell(name_of(test))

    addFailure = addError

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.addError(test, err)

    def addSkip(self, test, reason):
        self.reasons.append(f"skipped, and no test here may be: {reason}")

    def tell(self, name):
        seconds = time.monotonic() - self.began
        if self.reasons:
            self.failed += 1
        else:
            self.passed += 1
        print(f"{'FAILED' if self.reasons else 'ok':6} {name} ({seconds:.1f} s)", *self.reasons, sep="\n", flush=True)

    def judge(self, name, check):
        """A check that is no test of a class."""
        self.began, self.reasons = time.monotonic(), []
        try:
            check()
        except Exception:
            self.reasons.append(traceback.format_exc())
        self.tell(name)


def name_of(test):
    what = test.shortDescription()
    return f"{test.id()}: {what}" if what else test.id()


def end_shared():
    """SIGTERM after all these tests."""
    node = dev._shared
    code = node.stop()
    left = node.listing()
    node.discard()
    assert code == 0, f"exit code {code}:\n{node.said()}"
    assert not left, f"left: {sorted(left)}"
    assert "panicked" not in node.said(), node.said()


def all_seen():
    import test_boto3

    assert test_boto3.Boto3.seen >= test_boto3.SERVED, test_boto3.SERVED - test_boto3.Boto3.seen


def run_lane(directory, names):
    """Runs these tests here."""
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True)
    dev.Dev.prepare(directory)
    report = Report()
    unittest.defaultTestLoader.loadTestsFromNames(names).run(report)
    if "test_boto3" in names:
        report.judge("end: boto3 has parsed an answer of every operation that is served", all_seen)
    if dev._shared is not None:
        report.judge("end: the berth dev that these clients used ends with exit code 0 and leaves nothing", end_shared)
    return report.passed, report.failed


def run_lanes(directory):
    """What a lane says comes when it ends."""
    lanes = {}
    for name, tests in LANES.items():
        with (directory / f"{name}.out").open("w") as out:
            command = [sys.executable, "-B", __file__, directory / f"{name}.counts", directory / name, *tests]
            lanes[name] = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    passed, failed = 0, 0
    for name, lane in lanes.items():
        code = lane.wait()
        print((directory / f"{name}.out").read_text(), end="", flush=True)
        counts = directory / f"{name}.counts"
        if not counts.exists():
            print(f"FAILED lane {name} broke off with exit code {code}", flush=True)
        numbers = counts.read_text().split() if counts.exists() else (0, 1)
        passed, failed = passed + int(numbers[0]), failed + int(numbers[1])
    return passed, failed


def main():
    counts, directory, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    passed, failed = run_lane(directory, names) if names else run_lanes(directory)
    counts.write_text(f"{passed} {failed}\n")
    sys.exit(0 if failed == 0 and passed > 0 else 1)


if __name__ == "__main__":
    main()
