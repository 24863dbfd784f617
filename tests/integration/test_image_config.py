"""The volumes, stop signal and health check in the config of an image, applied to real containers."""

import os
import shutil
import signal
import subprocess
import sys
import time

import attrs
import pytest

from containerkit import PIPE, Capabilities, Container, Mount, RootFS, SpecError, StateError
from containerkit.image import Defaults, Healthcheck, Image, Store, commit
from containerkit.image.claimed import release

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)
pytestmark = [
    pytest.mark.skipif(BUSYBOX is None, reason="needs busybox (package busybox-static)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give the files of the image their owners"),
    pytest.mark.usefixtures("nothing_left", "claims_released"),
]
PROGRAMS = (
    "sh",
    "cat",
    "ls",
    "rm",
    "mkdir",
    "stat",
    "touch",
    "mount",
    "sleep",
    "kill",
    "test",
    "dd",
    "df",
    "echo",
    "trap",
)
VOLUMES = ("/data", "/var/lib/db/", "fresh/made", "/", "/proc/x", "/link/inner", "/shut")


@pytest.fixture
def claims_released():
    yield
    release()


@pytest.fixture
def directory(tmp_path):
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "data/sub").mkdir(parents=True)
    (root / "data/one").write_text("one")
    os.chown(root / "data/one", 33, 34)
    os.chown(root / "data", 5, 6)
    (root / "data").chmod(0o1777)
    (root / "var/lib/db").mkdir(parents=True)
    os.chown(root / "var/lib/db", 70, 71)
    (root / "var/lib/db").chmod(0o700)
    (root / "real").mkdir()
    (root / "link").symlink_to("/real")
    (root / "shut").mkdir(mode=0o700)
    (root / "shut/in").write_text("in")
    return root


@pytest.fixture
def image(directory, tmp_path):
    defaults = Defaults(env={"PATH": "/bin"}, volumes=VOLUMES, stop_signal="SIGUSR1")
    return Image.from_directory(directory, "v:1", store=Store(tmp_path / "store"), defaults=defaults)


def shell(c, line, **more):
    return c.run(["sh", "-c", line], text=True, check=True, **more).stdout.split()


STAT = "stat -c %u:%g:%a /data /data/one /var/lib/db /fresh/made /real/inner /shut"
STATED = ["5:6:1777", "33:34:644", "70:71:700", "0:0:755", "0:0:755", "0:0:700"]
POINTS = {"/data", "/var/lib/db", "/fresh/made", "/real/inner", "/shut"}


def mount_points(c):
    with open(f"/proc/{c.pid}/mountinfo") as file:
        return {line.split()[4] for line in file}


def test_volumes_look_as_the_image_has_them_and_are_apart(image):
    with Container(image.rootfs(), capabilities=Capabilities.docker()) as c, Container(image.rootfs()) as other:
        assert STATED == shell(c, STAT)
        assert POINTS == POINTS & mount_points(c)
        shell(c, "echo two > /data/one; echo new > /var/lib/db/f; rm /shut/in; touch /data/sub/x; touch /else")
        assert ["two"] == shell(c, "cat /data/one")
        assert ["one"] == shell(other, "cat /data/one")
        assert [("/else", "added")] == [
            (change.path, change.kind)
            for change in c.changes()
            if change.path not in ("/fresh", "/real", "/var", "/var/lib") and change.path != "/real/inner"
        ]
    with Container(image.rootfs()) as c:
        assert ["one"] == shell(c, "cat /data/one")
        assert [] == shell(c, "ls /var/lib/db", user="70")


def test_volume_that_begins_empty_is_a_filesystem_of_its_own(image):
    with Container(image.rootfs(size="1M"), capabilities=Capabilities.docker()) as c:
        with open(f"/proc/{c.pid}/mountinfo") as file:
            kinds = {line.split()[4]: line.split(" - ")[1].split()[0] for line in file}
        assert ("tmpfs", "overlay") == (kinds["/var/lib/db"], kinds["/data"])
        # The size limit of the container's writes applies to both.
        for path in ("/var/lib/db/big", "/data/big"):
            assert 0 != c.run(["dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=32"], stderr=-3).returncode


def test_mounts_of_the_caller_take_the_place_of_volumes(image, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o777)
    mounts = [Mount.bind(own, "/data", idmap=False), Mount.tmpfs("/var")]
    with Container(image.rootfs(), mounts=mounts) as c:
        shell(c, "echo mine > /data/kept; test ! -e /var/lib")
    assert "mine\n" == (own / "kept").read_text()


def test_volumes_can_be_left_out(image):
    for root in (image.rootfs(volumes=False), RootFS.image("v:1", store=str(image.store.root), volumes=False)):
        with Container(root) as c:
            assert not POINTS & mount_points(c)


def test_volumes_of_a_description_by_name(image):
    with Container(RootFS.image("v:1", store=str(image.store.root))) as c:
        assert POINTS == POINTS & mount_points(c)
        assert ["in"] == shell(c, "cat /shut/in")


def test_commit_is_without_what_volumes_hold(image):
    with Container(image.rootfs(), capabilities=Capabilities.docker()) as c:
        shell(c, "echo x > /data/one; echo y > /var/lib/db/f; echo z > /kept")
        second = commit(c, base=image)
    with Container(second.rootfs(), capabilities=Capabilities.docker()) as c:
        assert ["one", "z"] == shell(c, "cat /data/one; echo; cat /kept; ls /var/lib/db")
    with Container(image.rootfs(volumes=False), capabilities=Capabilities.docker()) as c:
        shell(c, "echo x > /data/one")
        third = commit(c, base=image)
    with Container(third.rootfs()) as c:
        assert ["x"] == shell(c, "cat /data/one")


def test_volume_behind_a_link_out_of_the_root_stays_inside(directory, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("s")
    (directory / "escape").symlink_to("../" * 20 + str(outside).lstrip("/"))
    defaults = Defaults(env={"PATH": "/bin"}, volumes=("/escape",))
    image = Image.from_directory(directory, store=Store(tmp_path / "store"), defaults=defaults)
    with Container(image.rootfs()) as c:
        assert [] == shell(c, "ls /escape")
    assert ["secret"] == os.listdir(outside)


# --- The stop signal

WAITS = "trap 'echo asked; exit 7' USR1; trap 'echo term; exit 8' TERM; echo ready; while :; do sleep 0.05; done"


def waiting(c, script=WAITS):
    process = c.popen(["sh", "-c", script], stdout=PIPE)
    assert b"ready\n" == process.stdout.readline()
    return process


def test_stop_with_grace_sends_the_images_signal(image):
    c = Container(image.rootfs()).start()
    first, second = waiting(c), waiting(c)
    began = time.monotonic()
    c.stop(grace_s=10)
    assert time.monotonic() - began < 20
    assert [7, 7] == [first.returncode, second.returncode]
    assert b"asked\n" == first.stdout.read()
    assert "stopped" == c.state
    for process in (first, second):
        process.close()


def test_stop_signal_can_be_given(image):
    c = Container(image.rootfs()).start()
    process = waiting(c)
    c.stop(grace_s=10, stop_signal=signal.SIGTERM)
    assert 8 == process.returncode
    process.close()


def test_stop_kills_who_does_not_heed_the_signal(image):
    c = Container(image.rootfs()).start()
    process = waiting(c, "trap '' USR1; echo ready; while :; do sleep 0.05; done")
    began = time.monotonic()
    c.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert -signal.SIGKILL == process.returncode
    process.close()


def test_stop_without_grace_asks_nobody(image):
    c = Container(image.rootfs()).start()
    process = waiting(c)
    c.stop()
    assert -signal.SIGKILL == process.returncode
    process.close()


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 15), ("SIGQUIT", 3), ("quit", 3), ("9", 9), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMIN", signal.SIGRTMIN)],
)
def test_stop_signal_is_read(text, number):
    assert number == Defaults(stop_signal=text).stop_number


@pytest.mark.parametrize("text", ["SIGNOTHING", "0", "999", "SIGRTMIN+99", "-1"])
def test_invalid_stop_signal_is_refused(text):
    with pytest.raises(SpecError, match="stop signal"):
        Defaults(stop_signal=text).stop_number  # noqa: B018 - the access is tested


def test_command_line_sends_the_stop_signal_for_sigterm(image):
    env = {
        **os.environ,
        "CONTAINERKIT_IMAGES": str(image.store.root),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    words = [sys.executable, "-m", "containerkit", "run", "--image", "v:1", "--pull", "never", "--", "sh", "-c", WAITS]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=env) as command:
        assert b"ready\n" == command.stdout.readline()
        command.terminate()
        assert b"asked\n" == command.stdout.read()
    assert 7 == command.returncode


# --- Health


def checked(image, test, **fields):
    health = Healthcheck(test=test, **fields)
    defaults = attrs.evolve(image.defaults, healthcheck=health)
    return Image.from_directory(image.unpack()[0], store=image.store, defaults=defaults)


def ms(number):
    return number * 1_000_000


def test_health_follows_the_check(image):
    made = checked(image, ("CMD-SHELL", "echo looked; test -e /ok"), retries=2, interval_ns=ms(20))
    with Container(made.rootfs()) as c:
        health = made.healthcheck(c)
        assert "starting" == health.status
        assert [False, "starting", False, "unhealthy"] == [health.check(), health.status, health.check(), health.status]
        assert (1, "looked\n") == (health.last.returncode, health.last.output)
        shell(c, "touch /ok")
        assert health.wait(5)
        assert ("healthy", 0) == (health.status, health.failures)
        shell(c, "rm /ok")
        assert [False, "healthy"] == [health.check(), health.status]
        assert not health.wait(5)
        assert "unhealthy" == health.status
    with pytest.raises(StateError):
        health.check()


def test_health_wait_looks_again_until_it_is_well(image):
    made = checked(image, ("CMD", "test", "-e", "/ok"), interval_ns=ms(30), retries=1000)
    with Container(made.rootfs()) as c, c.popen(["sh", "-c", "sleep 0.3; touch /ok"]):
        assert made.healthcheck(c).wait(10)


def test_health_failures_do_not_count_while_it_starts(image):
    made = checked(
        image,
        ("CMD", "test", "-e", "/ok"),
        start_period_ns=ms(400),
        start_interval_ns=ms(20),
        interval_ns=ms(20),
        retries=1,
    )
    with Container(made.rootfs()) as c:
        health = made.healthcheck(c)
        began = time.monotonic()
        assert not health.wait(10)
        assert 0.4 <= time.monotonic() - began < 20
        assert ("unhealthy", 1) == (health.status, health.failures)


def test_health_check_that_hangs_or_is_not_there_fails(image):
    for test, said in ((("CMD", "sleep", "60"), ""), (("CMD", "/nothing"), "No such file")):
        made = checked(image, test, timeout_ns=ms(200), retries=1)
        with Container(made.rootfs()) as c:
            health = made.healthcheck(c)
            began = time.monotonic()
            assert not health.check()
            assert time.monotonic() - began < 20
            assert health.last.returncode is None
            assert said in health.last.output
            assert "unhealthy" == health.status


def test_health_wait_ends_when_the_time_is_up(image):
    made = checked(image, ("CMD", "test", "-e", "/ok"), interval_ns=ms(60_000))
    with Container(made.rootfs()) as c:
        health = made.healthcheck(c)
        began = time.monotonic()
        assert not health.wait(0.2)
        assert time.monotonic() - began < 20
        assert "starting" == health.status


@pytest.mark.parametrize("test", [None, (), ("NONE",)])
def test_image_without_a_check_has_no_health(image, test):
    made = image if test is None else checked(image, test)
    with Container(made.rootfs()) as c, pytest.raises(SpecError, match="no health check"):
        made.healthcheck(c)
