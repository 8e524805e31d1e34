"""Owns virtual machines: their start, their console, commands in them over ssh, and their end.

Emulated (no KVM), thus five to ten times slower than the host: limits here are generous, and every wait has one. A
machine's disk is forgotten at its end. No machine reaches any network but the private one between those of a test, and
the only way in from the host is ssh on a forwarded port of loopback.
"""

import secrets
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

BOOT_SECONDS = 240
SHUTDOWN_SECONDS = 120
COMMAND_SECONDS = 120
CONNECT_SECONDS = 60
# What ssh itself may take besides the command.
GRACE_SECONDS = 60
POLL_SECONDS = 0.5
TAIL_LINES = 40
JOURNAL_LINES = 80
# Attempts to find a port that nobody took meanwhile.
START_ATTEMPTS = 5
KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quiet loglevel=3 mitigations=off random.trust_cpu=on audit=0 net.ifnames=0"
)


class MachineError(AssertionError):
    """A machine did not do what it was told; the message has the command and what it said."""


class Network:
    """An Ethernet segment between machines: multicast on the host's loopback, at an address of its own."""

    def __init__(self):
        a, b, c = (1 + secrets.randbelow(254) for _ in range(3))
        self.netdev = f"socket,id=inside,mcast=230.{a}.{b}.{c}:{20000 + secrets.randbelow(40000)},localaddr=127.0.0.1"


class Machine:
    """One machine. `with Machine(…) as machine:` starts it and ends it."""

    # Those that run, for the end of the process and for reports of failures.
    running = []

    def __init__(self, base, directory, *, number=1, flavour="fresh", disks=(), network=None, cards=0, memory_mib=1024,
                 cgroups=2):
        """`disks` are image files, mounted read-only as /mnt/disk/b, c, …; `number` is the last byte of its address
        in `network`, and its name; `cards` is how many network cards it has more, all on one segment of their own, with
        the hardware addresses 52:54:00:00:02:01, …02; `cgroups` the version that systemd mounts."""
        self.base, self.number, self.flavour = base, number, flavour
        self.disks, self.network, self.cards, self.memory_mib = list(disks), network, cards, memory_mib
        self.arguments = f"{KERNEL_ARGUMENTS} systemd.unified_cgroup_hierarchy={int(cgroups == 2)} systemd.hostname=vm{number}"
        self.name, self.address = f"vm{number}", f"10.99.0.{number}"
        self.directory = Path(directory) / f"{self.name}-{secrets.token_hex(2)}"
        self.directory.mkdir(parents=True)
        self.console = self.directory / "console"
        self.qemu = self.master = None
        self.boot_seconds = None

    def __enter__(self):
        self.start()
        return self.wait_booted()

    def __exit__(self, _kind, error, _trace):
        if error is not None:
            error.add_note(self.report())
        self.end()

    # -- start and end

    def start(self):
        """Begins to boot; `wait_booted` waits. Several machines boot at once that way."""
        for _ in range(START_ATTEMPTS):
            self.port = _free_port()
            self.begun = time.monotonic()
            with (self.directory / "qemu").open("ab") as log:
                # setpriv: it ends with this process, however that ends.
                command = ["setpriv", "--pdeathsig", "KILL", *self._command()]
                self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                # A port that was taken meanwhile ends it at once.
                self.qemu.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                Machine.running.append(self)
                return self
        raise MachineError(f"qemu does not start:\n{(self.directory / 'qemu').read_text()}")

    def _command(self):
        disks = [(self.base.disk(self.flavour), "on"), *((disk, "on") for disk in self.disks)]
        command = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem",
            "-m", str(self.memory_mib), "-smp", "2", "-display", "none", "-nodefaults",
            "-serial", f"file:{self.console}", "-kernel", self.base.kernel, "-initrd", self.base.initrd,
            "-append", self.arguments,
            "-netdev", f"user,id=outside,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", "virtio-net-pci,netdev=outside,mac=52:54:00:00:00:01,romfile=",
        ]
        for index, (disk, snapshot) in enumerate(disks):
            command += [
                "-drive", f"file={disk},format=raw,if=none,id=disk{index},snapshot={snapshot},cache=unsafe",
                "-device", f"virtio-blk-pci,drive=disk{index}",
            ]
        if self.network:
            command += ["-netdev", self.network.netdev]
            command += ["-device", f"virtio-net-pci,netdev=inside,mac=52:54:00:00:01:{self.number:02x},romfile="]
        for card in range(1, self.cards + 1):
            command += ["-netdev", f"hubport,id=card{card},hubid=2"]
            command += ["-device", f"virtio-net-pci,netdev=card{card},mac=52:54:00:00:02:{card:02x},romfile="]
        return command

    def wait_booted(self):
        """Waits for ssh, then mounts the disks."""
        self._await_ssh(self.begun + BOOT_SECONDS)
        self._mount()
        return self

    def _await_ssh(self, deadline):
        while not self._sshd_answers():
            if self.qemu.poll() is not None:
                raise MachineError(f"{self.name} ended while it booted; its console:\n{self.console_tail()}")
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name} is not up after {BOOT_SECONDS} s; its console:\n{self.console_tail()}")
            time.sleep(POLL_SECONDS)
        self._connect()
        self.boot_seconds = time.monotonic() - self.begun

    def _mount(self):
        for letter, _ in zip("bcdefgh", self.disks):
            self.run(f"mkdir -p /mnt/disk/{letter} && mount -o ro /dev/vd{letter} /mnt/disk/{letter}")

    def _sshd_answers(self):
        """qemu takes the connection at once; what counts is the other side's greeting."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _connect(self):
        """One connection for all commands: a key exchange takes a second in the machine."""
        self._disconnect()
        deadline = time.monotonic() + CONNECT_SECONDS
        control = self.directory / "ssh"
        while time.monotonic() < deadline:
            control.unlink(missing_ok=True)
            command = ["setpriv", "--pdeathsig", "KILL", *self._ssh(), "-M", "-N", "root@127.0.0.1"]
            with (self.directory / "ssh.log").open("ab") as log:
                self.master = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            while self.master.poll() is None and time.monotonic() < deadline:
                if control.exists():
                    return
                time.sleep(0.1)
        self._disconnect()
        raise MachineError(f"no ssh to {self.name}:\n{(self.directory / 'ssh.log').read_text()}")

    def _disconnect(self):
        if self.master is not None:
            self.master.kill()
            self.master.wait()
            self.master = None

    def _ssh(self):
        options = {
            "ControlPath": self.directory / "ssh", "ControlPersist": "no",
            "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "ConnectTimeout": 30,
            "ServerAliveInterval": 30, "ServerAliveCountMax": 6, "LogLevel": "ERROR",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        return ["ssh", "-F", "/dev/null", "-i", self.base.key, "-p", str(self.port), *flags]

    def end(self):
        """At once, as a power failure does. Its logs stay."""
        self._disconnect()
        if self.qemu is not None:
            self.qemu.kill()
            self.qemu.wait()
            self.qemu = None
        if self in Machine.running:
            Machine.running.remove(self)

    def reboot(self):
        """An orderly one, started in the machine."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)
        self._await_boot_after(before)

    def power_cycle(self):
        """What it had not written is lost."""
        before = self.boot_id()
        self.run("echo b >/proc/sysrq-trigger", check=False)
        self._await_boot_after(before)

    def _await_boot_after(self, before):
        self._disconnect()
        self.begun = time.monotonic()
        deadline = self.begun + SHUTDOWN_SECONDS + BOOT_SECONDS
        while True:
            try:
                self._await_ssh(deadline)
                if self.boot_id() != before:
                    break
            except MachineError:
                # On its way down it may greet and not answer.
                if self.qemu.poll() is not None or time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name} did not go down within {SHUTDOWN_SECONDS} s")
            time.sleep(POLL_SECONDS)
        self._mount()

    # -- in the machine

    def run(self, script, *, check=True, seconds=COMMAND_SECONDS, stdin=b""):
        """A bash script, as root, ended after `seconds`. Returns a `CompletedProcess` with text.

        Raises MachineError if it fails (unless `check` is false) or takes too long.
        """
        remote = f"timeout -k 5 {seconds} bash -c {shlex.quote(script)}"
        command = [*self._ssh(), "root@127.0.0.1", remote]
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, timeout=seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} does not answer within {seconds} s: {script}") from None
        done.stdout, done.stderr = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if check and done.returncode:
            why = f"not done after {seconds} s" if done.returncode == 124 else f"exit code {done.returncode}"
            raise MachineError(f"{self.name}: {why}: {script}\n{done.stdout}{done.stderr}")
        return done

    def said(self, script, **options):
        """What a script writes, without the last line's end."""
        return self.run(script, **options).stdout.rstrip("\n")

    def follow(self, script, seconds, show):
        """Runs a long script and prints those lines as they come for which `show` is true: exit code, all of its output."""
        remote = f"timeout -k 5 {seconds} bash -c {shlex.quote(script)} 2>&1"
        command = [*self._ssh(), "root@127.0.0.1", remote]
        lines = []
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as ssh:
            try:
                # Ends at the latest with the script's own limit, or when ssh misses the machine.
                for line in ssh.stdout:
                    lines.append(line)
                    if show(line):
                        print(f"       {line}", end="", flush=True)
                return ssh.wait(GRACE_SECONDS), "".join(lines)
            finally:
                # Who is told to end does not wait for the script.
                ssh.kill()

    def shell(self):
        """A shell in the caller's terminal, if there is one."""
        return subprocess.run([*self._ssh(), *(["-t"] if sys.stdin.isatty() else []), "root@127.0.0.1"]).returncode

    def write(self, path, content, mode="644"):
        self.run(f"install -D -m {mode} /dev/stdin {shlex.quote(str(path))}", stdin=content)

    def read(self, path):
        return self.run(f"cat {shlex.quote(str(path))}").stdout

    def boot_id(self):
        return self.said("cat /proc/sys/kernel/random/boot_id")

    def forward(self, port):
        """A port of this host's loopback that leads to one of the machine's loopback, until a reboot."""
        local = _free_port()
        command = [*self._ssh(), "-O", "forward", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}", "root@127.0.0.1"]
        subprocess.run(command, check=True, timeout=CONNECT_SECONDS, capture_output=True)
        return local

    def until(self, what, ask, seconds=120):
        """Asks until the answer is true, and returns it."""
        deadline = time.monotonic() + seconds
        while True:
            answer = ask()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name}: waited {seconds} s for {what}; last answer: {answer!r}")
            time.sleep(POLL_SECONDS)

    # -- for those who look for a cause

    def console_tail(self):
        lines = self.console.read_text(errors="replace").splitlines() if self.console.exists() else []
        return "\n".join(lines[-TAIL_LINES:])

    def report(self):
        """The console's end and the journal's; all of the journal goes into the machine's directory."""
        found = [f"-- console of {self.name} ({self.directory})", self.console_tail()]
        try:
            journal = self.said("journalctl -b --no-pager -o short-precise", check=False, seconds=60)
            (self.directory / "journal").write_text(journal)
            found += [f"-- journal of {self.name}", *journal.splitlines()[-JOURNAL_LINES:]]
            found.append(self.said("systemctl --failed --no-legend --plain", check=False, seconds=30))
        except (MachineError, OSError) as error:
            found.append(f"-- no journal of {self.name}: {error}")
        return "\n".join(found)


def end_all():
    for machine in list(Machine.running):
        machine.end()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
