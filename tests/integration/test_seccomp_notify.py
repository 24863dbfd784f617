"""System calls decided in Python, by a supervisor in this process for a program in another."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from errno import EACCES, ENOSYS, EPERM

import pytest
from security_child import LIBC, attempt, in_child

from containerkit.errors import SetupError, SpecError, StateError
from containerkit.plan.calls import call
from containerkit.plan.operation import ARGV, ENVP, Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.security.capabilities import no_new_privs
from containerkit.security.direct import perform
from containerkit.security.notify import (
    CONTINUE,
    Fail,
    Inject,
    Listener,
    Return,
    Supervisor,
    install_and_send,
    supervise,
)
from containerkit.security.record import Recorder, profile, record, recording_filter
from containerkit.security.seccomp import Condition, Seccomp
from containerkit.security.seccomp.architecture import architecture, calls_of

MACHINE = os.uname().machine
CALLS = calls_of(architecture(MACHINE).table)


class Confined:
    """A forked child that runs under a filter. ``listener`` supervises it, ``answer()`` is the repr of its result."""

    def __init__(self, filter_, work):
        answer_read, answer_write = os.pipe()
        go_read, go_write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            signal.alarm(30)
            try:
                perform([no_new_privs()])
                listener = perform(filter_.operations(listener=Slot("listener")))["listener"]
                os.read(go_read, 1)
                os.close(listener)
                answer = repr(work())
            except BaseException as error:  # noqa: BLE001 - told to the parent
                answer = repr(error)
            os.write(answer_write, answer.encode())
            os._exit(0)
        os.close(answer_write)
        os.close(go_read)
        self._answer = answer_read
        self.listener = self._take_listener()
        os.write(go_write, b"x")
        os.close(go_write)

    def _take_listener(self):
        """Copy the descriptor out of the child, which may be unable to make a call before it is supervised."""
        directory = f"/proc/{self._pid}/fd"
        pidfd = os.pidfd_open(self._pid)
        try:
            for _ in range(1000):
                for name in os.listdir(directory):
                    with contextlib.suppress(OSError):
                        if "seccomp notify" in os.readlink(f"{directory}/{name}"):
                            return attempt(CALLS["pidfd_getfd"], pidfd, int(name), 0)
                time.sleep(0.005)
        finally:
            os.close(pidfd)
        raise AssertionError("the child has no listener")

    def answer(self):
        with open(self._answer, "rb") as pipe:
            content = pipe.read().decode()
        os.waitpid(self._pid, 0)
        return content

    def kill(self):
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._answer)


def mkdir(path):
    return attempt(CALLS["mkdirat"], -100, path, 0o755)


NOTIFY_MKDIR = Seccomp.permissive().notify("mkdirat", "getppid")


def test_request_names_the_caller_and_the_call():
    seen = []

    def handler(request):
        seen.append(
            (
                request.name,
                request.args[2],
                request.architecture,
                request.number,
                request.read_text(request.args[1]),
                request.is_valid(),
            )
        )
        assert request.instruction_pointer > 0
        assert os.path.exists(f"/proc/{request.pid}")
        return Fail(EACCES)

    child = Confined(NOTIFY_MKDIR, lambda: mkdir(b"/nowhere/at all"))
    with Supervisor(child.listener, handler):
        assert child.answer() == str(-EACCES)
    assert seen == [("mkdirat", 0o755, MACHINE, CALLS["mkdirat"], "/nowhere/at all", True)]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [(Fail(), -EPERM), (Fail(77), -77), (Return(), 0), (Return(4242), 4242), (Return(-2), -2)],
)
def test_reply_is_what_the_call_returns(reply, expected):
    child = Confined(
        NOTIFY_MKDIR, lambda: LIBC.syscall(CALLS["getppid"]) if expected == -2 else attempt(CALLS["getppid"])
    )
    with Supervisor(child.listener, lambda _: reply):
        answer = child.answer()
    # A negative value is an error number to the C library.
    assert answer == ("-1" if expected == -2 else str(expected))


def test_continue_makes_the_call(tmp_path):
    child = Confined(NOTIFY_MKDIR, lambda: mkdir(bytes(tmp_path / "made")))
    with Supervisor(child.listener, lambda _: CONTINUE):
        assert child.answer() == "0"
    assert (tmp_path / "made").is_dir()


def test_inject_gives_a_descriptor_of_ours(tmp_path):
    (tmp_path / "secret").write_text("from outside")

    def work():
        descriptor = attempt(CALLS["getppid"])
        other = attempt(CALLS["getppid"])
        return [
            os.read(descriptor, 4),
            os.get_inheritable(descriptor),
            other,
            os.read(other, 100),
            os.get_inheritable(other),
        ]

    with open(tmp_path / "secret", "rb") as file:
        replies = iter(
            [Inject(descriptor=file.fileno()), Inject(descriptor=file.fileno(), number=50, close_on_exec=False)]
        )

        def handler(_):
            file.seek(0)
            return next(replies)

        child = Confined(NOTIFY_MKDIR, work)
        with Supervisor(child.listener, handler):
            # Both share one offset, as copies of a descriptor do.
            assert child.answer() == "[b'from', False, 50, b' outside', True]"


def test_add_descriptor_before_the_call_goes_on():
    added = []

    def work():
        attempt(CALLS["getppid"])
        return os.readlink("/proc/self/fd/900")

    def handler(request):
        with open("/dev/null") as file:
            added.append(request.add_descriptor(file.fileno(), number=900))
        return CONTINUE

    child = Confined(NOTIFY_MKDIR, work)
    with Supervisor(child.listener, handler):
        assert child.answer() == "'/dev/null'"
    assert added == [900]


def test_handler_that_fails_denies_and_reports_the_error():
    def handler(request):
        raise LookupError(request.name)

    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    with pytest.raises(LookupError, match="getppid"), Supervisor(child.listener, handler):
        assert child.answer() == str(-EPERM)


def test_handler_that_answers_nonsense_denies_and_reports_the_error():
    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    with pytest.raises(SpecError, match="a handler must return"), Supervisor(child.listener, lambda _: "yes"):
        assert child.answer() == str(-EPERM)


def test_supervisor_that_is_gone_fails_the_calls():
    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    Listener(child.listener).close()
    assert child.answer() == str(-ENOSYS)


def test_supervisor_closes_twice_and_reports_its_state():
    wait, go = os.pipe()
    child = Confined(NOTIFY_MKDIR, lambda: len(os.read(wait, 1)))
    supervisor = Supervisor(child.listener, lambda _: CONTINUE)
    assert repr(supervisor) == f"<Supervisor running, <seccomp listener, fd {child.listener}>>"
    supervisor.close()
    supervisor.close()
    assert repr(supervisor) == "<Supervisor ended, <seccomp listener, closed>>"
    os.write(go, b"x")
    os.close(go)
    os.close(wait)
    assert child.answer() == "1"


def test_supervisor_ends_with_the_last_process():
    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    with Supervisor(child.listener, lambda _: Return(5)) as supervisor:
        assert child.answer() == "5"
        assert supervisor.join(5)


def test_request_of_a_killed_process_is_not_valid():
    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    with Listener(child.listener) as listener:
        assert listener.pending(5000)
        request = listener.receive()
        assert request.is_valid()
        child.kill()
        assert not request.is_valid()
        assert not listener.reply(request, Return(1))
        with pytest.raises(StateError, match="no longer waits"):
            request.read(request.instruction_pointer, 1)
        with pytest.raises(StateError, match="no longer waits"):
            request.add_descriptor(0)
        assert listener.pending() is None


def test_request_memory_that_is_not_there_is_an_error():
    errors = []

    def handler(request):
        for address in (0, 16):
            try:
                request.read_text(address)
            except SetupError as error:
                errors.append(error.operation)
        with pytest.raises(SetupError, match="longer than 3 bytes"):
            request.read_text(request.args[1], limit=3)
        return Fail(EACCES)

    child = Confined(NOTIFY_MKDIR, lambda: mkdir(b"/a long name"))
    with Supervisor(child.listener, handler):
        assert child.answer() == str(-EACCES)
    assert errors == ["read", "read"]


@pytest.mark.parametrize("wrong", [lambda: Fail(0), lambda: Fail(4096), lambda: Return(2**63)])
def test_reply_that_the_kernel_has_no_room_for_is_refused(wrong):
    with pytest.raises(SpecError):
        wrong()


def test_async_handler_answers_side_by_side():
    def work():
        results = []
        threads = [threading.Thread(target=lambda n=n: results.append(attempt(CALLS["getppid"], n))) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(results)

    async def main(listener):
        waiting = asyncio.Event()
        count = 0

        async def handler(request):
            nonlocal count
            count += 1
            if count == 3:
                waiting.set()
            await asyncio.wait_for(waiting.wait(), 10)  # each waits for the two others
            return Return(100 + request.args[0])

        await supervise(listener, handler)

    child = Confined(NOTIFY_MKDIR, work)
    asyncio.run(main(child.listener))
    assert child.answer() == "[100, 101, 102]"


def test_async_handler_that_fails_denies_and_reports_the_error():
    async def handler(request):
        raise LookupError(request.name)

    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    with pytest.raises(LookupError, match="getppid"):
        asyncio.run(supervise(child.listener, handler))
    assert child.answer() == str(-EPERM)


def test_async_supervision_can_be_cancelled():
    async def main(listener):
        entered = asyncio.Event()

        async def handler(_):
            entered.set()
            await asyncio.sleep(100)

        task = asyncio.ensure_future(supervise(listener, handler))
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]))
    asyncio.run(main(child.listener))
    assert child.answer() == str(-EPERM)


def test_notify_of_some_arguments_only():
    kind = Condition(argument=0, value=40)
    filter_ = Seccomp.permissive().notify("getppid", when=[kind])
    child = Confined(filter_, lambda: [attempt(CALLS["getppid"], 41) > 0, attempt(CALLS["getppid"], 40)])
    with Supervisor(child.listener, lambda _: Return(7)):
        assert child.answer() == "[True, 7]"


def test_recording_names_the_calls_and_makes_a_profile_that_suffices(tmp_path):
    def work():
        with open(tmp_path / "file", "wb") as file:
            file.write(b"hello")
        os.rename(tmp_path / "file", tmp_path / "other")
        return os.getppid() > 0

    child = Confined(recording_filter(), work)
    calls = {}
    thread = threading.Thread(target=lambda: calls.update(record(child.listener, MACHINE)))
    thread.start()
    assert child.answer() == "True"
    thread.join(10)
    rename = "rename" if "rename" in CALLS else "renameat"
    assert {"openat", "write", "close", rename, "getppid"} <= set(calls)
    assert "ptrace" not in calls

    made = profile(calls)
    assert made.rules[0].names == tuple(
        sorted({*calls, "execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn"})
    )

    def again():
        perform((no_new_privs(), *made.operations()))
        return work()

    assert in_child(again)
    assert in_child(lambda: (perform((no_new_privs(), *made.operations())), attempt(CALLS["getsid"]))[1]) == -EPERM


def test_recorder_distinguishes_the_other_entries():
    recorder = Recorder("aarch64" if MACHINE == "x86_64" else "x86_64")
    child = Confined(NOTIFY_MKDIR, lambda: attempt(CALLS["getppid"]) > 0)
    with Supervisor(child.listener, recorder):
        assert child.answer() == "True"
    assert recorder.calls == {f"{MACHINE}:getppid": 1}


def start(profile, argv, socket_end):
    """Start a program under a filter whose listener is sent through a socket."""
    plan = Plan(
        (
            no_new_privs(),
            *install_and_send(profile, socket=Slot("supervisor"), listener=Slot("listener")),
            call("execve", argv[0], ARGV, ENVP, target="program"),
        )
    )
    try:
        return Program(plan).run({"supervisor": socket_end.fileno()}, argv=argv, envp=[b"LC_ALL=C"])
    finally:
        socket_end.close()


def ended(outcome):
    status = os.waitpid(outcome.pid, 0)[1]
    os.close(outcome.pidfd)
    return os.waitstatus_to_exitcode(status)


def test_handed_over_listener_lets_a_whole_program_be_recorded(interpreter, tmp_path):
    """Every call is notified, including those of the hand-over and the execve."""
    ours, theirs = socket.socketpair()
    recorder = Recorder(MACHINE)
    with ours, Supervisor(os.dup(ours.fileno()), recorder, through_socket=True) as supervisor:
        outcome = start(recording_filter(), [b"/bin/mkdir", bytes(tmp_path / "made")], theirs)
        assert ended(outcome) == 0
        assert supervisor.join(10)
    assert (tmp_path / "made").is_dir()
    assert {"execve", "exit_group"} <= set(recorder.calls)
    assert recorder.calls["execve"] == 1
    assert {"mkdir", "mkdirat"} & set(recorder.calls)
    assert "sendmsg" not in recorder.calls

    ours, theirs = socket.socketpair()
    made = profile(recorder.calls).notify("getppid")
    with ours, Supervisor(os.dup(ours.fileno()), lambda _: CONTINUE, through_socket=True):
        assert ended(start(made, [b"/bin/mkdir", bytes(tmp_path / "again")], theirs)) == 0
    assert (tmp_path / "again").is_dir()


def test_handed_over_listener_is_not_in_the_program(interpreter):
    ours, theirs = socket.socketpair()
    with ours, Supervisor(os.dup(ours.fileno()), lambda _: CONTINUE, through_socket=True):
        outcome = start(NOTIFY_MKDIR, [b"/bin/sh", b"-c", b"ls -l /proc/self/fd | grep -c seccomp"], theirs)
        assert ended(outcome) == 1  # grep found none


def test_handed_over_sendmsg_stays_forbidden_without_the_secret():
    filter_ = Seccomp.permissive().deny("sendmsg", errno=77).notify("getppid")
    operations = install_and_send(filter_, socket=Slot("supervisor"), listener=Slot("listener"), secret=4711)
    ours, theirs = socket.socketpair()

    def work():
        perform((no_new_privs(), *operations), {"supervisor": theirs.fileno()})
        return [attempt(CALLS["sendmsg"], -1, 0, 0), attempt(CALLS["sendmsg"], -1, 0, 0, 0, 0, 4711)]

    with ours, theirs:
        assert in_child(work) == [-77, -9]


def test_supervisor_that_is_never_given_a_listener_ends():
    ours, theirs = socket.socketpair()
    with ours, Supervisor(os.dup(ours.fileno()), lambda _: CONTINUE, through_socket=True) as supervisor:
        theirs.close()
        assert supervisor.join(5)
    ours, theirs = socket.socketpair()
    with ours, theirs, Supervisor(os.dup(ours.fileno()), lambda _: CONTINUE, through_socket=True) as supervisor:
        assert not supervisor.join(0.05)
