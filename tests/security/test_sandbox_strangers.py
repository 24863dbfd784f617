"""A process of the same user outside a sandbox, attacked from inside with each call that takes a pid, an id or a name.

The caller is an unprivileged user. The control of each attack is what such a user may do to its own processes.
"""

import contextlib
import os
import signal
import subprocess

import attrs
import pytest
from attacker import as_user, outcome, program

from containerkit import Landlock, Sandbox, Seccomp
from containerkit.security.landlock import abi

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(abi() < 6, reason="Landlock ABI 6 (Linux 6.12) is needed"),
]
SIGNAL = 1 << (signal.SIGUSR2 - 1)
SCHEDULING = (
    *("limit", "limit-wide", "affinity", "scheduler", "parameter", "attributes", "priority", "priority-wide"),
    *("priority-group", "priority-user", "io-priority", "io-priority-group", "io-priority-user"),
)
READING = ("read-limit", "read-affinity", "read-priority")
SIGNALS = (
    *("kill", "kill-group", "kill-all", "tkill", "tgkill", "queue", "queue-thread", "pidfd", "owner", "owner-ex"),
)
BY_PTRACE = (
    *("read-memory", "write-memory", "environ", "maps", "mem", "fd", "root", "trace", "descriptor", "compare"),
    *("move-pages", "migrate-pages", "robust-list", "core-cookie"),
)
NAMES = {
    "shared-memory": 0, "shared-memory-removed": 0, "semaphore": 1, "semaphore-set": 1, "message": 2,
    "message-removed": 2, "posix-queue": -1, "posix-queue-removed": -1,
}  # fmt: skip
"""With the position of the id in the stranger's output; -1 for its pid."""


def sandbox(**options):
    rules = Landlock().allow_execute("/usr", os.path.dirname(program("strangers")))
    return Sandbox(landlock=rules.allow_read("/proc", "/dev"), **options)


class Stranger:
    """The other process with the objects that it has created, in its own process group and session."""

    def __init__(self, process):
        self.process = process
        *self.ids, queue, self.address = map(int, process.stdout.readline().split())
        assert (True, True) == (min(self.ids) >= 0, bool(queue))

    @property
    def pid(self):
        return self.process.pid

    def has_signal(self):
        """Return whether SIGUSR2 has arrived: it stays pending."""
        with open(f"/proc/{self.pid}/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return any(int(lines[name], 16) & SIGNAL for name in ("SigPnd", "ShdPnd"))


@contextlib.contextmanager
def stranger():
    with subprocess.Popen(
        [program("strangers")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield Stranger(process)
        finally:
            process.stdin.close()


def tried(attack, make, argument=None):
    """Attack a new process from inside the sandbox of ``make``. Return the outcome, and whether a signal arrived."""
    with stranger() as other:
        position = NAMES.get(attack, -1)
        target = other.pid if position < 0 else other.ids[position]
        words = [program("strangers"), attack, str(target if argument is None else argument), str(other.address)]
        return [outcome(make(words)), other.has_signal()]


def free(words):
    """Run the attack without restrictions as the same user, so that it succeeds."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    done.cause = "exit"
    return done


def inside(**options):
    return lambda words: sandbox(**options).run(words, text=True, timeout=20)


def compare(attack, *makers):
    """Try it as an unprivileged user from inside each. The program is compiled in advance."""
    program("strangers")

    def work():
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        return [tried(attack, make) for make in makers]

    return as_user(work, ranges=False)


@pytest.mark.parametrize("attack", SCHEDULING)
def test_limits_and_schedules_of_others_stay(attack):
    held, relaxed, control = compare(attack, inside(), inside(other_processes=True), free)
    assert ["EPERM", "done", "done"] == [held[0], relaxed[0], control[0]]


@pytest.mark.parametrize("attack", READING)
def test_limits_and_schedules_of_others_can_be_read(attack):
    assert ["done", False] == compare(attack, inside())[0]


def test_processor_time_limit_would_kill_another_process():
    """The complete attack: a limit of no time at all kills a process that computes."""
    program("strangers")

    def ended(make):
        with subprocess.Popen(["/usr/bin/python3", "-c", "while True: pass"]) as busy:
            make([program("strangers"), "limit", str(busy.pid)])
            try:
                return busy.wait(1.5)
            except subprocess.TimeoutExpired:
                return None
            finally:
                busy.kill()

    held, relaxed = as_user(lambda: [ended(inside()), ended(inside(other_processes=True))], ranges=False)
    assert (None, -signal.SIGKILL) == (held, relaxed)


@pytest.mark.parametrize("attack", SIGNALS)
def test_signals_do_not_reach_others(attack):
    held, control = compare(attack, inside(), free)
    assert (False, ["done", True]) == (held[1], control)
    assert ["EPERM"] == [held[0]] or attack in ("owner", "owner-ex", "kill-all"), "these tell nothing"


@pytest.mark.parametrize("attack", SIGNALS)
def test_signals_arrive_without_landlock(attack):
    """Without that scope they arrive, with or without the filter."""

    def without_scope(words):
        rules = attrs.evolve(sandbox().landlock, scopes=["abstract_unix_socket"])
        return Sandbox(landlock=rules).run(words, text=True, timeout=20)

    assert ["done", True] == compare(attack, without_scope)[0]


@pytest.mark.parametrize("attack", BY_PTRACE)
def test_memory_and_descriptors_of_others_are_out_of_reach(attack):
    """Protected twice: by the filter, and by Landlock, whose sandboxes have no ptrace access to anything outside."""
    held, without_filter, control = compare(attack, inside(), inside(seccomp=None), free)
    if attack == "core-cookie" and control[0] in ("ENODEV", "EINVAL"):
        pytest.skip("this machine has no cores with several threads, or its kernel no CONFIG_SCHED_CORE")
    assert "done" == control[0], "the kernel allows it to the user itself"
    assert held[0] in ("EPERM", "EACCES", "ESRCH")
    assert without_filter[0] in ("EPERM", "EACCES", "ESRCH")


def test_score_of_others_cannot_be_written_without_a_rule_for_it():
    held, control = compare("oom_score_adj", inside(), free)
    assert ("EACCES", "done") == (held[0], control[0])


@pytest.mark.parametrize("attack", NAMES)
def test_shared_memory_and_queues_are_out_of_reach(attack):
    held, relaxed, control = compare(attack, inside(), inside(other_processes=True), free)
    # Landlock must allow opening a POSIX queue as well, and has no rule for that
    assert ("EPERM", "EACCES" if attack == "posix-queue" else "done", "done") == (held[0], relaxed[0], control[0])


def test_files_of_others_can_still_be_watched():
    """The report says what Landlock does not restrict. This test fails once it is restricted."""
    assert "done" == outcome(inside()([program("strangers"), "watch", "/var/tmp"]))
    assert any("inotify" in each for each in sandbox().report().uncovered)


def test_custom_filter_is_restricted_too():
    own = Seccomp.default().allow("prlimit64", "setpriority")
    held, relaxed = compare("limit", inside(seccomp=own), inside(seccomp=own, other_processes=True))
    assert ("EPERM", "done") == (held[0], relaxed[0])


def test_own_limits_and_priority_can_be_changed():
    """They can be read with 0, the calling process, as tools do it, and with its own pid."""
    script = "ulimit -n 77; ulimit -n; nice -n 3 nice; taskset 1 nproc; ionice -c 3 ionice; prlimit -p $$ -n -o SOFT --noheadings"
    done = sandbox().run(["sh", "-c", script], text=True, timeout=20)
    assert ["77", str(min(19, os.nice(0) + 3)), "1", "idle", "77"] == done.stdout.split(), done.stderr
    refused = sandbox().run(["sh", "-c", "sleep 9 & prlimit -p $! -n66; kill $!"], text=True, timeout=20)
    assert "not permitted" in refused.stderr, "not even of its own children: a filter can't tell"


def test_sandboxed_processes_signal_each_other():
    done = sandbox().run(["sh", "-c", "sleep 9 & kill $!; wait $!; echo $?"], text=True, timeout=20)
    assert "143\n" == done.stdout
