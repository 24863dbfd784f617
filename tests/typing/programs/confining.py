"""What holds commands: capabilities, filters, rules for files, and answers to system calls."""

import sys
from typing import Unpack, assert_type

from containerkit import (
    CONTINUE,
    AppArmor,
    Capabilities,
    CompletedProcess,
    Condition,
    Container,
    Continue,
    Fail,
    Inject,
    Landlock,
    Personality,
    Return,
    Sandbox,
    Seccomp,
    SELinux,
    SyscallRequest,
)
from containerkit.options import ConfinementOptions
from containerkit.security.confinement import Confinement


def answer(request: SyscallRequest) -> Continue | Fail:
    assert_type(request.name, str)
    return Fail(errno=13) if request.name == "sethostname" else CONTINUE


async def slow_answer(request: SyscallRequest) -> Continue | Fail | Return | Inject:
    return Return(request.pid)


def confined(**options: Unpack[ConfinementOptions]) -> Confinement:
    return Confinement(**options)


def main() -> None:
    strict = Seccomp.default().deny("mkdirat", errno=1, when=[Condition(argument=0, op="eq", value=3)]).kill("ptrace")
    assert_type(strict, Seccomp)
    rules = Landlock().allow_read("/").allow_execute("/usr", "/bin", "/lib", optional=True).allow_connect(443)
    assert_type(rules, Landlock)
    assert_type(Capabilities.docker().drop("CAP_CHOWN"), Capabilities)
    assert confined(oom_score_adj=100, personality="LINUX32").personality == Personality("LINUX32")
    confined(apparmor=AppArmor("unconfined"), selinux=SELinux("a:b:c"), landlock=None, seccomp=None)
    with Container(seccomp=strict) as c:
        asked = c.popen(["true"], seccomp=Seccomp.default().notify("sethostname"), syscall_handler=answer)
        assert asked.wait() == 0
        other = c.run(["true"], seccomp=Seccomp.default().notify("sethostname"), syscall_handler=slow_answer)
        assert_type(other, CompletedProcess[bytes])
    box = Sandbox(landlock=Landlock().allow_execute("/").allow_read("/"), seccomp="default", set_id_bits=False)
    try:
        done = box.run(["echo", "x"], text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}, timeout=30)
    except OSError as error:  # a kernel without Landlock
        print(error, file=sys.stderr)
    else:
        assert_type(done, CompletedProcess[str])
        assert done.stdout == "x\n"


if __name__ == "__main__":
    main()
