"""If a group exceeds its memory limit, the kernel kills all processes that share memory with its victim, but the caller
must not be among them."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap

import pytest
from examples import examples

from containerkit import Container, Limits, SetupError, run
from containerkit.cgroup import CGroup

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")

# Processes that share memory show the same command line, because it is in that memory.
WATCH = """
    import json, os, sys
    base, caller = sys.argv[1], sys.argv[2]
    def read(path):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            return b""
    mine = read(f"/proc/{caller}/cmdline")
    os.set_blocking(0, False)
    looks, shared = 0, set()
    print("watching", flush=True)
    while os.path.exists(f"/proc/{caller}"):
        try:
            if os.read(0, 1) == b"":
                break
        except BlockingIOError:
            pass
        for name in os.listdir(base):
            if not name.startswith(f"containerkit.{caller}."):
                continue
            for place, _, _ in os.walk(f"{base}/{name}"):
                looks += 1
                for pid in read(f"{place}/cgroup.procs").split():
                    limit = read(f"{base}/{name}/memory.max") or read(f"{base}/{name}/memory.limit_in_bytes")
                    limited = limit.strip().isdigit() and int(limit) < 1 << 62
                    if limited and read(f"/proc/{pid.decode()}/cmdline") == mine:
                        shared.add(pid.decode())
    print(json.dumps({"looks": looks, "shared": sorted(shared)}))
"""


@pytest.fixture(scope="module")
def base():
    """The directory in which this process creates its memory groups."""
    try:
        with CGroup.create(limits=Limits(memory="64M")) as group:
            return os.path.dirname(group.part("memory").path)
    except SetupError as error:
        pytest.skip(f"no hierarchy serves memory: {error}")


@contextlib.contextmanager
def watched(base):
    """Check the groups of this process as often as possible. The dictionary then has the observations."""
    command = [sys.executable, "-SEc", textwrap.dedent(WATCH), base, str(os.getpid())]
    seen = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher:
        assert "watching\n" == watcher.stdout.readline()
        try:
            yield seen
        finally:
            watcher.stdin.close()
            seen.update(json.loads(watcher.stdout.read()))


def test_watcher_sees_processes_with_the_callers_command_line(base):
    with watched(base) as seen, CGroup.create(limits=Limits(memory="64M")) as group:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        group.add(child)
        for _ in range(20):
            run(["true"])
        os.close(writer)
        os.waitpid(child, 0)
    assert [str(child)] == seen["shared"]


@pytest.mark.parametrize("limits", [Limits(memory="64M"), Limits(memory="64M", cpus=1, pids=32)])
@pytest.mark.parametrize("way", ["run", "start", "command"])
def test_no_process_that_shares_memory_is_in_a_group_with_a_memory_limit(way, limits, base):
    number = examples(ci=30, nightly=60)
    live = Container(limits=limits) if way == "command" else contextlib.nullcontext()
    with live, watched(base) as seen:
        for _ in range(number):
            if way == "command":
                assert 0 == live.run(["true"]).returncode
            elif way == "run":
                assert 0 == run(["true"], limits=limits).returncode
            else:
                with Container(limits=limits):
                    pass
    assert seen["looks"] > number
    assert [] == seen["shared"]


@pytest.mark.parametrize("binds", [0, 100])
def test_start_that_uses_up_its_memory_ends_alone(binds, base, tmp_path):
    memories = [4096, "64K", "128K", "256K", "512K", "1M", "1100K", "1200K", "4M"]
    program = f"""
        from containerkit import Limits, Mount, RootFS, run
        mounts = [Mount.bind({str(tmp_path)!r}, f"/mnt/{{number}}", idmap=False) for number in range({binds})]
        for memory in {memories}:
            for idmap in (True, False):
                print(memory, idmap, end=" ", flush=True)
                done = run(["true"], rootfs=RootFS.host(idmap=idmap), limits=Limits(memory=memory), mounts=mounts)
                assert (done.returncode, done.cause) in ((0, "exit"), (-9, "oom")), done
                print(done.cause, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (0, "") == (done.returncode, done.stderr), f"the last of these did not end alone: {done.stdout}"
    told = done.stdout.splitlines()
    assert 2 * len(memories) == len(told)
    assert ["4096 True oom", "4096 False oom"] == told[:2]
    assert ["4M True exit", "4M False exit"] == told[-2:]


def test_container_whose_start_uses_up_its_memory_is_an_error_that_names_the_limit(base):
    with pytest.raises(SetupError, match="Cannot allocate memory") as refused:
        Container(limits=Limits(memory="32K")).start()
    assert "memory=" in refused.value.hint
