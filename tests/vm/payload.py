"""Owns what machines are given: disks with programs of this working copy, built before any machine starts."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from base import ROOT, store

sys.path.append(str(ROOT / "tests/clients"))
import image  # noqa: E402 (the clients' tests have it)

PACKAGES = ROOT / "target/packages"
SOURCES = ["agent", "cli", "control-plane", "proto", "service", "packaging", "systemd", "scripts/package",
           "scripts/build-helpers", "Cargo.lock", "Cargo.toml"]
BUILD_SECONDS = 3600


class BuildError(AssertionError):
    """Something could not be built; the message has what the build said."""


def build(*command, environment=None):
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | (environment or {}), timeout=BUILD_SECONDS, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}{done.stdout}")
    return done.stdout


def disk(name, content):
    """An ext4 image of the directory `content`, as small as it can be."""
    image = store() / f"{name}.img"
    size = sum(file.stat().st_size for file in content.rglob("*") if file.is_file())
    fresh = image.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with fresh.open("wb") as file:
        file.truncate(size + size // 10 + (32 << 20))
    build("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", content, fresh)
    # A machine that has the old one keeps it.
    return fresh.rename(image)


def host_tests_disk():
    """The host tests, laid out as cargo does: they look for the programs beside their own directory."""
    with _lock("host-tests"):
        said = build("cargo", "test", "--quiet", "--locked", "--workspace", "--test", "host", "--no-run", "--message-format=json")
        artifacts = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
        tests = [
            Path(artifact["executable"]) for artifact in artifacts
            if artifact.get("executable") and artifact["target"]["name"] == "host"
        ]
        build("cargo", "build", "--quiet", "--locked", "--workspace", "--bins")
        content = store() / "host-tests"
        shutil.rmtree(content, ignore_errors=True)
        (content / "deps").mkdir(parents=True)
        build("strip", "--strip-debug", "-o", content / "deps/host", tests[-1])
        for program in ("berth-agent", "berth-logger"):
            build("strip", "--strip-debug", "-o", content / program, tests[-1].parents[1] / program)
        build("scripts/build-helpers", content, "berth-init")
        image = disk("host-tests", content)
        shutil.rmtree(content)
        return image


def bundle_disk():
    """What a host is installed from without a network: the directory that `make bundle` makes, with the tests' image."""
    with _lock("bundle"):
        _packages()
        archive = store() / "busy.tar"
        if not archive.exists():
            image.write_archive(archive)
        bundles = ROOT / "target/bundle"
        for old in bundles.glob("*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        # The Debian packages are those of the last one: asking a mirror again takes a minute, and needs one.
        debs = store() / f"debs-{hashlib.sha256((ROOT / 'scripts/bundle').read_bytes()).hexdigest()[:12]}"
        build("scripts/bundle", archive, environment={"DEBS": str(debs)} if debs.exists() else {})
        (made,) = (path for path in bundles.iterdir() if path.is_dir())
        if not debs.exists():
            shutil.copytree(made / "debs", debs)
        return disk("bundle", made)


# In the image that `attributes_disk` has, in a directory of its own: name, mode, user, group.
ATTRIBUTES = "127.0.0.1:1/attributes:latest"
KEPT = [("srv/kept", 0o2750, 7, 8), ("srv/kept/setuid", 0o4755, 0, 0), ("srv/kept/setgid", 0o2711, 1000, 1001),
        ("srv/kept/able", 0o755, 0, 0), ("srv/kept/sticky", 0o1777, 65534, 65534)]
# capabilities(7): version 2, effective, CAP_NET_BIND_SERVICE.
ABLE = b"\x01\x00\x00\x02\x00\x04" + bytes(14)


def attributes_disk():
    """An image with files that only a privileged copy keeps as they are."""
    entries = []
    for name, mode, user, group in KEPT:
        entry = tarfile.TarInfo(name)
        entry.mode, entry.uid, entry.gid = mode, user, group
        entry.type = tarfile.DIRTYPE if name in ("srv/kept", "srv/kept/sticky") else tarfile.REGTYPE
        if name.endswith("able"):
            entry.pax_headers = {"SCHILY.xattr.security.capability": ABLE.decode("ascii")}
        entries.append((entry, b"" if entry.type == tarfile.DIRTYPE else f"{name}\n".encode()))
    with _lock("attributes"):
        content = store() / "attributes"
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        image.write_archive(content / "attributes.tar", ATTRIBUTES, entries)
        made = disk("attributes", content)
        shutil.rmtree(content)
        return made


def upgrade_disk():
    """The same programs as packages of a higher version."""
    with _lock("upgrade"):
        _packages()
        content = store() / "upgrade"
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        for package in PACKAGES.glob("*.deb"):
            unpacked = store() / "unpacked"
            shutil.rmtree(unpacked, ignore_errors=True)
            build("dpkg-deb", "-R", package, unpacked)
            control = unpacked / "DEBIAN/control"
            control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+upgrade", control.read_text()))
            build("dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", unpacked, content)
            shutil.rmtree(unpacked)
        return disk("upgrade", content)


def _packages():
    """Those of `make package` if they are newer than all they are made of; else they are made from the debug build."""
    sums = PACKAGES / "SHA256SUMS"
    sources = build("git", "ls-files", *SOURCES).split()
    newest = max((ROOT / source).stat().st_mtime for source in sources if (ROOT / source).exists())
    if not sums.exists() or sums.stat().st_mtime < newest or not list(PACKAGES.glob("*.deb")):
        build("scripts/package", environment={"PROFILE": "debug", "FORMATS": "deb"})


@contextlib.contextmanager
def _lock(name):
    with (store() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
