"""Descriptions that let a command write files of the host, which therefore must not get set-id bits."""

import pytest

from containerkit import Capabilities, Mount, Namespaces, RootFS, SpecError
from containerkit.container.arguments import describe
from containerkit.security.confinement import Confinement
from containerkit.spec.container import Spec, build

HOST_USER = Namespaces(user="host")
SYS_ADMIN = Capabilities.of("SYS_ADMIN")


@pytest.mark.parametrize(
    ("fields", "writes"),
    [
        ({}, False),
        ({"namespaces": HOST_USER}, False),
        ({"capabilities": SYS_ADMIN}, False),
        ({"namespaces": HOST_USER, "capabilities": SYS_ADMIN}, True),
        ({"namespaces": Namespaces(pid="host")}, False),
        ({"namespaces": Namespaces(user="host", pid="host")}, True),
        ({"namespaces": Namespaces(user="host", mount="host")}, True),
        ({"mounts": [Mount.bind("/srv", "/srv")]}, True),
        ({"mounts": [Mount.bind("/srv", "/srv", idmap=False)]}, True),
        ({"mounts": [Mount.bind("/srv", "/srv", readonly=True)]}, False),
        ({"mounts": [Mount.bind("/srv", "/srv", readonly=True), Mount.bind("/opt", "/opt")]}, True),
        ({"mounts": [Mount.bind("/srv", "/srv", readonly=True)], "capabilities": SYS_ADMIN}, True),
        ({"mounts": [Mount.tmpfs("/srv"), Mount.proc("/proc2"), Mount.cgroup()]}, False),
        ({"mounts": [Mount(type="ext4", source="/dev/sdz", target="/srv")]}, True),
        ({"rootfs": RootFS.host(readonly=True)}, False),
        ({"rootfs": RootFS.host(readonly=True), "capabilities": SYS_ADMIN}, True),
        ({"rootfs": RootFS.tmpfs()}, False),
        ({"rootfs": RootFS.dir("/srv")}, True),
        ({"rootfs": RootFS.dir("/srv", readonly=True)}, False),
        ({"rootfs": RootFS.overlay("/srv")}, False),
        ({"rootfs": RootFS.overlay("/srv", upper="/upper")}, True),
        ({"rootfs": RootFS.image("box:1")}, True),
    ],
)
def test_descriptions_that_write_to_the_host(fields, writes):
    spec = build(fields)
    assert writes == spec.writes_to_host(spec.confinement)
    assert (not writes) == describe(spec, ["true"], {}).confinement.set_id_bits
    assert describe(spec, ["true"], {"set_id_bits": True}).confinement.set_id_bits
    assert describe(build({**fields, "set_id_bits": False}), ["true"], {}).confinement.set_id_bits is False


def test_root_of_a_provider_counts():
    spec = Spec(rootfs=RootFS.image("box:1"))
    assert not spec.writes_to_host(spec.confinement, RootFS.overlay("/srv"))
    assert spec.writes_to_host(spec.confinement, RootFS.overlay("/srv", upper="/upper"))


def test_capabilities_of_a_command_count():
    spec = Spec(mounts=[Mount.bind("/srv", "/srv", readonly=True)])
    assert describe(spec, ["true"], {}).confinement.set_id_bits
    assert not describe(spec, ["true"], {"capabilities": SYS_ADMIN}).confinement.set_id_bits


def test_unresolved_confinement_refuses_set_id_bits():
    filtered, relaxed = Confinement().filter, Confinement(set_id_bits=True).filter
    assert {"chmod", "openat2"} <= {name for rule in filtered.rules if not rule.action.permits for name in rule.names}
    assert relaxed.rules == filtered.rules[-len(relaxed.rules) :]


@pytest.mark.parametrize("value", [0, 1, "yes", [], 1.0])
def test_set_id_bits_that_is_not_a_boolean_is_refused(value):
    with pytest.raises(SpecError, match="set_id_bits"):
        build({"set_id_bits": value})
