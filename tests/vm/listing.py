"""Owns a listing of all that is on a machine, to be compared before and after: files, users, units, mounts, network,
cgroups, processes. Asks the kernel and the distribution, never Berth."""

# What any installation changes, and what the machine writes by itself.
CHANGING = """/var/lib/dpkg /var/lib/apt /var/cache /var/log /var/lib/systemd /var/tmp /tmp /run/systemd /run/udev /run/log
    /run/sshd /root/.cache /etc/.pwd.lock /run/user /run/blkid /etc/ld.so.cache /etc/resolv.conf /run/utmp /run/mount
    /run/lock /var/backups""".split()

# Debian's own backups of the user files, and times, are no traces of a package.
SCRIPT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /mnt PRUNED \) -prune -o ! -name '*-' -printf 'file %p %y %m %U:%G\n'
find /run -xdev \( -path /nothing PRUNED \) -prune -o -printf 'file %p %y %m %U:%G\n'
getent passwd | sed 's/^/user /'
getent group | sed 's/^/group /'
systemctl list-unit-files --no-legend --plain | awk '{ print "unit-file", $1, $2 }'
systemctl list-units --all --no-legend --plain --type service,slice,mount,timer,socket | awk '$2 != "not-found" { print "unit", $1, $3 }'
awk '{ print "mount", $2, $3 }' /proc/mounts
ip -o link | awk '{ print "link", $2 }'
ip -o address | awk '{ print "address", $2, $4 }'
ip route show table all | sed 's/^/route /'
if command -v nft >/dev/null; then nft list tables | sed 's/^/nftables /'; fi
find /sys/fs/cgroup -type d -printf 'cgroup %p\n'
for pid in /proc/[0-9]*; do
    line=$(tr '\0' ' ' 2>/dev/null <$pid/cmdline) && [ -n "$line" ] && echo "process $line"
done | grep -v -e 'bash -c' -e '^process sshd:' -e '^process tr ' -e 'timeout -k'
cut -d ' ' -f 8- /proc/net/unix | awk '/\// { print "socket", $1 }'
[ ! -S /run/containerd/containerd.sock ] || ctr namespaces list -q | sed 's/^/containerd-namespace /'
"""
# Those of the connection that asks, and others that come and go.
PASSING = ("unit session-", "cgroup /sys/fs/cgroup/user.slice", "unit user", "process (sd-pam)", "process /lib/systemd/systemd-udevd")


def listing(machine):
    """A set of lines `KIND THING`."""
    pruned = " ".join(f"-o -path {path}" for path in CHANGING)
    lines = machine.said(SCRIPT.replace("PRUNED", pruned), seconds=180).splitlines()
    return {line for line in lines if not line.startswith(PASSING)}


def difference(before, after):
    """What came and what went, sorted."""
    return sorted(f"+ {line}" for line in after - before) + sorted(f"- {line}" for line in before - after)
