import json
import pickle
import subprocess
import sys
from errno import ENOSYS, EPERM
from pathlib import Path
from struct import unpack

import bpf_simulator
import pytest
from docker_profile import docker_profile
from hypothesis import given, settings
from hypothesis import strategies as st

from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan.operation import Block, Slot
from containerkit.plan.tape import Plan
from containerkit.security.record import profile as profile_of
from containerkit.security.record import recording_filter
from containerkit.security.seccomp import ALLOW, KILL_PROCESS, LOG, NOTIFY, Action, Condition, Rule, Seccomp, ready
from containerkit.security.seccomp.architecture import ARCHITECTURES, architecture, calls_of, native_names
from containerkit.security.seccomp.assembler import EQUAL, GREATER_EQUAL, Assembler
from containerkit.security.seccomp.compiler import compile_filter
from containerkit.security.seccomp.guards import only_own_processes, without_set_id_bits

X86_64 = 0xC000003E
CALLS = calls_of("x86_64")


def verdict(profile, name, *args, machine="x86_64"):
    of = ARCHITECTURES[machine]
    return bpf_simulator.run(profile.program(machine), calls_of(of.table)[name], of.token, args)[0]


def test_action_values_are_the_kernels():
    assert [each.value for each in (ALLOW, Action.errno(38), Action.trace(1), KILL_PROCESS)] == [
        0x7FFF0000,
        0x00050026,
        0x7FF00001,
        0x80000000,
    ]


@pytest.mark.parametrize(
    ("kind", "data"), [("deny", 0), ("allow", 1), ("errno", 4096), ("errno", -1), ("trace", 65536)]
)
def test_invalid_action_is_refused(kind, data):
    with pytest.raises(SpecError):
        Action(kind, data)


@pytest.mark.parametrize(
    "wrong",
    [{"argument": 6}, {"argument": 0, "op": "=="}, {"argument": 0, "value": -1}, {"argument": 0, "value": 2**64}],
)
def test_invalid_condition_is_refused(wrong):
    with pytest.raises(SpecError):
        Condition(**wrong)


def test_rule_on_an_unknown_call_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="unknown system call 'ptrce': did you mean 'ptrace'"):
        Seccomp.default().allow("ptrce")


def test_rule_takes_a_tuple_of_names_not_a_string():
    with pytest.raises(SpecError, match="pass several values in a list"):
        Rule(names="read", action=ALLOW)


def test_change_without_names_is_refused():
    with pytest.raises(SpecError, match="pass the names of the system calls"):
        Seccomp.default().allow()


def test_filter_with_an_unknown_architecture_or_flag_is_refused():
    with pytest.raises(SpecError, match="unknown architecture 'i387'"):
        Seccomp(default_action=ALLOW, architectures=["i387"])
    with pytest.raises(SpecError, match="unknown seccomp flag 'sync'"):
        Seccomp(default_action=ALLOW, flags=["sync"])


def test_filter_the_first_matching_rule_decides():
    nine = Condition(argument=0, value=9)
    profile = (
        Seccomp.permissive()
        .deny("read")
        .allow("read", when=[nine])
        .deny("read", errno=5, when=[nine, Condition(argument=1, value=1)])
    )
    assert [0x50005, ALLOW.value, 0x50001] == [verdict(profile, "read", *args) for args in ((9, 1), (9, 2), (8, 1))]


def test_filter_changes_by_name():
    profile = Seccomp.default()
    assert verdict(profile, "ptrace") == 0x50000 | EPERM
    assert verdict(profile.allow("ptrace"), "ptrace") == ALLOW.value
    assert verdict(profile.deny("connect", errno=13), "connect") == 0x5000D
    assert verdict(profile.kill("connect"), "connect") == KILL_PROCESS.value
    assert verdict(profile.notify("mount"), "mount") == NOTIFY.value
    assert verdict(profile.log("connect"), "connect") == LOG.value


def test_filter_in_log_mode_denies_nothing_of_its_own_architecture():
    program = bpf_simulator.decode(Seccomp.default().log().program("x86_64"))
    assert {ALLOW.value, LOG.value} == {
        bpf_simulator.run(program, number, X86_64, (17, 0x5412))[0] for number in range(1024)
    }
    assert bpf_simulator.run(program, 1, ARCHITECTURES["x86"].token)[0] == KILL_PROCESS.value


@pytest.mark.parametrize(
    "name",
    [
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",
        "userfaultfd",
        "bpf",
        "keyctl",
        "add_key",
        "request_key",
        "perf_event_open",
        "setns",
        "unshare",
        "mount",
        "umount2",
        "pivot_root",
        "move_mount",
        "open_tree",
        "fsopen",
        "fsconfig",
        "fsmount",
        "fspick",
        "mount_setattr",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "pidfd_getfd",
        "kcmp",
        "open_by_handle_at",
        "init_module",
        "finit_module",
        "kexec_load",
        "reboot",
        "swapon",
        "acct",
        "syslog",
        "iopl",
        "ioperm",
        "modify_ldt",
        "chroot",
        "quotactl",
        "lookup_dcookie",
        "fanotify_init",
        "settimeofday",
        "clock_settime",
        "sethostname",
        "setdomainname",
        "vhangup",
    ],
)
def test_default_denies(name):
    assert verdict(Seccomp.default(), name) == 0x50000 | EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_default_checks_arguments(machine):
    def judge(name, *args):
        return verdict(Seccomp.default(), name, *args, machine=machine)

    denied = 0x50000 | EPERM
    assert judge("clone3") == judge("file_getattr") == judge("open_tree_attr") == 0x50000 | ENOSYS
    assert [ALLOW.value, denied, denied] == [judge("socketpair", family) for family in (1, 2, 30)]
    assert judge("clone", 0x01200011) == ALLOW.value
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge("clone", flag | 17) == denied
    assert [ALLOW.value] * 4 == [judge("socket", family) for family in (1, 2, 10, 16)]
    assert [denied] * 5 == [judge("socket", family) for family in (17, 38, 40, 3, 2**31)]
    assert [ALLOW.value, denied] == [judge("personality", 0xFFFFFFFF), judge("personality", 0x0040000)]
    for upper in (0, 2**32, 2**63):
        assert [denied, denied] == [judge("ioctl", 0, upper | request) for request in (0x5412, 0x541C)]
    assert judge("ioctl", 0, 0x5413) == ALLOW.value


def test_default_answers_numbers_that_are_no_calls_as_an_older_kernel_does():
    program = bpf_simulator.decode(Seccomp.default().program("x86_64"))
    for number in (400, 471, 512, 547, 1000, 2**30 - 1, 2**32 - 1):
        assert bpf_simulator.run(program, number, X86_64)[0] == 0x50000 | ENOSYS


def test_default_kills_i386_and_x32():
    program = bpf_simulator.decode(Seccomp.default().program("x86_64"))
    for number in range(600):
        assert bpf_simulator.run(program, number, ARCHITECTURES["x86"].token)[0] == KILL_PROCESS.value
        assert bpf_simulator.run(program, number | 2**30, X86_64)[0] == KILL_PROCESS.value


def test_default_grows_with_capabilities():
    assert verdict(Seccomp.default(["SYS_ADMIN"]), "mount") == ALLOW.value
    assert verdict(Seccomp.default(["cap_sys_chroot"]), "chroot") == ALLOW.value
    assert verdict(Seccomp.default(["NET_RAW"]), "socket", 17) == ALLOW.value
    with pytest.raises(SpecError):
        Seccomp.default(["SYS_ADMIM"])


VARIANTS = {
    ready.DEFAULT: Seccomp.default(),
    ready.WITHOUT_SET_ID_BITS: without_set_id_bits(Seccomp.default()),
    ready.SANDBOX: only_own_processes(without_set_id_bits(Seccomp.default())),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_precompiled_default_matches_the_compiler(machine, variant):
    program = bytes.fromhex(ready.PROGRAMS[variant][machine])
    assert compile_filter(VARIANTS[variant], machine) == program
    assert ready.program(VARIANTS[variant], machine) == program
    assert ready.program(VARIANTS[variant].allow("ptrace"), machine) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_default_is_installed_without_the_classes_that_describe_filters(variant):
    assert ready.operations(variant) == VARIANTS[variant].operations()
    code = (
        f"import sys; from containerkit.security.seccomp.ready import operations; operations({variant!r});"
        "print([name for name in ('profile', 'default', 'compiler') if f'containerkit.security.seccomp.{name}' in sys.modules])"
    )
    assert "[]\n" == subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


S_ISUID, S_ISGID, O_CREAT, O_TMPFILE, UPPER = 0o4000, 0o2000, 0o100, 0o20200000, 2**40
WITHOUT_BITS = without_set_id_bits(Seccomp.default())


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "s390x"])
@pytest.mark.parametrize(
    ("name", "at"), [("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("mknodat", 2), ("mkdirat", 2)]
)
def test_mode_with_a_set_id_bit_is_refused_in_its_own_32_bits(machine, name, at):
    profile = without_set_id_bits(Seccomp.permissive())
    for mode, expected in (
        (0o1777, ALLOW.value), (0, ALLOW.value), (UPPER, ALLOW.value), (S_ISUID, 0x50001), (S_ISGID, 0x50001),
        (0o6755, 0x50001), (UPPER | S_ISUID, 0x50001),
    ):  # fmt: skip
        words = [0] * 6
        words[at] = mode
        of = ARCHITECTURES[machine]
        number, order = calls_of(of.table)[name], ">" if of.big_endian else "<"
        assert expected == bpf_simulator.run(profile.program(machine), number, of.token, words, order=order)[0]


@pytest.mark.parametrize(
    ("flags", "mode", "refused"),
    [
        (0, 0o6755, False), (O_CREAT, 0o755, False), (O_CREAT, S_ISUID, True), (O_TMPFILE, S_ISGID, True),
        (0o200000, S_ISUID, False), (O_CREAT | UPPER, S_ISUID | UPPER, True), (UPPER, S_ISUID, False),
    ],
)  # fmt: skip
def test_open_is_decided_by_its_mode_if_it_creates_a_file(flags, mode, refused):
    expected = 0x50001 if refused else ALLOW.value
    assert [expected, expected] == [
        verdict(WITHOUT_BITS, "open", 0, flags, mode), verdict(WITHOUT_BITS, "openat", 0, 0, flags, mode)
    ]  # fmt: skip


def test_openat2_answers_as_an_older_kernel_unless_it_knows_the_secret():
    assert 0x50000 | ENOSYS == verdict(WITHOUT_BITS, "openat2", 0, 0, 0, 24)
    secret = 2**62 + 5
    passing = without_set_id_bits(Seccomp.default(), passing=secret)
    assert ALLOW.value == verdict(passing, "openat2", 0, 0, 0, 24, 0, secret)
    assert 0x50000 | ENOSYS == verdict(passing, "openat2", 0, 0, 0, 24, 0, 5)


def test_attributes_are_refused_where_asked():
    held = without_set_id_bits(Seccomp.default(), attributes=True)
    names = ("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
    assert {0x50001} == {verdict(held, name) for name in names}
    assert {ALLOW.value} == {verdict(WITHOUT_BITS, name) for name in names}


def test_guards_leave_all_other_verdicts_as_they_are():
    for number in range(480):
        name = native_names("x86_64").get(number, "")
        if name in {"openat2", "setpriority", "ioprio_set"} or name.startswith(("shm", "sem", "msg", "mq_")):
            continue
        for profile in (Seccomp.default(), Seccomp.permissive()):
            plain = bpf_simulator.decode(profile.program("x86_64"))
            guarded = bpf_simulator.decode(only_own_processes(without_set_id_bits(profile)).program("x86_64"))
            assert bpf_simulator.run(plain, number, X86_64)[0] == bpf_simulator.run(guarded, number, X86_64)[0], name


def test_masked_difference_is_the_opposite_of_masked_equality():
    values = (0, 1, 8, 12, 2**32, 2**40, 2**40 | 8, 2**64 - 1)
    for mask in (8, 12, 2**40, 2**40 | 8, 2**64 - 1):
        for wanted in (0, 8, 2**40):
            same, other = (
                Seccomp(default_action=ALLOW).deny("read", when=[Condition(argument=1, op=op, value=wanted, mask=mask)])
                for op in ("masked_eq", "masked_ne")
            )
            for value in values:
                verdicts = {verdict(profile, "read", 0, value) for profile in (same, other)}
                assert {ALLOW.value, 0x50001} == verdicts, (mask, wanted, value)


def test_masked_difference_is_printed_but_not_written_to_an_oci_profile():
    rule = Rule(names=["read"], action=Action.errno(), when=[Condition(argument=1, op="masked_ne", mask=8)])
    assert "argument 1 & 0x8 != 0x0" in str(rule)
    with pytest.raises(SpecError, match="'masked_ne' has no name in an OCI profile"):
        Seccomp(default_action=ALLOW, rules=[rule]).to_oci()


def test_package_has_no_other_names():
    from containerkit.security import seccomp

    assert sorted(seccomp.__all__) == sorted(name for name in seccomp.__all__ if getattr(seccomp, name) is not None)
    with pytest.raises(AttributeError, match="no attribute 'Filter'"):
        _ = seccomp.Filter


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_default_walks_a_short_path_for_each_number(machine, variant):
    program = bpf_simulator.decode(VARIANTS[variant].program(machine))
    steps = [bpf_simulator.run(program, number, ARCHITECTURES[machine].token, (1, 1))[1] for number in range(480)]
    assert max(steps) <= 24  # about ten of them compare the arguments of socket or personality
    assert sum(steps) / len(steps) < 11


def test_default_is_one_object_and_compiled_once():
    assert Seccomp.default() is Seccomp.default([])
    assert Seccomp.default().program() is Seccomp.default().program()
    assert Seccomp.permissive().deny("read").program() is Seccomp.permissive().deny("read").program()


def test_filter_pickles_and_compares_by_content():
    profile = Seccomp.default().deny("connect")
    assert profile == pickle.loads(pickle.dumps(profile))
    assert hash(profile) == hash(Seccomp.default().deny("connect"))


def test_filter_longer_than_the_kernel_accepts_is_refused():
    conditions = [Condition(argument=0, value=2**40 + number) for number in range(1100)]
    with pytest.raises(SpecError, match="the kernel accepts 4096"):
        Seccomp(
            default_action=ALLOW,
            rules=[Rule(names=["read"], action=Action.errno(), when=[each]) for each in conditions],
        ).program()


def test_filter_with_hundreds_of_values_still_reaches_every_verdict():
    values = [3 * number for number in range(300)]
    rules = [
        Rule(names=["read"], action=Action.errno(number % 4000 + 1), when=[Condition(argument=0, value=value)])
        for number, value in enumerate(values)
    ]
    profile = Seccomp(default_action=ALLOW, rules=rules)
    program = bpf_simulator.decode(profile.program("x86_64"))
    for value in range(901):
        expected = 0x50000 | (value // 3 % 4000 + 1) if value % 3 == 0 and value < 900 else ALLOW.value
        assert expected == bpf_simulator.run(program, 0, X86_64, (value,))[0]


def test_filter_operation_carries_the_address_of_the_program():
    (step,) = Seccomp.default().operations()
    header = step.args[2]
    assert isinstance(header, Block)
    assert header.patches == ((8, Seccomp.default().program()),)
    assert unpack("=H6xQ", header.content) == (len(Seccomp.default().program()) // 8, 0)
    assert step.args[:2] == (1, 0)
    assert Plan((step,)).encode().steps


def test_filter_flags_become_the_kernels():
    (step,) = Seccomp(default_action=ALLOW, flags=["log", "spec_allow", "wait_killable_recv"]).operations(
        listener=Slot("listener")
    )
    assert step.args[1] == 2 | 4 | 8 | 32
    assert step.result == Slot("listener")
    (step,) = Seccomp(default_action=ALLOW, flags=["tsync"]).operations(listener=Slot("listener"))
    assert step.args[1] == 1 | 8 | 16


def test_filter_that_notifies_without_a_listener_is_refused():
    with pytest.raises(SpecError, match="no supervisor receives the listener"):
        Seccomp.default().notify("mount").operations()


def test_filter_with_an_action_that_the_kernel_lacks_is_unsupported():
    with pytest.raises(UnsupportedError, match="action log"):
        Seccomp.default().log("read").operations(available=["allow", "errno", "kill_process"])
    assert len(Seccomp.default().operations(available=["allow", "errno", "kill_process"])) == 1


def test_architecture_is_found_by_either_name():
    assert architecture("SCMP_ARCH_MIPSEL64N32") is architecture("mipsel64n32")
    assert native_names("x86_64")[59] == "execve"
    assert native_names("aarch64")[221] == "execve"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_tables_have_no_number_twice(name):
    numbers = list(calls_of(ARCHITECTURES[name].table).values())
    assert sorted(set(numbers)) == numbers
    assert {"read", "write", "execve", "seccomp", "clone3", "file_setattr"} <= set(calls_of(ARCHITECTURES[name].table))


@pytest.mark.parametrize(("name", "header"), [("x86_64", "unistd_64.h"), ("x86", "unistd_32.h")])
def test_architecture_table_agrees_with_the_kernel_headers(name, header):
    path = Path("/usr/include/x86_64-linux-gnu/asm") / header
    if not path.exists():
        pytest.skip("no kernel headers (linux-libc-dev)")
    defined = dict(line.split()[1:3] for line in path.read_text().splitlines() if line.startswith("#define __NR_"))
    expected = {key.removeprefix("__NR_"): int(value) for key, value in defined.items()}
    assert expected.items() <= calls_of(name).items()


@pytest.mark.parametrize("machine", ["s390x", "ppc64"])
def test_big_endian_filter_reads_the_other_half(machine):
    profile = Seccomp.permissive().deny(
        "personality", when=[Condition(argument=0, op="masked_eq", value=8, mask=0xFFFFFFFF)]
    )
    loads = {k for code, _, _, k in bpf_simulator.decode(profile.program(machine)) if code == 0x20}
    assert loads == {0, 4, 20}


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=900, unique=True), st.data())
def test_assembler_jumps_of_any_length_arrive(edges, data):
    """A chain of comparisons that is longer than the range of a jump, with a different verdict each."""
    out = Assembler()
    label = out.verdict(0)
    for number, edge in enumerate(edges, 1):
        label = out.test(EQUAL, edge, out.verdict(number % 7), label)
    label = out.test(GREATER_EQUAL, 2**31, label, label)
    program = bpf_simulator.decode(out.program(out.load(0, label)))
    index = data.draw(st.integers(0, len(edges) - 1))
    assert (index + 1) % 7 == bpf_simulator.run(program, edges[index], 0)[0]


def test_oci_docker_profile_is_read():
    profile = Seccomp.from_oci(docker_profile(), kernel=(6, 1))
    assert profile.architectures == ("x86", "x32")
    assert verdict(profile, "clone3") == 0x50000 | ENOSYS
    assert verdict(profile, "ptrace") == ALLOW.value
    assert verdict(Seccomp.from_oci(docker_profile(), kernel=(4, 7)), "ptrace") == 0x50001
    assert verdict(Seccomp.from_oci(docker_profile(), capabilities=["SYS_ADMIN"]), "clone3") == ALLOW.value
    assert Seccomp.from_oci(docker_profile(), machine="aarch64").architectures == ("arm",)


def test_oci_profile_is_read_from_a_file(tmp_path):
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps(docker_profile()))
    assert Seccomp.from_oci(docker_profile()) == Seccomp.from_oci(path) == Seccomp.from_oci(str(path))
    path.write_text("[]")
    with pytest.raises(SpecError, match="not an object"):
        Seccomp.from_oci(path)
    path.write_text("{")
    with pytest.raises(SpecError, match="seccomp profile /"):
        Seccomp.from_oci(path)
    with pytest.raises(SpecError, match="No such file"):
        Seccomp.from_oci(tmp_path / "missing")


def test_oci_flags_listener_and_actions():
    profile = Seccomp.from_oci(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "listenerPath": "/run/agent.sock",
            "listenerMetadata": "who",
            "syscalls": [
                {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"},
                {"names": ["read"], "action": "SCMP_ACT_KILL"},
                {"names": ["write"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": None},
                {"name": "open", "action": "SCMP_ACT_TRACE"},
            ],
        },
        machine="x86_64",
    )
    assert (("x86", "aarch64"), {"log", "spec_allow"}, "/run/agent.sock", "who") == (
        profile.architectures,
        profile.flags,
        profile.listener_path,
        profile.listener_metadata,
    )
    assert [NOTIFY.value, 0, 0x50005, 0x7FF00001] == [
        verdict(profile, name) for name in ("mount", "read", "write", "open")
    ]


def test_oci_the_strictest_of_conditional_entries_decides():
    def entry(action, **args):
        return {"names": ["read"], "action": action, "args": [{"op": "SCMP_CMP_EQ", **args}]}

    one, two = entry("SCMP_ACT_LOG", index=0, value=1), entry("SCMP_ACT_KILL_PROCESS", index=1, value=1)
    for order in ([one, two], [two, one]):
        profile = Seccomp.from_oci({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": order})
        assert [KILL_PROCESS.value, LOG.value] == [verdict(profile, "read", 1, 1), verdict(profile, "read", 1, 0)]


def test_oci_conditions_on_one_argument_are_alternatives():
    two = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (3, 5)]
    other = {"index": 1, "value": 7, "op": "SCMP_CMP_EQ"}
    for action, default in (("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"), ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")):
        content = {"defaultAction": default, "syscalls": [{"names": ["dup2"], "action": action, "args": two}]}
        matching, otherwise = (
            (ALLOW, Action.errno(EPERM)) if default == "SCMP_ACT_ERRNO" else (Action.errno(EPERM), ALLOW)
        )
        profile = Seccomp.from_oci(content)
        assert [verdict(profile, "dup2", value) for value in (3, 4, 5)] == [
            matching.value, otherwise.value, matching.value
        ]  # fmt: skip
        assert Seccomp.from_oci(profile.to_oci()) == profile
        content["syscalls"][0]["args"] = [*two, other]  # and then each is
        profile = Seccomp.from_oci(content)
        assert verdict(profile, "dup2", 4, 7) == verdict(profile, "dup2", 5, 8) == matching.value
        content["syscalls"][0]["args"] = [two[0], other]
        profile = Seccomp.from_oci(content)
        assert verdict(profile, "dup2", 3, 7) == matching.value
        assert verdict(profile, "dup2", 3, 8) == verdict(profile, "dup2", 4, 7) == otherwise.value


def test_range_of_an_argument_is_not_written_to_an_oci_profile():
    between = (Condition(argument=0, op="ge", value=3), Condition(argument=0, op="le", value=5))
    profile = Seccomp(default_action=Action.errno(1), rules=[Rule(names=["dup2"], action=ALLOW, when=between)])
    assert [verdict(profile, "dup2", value) for value in (2, 4, 6)] == [0x50001, ALLOW.value, 0x50001]
    with pytest.raises(SpecError, match="two conditions on one argument"):
        profile.to_oci()


def test_oci_call_unknown_here_may_be_allowed_but_not_forbidden():
    allowed = {"names": ["read", "call_of_tomorrow"], "action": "SCMP_ACT_ALLOW"}
    profile = Seccomp.from_oci({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [allowed]})
    assert verdict(profile, "read") == ALLOW.value
    with pytest.raises(SpecError, match="forbids 'call_of_tomorrow'"):
        Seccomp.from_oci({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**allowed, "action": "SCMP_ACT_ERRNO"}]})


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"defaultAction": "SCMP_ACT_MAYBE"},
        {"defaultAction": 5},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": "1"},
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99999},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": ["read"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [1], "action": "SCMP_ACT_LOG"}]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"op": "SCMP_CMP_EQ", "index": 9}]}],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "args": [{"op": "EQ", "index": 0}]}],
        },
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "new"}}],
        },
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_FAST"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_Z80"]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86"],
            "archMap": [{"architecture": "SCMP_ARCH_X86_64"}],
        },
    ],
)
def test_oci_profile_that_is_malformed_is_refused(wrong):
    with pytest.raises(SpecError):
        Seccomp.from_oci(wrong)


@settings(max_examples=50, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=30, unique=True),
    actions=st.lists(
        st.sampled_from([ALLOW, LOG, KILL_PROCESS, NOTIFY, Action.errno(5), Action.trace(9)]), min_size=30, max_size=30
    ),
    conditional=st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_oci_profile_written_and_read_again_gives_the_same_verdicts(names, actions, conditional):
    masked = (Condition(argument=1, op="masked_eq", value=8, mask=12), Condition(argument=0, op="gt", value=2**40))
    rules = [
        Rule(names=[name], action=action, when=masked if when else ())
        for name, action, when in zip(names, actions, conditional, strict=False)
    ]
    profile = Seccomp(
        default_action=Action.errno(9), rules=rules, architectures=["x86"], flags=["log"], listener_path="/run/s"
    )
    again = Seccomp.from_oci(json.loads(json.dumps(profile.to_oci("x86_64"))), machine="x86_64")
    assert (profile.architectures, profile.flags, "/run/s") == (again.architectures, again.flags, again.listener_path)
    for name in names:
        for args in ((0, 0), (2**41, 8), (2**41, 12)):
            assert verdict(profile, name, *args) == verdict(again, name, *args)


def test_oci_profile_cannot_express_an_order_of_rules():
    nine = Condition(argument=0, value=9)
    with pytest.raises(SpecError, match="depend on their order"):
        Seccomp.permissive().deny("read", when=[nine]).kill("read", when=[nine]).to_oci()
    with pytest.raises(SpecError, match="two actions, one with conditions"):
        Seccomp.permissive().deny("read", errno=5).allow("read", when=[nine]).to_oci()
    overruled = Seccomp.permissive().deny("read", when=[nine]).deny("read", errno=5).to_oci("x86_64")
    assert overruled["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5}]


def test_recorded_profile_allows_what_was_seen_and_what_every_program_needs():
    made = profile_of(["read", "x86:write", "syscall_999"])
    assert made.architectures == ("x86",)
    assert [ALLOW.value] * 3 == [verdict(made, name) for name in ("read", "execve", "exit_group")]
    assert verdict(made, "connect") == 0x50000 | EPERM
    assert verdict(profile_of(["read"], log=True), "connect") == LOG.value
    assert made.to_oci("x86_64")["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]


def test_recording_filter_reports_every_call_of_every_architecture():
    program = bpf_simulator.decode(recording_filter().program("x86_64"))
    for number, token in ((0, X86_64), (2**30, X86_64), (5000, X86_64), (3, ARCHITECTURES["x86"].token)):
        assert bpf_simulator.run(program, number, token)[0] == NOTIFY.value


def test_filter_is_printed_as_text():
    condition = Condition(argument=0, op="masked_eq", value=1, mask=0xFF)
    profile = Seccomp(default_action=ALLOW, architectures=["x86"]).deny("read", "write").kill("open", when=[condition])
    assert str(profile).splitlines() == [
        "allow unless a rule says otherwise; allow for unknown numbers",
        "kill process when argument 0 & 0xff == 0x1: open",
        "fail with EPERM: read write",
        "kill process for any architecture except the native, x86",
    ]
