"""Owns the machines' base images: Debian 12 with systemd, cgroup v2 and sshd, built once and never written to again.

Two disks of one recipe: `fresh.img` is a host that nobody installed anything on, `containerd.img` has containerd, runc,
nftables, an NFS server and AppArmor's tools besides (their services do not start), for tests that need no fresh host. The directory's name holds a hash of this
file: a changed recipe is another image. Knows nothing of Berth.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Everything else that a host brings is what a package has to ask for itself.
PACKAGES = "systemd,systemd-sysv,udev,dbus,kmod,iproute2,openssh-server,procps,ca-certificates,curl,busybox-static"
KERNEL = "linux-image-cloud-amd64"
RUNTIME = ["containerd", "runc", "nftables", "apparmor", "nfs-kernel-server"]
NOT_STARTED = "apparmor nfs-server nfs-client.target nfs-blkmap rpcbind.service rpcbind.socket rpc-statd-notify".split()
# Sparse; what a test may fill.
DISK = "6G"
BUILD_SECONDS = 900
# Machines of one private network: 10.99.0.1 to 10.99.0.8.
MACHINES_MAX = 8
MASKED = """getty.target systemd-logind.service systemd-networkd-wait-online.service apt-daily.timer
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
    systemd-timesyncd.service systemd-pstore.service console-getty.service""".split()

# In a mount namespace with a tmpfs: dpkg syncs every file, which takes longer than all the rest on a disk.
BUILD = r"""
set -eu
mount -t tmpfs -o size=4G,mode=755 none "$WORK"
export TMPDIR="$WORK" LC_ALL=C.UTF-8
mmdebstrap --quiet --variant=minbase --include="$PACKAGES" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt=force-unsafe-io \
    --customize-hook='rm -f "$1"/var/cache/apt/archives/*.deb; chroot "$1" apt-get -qq --download-only --no-install-recommends -y install '"$KERNEL $RUNTIME" \
    --customize-hook="mkdir $WORK/debs && mv \"\$1\"/var/cache/apt/archives/*.deb $WORK/debs/" \
    bookworm "$WORK/root"
cd "$WORK"
rm -f root/etc/dpkg/dpkg.cfg.d/99mmdebstrap
# Unpacked, not installed: its installation makes an initramfs that takes a minute to unpack under emulation.
dpkg-deb -x debs/linux-image-[0-9]*.deb kernel
cp kernel/boot/vmlinuz-* "$OUT/vmlinuz"
mv kernel/lib/modules root/usr/lib/
version=$(basename root/lib/modules/*)
depmod -b root "$version"

# Four modules and a shell.
mkdir -p initrd/bin initrd/dev initrd/proc initrd/root initrd/modules
cp root/bin/busybox initrd/bin/busybox
{
    echo '#!/bin/busybox sh'
    echo '/bin/busybox mount -t devtmpfs dev /dev; /bin/busybox mount -t proc proc /proc'
    for module in virtio_pci virtio_blk virtio_net ext4; do
        chroot root modprobe --set-version "$version" --show-depends "$module"
    done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r module; do
        cp "root$module" initrd/modules/
        echo "/bin/busybox insmod /modules/$(basename "$module")"
    done
    echo '/bin/busybox mount -t ext4 /dev/vda /root; /bin/busybox umount /proc'
    echo '/bin/busybox mount --move /dev /root/dev'
    echo 'exec /bin/busybox switch_root /root /sbin/init'
} >initrd/init
chmod 755 initrd/init
(cd initrd && find . | "$WORK/root/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$OUT/initrd.gz"

install -d -m 700 root/root/.ssh
install -m 600 "$OUT/key.pub" root/root/.ssh/authorized_keys
cp -a "$FILES/." root/
: >root/etc/machine-id
mkdir root/mnt/disk
systemctl --quiet --root=root enable systemd-networkd.service ssh.service
systemctl --quiet --root=root mask $MASKED
image() {
    truncate -s "$DISK" "$OUT/$1.img"
    mkfs.ext4 -q -F -O ^has_journal -d root "$OUT/$1.img"
}
image fresh

# What the packages' scripts would do to a running system, they must not do to this one.
printf '#!/bin/sh\nexit 101\n' >root/usr/sbin/policy-rc.d
chmod 755 root/usr/sbin/policy-rc.d
mkdir root/debs
for deb in debs/*.deb; do
    case $(dpkg-deb -f "$deb" Package) in
    initramfs-tools*|linux-*|klibc-utils|libklibc|cpio|zstd|busybox) rm "$deb" ;;
    # For statistics of NFS that nobody asks for.
    python3*|libpython3*) rm "$deb" ;;
    esac
done
cp debs/*.deb root/debs/
mount -t proc proc root/proc
TMPDIR=/tmp DEBIAN_FRONTEND=noninteractive chroot root sh -c 'dpkg --force-unsafe-io --force-depends -i /debs/*.deb' >/dev/null
umount root/proc
# apt shall find nothing that is missing.
sed -i '/^Package: nfs-common$/,/^$/s/, python3[^,]*//' root/var/lib/dpkg/status
rm -rf root/debs root/usr/sbin/policy-rc.d
systemctl --quiet --root=root mask containerd.service
systemctl --quiet --root=root disable $NOT_STARTED
image containerd
"""


@dataclass(frozen=True)
class Base:
    """Files in a directory of their own."""

    directory: Path

    def disk(self, flavour):
        return self.directory / f"{flavour}.img"

    @property
    def kernel(self):
        return self.directory / "vmlinuz"

    @property
    def initrd(self):
        return self.directory / "initrd.gz"

    @property
    def key(self):
        return self.directory / "key"


def store():
    """Where images and disks are kept."""
    return Path(os.environ.get("BERTH_VM_DIR") or ROOT / "target/vm")


def base():
    """The images of this recipe; the first call on a host builds them, which takes a minute or two."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    directory = store() / f"base-{recipe}"
    store().mkdir(parents=True, exist_ok=True)
    with (store() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            print(f"building the base images in {directory}, once", flush=True)
            _build(directory)
    return Base(directory)


def _build(directory):
    out = directory.with_name(f"{directory.name}.new")
    shutil.rmtree(out, ignore_errors=True)
    (out / "work").mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", out / "key"], check=True)
    _write_files(out / "files")
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OUT": str(out), "WORK": str(out / "work"), "DISK": DISK,
        "FILES": str(out / "files"), "PACKAGES": PACKAGES, "KERNEL": KERNEL, "RUNTIME": " ".join(RUNTIME),
        "MASKED": " ".join(MASKED), "NOT_STARTED": " ".join(NOT_STARTED),
    }
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    built = subprocess.run(
        ["unshare", "--mount", "sh", "-c", BUILD], env=environment | proxies, text=True, timeout=BUILD_SECONDS,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    if built.returncode:
        raise RuntimeError(f"the base image could not be built:\n{built.stdout}")
    shutil.rmtree(out / "files")
    (out / "work").rmdir()
    out.rename(directory)


def _write_files(root):
    """What a provider's image would bring: names, addresses, disks."""
    network = root / "etc/systemd/network"
    network.mkdir(parents=True)
    # qemu's user network; static, so that nothing waits for an answer. Without IPv6: router advertisements would
    # change routes with every second, and tests compare listings.
    (network / "10-outside.network").write_text(
        "[Match]\nMACAddress=52:54:00:00:00:01\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
        "IPv6AcceptRA=no\nLinkLocalAddressing=no\n"
    )
    for number in range(1, MACHINES_MAX + 1):
        (network / f"20-inside-{number}.network").write_text(
            f"[Match]\nMACAddress=52:54:00:00:01:{number:02x}\n[Network]\nAddress=10.99.0.{number}/24\n"
            "IPv6AcceptRA=no\nLinkLocalAddressing=no\n"
        )
    # The root is mounted as it shall be; an entry would make the boot wait for udev to find it again.
    (root / "etc/fstab").write_text("")
    names = "".join(f"10.99.0.{number} vm{number}\n" for number in range(1, MACHINES_MAX + 1))
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{names}")
    (root / "etc/hostname").write_text("vm1\n")
