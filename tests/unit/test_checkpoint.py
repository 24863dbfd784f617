"""Refusals of checkpoints, and the record. These tests do not need CRIU."""

import os
import re
from pathlib import Path

import attrs
import pytest

from containerkit import (
    Capabilities,
    Container,
    IdMapping,
    Landlock,
    Limits,
    Mount,
    Namespaces,
    RootFS,
    Seccomp,
    SetupError,
    StateError,
    UnsupportedError,
)
from containerkit._linux import criu
from containerkit.cgroup import DeviceRule
from containerkit.checkpoint import Subject, find_program, guard, record, refusals
from containerkit.checkpoint.images import id_maps
from containerkit.spec.container import build

DIR = RootFS.dir("/srv")


def subject(**fields):
    return Subject("<Container one>", build({"rootfs": DIR, **fields}), os.getpid(), -1, [], landlocked=False)


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_unprivileged_caller_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1500)
    with pytest.raises(UnsupportedError, match=r"checkpoint <Container one>: .*CRIU needs root"):
        refusals.check(subject())
    with pytest.raises(UnsupportedError, match=r"restore .*CRIU needs root"):
        Container.restore(tmp_path)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"landlock": Landlock()}, "pass landlock=None"),
        ({"namespaces": Namespaces(pid="host")}, "it has joined its pid namespace"),
        ({"namespaces": Namespaces(ipc="/proc/1/ns/ipc")}, "it has joined its ipc namespace"),
        ({"seccomp": Seccomp.default().notify("mkdir")}, "its filter asks a supervisor"),
        ({"rootfs": RootFS.overlay("/srv", union="fuse")}, "pass union='kernel'"),
        ({"rootfs": RootFS.host()}, "RootFS.dir"),
        ({"rootfs": RootFS.tmpfs()}, "RootFS.dir"),
    ],
)
def test_container_that_would_be_restored_weaker_is_refused(fields, told):
    with pytest.raises(UnsupportedError, match=re.escape(told)):
        refusals.check(subject(**fields))


@pytest.mark.usefixtures("root")
def test_command_that_was_restricted_by_landlock_is_refused():
    with pytest.raises(UnsupportedError, match="does not see Landlock rules"):
        refusals.check(subject()._replace(landlocked=True))


@pytest.mark.usefixtures("root")
def test_commands_of_the_caller_are_refused():
    with pytest.raises(StateError, match="'sleep' running: it is a child of the caller"):
        refusals.check(subject()._replace(commands=[_Shown("'sleep' running")]))


class _Shown:
    def __init__(self, text):
        self._text = text

    def __repr__(self):
        return self._text


def test_container_that_does_not_run_is_refused(tmp_path):
    with pytest.raises(StateError, match="it does not run"):
        Container(DIR).checkpoint(tmp_path / "images")
    assert not (tmp_path / "images").exists()


# --- CRIU itself


def program(path, version):
    path.write_text(f"#!/bin/sh\necho 'Version: {version}'\n")
    path.chmod(0o755)
    return path


def test_criu_is_looked_for_and_its_version_checked(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert str(program(tmp_path / "criu", "4.2.1")) == find_program(None)
    program(tmp_path / "criu", "3.17.1")
    with pytest.raises(UnsupportedError, match=r"criu .*its version is 3\.17\.1: before 4"):
        find_program(None)
    with pytest.raises(UnsupportedError, match="its version is unknown"):
        find_program("/bin/true")
    with pytest.raises(UnsupportedError, match="it is not a working CRIU: pass criu=PATH"):
        find_program(tmp_path / "missing")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(UnsupportedError, match=r"install CRIU 4 or later, or pass criu=PATH"):
        find_program(None)


def test_failure_has_the_last_errors_of_the_log(tmp_path):
    (tmp_path / "log").write_text("".join(f"Error {number}\nelse\n" for number in range(9)))
    assert "criu dump: exit status 1: Error 6; Error 7; Error 8" == criu.failure("dump", 1, "told", f"{tmp_path}/log")
    assert "criu dump: exit status 1: told" == criu.failure("dump", 1, "told\n", f"{tmp_path}/missing")


def test_streams_are_named_as_criu_names_them(tmp_path):
    master, terminal = os.openpty()
    reading, writing = os.pipe()
    try:
        status = os.fstat(terminal)
        assert f"tty[{status.st_rdev:x}:{status.st_dev:x}]" == criu.stream(os.getpid(), terminal, set())
        inode = os.fstat(writing).st_ino
        assert f"pipe:[{inode}]" == criu.stream(os.getpid(), writing, set())
    finally:
        for fd in (master, terminal, reading, writing):
            os.close(fd)
    with open(tmp_path / "file", "w") as file:
        number = file.fileno()
        found = criu.stream(os.getpid(), number, set())
        mount, _, inode = found.removeprefix("file[").removesuffix("]").partition(":")
        assert os.fstat(number).st_ino == int(inode, 16)
        assert str(tmp_path / "file") == criu.stream(os.getpid(), number, {int(mount, 16)})
    assert "" == criu.stream(os.getpid(), 999, set())


def test_id_maps_are_written_as_criu_writes_them():
    """The output of CRIU 4.2.1 for a container with ids from 0x42000000 on."""
    written = bytes.fromhex("19435654064947551c0000000a0c0800108080809004188080 04120c0800108080809004188080 04")
    assert written == id_maps(((IdMapping(0, 0x4200_0000, 65_536),), (IdMapping(0, 0x4200_0000, 65_536),)))


# --- The record


SPECS = [
    {},
    {"limits": Limits(memory="64M", pids=7, devices=[DeviceRule.parse("c 1:3 rwm")])},
    {"capabilities": Capabilities.of("CAP_NET_RAW"), "seccomp": Seccomp.default().allow("keyctl")},
    {"mounts": [Mount.bind("/srv", "/x", readonly=True), Mount.tmpfs("/tmp", size="1M")], "sysctls": {"net.x": 1}},
    {"uid_mappings": [IdMapping(0, 5, 6)], "gid_mappings": [IdMapping(0, 5, 6)], "oom_score_adj": 5},
    {"namespaces": Namespaces(network="host"), "hostname": "other", "masked_paths": []},
]


@pytest.mark.parametrize("fields", SPECS)
def test_record_is_read_as_it_was_written(tmp_path, fields):
    spec = build({"rootfs": DIR, **fields})
    written = record.Record(
        spec=spec, owner="pipe:[1]", image="file[0:1]", mounts=(("/dev", "dev"),), arguments=("--file-locks",)
    )
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        record.write(directory, written)
        read = record.read(str(tmp_path), directory)
    finally:
        os.close(directory)
    assert written == read
    assert attrs.asdict(written, recurse=False).keys() == attrs.asdict(read, recurse=False).keys()
    assert 0o600 == (tmp_path / record.NAME).stat().st_mode & 0o777


def test_record_that_others_can_write_to_is_refused(tmp_path):
    (tmp_path / record.NAME).write_text("{}")
    (tmp_path / record.NAME).chmod(0o620)
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(SetupError, match="only root may write to it"):
            record.read(str(tmp_path), directory)
    finally:
        os.close(directory)


def test_signals_are_those_of_the_init():
    header = Path(guard.__file__).parents[1] / "_native/native.h"
    for name, number in (("CK_LET_GO", guard.LET_GO), ("CK_SHUT", guard.SHUT)):
        assert re.search(rf"#define {name} {number}\b", header.read_text())
