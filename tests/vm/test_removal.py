"""What is left when Berth is removed: tasks, if the package is only removed; nothing, if it is purged."""

import node
import payload
from listing import difference, listing
from node import COUNTER, ControlPlane, counter_is_complete, counts_on, kernel, log_lines
from story import Story
from suite import world

# A user of the control plane's package, whose number is not given to others.
KEPT = ("user berth-control-plane:", "group berth-control-plane:")


class Removal(Story):
    """One machine, from before the installation to after the purge."""

    @classmethod
    def setUpClass(cls):
        cls.machine = world().machine(disks=[payload.bundle_disk()], memory_mib=1536)
        cls.addClassCleanup(cls.machine.end)
        cls.machine.start().wait_booted()
        cls.plane = ControlPlane(cls.machine)
        cls.before = listing(cls.machine)
        cls.plane.install()
        cls.machine.run(node.bootstrap(cls.plane.token()["command"]), seconds=node.BOOTSTRAP_SECONDS)
        cls.plane.await_connected(1)
        cls.task = cls.plane.start(COUNTER, family="counter")

    def test_a_removed_package_leaves_tasks_running_and_is_installed_again(self):
        before = kernel(self.machine, self.task)
        self.machine.run("dpkg --remove berth-agent", seconds=node.INSTALL_SECONDS)
        counts_on(self.machine, self.task)
        self.assertEqual(kernel(self.machine, self.task), before)
        self.machine.run(f"dpkg -i {node.BUNDLE}/berth-agent_*.deb", seconds=node.INSTALL_SECONDS)
        self.plane.await_connected(1)
        self.assertEqual(kernel(self.machine, self.task), before)
        counts_on(self.machine, self.task)
        print(f"{counter_is_complete(log_lines(self.machine, self.task))} lines, none lost, none twice")

    def test_uninstalling_leaves_nothing(self):
        self.machine.run(f"sh {node.BUNDLE}/bootstrap.sh --uninstall --yes", seconds=node.INSTALL_SECONDS)
        self.machine.run("dpkg --purge berth-control-plane berth", seconds=node.INSTALL_SECONDS)
        left = difference(self.before, listing(self.machine))
        self.assertEqual([line for line in left if not line[2:].startswith(KEPT)], [])
