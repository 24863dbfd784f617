"""Libraries that run their calls with an executor: joblib and dask, unchanged."""

import os
import socket
import time
from functools import partial

import pytest

from containerkit import SpecError
from containerkit.executor import ContainerExecutor, TaskTimeout, WorkerLost

pytest.importorskip("cloudpickle")


def host_of(_):
    return socket.gethostname(), os.getpid()


def scaled(number, by):
    return number * by


def end_at(number, at):
    if number == at:
        os._exit(3)
    return number


def counted(path):
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


# --- joblib


@pytest.fixture
def joblib():
    found = pytest.importorskip("joblib")
    import containerkit.adapters.joblib  # noqa: F401 - registers it

    return found


@pytest.fixture(scope="module")
def shared():
    with ContainerExecutor(2, preload=["joblib"]) as made:
        yield made


def test_joblib_makes_each_call_in_a_container_of_its_own(joblib, shared):
    with joblib.parallel_config("containerkit", executor=shared):
        run = joblib.Parallel()
        assert [n * 3 for n in range(20)] == run(joblib.delayed(scaled)(n, by=3) for n in range(20))
        assert {"container"} == {name for name, _ in run(joblib.delayed(host_of)(n) for n in range(3))}
        assert [1, 1, 1] == run(joblib.delayed(counted)("/tmp/count") for _ in range(3))
        assert 2 == run._effective_n_jobs()


def test_joblib_receives_exceptions_and_goes_on(joblib, shared):
    with joblib.parallel_config("containerkit", executor=shared):
        with pytest.raises(ZeroDivisionError):
            joblib.Parallel()(joblib.delayed(divmod)(1, n) for n in (1, 0, 2))
        with pytest.raises(WorkerLost):
            joblib.Parallel()(joblib.delayed(end_at)(n, 1) for n in range(4))
        assert [0, 1] == joblib.Parallel()(joblib.delayed(end_at)(n, 9) for n in range(2))
        generated = joblib.Parallel(return_as="generator")(joblib.delayed(abs)(-n) for n in range(5))
        assert list(range(5)) == list(generated)


def test_joblib_makes_an_executor_of_its_own_with_options(joblib, left_of):
    def work():
        with joblib.parallel_config("containerkit", n_jobs=2, timeout=0.5, hostname="joblib"):
            run = joblib.Parallel()
            assert [("joblib", True)] * 2 == [
                (name, pid > 0) for name, pid in run(joblib.delayed(host_of)(n) for n in "ab")
            ]
            with pytest.raises(TaskTimeout):
                run(joblib.delayed(time.sleep)(n) for n in (30, 0))

    work()
    assert {} == left_of(work)
    with (
        joblib.parallel_config("containerkit", n_jobs=2, isolation="none"),
        pytest.raises(SpecError, match="isolation"),
    ):
        joblib.Parallel()(joblib.delayed(abs)(n) for n in range(2))


def test_joblib_inside_of_a_call_runs_there(joblib, shared):
    def outer(n):
        import joblib

        return joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, m) for m in range(3))

    with joblib.parallel_config("containerkit", executor=shared):
        assert [[1, 2, 4], [1, 3, 9]] == joblib.Parallel()(joblib.delayed(outer)(n) for n in (2, 3))
        with pytest.raises(ValueError, match="n_jobs"):
            joblib.Parallel(n_jobs=0)(joblib.delayed(abs)(n) for n in range(2))


# --- dask


def test_dask_runs_its_tasks_by_the_executor_as_it_is():
    dask = pytest.importorskip("dask")
    with ContainerExecutor(2, results="pickle") as made:
        total = dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(5)])
        assert 30 == total.compute(scheduler=made)
        with dask.config.set(scheduler=made):
            named = dask.delayed(host_of)(0)
            assert "container" == named.compute()[0]
            with pytest.raises(ZeroDivisionError):
                dask.delayed(divmod)(1, 0).compute()
            assert [8, 10] == list(dask.compute(dask.delayed(scaled)(4, by=2), dask.delayed(partial(scaled, by=2))(5)))
            bag = pytest.importorskip("dask.bag").from_sequence(range(10), npartitions=3)
            assert 285 == bag.map(lambda n: n * n).sum().compute()
