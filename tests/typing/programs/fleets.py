"""Commands on many machines."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import assert_type

from containerkit import CompletedProcess, ExitError, Limits
from containerkit.fleet import Fleet, FleetContainer, FleetFuture, NodeLost, Report
from containerkit.process.result import Usage


def command(number: int) -> list[str]:
    return ["expr", str(number), "+", "1"]


if __name__ == "__main__":
    with ThreadPoolExecutor(1) as executor, Fleet.executor(executor) as fleet:
        future = fleet.submit(["echo", "hi"], text=True, timeout=30, retries=1, hostname="here")
        assert_type(future, FleetFuture[CompletedProcess[str]])
        assert_type(fleet.submit(["true"]), FleetFuture[CompletedProcess[bytes]])
        try:
            assert_type(future.result().stdout, str)
        except NodeLost as error:
            assert_type(error.node, str)
        except ExitError as error:
            assert_type(error.returncode, int)
        assert_type(future.node, str | None)
        assert_type(future.usage, Usage | None)
        assert_type(fleet.map(command, [1, 2], text=True, buffersize=2), Iterator[CompletedProcess[str]])
        assert_type(fleet.map(command, [1, 2]), Iterator[CompletedProcess[bytes]])
        for each in fleet.as_completed([future]):
            assert_type(each, FleetFuture[CompletedProcess[str]])
        with fleet.container(hostname="held") as held:
            assert_type(held, FleetContainer)
            assert_type(held.run(["true"], text=True, cwd="/tmp").stdout, str)
            for stream, line in held.popen(["echo", "hi"], text=True):
                assert stream in ("stdout", "stderr")
                assert_type(line, str)
            assert_type(held.files.read("/etc/passwd"), bytes)
        assert_type(fleet.report(), Report)
    if False:
        Fleet.ray("auto", elastic=True).submit(["true"], image="alpine:3.20", limits=Limits(cpus=1))
