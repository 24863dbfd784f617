"""Common uses: lines as they arrive, a command without a container, paths, an interpreter, measurements."""

import os
from pathlib import PurePosixPath
from typing import assert_type

from containerkit import PIPE, CompletedProcess, Container, Process, RootFS, popen, run
from containerkit.interpreter import Execution, Interpreter, Result, Snapshot
from containerkit.measure import Measurement, RunExecutor, Termination


def main() -> None:
    lines: list[str] = []
    done = run(["echo", "hello"], text=True, on_stdout=lines.append, extra_env={"A": "1"}, volumes={"/etc": "/x:ro"})
    assert_type(done, CompletedProcess[str])
    assert lines == ["hello"]
    with popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert_type(process, Process[str])
        assert process.communicate("x")[0] == "x"
    assert_type(popen(["true"]).wait(30), int)
    with Container(volumes=["/etc:/x:ro"]) as c:
        c.files.write(PurePosixPath("/srv/a/b"), "x", parents=True)
        c.files.append("/srv/a/b", b"y")
        path = c.path("/srv/a") / "b"
        assert_type(path.read_text(), str)
        assert_type(path.parent.is_dir(), bool)
        assert_type(c.files.stat(str(path)), os.stat_result)
        c.files.remove("/srv/a", recursive=True)
        c.popen(["sleep", "60"])
        c.kill(15)
        c.wait(30)


def interpret() -> None:
    seen: list[Result] = []
    with Interpreter(RootFS.host(), preload=["json"], timeout=60, hostname="box") as i:
        assert_type(i.run_code("1 + 1", on_result=seen.append), Execution)
        assert_type(i.run_code("1 + 1").text, str | None)
        before = i.snapshot()
        assert_type(before, Snapshot)
        i.rollback(before)
        with i.fork() as other:
            assert_type(other, Interpreter)


def measure() -> None:
    if os.geteuid() != 0:
        return
    with RunExecutor() as executor:
        done = executor.execute_run(["true"], cpu_limit_s=10, memory_limit="100M", hostname="box")
    assert_type(done, Measurement)
    assert_type(done.termination, Termination | None)
    assert_type(done.cpu_s, float)


if __name__ == "__main__":
    main()
    interpret()
    measure()
