"""Starts in which each operation fails in turn. Nothing may be left behind."""

import errno
import os
import re
import subprocess
import sys

import pytest

from containerkit import Container, Mount, Namespaces, RootFS, SetupError, run
from containerkit._native import constants as k
from containerkit._native.outcome import Outcome
from containerkit.plan import calls as plans
from containerkit.plan.operation import Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.start.staging import opened

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")

NO_SUCH_CALL = 100_000
NO_SUCH_DESCRIPTOR = 1_000_000  # no descriptor has this number
SPARED = {"leave", "await_release"}  # steps that can't fail; without them a start would hang


def broken(operation):
    """The same operation on an old kernel without the system call."""
    return operation._replace(step=k.STEP_CALL, call=NO_SUCH_CALL, args=(), tolerate=(), jump="")


def is_of_a_start(plan):
    """Return whether a plan is that of a start, not a short one of files or that of the staging, which can be remade."""
    return len(plan) >= 20 and all(step.result != Slot("mount") for step in plan)


class Saboteur:
    """Stands in for :class:`Program`: compiles plans in which one operation fails, and remembers how long they are."""

    def __init__(self, monkeypatch):
        self.at = None
        self.plan = None
        monkeypatch.setattr(Program, "__init__", self.compile_into(Program.__init__))

    def compile_into(self, original):
        def init(program, plan):
            if self.at is None or not is_of_a_start(plan):
                self.plan = plan if self.plan is None or is_of_a_start(plan) else self.plan
                original(program, plan)
                return
            steps = list(plan.operations)
            steps[self.at] = broken(steps[self.at])
            original(program, Plan(tuple(steps)))

        return init


def indices(plan):
    return [number for number, step in enumerate(plan) if step.name not in SPARED and not step.tolerate]


def perhaps_left_out(plan):
    """The operations that another one may skip, or that come after the look-up of the program."""
    found = set()
    for at, step in enumerate(plan):
        found.update(range(at + 1, at + 1 + max(step.skip, step.leap)))
        if step.name == "execve":
            found.add(at + 1)
    return found


def sabotage(saboteur, start):
    """Let each operation of the plan fail in turn. Return the reported and the expected errors by the operation's number."""
    from containerkit.start import context

    plan = saboteur.plan
    told, unnoticed = {}, set()
    for at in indices(plan):
        saboteur.at = at
        context.programs.kept.clear()
        try:
            start()
        except SetupError as error:
            told[at] = error.operation, error.target, error.errno
        else:
            unnoticed.add(at)
    assert set() == unnoticed - perhaps_left_out(plan)
    assert len(unnoticed) < len(told) / 3
    return told, {at: (plan.operations[at].name, plan.operations[at].target, errno.ENOSYS) for at in told}


SHAPES = {
    "one shot": lambda: run(["true"]),
    "no init": lambda: run(["true"], init=False),
    "rich": lambda: run(
        ["true"],
        mounts=[Mount.bind("/etc", "/mnt/etc", readonly=True), Mount.tmpfs("/tmp", size="1M"), Mount.proc("/mnt/proc")],
        hostname="a",
        domainname="b",
        sysctls={"net.ipv4.ip_forward": 1},
        rlimits={"nofile": 100},
        nice=5,
        cwd="/tmp",
    ),
    "overlay": lambda: run(["/bin/true"], rootfs=RootFS.overlay("/etc", "/usr")),
    "read-only": lambda: run(["true"], rootfs=RootFS.host(readonly=True)),
}


def start_and_stop():
    with Container():
        pass


SHAPES["container"] = start_and_stop


@pytest.mark.parametrize("shape", SHAPES)
def test_each_operation_of_a_start_that_fails_names_itself_and_leaves_nothing(shape, monkeypatch, request):
    from containerkit.start import context

    start = SHAPES[shape]
    saboteur = Saboteur(monkeypatch)
    context.programs.kept.clear()
    try:
        start()
        assert len(saboteur.plan) > 40
        told, wanted = sabotage(saboteur, start)
        assert wanted == told
    finally:
        monkeypatch.undo()
        context.programs.kept.clear()
    start()


def test_each_operation_of_an_exec_that_fails_names_itself_and_leaves_the_container_alive(monkeypatch):
    from containerkit.start import context

    with Container() as box:
        saboteur = Saboteur(monkeypatch)
        context.programs.kept.clear()
        try:
            box.run(["true"])
            told, wanted = sabotage(saboteur, lambda: box.run(["true"]))
            assert wanted == told
        finally:
            monkeypatch.undo()
            context.programs.kept.clear()
        assert 0 == box.run(["true"]).returncode


def test_error_names_operation_target_cause_and_remedy():
    with pytest.raises(SetupError) as caught:
        run(["true"], cwd="/nowhere")
    assert re.fullmatch(
        r"openat2 /nowhere: No such file or directory \(hint: .*directory inside.*\)", str(caught.value)
    )


def test_first_steps_that_fail_in_the_first_process():
    """Failures before the second process exists, and while it waits for the first: neither hangs or is left."""
    pid = plans.Slot("pid")
    before = Plan((plans.call("fchdir", NO_SUCH_DESCRIPTOR, target="x"), plans.leave()))
    between = Plan(
        (
            plans.clone(k.CLONE_PARENT, "inside", pid=pid),
            plans.call("fchdir", NO_SUCH_DESCRIPTOR, target="x"),
            plans.release(),
            plans.leave(),
            plans.await_release("inside"),
            plans.leave(),
        )
    )
    after = Plan(
        (
            plans.clone(k.CLONE_PARENT, "inside", pid=pid),
            plans.release(),
            plans.leave(),
            plans.await_release("inside"),
            plans.call("fchdir", NO_SUCH_DESCRIPTOR, target="x"),
        )
    )
    for plan in (before, between, after):
        for flags in (0, 4, 5):  # with a process, without one, and with the caller's descriptors
            with pytest.raises(SetupError) as caught:
                Program(plan).run({}, flags=flags)
            assert ("fchdir", errno.EBADF) == (caught.value.operation, caught.value.errno)


def test_failure_after_the_first_process_has_left_is_reported_under_shared_descriptors():
    """The processes share the caller's descriptors, the error pipe among them."""
    pid = plans.Slot("pid")
    steps = (
        plans.clone(k.CLONE_PARENT | k.CLONE_FILES, "inside", pid=pid),
        plans.release(),
        plans.leave(),
        plans.await_release("inside"),
        *[plans.call("umask", 0o22) for _ in range(200)],
        plans.call("fchdir", NO_SUCH_DESCRIPTOR, target="x"),
        plans.leave(),
    )
    program = Program(Plan(steps))
    for _ in range(20):
        with pytest.raises(SetupError):
            program.run({}, flags=5)


def test_descriptors_of_a_failed_plan_are_closed():
    at, other = plans.Slot("at"), plans.Slot("other")
    steps = (
        plans.open_at(k.AT_FDCWD, b"/", k.O_RDONLY, at),
        plans.open_at(k.AT_FDCWD, b"/etc", k.O_RDONLY, other),
        plans.close(at),
        plans.open_at(k.AT_FDCWD, b"/no/such", k.O_RDONLY, at),
    )
    with pytest.raises(SetupError, match="/no/such"):
        Program(Plan(steps)).run({}, flags=5)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


@needs_root
@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "cgroup", "time", "user", "mount", "pid"])
def test_each_namespace_may_stay_the_hosts(kind):
    own = os.readlink(f"/proc/self/ns/{ {'network': 'net', 'mount': 'mnt'}.get(kind, kind) }")
    name = {"network": "net", "mount": "mnt"}.get(kind, kind)
    done = run(["readlink", f"/proc/self/ns/{name}"], namespaces=Namespaces(**{kind: "host"}), text=True)
    assert own + "\n" == done.stdout


def test_few_processes_allowed():
    """RLIMIT_NPROC of the caller: the error names it, and no part of a container is left."""
    code = (
        "import resource, os, errno, containerkit as c\n"
        "os.setgid(54321); os.setuid(54321)\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        "try: c.run(['true'])\n"
        "except OSError as e: print(errno.errorcode[e.errno], '|', e)\n"
    )
    if os.geteuid():
        pytest.skip("needs CAP_SETUID")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "Permission" in done.stderr or "No module" in done.stderr:
        pytest.skip("this interpreter can't be read by other users")
    assert done.stdout.startswith("EAGAIN | ")
    assert "ulimit -u" in done.stdout


@pytest.mark.parametrize("index", [0, 1, 2, 1000, 2**20 - 1, 2**20, 2**31 - 2])
def test_number_of_a_failed_step_may_be_anything(index):
    program = Program(Plan((plans.call("umask", 0), plans.call("setsid"))))
    outcome = Outcome(0, -1, index, errno.EPERM, (0, 0, 0, 0), [])
    error = program.failure_of_either(outcome, program)
    assert error.errno == errno.EPERM
    assert error.operation in ("umask", "setsid")


def test_plan_whose_process_is_killed_reports_it():
    """Its slots are empty then. The one that was filled before is closed."""
    here = Slot("here")
    steps = [
        plans.open_at(k.AT_FDCWD, b"/", os.O_RDONLY | os.O_DIRECTORY, here),
        plans.call("exit", 9),
        plans.open_at(k.AT_FDCWD, b"/", os.O_RDONLY | os.O_DIRECTORY, Slot("there")),
    ]
    with pytest.raises(SetupError, match=r"make there: Operation canceled .*another process killed"):
        opened(steps, {}, ("here", "there"))
