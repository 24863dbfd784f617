"""Our compiler and libseccomp give the same verdicts for the same profile."""

from pathlib import Path

import bpf_simulator
import libseccomp
import pytest
from docker_profile import docker_profile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from containerkit.security.seccomp import ALLOW, KILL_PROCESS, KILL_THREAD, LOG, TRAP, Action, Condition, Rule, Seccomp
from containerkit.security.seccomp.architecture import ARCHITECTURES, calls_of
from containerkit.security.seccomp.multiplexed import multiplexed

LIBRARY = libseccomp.load()
needs_libseccomp = pytest.mark.skipif(LIBRARY is None, reason="libseccomp.so.2 is not installed (libseccomp2)")

PODMAN_PROFILE = Path("/usr/share/containers/seccomp.json")

NATIVE = "x86_64"
GROUPS = {"x86_64": ["x86", "x32"], "aarch64": ["arm"]}
INTERESTING = [
    0,
    1,
    2,
    8,
    12,
    16,
    40,
    0x5412,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**63,
    2**64 - 1,
    0x7E020000,
    0x20008,
]


def rule(names, action, *conditions):
    return Rule(
        names=names.split(),
        action=action,
        when=[Condition(argument=a, op=op, value=v, mask=m) for a, op, v, m in conditions],
    )


FULL = 2**64 - 1

HAND_WRITTEN = {
    "allow_all": Seccomp.permissive(),
    "deny_one": Seccomp.permissive().deny("ptrace"),
    "allow_few": Seccomp(default_action=KILL_PROCESS, rules=[rule("read write exit exit_group", ALLOW)]),
    "every_action": Seccomp(
        default_action=Action.errno(13),
        rules=[
            rule("read", ALLOW),
            rule("write", LOG),
            rule("open", TRAP),
            rule("close", KILL_THREAD),
            rule("stat", KILL_PROCESS),
            rule("fstat", Action.trace(77)),
            rule("poll", Action.errno(0)),
            rule("lseek", Action.errno(4094)),
        ],
    ),
    "every_comparison": Seccomp(
        default_action=Action.errno(),
        rules=[
            rule("read", ALLOW, (0, "eq", 5, FULL)),
            rule("write", ALLOW, (1, "ne", 2**32 + 1, FULL)),
            rule("open", ALLOW, (2, "lt", 2**32, FULL)),
            rule("close", ALLOW, (3, "le", 2**33 + 7, FULL)),
            rule("mmap", ALLOW, (4, "gt", 2**32 + 5, FULL)),
            rule("munmap", ALLOW, (5, "ge", 2**63, FULL)),
            rule("ioctl", ALLOW, (1, "masked_eq", 0x5400, 0xFF00)),
            rule("fcntl", ALLOW, (1, "masked_eq", 2**40, 2**40 | 1)),
        ],
    ),
    "conjunctions": Seccomp(
        default_action=ALLOW,
        rules=[
            rule("socket", Action.errno(97), (0, "eq", 16, FULL), (2, "eq", 9, FULL)),
            rule("mprotect mmap", Action.errno(), (2, "masked_eq", 4, 4)),
            rule("kill", Action.errno(1), (0, "gt", 100, FULL), (1, "eq", 9, FULL)),
        ],
    ),
    "alternatives": Seccomp(
        default_action=Action.errno(38),
        rules=[rule("personality", ALLOW, (0, "eq", value, FULL)) for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)],
    ),
    "other_architectures": Seccomp(
        default_action=KILL_PROCESS,
        architectures=["x86", "x32"],
        rules=[
            rule("read write openat socket connect semop", ALLOW),
            rule("clone", ALLOW, (0, "masked_eq", 0, 0x7E020000)),
        ],
    ),
    "deny_list_everywhere": Seccomp(
        default_action=ALLOW,
        architectures=["x86", "x32"],
        rules=[rule("ptrace bpf keyctl add_key request_key perf_event_open userfaultfd", Action.errno())],
    ),
    "sparse": Seccomp(
        default_action=Action.errno(1),
        rules=[rule(" ".join(list(calls_of("x86_64"))[::2]), ALLOW)],
    ),
    "docker": Seccomp.from_oci(docker_profile(), kernel=(6, 1)),
    "docker_with_admin": Seccomp.from_oci(
        docker_profile(), capabilities=["CAP_SYS_ADMIN", "CAP_SYS_PTRACE"], kernel=(6, 1)
    ),
}
if PODMAN_PROFILE.exists():
    HAND_WRITTEN["podman"] = Seccomp.from_oci(PODMAN_PROFILE, kernel=(6, 1))


def oracle(profile, native=NATIVE):
    rules = [
        (name, each.action.value, [(c.argument, c.op, c.value, c.mask) for c in each.when])
        for each in profile.rules
        for name in each.names
    ]
    return libseccomp.export(LIBRARY, profile.default_action.value, rules, profile.architectures, native)


def is_known_to_both(name, number):
    """The kernel has calls that are newer than this libseccomp."""
    return LIBRARY.seccomp_syscall_resolve_name(name.encode()) != -1


def entries(profile, native=NATIVE):
    """Yield (name, token, number) of each call on each architecture of a profile."""
    for each in (native, *profile.architectures):
        known = ARCHITECTURES[each]
        for name, number in calls_of(known.table).items():
            if is_known_to_both(name, number):
                yield name, known.token, number + known.offset


def arguments_of(profile):
    values = {condition.value for each in profile.rules for condition in each.when} | set(INTERESTING)
    near = {value + step for value in values for step in (-1, 0, 1)} | {value | 2**32 for value in values}
    return sorted(value for value in near if 0 <= value < 2**64)


COMPILED = {}


def compiled(name):
    if name not in COMPILED:
        profile = HAND_WRITTEN[name]
        COMPILED[name] = (bpf_simulator.decode(profile.program(NATIVE)), bpf_simulator.decode(oracle(profile)))
    return COMPILED[name]


@needs_libseccomp
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_verdict_of_every_call_is_libseccomps(name):
    ours, theirs = compiled(name)
    for call, token, number in entries(HAND_WRITTEN[name]):
        for args in ((), (1, 2, 3, 4, 5, 6), (2**64 - 1,) * 6):
            expected, _ = bpf_simulator.run(theirs, number, token, args)
            actual, _ = bpf_simulator.run(ours, number, token, args)
            assert (call, args, hex(expected)) == (call, args, hex(actual))


@needs_libseccomp
@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_verdict_of_numbers_that_are_no_calls_is_libseccomps(name):
    ours, theirs = compiled(name)
    gaps = [*range(340, 420), 1000, 2**30 - 1, 2**30, 2**30 + 700, 2**31, 2**32 - 2, 2**32 - 1]
    for token in (0xC000003E, 0x40000003, 0xC00000B7, 0):
        known = {number for _, owner, number in entries(HAND_WRITTEN[name]) if owner == token}
        newer = {
            number + of.offset
            for of in ARCHITECTURES.values()
            for number in calls_of(of.table).values()
            if of.token == token
        }
        for number in set(gaps) - known - newer:
            expected, _ = bpf_simulator.run(theirs, number, token)
            actual, _ = bpf_simulator.run(ours, number, token)
            assert (hex(token), number, hex(expected)) == (hex(token), number, hex(actual))


@needs_libseccomp
@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(HAND_WRITTEN)))
def test_verdict_of_sampled_arguments_is_libseccomps(data, name):
    profile = HAND_WRITTEN[name]
    ours, theirs = compiled(name)
    judged = sorted({call for each in profile.rules if each.when for call in each.names}) or ["read"]
    known = [each for each in entries(profile) if each[0] in judged or each[0] in {"socketcall", "ipc"}]
    call, token, number = data.draw(st.sampled_from(known))
    value = st.one_of(st.sampled_from(arguments_of(profile)), st.integers(0, 2**64 - 1))
    args = data.draw(st.tuples(*[value] * 6))
    expected, _ = bpf_simulator.run(theirs, number, token, args)
    actual, _ = bpf_simulator.run(ours, number, token, args)
    assert (call, hex(expected)) == (call, hex(actual))


MULTIPLEXERS = {"socketcall": 0, "ipc": 1}
EVERYWHERE = set(calls_of("x86_64")) & set(calls_of("x86")) & set(calls_of("aarch64")) & set(calls_of("arm"))
CALLS = st.sampled_from(sorted(name for name in EVERYWHERE if LIBRARY is None or is_known_to_both(name, 0)))
CONDITIONS = st.builds(
    Condition,
    argument=st.integers(0, 5),
    op=st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "masked_eq"]),
    value=st.one_of(st.sampled_from(INTERESTING), st.integers(0, 2**64 - 1)),
    mask=st.one_of(st.sampled_from([1, 0xFFFFFFFF, 0xFFFF0000, 2**40, 2**64 - 1, 2**32]), st.integers(1, 2**64 - 1)),
)


@st.composite
def profiles(draw):
    """Profiles without contradictory rules, because only those have a single meaning."""
    names = draw(st.lists(CALLS, min_size=1, max_size=12, unique=True))
    rules = []
    for name in names:
        action = draw(st.sampled_from([Action.errno(7), KILL_THREAD, TRAP, LOG, Action.trace(9)]))
        conditions = draw(st.lists(CONDITIONS, max_size=3, unique_by=lambda each: each.argument))
        rules.append(Rule(names=[name], action=action, when=conditions))
    native = draw(st.sampled_from(sorted(GROUPS)))
    others = draw(st.lists(st.sampled_from(GROUPS[native]), unique=True))
    return native, Seccomp(default_action=ALLOW, rules=rules, architectures=others)


@needs_libseccomp
@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(made=profiles(), data=st.data())
def test_verdict_of_random_profiles_is_libseccomps(made, data):
    native, profile = made
    ours = bpf_simulator.decode(profile.program(native))
    theirs = bpf_simulator.decode(oracle(profile, native))
    named = {name for each in profile.rules for name in each.names} | {"socketcall", "ipc"}
    value = st.one_of(st.sampled_from(arguments_of(profile)), st.integers(0, 2**64 - 1))
    # No filter sees the arguments of a call through socketcall or ipc. Ours decides by the sub-call alone, libseccomp also
    # uses the unrelated register values.
    blind = any(each.when and multiplexed(name, MULTIPLEXERS) for each in profile.rules for name in each.names)
    for call, token, number in entries(profile, native):
        if blind and call in MULTIPLEXERS:
            continue
        args = data.draw(st.tuples(*[value] * 6)) if call in named else ()
        expected, _ = bpf_simulator.run(theirs, number, token, args)
        actual, _ = bpf_simulator.run(ours, number, token, args)
        assert (call, args, hex(expected)) == (call, args, hex(actual))


def test_default_allows_nothing_that_docker_denies():
    """The result is equally strict or stricter, for each call and for arguments around every constant of both filters."""
    for capabilities in ((), ("CAP_SYS_ADMIN",), ("CAP_NET_RAW", "CAP_SYS_PTRACE", "CAP_SYS_CHROOT")):
        docker = Seccomp.from_oci(docker_profile(), capabilities=capabilities, kernel=(6, 1))
        own = Seccomp.default(capabilities)
        for machine in ("x86_64", "aarch64"):
            ours = bpf_simulator.decode(own.program(machine))
            theirs = bpf_simulator.decode(docker.program(machine))
            token = ARCHITECTURES[machine].token
            values = [value & 0xFFFFFFFF for value in arguments_of(docker) + arguments_of(own)]
            for name, number in calls_of(ARCHITECTURES[machine].table).items():
                sampled = values if name in {"clone", "socket", "personality", "ioctl"} else (0, 1)
                for value in set(sampled):
                    args = (value, value)
                    verdict, _ = bpf_simulator.run(ours, number, token, args)
                    if verdict == ALLOW.value:
                        expected, _ = bpf_simulator.run(theirs, number, token, args)
                        assert (name, args, hex(expected)) == (name, args, hex(verdict))


ELSEWHERE = sorted(set(libseccomp.TOKENS) - {"x86_64", "x32"})


@needs_libseccomp
@pytest.mark.parametrize("native", ELSEWHERE)
def test_verdict_on_other_machines_is_libseccomps(native):
    """It compares their tables, their byte order, and their second paths through ``socketcall`` and ``ipc``."""
    order = ">" if ARCHITECTURES[native].big_endian else "<"
    profile = Seccomp(
        default_action=Action.errno(38),
        rules=[
            rule("read write connect socket semop semtimedop shmat msgrcv accept accept4 sendmmsg recv send", ALLOW),
            rule("personality", ALLOW, (0, "eq", 2**32 + 8, FULL)),
            rule("mmap mmap2 mprotect", TRAP, (2, "masked_eq", 4, 4), (3, "gt", 2**33, FULL)),
            rule("clone", LOG, (0, "masked_eq", 0, 0x7E020000)),
            rule("ptrace bpf keyctl perf_event_open unshare setns mount fork vfork getpid", KILL_THREAD),
        ],
    )
    ours = bpf_simulator.decode(profile.program(native))
    theirs = bpf_simulator.decode(oracle(profile, native), order)
    values = [0, 1, 2, 3, 4, 8, 2**32 + 8, 2**33, 2**33 + 1, 0x7E020000, 2**64 - 1]
    seen = set()
    for call, token, number in entries(profile, native):
        for args in [(value,) * 6 for value in values] + [(sub, 0, 4, 2**40, 0, 0) for sub in range(30)]:
            expected, _ = bpf_simulator.run(theirs, number, token, args, order=order)
            actual, _ = bpf_simulator.run(ours, number, token, args, order=order)
            assert (call, args, hex(expected)) == (call, args, hex(actual))
            seen.add(expected)
    assert len(seen) >= 4
