"""Owns tests whose steps build on each other: one machine, told from the top, in the order in which they are written."""

import unittest


class Story(unittest.TestCase):
    """After a step that failed the others are failures too, at once. A step is chosen with all before it."""

    broken = None
    maxDiff = None

    def setUp(self):
        if type(self).broken:
            self.fail(f"not run, because {type(self).broken} failed")

    def step_failed(self):
        if not type(self).broken:
            type(self).broken = self._testMethodName

    @classmethod
    def steps(cls):
        return [name for name in vars(cls) if name.startswith("test_")]


class Loader(unittest.TestLoader):
    def getTestCaseNames(self, case):
        chosen = super().getTestCaseNames(case)
        if not issubclass(case, Story):
            return chosen
        steps = case.steps()
        return steps[: max((steps.index(name) + 1 for name in chosen), default=0)]
