"""Owns a run: which tests there are, how their outcomes are told, and that no machine outlives them."""

import os
import tempfile
import time
import traceback
import unittest
from pathlib import Path

import machine as machines
from base import base
from story import Loader, Story

# One file per subject; `SMOKE` is what continuous integration runs at every change.
SMOKE = ["test_smoke"]
FULL = ["test_node", "test_join", "test_bootstrap", "test_removal", "test_fields", "test_host"]


class World:
    """What tests share: the base images and a directory for what machines leave behind."""

    def __init__(self, arguments=()):
        self.base = base()
        # Short: ssh's control sockets are below it.
        self.directory = Path(tempfile.mkdtemp(prefix="berth-vm.", dir="/tmp"))
        self.arguments = list(arguments)

    def machine(self, **options):
        return machines.Machine(self.base, self.directory, **options)


_world = None


def world():
    """The one of this process."""
    global _world
    if _world is None:
        _world = World(os.environ.get("BERTH_VM_ARGUMENTS", "").split())
    return _world


class Report(unittest.TestResult):
    """One line per test; why, for those that failed, with the end of console and journal of every machine."""

    def __init__(self):
        super().__init__()
        self.passed, self.failed = 0, 0
        self.inside, self.began, self.reasons = False, time.monotonic(), []

    def startTest(self, test):
        super().startTest(test)
        print(f"  ...  {test.id()}", flush=True)
        self.inside, self.began, self.reasons = True, time.monotonic(), []

    def stopTest(self, test):
        self.inside = False
        self.tell(test)
        super().stopTest(test)

    def addError(self, test, err):
        if not self.inside:
            # The set-up of a class, or a module that cannot be loaded.
            self.began, self.reasons = time.monotonic(), []
        if isinstance(test, Story) and test.broken:
            self.reasons.append(str(err[1]))
            return
        self.reasons.append("".join(traceback.format_exception(*err)))
        # Now: what cleans up after the test ends its machines.
        self.reasons += [machine.report() for machine in machines.Machine.running]
        if isinstance(test, Story):
            test.step_failed()
        if not self.inside:
            self.tell(test)

    addFailure = addError

    def addSkip(self, test, reason):
        self.reasons.append(f"skipped, and no test here may be: {reason}")

    def tell(self, test):
        seconds = time.monotonic() - self.began
        if self.reasons:
            self.failed += 1
        else:
            self.passed += 1
        print(f"{'FAILED' if self.reasons else 'ok':6} {test.id()} ({seconds:.1f} s)", *self.reasons, sep="\n", flush=True)


def tests_of(modules, names):
    """Those whose name contains one of `names`; all, without."""
    loader = Loader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    return loader.loadTestsFromNames(modules)


def run_here(modules, names):
    report = Report()
    try:
        tests_of(modules, names).run(report)
    finally:
        machines.end_all()
    return report.passed, report.failed
