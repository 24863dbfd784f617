"""CVE-2021-30465: a process that can write to a root or a bind exchanges directories for symlinks during starts.

A mount outside the root would not be among those of the container. Files outside would have been created where the target
had to be created.
"""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from attacker import USER, as_user
from examples import examples

from containerkit import Container, Mount, RootFS, SetupError, run
from containerkit.plan import calls
from containerkit.start import context

pytestmark = [pytest.mark.usefixtures("nothing_left")]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming the other user, who swaps, takes root")

STARTS = 80  # of the control
FEWEST_SWAPS = 125  # for each start

SWAPPER = """
import ctypes, os, signal, sys
pairs, user = sys.argv[2:], int(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
libc = ctypes.CDLL(None, use_errno=True)
done, going = 0, [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
pairs = [(pair.encode(), pair.encode() + b".other") for pair in pairs]
print("ready", flush=True)
while going:
    for one, other in pairs:
        if libc.renameat2(-100, one, -100, other, 2):  # RENAME_EXCHANGE
            sys.exit(os.strerror(ctypes.get_errno()))
        done += 1
print(done)
"""


@contextmanager
def swapping(*paths):
    """Exchange each path for its ``.other`` continuously. Yield a list that has the number of exchanges at the end."""
    swaps = []
    argv = [sys.executable, "-c", SWAPPER, str(USER), *map(str, paths)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as swapper:
        assert "ready\n" == swapper.stdout.readline(), swapper.stderr.read()
        try:
            yield swaps
        finally:
            swapper.send_signal(signal.SIGTERM)
            said, complaint = swapper.communicate()
    assert 0 == swapper.returncode, complaint
    swaps.append(int(said))


class StartContext:
    """A root directory, a directory to bind, and a victim outside. All but the victim belong to the swapper.

    The target of a symlink outside also exists inside the root with the same path, so that both can be mounted on.
    """

    def __init__(self, path, link):
        self.root, self.bound, self.marked, self.victim = (
            path / name for name in ("root", "bound", "marked", "victim")
        )
        for directory in (self.root, self.bound, self.marked, self.victim):
            directory.mkdir()
        for name in ("usr", "proc", "sys", "dev"):
            (self.root / name).mkdir()
        for name in ("bin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        leads = link.format(victim=self.victim)
        inside = self.root / os.path.normpath(f"/{leads}").strip("/")
        for directory in (self.root / "a/mnt", self.bound / "mnt", inside, self.victim):
            (directory / "inner").mkdir(parents=True)
        for directory in (self.root / "a", self.bound):
            (directory / "mnt.other").symlink_to(leads)
        self.swapped = (self.root / "a/mnt", self.bound / "mnt")
        for directory, _, _ in os.walk(path):
            os.chmod(directory, 0o755)
            if os.geteuid() == 0 and not directory.startswith((str(self.victim), str(self.marked))):
                os.chown(directory, USER, USER)
        for above in list(path.parents)[:2]:
            above.chmod(0o755)

    def description(self, *, deep):
        """A container with mounts on swapped paths, or on paths that must be created below them."""
        below = "/inner/made/here" if deep else ""
        mounts = [
            Mount.bind("/usr", "/usr", readonly=True),
            Mount.bind(str(self.bound), "/bound"),
            Mount.tmpfs(f"/a/mnt{below}", size="124k"),
            Mount.bind(str(self.marked), f"/bound/mnt{below}", readonly=True),
        ]
        return {"rootfs": RootFS.dir(str(self.root)), "mounts": mounts}

    def outside(self):
        """The content of the victim, and the mounts on or below it."""
        with open("/proc/self/mountinfo") as file:
            points = [line.split()[4] for line in file]
        return sorted(os.walk(self.victim)), [point for point in points if point.startswith(str(self.victim))]


def marks(mountinfo, marked):
    """Return how many of the two mounts are among those of a container."""
    lines = mountinfo.splitlines()
    return sum("size=124k" in line for line in lines), sum(line.split()[3].endswith(str(marked)) for line in lines)


def by_container(description):
    with Container(**description) as container, open(f"/proc/{container.pid}/mountinfo") as file:
        return file.read()


def by_run(description):
    return run(["cat", "/proc/self/mountinfo"], text=True, check=True, **description).stdout


def by_template(description):
    with Container.prepare(ready=1, **description) as template:
        return template.run(["cat", "/proc/self/mountinfo"], text=True, check=True).stdout


def starts(how, place, *, deep, number):
    """Start this many containers. Return the marks that were seen, and the errors that occurred."""
    seen, errors = set(), set()
    for _ in range(number):
        try:
            seen.add(marks(how(place.description(deep=deep)), place.marked))
        except SetupError as error:
            errors.add(os.strerror(error.errno))
    return sorted(seen), sorted(errors)


ABSOLUTE = "{victim}"
RELATIVE = "../../../../../../../../../../..{victim}"
OUT = "../../../../../../../../../../../lower"
"""A directory of the staging filesystem, which contains a root that is being assembled."""


@needs_root
@pytest.mark.parametrize("how", [by_container, by_run, by_template])
@pytest.mark.parametrize("link", [ABSOLUTE, RELATIVE, OUT])
@pytest.mark.parametrize("deep", [False, True])
def test_no_mount_is_made_outside_the_root(tmp_path, how, link, deep):
    place = StartContext(tmp_path, link)
    before = place.outside()
    number = examples(ci=15, nightly=STARTS)
    with swapping(*place.swapped) as swaps:
        seen, errors = starts(how, place, deep=deep, number=number)
    assert swaps[0] >= FEWEST_SWAPS * number
    assert before == place.outside()
    assert [(1, 1)] == seen, errors


@needs_root
@pytest.mark.parametrize("link", [ABSOLUTE, RELATIVE])
def test_no_mount_of_an_unprivileged_user_is_made_outside_the_root(tmp_path, link):
    place = StartContext(tmp_path, link)
    for directory, _, _ in os.walk(place.victim):
        os.chown(directory, USER, USER)
    before = place.outside()
    number = examples(ci=30, nightly=STARTS)

    def work():
        with swapping(*place.swapped) as swaps:
            return *starts(by_container, place, deep=True, number=number), swaps

    seen, errors, swaps = as_user(work, ranges=False)
    assert swaps[0] >= FEWEST_SWAPS * number
    assert before == place.outside()
    assert [[1, 1]] == seen, errors


@needs_root
def test_mounts_are_made_outside_without_openat2(tmp_path, monkeypatch):
    """The control: the same with paths that are resolved in the ordinary way."""
    open_inside = calls.open_inside

    def unbound(root, path, *args, **more):
        resolve = {"resolve": 0} if path.startswith((b"a/", b"bound")) else {}
        return open_inside(root, path, *args, **{**more, **resolve})

    place = StartContext(tmp_path, OUT)
    monkeypatch.setattr(calls, "open_inside", unbound)
    context.programs.kept.clear()
    try:
        with swapping(*place.swapped):
            assert any(set(starts(by_container, place, deep=False, number=1)[0]) - {(1, 1)} for _ in range(STARTS))
    finally:
        context.programs.kept.clear()
