"""Owns what is on the host: a listing of all that one `berth dev` made there, and its removal by force.

Asks the kernel, never Berth. Looks only at what carries the name, directory or address range of one instance, so that
tests can run beside a Berth in use.
"""

import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
COMMAND_SECONDS = 20
ADDRESS = re.compile(r"(?<![\d.])\d+\.\d+\.\d+\.\d+(?:/\d+)?")


def listing(instance, state_dir, cidr):
    """Everything there is of an instance, as a set of lines `KIND THING`."""
    found = set()

    def add(kind, things):
        found.update(f"{kind} {thing}" for thing in things)

    add("process", (f"{pid} {line}" for pid, line in processes(instance, state_dir).items()))
    add("cgroup", cgroups(instance))
    mounts = mounts_below(state_dir)
    add("mount", (point for point, kind in mounts if kind != "nsfs"))
    add("netns", (point for point, kind in mounts if kind == "nsfs"))
    add("link", links(instance))
    for kind, arguments in {
        "route": ["route", "show", "table", "all"],
        "address": ["-o", "address"],
        "neighbour": ["neighbour", "show", "nud", "permanent"],
        "rule": ["rule"],
    }.items():
        add(kind, lines_within(cidr, ["ip", *arguments]))
    add("nftables", (line for line in lines(["nft", "list", "tables"]) if instance in line.split()))
    add("socket", sockets(instance, state_dir))
    return found


def kinds(found):
    return {thing.split()[0] for thing in found}


def lines(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    return [line.strip() for line in done.stdout.splitlines()]


def lines_within(cidr, command):
    """Lines that name an address of the range."""
    network = ipaddress.ip_network(cidr)

    def within(text):
        try:
            return ipaddress.ip_network(text, strict=False).subnet_of(network)
        except ValueError:
            return False

    return [line for line in lines(command) if any(within(text) for text in ADDRESS.findall(line))]


def processes(instance, state_dir):
    """Command lines by pid: what runs in a cgroup of the instance, or names it or its directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            groups = (entry / "cgroup").read_text()
        except OSError:
            continue  # It ended meanwhile.
        if f":/{instance}.slice/" in groups or f"-namespace {instance} " in line or str(state_dir) in line:
            found[int(entry.name)] = line
    return found


def cgroups(instance):
    """On version 1 every hierarchy is a directory of its own."""
    name = f"{instance}.slice"
    roots = [CGROUPS / name, *CGROUPS.glob(f"*/{name}")]
    return [path for root in roots for path, _, _ in os.walk(root)]


def mounts_below(state_dir):
    """(mount point, file system), in the order of mounting: proc_pid_mountinfo(5)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4].startswith(f"{state_dir}/"):
            found.append((fields[4], fields[fields.index("-") + 1]))
    return found


def links(instance):
    found = []
    for alias in Path("/sys/class/net").glob("*/ifalias"):
        try:
            if alias.read_text().startswith(f"{instance}/"):
                found.append(alias.parent.name)
        except OSError:
            pass  # The link went away meanwhile.
    return found


def sockets(instance, state_dir):
    """Those bound now, the abstract lock of the instance among them."""
    paths = (line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines())
    return {path for path in paths if path.startswith(f"{state_dir}/") or path.endswith(f"/{instance}")}


def container_pids(instance, task_arn):
    """The processes of a task's containers, by the kernel's own account."""
    task = task_arn.rsplit("/", 1)[-1]
    for root in (CGROUPS / "memory" / f"{instance}.slice", CGROUPS / f"{instance}.slice"):
        if (root / task / "c").is_dir():
            files = (root / task / "c").rglob("cgroup.procs")
            return sorted(int(pid) for file in files for pid in file.read_text().split())
    return []


def limits(pid, above=0):
    """Of a process's cgroup, or of the one so many levels above it: memory in bytes, CPUs, and CPU shares (of v1)."""
    paths = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path.lstrip("/")

    def read(controller, file):
        directory = CGROUPS / controller / paths[controller]
        for _ in range(above):
            directory = directory.parent
        return int((directory / file).read_text())

    quota, period = read("cpu", "cpu.cfs_quota_us"), read("cpu", "cpu.cfs_period_us")
    return {
        "memory": read("memory", "memory.limit_in_bytes"),
        "cpus": quota / period if quota > 0 else None,
        "shares": read("cpu", "cpu.shares"),
    }


def free_cidr():
    """A /24 that no route of this host overlaps; other ranges than those of the tests in Rust and of the demo."""
    taken = [
        ipaddress.ip_network(text, strict=False)
        for line in lines(["ip", "-4", "route", "show", "table", "all"])
        for text in ADDRESS.findall(line)
    ]
    # By process, as a range is seen to be taken only when a task has an address of it.
    second, start = 96 + os.getpid() % 32, secrets.randbelow(256)
    for offset in range(256):
        network = ipaddress.ip_network(f"10.{second}.{(start + offset) % 256}.0/24")
        if not any(network.overlaps(other) for other in taken):
            return str(network)
    raise RuntimeError(f"no free /24 in 10.{second}.0.0/16")


def remove(instance, state_dir, cidr):
    """Takes away by force what `listing` finds; only by names and numbers of this instance."""
    for _ in range(50):
        pids = processes(instance, state_dir)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not pids:
            break
        time.sleep(0.1)
    for point, _ in reversed(mounts_below(state_dir)):
        force("umount", "-l", point)
    for link in links(instance):
        force("ip", "link", "delete", link)
    for path in sorted(cgroups(instance), key=len, reverse=True):
        try:
            os.rmdir(path)
        except OSError as error:
            print(f"{path}: {error}", file=sys.stderr)
    if any(instance in line.split() for line in lines(["nft", "list", "tables"])):
        force("nft", "delete", "table", "inet", instance)


def force(*command):
    """What fails is found again by the next listing: a link goes away with its namespace, for one."""
    subprocess.run(command, check=False, capture_output=True, timeout=COMMAND_SECONDS)


def clean(base):
    """Removes what is left of every `berth dev` under `base`; whether there was nothing."""
    clean = True
    for file in sorted(Path(base).glob("*/*/identity.json")):
        identity = json.loads(file.read_text())
        left = listing(**identity)
        if left:
            clean = False
            print(f"left behind by {identity['instance']}, removed now:", *sorted(left), sep="\n  ", file=sys.stderr)
            remove(**identity)
        shutil.rmtree(identity["state_dir"], ignore_errors=True)
    return clean


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "clean":
        sys.exit("usage: host.py clean DIR")
    sys.exit(0 if clean(sys.argv[2]) else 1)
