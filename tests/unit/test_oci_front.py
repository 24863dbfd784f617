"""The front end of the OCI command, on records made by hand: it prints the same as Python, or executes Python."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oci_bundles import write_front

import containerkit
from containerkit import jsontext
from containerkit._native import front as front_end
from containerkit.oci import launcher, store
from containerkit.oci.errors import RuntimeFailure

NATIVE = Path(containerkit.__file__).parent / "_native"
HANDED_OVER = 77
ONE = "one"


class Front:
    """A front end whose interpreter reports that it was executed, and a root."""

    def __init__(self, place):
        self.place = place
        self.root = place / "root"
        self.root.mkdir(mode=0o711)
        interpreter = place / "interpreter"
        interpreter.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >"{place}/words"\nexit {HANDED_OVER}\n')
        interpreter.chmod(0o755)
        self.program = write_front(place / "front", interpreter)

    def __call__(self, *words, **more):
        words = [self.program, "--root", str(self.root), *map(str, words)]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, **more)

    def write(self, record, name=ONE):
        """Write a record, given as an object or as text."""
        directory = self.root / name
        directory.mkdir(mode=0o700, exist_ok=True)
        content = record if isinstance(record, bytes) else jsontext.dumps(record).encode()
        (directory / "state.json").write_bytes(content)
        return directory

    def expected(self, name=ONE):
        """Return what Python's ``state`` prints; None if it fails."""
        try:
            with store.open_entry(str(self.root), name) as entry:
                return jsontext.dumps(entry.state(), 2) + "\n"
        except Exception:  # noqa: BLE001 - whatever ends the verb
            return None


@pytest.fixture(scope="module")
def front():
    """Below a short path that every user can reach."""
    if not (NATIVE / "front").exists():
        pytest.fail("the front end was not built")
    with tempfile.TemporaryDirectory(prefix="ck-front-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Front(Path(path))


@pytest.fixture
def process():
    found = subprocess.Popen(["sleep", "1000"])
    yield found
    found.kill()
    found.wait()


@pytest.fixture(scope="module")
def lasting():
    found = subprocess.Popen(["sleep", "1000"])
    yield found
    found.kill()
    found.wait()


@pytest.fixture(scope="module")
def deaf():
    """A process that ignores SIGTERM, the default signal."""
    script = "trap '' TERM; echo; exec sleep 1000"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as found:
        found.stdout.readline()
        yield found
        found.kill()


def record_of(pid, /, **changes):
    record = {
        "format": store.FORMAT,
        "ociVersion": "1.2.0",
        "phase": "created",
        "creator": [1, 2],
        "bundle": "/b",
        "rootfs": "/b/rootfs",
        "created": "2024-02-29T12:00:00.123456789Z",
        "owner": "root",
        "annotations": {},
        "groups": [],
        "freezer": "",
        "unit": "",
        "joinsPid": False,
        "hooks": [],
        "pid": pid,
        "start_time": store.start_time(pid) or 5,
        "steps": [3, [["accept4", "the gate"], ["execve", 'x"y']]],
    }
    return {**record, **changes}


def is_alive(process):
    return process.poll() is None


# --- the record


def test_front_end_and_package_have_the_same_record_version():
    (found,) = re.findall(r"#define CK_FORMAT (\d+)", (NATIVE / "front.h").read_text())
    assert store.FORMAT == int(found)


def test_new_record_has_the_version(tmp_path):
    with store.reserve(str(tmp_path), "one") as entry:
        entry.save(phase="creating")
    assert {"format": store.FORMAT, "phase": "creating"} == json.loads((tmp_path / "one/state.json").read_text())


@given(
    texts=st.tuples(*[st.text(max_size=20)] * 5),
    annotations=st.dictionaries(st.text(max_size=12), st.text(max_size=20), max_size=6),
    lives=st.booleans(),
)
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_state_prints_what_python_prints(front, lasting, texts, annotations, lives):
    names = ("ociVersion", "bundle", "rootfs", "created", "owner")
    record = record_of(lasting.pid, **dict(zip(names, texts, strict=True)), annotations=annotations)
    front.write(record if lives else {**record, "start_time": 1})
    done = front("state", ONE)
    assert (0, front.expected(), "") == (done.returncode, done.stdout, done.stderr)
    assert ("running" if lives else "stopped") == json.loads(done.stdout)["status"]


@given(data=st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
def test_damaged_record_is_read_as_python_reads_it_or_handed_over(front, lasting, data):
    whole = jsontext.dumps(record_of(lasting.pid, annotations={"a": "b\n", "\u00e9": "\U0001f600"})).encode()
    at = data.draw(st.integers(0, len(whole)))
    size = data.draw(st.integers(0, 6))
    put = data.draw(
        st.binary(max_size=4)
        | st.sampled_from(
            [b'"', b"\\", b"{", b"}", b",", b"0", b"-", b'"pid":1,', b"\\ud83d", b"\\u0041", b" ", b"9" * 30]
        )
        | st.integers(0, len(whole) - 20).map(lambda first: whole[first : first + 20])
    )
    content = whole[:at] + put + whole[at + size :]
    front.write(content)
    done = front("state", ONE)
    if done.returncode != HANDED_OVER:
        assert (0, front.expected()) == (done.returncode, done.stdout), content


@pytest.mark.parametrize(
    "change",
    [
        {"format": store.FORMAT + 1},
        {"format": True},
        {"other": 1},
        {"phase": "creating"},
        {"phase": "new"},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**31},
        {"start_time": 0},
        {"annotations": {"a": 1}},
        {"annotations": {str(number): "" for number in range(200)}},
        {"annotations": None},
        {"hooks": ["prestart"]},
        {"groups": "/a"},
        {"groups": ["/a"] * 200},
        {"joinsPid": 0},
        {"freezer": "/sys/\u00e9/freezer.state"},
        {"freezer": "/" + "a" * 5000},
        {"bundle": "/" + "a" * 70000},
        {"steps": [[[[[[[[[[[[1]]]]]]]]]]]]},
    ],
    ids=lambda change: f"{next(iter(change))}-{next(iter(change.values()))!r:.12}",
)
def test_record_that_is_not_understood_is_left_to_python(front, lasting, change):
    front.write(record_of(lasting.pid))
    assert 0 == front("state", ONE).returncode
    front.write(record_of(lasting.pid, **change))
    assert HANDED_OVER == front("state", ONE).returncode


@pytest.mark.parametrize("lost", sorted(record_of(1)))
def test_record_without_a_member_is_left_to_python(front, lasting, lost):
    record = record_of(lasting.pid)
    del record[lost]
    front.write(record)
    may_be_missing = ("creator", "unit", "steps")
    assert (0 if lost in may_be_missing else HANDED_OVER) == front("state", ONE).returncode


@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"null", b"\0", b" {}", b"{}\n", b"{" * 60000, b'"' * 70000]
)
def test_record_that_is_none_is_left_to_python(front, content):
    front.write(content)
    assert HANDED_OVER == front("state", ONE).returncode


def test_record_that_is_cut_is_left_to_python(front, lasting):
    whole = jsontext.dumps(record_of(lasting.pid, annotations={"a": "b"})).encode()
    for size in range(len(whole)):
        front.write(whole[:size])
        assert HANDED_OVER == front("state", ONE).returncode
    front.write(whole)
    assert 0 == front("state", ONE).returncode


def test_record_that_is_a_directory_or_missing_is_left_to_python(front):
    (front.root / "empty").mkdir()
    (front.root / "odd/state.json").mkdir(parents=True)
    assert [HANDED_OVER] * 3 == [front("state", name).returncode for name in ("empty", "odd", "nobody")]


HARNESS = r"""
#include "front.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int ck_is(struct ck_text text, const char *other) {
    return strlen(other) == text.size && memcmp(text.at, other, text.size) == 0;
}

int main(void) {
    size_t size, read = 0;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *text = malloc(size + !size);
        struct ck_record *record = calloc(1, sizeof *record);
        if (fread(text, 1, size, stdin) != size)
            return 2;
        read += ck_read_record(text, size, record);
        for (size_t i = 0; i < record->annotation_count; i++)
            if (record->annotations[i].name.at < text || record->annotations[i].name.at > text + size)
                return 3;
        free(record);
        free(text);
    }
    printf("%zu\n", read);
    return 0;
}
"""


@pytest.fixture(scope="module")
def checked_reader(tmp_path_factory):
    """The reader of records under AddressSanitizer and UndefinedBehaviorSanitizer."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    place = tmp_path_factory.mktemp("reader")
    (place / "harness.c").write_text(HARNESS)
    options = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    options += ["-fno-sanitize-recover=all", f"-I{NATIVE}", "-o", place / "reader"]
    done = subprocess.run(
        ["gcc", *options, place / "harness.c", NATIVE / "front_record.c"], capture_output=True, text=True
    )
    if "cannot find" in done.stderr and "asan" in done.stderr:
        pytest.skip("no libasan")
    assert 0 == done.returncode, done.stderr

    def read(records):
        content = b"".join(len(each).to_bytes(8, "little") + each for each in records)
        done = subprocess.run([place / "reader"], input=content, capture_output=True, timeout=100)
        assert 0 == done.returncode, done.stderr
        return int(done.stdout)

    return read


def damaged(whole, chosen):
    """Return a record with some of its bytes replaced, removed, or copied from elsewhere in it."""
    content = bytearray(whole)
    for _ in range(chosen.randint(1, 4)):
        at, size = chosen.randrange(len(content) + 1), chosen.choice((0, 1, 1, 2, 9))
        first = chosen.randrange(len(whole))
        put = chosen.choice((b"", bytes([chosen.randrange(256)]), whole[first : first + 30], b"\\", b'"', b"[" * 20))
        content[at : at + size] = put
    return bytes(content)


def test_reader_never_reads_beyond_the_record(checked_reader):
    """The control: the whole record is read, and with it all that is valid."""
    annotations = {f"name-{number}": "\u00e9\n" * number for number in range(10)}
    whole = jsontext.dumps(record_of(7, annotations=annotations, groups=["/a", "/b"], hooks=["poststop"])).encode()
    chosen = random.Random(1)
    assert 1 == checked_reader([whole])
    assert 0 == checked_reader([whole[:size] for size in range(len(whole))])
    assert 0 < checked_reader([damaged(whole, chosen) for _ in range(5000)]) < 5000


# --- the process


def test_status_follows_the_freezer(front, lasting, tmp_path):
    for text, expected in (("FROZEN\n", "paused"), ("THAWED\n", "running"), ("1\n", "paused"), ("0\n", "running")):
        (tmp_path / "freezer").write_text(text)
        front.write(record_of(lasting.pid, freezer=str(tmp_path / "freezer")))
        done = front("state", ONE)
        assert (front.expected(), expected) == (done.stdout, json.loads(done.stdout)["status"])


def test_gate_of_a_process_that_runs_its_program_does_not_count(front, lasting):
    (front.write(record_of(lasting.pid)) / "gate").touch()
    assert ("running", front.expected()) == (
        json.loads(front("state", ONE).stdout)["status"],
        front("state", ONE).stdout,
    )
    (front.root / ONE / "gate").unlink()


@pytest.mark.parametrize("name", ["a) Z 1 (", "a b", "(((", ")"])
def test_process_may_have_any_name(front, name):
    code = f"import sys; open('/proc/self/comm', 'w').write({name!r}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        front.write(record_of(process.pid))
        done = front("state", ONE)
        assert (front.expected(), "running") == (done.stdout, json.loads(done.stdout)["status"])
        process.stdin.close()
        process.wait()


def test_zombie_is_stopped(front):
    process = subprocess.Popen(["sleep", "1000"])
    front.write(record_of(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        done = front("state", ONE)
        assert (front.expected(), "stopped") == (done.stdout, json.loads(done.stdout)["status"])
    finally:
        process.wait()


def test_signal_reaches_only_the_process_of_the_record(front, process):
    front.write(record_of(process.pid, start_time=store.start_time(process.pid) + 1))
    for verb in (["kill", ONE, "KILL"], ["start", ONE]):
        assert HANDED_OVER == front(*verb).returncode
    assert 0 == front("delete", "--force", ONE).returncode
    time.sleep(0.05)
    assert is_alive(process)
    front.write(record_of(process.pid))
    assert 0 == front("kill", ONE, "KILL").returncode
    assert -signal.SIGKILL == process.wait(10)


@pytest.mark.parametrize("word", [None, "TERM", "SIGTERM", "15", "KILL", "9", "09", "USR1", "WINCH", "0", "STOP"])
def test_signals_are_sent_by_name_and_number(front, process, word):
    front.write(record_of(process.pid))
    done = front("kill", ONE, *([word] if word else []))
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    number = getattr(signal, f"SIG{(word or 'TERM').removeprefix('SIG')}", None) or int(word)
    if word in ("WINCH", "0", "STOP"):
        time.sleep(0.02)
        assert is_alive(process)
        assert (word == "STOP") == (f"{process.pid} (sleep) T" in Path(f"/proc/{process.pid}/stat").read_text())
    else:
        assert -number == process.wait(10)


@pytest.mark.parametrize("word", ["NOSUCH", "term", "65", "RTMIN", "+9", "", "SIG", "009", "99999999999"])
def test_signals_that_are_less_usual_are_left_to_python(front, process, word):
    front.write(record_of(process.pid))
    assert HANDED_OVER == front("kill", ONE, word).returncode
    assert is_alive(process)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["kill", "--all", ONE, "KILL"], {}),
        (["kill", ONE, "KILL"], {"joinsPid": True}),
        (["delete", ONE], {}),
        (["delete", "-f", ONE], {"joinsPid": True}),
        (["start", ONE], {}),
    ],
    ids=str,
)
def test_rare_cases_are_left_to_python_before_they_have_an_effect(front, process, words, changes):
    front.write(record_of(process.pid, **changes))
    assert HANDED_OVER == front(*words).returncode
    assert is_alive(process)
    assert (front.root / ONE / "state.json").exists()


# --- delete


def test_delete_removes_the_record(front):
    directory = front.write(record_of(2**22 + 1))
    for name in ("config.json", ".state.json"):
        (directory / name).touch()
    done = front("delete", ONE)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert not directory.exists()


@pytest.mark.parametrize("change", [{"hooks": ["poststop"]}, {"unit": "a.scope"}, {"resctrl": "/x"}])
def test_delete_leaves_to_python_what_takes_more(front, change):
    directory = front.write(record_of(2**22 + 1, **change))
    assert HANDED_OVER == front("delete", ONE).returncode
    assert HANDED_OVER == front("delete", "--force", ONE).returncode
    assert (directory / "state.json").exists()


@pytest.mark.parametrize("odd", ["directory", "symlink"])
def test_delete_removes_nothing_of_a_record_with_more_than_files(front, tmp_path, odd):
    directory = front.write(record_of(2**22 + 1))
    (tmp_path / "kept").touch()
    if odd == "directory":
        (directory / "notify").mkdir()
    else:
        (directory / "link").symlink_to(tmp_path)
    assert HANDED_OVER == front("delete", ONE).returncode
    assert (directory / "state.json").exists()
    assert (tmp_path / "kept").exists()
    with store.open_entry(str(front.root), ONE) as entry:
        entry.remove()


def test_delete_leaves_to_python_a_record_with_very_many_files(front):
    directory = front.write(record_of(2**22 + 1))
    for number in range(400):
        (directory / f"file-{number:030}").touch()
    assert HANDED_OVER == front("delete", ONE).returncode
    assert 401 == len(os.listdir(directory))
    with store.open_entry(str(front.root), ONE) as entry:
        entry.remove()


@pytest.mark.parametrize("group", ["relative/group", "/", "", "/a/", "/sys/\u00e9/a"])
def test_delete_leaves_to_python_groups_that_are_none(front, group):
    directory = front.write(record_of(2**22 + 1, groups=[group]))
    assert HANDED_OVER == front("delete", ONE).returncode
    assert (directory / "state.json").exists()


def test_delete_does_not_follow_a_symlink_to_a_group(front, tmp_path):
    """The control: without the symlink the same directory is removed."""
    (tmp_path / "groups/one").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "groups")
    for place, status in (("link/one", HANDED_OVER), ("groups/one", 0)):
        front.write(record_of(2**22 + 1, groups=[str(tmp_path / place)]))
        assert status == front("delete", ONE).returncode
        assert (status != 0) == (tmp_path / "groups/one").exists()


@pytest.mark.parametrize(
    ("inside", "status"),
    [
        ("", 0),
        ("process", HANDED_OVER),
        ("group", HANDED_OVER),
        ("link", HANDED_OVER),
        ("nothing", 0),
        ("odd", HANDED_OVER),
    ],
)
def test_kill_of_all_is_done_where_nobody_is_left(front, tmp_path, inside, status):
    group = tmp_path / "groups/one"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("17\n" if inside == "process" else "")
    (tmp_path / "freezer.state").write_text("FROZEN")
    place = group
    if inside == "group":
        (group / "inner").mkdir()
    elif inside == "link":
        place = tmp_path / "link"
        place.symlink_to(group)
    elif inside == "nothing":
        place = tmp_path / "missing/one"
    elif inside == "odd":
        (group / "cgroup.procs").unlink()
    front.write(record_of(2**22 + 1, groups=[str(place)], freezer=str(tmp_path / "freezer.state"), joinsPid=True))
    for word in ("--all", "-a", "-all"):
        assert status == front("kill", word, ONE, "TERM").returncode
    assert "FROZEN" == (tmp_path / "freezer.state").read_text()
    assert status == front("kill", ONE, "KILL", "--all").returncode
    assert ("FROZEN" if status else "THAWED") == (tmp_path / "freezer.state").read_text()


def test_delete_without_a_pid_namespace_is_done_where_nobody_is_left(front, tmp_path):
    (tmp_path / "one").mkdir()
    directory = front.write(record_of(2**22 + 1, groups=[str(tmp_path / "one")], joinsPid=True))
    assert HANDED_OVER == front("delete", "--force", ONE).returncode
    assert 0 == front("delete", ONE).returncode
    assert not directory.exists()
    assert not (tmp_path / "one").exists()


def test_delete_of_a_group_that_is_in_use_is_left_to_python(front, tmp_path):
    (tmp_path / "one/inner").mkdir(parents=True)
    directory = front.write(record_of(2**22 + 1, groups=[str(tmp_path / "one")]))
    assert HANDED_OVER == front("delete", ONE).returncode
    assert (directory / "state.json").exists()


@pytest.mark.parametrize("words", [["delete", ONE], ["delete", "--force", ONE]])
def test_delete_leaves_to_python_a_record_that_is_locked(front, words):
    directory = front.write(record_of(2**22 + 1))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert HANDED_OVER == front(*words).returncode
        assert (directory / "state.json").exists()
    finally:
        os.close(fd)
    assert 0 == front(*words).returncode


# --- the command line


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["state", ONE], 0),
        (["--debug", "state", ONE], 0),
        (["--systemd-cgroup", "--log-format", "json", "state", ONE], 0),
        (["--log-format=text", "--rootless=true", "--criu", "/x", "state", ONE], 0),
        (["-log-format", "json", "-debug", "state", ONE], 0),
        (["--cgroup-manager", "disabled", "state", ONE], 0),
        (["--cgroup-manager=other", "state", ONE], HANDED_OVER),
        (["--log-format", "xml", "state", ONE], HANDED_OVER),
        (["--log-format"], HANDED_OVER),
        (["--debug=false", "state", ONE], HANDED_OVER),
        (["--other", "state", ONE], HANDED_OVER),
        (["--", "state", ONE], HANDED_OVER),
        (["---debug", "state", ONE], HANDED_OVER),
        (["-", "state", ONE], HANDED_OVER),
        (["--version"], HANDED_OVER),
        (["--help", "state", ONE], HANDED_OVER),
        ([], HANDED_OVER),
        (["state"], HANDED_OVER),
        (["state", "--help"], HANDED_OVER),
        (["state", "--", ONE], HANDED_OVER),
        (["state", ONE, "more"], HANDED_OVER),
        (["state", "../root/one"], HANDED_OVER),
        (["state", "."], HANDED_OVER),
        (["state", ".."], HANDED_OVER),
        (["state", ""], HANDED_OVER),
        (["state", "a" * 1025], HANDED_OVER),
        (["kill", ONE, "0", "more"], HANDED_OVER),
        (["kill", "-a", ONE, "0"], HANDED_OVER),
        (["kill", "--regex", ONE, "0"], HANDED_OVER),
        (["delete", "--regex", ONE], HANDED_OVER),
        (["delete", ONE, "two"], HANDED_OVER),
        (["list"], HANDED_OVER),
        (["exec", ONE, "true"], HANDED_OVER),
        (["STATE", ONE], HANDED_OVER),
    ],
    ids=str,
)
def test_command_lines(front, lasting, words, status):
    front.write(record_of(lasting.pid))
    done = front(*words)
    assert status == done.returncode
    if status:
        handed = (front.place / "words").read_text().split("\n")
        shown = ["--root", str(front.root), *words]
        assert ["-IS", "-c"] == handed[:2]
        assert ["", *shown, ""] == handed[-len(shown) - 2 :]
    else:
        assert front.expected() == done.stdout


OPTIONS = st.sampled_from(
    [
        *(["--debug"], ["-debug"], ["--systemd-cgroup"], ["--log-format", "json"], ["--log-format=text"], ["--log="]),
        *(["--rootless", "auto"], ["--criu="], ["--cgroup-manager", "disabled"], ["--root", "/nowhere"], ["--log", ""]),
        *(
            ["--root", "ROOT"],
            ["--root=ROOT"],
            ["--cgroup-manager=systemd"],
            ["--log", "ROOT/.log"],
            ["--"],
            ["-"],
            [""],
        ),
        *(
            ["--root", ""],
            ["--log-format", "--debug"],
            ["--debug=1"],
            ["-v"],
            ["--log"],
            ["---debug"],
            ["--log", "state"],
        ),
    ]
)
REST = st.sampled_from(
    [ONE, ONE, ONE, "0", "WINCH", "SIGCONT", "-a", "--all", "-f", "--force", "--", "-", "", "28", "--x=1"]
)


@given(before=st.lists(OPTIONS, max_size=4), verb=st.sampled_from(["state", "kill"]), rest=st.lists(REST, max_size=3))
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_command_line_that_is_understood_means_the_same_to_python(front, deaf, before, verb, rest):
    """Compare with Python the command lines that the front end handles. All others are passed to Python."""
    front.write(record_of(deaf.pid))
    given = ["--root", str(front.root), *(word for words in before for word in words), verb, *rest]
    given = [word.replace("ROOT", str(front.root)) for word in given]
    more = {"capture_output": True, "text": True, "cwd": front.root, "timeout": 30}
    found = subprocess.run([front.program, *given], **more)
    if found.returncode != HANDED_OVER:
        source = str(Path(containerkit.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": source}
        expected = subprocess.run([sys.executable, "-m", "containerkit.oci", *given], env=environment, **more)
        for one in (expected, found):
            one.args = given
        assert vars(expected) == vars(found)


@pytest.mark.parametrize("odd", ["{0}/", "{0}/.", "{0}/../root", "/{0}", "{0}//", "", "root", "./root", "/"])
def test_root_that_has_to_be_normalized_is_left_to_python(front, lasting, odd):
    front.write(record_of(lasting.pid))
    done = subprocess.run([front.program, "--root", odd.format(front.root), "state", ONE], cwd=front.place)
    assert HANDED_OVER == done.returncode


def test_last_root_counts(front, lasting):
    front.write(record_of(lasting.pid))
    words = [front.program, "--root", "/nowhere", f"--root={front.root}", "state", ONE]
    assert front.expected() == subprocess.run(words, capture_output=True, text=True).stdout


def test_default_root_of_a_user_is_that_of_the_session(front, lasting, tmp_path):
    """Root uses the session's directory only in a user namespace, which only Python handles."""
    place = tmp_path / "containerkit/oci/session-of-one"
    place.mkdir(parents=True)
    (place / "state.json").write_text(jsontext.dumps(record_of(lasting.pid)))
    words = [front.program, "state", "session-of-one"]
    for session in ({"XDG_RUNTIME_DIR": str(tmp_path)}, {"XDG_RUNTIME_DIR": ""}, {}):
        done = subprocess.run(words, env=session, capture_output=True)
        mine = bool(session.get("XDG_RUNTIME_DIR")) and os.geteuid() != 0
        assert (0 if mine else HANDED_OVER) == done.returncode


def test_log_is_made_and_stays_empty(front, lasting, tmp_path):
    front.write(record_of(lasting.pid))
    assert 0 == front("--log", tmp_path / "log", "state", ONE).returncode
    assert (b"", 0o600) == ((tmp_path / "log").read_bytes(), (tmp_path / "log").stat().st_mode & 0o777)
    (tmp_path / "log").write_text("before\n")
    assert 0 == front(f"--log={tmp_path}/log", "kill", ONE, "0").returncode
    assert "before\n" == (tmp_path / "log").read_text()


@pytest.mark.parametrize("log", ["/nowhere/log", "/", "/dev/full"])
def test_log_that_cannot_be_written_is_left_to_python(front, process, log):
    directory = front.write(record_of(process.pid))
    for words in (["state", ONE], ["kill", ONE, "KILL"], ["delete", "--force", ONE]):
        assert HANDED_OVER == front("--log", log, *words).returncode
    assert is_alive(process)
    assert directory.exists()


def test_output_that_cannot_be_written_is_left_to_python(front, lasting):
    front.write(record_of(lasting.pid))
    words = [front.program, "--root", str(front.root), "state", ONE]
    with open("/dev/full", "w") as full:
        assert HANDED_OVER == subprocess.run(words, stdout=full).returncode
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert HANDED_OVER == subprocess.run(words, stdout=writing).returncode
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_missing_stream_is_left_to_python(front, lasting, closed):
    front.write(record_of(lasting.pid))
    words = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", front.program, "--root", str(front.root), "state", ONE]
    assert HANDED_OVER == subprocess.run(words, capture_output=True).returncode


def test_many_words_are_left_to_python_whole(front):
    words = [f"--env=NUMBER={number}" for number in range(5000)]
    assert HANDED_OVER == front("exec", *words, ONE, "true").returncode
    assert [*words, ONE, "true", ""] == (front.place / "words").read_text().split("\n")[-len(words) - 3 :]


def test_nothing_stays_open_for_the_interpreter(front, process):
    """The control: the descriptor that the caller passes is there."""
    (front.place / "lister").write_text('#!/bin/sh\nls -l "/proc/$$/fd"\n')
    (front.place / "lister").chmod(0o755)
    program = write_front(front.place / "listing", front.place / "lister")
    front.write(record_of(process.pid, joinsPid=True))
    passed = os.memfd_create("passed")
    words = [program, "--root", str(front.root), "--log", "/dev/full", "delete", "--force", ONE]
    done = subprocess.run(words, capture_output=True, text=True, pass_fds=[passed])
    os.close(passed)
    assert "passed" in done.stdout
    assert str(front.root) not in done.stdout


def test_interrupt_ends_it_with_the_status_of_python(front):
    directory = front.write(record_of(2**22 + 1))
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        process = subprocess.Popen([front.program, "--root", str(front.root), "start", ONE])
        end = time.monotonic() + 10
        while " S " not in Path(f"/proc/{process.pid}/stat").read_text():  # it waits for the lock
            assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(10)
    finally:
        os.close(fd)


# --- the program


def test_front_end_that_was_not_written_by_the_launcher_says_so():
    done = subprocess.run([NATIVE / "front", "state", ONE], capture_output=True, text=True)
    assert (1, "", "containerkit-oci: the front end is not configured\n") == (done.returncode, done.stdout, done.stderr)


def test_interpreter_that_is_gone_is_named(front):
    program = write_front(front.place / "lost", front.place / "nowhere/python")
    done = subprocess.run([program, "list"], capture_output=True, text=True)
    assert 1 == done.returncode
    assert f"containerkit-oci: exec {front.place}/nowhere/python: error 2 (hint:" in done.stderr


@pytest.fixture
def installed(tmp_path):
    """The program that pip installs, with what it writes beside it, and a symlink to it from elsewhere."""
    (tmp_path / "bin").mkdir()
    program, python = tmp_path / "bin/containerkit-oci", tmp_path / "bin" / front_end.PYTHON
    program.write_bytes(front_end.beside(front_end.FRONT))
    program.chmod(0o755)
    python.write_text(f"#!{sys.executable}\nfrom containerkit.oci.main import resume\nresume()\n")
    python.chmod(0o755)
    (tmp_path / "link").symlink_to(program)
    return tmp_path


@pytest.mark.parametrize("name", ["bin/containerkit-oci", "link", f"bin/{front_end.PYTHON}"])
def test_installed_program_executes_what_pip_writes_beside_it(installed, name):
    words = [installed / name, "--root", installed / "root"]
    done = subprocess.run([*words, "state", ONE], capture_output=True, text=True)
    assert (1, f"containerkit-oci: container '{ONE}' does not exist\n") == (done.returncode, done.stderr)
    assert subprocess.run([*words, "list", "--quiet"], capture_output=True, check=True).stdout == b""


def test_installed_program_passes_its_words_on(installed):
    python = installed / "bin" / front_end.PYTHON
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$0" "$@"\n')
    done = subprocess.run([installed / "link", "exec", "--env=a b", ONE, ""], capture_output=True, text=True)
    assert [str(python), "", "exec", "--env=a b", ONE, "", ""] == done.stdout.split("\n")


def test_installed_program_without_its_python_says_so(installed):
    python = installed / "bin" / front_end.PYTHON
    python.unlink()
    done = subprocess.run([installed / "link", "list"], capture_output=True, text=True)
    assert 1 == done.returncode
    assert f"containerkit-oci: exec {python}: error 2 (hint: install containerkit again" in done.stderr


def test_only_the_front_end_is_installed_as_one(tmp_path):
    (tmp_path / "other").write_bytes(b"another program")
    with pytest.raises(ValueError, match="is not the front end"):
        front_end.beside(str(tmp_path / "other"))


def test_script_takes_its_place_where_it_was_not_built(tmp_path, monkeypatch):
    assert launcher.program().startswith(b"\x7fELF")
    monkeypatch.setattr(front_end, "FRONT", str(tmp_path / "front"))
    assert launcher.text().encode() == launcher.program()
    (tmp_path / "front").write_bytes(b"another program")
    assert launcher.text().encode() == launcher.program()


def test_paths_that_a_script_cannot_have_are_no_obstacle(front, monkeypatch):
    deep = front.place / ("a b " * 20) / ("c" * 200)
    deep.mkdir(parents=True)
    (deep / "python").symlink_to(front.place / "interpreter")
    monkeypatch.setattr(sys, "executable", str(deep / "python"))
    with pytest.raises(RuntimeFailure, match="first line of a script"):
        launcher.text()
    program = write_front(front.place / "deep", deep / "python")
    assert HANDED_OVER == subprocess.run([program, "list"]).returncode


def test_front_end_needs_little_memory(front, lasting):
    """It works where an interpreter could not even start."""
    front.write(record_of(lasting.pid))
    limit = (1 << 21, 1 << 21)
    done = front("state", ONE, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    assert (0, front.expected()) == (done.returncode, done.stdout)
