"""A second machine joins over a private network, with the command that a token was printed with."""

import unittest

import node
import payload
from listing import difference, listing
from machine import Network
from node import ControlPlane
from suite import world


class SecondMachine(unittest.TestCase):
    """Two fresh machines: one with the control plane, one with the agent."""

    def test_it_joins_with_the_printed_command_and_runs_a_task(self):
        disk, network = payload.bundle_disk(), Network()
        first, second = (world().machine(number=number, disks=[disk], network=network) for number in (1, 2))
        for machine in (first, second):
            self.addCleanup(machine.end)
            machine.start()
        for machine in (first, second):
            machine.wait_booted()
        # The host has two addresses, and nobody can tell which one others reach.
        first.write("/etc/berth/control-plane.conf.d/60-names.toml", 'node_advertise = "vm1:8781"\n')
        plane = ControlPlane(first)
        plane.install()
        printed = plane.berth("token create --attribute rack=7").stdout
        command = next(line for line in printed.splitlines() if "bootstrap.sh" in line)
        self.assertIn("https://vm1:8781", command, "the address that a second host can reach")
        self.a_skewed_clock_is_told(second, command)
        second.run(node.bootstrap(command), seconds=node.BOOTSTRAP_SECONDS)
        found = plane.await_connected(1)[0]
        attributes = {attribute["name"]: attribute.get("value") for attribute in found["attributes"]}
        self.assertEqual(attributes["rack"], "7")
        task = plane.start("sleep 3600", memory=48)
        limits, processes = node.kernel(second, task)
        self.assertEqual(limits["c/memory.max"], str(48 << 20))
        self.assertEqual(len(processes), 1, processes)
        plane.stop(task)

        # The token was for one host.
        again = first.run(node.bootstrap(command), check=False, seconds=node.BOOTSTRAP_SECONDS)
        self.assertNotEqual(again.returncode, 0, again.stdout)
        self.assertIn("token", again.stderr + again.stdout)

        # A link that is cut and mended: the task's node is told apart from a lost one.
        other = plane.start("sleep 3600")
        before = node.kernel(second, other)
        second.run("ip link set eth1 down")
        plane.await_connected(0)
        second.run("ip link set eth1 up")
        plane.await_connected(1)
        self.assertEqual(node.kernel(second, other), before)

    def a_skewed_clock_is_told(self, machine, command):
        """Before anything is changed, and with how far it is off."""
        there = listing(machine)
        machine.run("date -s '+1 hour'")
        done = machine.run(node.bootstrap(command), check=False, seconds=node.BOOTSTRAP_SECONDS)
        machine.run("date -s '-1 hour'")
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertRegex(done.stderr, r"clock is 3[56]\d\d s off the control plane's")
        self.assertEqual(difference(there, listing(machine)), [])
