"""Device rules of version 2 as BPF programs: loaded into this kernel, and their effect on a process in a group."""

import errno
import os

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerkit._linux import mountinfo
from containerkit.cgroup.device_program import attach_device_program
from containerkit.cgroup.device_rules import DeviceRule

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loading programs needs CAP_BPF")

UNIFIED = next((mount.mount_point for mount in mountinfo.read() if mount.filesystem == "cgroup2"), None)
NODES = {"/dev/null": (1, 3), "/dev/zero": (1, 5), "/dev/full": (1, 7)}
WAYS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}


@pytest.fixture
def group():
    """A descriptor of a new version 2 group. No controller is needed."""
    if UNIFIED is None:
        pytest.skip("cgroup2 is mounted nowhere")
    path = f"{UNIFIED}/containerkit-devices-test-{os.getpid()}"
    os.mkdir(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
        os.rmdir(path)


def allowed(rules, node, way):
    """The meaning of the rules: the last one that covers the whole access allows, the last one that covers a part denies."""
    for rule in reversed(rules):
        covers = rule.kind in "ac" and rule.major in (None, node[0]) and rule.minor in (None, node[1])
        if covers and rule.allow and set(way) <= set(rule.access):
            return True
        if covers and not rule.allow and set(way) & set(rule.access):
            return False
    return False


def opened(group):
    """Return what a process in the group can open."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            at = os.open("cgroup.procs", os.O_WRONLY, dir_fd=group)
            os.write(at, b"0")
            for path in NODES:
                for flags in WAYS.values():
                    try:
                        os.close(os.open(path, flags))
                        os.write(writer, b"y")
                    except OSError as error:
                        os.write(writer, b"n" if error.errno == errno.EPERM else b"?")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        verdicts = iter(file.read())
    os.waitpid(child, 0)
    return {(path, way): next(verdicts, "") for path in NODES for way in WAYS}


def expected(rules):
    return {(path, way): "y" if allowed(rules, node, way) else "n" for path, node in NODES.items() for way in WAYS}


RULES = st.builds(
    DeviceRule,
    kind=st.sampled_from("aabc"),
    major=st.sampled_from([None, None, 1, 5]),
    minor=st.sampled_from([None, None, 3, 5]),
    access=st.sampled_from(["rwm", "rwm", "r", "w", "rw", "m"]),
    allow=st.booleans(),
)


@settings(
    max_examples=examples(ci=30, nightly=120),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rules=st.lists(RULES, max_size=6))
def test_verdicts_are_those_of_the_last_rule_that_decides(group, rules):
    attach_device_program(group, rules)
    assert expected(rules) == opened(group)


@pytest.mark.parametrize(
    "texts",
    [
        [(True, "a")],
        [(False, "a")],
        [(True, "c 1:3 r"), (True, "a")],
        [(True, "c 1:3 r"), (False, "a"), (True, "c 1:5 rw")],
        [(True, "a"), (False, "c 1:3 w")],
        [(True, "a *:* rwm"), (True, "a *:* rwm")],
    ],
)
def test_rules_for_all_devices_decide_at_any_position(group, texts):
    rules = [DeviceRule.parse(text, allow=allow) for allow, text in texts]
    for _ in range(2):  # the second takes the first one's place, as in an update
        attach_device_program(group, rules)
        assert expected(rules) == opened(group)
