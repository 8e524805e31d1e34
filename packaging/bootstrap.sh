#!/bin/sh
# bootstrap.sh: makes this host a node of a Berth control plane, or stops it being one.
#
# Looks at the host first and installs nothing that will not work. Run again it goes on where an earlier run was
# interrupted, repairs what is half installed, and changes nothing that is right. docs/install.md has the whole story.
set -eu

VERSION=development # set by scripts/package

# Seconds.
WAIT_READY=120
APT_LOCK_TIMEOUT=180
CLOCK_SKEW_MAX=300
CLOCK_SKEW_WARN=30
FREE_KIB_MIN=1048576
FREE_KIB_WANTED=5242880

CONFIG=/etc/berth
STATE=/var/lib/berth
JOINED=$CONFIG/agent.conf.d/50-joined.toml
ENVIRONMENT=$CONFIG/agent.env
# What this script installed besides berth-agent, for --uninstall: packages, and directories that those make.
INSTALLED=$CONFIG/bootstrap.installed
# Made by containerd itself, so that no package takes them away.
CONTAINERD_DIRECTORIES='/etc/cni /etc/containerd /opt/cni /opt/containerd /run/containerd /var/lib/containerd'
IMAGES=$STATE/images
LOCK=/run/berth-bootstrap.lock
# Only tests have another one.
IMDS=${BERTH_IMDS_ADDRESS:-http://169.254.169.254}

control_plane='' token=${BERTH_JOIN_TOKEN:-} ca_hash='' cluster='' from='' attributes=''
# Only `berth-agent register` is given it.
unset BERTH_JOIN_TOKEN
dry_run=no uninstall=no yes=no scratch='' step='start' changed=no

usage() {
    cat <<'USAGE'
bootstrap.sh makes this host a node of a Berth control plane: checks the host, installs containerd and berth-agent,
joins, starts, and waits until the control plane has the node. `berth token create` prints the whole command.

  bootstrap.sh --control-plane URL --token T --ca-hash H [options]
  bootstrap.sh --uninstall [--yes] [--dry-run]

  --control-plane URL   https://HOST:PORT of the control plane's node port (8781)
  --token T             join token: berth1.…; better: environment variable BERTH_JOIN_TOKEN, as others can read arguments
  --ca-hash H           sha256:…, the hash of the control plane's authority
  --cluster C           the cluster the token must be for
  --attribute K=V       attribute of the node, for placement constraints; several times
  --from DIR|URL        packages and SHA256SUMS [default: the directory of this script]; http only to loopback
  --dry-run             check everything, print each step, change nothing
  --uninstall           end all tasks and remove berth-agent with all it made; what this script installed besides
                        (containerd, runc, nftables …) goes too, unless somebody uses it
  --yes                 do not ask
  --version, --help

HTTPS_PROXY, HTTP_PROXY and NO_PROXY are used, and kept for the agent. On EC2 (IMDSv2) instance id, type, zone and tags
become attributes. Exit codes: 0 the node is ready, or gone; 1 failed, and said why; 2 wrong arguments.
USAGE
}

say() { echo "bootstrap: $*"; }
warn() { echo "bootstrap: warning: $*" >&2; }
fail() { echo "bootstrap: $*" >&2; exit 1; }
refuse() { echo "bootstrap: $*" >&2; echo "bootstrap: see bootstrap.sh --help" >&2; exit 2; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command that changes the host, or says what it would be.
change() {
    if [ "$dry_run" = yes ]; then say "would run: $*"; else "$@"; fi
}

begin() {
    step=$1
    say "$step"
}

finish() {
    code=$?
    trap - EXIT
    if [ -n "$scratch" ]; then rm -rf "$scratch" "$LOCK"; fi
    if [ "$code" != 0 ] && [ "$code" != 2 ]; then
        echo "bootstrap: failed: $step. Mend it and run the same command again: it goes on from here." >&2
    fi
    exit "$code"
}

# --- arguments ---

# ECS: letters, digits and a few signs; at most 128.
valid_name() { printf '%s\n' "$1" | LC_ALL=C grep -qE '^[A-Za-z0-9_./-]{1,128}$'; }
valid_value() { printf '%s\n' "$1" | LC_ALL=C grep -qE '^[A-Za-z0-9_./:@+= -]{0,128}$' && [ "$(printf '%s' "$1" | wc -l)" = 0 ]; }

add_attribute() {
    name=${1%%=*} value=
    case $1 in *=*) value=${1#*=} ;; esac
    valid_name "$name" || refuse "--attribute $1: the name must be 1 to 128 of letters, digits, _ . / -"
    valid_value "$value" || refuse "--attribute $1: the value must be at most 128 of letters, digits, space, _ . / : @ + = -"
    set_attribute "$name" "$value"
}

# One line each, NAME=VALUE; the first of a name stays.
set_attribute() {
    case "
$attributes" in
    *"
$1="*) ;;
    *) attributes="$attributes$1=$2
" ;;
    esac
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        --*=*)
            option=${1%%=*} value=${1#*=}
            shift
            set -- "$option" "$value" "$@"
            ;;
        esac
        case $1 in
        --control-plane | --token | --ca-hash | --cluster | --attribute | --from)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case $1 in
            --control-plane) control_plane=$2 ;;
            --token) token=$2 ;;
            --ca-hash) ca_hash=$2 ;;
            --cluster) cluster=$2 ;;
            --attribute) add_attribute "$2" ;;
            --from) from=$2 ;;
            esac
            shift 2
            ;;
        --dry-run) dry_run=yes; shift ;;
        --uninstall) uninstall=yes; shift ;;
        --yes | -y) yes=yes; shift ;;
        --version) echo "bootstrap.sh $VERSION"; exit 0 ;;
        --help | -h) usage; exit 0 ;;
        *) refuse "unknown argument: $1" ;;
        esac
    done
}

check_arguments() {
    [ -n "$control_plane" ] || refuse "--control-plane is missing"
    printf '%s\n' "$control_plane" | grep -qE '^https://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?$' ||
        refuse "--control-plane $control_plane: must be https://HOST:PORT"
    control_plane=${control_plane%/}
    [ -n "$token" ] || refuse "--token is missing: make one with: berth token create"
    printf '%s\n' "$token" | LC_ALL=C grep -qE '^berth1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$' ||
        refuse "--token: this is no join token: it begins with berth1. and has two more parts"
    [ -n "$ca_hash" ] || refuse "--ca-hash is missing: berth token create prints it"
    printf '%s\n' "$ca_hash" | grep -qE '^sha256:[0-9a-f]{64}$' || refuse "--ca-hash: must be sha256: and 64 hexadecimal digits"
    [ -z "$cluster" ] || valid_name "$cluster" || refuse "--cluster $cluster: no such name can be"
    case $from in
    http://127.0.0.1[:/]* | http://localhost[:/]* | 'http://[::1]'[:/]*) ;;
    http://*) refuse "--from $from: what comes by plain HTTP could be anybody's: use https, or copy the directory here" ;;
    esac
}

# --- the host ---

problems=0
good() { say "  ok       $*"; }
dubious() { echo "bootstrap:   warning  $*" >&2; }
bad() { echo "bootstrap:   PROBLEM  $*" >&2; problems=$((problems + 1)); }

# 1.6.20~ds1 is at least 1.6
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

check_system() {
    if [ -d /run/systemd/system ]; then
        good "systemd runs this host"
    else
        bad "systemd does not run this host (a container?): the agent is a systemd service"
    fi
    case $(stat -f -c %T /sys/fs/cgroup 2>/dev/null) in
    cgroup2fs) good "cgroup v2" ;;
    *) bad "cgroup v2 is not what this host uses: boot it with systemd.unified_cgroup_hierarchy=1 on the kernel's command line" ;;
    esac
    kernel=$(uname -r)
    if at_least "$kernel" 5.10; then
        good "kernel $kernel"
    else
        bad "kernel $kernel: Berth needs 5.10 or newer"
    fi
    if have apt-get && have dpkg-deb; then
        packages=deb
    elif have rpm && { have dnf || have yum; }; then
        packages=rpm
        dubious "installing by rpm is not tested: see docs/support.md"
    else
        packages=none
        bad "neither apt-get nor dnf is here: install by hand from the tarball: see docs/install.md"
    fi
    case $(uname -m) in
    x86_64) deb_arch=amd64 rpm_arch=x86_64 ;;
    aarch64) deb_arch=arm64 rpm_arch=aarch64; dubious "aarch64 is not tested: see docs/support.md" ;;
    *) deb_arch=none rpm_arch=none; bad "architecture $(uname -m): Berth runs on x86_64 and aarch64" ;;
    esac
}

check_space() {
    for directory in /var/lib /usr; do
        free=$(df -Pk "$directory" | awk 'NR == 2 { print $4 }')
        inodes=$(df -Pi "$directory" 2>/dev/null | awk 'NR == 2 { print $4 }')
        if [ "$free" -lt "$FREE_KIB_MIN" ]; then
            bad "$directory has $((free / 1024)) MiB free: 1 GiB is needed"
        elif [ "$free" -lt "$FREE_KIB_WANTED" ]; then
            dubious "$directory has only $((free / 1024)) MiB free: images and logs want 5 GiB"
        else
            good "$directory has $((free / 1048576)) GiB free"
        fi
        case $inodes in
        '' | - | *[!0-9]*) ;;
        *) if [ "$inodes" -gt 0 ] && [ "$inodes" -lt 10000 ]; then bad "$directory has $inodes free inodes: 10000 are needed"; fi ;;
        esac
    done
}

check_neighbours() {
    for unit in docker kubelet k3s k3s-agent ecs nomad; do
        if systemctl is-active --quiet "$unit" 2>/dev/null; then
            case $unit in
            docker) dubious "docker runs here: it sets the policy of forwarding to DROP, which can cut tasks off: see docs/troubleshooting.md" ;;
            *) dubious "$unit runs here: it counts on CPU and memory that Berth would also give to its tasks: set reserved.* in the configuration" ;;
            esac
        fi
    done
    if have containerd; then
        found=$(containerd --version 2>/dev/null | awk '{ print $3 }' | sed 's/^v//')
        if [ -z "$found" ]; then
            bad "containerd is here and does not say its version: containerd --version"
        elif at_least "$found" 1.6; then
            good "containerd $found"
        else
            bad "containerd $found is too old: 1.6 or newer is needed: upgrade it"
        fi
    else
        good "containerd is not here and will be installed"
    fi
    if [ -S /run/containerd/containerd.sock ] && have systemctl && ! systemctl is-active --quiet containerd 2>/dev/null; then
        dubious "something answers at containerd's socket, and it is not containerd.service"
    fi
}

# Reaches the control plane and compares clocks. The answer is not to be trusted, and nothing is: joining checks hash and
# certificate. It only tells early what would go wrong.
check_control_plane() {
    if ! have curl; then
        dubious "curl is not here: whether the control plane can be reached is seen when joining"
        return
    fi
    status=0
    curl -sSk --connect-timeout 10 --max-time 20 -o /dev/null -D "$scratch/headers" "$control_plane/" 2>"$scratch/curl" || status=$?
    # 52 and 16, 92, 35, 56: somebody is there, who does not speak HTTP/1 or wants a certificate.
    case $status in
    0 | 16 | 35 | 52 | 55 | 56 | 92) good "$control_plane takes connections" ;;
    *) bad "$control_plane cannot be reached: $(tail -n 1 "$scratch/curl" | sed 's/^curl: //'): is it running, is the port right, is a firewall between?" ;;
    esac
    there=$(sed -n 's/^[Dd]ate: *//p' "$scratch/headers" 2>/dev/null | tr -d '\r' | tail -n 1)
    there=$([ -n "$there" ] && date -u -d "$there" +%s 2>/dev/null) || return 0
    skew=$(($(date -u +%s) - there))
    skew=${skew#-}
    if [ "$skew" -gt "$CLOCK_SKEW_MAX" ]; then
        bad "this host's clock is $skew s off the control plane's: set it: timedatectl set-ntp true"
    elif [ "$skew" -gt "$CLOCK_SKEW_WARN" ]; then
        dubious "this host's clock is $skew s off the control plane's: timedatectl set-ntp true"
    else
        good "the clock agrees with the control plane's"
    fi
}

check_host() {
    begin "checking this host"
    check_system
    check_space
    check_neighbours
    check_control_plane
    [ "$problems" = 0 ] || fail "nothing was changed: $problems problem(s), named above"
}

# --- packages ---

fetch() { # URL FILE
    curl -fsSL --proto '=https,http' --proto-redir '=https' --retry 3 --connect-timeout 15 --max-time 900 -o "$2" "$1" ||
        fail "cannot download $1"
}

# The name of the newest file that matches, as SHA256SUMS has it.
pick() { # PATTERN
    sed 's/^[0-9a-f]\{64\} [ *]//' "$source_dir/SHA256SUMS" | grep -E "$1" | sort -V | tail -n 1
}

# Sets source_dir: a local directory with SHA256SUMS and the files that are needed, all as the sums say.
find_packages() {
    begin "looking for packages"
    if [ -z "$from" ]; then
        case $0 in
        */*) from=$(cd "$(dirname "$0")" && pwd) ;;
        *) [ ! -f "$0" ] || from=$PWD ;;
        esac
        [ -f "${from:-/nonexistent}/SHA256SUMS" ] ||
            fail "there are no packages beside this script: give --from with the directory, or the https URL, that has SHA256SUMS and the packages (make package or make bundle make it)"
    fi
    case $from in
    https://* | http://*)
        have curl || fail "curl is needed to download from $from: install it, or copy the directory here"
        source_dir=$scratch/packages
        mkdir "$source_dir"
        fetch "${from%/}/SHA256SUMS" "$source_dir/SHA256SUMS"
        ;;
    *)
        [ -d "$from" ] || fail "--from $from: no such directory"
        [ -f "$from/SHA256SUMS" ] || fail "--from $from: it has no SHA256SUMS"
        source_dir=$(cd "$from" && pwd)
        ;;
    esac
    # Nothing but sums and names below the directory.
    if grep -vqE '^[0-9a-f]{64} [ *][A-Za-z0-9+~_][A-Za-z0-9+~_.:%-]*(/[A-Za-z0-9+~_][A-Za-z0-9+~_.:%-]*)*$' "$source_dir/SHA256SUMS"; then
        fail "$from/SHA256SUMS is not a list of checksums: nothing was installed"
    fi
    case $packages in
    deb) agent_package=$(pick "^berth-agent_[^/]*_$deb_arch\.deb\$") ;;
    rpm) agent_package=$(pick "^berth-agent-[^/]*\.$rpm_arch\.rpm\$") ;;
    esac
    [ -n "$agent_package" ] || fail "$from has no berth-agent package for $(uname -m)"
    needed=$agent_package
    # Of a bundle: what an offline host needs besides, and images.
    more=$(sed 's/^[0-9a-f]\{64\} [ *]//' "$source_dir/SHA256SUMS" | grep -E '^(debs|images)/' || true)
    needed="$needed $(echo "$more" | tr '\n' ' ')"
    for file in $needed; do
        case $from in
        https://* | http://*)
            mkdir -p "$source_dir/$(dirname "$file")"
            fetch "${from%/}/$file" "$source_dir/$file"
            ;;
        esac
        [ -f "$source_dir/$file" ] || fail "$from/$file is missing, and SHA256SUMS names it: nothing was installed"
    done
    for file in $needed; do
        awk -v name="$file" '{ n = $2; sub(/^\*/, "", n); if (n == name) print }' "$source_dir/SHA256SUMS"
    done >"$scratch/sums"
    if ! (cd "$source_dir" && sha256sum --quiet -c "$scratch/sums") >"$scratch/verified" 2>&1; then
        cat "$scratch/verified" >&2
        fail "files in $from are not what SHA256SUMS says (damaged, or changed): nothing was installed"
    fi
    good "$agent_package and $(echo "$more" | grep -c . || true) other files, as SHA256SUMS says"
}

# Whatever is wanted of it: a package on hold is installed, too.
installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# What is to be installed, as arguments of apt-get: the agent, and for offline hosts what it needs of the bundle.
deb_arguments() {
    echo "$source_dir/$agent_package"
    if [ "$sources" = bundle ]; then
        for deb in "$source_dir"/debs/*.deb; do
            [ -f "$deb" ] || continue
            name=$(dpkg-deb -f "$deb" Package)
            case $name in
            containerd | runc) if have containerd; then continue; fi ;;
            esac
            installed "$name" || echo "$deb"
        done
    fi
}

# Not with --no-download, as apt then has no path of a local file either: with a bundle, mirrors are left out of sight.
apt_install() { # [-s]
    if [ "$sources" = bundle ]; then
        mkdir -p "$scratch/lists/partial"
        set -- "$@" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o "Dir::State::Lists=$scratch/lists"
    fi
    # shellcheck disable=SC2046 # one argument for each line; names have no spaces
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o "DPkg::Lock::Timeout=$APT_LOCK_TIMEOUT" -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
        --no-install-recommends "$@" install $(deb_arguments) >"$scratch/apt" 2>&1
}

# A bundle's packages are of one release of one distribution; other hosts have to ask their own mirrors.
choose_sources() {
    sources=mirrors
    [ -f "$source_dir/debs/RELEASE" ] || return 0
    made_for=$(cat "$source_dir/debs/RELEASE")
    # shellcheck disable=SC1091 # not this project's
    is=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-} $deb_arch")
    if [ "$made_for" = "$is" ]; then
        sources=bundle
    else
        dubious "this bundle's Debian packages are for $made_for, and this is $is: what is missing is asked from apt's mirrors"
    fi
}

# Whether apt could install it: asked before anything is changed.
plan_installation() {
    [ "$packages" = deb ] || return 0
    begin "looking what is to be installed"
    wanted=$(dpkg-deb -f "$source_dir/$agent_package" Version)
    have_version=$(dpkg-query -W -f '${Version}' berth-agent 2>/dev/null || true)
    if installed berth-agent && [ "$have_version" = "$wanted" ]; then
        good "berth-agent $wanted is installed"
        return
    fi
    if installed berth-agent && dpkg --compare-versions "$have_version" gt "$wanted"; then
        fail "berth-agent $have_version is installed, and $from has the older $wanted: an agent is not downgraded. Give --from with a newer one"
    fi
    case $(dpkg-query -W -f '${db:Status-Status}' berth-agent 2>/dev/null) in
    '' | installed | config-files | not-installed) ;;
    *)
        say "  berth-agent is half installed: it is repaired"
        change dpkg --remove --force-remove-reinstreq berth-agent
        ;;
    esac
    if [ -n "$(dpkg --audit 2>/dev/null)" ]; then
        say "  an earlier installation was interrupted: it is finished first"
        change env DEBIAN_FRONTEND=noninteractive dpkg --configure -a
    fi
    choose_sources
    if ! apt_install -s; then
        sources=mirrors
        if [ "$dry_run" = yes ]; then
            say "  would run: apt-get update (what is needed is not known, or the lists are old)"
            return
        fi
        apt-get -q -o "DPkg::Lock::Timeout=$APT_LOCK_TIMEOUT" update >"$scratch/update" 2>&1 || true
        if ! apt_install -s; then
            tail -n 15 "$scratch/apt" >&2
            fail "apt cannot install berth-agent and what it needs (above): nothing was changed. Offline, use a directory that make bundle made"
        fi
    fi
    say "  to install: $(sed -n 's/^Inst \([^ ]*\) .*/\1/p' "$scratch/apt" | tr '\n' ' ' | sed 's/ $//')"
    # Without what is only upgraded, whose line has the former version in brackets.
    sed -n 's/^Inst \([^ ]*\) (.*/\1/p' "$scratch/apt" | grep -vxE 'berth(-agent|-control-plane)?' >"$scratch/brings" || true
}

# Before apt begins, as it can be cut off at any time: a list that names too much is read with care.
remember_installed() {
    [ -s "$scratch/brings" ] || return 0
    if grep -qxE 'containerd|containerd\.io' "$scratch/brings"; then
        for directory in $CONTAINERD_DIRECTORIES; do
            [ -e "$directory" ] || echo "$directory" >>"$scratch/brings"
        done
    fi
    install -d -m 755 "$CONFIG"
    { cat "$INSTALLED" 2>/dev/null || true; cat "$scratch/brings"; } | sort -u >"$scratch/installed"
    install -m 644 "$scratch/installed" "$INSTALLED.new"
    mv -f "$INSTALLED.new" "$INSTALLED"
}

install_packages() {
    begin "installing"
    if [ "$packages" = rpm ]; then
        tool=dnf
        have dnf || tool=yum
        change "$tool" -y install "$source_dir/$agent_package" ||
            fail "$tool could not install $agent_package: containerd 1.6 or newer (containerd.io of Docker's repository) must be available to it"
        return
    fi
    if installed berth-agent && [ "$have_version" = "$wanted" ]; then return; fi
    if [ "$dry_run" = yes ]; then
        say "would run: apt-get install $(deb_arguments | tr '\n' ' ')"
        return
    fi
    remember_installed
    if ! apt_install; then
        tail -n 15 "$scratch/apt" >&2
        # What did not come through is taken away; its configuration and the identity stay for the next run.
        if ! installed berth-agent; then
            dpkg --remove --force-remove-reinstreq berth-agent >/dev/null 2>&1 || true
        fi
        fail "apt-get install failed (above)"
    fi
    changed=yes
}

# --- identity of EC2 ---

imds() { # PATH
    curl -sf --noproxy '*' --connect-timeout 1 --max-time 1 -H "X-aws-ec2-metadata-token: $imds_token" "$IMDS/latest/meta-data/$1"
}

clean_name() { printf '%s' "$1" | LC_ALL=C tr -c 'A-Za-z0-9_./-' '-' | cut -c "1-$2"; }
clean_value() { printf '%s' "$1" | tr '\n' ' ' | LC_ALL=C tr -c 'A-Za-z0-9_./:@+= -' '-' | cut -c 1-128 | sed 's/^ *//; s/ *$//'; }

# Instance and tags become attributes. A host that is no EC2 instance loses a second at most.
ask_ec2() {
    have curl || return 0
    imds_token=$(curl -sf --noproxy '*' --connect-timeout 1 --max-time 1 -X PUT \
        -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$IMDS/latest/api/token" 2>/dev/null) || return 0
    instance=$(imds instance-id) || return 0
    printf '%s\n' "$instance" | grep -qE '^i-[0-9a-f]{8,32}$' || return 0
    begin "this is EC2 instance $instance: its identity and tags become attributes"
    set_attribute ec2.instance-id "$instance"
    for pair in availability-zone=placement/availability-zone instance-type=instance-type; do
        if value=$(imds "${pair#*=}"); then set_attribute "ec2.${pair%%=*}" "$(clean_value "$value")"; fi
    done
    # Only where the instance allows tags in its metadata.
    if imds tags/instance/ >"$scratch/tags"; then
        while IFS= read -r key || [ -n "$key" ]; do
            value=$(imds "tags/instance/$key") || continue
            set_attribute "ec2.tag.$(clean_name "$key" 120)" "$(clean_value "$value")"
        done <"$scratch/tags"
    fi
}

# --- joining ---

# The verified package's own program joins before anything is installed: a wrong token or hash is found here.
agent_program() {
    if [ "$packages" = deb ]; then
        dpkg-deb --fsys-tarfile "$source_dir/$agent_package" | tar -xO ./usr/bin/berth-agent >"$scratch/berth-agent"
        chmod 700 "$scratch/berth-agent"
        echo "$scratch/berth-agent"
    else
        echo /usr/bin/berth-agent
    fi
}

join() {
    begin "joining $control_plane"
    if [ "$dry_run" = yes ]; then
        say "would run: berth-agent register --control-plane $control_plane --ca-hash $ca_hash, with the token in its environment"
        return
    fi
    program=$(agent_program)
    set -- register --json --control-plane "$control_plane" --ca-hash "$ca_hash"
    while IFS= read -r pair; do
        [ -z "$pair" ] || set -- "$@" --attribute "$pair"
    done <<ATTRIBUTES
$attributes
ATTRIBUTES
    code=0
    BERTH_JOIN_TOKEN=$token "$program" "$@" >"$scratch/joined" 2>"$scratch/join-errors" || code=$?
    cat "$scratch/join-errors" >&2
    field() { tr -d '\n' <"$scratch/joined" | sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }
    if [ "$code" != 0 ]; then
        why=$(field error)
        fail "this host did not join: ${why:-exit code $code of berth-agent register}"
    fi
    node=$(field nodeId) in_cluster=$(field cluster)
    if [ -n "$cluster" ] && [ -n "$in_cluster" ] && [ "$in_cluster" != "$cluster" ]; then
        if [ "$(field status)" = registered ]; then
            rm -rf "$STATE/identity"
            fail "the token is for cluster $in_cluster, not for $cluster: make another: berth token create --cluster $cluster. This host is not joined; forget node $node there: berth node revoke $node"
        fi
        fail "this host is joined to cluster $in_cluster, not to $cluster: take it away from there first: bootstrap.sh --uninstall"
    fi
    # An agent that runs with an earlier identity takes this one up.
    if [ "$(field status)" = registered ]; then changed=yes; fi
    good "node ${node:-?} of cluster ${in_cluster:-?}"
}

# --- configuration ---

# Replaces a file when it is another one; says so in `changed`.
put() { # FILE MODE
    cat >"$scratch/new"
    if [ -f "$1" ] && cmp -s "$scratch/new" "$1"; then return; fi
    if [ "$dry_run" = yes ]; then
        say "would write $1"
        return
    fi
    install -d -m 755 "$(dirname "$1")"
    install -m "$2" "$scratch/new" "$1.new"
    mv -f "$1.new" "$1"
    changed=yes
}

joined_toml() {
    echo "# Written by bootstrap.sh, anew at each run. Put settings of your own into a file after this one: 60-local.toml."
    printf 'control_plane = "%s"\n' "$control_plane"
    if [ -d "$source_dir/images" ]; then printf 'images_dir = "%s"\n' "$IMAGES"; fi
    if [ -n "$attributes" ]; then
        printf '\n[attributes]\n'
        # Checked before: no character has a meaning in TOML.
        printf '%s' "$attributes" | sed 's/^\([^=]*\)=\(.*\)$/"\1" = "\2"/'
    fi
}

# In systemd's form (systemd.exec(5), EnvironmentFile=).
environment_line() { # NAME VALUE
    [ -z "$2" ] || printf '%s="%s"\n' "$1" "$(printf '%s' "$2" | tr -d '\n' | sed 's/[\\"$`]/\\&/g')"
}

agent_environment() {
    if [ -f "$ENVIRONMENT" ]; then
        # awk: with a line end after the last line, whoever wrote it.
        awk 1 "$ENVIRONMENT" | sed '/^# proxies, by bootstrap.sh$/,/^# end of proxies$/d'
    fi
    if [ -n "$https_proxy_value$http_proxy_value" ]; then
        echo "# proxies, by bootstrap.sh"
        environment_line HTTPS_PROXY "$https_proxy_value"
        environment_line HTTP_PROXY "$http_proxy_value"
        environment_line NO_PROXY "$no_proxy_value"
        echo "# end of proxies"
    fi
}

configure() {
    begin "writing the configuration"
    joined_toml >"$scratch/joined.toml"
    put "$JOINED" 644 <"$scratch/joined.toml"
    # Through a file, and not a drop-in with Environment=: that can be read by everybody, with `systemctl show`.
    agent_environment >"$scratch/environment"
    if [ -s "$scratch/environment" ] || [ -f "$ENVIRONMENT" ]; then put "$ENVIRONMENT" 600 <"$scratch/environment"; fi
    if [ -d "$source_dir/images" ]; then
        change install -d -m 755 "$IMAGES"
        for image in "$source_dir"/images/*; do
            cmp -s "$image" "$IMAGES/$(basename "$image")" && continue
            change install -m 644 "$image" "$IMAGES/"
            changed=yes
        done
    fi
}

# --- running ---

start() {
    begin "starting berth-agent"
    change systemctl daemon-reload
    change systemctl enable --quiet containerd berth-agent
    change systemctl start containerd
    if [ "$changed" = yes ]; then
        # Tasks run on. Waited for: until then the former process answers who asks whether the node is ready.
        change systemctl restart berth-agent || true
    else
        change systemctl --no-block start berth-agent
    fi
}

wait_ready() {
    [ "$dry_run" = no ] || return 0
    begin "waiting until the control plane has the node"
    deadline=$(($(date +%s) + WAIT_READY))
    until berth-agent status >"$scratch/status" 2>&1; do
        if [ "$(systemctl show -p ActiveState --value berth-agent)" = failed ]; then
            journalctl -u berth-agent -n 15 --no-pager >&2 || true
            fail "berth-agent does not start (its log is above): mend it, then: systemctl restart berth-agent"
        fi
        if [ "$(date +%s)" -ge "$deadline" ]; then
            cat "$scratch/status" >&2
            fail "the node is not ready after $WAIT_READY s (above is what it says); it goes on trying. See: journalctl -u berth-agent"
        fi
        sleep 1
    done
}

next_steps() {
    if [ "$dry_run" = yes ]; then
        say "dry run: nothing was changed"
        return
    fi
    cat <<NEXT
bootstrap: this host is ready: node $node of cluster $in_cluster
  its state        berth-agent status
  its log          journalctl -u berth-agent -f
  a closer look    berth-agent doctor
  a first task     berth run --cluster $in_cluster IMAGE    (where the control plane's keys are)
  take it away     bootstrap.sh --uninstall
NEXT
}

# --- the end ---

confirm() {
    [ "$yes" = no ] && [ "$dry_run" = no ] || return 0
    [ -t 0 ] || refuse "--uninstall ends every task of this host: give --yes, or run it in a terminal"
    printf 'End every task of this host and remove Berth from it, with images, logs and identity? [y/N] '
    read -r answer
    case $answer in y | Y | yes) ;; *) fail "nothing was changed" ;; esac
}

uninstall() {
    [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
    confirm
    begin "removing Berth's node agent"
    extra=
    if [ -f "$INSTALLED" ]; then extra=$(cat "$INSTALLED"); fi
    if have systemctl && systemctl cat berth-agent.service >/dev/null 2>&1; then
        change systemctl disable --quiet --now berth-agent
    fi
    known=no
    if have dpkg-query; then
        case $(dpkg-query -W -f '${db:Status-Abbrev}' berth-agent 2>/dev/null | cut -c 1-2) in
        '' | un | pn) ;;
        *)
            known=yes
            change env DEBIAN_FRONTEND=noninteractive dpkg --purge berth-agent ||
                fail "berth-agent could not be purged (above); once mended, run this again"
            ;;
        esac
    fi
    # Not else: a host of rpm packages may have dpkg as well.
    if have rpm && rpm -q berth-agent >/dev/null 2>&1; then
        known=yes
        change berth-agent purge --yes || fail "not everything could be removed (above); once mended, run this again"
        change rpm -e berth-agent
    fi
    if [ "$known" = no ]; then say "berth-agent is not installed"; fi
    change rm -rf "$STATE" "$CONFIG/agent.conf.d" "$ENVIRONMENT" "$CONFIG/agent.toml.rpmsave" "$INSTALLED"
    if [ "$dry_run" = no ]; then rmdir "$CONFIG" 2>/dev/null || true; fi
    remove_extra
    say "this host is no node any more. The control plane keeps its record until: berth node revoke NODE"
}

# What the installation brought, unless somebody uses it now.
remove_extra() {
    [ -n "$extra" ] || return 0
    stays=
    if why=$(containerd_user); then
        say "containerd and runc stay: $why"
        stays='containerd runc'
    fi
    if why=$(nftables_user); then
        say "nftables stays: $why"
        stays="$stays nftables"
    fi
    present=
    for package in $(echo "$extra" | grep -v '^/'); do
        case " $stays " in *" $package "*) continue ;; esac
        if installed "$package"; then present="$present $package"; fi
    done
    if [ -n "$present" ]; then
        # shellcheck disable=SC2086 # a list of words
        change dpkg --purge $present >"$scratch/extra" 2>&1 || true
        if [ "$dry_run" = yes ]; then
            cat "$scratch/extra"
        else
            left=
            for package in $present; do
                if installed "$package"; then left="$left $package"; fi
            done
            # Of libraries this is nothing to speak of where containerd stays.
            if [ -n "$left" ]; then say "stays, because other packages need it:$left"; fi
        fi
    fi
    case " $stays " in *' containerd '*) ;; *) remove_directories ;; esac
}

# Says who uses containerd besides Berth, whose namespace is gone by now; fails if nobody does.
containerd_user() {
    have ctr && have containerd || return 1
    namespaces=$(timeout 20 ctr namespaces ls -q 2>/dev/null) || {
        echo "containerd does not answer, so nobody can tell who uses it: once it does, run this again, or remove it by hand"
        return 0
    }
    for namespace in $namespaces; do
        # Not yet purged.
        if [ "$dry_run" = yes ] && [ "$namespace" = berth ]; then continue; fi
        for kind in containers images; do
            if [ -n "$(timeout 20 ctr -n "$namespace" "$kind" ls -q 2>/dev/null)" ]; then
                echo "namespace $namespace has $kind"
                return 0
            fi
        done
    done
    return 1
}

# Says who uses nftables; fails if nobody does.
nftables_user() {
    have nft || return 1
    if have systemctl && systemctl is-enabled --quiet nftables 2>/dev/null; then
        echo "nftables.service is enabled"
    elif dpkg --verify nftables 2>/dev/null | grep -q '/etc/nftables\.conf$'; then
        echo "/etc/nftables.conf was changed"
    else
        return 1
    fi
}

# What containerd made, and was not there before it. Nothing that is mounted, and no file that it does not own.
remove_directories() {
    for directory in $(echo "$extra" | grep '^/'); do
        case " $CONTAINERD_DIRECTORIES " in *" $directory "*) ;; *) continue ;; esac
        [ -d "$directory" ] || continue
        if have containerd; then
            say "$directory stays: containerd is still there"
        elif grep -q " ${directory}[/ ]" /proc/mounts; then
            say "$directory stays: something is mounted below it"
        elif [ "$directory" = /var/lib/containerd ] || [ "$directory" = /run/containerd ]; then
            change rm -rf --one-file-system "$directory"
        else
            change find "$directory" -xdev -depth -type d -empty -delete
            if [ "$dry_run" = no ] && [ -d "$directory" ]; then say "$directory stays: files of others are in it"; fi
        fi
    done
}

main() {
    parse_arguments "$@"
    umask 022
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    https_proxy_value=${HTTPS_PROXY:-${https_proxy:-}} http_proxy_value=${HTTP_PROXY:-${http_proxy:-}}
    no_proxy_value=${NO_PROXY:-${no_proxy:-}}
    # For apt and curl, which read these names.
    if [ -n "$https_proxy_value" ]; then https_proxy=$https_proxy_value && export https_proxy; fi
    if [ -n "$http_proxy_value" ]; then http_proxy=$http_proxy_value && export http_proxy; fi
    if [ -n "$no_proxy_value" ]; then no_proxy=$no_proxy_value && export no_proxy; fi

    if [ "$uninstall" = no ]; then check_arguments; fi
    [ "$(id -u)" = 0 ] || fail "needs root: run it with sudo"
    exec 9>"$LOCK"
    flock -n 9 || fail "another bootstrap.sh runs on this host"
    # Not in /tmp, where a careful host lets nobody run programs. One of a run that was killed is in the way of nobody.
    rm -rf /var/lib/berth-bootstrap.??????
    scratch=$(mktemp -d /var/lib/berth-bootstrap.XXXXXX) || fail "cannot write to /var/lib"
    if [ "$uninstall" = yes ]; then
        uninstall
        return
    fi
    check_host
    find_packages
    plan_installation
    ask_ec2
    if [ "$packages" = rpm ]; then install_packages; fi
    join
    # Before the package starts the agent: it must find whose node it is.
    configure
    if [ "$packages" = deb ]; then install_packages; fi
    start
    wait_ready
    next_steps
}

main "$@"
