"""Owns `berth dev` processes: each with a state directory, ports, address range and instance of its own."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import host
import image

ROOT = Path(__file__).resolve().parents[2]
BERTH = ROOT / "target/debug/berth"
READY_SECONDS = 60
# Beyond the stop timeouts of all tasks of these tests.
END_SECONDS = 60
POLL_SECONDS = 0.05
# The ports that servers of test_published_tasks are to listen on.
SERVERS = ([80], [3000], [3001], [8080, 8443])
# All a client gets to see of the caller's environment: no keys, configuration or proxies of theirs.
PLAIN_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "NO_PROXY": "*"}


class Dev:
    """One `berth dev`, which may be started, killed and started again on the same state."""

    base = None  # Where all of this process live; set once, by the suite.
    made = 0

    def __init__(self):
        Dev.made += 1
        self.dir = Path(Dev.base) / str(Dev.made)
        self.dir.mkdir()
        self.state_dir = self.dir / "state"
        self.log = self.dir / "log"
        self.instance = f"bc{os.getpid():x}-{Dev.made}"
        self.cidr = host.free_cidr()
        self.process = None
        # What the clean-up needs, also after this process is gone.
        identity = {"instance": self.instance, "state_dir": str(self.state_dir), "cidr": self.cidr}
        (self.dir / "identity.json").write_text(json.dumps(identity))

    @staticmethod
    def prepare(base):
        Dev.base = Path(base)
        Dev.base.mkdir()
        (Dev.base / "images").mkdir()
        (Dev.base / "home").mkdir()
        image.write_archive(Dev.base / "images/busy.tar")
        for at, ports in enumerate(SERVERS):
            image.write_server_archive(Dev.base / f"images/serve-{at}.tar", ports)

    def command(self, *flags):
        return [
            BERTH, "dev", "--state-dir", self.state_dir, "--instance", self.instance, "--task-cidr", self.cidr,
            "--listen", "127.0.0.1:0", "--node-listen", "127.0.0.1:0", "--images", Dev.base / "images", *flags,
        ]

    def start(self, *flags):
        """Returns when it says `ready`."""
        before = len(self.said())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*flags), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=PLAIN_ENVIRONMENT, start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while "\nready\n" not in self.said()[before:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"berth dev is not ready:\n{self.said()[before:]}")
            time.sleep(POLL_SECONDS)
        return self

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_SECONDS)

    def kill(self):
        """SIGKILL: it gets no chance to tidy up."""
        self.process.kill()
        self.process.wait(END_SECONDS)

    def stop_all(self):
        """`berth dev --stop-all`; what it says, with its exit code."""
        return subprocess.run(
            self.command("--stop-all"), capture_output=True, text=True, timeout=END_SECONDS, env=PLAIN_ENVIRONMENT
        )

    def discard(self):
        """Nothing of it is left, however the test went. For `addCleanup`."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        host.remove(self.instance, self.state_dir, self.cidr)

    def listing(self):
        return host.listing(self.instance, self.state_dir, self.cidr)

    def environment(self):
        """What a shell has after `. dev.env`, and nothing else that an AWS client would read."""
        script = f'. "{self.state_dir}/dev.env" && exec env -0'
        shell = subprocess.run(
            ["sh", "-c", script], capture_output=True, check=True, timeout=10,
            env=PLAIN_ENVIRONMENT | {
                "HOME": str(Dev.base / "home"), "AWS_PAGER": "", "AWS_EC2_METADATA_DISABLED": "true",
            },
        )
        return dict(entry.split("=", 1) for entry in shell.stdout.decode().split("\0") if entry)


_shared = None


def shared():
    """The one that tests use which do not end or break it."""
    global _shared
    if _shared is None:
        _shared = Dev().start()
    return _shared


def until(what, ask, seconds=30):
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}; last answer: {answer!r}")
        time.sleep(POLL_SECONDS)
