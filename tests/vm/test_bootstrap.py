"""What can be wrong when a host is to join: found early, said clearly, and nothing is left half installed."""

import unittest

import node
import payload
from listing import difference, listing
from node import BUNDLE, ControlPlane
from suite import world

# Less than containerd and Berth need.
FREE_MIB = 30


class Refused(unittest.TestCase):
    """One machine with the control plane, on which a node is not installed for one reason after the other."""

    @classmethod
    def setUpClass(cls):
        cls.machine = world().machine(disks=[payload.bundle_disk()], memory_mib=1536)
        cls.addClassCleanup(cls.machine.end)
        cls.machine.start().wait_booted()
        cls.plane = ControlPlane(cls.machine)
        cls.plane.install()
        cls.made = cls.plane.token("--uses 50")

    def command(self, **changed):
        """The printed command, with other values."""
        values = {"control-plane": self.made["controlPlane"], "token": self.made["token"], "ca-hash": self.made["caHash"]}
        values |= {name.replace("_", "-"): value for name, value in changed.items()}
        flags = " ".join(f"--{name} {value}" for name, value in values.items() if value is not None)
        return f"sh {BUNDLE}/bootstrap.sh {flags} --from {BUNDLE}"

    def refuses(self, command, *words, before="true", after="true"):
        """It fails, says these words, and changes nothing."""
        self.machine.run(before)
        there = listing(self.machine)
        done = self.machine.run(command, check=False, seconds=node.BOOTSTRAP_SECONDS)
        now = listing(self.machine)
        self.machine.run(after)
        said = done.stdout + done.stderr
        self.assertNotIn(done.returncode, (0, 124), said)
        for word in words:
            self.assertIn(word.lower(), said.lower(), said)
        self.assertNotIn(self.made["token"].rsplit(".", 1)[1], said, "a secret is shown")
        self.assertEqual(difference(there, now), [], said)
        return said

    def test_wrong_arguments(self):
        self.refuses(self.command(control_plane=None), "--control-plane")
        self.refuses(self.command(control_plane="http://vm1:8781"), "https://")
        self.refuses(self.command(ca_hash="sha256:12"), "--ca-hash")
        self.refuses(f"{self.command()} --frobnicate", "--frobnicate")

    def test_wrong_token(self):
        token = self.made["token"]
        wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
        self.refuses(self.command(token=wrong), "token")
        self.refuses(self.command(token="berth1.nonsense"), "token")

    def test_wrong_hash(self):
        self.refuses(self.command(ca_hash=f"sha256:{'0' * 64}"), "sha256:")

    def test_unreachable_control_plane(self):
        self.refuses(self.command(control_plane="https://127.0.0.1:9"), "127.0.0.1")
        self.refuses(self.command(control_plane="https://no-such-host.invalid:8781"), "no-such-host.invalid")

    def test_containerd_too_old(self):
        fake = "#!/bin/sh\\necho 'containerd github.com/containerd/containerd 1.4.13 abc'\\n"
        self.refuses(
            self.command(), "1.4.13", before=f"printf \"{fake}\" >/usr/local/bin/containerd; chmod 755 /usr/local/bin/containerd",
            after="rm /usr/local/bin/containerd",
        )

    def test_no_space(self):
        fill = f"fallocate -l $(( $(df --output=avail -B1 / | tail -1) - ({FREE_MIB} << 20) )) /var/tmp/full"
        self.refuses(self.command(), "MiB free", before=fill, after="rm /var/tmp/full")

    def test_changed_package(self):
        copy = f"cp -r {BUNDLE} /var/tmp/bundle && echo x >>$(ls /var/tmp/bundle/berth-agent_*.deb)"
        command = self.command().replace(BUNDLE, "/var/tmp/bundle")
        self.refuses(command, "SHA256SUMS", before=copy, after="rm -r /var/tmp/bundle")

    def test_a_dry_run_changes_nothing(self):
        there = listing(self.machine)
        said = self.machine.said(f"{self.command()} --dry-run", seconds=node.BOOTSTRAP_SECONDS)
        self.assertIn("containerd", said)
        self.assertEqual(difference(there, listing(self.machine)), [], said)


class OldCgroups(unittest.TestCase):
    """A host that was booted with cgroup v1."""

    def test_it_is_told_how_to_boot_and_stays_as_it_was(self):
        with world().machine(disks=[payload.bundle_disk()], cgroups=1) as machine:
            self.assertEqual(machine.said("stat -fc %T /sys/fs/cgroup"), "tmpfs")
            there = listing(machine)
            command = (
                f"sh {BUNDLE}/bootstrap.sh --control-plane https://127.0.0.1:9 --token berth1.abc.def "
                f"--ca-hash sha256:{'0' * 64} --from {BUNDLE}"
            )
            done = machine.run(command, check=False, seconds=node.BOOTSTRAP_SECONDS)
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            self.assertIn("systemd.unified_cgroup_hierarchy=1", done.stderr)
            self.assertIn("127.0.0.1:9 cannot be reached", done.stderr, "all problems at once")
            self.assertEqual(difference(there, listing(machine)), [])


class Repaired(unittest.TestCase):
    """What was cut off is done by the next run; and a run on a host that has everything changes nothing."""

    def test_a_bootstrap_that_was_cut_off_is_finished_by_the_next(self):
        machine = world().machine(disks=[payload.bundle_disk()], memory_mib=1536)
        self.addCleanup(machine.end)
        machine.start().wait_booted()
        plane = ControlPlane(machine)
        plane.install()
        command = node.bootstrap(plane.token("--uses 1")["command"])
        # In the middle of dpkg's work, as by a power failure.
        marks = "pgrep -x dpkg >/dev/null && test -e /usr/bin/containerd"
        machine.run(
            f"setsid {command} >/var/tmp/first 2>&1 & first=$!; for _ in $(seq 600); do if {marks}; then break; fi; sleep 0.1; done; "
            "kill -KILL -- -$first; sleep 1", check=False, seconds=node.BOOTSTRAP_SECONDS,
        )
        self.assertEqual(plane.nodes(), [])
        machine.power_cycle()
        plane.connect()
        machine.run(command, seconds=node.BOOTSTRAP_SECONDS)
        plane.await_connected(1)
        plane.start("sleep 3600")

        before = machine.said("systemctl show -P MainPID berth-agent")
        machine.run(command, seconds=node.BOOTSTRAP_SECONDS)
        self.assertEqual(machine.said("systemctl show -P MainPID berth-agent"), before, "a second run restarts nothing")
        self.assertEqual(len(plane.nodes()), 1)
        self.an_unreadable_key_is_named(machine, plane)

    def an_unreadable_key_is_named(self, machine, plane):
        """The agent does not try for ever with a key that nobody can read, and goes on once it is there again."""
        key = "/var/lib/berth/identity/node.key"
        machine.run(f"cp -p {key} /root/kept; echo damaged >{key}; systemctl restart berth-agent", check=False)
        machine.until("its complaint", lambda: says(machine, "berth-agent", "node.key"))
        machine.until("its end", lambda: machine.said("systemctl is-active berth-agent", check=False) == "failed")
        self.assertEqual(machine.said("systemctl show -P ExecMainStatus berth-agent"), "78")
        machine.run(f"mv /root/kept {key}; systemctl restart berth-agent", seconds=node.INSTALL_SECONDS)
        plane.await_connected(1)


def says(machine, unit, word):
    return machine.said(f"journalctl -b -u {unit} -o cat --no-pager | grep -F -- {word} | tail -n 1", check=False)


class Broken(unittest.TestCase):
    """Services on a host where something of theirs is wrong: they say it, and do not try for ever what cannot help."""

    def test_port_in_use_and_files_that_cannot_be_used(self):
        machine = world().machine(disks=[payload.bundle_disk()])
        self.addCleanup(machine.end)
        machine.start().wait_booted()
        plane = ControlPlane(machine)
        machine.run("systemd-run --unit squatter busybox nc -l -p 8781 -e true && sleep 1")
        machine.run(f"dpkg -i {BUNDLE}/berth-control-plane_*.deb {BUNDLE}/berth_*.deb", check=False,
                    seconds=node.INSTALL_SECONDS)
        said = machine.until("its complaint", lambda: says(machine, "berth-control-plane", "8781"))
        print(said)
        machine.run("systemctl stop squatter", check=False)
        plane.connect()
        plane.nodes()

        machine.run("systemctl stop berth-control-plane; chmod 644 /var/lib/berth-control-plane/pki/authority.key; "
                    "systemctl restart berth-control-plane", check=False)
        machine.until("its complaint", lambda: says(machine, "berth-control-plane", "authority.key"))
        machine.run("chmod 600 /var/lib/berth-control-plane/pki/authority.key; systemctl restart berth-control-plane")

        machine.run("echo 'frobnicate = 1' >/etc/berth/control-plane.conf.d/90-wrong.toml; systemctl restart berth-control-plane",
                    check=False)
        machine.until("its complaint", lambda: says(machine, "berth-control-plane", "frobnicate"))
        self.assertEqual(machine.said("systemctl show -P ExecMainStatus berth-control-plane"), "78")
        self.assertEqual(machine.said("systemctl is-active berth-control-plane", check=False), "failed")
