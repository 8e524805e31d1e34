"""The host tests on cgroup v2 under systemd: limits, OOM, survival and leaks hold there as they do on v1."""

import unittest

import payload
from suite import world

SECONDS = 3000
# Everything that cgroups, restarts and images touch.
TESTS = ["limits::", "lifecycle::", "survival::", "reboot::", "bad_input::images", "ephemeral_storage::"]


class OnCgroupV2(unittest.TestCase):
    """The tests of tests/host, in a machine."""

    def test_limits_lifecycle_survival_leaks(self):
        with world().machine(flavour="containerd", disks=[payload.host_tests_disk()], memory_mib=2048) as machine:
            self.assertEqual(machine.said("stat -fc %T /sys/fs/cgroup"), "cgroup2fs")
            names = world().arguments or TESTS
            command = f"BERTH_TESTS_EMULATED=1 /mnt/disk/b/deps/host --test-threads=1 {' '.join(names)}"
            self.passes(machine, command)

    def test_vlans_and_network_cards(self):
        """What the machine that builds may not have, nor its kernel."""
        disks = [payload.host_tests_disk()]
        with world().machine(flavour="containerd", disks=disks, cards=2, memory_mib=2048) as machine:
            command = "BERTH_TESTS_EMULATED=1 /mnt/disk/b/deps/host --test-threads=1 --ignored vlan:: interfaces::"
            self.passes(machine, command)

    def passes(self, machine, command):
        code, said = machine.follow(command, SECONDS, lambda line: line.startswith("test "))
        (machine.directory / "tests").write_text(said)
        self.assertEqual(code, 0, f"exit code {code}\n{said[said.find('failures:') :]}")
