"""The life of an installed node: upgrade, crashes, restarts of what it depends on, and a reboot."""

import time

import node
import payload
from node import COUNTER, ControlPlane, counter_is_complete, counts_on, kernel, log_lines
from story import Story
from suite import world

RESTART_SECONDS = 180
# A machine boots in some 20 s here. systemd waits 90 s for what takes no notice of its SIGTERM.
REBOOT_SECONDS = 85


class Life(Story):
    """One machine, and a task that counts through all that happens to it."""

    @classmethod
    def setUpClass(cls):
        cls.machine = world().machine(disks=[payload.bundle_disk(), payload.upgrade_disk()], memory_mib=1536)
        cls.addClassCleanup(cls.machine.end)
        cls.machine.start().wait_booted()
        cls.plane = ControlPlane(cls.machine)
        cls.plane.install()
        command = cls.plane.token()["command"]
        cls.machine.run(node.bootstrap(command), seconds=node.BOOTSTRAP_SECONDS)
        cls.plane.await_connected(1)
        cls.counter = cls.plane.start(COUNTER, family="counter")

    def untouched(self):
        """The counter's processes, start times and limits are those of its first minute."""
        facts = kernel(self.machine, self.counter)
        if not hasattr(type(self), "facts"):
            type(self).facts = facts
        self.assertEqual(facts, self.facts)
        self.assertEqual(self.plane.task(self.counter)["lastStatus"], "RUNNING")

    def log_is_complete(self):
        counts_on(self.machine, self.counter)
        lines = log_lines(self.machine, self.counter)
        print(f"{counter_is_complete(lines)} lines, none lost, none twice")

    def test_an_upgrade_touches_no_task_and_loses_no_line(self):
        self.untouched()
        counts_on(self.machine, self.counter)
        before = self.machine.said("systemctl show -P MainPID berth-agent berth-control-plane")
        version = self.machine.said("dpkg-query -W -f '${Version}' berth-agent")
        self.machine.run(f"dpkg -i {node.UPGRADE}/*.deb", seconds=node.INSTALL_SECONDS)
        self.assertNotEqual(self.machine.said("dpkg-query -W -f '${Version}' berth-agent"), version)
        self.assertNotEqual(self.machine.said("systemctl show -P MainPID berth-agent berth-control-plane"), before,
                            "the new programs run")
        self.reconnect()
        self.untouched()
        self.log_is_complete()

    def reconnect(self):
        self.plane.connect()
        self.plane.await_connected(1, RESTART_SECONDS)

    def test_logger_and_agent_killed_together_lose_no_line(self):
        counts_on(self.machine, self.counter)
        self.machine.run(
            "kill -KILL $(pidof berth-logger) $(systemctl show -P MainPID berth-agent) && sleep 1 && "
            "! systemctl show -P MainPID berth-agent | grep -qx 0 || sleep 5"
        )
        self.plane.await_connected(1, RESTART_SECONDS)
        self.untouched()
        self.log_is_complete()

    def test_containerd_is_restarted_under_it(self):
        self.machine.run("systemctl restart containerd", seconds=RESTART_SECONDS)
        self.machine.run("systemctl kill -s KILL containerd", seconds=RESTART_SECONDS)
        self.machine.until("containerd", lambda: self.machine.run("ctr version", check=False).returncode == 0)
        self.untouched()
        task = self.plane.start("sleep 3600")
        self.plane.stop(task)
        self.log_is_complete()

    def test_the_control_plane_is_away_for_a_while(self):
        self.machine.run("systemctl stop berth-control-plane", seconds=RESTART_SECONDS)
        counts_on(self.machine, self.counter)
        ready = "curl -s -o /dev/null -w '%{http_code}' --unix-socket /run/berth/agent.sock http://localhost/"
        self.machine.until("readyz to tell", lambda: self.machine.said(f"{ready}readyz") == "503")
        self.assertEqual(self.machine.said(f"{ready}livez"), "200")
        self.machine.run("systemctl start berth-control-plane", seconds=RESTART_SECONDS)
        self.reconnect()
        self.assertEqual(self.machine.said(f"{ready}readyz"), "200")
        self.untouched()

    def test_the_slice_is_stopped_and_no_task_with_it(self):
        self.machine.run("systemctl stop berth.slice", seconds=RESTART_SECONDS)
        self.untouched()
        self.machine.run("systemctl start berth-agent", seconds=RESTART_SECONDS)
        self.plane.await_connected(1, RESTART_SECONDS)
        self.untouched()
        self.log_is_complete()

    def test_a_reboot_brings_back_who_asked_for_it(self):
        definition = self.plane.register("sleep 3600", family="back")
        back = self.plane.run(definition, tags=[{"key": "berth.restart-after-reboot", "value": "true"}])
        first = self.plane.await_task(back, "RUNNING")
        polite = self.plane.start("trap 'echo goodbye; exit 0' TERM; while :; do usleep 100000; done", family="polite", stopTimeout=30)
        began = time.monotonic()
        self.machine.reboot()
        seconds = time.monotonic() - began
        print(f"down and up again in {seconds:.0f} s")
        self.reconnect()
        self.ended_in_order(polite, seconds)
        stopped = self.plane.await_task(self.counter, "STOPPED", RESTART_SECONDS)
        print(f"stopped: {stopped['stopCode']}: {stopped['stoppedReason']}")
        self.assertIn("host restarted", stopped["stoppedReason"])
        again = self.plane.await_task(back, "RUNNING", RESTART_SECONDS)
        self.assertEqual(again["taskArn"], first["taskArn"])
        limits, processes = self.machine.until("its process", lambda: self.running(back))
        self.assertEqual(limits["c/memory.max"], str(64 << 20))
        self.assertEqual(len(processes), 1, processes)
        self.plane.stop(back)

    def ended_in_order(self, polite, seconds):
        """Tasks had their stop signal and their time, and nothing of them held the shutdown up."""
        self.assertEqual(log_lines(self.machine, polite), ["goodbye"])
        said = self.machine.said("journalctl -b -1 -u berth-tasks -o cat --no-pager")
        print(said)
        for task in (self.counter, polite):
            self.assertIn(task, said)
        self.assertLess(seconds, REBOOT_SECONDS)

    def running(self, task):
        found = kernel(self.machine, task)
        return found if found[1] else None
