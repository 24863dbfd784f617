"""The front end of the OCI command beside Python: each case is run by both, and nothing that can be seen may differ."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from oci_bundles import ONE, Runtime, as_root, bundle, groups_named, oci, rootfs, write_front  # noqa: F401 - fixtures

pytestmark = as_root

LASTING = ("0", "WINCH")
VARYING = (
    (r'"pid": [1-9]\d*', '"pid": PID'),
    (r"process [1-9]\d*", "process PID"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", "TIME"),
)


def counting(path):
    """Write a front end that notes each call that it hands over; return its path and the file of the notes."""
    notes = path.with_name("notes")
    interpreter = path.with_name("interpreter")
    interpreter.write_text(f'#!/bin/sh\necho >>{notes}\nexec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    return write_front(path, interpreter), notes


class Observer:
    """Runs verbs and keeps all that can be seen of them."""

    def __init__(self, runtime, style):
        self.runtime = runtime
        self.style = style
        self.seen = []
        self.log = Path(f"{runtime.root}.log")

    def __call__(self, *words):
        self.log.unlink(missing_ok=True)
        options = ["--log", str(self.log), "--log-format", self.style] if self.style else []
        before = len(self.runtime.words)
        self.runtime.words += options
        try:
            done = self.runtime(*words, check=False)
        finally:
            del self.runtime.words[before:]
        if (words[0] == "kill" and not done.returncode and words[-1] not in LASTING) or "exec: " in done.stderr:
            self.wait()
        told = self.log.read_text() if self.log.exists() else None
        found = [done.returncode, done.stdout, done.stderr, told]
        for pattern, name in VARYING:
            found = [re.sub(pattern, name, each) if isinstance(each, str) else each for each in found]
        self.seen.append((words, *found, *self.left()))

    def wait(self):
        """Wait until the container has stopped."""
        Runtime(self.runtime.root, front=False).wait(ONE)

    def left(self):
        """Return what is left: the files of the record, the status, the number of control groups."""
        place = Path(self.runtime.root) / ONE
        files = sorted(os.listdir(place)) if place.is_dir() else None
        status = Runtime(self.runtime.root, front=False).status(ONE) if files else None
        return files, status, len(groups_named(ONE))


def life(watch, bundle):
    for words in (["state", ONE], ["start", ONE], ["state", ONE], ["kill", ONE, "0"], ["kill", ONE, "SIGKILL"]):
        watch(*words)
    watch("state", ONE)
    watch("delete", ONE)
    watch("state", ONE)


def pauses(watch, bundle):
    watch("start", ONE)
    watch.runtime("pause", ONE)
    watch("state", ONE)
    watch("start", ONE)
    watch("kill", ONE, "KILL")
    watch("delete", ONE)


def again(watch, bundle):
    for words in (["start", ONE], ["start", ONE], ["delete", ONE], ["delete", "--force", ONE]):
        watch(*words)
    for verb in (["start"], ["kill"], ["delete"], ["delete", "--force"], ["state"]):
        watch(*verb, ONE)


def ends_waiting(watch, bundle):
    watch("kill", ONE, "WINCH")
    watch("delete", ONE)
    watch("kill", ONE)
    watch("start", ONE)
    watch("kill", ONE, "KILL")
    watch("delete", ONE)


def forced(watch, bundle):
    watch("delete", "-f", ONE)
    watch("delete", "-f", ONE)


def paused_and_forced(watch, bundle):
    watch("start", ONE)
    watch.runtime("pause", ONE)
    watch("delete", "--force", ONE)


def nested(watch, bundle):
    for place in groups_named(ONE):
        os.mkdir(f"{place}/inner")
    watch("start", ONE)
    watch("kill", ONE, "KILL")
    watch("delete", ONE)


def occupied(watch, bundle):
    """A process of another container, or of the host, is in a group."""
    watch("start", ONE)
    with subprocess.Popen(["sleep", "1000"]) as other:
        Path(groups_named(ONE)[0], "cgroup.procs").write_text(str(other.pid))
        watch("kill", ONE, "KILL")
        watch("kill", "--all", ONE, "0")
        watch("delete", ONE)
        assert -signal.SIGKILL == other.wait(10)


def mistakes(watch, bundle):
    for words in (
        ["kill", ONE, "NOSUCH"], ["kill", "--nosuch", ONE], ["delete", "--nosuch"], ["state"], ["start"], ["kill"],
        ["delete"], ["state", "../x"], ["state", ""], ["state", "--help"], ["start", ONE, "more"],
        ["state", ONE, "more"], ["kill", ONE, "KILL", "more"], ["delete", ONE, "nobody"], ["delete", "--regex", "^x"],
    ):  # fmt: skip
        watch(*words)


def gone(watch, bundle):
    """The program disappears after create, so that only the end of start fails."""
    os.unlink(bundle.program)
    watch("start", ONE)
    watch("start", ONE)
    watch("delete", ONE)


def shared(watch, bundle):
    """Without a pid namespace of its own, other processes outlive the first one."""
    watch("start", ONE)
    watch("kill", ONE, "KILL")
    watch("kill", ONE, "KILL")
    watch("kill", "--all", ONE, "9")
    watch("delete", ONE)


def without_pid_namespace(bundle):
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    bundle.runs("sleep 1000 & sleep 1000")


def annotated(bundle):
    bundle.config["annotations"] = {"a": '\u00e9\U0001f600"\\\n\x7f', "b" * 300: "", "": "c"}


def with_hooks(*kinds):
    def change(bundle):
        bundle.config["hooks"] = {kind: [{"path": "/bin/true"}] for kind in kinds}

    return change


def programmed(content, mode=0o755):
    """Have a program of its own in the bundle's root, which a test may remove."""

    def change(bundle):
        bundle.program = Path(bundle.config["root"]["path"], f"tmp/program-{os.getpid()}")
        bundle.program.write_bytes(content)
        bundle.program.chmod(mode)
        bundle.runs(f"/tmp/{bundle.program.name}")

    return change


def sleeping(_bundle):
    """Have the program of each bundle of this module."""


CASES = {
    "life": (life, sleeping, 1),
    "life with annotations": (life, annotated, 1),
    "pauses": (pauses, sleeping, 1),
    "again": (again, sleeping, 6),
    "ends waiting": (ends_waiting, sleeping, 3),
    "forced": (forced, sleeping, 0),
    "paused and forced": (paused_and_forced, sleeping, 0),
    "nested groups": (nested, sleeping, 1),
    "occupied groups": (occupied, sleeping, 2),
    "mistakes": (mistakes, sleeping, 15),
    "program that is gone": (gone, programmed(b"#!/bin/sh\n"), 2),
    "program of no format": (life, programmed(b"\1\2\3\4"), 4),
    "interpreter that is missing": (life, programmed(b"#!/nowhere/shell\n"), 4),
    "shared pids": (shared, without_pid_namespace, 2),
    "hooks of the start": (life, with_hooks("startContainer", "poststart"), 2),
    "hook of the end": (life, with_hooks("poststop"), 2),
}


def tried(case, runtime, bundle, style):
    """Create a container, run a case, and return what was seen."""
    steps, change, _ = CASES[case]
    change(bundle.runs("sleep", "1000"))
    runtime.create(bundle)
    watch = Observer(runtime, style)
    try:
        steps(watch, bundle)
    finally:
        Runtime(runtime.root, front=False)("delete", "--force", ONE)
        if hasattr(bundle, "program"):
            bundle.program.unlink(missing_ok=True)
    return watch.seen


def _in_styles(case):
    """Yield a case with each style of the log. All cases have errors to log: each change tries the others by three."""
    for style in ("json", "text", ""):
        rare = style != "json" and case not in {"again", "mistakes", "program of no format"}
        yield pytest.param(case, style, marks=pytest.mark.slow if rare else (), id=f"{case}-{style}")


@pytest.mark.parametrize(("case", "style"), [each for case in CASES for each in _in_styles(case)])
def test_nothing_differs_from_python(oci, bundle, tmp_path, case, style):
    *_, handed_over = CASES[case]
    program, notes = counting(tmp_path / "counting")
    expected = tried(case, Runtime(oci.root, front=False), bundle.clone(tmp_path / "bundle"), style)
    oci.words[0] = program
    watched = bundle.clone(tmp_path / "bundle")
    before = len(expected)
    found = tried(case, oci, watched, style)
    assert before == len(found)
    for one, other in zip(expected, found, strict=True):
        assert one == other
    others = 1 + ("pause" in case)  # create, pause
    assert handed_over + others == len(notes.read_text().splitlines())


def test_both_write_the_same_record(oci, bundle):
    """What one creates the other starts, signals and deletes."""
    python = Runtime(oci.root, front=False)
    for creates, starts, kills, deletes in ((python, oci, python, oci), (oci, python, oci, python)):
        creates.create(bundle.runs("sleep", "1000"))
        starts("start", ONE)
        assert python("state", ONE).stdout == oci("state", ONE).stdout
        kills("kill", ONE, "KILL")
        python.wait()
        deletes("delete", ONE)
        assert [] == groups_named(ONE)


def test_one_of_two_starts_wins(oci, bundle):
    for _ in range(8):
        oci.create(bundle.runs("sleep", "1000"))
        calls = [oci.popen("start", ONE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
        told = [call.communicate(timeout=30)[1] for call in calls]
        assert [0, 1, 1, 1] == sorted(call.returncode for call in calls)
        assert 3 == sum("already running" in text for text in told)
        oci("delete", "--force", ONE)


def test_state_while_others_change_it_is_always_whole(oci, bundle):
    """An engine polls the state. What is printed is a state, or the text of an error."""
    oci.create(bundle.runs("sleep", "1000"))
    changes = [["start", ONE], ["kill", ONE, "KILL"], ["delete", "--force", ONE]]
    seen = set()
    for words in changes:
        change = oci.popen(*words)
        while change.poll() is None:
            done = oci("state", ONE, check=False)
            if done.returncode == 0:
                seen.add(json.loads(done.stdout)["status"])
            else:
                assert "does not exist" in done.stderr
        assert 0 == change.returncode
    assert seen <= {"created", "running", "stopped"}
    assert "does not exist" in oci.refused("state", ONE)


def calls_of(words, log):
    """Return the system calls of a command, each with its number among those of the same name."""
    subprocess.run(["strace", "-o", log, *words], check=True, capture_output=True, timeout=60)
    names = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    return [(name, names[: at + 1].count(name)) for at, name in enumerate(names) if name != "execve"]


@pytest.mark.parametrize("verb", [["start"], ["kill"], ["delete"], ["delete", "--force"]], ids=" ".join)
def test_killed_at_any_call_it_leaves_what_can_be_deleted(oci, bundle, tmp_path, verb):
    """The front end is killed at many of its system calls in turn, and at the last one."""
    if shutil.which("strace") is None:
        pytest.skip("no strace: apt-get install strace")
    python = Runtime(oci.root, front=False)
    words = [*oci.words, *verb, ONE]

    def prepare():
        oci.create(bundle.runs("sleep", "1000"))
        if verb == ["delete"]:
            python("kill", ONE, "KILL")
            python.wait()

    def clean():
        if (Path(oci.root) / ONE).exists():
            assert python.status(ONE) in ("created", "running", "stopped")
            python("delete", "--force", ONE)
        assert [] == groups_named(ONE)
        assert [] == os.listdir(oci.root)

    prepare()
    calls = calls_of(words, tmp_path / "calls")
    assert len(calls) > 15
    clean()
    for name, number in [*calls[:: len(calls) // 15 + 1], calls[-1]]:
        prepare()
        inject = ["-e", f"inject={name}:signal=SIGKILL:when={number}"]
        done = subprocess.run(["strace", "-o", "/dev/null", *inject, *words], capture_output=True, timeout=60)
        assert 0 != done.returncode, (name, number)
        clean()


def test_killed_at_any_time_it_leaves_what_can_be_deleted(oci, bundle):
    python = Runtime(oci.root, front=False)
    chosen = random.Random(1)
    for _ in range(10):
        oci.create(bundle.runs("sleep", "1000"))
        for verb in (["start"], ["kill"], ["delete", "--force"]):
            process = oci.popen(*verb, ONE, stderr=subprocess.DEVNULL)
            time.sleep(chosen.random() * 0.004)
            process.kill()
            process.wait()
        python("delete", "--force", ONE)
        assert [] == groups_named(ONE)


@pytest.fixture
def foreign_root():
    """A root that belongs to another user, below a path that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="ck-front-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def test_other_users_reach_no_container(oci, bundle, foreign_root):
    """The control: root itself does with the same command."""
    runtime = Runtime(foreign_root / "state")
    runtime.create(bundle.runs("sleep", "1000"))
    pid = runtime.state(ONE)["pid"]
    for verb in (["state"], ["start"], ["kill"], ["delete", "--force"]):
        words = [*runtime.words, *verb, ONE]
        done = subprocess.run(words, capture_output=True, text=True, user=65_534, group=65_534, extra_groups=[])
        assert 0 != done.returncode
        assert "" == done.stdout
    assert ("created", pid) == (runtime.status(ONE), runtime.state(ONE)["pid"])
    for verb in (["state"], ["start"], ["kill"], ["delete", "--force"]):
        runtime(*verb, ONE)


def test_user_cannot_make_root_follow_a_symlink_to_a_record(oci, bundle, foreign_root):
    """As with Python: a symlink in the place of a record is followed to its files, but never removed."""
    seen = []
    for front in (False, True):
        runtime = Runtime(foreign_root / "state", front=front)
        os.makedirs(f"{runtime.root}/real", exist_ok=True)
        record = {"format": 1, "phase": "created", "pid": 2**22 + 1, "start_time": 3, "groups": [], "freezer": ""}
        rest = dict.fromkeys(("ociVersion", "bundle", "rootfs", "created", "owner"), "x")
        Path(runtime.root, "real/state.json").write_text(
            json.dumps({**record, **rest, "annotations": {}, "hooks": [], "joinsPid": False}, separators=(",", ":"))
        )
        with contextlib.suppress(FileExistsError):
            os.symlink("real", f"{runtime.root}/link")
        told = [runtime(*verb, "link", check=False) for verb in (["state"], ["kill"], ["start"], ["delete"])]
        seen.append([(done.returncode, done.stdout, done.stderr) for done in told])
        assert os.path.islink(f"{runtime.root}/link")
    assert seen[0] == seen[1]
    assert 0 == seen[0][0][0]
    assert 0 != seen[0][3][0]


_UNREAPED = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
space = os.open(f"/proc/{sys.argv[1]}/ns/pid", os.O_RDONLY)
if libc.setns(space, 0x20000000):
    raise OSError(ctypes.get_errno(), "setns")
if os.fork() == 0:
    time.sleep(100)
print(flush=True)
time.sleep(100)
"""
"""Leaves a child in the pid namespace of a container that it never reaps, so that the container's init can't end."""

_FORCED = """
import sys, time
from containerkit.oci import delete, main
delete._PATIENCE_S = 1.5
time.sleep(1)  # as long as this process lives, a front end could have waited
began = time.monotonic()
status = main.main(sys.argv[2:], **eval(sys.argv[1]))
print(status, time.monotonic() - began)
"""


@pytest.mark.parametrize("oci", [False], indirect=True)
def test_time_that_the_front_end_has_waited_counts(oci, bundle):
    bundle.process["args"] = ["sleep", "100"]
    init = oci.start_one(bundle)
    holding = subprocess.Popen([sys.executable, "-c", _UNREAPED, str(init)], stdout=subprocess.PIPE)
    with holding:
        try:
            assert holding.stdout.readline() == b"\n"
            taken = {}
            for how in ('{"resumed": ""}', "{}"):
                words = [sys.executable, "-c", _FORCED, how, "--root", oci.root, "delete", "--force", ONE]
                done = subprocess.run(
                    words, env=oci.environment, capture_output=True, text=True, check=True, timeout=60
                )
                assert "does not end" in done.stderr
                status, taken[how] = done.stdout.split()
                assert status == "1"
        finally:
            holding.kill()
    assert float(taken['{"resumed": ""}']) < 1.4 < float(taken["{}"])
    oci("delete", "--force", ONE)
