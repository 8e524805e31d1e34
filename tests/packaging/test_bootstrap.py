"""packaging/bootstrap.sh: what it refuses, what it does, and that it can be run again and undone."""

import http.server
import json
import socket
import threading
import unittest

import host
from host import HASH, TOKEN, Host


class Listener:
    """Takes connections and closes them: a control plane as far as a first look goes."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return

    def close(self):
        self.socket.close()


class Metadata(http.server.BaseHTTPRequestHandler):
    """EC2's metadata service, version 2: nothing without a token."""

    PAGES = {
        "instance-id": "i-0123456789abcdef0",
        "placement/availability-zone": "eu-central-1a",
        "instance-type": "m7i.large",
        "tags/instance/": "Name\nteam:cost+centre\nevil",
        "tags/instance/Name": "web 1",
        "tags/instance/team:cost+centre": "grün & \"blue\"",
        "tags/instance/evil": "a\nb = \"c\"",
    }

    def answer(self, code, text):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        self.answer(200, "t0ken") if self.path == "/latest/api/token" else self.answer(404, "")

    def do_GET(self):
        from urllib.parse import unquote

        page = unquote(self.path.removeprefix("/latest/meta-data/"))
        if self.headers.get("X-aws-ec2-metadata-token") != "t0ken":
            self.answer(401, "")
        elif page in self.PAGES:
            self.answer(200, self.PAGES[page])
        else:
            self.answer(404, "")

    def log_message(self, *_):
        pass


class Case(unittest.TestCase):
    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)
        listener = Listener()
        self.addCleanup(listener.close)
        self.join = ["--control-plane", listener.url, "--token", TOKEN, "--ca-hash", HASH]

    def refused(self, *arguments, code=1, says, **environment):
        """Ends so, says so, and nothing was installed."""
        found, out = self.host.bootstrap(*arguments, **environment)
        self.assertEqual(found, code, out)
        self.assertIn(says, out)
        self.assertEqual(self.host.status(), "")
        self.assertNotIn(TOKEN, out)
        return out

    def accepted(self, *arguments, **environment):
        code, out = self.host.bootstrap(*arguments, **environment)
        self.assertEqual(code, 0, out)
        self.assertNotIn(TOKEN, out)
        return out


class Arguments(Case):
    def test_wrong_ones_are_named(self):
        url, token, digest = self.join[1::2]
        for arguments, says in [
            ([], "--control-plane is missing"),
            (["--frob"], "unknown argument: --frob"),
            (["--token"], "--token needs a value"),
            (["--control-plane", "http://cp:1", "--token", token, "--ca-hash", digest], "must be https://HOST:PORT"),
            (["--control-plane", "https://cp:1/x$(id)", "--token", token, "--ca-hash", digest], "must be https://HOST:PORT"),
            (["--control-plane", url, "--ca-hash", digest], "--token is missing"),
            (["--control-plane", url, "--token", "K10secret", "--ca-hash", digest], "no join token"),
            (["--control-plane", url, "--token", token], "--ca-hash is missing"),
            (["--control-plane", url, "--token", token, "--ca-hash", "sha256:12"], "64 hexadecimal digits"),
            ([*self.join, "--attribute", "a b=c"], "--attribute a b=c: the name"),
            ([*self.join, "--attribute", 'a=b"c'], "the value must be"),
            ([*self.join, "--attribute", "a=b\nc"], "the value must be"),
            ([*self.join, "--from", "http://10.0.0.1/berth"], "plain HTTP"),
        ]:
            with self.subTest(arguments=arguments):
                out = self.refused(*arguments, code=2, says=says)
                self.assertNotIn("K10secret", out)
        self.assertEqual(self.host.asked(), "")

    def test_help_and_version_need_nothing(self):
        self.assertIn("--dry-run", self.accepted("--help"))
        self.assertIn("bootstrap.sh ", self.accepted("--version"))


class Refusals(Case):
    def test_a_host_that_cannot_run_tasks(self):
        self.host.write("etc/cgroup-type", "tmpfs")
        self.host.write("etc/containerd-version", "1.5.9")
        (self.host.root / "run/systemd/system").rmdir()
        out = self.refused(*self.join, says="3 problem(s)")
        for problem in ("systemd.unified_cgroup_hierarchy=1", "containerd 1.5.9 is too old", "systemd does not run this host"):
            self.assertIn(problem, out)

    def test_an_unreachable_control_plane(self):
        self.join[1] = "https://127.0.0.1:9"
        self.refused(*self.join, says="https://127.0.0.1:9 cannot be reached")

    def test_no_space(self):
        self.host.write("usr/local/bin/df", "#!/bin/sh\necho head\necho dev 100000 99000 1000 99% /\n", 0o755)
        self.refused(*self.join, says="/var/lib has 0 MiB free: 1 GiB is needed")

    def test_packages_that_are_not_what_the_sums_say(self):
        deb = next(self.host.packages.glob("*.deb"))
        deb.write_bytes(deb.read_bytes() + b"x")
        out = self.refused(*self.join, says="nothing was installed")
        self.assertIn(f"{deb.name}: FAILED", out)

    def test_sums_that_are_no_sums(self):
        good = (self.host.packages / "SHA256SUMS").read_text()
        for line in ("hello", "0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/passwd", "0" * 64 + "  a b"):
            with self.subTest(line=line):
                (self.host.packages / "SHA256SUMS").write_text(good + line + "\n")
                self.refused(*self.join, says="is not a list of checksums")

    def test_no_packages(self):
        (self.host.packages / "SHA256SUMS").unlink()
        self.refused(*self.join, says="no packages beside this script")
        self.refused(*self.join, "--from", "/nowhere", says="no such directory")
        self.refused(*self.join, "--from", "/tmp", says="it has no SHA256SUMS")
        next(self.host.packages.glob("*.deb")).unlink()
        host.write_sums(self.host.packages)
        self.refused(*self.join, says="has no berth-agent package for")

    def test_a_token_that_is_refused_installs_nothing(self):
        self.host.write("etc/refuse", "")
        self.refused(*self.join, says="the control plane refused the join token")

    def test_a_token_for_another_cluster(self):
        self.refused(*self.join, "--cluster", "office", says="the token is for cluster shop, not for office")
        self.assertFalse((self.host.root / "var/lib/berth/identity").exists())

    def test_an_agent_that_does_not_start(self):
        (self.host.root / "etc/ready").unlink()
        self.host.write("etc/active-state", "failed")
        code, out = self.host.bootstrap(*self.join)
        self.assertEqual(code, 1, out)
        self.assertIn("berth-agent does not start", out)
        self.assertIn("failed: waiting until the control plane has the node", out)


class Installation(Case):
    def test_a_dry_run_changes_nothing(self):
        before = self.host.files()
        out = self.accepted(*self.join, "--dry-run")
        for step in ("would run: berth-agent register", "would run: apt-get install", "50-joined.toml", "systemctl enable"):
            self.assertIn(step, out)
        self.assertEqual(self.host.files(), before)
        self.assertNotIn("register", self.host.asked())

    def test_a_host_joins_and_a_second_run_changes_nothing(self):
        url = self.join[1]
        out = self.accepted(*self.join, "--cluster=shop", "--attribute", "rack=a 1", "--attribute", "fast")
        self.assertIn("this host is ready: node 0123 of cluster shop", out)
        self.assertEqual(self.host.status(), "ii")
        joined = self.host.read("etc/berth/agent.conf.d/50-joined.toml")
        self.assertIn(f'control_plane = "{url}"\n\n[attributes]\n"rack" = "a 1"\n"fast" = ""\n', joined)
        asked = self.host.asked()
        self.assertIn(f"register --json --control-plane {url} --ca-hash {HASH} --attribute rack=a 1 --attribute fast=\n", asked)
        self.assertIn(f"token {TOKEN}\n", asked)
        self.assertIn("systemctl enable --quiet containerd berth-agent", asked)
        self.assertIn("systemctl restart berth-agent", asked)
        self.assertFalse((self.host.root / "etc/berth/agent.env").exists())

        self.host.forget()
        files = self.host.files()
        out = self.accepted(*self.join, "--attribute", "rack=a 1", "--attribute", "fast")
        self.assertIn("is installed", out)
        self.assertIn("systemctl --no-block start berth-agent", self.host.asked())
        self.assertEqual(self.host.files(), files)

    def test_the_token_may_come_by_environment(self):
        self.accepted("--control-plane", self.join[1], "--ca-hash", HASH, BERTH_JOIN_TOKEN=TOKEN)
        self.assertIn(f"token {TOKEN}\n", self.host.asked())

    def test_half_an_installation_is_repaired(self):
        for file in self.host.packages.glob("*.deb"):
            file.unlink()
        host.deb(self.host.packages, broken=True)
        host.write_sums(self.host.packages)
        code, out = self.host.bootstrap(*self.join)
        self.assertEqual(code, 1, out)
        self.assertIn("apt-get install failed", out)
        self.assertNotIn("berth-agent", self.host.shell("dpkg", "--audit")[1])

        # One that dpkg itself left half done: a killed run.
        name = host.deb(self.host.packages, "0.1.0-1", broken=True)
        self.host.shell("dpkg", "-i", f"/opt/berth/{name}")
        self.assertEqual(self.host.status(), "iF")
        host.deb(self.host.packages, "0.1.0-1")
        host.write_sums(self.host.packages)
        self.assertIn("it is repaired", self.accepted(*self.join))
        self.assertEqual(self.host.status(), "ii")

    def test_an_upgrade_restarts_the_agent_and_an_older_one_is_refused(self):
        self.accepted(*self.join)
        old = next(self.host.packages.glob("*.deb"))
        new = host.deb(self.host.packages, "0.1.0-2")
        host.write_sums(self.host.packages)
        self.host.forget()
        self.host.write("etc/berth/agent.toml", "# mine\n")
        self.accepted(*self.join)
        self.assertEqual(self.host.shell("dpkg-query", "-W", "-f", "${Version}", "berth-agent")[1], "0.1.0-2")
        self.assertEqual(self.host.read("etc/berth/agent.toml"), "# mine\n")
        self.assertNotIn("stop berth-agent", self.host.asked())
        self.assertNotIn("berth-tasks", self.host.asked())
        (self.host.packages / new).unlink()
        self.assertTrue(old.exists())
        host.write_sums(self.host.packages)
        code, out = self.host.bootstrap(*self.join)
        self.assertEqual(code, 1)
        self.assertIn("an agent is not downgraded", out)

    def test_proxies_are_kept_for_the_agent_alone(self):
        self.host.write("etc/berth/agent.env", "BERTH_LOG=debug\n", 0o600)
        proxy = 'http://me:pa$$"w`rd@127.0.0.1:9'
        self.accepted(*self.join, HTTPS_PROXY=proxy, NO_PROXY="127.0.0.1,.lan")
        text = self.host.read("etc/berth/agent.env")
        self.assertIn("BERTH_LOG=debug\n", text)
        self.assertIn('HTTPS_PROXY="http://me:pa\\$\\$\\"w\\`rd@127.0.0.1:9"\nNO_PROXY="127.0.0.1,.lan"\n', text)
        self.assertEqual((self.host.root / "etc/berth/agent.env").stat().st_mode & 0o777, 0o600)
        self.accepted(*self.join)
        self.assertEqual(self.host.read("etc/berth/agent.env"), "BERTH_LOG=debug\n")

    def test_images_of_a_bundle(self):
        (self.host.packages / "images").mkdir()
        (self.host.packages / "images/web.tar").write_text("an image")
        host.write_sums(self.host.packages)
        self.accepted(*self.join)
        self.assertEqual(self.host.read("var/lib/berth/images/web.tar"), "an image")
        self.assertIn('images_dir = "/var/lib/berth/images"', self.host.read("etc/berth/agent.conf.d/50-joined.toml"))

    def test_packages_by_url(self):
        packages = self.host.packages

        class Files(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *arguments):
                super().__init__(*arguments, directory=packages)

            def log_message(self, *_):
                pass

        server = self.serve(Files)
        self.accepted(*self.join, "--from", f"{server}/")
        self.assertEqual(self.host.status(), "ii")

    def serve(self, handler):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return f"http://127.0.0.1:{server.server_port}"

    def test_an_ec2_instance_and_its_tags_become_attributes(self):
        self.accepted(*self.join, "--attribute", "ec2.instance-type=mine", BERTH_IMDS_ADDRESS=self.serve(Metadata))
        _, _, attributes = self.host.read("etc/berth/agent.conf.d/50-joined.toml").partition("[attributes]\n")
        found = {}
        for line in attributes.splitlines():
            name, _, value = line.partition(" = ")
            found[json.loads(name)] = json.loads(value)
        self.assertEqual(found, {
            "ec2.instance-type": "mine",
            "ec2.instance-id": "i-0123456789abcdef0",
            "ec2.availability-zone": "eu-central-1a",
            "ec2.tag.Name": "web 1",
            "ec2.tag.team-cost-centre": "gr--n - -blue-",
            "ec2.tag.evil": "a b = -c-",
        })

    def test_another_service_at_the_metadata_address_is_no_ec2(self):
        class Other(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"<html>")

            do_GET = do_PUT

            def log_message(self, *_):
                pass

        self.accepted(*self.join, BERTH_IMDS_ADDRESS=self.serve(Other))
        self.assertNotIn("attributes", self.host.read("etc/berth/agent.conf.d/50-joined.toml"))


class Removal(Case):
    def test_uninstall_leaves_nothing(self):
        before = self.host.files()
        self.accepted(*self.join, "--attribute", "a=b", HTTPS_PROXY="http://127.0.0.1:9", NO_PROXY="127.0.0.1")
        code, out = self.host.bootstrap("--uninstall")
        self.assertEqual(code, 2, out)
        self.assertEqual(self.host.status(), "ii")
        self.assertIn("would run", self.accepted("--uninstall", "--dry-run"))
        self.assertEqual(self.host.status(), "ii")
        self.host.forget()
        self.accepted("--uninstall", "--yes")
        self.assertIn("berth-agent purge --yes", self.host.asked())
        self.assertEqual(self.host.status(), "")
        self.assertEqual(self.host.files() - before, set())
        self.assertIn("is not installed", self.accepted("--uninstall", "--yes"))

    def test_what_it_brought_goes_with_it(self):
        self.host.bundle()
        before = self.host.files()
        self.accepted(*self.join)
        for package in host.BROUGHT:
            self.assertEqual(self.host.status(package), "ii")
        # As containerd does when it runs.
        self.host.write("var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db", "x")
        (self.host.root / "opt/cni/bin").mkdir(parents=True)
        # Run again, it has nothing to install, and forgets nothing.
        self.accepted(*self.join)
        self.accepted("--uninstall", "--yes")
        for package in host.BROUGHT:
            self.assertEqual(self.host.status(package), "", package)
        self.assertEqual(self.host.files() - before, set())

    def test_what_it_brought_and_others_use_stays(self):
        self.host.bundle()
        self.accepted(*self.join)
        self.host.write("var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db", "x")
        self.host.write("etc/ctr/default-containers", "somebody-elses\n")
        self.host.write("etc/nftables.conf", "table inet mine {}\n")
        out = self.accepted("--uninstall", "--yes")
        self.assertIn("namespace default has containers", out)
        self.assertIn("/etc/nftables.conf was changed", out)
        for package in host.BROUGHT:
            self.assertEqual(self.host.status(package), "ii", package)
        self.assertTrue((self.host.root / "var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db").exists())
        self.assertEqual(self.host.status(), "")

    def test_what_others_put_beside_it_stays(self):
        self.host.bundle()
        self.accepted(*self.join)
        self.host.write("etc/cni/net.d/10-mine.conflist", "{}")
        self.host.write("etc/nftables-enabled", "")
        out = self.accepted("--uninstall", "--yes")
        self.assertIn("/etc/cni stays: files of others are in it", out)
        self.assertIn("nftables.service is enabled", out)
        self.assertEqual(self.host.read("etc/cni/net.d/10-mine.conflist"), "{}")
        self.assertEqual([self.host.status(package) for package in host.BROUGHT], ["", "", "ii"])

    def test_what_was_there_before_it_stays(self):
        self.host.write("var/lib/containerd/of-before", "x")
        self.accepted(*self.join)
        self.accepted("--uninstall", "--yes")
        self.assertEqual(self.host.read("var/lib/containerd/of-before"), "x")
        self.assertTrue((self.host.root / "usr/local/bin/containerd").exists())

    def test_an_installation_that_broke_off_forgets_nothing(self):
        self.host.bundle()
        before = self.host.files()
        host.deb(self.host.packages, broken=True)
        host.write_sums(self.host.packages)
        code, out = self.host.bootstrap(*self.join)
        self.assertEqual(code, 1, out)
        self.assertEqual(self.host.status("containerd"), "ii", out)
        host.deb(self.host.packages)
        host.write_sums(self.host.packages)
        self.accepted(*self.join)
        self.accepted("--uninstall", "--yes")
        for package in host.BROUGHT:
            self.assertEqual(self.host.status(package), "", package)
        self.assertEqual(self.host.files() - before, set())

    def test_removal_leaves_tasks_and_a_purge_ends_them(self):
        self.accepted(*self.join)
        self.host.forget()
        self.assertEqual(self.host.shell("dpkg", "--remove", "berth-agent")[0], 0)
        self.assertNotIn("purge", self.host.asked())
        self.tasks_are_let_go_after_a_reload()
        self.assertEqual(self.host.status(), "rc")
        self.assertTrue((self.host.root / "var/lib/berth/identity/node.pem").exists())
        code, out = self.host.shell("dpkg", "--purge", "berth-agent")
        self.assertEqual(code, 0, out)
        self.assertIn("berth-agent purge --yes --config /var/lib/berth/purge/agent.toml", self.host.asked())
        self.assertFalse((self.host.root / "var/lib/berth").exists())
        self.assertFalse((self.host.root / "etc/berth").exists())

    def tasks_are_let_go_after_a_reload(self):
        """Before it, systemd would still have what berth-tasks.service runs at its stop: the end of all tasks."""
        asked = self.host.asked().splitlines()
        reload, stop = "systemctl --system daemon-reload", "systemctl --system stop berth-tasks.service"
        self.assertEqual(asked.count(stop), 1, asked)
        self.assertLess(asked.index(reload), asked.index(stop))

    def test_a_purge_that_failed_can_be_repeated(self):
        self.accepted(*self.join)
        self.host.write("etc/unpurgeable", "")
        code, out = self.host.bootstrap("--uninstall", "--yes")
        self.assertEqual(code, 1, out)
        self.assertIn("not everything could be removed", out)
        self.assertTrue((self.host.root / "var/lib/berth/identity/node.pem").exists())
        (self.host.root / "etc/unpurgeable").unlink()
        self.accepted("--uninstall", "--yes")
        self.assertFalse((self.host.root / "var/lib/berth").exists())

    def test_installed_again_it_takes_its_identity_up(self):
        self.accepted(*self.join)
        self.host.shell("dpkg", "--remove", "berth-agent")
        self.host.forget()
        self.accepted(*self.join)
        self.assertEqual(self.host.status(), "ii")
        self.assertFalse((self.host.root / "var/lib/berth/purge").exists())


if __name__ == "__main__":
    unittest.main()
