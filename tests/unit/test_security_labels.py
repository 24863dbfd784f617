"""LSM labels and personalities. Their operations are performed on files that imitate procfs."""

import os

import pytest

from containerkit.errors import SetupError, SpecError, UnsupportedError
from containerkit.plan.operation import Slot
from containerkit.plan.tape import Plan
from containerkit.security.direct import perform
from containerkit.security.lsm import AppArmor, SELinux, active
from containerkit.security.personality import Personality

CONTEXT = "system_u:system_r:container_t:s0:c1,c2"


@pytest.fixture
def proc(tmp_path):
    """A directory that looks like procfs, and its descriptor."""
    directory = tmp_path / "thread-self/attr"
    directory.mkdir(parents=True)
    (directory / "exec").write_text("")
    descriptor = os.open(tmp_path, os.O_PATH)
    yield directory, descriptor
    os.close(descriptor)


def test_apparmor_profile_is_asked_for_with_the_next_exec(proc):
    directory, descriptor = proc
    assert perform(
        AppArmor("docker-default").operations(modules={"apparmor"}, proc=Slot("proc")), {"proc": descriptor}
    ) == {"proc": descriptor}
    assert (directory / "exec").read_text() == "exec docker-default"


def test_apparmor_has_its_own_directory_where_modules_are_stacked(proc):
    directory, descriptor = proc
    (directory / "apparmor").mkdir()
    (directory / "apparmor/exec").write_text("")
    perform(AppArmor("docker-default").operations(modules={"apparmor"}, proc=descriptor))
    assert ("", "exec docker-default") == ((directory / "exec").read_text(), (directory / "apparmor/exec").read_text())


def test_selinux_context_is_written_as_it_is(proc):
    directory, descriptor = proc
    perform(SELinux(CONTEXT).operations(modules={"selinux"}, proc=descriptor))
    assert (directory / "exec").read_text() == CONTEXT


@pytest.mark.parametrize(("label", "module"), [(AppArmor("x"), "apparmor"), (SELinux(CONTEXT), "selinux")])
def test_label_without_its_module_is_unsupported(label, module):
    with pytest.raises(UnsupportedError, match=f"doesn't enforce {module}.*pass {module}=None"):
        label.operations(modules={"landlock"})


@pytest.mark.parametrize(("label", "module"), [(AppArmor("x"), "apparmor"), (SELinux(CONTEXT), "selinux")])
def test_label_that_the_kernel_refuses_is_an_error(label, module):
    if module in active():
        pytest.skip(f"{module} is enforced here")
    with pytest.raises(SetupError, match=f"{module}=None"):
        perform(label.operations(modules={module}))


@pytest.mark.parametrize("wrong", ["", " x", "a\nb", "a\0b", "a\x7f"])
def test_label_with_invalid_characters_is_refused(wrong):
    for kind in (AppArmor, SELinux):
        with pytest.raises(SpecError):
            kind(wrong)


@pytest.mark.parametrize("wrong", ["container_t", "a:b", "a::c", "a:b:c d"])
def test_selinux_context_of_another_form_is_refused(wrong):
    with pytest.raises(SpecError, match="not an SELinux context"):
        SELinux(wrong)


def test_selinux_mount_option_is_quoted_where_it_has_commas():
    assert SELinux(CONTEXT).mount_options() == {"context": f'"{CONTEXT}"'}
    assert SELinux("u:r:t:s0").mount_options() == {"context": "u:r:t:s0"}


def test_active_modules_are_read_from_securityfs_or_found_by_their_files(tmp_path):
    assert active(str(tmp_path)) == frozenset()
    (tmp_path / "sys/module/apparmor/parameters").mkdir(parents=True)
    (tmp_path / "sys/module/apparmor/parameters/enabled").write_text("Y\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/filesystems").write_text("nodev\tselinuxfs\nnodev\tproc\n")
    assert active(str(tmp_path)) == {"apparmor", "selinux"}
    (tmp_path / "sys/kernel/security").mkdir(parents=True)
    (tmp_path / "sys/kernel/security/lsm").write_text("capability,landlock,bpf\n")
    assert active(str(tmp_path)) == {"capability", "landlock", "bpf"}


def test_labels_encode_to_a_plan():
    steps = AppArmor("x").operations(modules={"apparmor"}) + SELinux(CONTEXT).operations(modules={"selinux"})
    assert Plan(steps).encode().steps


def test_personality_has_the_kernels_number():
    assert [0, 8, 0x40008] == [
        each.value
        for each in (Personality(), Personality("LINUX32"), Personality("LINUX32", flags=["addr_no_randomize"]))
    ]
    assert str(Plan((Personality("LINUX32").operation(),))) == "  0 personality LINUX32"


@pytest.mark.parametrize("wrong", [{"domain": "SOLARIS"}, {"flags": ["fast"]}, {"flags": "uname26"}])
def test_personality_unknown_is_refused(wrong):
    with pytest.raises(SpecError):
        Personality(**wrong)
