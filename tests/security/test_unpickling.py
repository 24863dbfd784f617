"""Everything that comes out of a container is data: no pickle from inside is ever loaded outside.

Bombs are in every channel to the outside. Python reports each name in a pickle to an audit hook.
"""

import ast
import functools
import os
import pickle
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacker import as_user

import containerkit
from containerkit import (
    Capabilities,
    Container,
    ContainerTimeout,
    ExitError,
    Fail,
    Seccomp,
    SpecError,
    StateError,
    run,
)
from containerkit.gc import gc as sweep

pytestmark = pytest.mark.usefixtures("nothing_left")

_listeners = []


def _hook(event, arguments):
    if event == "pickle.find_class":
        for listen in _listeners:
            listen(arguments)


@functools.cache
def _add_hook():
    """Add the hook when it is first needed: it can't be removed, and then runs at each event of this process."""
    sys.addaudithook(_hook)


@contextmanager
def names_asked_for():
    """Collect the names that pickles ask for, except those of the library's own messages."""
    _add_hook()
    found = []
    _listeners.append(lambda arguments: found.append(".".join(map(str, arguments))))
    try:
        yield found
    finally:
        _listeners.pop()


class Bomb:
    """An object that leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "exploded"


@pytest.fixture
def bomb(mark):
    """The bytes of a bomb, in a protocol that is valid in a file name: no NUL, and no slash except in the path."""
    return pickle.dumps(Bomb(mark), protocol=0)


def printed(bomb, more=""):
    return ["python3", "-c", f"import os\nfor fd in (1, 2): os.write(fd, {bomb!r})\n{more}"]


def test_bomb_explodes_where_it_is_loaded(bomb, mark):
    """The control for the bomb and the hook."""
    with names_asked_for() as names:
        pickle.loads(bomb)
    assert mark.is_dir()
    assert ["posix.mkdir"] == names


def test_output_is_not_unpickled(bomb, mark):
    with names_asked_for() as names, Container() as container:
        for runner in (run, container.run):
            done = runner(printed(bomb))
            assert (bomb, bomb) == (done.stdout, done.stderr)
            assert bomb == runner(["cat"], input=bomb).stdout
            with pytest.raises(ExitError) as failed:
                runner(printed(bomb, "os._exit(1)"), check=True)
            with pytest.raises(ContainerTimeout) as late:
                runner(printed(bomb, "import time; time.sleep(30)"), timeout=0.5)
            assert bomb == failed.value.stdout == late.value.stdout
        with container.popen(printed(bomb), pty=True) as process:
            assert bomb in process.stdout.read().replace(b"\r\n", b"\n")
    assert [] == names
    assert not mark.exists()


def test_errors_with_hostile_output_survive_pickling_as_data(bomb, mark):
    """Test runners pass errors between processes. The output of a command is only a string in them."""
    errors = []
    for argv, options in (
        (printed(bomb, "os._exit(1)"), {"check": True}),
        (printed(bomb, "os.read(0, 1)\nwhile 1: pass"), {"timeout": 0.5}),
    ):
        with pytest.raises((ExitError, ContainerTimeout)) as raised:
            run(argv, **options)
        errors.append(raised.value)
    with names_asked_for() as names:
        copies = [pickle.loads(pickle.dumps(error)) for error in errors]
    assert [bomb, bomb] == [copy.stdout for copy in copies]
    # Dask lets all exceptions of a process be pickled by tblib, once a test has imported it.
    assert {name.split(".")[0] for name in names} <= {"containerkit", "copyreg", "builtins", "tblib"}
    assert not mark.exists()


def files_of_a_hostile_container(bomb, target):
    """Put bombs into files, names, symlinks and attributes. Take out everything possible, and return it."""
    plant = f"""
import os
bomb = {bomb!r}
os.makedirs('/srv/trap', exist_ok=True)
open('/srv/trap/file', 'wb').write(bomb)
for name in ('state.pickle', '__reduce__', '.pth', 'x.pyc', bomb.replace(b'/', b'_')[:200]):
    open(os.path.join(os.fsencode('/srv/trap'), os.fsencode(name)), 'wb').write(bomb)
os.symlink(bomb, b'/srv/trap/link')
try: os.setxattr('/srv/trap/file', 'user.bomb', bomb)
except OSError: pass
"""
    with Container() as container:
        container.run(["python3", "-c", plant], check=True)
        taken = container.files.read("/srv/trap/file")
        names = container.files.listdir("/srv/trap")
        container.files.get("/srv/trap", target)
        changes = [change.path for change in container.changes()]
    return [
        taken.decode(),
        len(names),
        "/srv/trap/file" in changes,
        sorted(os.listdir(target)) == sorted(set(names) - {"link"}),
    ]


def test_files_and_changes_are_not_unpickled(bomb, mark, tmp_path):
    with names_asked_for() as names:
        came = files_of_a_hostile_container(bomb, str(tmp_path / "taken"))
    assert [bomb.decode(), 7, True, True] == came
    assert [] == names
    assert not mark.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users takes root")
@pytest.mark.parametrize("ranges", [False, True])
def test_files_and_changes_of_an_unprivileged_user_are_not_unpickled(bomb, mark, tmp_path, ranges):
    """Files with many ids are read by a process of the library, which replies with its own pickles. Names and contents are
    strings in them."""
    for above in (tmp_path, *list(tmp_path.parents)[:2]):
        above.chmod(0o755)
    tmp_path.chmod(0o777)

    def work():
        with names_asked_for() as names:
            came = files_of_a_hostile_container(bomb, str(tmp_path / "taken"))
        return [came, [name for name in names if not name.startswith("containerkit.")]]

    came, names = as_user(work, ranges=ranges)
    assert [bomb.decode(), 7, True, True] == came
    assert not [name for name in names if name.split(".")[0] in ("posix", "os", "nt", "subprocess", "builtins")]
    assert not mark.exists()


def test_nothing_but_init_writes_to_the_pipe_by_which_it_reports(bomb, mark):
    """Even a command that controls the report of its end could not cause unpickling."""
    writer = f"""
import os
for pid in ('1', 'self', str(os.getppid())):
    try: numbers = os.listdir(f'/proc/{{pid}}/fd')
    except OSError: continue
    for number in numbers:
        if int(number) > 2:
            try: os.write(os.open(f'/proc/{{pid}}/fd/{{number}}', os.O_WRONLY | os.O_NONBLOCK), {bomb!r})
            except OSError: pass
for number in range(3, 1024):
    try: os.write(number, {bomb!r})
    except OSError: pass
os._exit(7)
"""
    with names_asked_for() as names:
        # An unprivileged user's pipe belongs to the container's root: with CAP_SYS_PTRACE it can be opened through PID 1.
        mighty = {"capabilities": Capabilities.all(), "seccomp": None}
        for options in ({}, mighty) if os.geteuid() == 0 else ({},):
            done = run(["python3", "-c", writer], **options)
            assert (7, "exit") == (done.returncode, done.cause)
    assert [] == names
    assert not mark.exists()


def test_calls_reported_to_a_supervisor_are_not_unpickled(bomb, mark):
    seen = []

    def decide(request):
        seen.append(request.name)
        return Fail(1)

    program = f"import os\ntry: os.mkdir({bomb.replace(b'/', b'_')!r})\nexcept OSError: print('refused')"
    with names_asked_for() as names, Container(seccomp=Seccomp.default().notify("mkdir")) as container:
        done = container.run(["python3", "-c", program], syscall_handler=decide, text=True)
    assert "refused\n" == done.stdout
    assert "mkdir" in seen
    assert [] == names
    assert not mark.exists()


def test_records_of_another_are_not_unpickled(bomb, mark, tmp_path):
    """A record is JSON. Anything else is refused."""
    for name, content in (
        ("one", bomb),
        ("two", b'{"bomb": "' + bomb.hex().encode() + b'"}'),
        ("three", b"\x80\x04" + bomb),
    ):
        (tmp_path / "records" / name).mkdir(parents=True)
        for file in ("state.json", "config.json", "gate"):
            (tmp_path / "records" / name / file).write_bytes(content)
    with names_asked_for() as names:
        for name in ("one", "two", "three"):
            with pytest.raises((StateError, SpecError, OSError)):
                Container.attach(name, str(tmp_path / "records"))
    assert [] == names
    assert not mark.exists()


def test_files_in_the_runtimes_directory_are_not_unpickled(bomb, mark):
    if os.geteuid() != 0:
        pytest.skip("planting something below /run takes root")
    run(["true"])
    planted = Path(f"/run/containerkit/ids/bomb-{os.getpid()}")
    planted.write_bytes(bomb)
    try:
        with names_asked_for() as names:
            sweep()
            run(["true"])
    finally:
        planted.unlink(missing_ok=True)
    assert [] == names
    assert not mark.exists()


# --- Code that unpickles


UNPICKLERS = {"pickle", "_pickle", "marshal", "shelve", "multiprocessing", "dill", "cloudpickle", "xmlrpc"}
JUDGED = {
    "detached/begin.py": "hears by a pipe from a process that it has started itself and that runs its own code",
    "detached/description.py": "reads the user's own record, in a directory of mode 0700 that nobody else can write",
    "detached/known.py": "the same record",
    "executor/_inside_task.py": "runs inside: it reads the call, which the caller made",
    "executor/_inside_zygote.py": "runs inside, or as the caller's zygote: its program comes from the caller",
    "executor/executor.py": 'reads results where results="pickle" was asked for, and else none',
    "fleet/channel.py": "makes pickles of tasks, and reads none",
    "fleet/link.py": "runs on a node: it reads the task of the driver, whose key it has seen proven",
    "fleet/wire.py": "reads messages between a driver and its workers, after each has proven the key of the fleet",
    "interpreter/agent.py": "runs inside: executing code is what it is for",
    "executor/_calling.py": "makes pickles, for tasks inside, and reads none: results come back as data",
    "oci/bytecode.py": "reads the end of the program that is running, before anything is started",
    "start/userns_helper.py": "talks by a socket pair with a process that it has started itself and that runs its own code",
    "values.py": "builds constructors of the names of fields, when classes are made",
}


def test_only_the_helper_process_unpickles():
    root = Path(containerkit.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        text = path.read_text()
        if not any(word in text for word in (*UNPICKLERS, "eval(", "exec(")):  # as they are formatted
            continue
        for node in ast.walk(ast.parse(text)):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                modules = [node.func.id]
            if any(module.split(".")[0] in UNPICKLERS or module in ("eval", "exec") for module in modules):
                found.add(str(path.relative_to(root)))
    assert set(JUDGED) == found


def test_audit_hook_covers_other_threads(bomb):
    with names_asked_for() as names:
        thread = threading.Thread(target=pickle.loads, args=(bomb,))
        thread.start()
        thread.join()
    assert ["posix.mkdir"] == names
