"""Owns the images of these tests: docker archives made on the spot from Debian's static busybox."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

# Nothing listens at that address: the image can only come from the archive.
BUSYBOX = "127.0.0.1:1/busy:latest"
BINARY = Path("/bin/busybox")
# What the server of these images runs as. They have no other user but root.
SERVER_USER = ("web", 1000)
# A server that stands in for people's: told where to listen by what their definitions say in the environment, or else by its
# image. It answers /health and, at /facts, what it sees of itself. Started as `serve`, the image's own command, or as `node`.
SERVE = b"""#!/bin/sh
trap 'kill $(jobs -p); exit 0' TERM
mkdir -p /tmp/www
for word in "$0" "$@"; do echo "word $word"; done >/tmp/www/facts
{
    env | sed 's/^/env /'
    echo "user $(id -un) $(id -u) $(id -g)"
    echo "directory $(pwd)"
    sed 's/^/mount /' /proc/self/mountinfo
} >>/tmp/www/facts
echo fine >/tmp/www/health
for port in ${PORT:-${MCP_HTTP_PORT:-$LISTEN}}; do httpd -f -p "$port" -h /tmp/www & done
wait
"""
CURL = b"""#!/bin/sh
[ "$1" != -f ] || shift
exec wget -q -O - "$@"
"""


def write_archive(path, reference=BUSYBOX, more=()):
    """Busybox, with all its applets. `more`: tarfile's entries with their content, besides."""
    _write(path, reference, _layer(more=more), {"Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["sleep", "3600"]})


def server(ports):
    """The name of the server's image that listens on these, where its environment says nothing else."""
    return "-".join(["127.0.0.1:1/serve", *map(str, ports)]) + ":latest"


def write_server_archive(path, ports):
    files = {"bin/serve": SERVE, "bin/node": SERVE, "bin/curl": CURL}
    name, _ = SERVER_USER
    listen = " ".join(map(str, ports))
    config = {"Env": ["PATH=/bin", f"LISTEN={listen}"], "Cmd": ["serve"], "User": name, "WorkingDir": "/srv"}
    _write(path, server(ports), _layer(files), config)


def _write(path, name, layer, config):
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(files=None, more=()):
    applets = subprocess.run([BINARY, "--list"], capture_output=True, text=True, check=True).stdout.split()
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        _add(layer, "bin/busybox", BINARY.read_bytes(), mode=0o755)
        for applet in applets:
            if applet != "busybox":
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                layer.addfile(link)
        for name, text in (files or {}).items():
            _add(layer, name, text, mode=0o755)
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        layer.addfile(directory)
        _add(layer, "etc/passwd", b"root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
        _add(layer, "etc/group", b"root:x:0:\nweb:x:1000:\n")
        for entry, data in more:
            entry.size = len(data)
            layer.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def _add(archive, name, content, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
