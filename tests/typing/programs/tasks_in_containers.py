"""Calls that run in containers."""

from typing import assert_type

from containerkit import Limits
from containerkit.executor import ContainerExecutor, TaskFuture, TaskTimeout, WorkerLost
from containerkit.process.result import Usage


def double(number: int) -> int:
    return number * 2


if __name__ == "__main__":
    with ContainerExecutor(1, isolation="fork", timeout=30, hostname="here") as executor:
        future = executor.submit(double, 21)
        assert_type(future, TaskFuture[int])
        try:
            assert_type(future.result(), int)
        except TaskTimeout as error:
            assert_type(error.timeout, float)
        except WorkerLost as error:
            assert_type(error.returncode, int | None)
        assert_type(future.usage, Usage | None)
        numbers: list[int] = [1, 2]
        assert_type(list(executor.map(double, numbers)), list[int])
    if False:
        ContainerExecutor(limits=Limits(memory="1G"), preload=["numpy"])
