"""A host whose root is an overlay, as in most containers: its files can't be id-mapped."""

import os
import subprocess
import sys

import pytest

from containerkit._linux import mountinfo

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN: a mount namespace of one's own")

_ENTER = """
set -e
mount -t tmpfs scratch "$1"; cd "$1"; mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" root
shift
for name in $KEPT; do mount --rbind "/$name" "root/$name"; done
cd root; mkdir -p .old; pivot_root . .old; umount -l .old; cd /
exec "$@"
"""


def _kept():
    """Return the top-level directories with mounts that a Python on the overlay needs too."""
    tops = {mount.mount_point.split("/")[1] for mount in mountinfo.read() if mount.mount_point != "/"}
    return sorted({"proc", "sys", "dev", *tops} - {"usr", "bin", "lib", "lib64", "sbin", ""})


@pytest.fixture
def on_overlay(tmp_path):
    """Run a Python program in a new mount namespace whose root is an overlay on the machine's root."""

    def program(code, *options):
        command = [sys.executable, *options, *(["-c", code] if code else [])]
        if next(mount for mount in reversed(mountinfo.read()) if mount.mount_point == "/").filesystem != "overlay":
            enter = ["unshare", "--mount", "--propagation=private", "sh", "-c", _ENTER, "sh", str(tmp_path)]
            command = [*enter, *command]
        environment = {**os.environ, "KEPT": " ".join(_kept()), "PYTHONPATH": ":".join(filter(None, sys.path))}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd="/")

    return program


def test_the_first_example_runs(on_overlay):
    done = on_overlay(
        "from containerkit import run\n"
        "print(run(['sh', '-c', 'id -u; cat /proc/self/uid_map'], text=True, check=True).stdout)"
    )
    assert "" == done.stderr
    first, *_, mapping = done.stdout.split("\n")[:2]
    assert "0" == first
    assert mapping.split()[1] != "0"  # the container's root is still no user of the machine


def test_programs_of_an_overlay_belong_to_nobody_and_the_rest_is_as_ever(on_overlay):
    done = on_overlay(
        "from containerkit import run\n"
        "print(run(['stat', '-c', '%u', '/usr/bin/env', '/etc/passwd', '/tmp'], text=True, check=True).stdout)\n"
        "print(run(['sh', '-c', '>> /usr/bin/env && echo written'], text=True).stdout)\n"
        "print(run(['sh', '-c', 'echo x > /tmp/x; echo y > /etc/y; cat /tmp/x /etc/y'], text=True, check=True).stdout)"
    )
    assert "" == done.stderr
    assert ["65534", "0", "0", "x", "y"] == done.stdout.split()


def test_a_container_and_its_commands_run(on_overlay):
    done = on_overlay(
        "from containerkit import Container, Limits\n"
        "for _ in range(2):\n"
        "    with Container(limits=Limits(pids=64)) as c:\n"
        "        print(c.run(['echo', 'inside'], text=True, check=True).stdout, end='')"
    )
    assert ("", "inside\ninside\n") == (done.stderr, done.stdout)


def test_a_directory_that_takes_no_id_map_is_an_error_that_names_both_switches(on_overlay):
    done = on_overlay("from containerkit import RootFS, run\nrun(['/bin/true'], rootfs=RootFS.dir('/'))")
    assert "id map of /: Invalid argument" in done.stderr
    assert "idmap=False" in done.stderr
    assert "--no-idmap" in done.stderr


def test_the_command_lines_switch_shows_such_a_directory(on_overlay):
    options = ("-m", "containerkit", "run", "--rootfs", "/", "--no-idmap", "--", "/usr/bin/stat", "-c", "%u", "/usr")
    done = on_overlay("", *options)
    assert ("65534\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_probe_reports_the_programs(on_overlay):
    done = on_overlay(
        "from containerkit import probe\n"
        "found = probe().idmapped_programs\n"
        "print(found.available, found.detail, found.hint, sep='|')"
    )
    available, detail, hint = done.stdout.strip().split("|")
    assert ("False", "/usr: invalid argument") == (available, detail)
    assert "nobody" in hint
