"""Networks of an unprivileged user: the same features, in its own user namespace."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    not (shutil.which("pasta") or shutil.which("slirp4netns")), reason="the programs pasta or slirp4netns"
)

USER = 45_000 + os.getpid() % 3000  # other test runs kill the processes of their own user

PRIVATE_TUN = """
mount -t tmpfs tun /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && umount -l /mnt
exec setpriv --reuid=%d --regid=%d --clear-groups "$@"
"""


def as_user(code, *, uplink=True, runtime=""):
    """Run code as an unprivileged user. If it may not use /dev/net/tun, run in a mount namespace where it may."""
    words = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "PYTHONPATH": os.pathsep.join(sys.path)}
    if runtime:
        environment["XDG_RUNTIME_DIR"] = runtime
    if os.geteuid() != 0 and uplink and not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/net/tun")
    if os.geteuid() == 0:
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
        if uplink and os.stat("/dev/net/tun").st_mode & 0o006 != 0o006:
            user = ["unshare", "-m", "--propagation", "private", "sh", "-c", PRIVATE_TUN % (USER, USER), "sh"]
        words = [*user, *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, cwd="/", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TWO = """
from containerkit import Container, Network, Port
import time, urllib.request
code = "import urllib.request; print(urllib.request.urlopen('http://web/').status)"
with Network("app", internal={internal}).open() as net:
    with Container(id="web", network=net, publish=[Port(0, 80)]) as web, Container(network=net) as client:
        server = web.popen(["python3", "-m", "http.server", "80"], stdout=-3, stderr=-3)
        for _ in range(500):
            done = client.run(["python3", "-c", code], text=True)
            if done.returncode == 0:
                break
            time.sleep(0.1)
        print(done.stdout, end="")
        port = web.joined()["network"].published[0].host_port
        print(urllib.request.urlopen(f"http://127.0.0.1:{{port}}/", timeout=20).status)
        server.kill()
"""


def test_two_containers_of_a_user_reach_each_other_without_any_program():
    assert as_user(TWO.format(internal=True), uplink=False) == "200\n200\n"


def test_two_containers_of_a_user_with_a_way_out_reach_each_other():
    assert as_user(TWO.format(internal=False)) == "200\n200\n"


def test_a_user_reaches_what_listens_beyond_the_host():
    """An address of the host that is not its loopback simulates the outside. It needs a rule, because it is the host's."""
    code = """
    import socket, threading
    from containerkit import Egress, run
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    probe.connect(("198.51.100.1", 9))
    own = probe.getsockname()[0]
    listening = socket.create_server((own, 0))
    port = listening.getsockname()[1]
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    words = ["python3", "-c", code, own, str(port)]
    print(run(words, network="internet", egress=Egress.only(f"{own}/32")).returncode)
    """
    assert as_user(code) == "0\n"


def test_nothing_is_left_of_a_users_network():
    code = """
    import os, subprocess
    from containerkit import run
    from containerkit.network import connect
    run(["true"], network="internet", check=True)
    for live in connect._shared.values():
        live.close()
    print(len(subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True).stdout.split()))
    """
    assert as_user(code) == "0\n"


def test_containers_of_several_processes_of_a_user_are_on_a_network_that_is_kept():
    code = """
    import subprocess, sys, time
    from containerkit import Container, Network, run
    from containerkit.network import keeper
    run(["true"], check=True)  # in a user namespace of this process's own, before the keeper's is known
    keeper.create(Network("kept", internal=True))
    try:
        serve = ["-m", "containerkit", "run", "--network", "kept:alias=db", "--", "python3", "-m", "http.server", "80"]
        with subprocess.Popen([sys.executable, *serve], stdout=-3, stderr=-3) as server:
            fetch = "import urllib.request; print(urllib.request.urlopen('http://db/', timeout=20).status)"
            for _ in range(500):
                done = run(["python3", "-c", fetch], network=keeper.Kept("kept"), text=True)
                if done.returncode == 0:
                    break
                time.sleep(0.1)
            print(done.stdout, end="")
            server.terminate()
        print(run(["true"]).returncode)
    finally:
        keeper.remove("kept", force=True)
    print(list(keeper.known()))
    """
    with tempfile.TemporaryDirectory(prefix="ck-", dir="/var/tmp") as runtime:  # a socket's path has 107 bytes
        if os.geteuid() == 0:
            os.chown(runtime, USER, USER)
        assert as_user(code, uplink=False, runtime=runtime) == "200\n0\n[]\n"
