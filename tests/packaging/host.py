"""Owns the host that a test has for itself: a minimal Debian in a chroot, on an overlay that is thrown away."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "target/packaging-tests"
LIMIT_SECONDS = 120
# The same words wherever a test needs them.
HASH = "sha256:" + "0123456789abcdef" * 4
TOKEN = "berth1.0a1b2c.secret-part_of"

# Answers as the real ones would; what is asked of them is in /var/log/asked, one line each.
AGENT = """#!/bin/sh
echo "berth-agent $*" >>/var/log/asked
case $1 in
register)
    echo "token $BERTH_JOIN_TOKEN" >>/var/log/asked
    if [ -f /etc/refuse ]; then echo '{"status": "failed", "error": "the control plane refused the join token"}'; exit 3; fi
    status=registered
    if [ -d /var/lib/berth/identity ]; then status=already-registered; fi
    mkdir -p -m 700 /var/lib/berth/identity && touch /var/lib/berth/identity/node.pem
    echo "{\\"status\\": \\"$status\\", \\"nodeId\\": \\"0123\\", \\"cluster\\": \\"shop\\", \\"checks\\": []}"
    ;;
status) test -f /etc/ready ;;
purge) test ! -f /etc/unpurgeable ;;
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >>/var/log/asked
case "$*" in
*is-active*) exit 3 ;;
*ActiveState*) cat /etc/active-state 2>/dev/null || echo activating ;;
*is-enabled*nftables*) test -f /etc/nftables-enabled ;;
esac
"""
STAT = """#!/bin/sh
case "$*" in
*/sys/fs/cgroup) cat /etc/cgroup-type ;;
*) exec /usr/bin/stat "$@" ;;
esac
"""
# As apt installs it, and old or new as a test wants.
CONTAINERD = """#!/bin/sh
echo "containerd github.com/containerd/containerd $(cat /etc/containerd-version) x"
"""
# What is asked of a containerd that a bundle brought: /etc/ctr has the answers, by namespace and kind.
CTR = """#!/bin/sh
case "$*" in
'namespaces ls -q') cat /etc/ctr/namespaces ;;
*) cat "/etc/ctr/$2-$3" 2>/dev/null || true ;;
esac
"""
# Those that a bundle brings for a host without them.
BROUGHT = {
    "containerd": {"usr/bin/containerd": CONTAINERD, "usr/bin/ctr": CTR},
    "runc": {"usr/sbin/runc": "#!/bin/sh\n"},
    "nftables": {"usr/sbin/nft": "#!/bin/sh\n", "etc/nftables.conf": "# empty\n"},
}


def run(*command, **options):
    return subprocess.run(command, check=True, timeout=LIMIT_SECONDS, **options)


def base():
    """The directory of the Debian that all tests begin with."""
    STORE.mkdir(parents=True, exist_ok=True)
    made = STORE / "debian"
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            fresh = STORE / "debian.new"
            shutil.rmtree(fresh, ignore_errors=True)
            subprocess.run(
                ["mmdebstrap", "--quiet", "--variant=minbase", "--include=curl,init-system-helpers", "bookworm", fresh],
                check=True, timeout=600,
            )
            fresh.rename(made)
    return made


def deb(directory, version="0.1.0-1", broken=False):
    """A berth-agent package with the real maintainer scripts, the real unit, and a program that only answers."""
    scripts = {
        script: (ROOT / "packaging/deb/berth-agent" / script).read_text() for script in ("postinst", "prerm", "postrm")
    }
    if broken:
        scripts["postinst"] = "#!/bin/sh\nexit 7\n"
    files = {
        "usr/bin/berth-agent": AGENT, "usr/bin/berth-logger": "#!/bin/sh\n",
        "usr/bin/berth-init": "#!/bin/sh\n", "etc/berth/agent.toml": "# empty\n",
    } | {
        f"usr/lib/systemd/system/{unit}": (ROOT / "systemd" / unit).read_text()
        for unit in ("berth-agent.service", "berth-tasks.service")
    }
    return stand_in(directory, "berth-agent", files, version=version, scripts=scripts)


def stand_in(directory, package, files, *, version="1-1", scripts=None):
    """A package of these files, those that begin with #! as programs; the file's name."""
    tree = Path(tempfile.mkdtemp(dir=directory))
    (tree / "DEBIAN").mkdir()
    tree.chmod(0o755)
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    scripts = {f"DEBIAN/{name}": content for name, content in (scripts or {}).items()}
    for name, content in (files | scripts).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if content.startswith("#!") else 0o644)
    (tree / "DEBIAN/control").write_text(
        f"Package: {package}\nVersion: {version}\nArchitecture: {architecture}\n"
        "Maintainer: Berth <berth-run@users.noreply.github.com>\nDescription: stand-in\n"
    )
    (tree / "DEBIAN/conffiles").write_text("".join(f"/{name}\n" for name in files if name.startswith("etc/")))
    name = f"{package}_{version}_{architecture}.deb"
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, directory / name, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return name


def write_sums(directory):
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(directory)}\n"
        for file in sorted(directory.rglob("*")) if file.is_file() and file.name != "SHA256SUMS"
    ]
    (directory / "SHA256SUMS").write_text("".join(lines))


class Host:
    """A host with packages in /opt/berth and bootstrap.sh beside them."""

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="berth-packaging."))
        for name in ("upper", "work", "root"):
            (self.dir / name).mkdir()
        self.root = self.dir / "root"
        layers = f"lowerdir={base()},upperdir={self.dir}/upper,workdir={self.dir}/work"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
        for name in ("proc", "dev"):
            run("mount", "--rbind", "--make-rslave", f"/{name}", self.root / name)
        self.write("usr/local/bin/systemctl", SYSTEMCTL, 0o755)
        self.write("usr/local/bin/stat", STAT, 0o755)
        self.write("usr/local/bin/containerd", CONTAINERD, 0o755)
        self.write("etc/containerd-version", "1.6.20~ds1")
        self.write("etc/cgroup-type", "cgroup2fs")
        self.write("etc/ready", "")
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.packages = self.root / "opt/berth"
        self.packages.mkdir(parents=True)
        shutil.copy(ROOT / "packaging/bootstrap.sh", self.packages / "bootstrap.sh")
        deb(self.packages)
        write_sums(self.packages)

    def close(self):
        run("umount", "-R", "-l", self.root)
        shutil.rmtree(self.dir)

    def bundle(self):
        """Takes containerd from the host, and makes the packages a bundle that brings it."""
        (self.root / "usr/local/bin/containerd").unlink()
        debs = self.packages / "debs"
        debs.mkdir()
        architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        (debs / "RELEASE").write_text(f"debian bookworm {architecture}\n")
        for package, files in BROUGHT.items():
            stand_in(debs, package, files)
        write_sums(self.packages)
        self.write("etc/ctr/namespaces", "default\n")

    def write(self, name, content, mode=0o644):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)

    def read(self, name):
        return (self.root / name).read_text()

    def asked(self):
        """What was asked of systemctl and the agent so far."""
        path = self.root / "var/log/asked"
        return path.read_text() if path.exists() else ""

    def forget(self):
        (self.root / "var/log/asked").unlink(missing_ok=True)

    def shell(self, *command, **environment):
        """Exit code and output of a command in it."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            ["chroot", self.root, *command], env={"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8", **environment},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_SECONDS,
        )
        return done.returncode, done.stdout

    def bootstrap(self, *arguments, **environment):
        # Nobody answers there, at once.
        environment.setdefault("BERTH_IMDS_ADDRESS", "http://127.0.0.1:9")
        return self.shell("sh", "/opt/berth/bootstrap.sh", *arguments, **environment)

    def status(self, package="berth-agent"):
        """As dpkg has it: `ii`, `rc`, or nothing."""
        code, out = self.shell("dpkg-query", "-W", "-f", "${db:Status-Abbrev}", package)
        return out.strip() if code == 0 else ""

    def files(self):
        """Everything on it that is not the system's own book-keeping."""
        own = ("proc", "dev", "var/lib/dpkg", "var/cache", "var/log", "var/lib/apt", "opt/berth", "tmp")
        found = set()
        for directory, directories, names in os.walk(self.root):
            here = os.path.relpath(directory, self.root)
            if here.startswith(own):
                directories.clear()
                continue
            found.update(os.path.normpath(os.path.join(here, name)) for name in names + directories)
        return {name for name in found if not name.startswith(own)}
