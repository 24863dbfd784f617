"""Capability sets in the real kernel: /proc/self/status shows the described sets."""

import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from security_child import in_child, status_field

from containerkit.errors import SetupError
from containerkit.security.capabilities import NAMES, Capabilities, after_setuid, before_setuid, no_new_privs
from containerkit.security.direct import perform

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SETS = {
    "bounding": "CapBnd",
    "permitted": "CapPrm",
    "effective": "CapEff",
    "inheritable": "CapInh",
    "ambient": "CapAmb",
}


def last_cap():
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def held():
    mask = int(status_field("CapBnd"), 16)
    return [name for number, name in enumerate(NAMES) if mask >> number & 1]


def become(wanted, uid):
    perform(before_setuid(wanted, last_cap=last_cap(), available=held()))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    perform(after_setuid(wanted))


def shown():
    return {name: int(status_field(field), 16) for name, field in SETS.items()}


def after_exec():
    out = subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(":", 1) for line in out.splitlines())
    return {name: int(fields[field].strip(), 16) for name, field in SETS.items()}


HELD = [name for name in NAMES if name in held()] if os.geteuid() == 0 else ["CAP_KILL"]


@settings(max_examples=25, deadline=None)
@given(
    names=st.lists(st.sampled_from(HELD), max_size=10),
    ambient=st.lists(st.sampled_from(HELD), max_size=5),
    uid=st.sampled_from([0, 65534]),
)
def test_sets_of_the_process_are_those_described(names, ambient, uid):
    wanted = Capabilities.of(*names).add(*ambient, ambient=True)

    def work():
        become(wanted, uid)
        return shown()

    assert {name: wanted.mask(name) for name in SETS} == in_child(work)


def test_none_leaves_root_without_any_after_exec():
    def work():
        become(Capabilities.none(), 0)
        return after_exec()

    assert dict.fromkeys(SETS, 0) == in_child(work)


def test_docker_gives_root_fourteen_after_exec_and_another_user_none():
    def work(uid):
        become(Capabilities.docker(), uid)
        return after_exec()

    mask = Capabilities.docker().mask("bounding")
    root = in_child(lambda: work(0))
    assert (mask, mask, mask, 0, 0) == tuple(root[name] for name in SETS)
    other = in_child(lambda: work(65534))
    assert (mask, 0, 0, 0, 0) == tuple(other[name] for name in SETS)


def test_ambient_capability_of_another_user_survives_exec_and_works():
    def work(wanted):
        become(wanted, 65534)
        code = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 87)); print('bound')"
        done = subprocess.run(["python3", "-c", code], check=False, capture_output=True, text=True)
        return [after_exec()["effective"], done.stdout.strip(), "PermissionError" in done.stderr]

    wanted = Capabilities.of("NET_BIND_SERVICE", ambient=True)
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        if int(file.read()) <= 87:
            pytest.skip("any user may bind low ports here (ip_unprivileged_port_start)")
    assert in_child(lambda: work(wanted)) == [wanted.mask("ambient"), "bound", False]
    assert in_child(lambda: work(Capabilities.none())) == [0, "", True]


def test_inheritable_set_of_the_caller_is_cleared():
    def work():
        become(Capabilities.of("KILL", ambient=True), 0)
        perform(after_setuid(Capabilities(bounding=["KILL"], permitted=["KILL"])))
        return shown()

    shown_ = in_child(work)
    assert (0, 0) == (shown_["inheritable"], shown_["ambient"])


def test_no_new_privs_is_set():
    def work():
        perform([no_new_privs()])
        return status_field("NoNewPrivs")

    assert in_child(work) == "1"


def test_securebits_take_the_privilege_from_being_root():
    wanted = Capabilities(
        bounding=["KILL", "CHOWN"], permitted=["KILL"], securebits=["noroot", "noroot_locked", "no_setuid_fixup"]
    )

    def work():
        become(wanted, 0)
        return after_exec()

    assert (0, 0) == tuple(in_child(work)[name] for name in ("permitted", "effective"))


def test_refusal_names_the_set_and_a_remedy():
    def work():
        os.setresuid(65534, 65534, 65534)
        try:
            perform(before_setuid(Capabilities.none(), last_cap=last_cap()))
        except SetupError as error:
            return str(error)

    assert in_child(work) == (
        "prctl drop CAP_CHOWN from the bounding set: Operation not permitted "
        "(hint: it needs CAP_SETPCAP: use a new user namespace, or start as root)"
    )
