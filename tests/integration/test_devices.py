"""Devices of the host inside a container, and the /dev that shows them."""

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from containerkit import Container, Limits, Mount, Namespaces, SetupError, SpecError, run

pytestmark = pytest.mark.usefixtures("nothing_left")

TUN = "/dev/net/tun"
HERE = os.pathsep.join(path for path in sys.path if path)
USER = 41_000 + os.getpid() % 4000  # other runs of the tests end what their own user has
root = pytest.mark.skipif(os.geteuid() != 0, reason="making nodes needs root")


def as_user(code):
    words = [sys.executable, "-B", "-c", code]
    return subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": HERE}, cwd="/",
        user=USER, group=USER, extra_groups=[],
    )  # fmt: skip


def out(script, **options):
    return run(["sh", "-c", script], text=True, check=True, **options).stdout


def needs(path):
    return pytest.mark.skipif(not os.path.exists(path), reason=f"this machine has no {path}")


@root
@needs(TUN)
def test_root_of_the_container_uses_a_device_that_only_root_of_the_host_may_use(tmp_path):
    node = tmp_path / "full"
    os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    script = "stat -c '%a %u %g %t:%T' /dev/mine; echo x 2>&1 > /dev/mine || echo full"
    text = out(script, devices=[f"{node}:/dev/mine"])
    assert text.splitlines()[0] == "600 0 0 1:7"
    assert text.endswith("full\n")
    assert "Permission denied" in out("cat /dev/mine 2>&1 || true", devices=[f"{node}:/dev/mine"], user=1000)
    # The control: the host's own node, bound, belongs to nobody inside.
    bound = Mount.bind(str(node), "/dev/mine", nodev=False, idmap=False)
    assert "Permission denied" in out("cat /dev/mine 2>&1 || true", mounts=[bound])
    assert out("ls /dev/net", devices=[TUN]) == "tun\n"


@needs("/dev/zero")
def test_a_device_has_the_name_that_was_asked_for_and_all_others_stay():
    standard = set(out("ls /dev").split())
    assert set(out("ls /dev", devices=["/dev/zero:/dev/nought"]).split()) == standard | {"nought"}
    script = "head -c 3 /dev/nought | od -An -tx1; echo x > /dev/null; cat /dev/shm/x /dev/null; head -c1 /dev/urandom | wc -c"
    assert out("echo y > /dev/shm/x; " + script, devices=["/dev/zero:/dev/nought"]).split() == [
        "00",
        "00",
        "00",
        "y",
        "1",
    ]
    for devices in ((), ["/dev/zero:/dev/nought"]):
        assert "Read-only file system" in out("touch /dev/x 2>&1 || true", devices=devices)


def test_any_mount_may_have_a_new_name_in_dev(tmp_path):
    (tmp_path / "here").write_text("content")
    mounts = [Mount.bind(tmp_path, "/dev/a/b"), Mount.tmpfs("/dev/hugepages")]
    assert out("cat /dev/a/b/here; echo x > /dev/hugepages/y; ls /dev/hugepages", mounts=mounts) == "contenty\n"


def test_commands_and_terminals_work_beside_a_device():
    with Container(devices=["/dev/zero:/dev/nought"]) as c:
        assert (
            c.run(["sh", "-c", "tty; ls -l /dev/nought >/dev/null && echo there"], pty=True)
            .stdout.split()[0]
            .startswith(b"/dev/pts/")
        )
        assert c.run(["head", "-c", "1", "/dev/nought"]).stdout == b"\0"


def test_a_directory_of_devices_is_shown_with_its_nodes():
    assert "zero" in out("ls /dev/host", devices=["/dev:/dev/host"]).split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dev/zero", "absolute"),
        ("/dev/zero:/x:rx", "PATH"),
        ("/dev/zero:/x:rw:z", "PATH"),
        ("/dev/zero:r", "Limits(devices="),
        ("/dev/zero:/x:w", "Limits(devices="),
        (3, "devices"),
    ],
)
def test_what_is_no_device_is_refused_when_it_is_described(text, said):
    with pytest.raises(SpecError) as caught:
        Container(devices=[text])
    assert said in str(caught.value)


def test_a_file_is_no_device(tmp_path):
    (tmp_path / "file").write_text("")
    for path, said in ((tmp_path / "file", "it is not a device"), (tmp_path / "missing", "No such file")):
        with pytest.raises(SpecError, match=said):
            run(["true"], devices=[f"{path}:/dev/x"])


def test_none_means_no_devices():
    assert out("ls /dev/net", devices=None) == ""


@root
@needs("/dev/fuse")
def test_the_control_group_may_withhold_writing():
    rules = ["c 1:3 rwm", "/dev/fuse rm"]
    script = "exec 3< /dev/fuse && echo read; (exec 4> /dev/fuse) 2>&1 || true"
    assert "read" in (text := out(script, devices=["/dev/fuse"], limits=Limits(devices=rules)))
    assert "Operation not permitted" in text
    with pytest.raises(SetupError, match="must include m"):
        run(["true"], devices=["/dev/fuse"], limits=Limits(devices=["c 1:3 rwm", "/dev/fuse r"]))


@root
def test_error_names_the_device_that_a_user_may_not_use():
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        node = f"{directory}/n"
        code = f"from containerkit import run\nprint(run(['true'], devices=['{node}:/dev/n']).returncode)"
        os.mknod(node, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
        assert "its mode is 600" in as_user(code).stderr
        os.chmod(node, 0o666)
        assert as_user(code).stdout.strip() == "0"


@root
def test_with_the_hosts_users_the_node_is_the_hosts_own(tmp_path):
    os.mknod(tmp_path / "n", 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    script = "chmod 640 /dev/n; stat -c %a /dev/n"
    assert out(script, devices=[f"{tmp_path}/n:/dev/n"], namespaces=Namespaces(user="host")) == "640\n"
    assert stat.S_IMODE((tmp_path / "n").stat().st_mode) == 0o640
    # Otherwise it is a copy, which the container may change without effect on the host.
    assert out(script.replace("640", "666"), devices=[f"{tmp_path}/n:/dev/n"]) == "666\n"
    assert stat.S_IMODE((tmp_path / "n").stat().st_mode) == 0o640
