"""Functions of one's own around those of the library."""

from typing import Literal, Unpack, assert_type

from containerkit import CompletedProcess, Container, Process, run
from containerkit.options import ContainerOptions, OneShotOptions, PopenOptions, RunOptions


def shell(c: Container, line: str, **options: Unpack[RunOptions]) -> str:
    return c.run(["sh", "-c", line], text=True, **options).stdout


def worker(**options: Unpack[ContainerOptions]) -> Container:
    return Container(id="typed-worker", **options)


def background(c: Container, argv: list[str], **options: Unpack[PopenOptions]) -> Process[bytes]:
    return c.popen(argv, **options)


def either(*, text: bool) -> CompletedProcess[str] | CompletedProcess[bytes]:
    return run(["true"], text=text)


def lines(done: CompletedProcess[str] | CompletedProcess[bytes]) -> int:
    return len(done.stdout.splitlines())


def outcome(cause: Literal["exit", "signal", "timeout", "oom", "seccomp", "output"]) -> str:
    return cause.upper()


def main() -> None:
    given: OneShotOptions = {"hostname": "wrapped", "timeout": 30, "check": True}
    done = run(["cat", "/proc/sys/kernel/hostname"], text=True, **given)
    assert_type(done, CompletedProcess[str])
    assert (done.stdout, outcome(done.cause)) == ("wrapped\n", "EXIT")
    with worker(hostname="worker") as c:
        assert shell(c, "echo $A", env={"A": "1"}) == "1\n"
        with background(c, ["true"], nice=1) as p:
            assert_type(p.wait(), int)
    assert lines(either(text=bool(given))) == 0


if __name__ == "__main__":
    main()
