"""Attempts to exhaust a resource: a limit stops each of them, and without the limit they succeed."""

import os
import resource
import time

import pytest
from attacker import armed, attempt, attempt_in, outcome

from containerkit import Container, ContainerTimeout, Limits, Mount, RootFS, UnsupportedError, run
from containerkit._linux.tmpfs import inodes_for
from containerkit.errors import SetupError
from containerkit.spec.words import size_text

pytestmark = pytest.mark.usefixtures("controllers", "nothing_left")


@pytest.fixture(scope="module")
def controllers():
    """Open the descriptors that a process opens once, when it creates its first control group."""
    try:
        run(["true"], limits=Limits(pids=20, memory="32M"))
    except (UnsupportedError, SetupError):
        return


def limited(**limits):
    """Return a container with limits, or skip where there is no controller for them."""
    try:
        container = Container(mounts=armed(), limits=Limits(**limits))
        container.start()
    except (UnsupportedError, SetupError) as error:
        pytest.skip(f"no control group here: {error}")
    return container


def test_fork_bomb():
    container = limited(pids=20)
    try:
        made, why = attempt_in(container, "forks", 200).split()
    finally:
        container.stop()
    assert "EAGAIN" == why
    assert int(made) < 20
    assert "200 all" == attempt("forks", 200)


def test_memory_bomb():
    container = limited(memory="32M")
    try:
        assert "killed by oom" == attempt_in(container, "eat", 200)
        assert "done" == attempt_in(container, "eat", 5), "the container itself goes on"
    finally:
        container.stop()
    assert "done" == attempt("eat", 200)


def test_swap_does_not_bypass_the_memory_limit():
    with open("/proc/swaps") as file:
        has_swap = len(file.readlines()) > 1
    container = limited(memory="32M")
    try:
        stats = container.stats()
        assert "killed by oom" == attempt_in(container, "eat", 64)
    finally:
        container.stop()
    assert stats is not None
    if not has_swap:
        pytest.skip("the machine has no swap: the kill alone was seen")


def test_memory_filesystem_bomb():
    fill = ["sh", "-c", "head -c 200M /dev/zero > /scratch/bomb; stat -c %s /scratch/bomb"]
    done = run(fill, text=True, mounts=[Mount.tmpfs("/scratch", size="8M")])
    assert int(done.stdout) <= 8 << 20
    assert "No space left" in done.stderr
    assert 200 << 20 == int(run(fill, text=True, mounts=[Mount.tmpfs("/scratch", size="256M")]).stdout)


FLOOD = """
import os, sys
made = 0
try:
    while made < int(sys.argv[2]):
        os.close(os.open(f"{sys.argv[1]}/{made}", os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(made, os.strerror(error.errno))
else:
    print(made, "all")
"""
FLOODED = {
    "mount": ("/scratch", {"mounts": [Mount.tmpfs("/scratch", size="20M")]}, 5_120),
    "raw mount": ("/scratch", {"mounts": [Mount(type="tmpfs", target="/scratch", options=(("size", "20M"),))]}, 5_120),
    "small mount": ("/scratch", {"mounts": [Mount.tmpfs("/scratch", size="64k")]}, 1_024),
    "host root": ("/tmp", {"rootfs": RootFS.host(size="20M")}, 5_120),
    "overlay": ("/tmp", {"rootfs": RootFS.overlay("/", size="20M")}, 5_120),
    "shared memory": ("/dev/shm", {}, 16_384),
}


@pytest.mark.parametrize("place", FLOODED)
def test_inode_flood_where_bytes_are_limited(place):
    if place == "overlay" and os.geteuid() != 0:
        pytest.skip("a union of / as it is: root")
    directory, fields, most = FLOODED[place]
    made, why = run(["python3", "-c", FLOOD, directory, "20000"], text=True, **fields).stdout.split(maxsplit=1)
    assert why == "No space left on device\n"
    assert most - 100 < int(made) <= most


def test_inode_flood_of_a_root_in_memory():
    mounts = [Mount.bind(name, name, readonly=True) for name in ("/usr", "/lib", "/lib64") if os.path.exists(name)]
    flood = ["/usr/bin/python3", "-c", FLOOD, "/", "20000"]
    done = run(flood, text=True, rootfs=RootFS.tmpfs(size="20M"), mounts=mounts)
    assert "No space left on device" in done.stdout
    assert int(done.stdout.split()[0]) < 5_120


def test_inode_flood_succeeds_if_the_limit_is_raised():
    done = run(
        ["python3", "-c", FLOOD, "/scratch", "20000"],
        text=True,
        mounts=[Mount.tmpfs("/scratch", size="20M", inodes=50_000)],
    )
    assert done.stdout == "20000 all\n"


@pytest.mark.parametrize(("size", "inodes"), [("1k", 1024), (4096, 1024), ("8M", 2048), ("1g", 262_144), ("1T", 2**28)])
def test_inodes_of_a_size(size, inodes):
    assert inodes_for(size_text(size, "size")) == str(inodes)


def test_timeout_in_a_flood_of_inodes_is_prompt():
    began = time.monotonic()
    with pytest.raises(ContainerTimeout):
        run(
            ["python3", "-c", FLOOD.replace("else:", "else:\n    import time; time.sleep(100)"), "/tmp", "200000"],
            timeout=2,
        )
    assert time.monotonic() - began < 20  # to fill the directory took 73 s once


def test_output_bomb():
    done = run(["yes"], output_limit_bytes=1_000_000, timeout=30)
    assert "output" == done.cause
    assert len(done.stdout) <= 1_100_000
    assert 3_000_000 == len(run(["head", "-c", "3000000", "/dev/zero"], output_limit_bytes=None).stdout)


def test_descriptor_bomb():
    made, why = attempt("opens", 5_000, rlimits={"nofile": 100}).split()
    assert ("EMFILE", True) == (why, int(made) < 100)
    assert "90 all" == attempt("opens", 90, rlimits={"nofile": 100})


def test_default_limit_of_descriptors_is_what_programs_expect():
    assert "1024" == run(["sh", "-c", "ulimit -Sn"], text=True).stdout.strip() or os.sysconf("SC_OPEN_MAX") < 1024


def crash(container, **options):
    """Crash a command. Return the files that it left in its directory."""
    container.run(["sh", "-c", "rm -f /tmp/*"], check=True)
    assert -6 == container.run(["/attacks", "crash"], cwd="/tmp", **options).returncode
    return container.run(["ls", "/tmp"], text=True).stdout.split()


def test_no_core_is_dumped():
    with open("/proc/sys/kernel/core_pattern") as file:
        pattern = file.read().strip()
    with Container(mounts=armed()) as container:
        assert [] == crash(container)
        if pattern.startswith(("|", "/")):
            pytest.skip("this host takes cores elsewhere (kernel.core_pattern): nothing could be seen")
        if resource.getrlimit(resource.RLIMIT_CORE)[1] in (0, 1):
            pytest.skip("the tests' own limit allows no cores")
        assert [pattern] == [name[: len(pattern)] for name in crash(container, rlimits={"core": 10_000_000})]


def test_cores_go_to_no_program_of_the_host():
    """With a limit of 0 the kernel still starts a handler as root of the machine for each crash; with a limit of 1 not."""
    expected = min(1, resource.getrlimit(resource.RLIMIT_CORE)[1] % 2**64)
    with Container() as container:
        limits = container.run(["cat", "/proc/self/limits"], text=True).stdout.splitlines()
    (line,) = [line.split() for line in limits if line.startswith("Max core file size")]
    assert [str(expected)] * 2 == line[4:6]


def test_time_bomb():
    from containerkit import ContainerTimeout

    with Container(mounts=armed()) as container:
        with pytest.raises(ContainerTimeout):
            container.run(["sh", "-c", "trap '' TERM INT HUP; (setsid sleep 60 &); while :; do :; done"], timeout=0.3)
        assert "done" == outcome(container.run(["/attacks", "eat", "1"], text=True))


def test_oom_score_is_the_commands_alone():
    """Until its exec a command shares the caller's memory, and the kernel gives all sharing processes one score."""
    with open("/proc/self/oom_score_adj") as file:
        before = file.read()
    more = min(int(before) + 300, 1000)
    assert f"{more}\n" == run(["cat", "/proc/self/oom_score_adj"], oom_score_adj=more, text=True).stdout
    with Container(oom_score_adj=more) as container:
        assert f"{more}\n" == container.run(["cat", "/proc/self/oom_score_adj"], text=True).stdout
        assert before == container.run(["cat", "/proc/1/oom_score_adj"], text=True).stdout
    with open("/proc/self/oom_score_adj") as file:
        assert before == file.read()


def test_oom_score_cannot_be_lowered():
    with open("/proc/self/oom_score_adj") as file:
        own = int(file.read())
    if own == -1000:
        pytest.skip("it is the lowest already")
    with pytest.raises(SetupError, match="can't be lower than the caller's own") as caught:
        run(["true"], oom_score_adj=own - 1)
    assert "write" == caught.value.operation
    script = f"echo {own - 1} > /proc/self/oom_score_adj"
    assert 0 != run(["sh", "-c", script]).returncode
