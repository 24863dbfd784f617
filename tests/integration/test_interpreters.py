"""Both interpreters walk the same tape. For any plan they leave the same state, or fail at the same operation with the
same error number."""

import errno
import os
import stat
import struct
import subprocess
import sys

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerkit._native import HIDE_MEMORY, NO_PROCESS, SHARE_FILES, compiled, reference
from containerkit._native import calls as native_calls
from containerkit._native import constants as k
from containerkit.plan import calls as plans
from containerkit.plan import entries
from containerkit.plan.operation import ARGV, ENVP, Block, Operation, Slot
from containerkit.plan.program import proc
from containerkit.plan.tape import Plan

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = Slot("root")
AT = Slot("at")
NAMES = [b"a", b"b", b"a/b", b"a/c", b"b/x", b".", b"..", b"a/../b", b"/nowhere/x", b"x" * 300, b""]
SLOTS = [Slot("one"), Slot("two"), AT]


def call_of(name, *args, **more):
    return Operation(name, "", k.STEP_CALL, k.SYSTEM_CALLS[name], args, **more)


names = st.sampled_from(NAMES)
slots = st.sampled_from(SLOTS)
modes = st.sampled_from([0, 0o600, 0o644, 0o755, 0o777, 0o1777])
tolerated = st.sampled_from([(), (), (), (2,), (17,), (2, 17, 20, 9), (38,), (22, 36, 40, 13)])


@st.composite
def operations(draw):
    """One harmless operation below the directory in ROOT, or one that always fails."""
    more = {
        "tolerate": draw(tolerated),
        "skip": draw(st.sampled_from([0, 0, 1, 2])),
        "leap": draw(st.sampled_from([0, 0, 0, 1])),
    }
    name = draw(names)
    content = draw(st.binary(max_size=40))
    choice = draw(
        st.sampled_from(
            ["mkdirat", "mknodat", "symlinkat", "openat", "openat2", "write", "close", "fchmod", "ftruncate", "umask", "fchdir",
             "dup3", "chdir", "prctl", "prlimit64", "fchmodat", "store", "address", "no such call", "umount2", "setsid", "lseek"]
        )
    )  # fmt: skip
    flags = draw(
        st.sampled_from(
            [
                k.O_RDONLY,
                k.O_WRONLY,
                k.O_RDWR | k.O_CREAT,
                k.O_PATH,
                k.O_RDONLY | k.O_DIRECTORY,
                k.O_WRONLY | k.O_CREAT | k.O_EXCL,
            ]
        )
    )
    flags |= k.O_CLOEXEC | k.O_NONBLOCK
    slot, other = draw(slots), draw(slots)
    how = struct.pack(
        "=QQQ",
        flags,
        draw(modes) if flags & k.O_CREAT else 0,
        draw(st.sampled_from([0, k.RESOLVE_IN_ROOT, k.RESOLVE_BENEATH, k.RESOLVE_NO_SYMLINKS, 1 << 60])),
    )
    table = {
        "mkdirat": lambda: call_of("mkdirat", ROOT, name, draw(modes), **more),
        "mknodat": lambda: call_of("mknodat", ROOT, name, stat.S_IFREG | draw(modes), 0, **more),
        "symlinkat": lambda: call_of("symlinkat", draw(names), ROOT, name, **more),
        "openat": lambda: call_of("openat", ROOT, name, flags, draw(modes), result=slot, **more),
        "openat2": lambda: call_of("openat2", ROOT, name, Block(how), len(how), result=slot, **more),
        "write": lambda: call_of("write", slot, Block(content), len(content), **more),
        "close": lambda: plans.close(slot)._replace(**more),
        "fchmod": lambda: call_of("fchmod", slot, draw(modes), **more),
        "ftruncate": lambda: call_of("ftruncate", slot, draw(st.sampled_from([-1, 0, 5, 4096])), **more),
        "umask": lambda: call_of("umask", draw(st.integers(0, 0o777)), **more),
        "fchdir": lambda: call_of("fchdir", slot, **more),
        "dup3": lambda: call_of("dup3", slot, draw(st.sampled_from([700, 701, -1])), draw(st.sampled_from([0, k.O_CLOEXEC, 1])), result=other, **more),
        "chdir": lambda: call_of("chdir", name, **more),
        "prctl": lambda: call_of("prctl", draw(st.sampled_from([15, 9999])), b"name", 0, 0, 0, **more),
        "prlimit64": lambda: call_of("prlimit64", 0, draw(st.sampled_from([4, 99])), Block(struct.pack("=QQ", 0, draw(st.sampled_from([0, 5])))), 0, **more),
        "fchmodat": lambda: call_of("fchmodat", ROOT, draw(st.sampled_from([b"a", b"b", b"a/b"])), draw(modes), **more),
        "store": lambda: call_of("write", slot, Block(content.ljust(8, b"."), ((4, other),)), 8, **more),
        "address": lambda: call_of("openat2", ROOT, name, Block(how), draw(st.sampled_from([0, 7, len(how)])), result=slot, **more),
        "no such call": lambda: Operation("none", "", k.STEP_CALL, 100_000, (), **more),
        "umount2": lambda: call_of("umount2", b"/nowhere", draw(st.sampled_from([0, 2, 1 << 20])), **more),
        "setsid": lambda: call_of("setsid", **more),
        "lseek": lambda: call_of("lseek", slot, draw(st.sampled_from([-1, 0, 3])), draw(st.sampled_from([0, 1, 2, 9])), result=other, **more),
    }  # fmt: skip
    return table[choice]()


def tree(directory):
    """Everything that a plan can have left in its directory."""
    found = {}
    for at, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = os.path.join(at, name)
            status = os.lstat(path)
            said = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            if stat.S_ISREG(status.st_mode):
                os.chmod(path, 0o600)
                with open(path, "rb") as file:
                    said = file.read()
            found[os.path.relpath(path, directory)] = oct(status.st_mode), said
    return found


class Floor:
    """Runs a plan with an interpreter in an empty directory, and records the result."""

    def __init__(self, base):
        self.base = str(base)
        self.number = 0

    def run(self, module, plan, flags):
        self.number += 1
        directory = f"{self.base}/{self.number}"
        os.mkdir(directory)
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        tape = plan.encode()
        values = [root if name == "root" else -1 for name in tape.slots]
        before = set(os.listdir("/proc/self/fd"))
        try:
            outcome = module.Program(tape.steps, tape.data).run((), (), values, proc(), flags)
            opened = set(os.listdir("/proc/self/fd")) - before - {str(outcome.pidfd)}
            for fd in opened:
                try:
                    os.close(int(fd))
                except OSError:
                    continue
        finally:
            os.close(root)
        origin = tape.origin[outcome.failed_index] if outcome.failed_index >= 0 else -1
        held = [value >= 0 for value in outcome.slots] if outcome.failed_index < 0 else []
        ending = None
        if outcome.pidfd >= 0:
            ending = module.wait(outcome.pidfd, os.WEXITED)[1:3]
            os.close(outcome.pidfd)
        return origin, outcome.error, held, ending, tree(directory)


@pytest.fixture(scope="module")
def floor(tmp_path_factory):
    return Floor(tmp_path_factory.mktemp("floor"))


def outcomes(floor, steps, flags):
    plan = Plan(tuple(steps))
    return [floor.run(module, plan, flags) for module in (compiled, reference)]


@settings(
    max_examples=examples(ci=40, nightly=300),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(operations(), max_size=14))
def test_random_plans_in_one_process(floor, steps):
    one, two = outcomes(floor, [*steps, plans.leave()], NO_PROCESS | SHARE_FILES)
    assert one == two


@settings(
    max_examples=examples(ci=25, nightly=150),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(operations(), max_size=6),
    st.lists(operations(), max_size=6),
    st.lists(operations(), max_size=6),
    st.booleans(),
)
def test_random_plans_in_two_processes(floor, first, owner, inside, shares):
    """Stage 1, then as the owner of stage 2, then stage 2: the order of every start."""
    steps = [
        *[step._replace(skip=0, leap=0) for step in first],
        plans.clone(k.CLONE_PARENT | (k.CLONE_FILES if shares else 0), "inside", pid=Slot("pid")),
        *[step._replace(skip=0, leap=0) for step in owner],
        plans.release(),
        plans.leave(),
        plans.await_release("inside"),
        *inside,
        plans.leave(),
    ]
    one, two = outcomes(floor, steps, NO_PROCESS)
    assert one == two


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


@needs_root
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.sampled_from(
            [k.CLONE_NEWUTS, k.CLONE_NEWIPC, k.CLONE_NEWNET, k.CLONE_NEWNS, k.CLONE_NEWCGROUP, k.CLONE_NEWPID]
        ),
        unique=True,
    ),
    st.binary(max_size=70).filter(lambda name: b"\0" not in name),
    st.sampled_from([b"/", b"/proc", b"/nowhere"]),
)
def test_random_namespaces(floor, kinds, name, place):
    flags = 0
    for kind in kinds:
        flags |= kind
    steps = [
        plans.clone(k.CLONE_PARENT | flags, "inside", pid=Slot("pid")),
        plans.release(),
        plans.leave(),
        plans.await_release("inside"),
    ]
    if flags & k.CLONE_NEWUTS:
        steps.append(plans.call("sethostname", Block(name), len(name)))
    if flags & k.CLONE_NEWNS:
        steps += [
            plans.propagation(b"/", k.MS_REC | k.MS_PRIVATE),
            plans.mount(b"tmpfs", place if place == b"/nowhere" else b"/mnt", b"tmpfs"),
        ]
        steps += [
            plans.open_at(k.AT_FDCWD, b"/mnt", k.O_RDONLY, AT),
            plans.make_directory(AT, b"sub"),
            plans.unmount(b"/mnt"),
        ]
    one, two = outcomes(floor, [*steps, plans.leave()], NO_PROCESS)
    assert one == two


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.lists(
        st.sampled_from([b"/bin/true", b"/bin/false", b"/nowhere", b"/etc/passwd", b"/etc"]), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_random_searches_for_a_program(floor, paths, clones):
    head = [
        plans.clone(k.CLONE_PARENT, "inside", pid=Slot("pid")),
        plans.release(),
        plans.leave(),
        plans.await_release("inside"),
    ]
    *others, last = paths
    steps = [
        *(head if clones else ()),
        plans.reset_signals(),
        *[plans.call("execve", path, ARGV, ENVP, tolerate=(2, 13, 20)) for path in others],
        plans.call("execve", last, ARGV, ENVP),
    ]
    one, two = outcomes(floor, steps, 0)
    assert one == two


@pytest.mark.parametrize("module", [compiled, reference])
@pytest.mark.parametrize(
    "steps",
    [
        struct.pack("=HHi8B4h6q", 99, 0xFFFF, 0, *[0] * 8, *[0] * 4, *[0] * 6),
        struct.pack("=HHi8B4h6q", 0, 5000, 0, *[0] * 8, *[0] * 4, *[0] * 6),
        struct.pack("=HHi8B4h6q", 0, 0xFFFF, 0, 1, *[0] * 7, *[0] * 4, 5, *[0] * 5),
        struct.pack("=HHi8B4h6q", 0, 0xFFFF, 0, 1, *[0] * 7, *[0] * 4, -1, *[0] * 5),
        struct.pack("=HHi8B4h6q", 0, 0xFFFF, 0, 2, *[0] * 7, *[0] * 4, 1024, *[0] * 5),
        struct.pack("=HHi8B4h6q", 0, 0xFFFF, 0, 77, *[0] * 7, *[0] * 4, 0, *[0] * 5),
        struct.pack("=HHi8B4h6q", k.STEP_CLONE, 0xFFFF, 0, *[0] * 8, *[0] * 4, *[0] * 5, 7),
        struct.pack("=HHi8B4h6q", k.STEP_CLOSE, 0xFFFF, 0, *[0] * 8, *[0] * 4, *[0] * 6),
        struct.pack("=HHi8B4h6q", k.STEP_STORE_SLOT, 0xFFFF, 0, *[0] * 8, *[0] * 4, 3, *[0] * 5),
    ],
)
def test_malformed_tapes_are_refused_by_both(module, steps):
    with pytest.raises(ValueError, match="step 0 of the tape is malformed"):
        module.Program(steps, b"abc\0")


@pytest.mark.parametrize("module", [compiled, reference])
def test_data_without_its_end_is_refused_by_both(module):
    with pytest.raises(ValueError, match="malformed"):
        module.Program(struct.pack("=HHi8B4h6q", 4, 0xFFFF, 0, *[0] * 8, *[0] * 4, *[0] * 6), b"abc")


@pytest.mark.parametrize("module", [compiled, reference])
def test_slots_and_patches_carry_values(module, tmp_path):
    root = os.open(tmp_path, os.O_RDONLY)
    one = Slot("one")
    steps = (
        plans.call("openat", Slot("root"), b"f", k.O_RDWR | k.O_CREAT | k.O_CLOEXEC, 0o644, result=one),
        plans.call("umask", 0o123),
        plans.call("umask", 0o22, result=AT),
        plans.call("write", one, Block(b"....", ((0, AT),)), 4),
        plans.close(one),
        plans.leave(),
    )
    tape = Plan(steps).encode()
    values = [root if name == "root" else -1 for name in tape.slots]
    outcome = module.Program(tape.steps, tape.data).run((), (), values, proc(), NO_PROCESS)
    os.close(root)
    assert (-1, 0) == (outcome.failed_index, outcome.pid)
    assert 0o123 == struct.unpack("=i", (tmp_path / "f").read_bytes())[0]
    assert (0o123, -1) == (outcome.slots[tape.slots["at"]], outcome.slots[tape.slots["one"]])


# --- Many entries in one step


def populate(module, directory, made):
    """Make entries below a directory. Return the index of the failed step, its error, and the call and path it names."""
    root = os.open(directory, os.O_RDONLY)
    operation = entries.populate(Slot("root"), made, "entries")
    tape = Plan((plans.call("umask", 0), operation, plans.leave())).encode()
    values = [root if name == "root" else -1 for name in tape.slots]
    before = os.listdir("/proc/self/fd")
    outcome = module.Program(tape.steps, tape.data).run((), (), values, proc(), NO_PROCESS | SHARE_FILES)
    assert before == os.listdir("/proc/self/fd")
    os.close(root)
    told = entries.failed(operation, outcome.slots[tape.slots["entry"]])
    return outcome.failed_index, outcome.error, told.name, told.target


@pytest.mark.parametrize("module", [compiled, reference])
def test_entries_are_made_in_their_order(module, tmp_path):
    (tmp_path / "known").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("elsewhere")
    large = os.urandom(3 << 20)
    made = [
        entries.directory(b"known", 0o755),
        entries.symlink(b"link", b"content"),
        entries.directory(b"d", 0o1777),
        entries.symlink(b"d/l", b"../file"),
        entries.file(b"d/empty", 0o600, b""),
        entries.file(b"file", 0o755, b"a\0b"),
        entries.file(b"d/large", 0o644, large),
    ]
    assert (-1, 0) == populate(module, tmp_path, made)[:2]
    assert 0o700 == stat.S_IMODE((tmp_path / "known").stat().st_mode)
    assert "elsewhere" == os.readlink(tmp_path / "link")
    assert 0o1777 == stat.S_IMODE((tmp_path / "d").stat().st_mode)
    assert ("../file", b"a\0b") == (os.readlink(tmp_path / "d/l"), (tmp_path / "d/l").read_bytes())
    assert [0o600, 0o755] == [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("d/empty", "file")]
    assert (b"", large) == ((tmp_path / "d/empty").read_bytes(), (tmp_path / "d/large").read_bytes())


@pytest.mark.parametrize("module", [compiled, reference])
@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ([entries.directory(b"no/d", 0o755)], (errno.ENOENT, "mkdirat", "no/d")),
        ([entries.directory(b"d", 0o755), entries.symlink(b"no/l", b"x")], (errno.ENOENT, "symlinkat", "no/l")),
        ([entries.file(b"no/f", 0o644, b"x")], (errno.ENOENT, "openat", "no/f")),
        ([entries.file(b"f", 0o644, b"x"), entries.file(b"f", 0o644, b"y")], (errno.EEXIST, "openat", "f")),
        ([entries.symlink(b"l", b"target"), entries.file(b"l", 0o644, b"x")], (errno.EEXIST, "openat", "l")),
        ([entries.directory(b"x" * 300, 0o755)], (errno.ENAMETOOLONG, "mkdirat", "x" * 300)),
    ],
)
def test_entry_that_fails_is_named(module, made, expected, tmp_path):
    assert (1, *expected) == populate(module, tmp_path, made)
    assert not (tmp_path / "target").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.parametrize("module", [compiled, reference])
def test_entry_without_room_is_named(module, tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        made = [entries.file(b"small", 0o644, b"x"), entries.file(b"large", 0o644, bytes(1 << 20))]
        assert (1, errno.ENOSPC, "write", "large") == populate(module, tmp_path, made)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def malformed():
    whole = entries.symlink(b"name", b"content")
    header = struct.Struct("=4I")
    yield whole[:-8]  # it ends too early
    yield whole[:8]
    yield whole + bytes(8)  # half a header
    yield header.pack(3, 0, 2, 0) + b"a\0" + bytes(6)  # no such kind
    yield header.pack(0, 0, 2, 0) + b"ab" + bytes(6)  # the path does not end in a NUL
    yield header.pack(0, 0, 0, 0)  # no path
    yield header.pack(0, 0, 2**32 - 1, 2**32 - 1) + b"a\0" + bytes(6)
    yield header.pack(1, 0, 2, 0) + b"a\0" + bytes(6)  # a symlink to nothing
    yield header.pack(1, 0, 2, 2) + b"a\0bc" + bytes(4)  # its content does not end in a NUL


@pytest.mark.parametrize("module", [compiled, reference])
@pytest.mark.parametrize("data", list(malformed()))
def test_malformed_entries_are_refused_by_both(module, data):
    def step(size, kinds=(k.ARG_INTEGER, k.ARG_DATA, k.ARG_INTEGER, k.ARG_SLOT), at=0):
        numbers = 0xFFFF, 0, *kinds, *[0] * (6 - len(kinds)), 0, 0, *[0] * 4, -1, at, size, *[0] * 3
        return struct.pack("=HHi8B4h6q", k.STEP_POPULATE, *numbers)

    whole = entries.directory(b"d", 0o755)
    module.Program(step(len(whole)), whole + b"\0")
    with pytest.raises(ValueError, match="step 0 of the tape is malformed"):
        module.Program(step(len(data)), data + b"\0")
    for wrong in (
        step(len(whole) + 8),
        step(-1),
        step(len(whole), at=4),
        step(len(whole), (0, 0, 0, 2)),
        step(len(whole), (0, 1, 2, 2)),
        step(len(whole), (0, 1, 0, 0)),
    ):
        with pytest.raises(ValueError, match="step 0 of the tape is malformed"):
            module.Program(wrong, whole + b"\0")


@pytest.mark.parametrize("module", [compiled, reference])
def test_memory_is_dumpable_again_after_a_start(module):
    steps = (plans.call("setresuid", 2**32 - 1, 2**32 - 1, 2**32 - 1), plans.leave())
    if os.geteuid() == 0:
        steps = (plans.call("setresuid", 54321, 54321, 54321), plans.leave())
    tape = Plan(steps).encode()
    for flags in (NO_PROCESS, NO_PROCESS | HIDE_MEMORY):
        module.Program(tape.steps, tape.data).run((), (), [-1] * len(tape.slots), proc(), flags)
        assert 1 == native_calls.prctl(k.PR_GET_DUMPABLE)


def test_reference_is_chosen_by_the_environment():
    code = "from containerkit import _native, run; print(_native.interpreter().NAME, run(['echo', 'hi'], text=True).stdout)"
    env = {**os.environ, "CONTAINERKIT_INTERPRETER": "reference"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "reference hi\n\n" == done.stdout


def test_reference_beside_busy_threads():
    """A fork while other threads wait for the interpreter's lock."""
    number = examples(ci=4, nightly=20)
    code = (
        "import threading\n"
        "from containerkit import Container, run\n"
        "stop = threading.Event()\n"
        "def busy():\n"
        "    while not stop.is_set(): sum(range(100))\n"
        "threads = [threading.Thread(target=busy) for _ in range(2)]\n"
        "[t.start() for t in threads]\n"
        f"ends = [run(['true']).returncode for _ in range({number})]\n"
        "with Container() as box:\n"
        f"    for _ in range({number}): box.files.write('/x', 'y'); ends.append(box.run(['true']).returncode)\n"
        "stop.set(); print(set(ends))\n"
    )
    env = {**os.environ, "CONTAINERKIT_INTERPRETER": "reference"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=90)
    assert "{0}\n" == done.stdout


def test_reference_takes_over_with_a_warning_where_nothing_was_compiled():
    code = (
        "import sys, warnings\n"
        "sys.modules['containerkit._native._lib'] = None\n"
        "from containerkit import run\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(3): print(run(['echo', 'hi'], text=True).stdout, end='')\n"
        "print([str(w.message).split(' (')[0] for w in seen if w.category is RuntimeWarning])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hi\nhi\nhi\n['containerkit runs without its compiled module']\n" == done.stdout


@pytest.mark.slow
@pytest.mark.several_ids
def test_both_interpreters_pass_the_tests_of_processes_and_containers(request):
    """The same tests with the other interpreter. The slow ones run only with ``--interpreter reference``."""
    if request.config.getoption("--interpreter") != "compiled":
        pytest.skip("this run is with the other interpreter already")
    here = os.path.dirname(__file__)
    files = [f"{here}/test_{name}.py" for name in ("process", "container", "mounts", "rootfs", "files")]
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--interpreter",
        "reference",
        "-m",
        "not slow",
    ]
    chosen = "run_captures or check_raises or pty_is_a or user_by_ids or stop_ends or bind or overlay or changes or write or timeout_kills"
    done = subprocess.run(
        [*words, "-k", chosen, *filter(os.path.exists, files)], capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout[-4000:]
