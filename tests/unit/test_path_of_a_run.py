"""The path of a ``run``: the number of modules, and of calls from one module to another."""

import os
import sys

import pytest

import containerkit
from containerkit import ContainerError, User, _native, run

MODULES = 9
CROSSINGS = 25
REMEDY = (
    "keep the path of a warm run short: look up what does not change from run to run once (a cached property, the recipe), "
    "and let a layer that only passes on go"
)
HERE = os.path.dirname(containerkit.__file__) + os.sep


def module_of(frame):
    """Return the module of containerkit that a frame is of, None for another's."""
    path = frame.f_code.co_filename
    return path[len(HERE) :] if path.startswith(HERE) else None


def calls_of(work):
    """Return each call into containerkit: the module that called, None for another's, and the module that was called."""
    calls = []

    def look(frame, event, _):
        if event == "call" and (called := module_of(frame)) is not None:
            caller = frame.f_back
            while caller is not None and module_of(caller) is None:
                caller = caller.f_back
            calls.append((None if caller is None else module_of(caller), called))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


def crossings(calls):
    return [pair for pair in calls if pair[0] is not None and pair[0] != pair[1]]


def test_path_of_a_warm_run_is_short():
    try:
        run(["true"])
    except ContainerError as error:
        pytest.skip(f"no container can be started here: {error}")
    if _native.interpreter().Run is None:
        pytest.skip("the path with the compiled interpreter")
    run(["true"])
    calls = calls_of(lambda: run(["true"]))
    modules = {called for _, called in calls}
    crossed = crossings(calls)
    shown = "\n".join(f"{caller} -> {called}" for caller, called in crossed)
    assert "container/run.py" in modules
    assert "_native/compiled.py" in modules
    assert len(modules) <= MODULES, f"{sorted(modules)}: {REMEDY}"
    assert len(crossed) <= CROSSINGS, f"{len(crossed)} calls from module to module; {REMEDY}:\n{shown}"


def test_crossings_are_counted_from_the_nearest_module():
    # The call from here is none; __attrs_post_init__, called by code that attrs has made, calls sequence() in words.py.
    assert crossings(calls_of(lambda: User(1))) == [("spec/command.py", "spec/words.py")]
