"""Fields of task definitions that need what only a whole machine has: AppArmor and a server of NFS in its kernel, and the agent in
its unit's sandbox."""

import unittest

import node
import payload
from node import ControlPlane, kernel, log_lines
from suite import world

IMAGES = "/mnt/disk/c"
PROFILE = "berth-test-denies"
EXPORT = "/srv/export"
VOLUMES = "/var/lib/berth/volumes"
# Half a minute for a mount, and what all else takes here.
GIVE_UP_SECONDS = 90
STOP_SECONDS = 120
# Packets to the server are lost, as when its host is gone.
CUT = (
    "nft 'add table ip cut; add chain ip cut out { type filter hook output priority 0; }; "
    "add rule ip cut out tcp dport 2049 drop; add rule ip cut out tcp sport 2049 drop'"
)
MEND = "nft delete table ip cut 2>/dev/null || true"


class Fields(unittest.TestCase):
    """One node, installed from its packages, on a machine that is an NFS server too."""

    @classmethod
    def setUpClass(cls):
        cls.machine = world().machine(flavour="containerd", disks=[payload.bundle_disk(), payload.attributes_disk()], memory_mib=2048)
        cls.addClassCleanup(cls.machine.end)
        cls.machine.start().wait_booted()
        cls.machine.run("systemctl unmask --quiet containerd && systemctl start containerd")
        cls.plane = ControlPlane(cls.machine)
        cls.plane.install()
        cls.machine.run(node.bootstrap(cls.plane.token()["command"]), seconds=node.BOOTSTRAP_SECONDS)
        cls.plane.await_connected(1)
        cls.machine.write("/etc/exports", f"{EXPORT} 127.0.0.1(rw,no_root_squash,no_subtree_check,fsid=1)\n")
        cls.machine.run(f"mkdir {EXPORT} && systemctl start nfs-server")

    def nfs(self, o="addr=127.0.0.1,rw,nfsvers=4.2", scope="task", name="far", kind="nfs", path=EXPORT):
        options = {"type": kind, "device": f":{path}", "o": o}
        return {"name": name, "dockerVolumeConfiguration": {
            "scope": scope, **({"autoprovision": True} if scope == "shared" else {}), "driverOpts": options,
        }}

    def definition(self, script, volume, **more):
        return self.plane.register(
            script, volumes=[volume], mountPoints=[{"sourceVolume": volume["name"], "containerPath": "/far"}], **more
        )

    def start(self, *arguments, **more):
        task = self.plane.run(self.definition(*arguments, **more))
        self.plane.await_task(task, "RUNNING")
        return task

    def fails(self, volume, *words, seconds=GIVE_UP_SECONDS):
        """The task does not start, for a reason with these words."""
        task = self.plane.run(self.definition("true", volume))
        stopped = self.plane.await_task(task, "STOPPED", seconds)
        reason = stopped["stoppedReason"]
        print(reason)
        for word in ("ResourceInitializationError", *words):
            self.assertIn(word, reason)
        self.nothing_is_left(task)

    def nothing_is_left(self, task):
        # Nothing that would ask a server.
        left = self.machine.said(f"ls {VOLUMES}/tasks /run/berth/* | grep {task}; grep {task} /proc/self/mountinfo", check=False)
        self.assertEqual(left, "")

    def said(self, task, count):
        return self.machine.until("its words", lambda: self.lines(task, count))

    def lines(self, task, count):
        lines = log_lines(self.machine, task)
        return lines if len(lines) >= count else None

    # -- AppArmor

    def test_a_profile_of_apparmor_denies_what_it_denies(self):
        profile = f"profile {PROFILE} flags=(attach_disconnected) {{ file, network, capability, deny /etc/passwd r, }}"
        self.machine.run("apparmor_parser -r", stdin=profile)
        script = "cat /etc/passwd >/dev/null 2>&1 && echo read || echo denied; cat /proc/self/attr/current; sleep 3600"
        for options, privileged, words in [
            ([f"apparmor:{PROFILE}"], False, ["denied", f"{PROFILE} (enforce)"]),
            ([f"apparmor={PROFILE}"], True, ["denied", f"{PROFILE} (enforce)"]),
            ([f"apparmor:{PROFILE}", "apparmor:unconfined"], False, ["read", "unconfined"]),
            ([], False, ["read", "unconfined"]),
        ]:
            task = self.plane.start(script, dockerSecurityOptions=options, privileged=privileged)
            self.assertEqual(self.said(task, 2), words, options)
            (process,) = kernel(self.machine, task)[1]
            self.assertEqual(self.machine.said(f"cat /proc/{process.split()[1]}/attr/current"), words[1])
            # The profile takes no signals: the runtime cannot send any, and its tasks end all the same.
            self.plane.stop(task)
        task = self.plane.run(self.plane.register("true", dockerSecurityOptions=["apparmor:nobody-loaded-it"]))
        stopped = self.plane.await_task(task, "STOPPED")
        self.assertEqual(stopped["stopCode"], "TaskFailedToStart")
        reason = stopped["containers"][0]["reason"]
        print(reason)
        for word in ("nobody-loaded-it", "not loaded on this node"):
            self.assertIn(word, reason)

    # -- the sandbox

    def test_a_volume_keeps_what_the_image_has(self):
        self.machine.run(f"cp {IMAGES}/attributes.tar {node.STATE}/images/ && systemctl restart berth-agent", seconds=120)
        self.plane.await_connected(1)
        self.assertEqual(self.machine.said("systemctl show -P NoNewPrivileges berth-agent"), "yes")
        names = " ".join(f"/{name}" for name, *_ in payload.KEPT)
        script = f"stat -c '%a %u %g' {names}; cat /srv/kept/able; sleep 3600"
        task = self.plane.start(script, image=payload.ATTRIBUTES, volumes=[{"name": "kept"}],
                                mountPoints=[{"sourceVolume": "kept", "containerPath": "/srv/kept"}])
        wanted = [f"{mode:o} {user} {group}" for _, mode, user, group in payload.KEPT]
        self.assertEqual(self.said(task, len(wanted) + 1), [*wanted, "srv/kept/able"])
        data = f"{VOLUMES}/tasks/{task}/named/kept/data"
        capability = self.machine.said(f"getcap {data}/able")
        print(capability)
        self.assertIn("cap_net_bind_service", capability)
        self.plane.stop(task)
        self.nothing_is_left(task)

    # -- NFS

    def test_a_volume_is_what_the_server_exports(self):
        path = f"{EXPORT}/one"
        self.machine.run(f"mkdir {path}")
        script = "cat /far/* 2>/dev/null; echo from-a-task >>/far/file; grep ' /far ' /proc/mounts; echo end; sleep 3600"
        task = self.start(script, self.nfs("addr=127.0.0.1,rw,nfsvers=4.2,timeo=50", path=path))
        mounted = self.said(task, 2)[0].split()
        self.assertEqual(mounted[:3], [f"127.0.0.1:{path}", "/far", "nfs4"])
        for option in ("rw", "vers=4.2", "timeo=50", "hard", "addr=127.0.0.1"):
            self.assertIn(option, mounted[3].split(","))
        self.assertEqual(self.machine.read(f"{path}/file"), "from-a-task\n")
        self.plane.stop(task)
        self.nothing_is_left(task)
        self.assertEqual(self.machine.read(f"{path}/file"), "from-a-task\n")

        # By name; the type says the version; and another task of the node, which shares it.
        volume = self.nfs("addr=localhost,soft,ro", scope="shared", kind="nfs4", path=path)
        script = "cat /far/file; touch /far/no 2>/dev/null || echo refused; grep ' /far ' /proc/mounts; sleep 3600"
        tasks = [self.start(script, volume) for _ in range(2)]
        for task in tasks:
            *lines, mounted = self.said(task, 3)
            self.assertEqual(lines, ["from-a-task", "refused"])
            self.assertIn("ro,", mounted)
            self.assertIn("soft", mounted)
        self.plane.stop(tasks[0])
        self.assertEqual(self.machine.said(f"grep -c {VOLUMES}/tasks/{tasks[1]} /proc/self/mountinfo"), "1")
        self.plane.stop(tasks[1])
        for task in tasks:
            self.nothing_is_left(task)
        self.fails(self.nfs("addr=localhost,soft", scope="shared", kind="nfs4"), "far", "other driverOpts")

    def test_what_cannot_be_mounted_is_the_reason_why_a_task_did_not_start(self):
        self.fails(self.nfs(path="/srv/other"), "far", "127.0.0.1:/srv/other", "cannot be mounted", "No such file")
        self.fails(self.nfs("addr=no-such-host.invalid,nfsvers=4"), "the name of the server")
        self.machine.run("systemctl stop nfs-server")
        self.fails(self.nfs(), "far", f"127.0.0.1:{EXPORT}", "cannot be mounted", "Connection refused", "no NFS server listens")
        self.machine.run("systemctl start nfs-server")

    def test_a_server_that_does_not_answer_costs_its_task_alone(self):
        agent = self.machine.said("systemctl show -P MainPID berth-agent")
        before = self.start("while :; do date >>/far/log; sleep 0.2; done", self.nfs("addr=127.0.0.1,nfsvers=4.2"))
        self.machine.until("its writing", lambda: self.machine.said(f"cat {EXPORT}/log", check=False))
        self.machine.run(CUT)
        try:
            late = self.plane.run(self.definition("true", self.nfs("addr=127.0.0.1,nfsvers=4.2,nosharecache")))
            # Meanwhile the node does its other work.
            other = self.plane.start("sleep 3600")
            self.plane.stop(other)
            reason = self.plane.await_task(late, "STOPPED", GIVE_UP_SECONDS)["stoppedReason"]
            print(reason)
            self.assertIn(f"the server of 127.0.0.1:{EXPORT} does not answer", reason)
            self.nothing_is_left(late)
            # And one that waits for the server, with what it wrote, is ended.
            self.plane.api.call("StopTask", task=before)
            self.plane.await_task(before, "STOPPED", STOP_SECONDS)
            self.nothing_is_left(before)
            self.assertEqual(self.machine.said("systemctl show -P MainPID berth-agent"), agent)
        finally:
            self.machine.run(MEND)
        self.machine.until("the end of helpers", lambda: not self.machine.said("pgrep -f [b]erth-volume-helper", check=False))
        again = self.start("cat /far/log; sleep 3600", self.nfs())
        self.assertTrue(self.said(again, 1))
        self.plane.stop(again)
