"""Owns what machines are given: disks with programs of this working copy, built before any machine starts."""

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

from base import ROOT, store

BUILD_SECONDS = 3600


class BuildError(AssertionError):
    """Something could not be built; the message has what the build said."""


def build(*command):
    done = subprocess.run(
        command, cwd=ROOT, timeout=BUILD_SECONDS, text=True, stdin=subprocess.DEVNULL,
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
    with (store() / "host-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = build("cargo", "test", "--quiet", "--locked", "-p", "berth-tests", "--test", "host", "--no-run",
                     "--message-format=json")
        artifacts = (json.loads(line) for line in said.splitlines() if line.startswith("{"))
        tests = [
            Path(artifact["executable"]) for artifact in artifacts
            if artifact.get("executable") and artifact["target"]["name"] == "host"
        ]
        build("cargo", "build", "--quiet", "--locked", "-p", "berth-agent", "-p", "berth-logger", "--bins")
        content = store() / "host-tests"
        shutil.rmtree(content, ignore_errors=True)
        (content / "deps").mkdir(parents=True)
        build("strip", "--strip-debug", "-o", content / "deps/host", tests[-1])
        for program in ("berth-agent", "berth-logger"):
            build("strip", "--strip-debug", "-o", content / program, tests[-1].parents[1] / program)
        image = disk("host-tests", content)
        shutil.rmtree(content)
        return image
