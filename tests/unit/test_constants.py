"""Compare the kernel's constants in Python with the values from the compiler."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from containerkit._native import constants

NATIVE = Path(constants.__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

# One program can't include the headers of both the C library and the kernel, because they declare the same structures.
LIBC = ("fcntl.h", "sched.h", "signal.h", "sys/mount.h", "sys/prctl.h", "sys/resource.h", "sys/wait.h", "unistd.h")
KERNEL = (
    "linux/capability.h",
    "linux/close_range.h",
    "linux/fcntl.h",
    "linux/ioctl.h",
    "linux/keyctl.h",
    "linux/landlock.h",
    "linux/mount.h",
    "linux/nsfs.h",
    "linux/openat2.h",
    "linux/prctl.h",
    "linux/sched.h",
    "linux/seccomp.h",
    "linux/securebits.h",
)
OURS = ("native.h",)

ENUMERATORS = {"FSCONFIG_": KERNEL, "CK_STEP_": OURS, "CK_ARG_": OURS, "CK_TELL_": OURS}  # no #ifdef sees these

# The options of the generic table for arm64. Source: arch/arm64/include/uapi/asm/unistd.h.
GENERIC_TABLE = """
#define __ARCH_WANT_RENAMEAT
#define __ARCH_WANT_NEW_STAT
#define __ARCH_WANT_SET_GET_RLIMIT
#define __ARCH_WANT_SYS_CLONE3
#define __ARCH_WANT_MEMFD_SECRET
#include <asm-generic/unistd.h>
"""


def c_name(name):
    if name == "WALL":
        return "__WALL"
    if name.startswith(("STEP_", "ARG_", "TELL_")):
        return f"CK_{name}"
    return name


def run_c(directory, text):
    source = directory / "values.c"
    program = directory / "values"
    source.write_text(text)
    done = subprocess.run(
        [COMPILER, "-std=gnu11", "-w", f"-I{NATIVE}", "-o", program, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split() for line in output.splitlines())}


def values_of(directory, names, headers):
    lines = ["#define _GNU_SOURCE", "#include <stdio.h>", *(f"#include <{header}>" for header in headers)]
    lines.append("int main(void) {")
    for name in names:
        home = next((home for prefix, home in ENUMERATORS.items() if name.startswith(prefix)), None)
        show = f'    printf("{name} %lld\\n", (long long)({name}));'
        if home is headers:
            lines.append(show)
        elif home is None:
            lines += [f"#ifdef {name}", show, "#endif"]
    lines.append("    return 0;\n}\n")
    return run_c(directory, "\n".join(lines))


def written_out():
    return {
        c_name(name): value
        for name, value in vars(constants).items()
        if name.isupper() and isinstance(value, int) and not isinstance(value, bool)
    }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("constants")
    names = written_out()
    return [values_of(directory, names, headers) for headers in (LIBC, KERNEL, OURS)]


def test_constants_have_the_compilers_value(compiled):
    expected, actual = {}, written_out()
    for values in compiled:
        expected |= values
    assert expected == {name: value for name, value in actual.items() if name in expected}


def test_constants_are_all_known_to_the_compiler(compiled):
    known = set().union(*compiled)
    assert set() == set(written_out()) - known


def test_constants_cover_each_kind_of_step_and_argument(tmp_path):
    names = ["CK_STEP_KINDS", "CK_ARG_KINDS"]
    counted = values_of(tmp_path, names, OURS)
    steps = [value for name, value in vars(constants).items() if name.startswith("STEP_")]
    arguments = [value for name, value in vars(constants).items() if name.startswith("ARG_")]
    assert list(range(counted["CK_STEP_KINDS"])) == sorted(steps)
    assert list(range(counted["CK_ARG_KINDS"])) == sorted(arguments)


@pytest.mark.skipif(constants.MACHINE != "x86_64", reason="the compiler of another machine knows other numbers")
def test_constants_number_each_system_call_as_x86_64_does(tmp_path):
    names = [f"SYS_{name}" for name in constants._X86_64]
    values = values_of(tmp_path, names, ("sys/syscall.h",))
    assert {f"SYS_{name}": number for name, number in constants._X86_64.items()} == values


def test_constants_number_each_system_call_as_the_generic_table_does(tmp_path):
    lines = [GENERIC_TABLE, "#include <stdio.h>", "int main(void) {"]
    for name in constants._AARCH64:
        lines += [f"#ifdef __NR_{name}", f'    printf("{name} %d\\n", __NR_{name});', "#endif"]
    lines.append("    return 0;\n}\n")
    assert constants._AARCH64 == run_c(tmp_path, "\n".join(lines))


def test_constants_name_the_same_system_calls_for_each_machine():
    missing_on_aarch64 = {"access"}  # replaced by faccessat
    assert missing_on_aarch64 == set(constants._X86_64) - set(constants._AARCH64)
    assert set() == set(constants._AARCH64) - set(constants._X86_64)


LAYOUTS = """
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/resource.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include "native.h"
#define SIZE(type) printf(#type " %zu\\n", sizeof(struct type))
#define PLACE(type, field) printf(#type "." #field " %zu\\n", offsetof(struct type, field))
#define INFO(field) printf("siginfo_t." #field " %zu\\n", offsetof(siginfo_t, field))
int main(void) {
    SIZE(clone_args); PLACE(clone_args, exit_signal); PLACE(clone_args, cgroup);
    SIZE(open_how); PLACE(open_how, mode); PLACE(open_how, resolve);
    SIZE(mount_attr); PLACE(mount_attr, attr_clr); PLACE(mount_attr, propagation); PLACE(mount_attr, userns_fd);
    SIZE(rusage); PLACE(rusage, ru_stime); PLACE(rusage, ru_maxrss); PLACE(rusage, ru_nivcsw);
    SIZE(__user_cap_header_struct); SIZE(__user_cap_data_struct); SIZE(ck_step);
    printf("siginfo_t %zu\\n", sizeof(siginfo_t));
    INFO(si_signo); INFO(si_code); INFO(si_pid); INFO(si_uid); INFO(si_status);
    return 0;
}
"""


def test_constants_lay_out_structures_as_the_compiler_does(tmp_path):
    info = struct.Struct("=iii4xiIi")
    expected = {
        "clone_args": struct.calcsize("=11Q"),
        "clone_args.exit_signal": 4 * 8,
        "clone_args.cgroup": 10 * 8,
        "open_how": struct.calcsize("=3Q"),
        "open_how.mode": 8,
        "open_how.resolve": 16,
        "mount_attr": struct.calcsize("=4Q"),
        "mount_attr.attr_clr": 8,
        "mount_attr.propagation": 16,
        "mount_attr.userns_fd": 24,
        "rusage": 144,
        "rusage.ru_stime": 16,
        "rusage.ru_maxrss": 32,
        "rusage.ru_nivcsw": 32 + 13 * 8,
        "__user_cap_header_struct": struct.calcsize("=Ii"),
        "__user_cap_data_struct": struct.calcsize("=3I"),
        "ck_step": 72,
        "siginfo_t": 128,
        "siginfo_t.si_signo": 0,
        "siginfo_t.si_code": 8,
        "siginfo_t.si_pid": 16,
        "siginfo_t.si_uid": 20,
        "siginfo_t.si_status": info.size - 4,
    }
    assert expected == run_c(tmp_path, LAYOUTS)
