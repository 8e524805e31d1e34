"""systemd/: the units say what they are meant to, and docs/security.md says how exposed they are."""

import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from host import ROOT

UNITS = ROOT / "systemd"
# Each gives the service a mount namespace of its own (systemd.exec(5)), which hides the tasks' network namespaces from
# containerd.
MOUNT_NAMESPACE = re.compile(
    r"^(PrivateTmp|PrivateDevices|PrivateMounts|PrivateIPC|ProtectHome|ProtectSystem|ProtectProc|ProcSubset"
    r"|ProtectKernel\w+|ProtectControlGroups|MountFlags|MountAPIVFS|\w+Paths|Bind\w+|TemporaryFileSystem"
    r"|Root(Directory|Image\w*)|MountImages|ExtensionImages|ExtensionDirectories|DynamicUser)=",
    re.MULTILINE,
)


def exposure(unit):
    out = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / unit],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True,
    ).stdout
    return float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", out)[1])


class Units(unittest.TestCase):
    def test_systemd_understands_them(self):
        with tempfile.TemporaryDirectory() as directory:
            for unit in [*UNITS.glob("*.service"), *UNITS.glob("*.slice")]:
                # The programs need not be installed here.
                text = re.sub(r"/usr/bin/berth\S*", "/bin/true", unit.read_text())
                (Path(directory) / unit.name).write_text(text)
            files = sorted(Path(directory).iterdir())
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", *files], capture_output=True, text=True)
            about_ours = [line for line in done.stderr.splitlines() if directory in line or "berth" in line]
            # What they want from others (containerd.service, network-online.target) may not be on this host.
            self.assertEqual([line for line in about_ours if "not found" not in line], [])

    def test_the_agent_stays_in_the_hosts_mount_namespace(self):
        self.assertIsNone(MOUNT_NAMESPACE.search((UNITS / "berth-agent.service").read_text()))

    def test_tasks_are_ended_between_the_agent_and_what_they_need(self):
        unit = (UNITS / "berth-tasks.service").read_text()
        # Stopped in the reverse order of their start.
        self.assertIn("\nBefore=berth-agent.service\n", unit)
        self.assertRegex(unit, r"\nAfter=containerd\.service ")
        self.assertIn("\nRefuseManualStop=yes\n", unit)
        self.assertIn("\nRemainAfterExit=yes\n", unit)
        self.assertNotIn("Restart=", unit)
        within = int(re.search(r"\nExecStop=/usr/bin/berth-agent halt --yes --within ([0-9]+) ", unit)[1])
        minutes = int(re.search(r"\nTimeoutStopSec=([0-9]+)min\n", unit)[1])
        # What comes after the time for tasks has bounds of its own.
        self.assertGreaterEqual(60 * minutes, within + 60)
        agent = (UNITS / "berth-agent.service").read_text()
        self.assertRegex(agent, r"\nWants=.*\bberth-tasks\.service\b")

    def test_only_the_agent_itself_is_ever_signalled(self):
        text = (UNITS / "berth-agent.service").read_text()
        self.assertIn("\nKillMode=process\n", text)
        self.assertIn("\nRestartPreventExitStatus=2 78\n", text)
        for bound in ("Requires=", "BindsTo=", "PartOf="):
            self.assertNotIn(f"\n{bound}", text)

    def test_the_control_plane_is_hardly_exposed(self):
        self.assertLessEqual(exposure("berth-control-plane.service"), 2.0)

    def test_the_documented_scores_are_the_measured_ones(self):
        page = (ROOT / "docs/security.md").read_text()
        for unit in ("berth-agent.service", "berth-tasks.service", "berth-control-plane.service"):
            documented = re.search(rf"^\| `{re.escape(unit)}` \| ([0-9.]+) \|", page, re.MULTILINE)
            self.assertIsNotNone(documented, unit)
            # Versions of systemd weigh a few directives differently.
            self.assertAlmostEqual(float(documented[1]), exposure(unit), delta=0.35, msg=unit)


if __name__ == "__main__":
    unittest.main()
