"""The attempts of test_lookup.py for containers of the OCI command."""

import os

import pytest
from oci_bundles import ONE
from oci_escapes import group, oci, own_rootfs, rootfs, spoilt  # noqa: F401 - fixtures
from test_lookup import MARK, at_the_exec, compiled_victim, needs_strace, open_directory, plant

from containerkit import Container

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root: its containers are compared with a peer's there")

FEW = range(3, 26)
"""The descriptor numbers that a process of the OCI command has."""


@pytest.fixture
def planted(own_rootfs):  # noqa: F811 - a fixture
    with open_directory() as directory:
        victim = compiled_victim(directory)
        for number in FEW:
            plant(own_rootfs, f"{number}", f"/proc/self/fd/{number}" + "/.." * 12 + str(victim))
        for name, path in {"exe": "/proc/self/exe", "cwd": "/proc/self/cwd" + "/.." * 12 + str(victim)}.items():
            plant(own_rootfs, name, path)
        yield sorted(f"/{entry.name}" for entry in own_rootfs.iterdir() if "-" in entry.name)


def chosen(names):
    """Use one number of each kind, and all symlinks, because each start takes a third of a second."""
    return [name for name in names if "link" in name or name.endswith(("exe", "cwd", "-7"))]


def test_no_resource_of_the_runtime_can_be_executed_by_exec(oci, spoilt, planted):  # noqa: F811 - the fixture, not a new function
    oci.start_one(spoilt.runs("sleep 60"))
    for name in chosen(planted):
        done = oci("exec", ONE, name, check=False)
        assert done.returncode != 0, name
        assert MARK not in done.stdout + done.stderr, name


def test_no_resource_of_the_runtime_can_be_the_program(oci, spoilt, planted):  # noqa: F811 - the fixture, not a new function
    for name in chosen(planted):
        done = oci.run(spoilt.runs(name), check=False)
        assert done.returncode != 0, name
        assert MARK not in done.stdout + done.stderr, name
        oci("delete", "--force", ONE, check=False)


def test_no_resource_of_the_caller_can_be_executed_in_an_attached_container(oci, spoilt, planted):  # noqa: F811 - the fixture, not a new function
    oci.start_one(spoilt.runs("sleep 60"))
    with Container.attach(ONE, oci.root) as attached:
        for name in planted:
            try:
                done = attached.run([name], text=True, timeout=20)
            except OSError:
                continue
            assert done.returncode != 0, name
            assert MARK not in done.stdout + done.stderr, name


@needs_strace
@pytest.mark.parametrize("verb", ["run", "exec"])
def test_program_has_only_its_own_descriptors_at_its_exec(oci, spoilt, verb):  # noqa: F811 - the fixture, not a new function
    if verb == "exec":
        oci.start_one(spoilt.runs("sleep 60"))
        words = ("exec", ONE, "/bin/true")
    else:
        spoilt.runs("/bin/true").write()
        words = ("run", "--bundle", str(spoilt.path), ONE)
    strace = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=execve", "-e", "inject=execve:delay_enter=300000"]
    oci.words = [*strace, *oci.words]
    try:
        with oci.popen(*words) as traced:
            assert {"0", "1", "2"} == at_the_exec(traced)
    finally:
        oci.words = oci.words[len(strace) :]
