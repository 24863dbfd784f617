"""Refusals of the kernel and invalid values: the error names the actual cause."""

import os
import re
import subprocess
import sys

import pytest

import containerkit
from containerkit import Capabilities, Container, Limits, Mount, SetupError, SpecError, run
from containerkit._native import constants as k

pytestmark = pytest.mark.usefixtures("nothing_left")

HERE = os.pathsep.join(path for path in sys.path if path)
USER = 49_000 + os.getpid() % 4000  # other test runs kill the processes of their own user
root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user, and mounting, needs root")


def said(code, *before, check=True, **more):
    """Return the output of a program that uses the library in a separate process."""
    names = ", ".join(name for name in containerkit.__all__ if re.search(rf"\b{name}\b", code))
    words = [*before, sys.executable, "-B", "-c", f"from containerkit import {names}\n{code}"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": HERE}, cwd="/", **more
    )
    assert not check or 0 == done.returncode, done.stderr
    return done.stdout


def telling(expression):
    return f"try: {expression}\nexcept SetupError as error: print(error)\nelse: print('done')"


def as_user(code):
    return said(code, user=USER, group=USER, extra_groups=[])


@root
@pytest.mark.parametrize(
    "start",
    ["run(['true'], mounts=[Mount.bind({0!r}, '/x')])", "run(['true'], rootfs=RootFS.dir({0!r}))"],
    ids=["bind", "root"],
)
def test_mount_below_that_maps_no_ids_is_the_one_that_is_named(tmp_path, start):
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    in_own_mounts = ("unshare", "--mount", "sh", "-c", f'mount -t proc proc {below} && exec "$0" "$@"')
    error = said(telling(start.format(str(tmp_path))), *in_own_mounts)
    assert f"id map of {below} (proc), which is mounted below {tmp_path}: Invalid argument (hint: " in error
    assert "idmap=False" in error


@root
def test_mount_that_maps_no_ids_itself_is_named():
    with pytest.raises(SetupError, match=r"id map of /proc/sys: Invalid argument .*idmap=False"):
        run(["true"], mounts=[Mount.bind("/proc/sys", "/x")])


@pytest.mark.parametrize("target", ["/proc/new", "/sys/a/new"])
def test_target_in_a_directory_of_the_kernel_reports_that_nothing_can_be_made_there(target):
    place = "/" + target.split("/")[1]
    with pytest.raises(SetupError, match=rf"hint: no file can be created in {place}: choose another target"):
        run(["true"], mounts=[Mount.tmpfs(target)])


@root
@pytest.mark.parametrize(
    "argument", ["rootfs=RootFS.overlay('/')", "mounts=[Mount.bind('/', '/x', recursive=False)]"], ids=["root", "bind"]
)
def test_tree_that_a_user_may_not_take_apart_is_not_called_missing(argument):
    error = as_user(telling(f"run(['true'], {argument})"))
    assert "open_tree /: Invalid argument (hint: it has mounts below that an unprivileged user can't" in error


@root
def test_user_without_a_place_for_groups_gets_an_error():
    code = "import os\nprint(any(os.access(path, os.W_OK) for path in CGroup.current().paths.values()))\n"
    calls = [f"run(['true'], limits={limits})" for limits in ("Limits()", "Limits(pids=50)")]
    for call in (*calls, "CGroup.create(limits=Limits())", "CGroup.create()"):
        has_place, told = as_user(code + telling(call)).splitlines()
        if has_place == "True":
            pytest.skip("this user was given a group of its own")
        assert told.startswith(
            ("make a control group: Permission denied (hint: this user can't create", "find controller")
        )


@root
def test_controller_that_nothing_mounts_names_no_argument_that_a_container_lacks():
    error = said(telling("run(['true'], limits=Limits(net_cls_classid=5))"))
    if "nothing mounts it" not in error:
        pytest.skip("the controller net_cls is mounted here, or not in the kernel")
    assert "mount -t cgroup -o net_cls, as root; CGroup.create(mount=True) mounts it for a group of your own" in error


@root
def test_process_that_changed_its_user_without_an_exec_gets_the_cause():
    code = f"import os, ctypes\nos.setgroups([]); os.setgid({USER}); os.setuid({USER})\n"
    error = said(code + telling("run(['true'])"))
    assert "changed its user" in error
    assert "PR_SET_DUMPABLE" in error
    assert "done\n" == said(code + "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n" + telling("run(['true'])"))


@root
def test_container_in_a_container_that_masks_proc_names_what_the_outer_one_needs():
    places = [path for path in HERE.split(os.pathsep) if os.path.isdir(path) and not path.startswith("/usr/")]
    shown = [Mount.bind(path, f"/shown/{number}", readonly=True) for number, path in enumerate(places)]
    code = f"import sys\nsys.path[:0] = {[mount.target for mount in shown]}\nfrom containerkit import *\n"
    how = {"nested_userns": True, "seccomp": None, "capabilities": Capabilities.all(), "mounts": shown, "text": True}
    words = ["/usr/bin/python3", "-B", "-c", code + telling("run(['true'])")]
    error = run(words, **how).stdout
    assert "fsmount proc: Operation not permitted (hint: " in error
    assert "masked_paths=() and readonly_paths=()" in error
    assert "done\n" == run(words, masked_paths=(), readonly_paths=(), **how).stdout


FEW_FILES = """
import os
{first}
taken = []
try:
    while True: taken.append(os.dup(0))
except OSError: pass
while True:
    try:
        {call}
    except SetupError as error:
        print(error)
    else: break
    os.close(taken.pop())
"""
RUN = "run(['true'])"
IN_A_CONTAINER = "c = Container().start(); c.run(['true'])"
IN_A_SANDBOX = "Sandbox(landlock=Landlock().allow_read('/').allow_execute('/')).run(['true'])"


@pytest.mark.parametrize(
    ("first", "call"),
    [
        ("run(['true'])", "run(['true'])"),
        ("run(['true'])", "run(['cat'], input='x', text=True)"),
        (IN_A_CONTAINER, "c.run(['true'])"),
        (IN_A_CONTAINER, "c.run(['cat'], input='x', text=True)"),
        (IN_A_CONTAINER, "p = c.popen(['cat'], stdin=PIPE, stdout=PIPE); p.communicate(b'x')"),
        (IN_A_CONTAINER, "p = c.popen(['true'], pty=True); p.wait()"),
        (IN_A_CONTAINER, "c.run(['true'], user='root')"),
        (IN_A_SANDBOX, IN_A_SANDBOX),
    ],
    ids=["run", "run input", "container", "container input", "popen", "terminal", "user", "sandbox"],
)
def test_limit_of_the_caller_itself_is_reported_as_such(first, call):
    lines = said(FEW_FILES.format(first=first, call=call)).splitlines()
    assert lines
    assert [] == [line for line in lines if "Too many open files (hint: " not in line or "ulimit -n" not in line]


# --- Filters around the caller


WITH_FILTER = """
import ctypes, struct
from containerkit._native import calls
program = struct.pack("=HBBI", 0x20, 0, 0, 0) + struct.pack("=HBBI", 0x15, 0, 1, {number})  # load the number; is it?
program += struct.pack("=HBBI", 0x06, 0, 0, 0x00050001) + struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)  # EPERM; allow
buffer = ctypes.create_string_buffer(program)
calls.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
calls.prctl(22, 2, struct.pack("=H6xQ", 4, ctypes.addressof(buffer)))  # PR_SET_SECCOMP, a filter
"""


@pytest.mark.parametrize(
    "call",
    [
        *("clone3", "close_range", "fsopen", "keyctl", "memfd_create", "mount_setattr", "move_mount", "open_tree"),
        *("openat2", "pidfd_open", "sethostname", "setns", "unshare"),
    ],
)
def test_each_call_that_a_filter_refuses_is_named(call):
    code = WITH_FILTER.format(number=k.SYSTEM_CALLS[call])
    error, listed = said(f"{code}{telling(RUN)}\nprint(probe().system_calls)").splitlines()
    assert re.search(rf": a seccomp filter of this process probably refuses ([\w ]* )?{call}[: ]", error), error
    assert f": {call}: operation not permitted" in listed
    assert f"--system-call-filter={call}" in listed


# --- Invalid values


def test_processors_as_text_are_no_number_rather_than_out_of_range():
    with pytest.raises(SpecError, match=r"cpus: '2' is not a number of processors; write for example cpus=1.5"):
        Limits(cpus="2")
    with pytest.raises(SpecError, match="out of range"):
        Limits(cpus=0)


def test_unknown_propagation_lists_the_known_ones():
    with pytest.raises(SpecError, match="'rslave' is not one of 'private', 'slave', 'shared', 'unbindable'"):
        Mount.bind("/srv", "/x", propagation="rslave")


def test_argument_that_is_misspelt_suggests_one_of_the_same_call():
    with Container() as box, Container.prepare() as template:
        for call in (run, box.run, template.run):
            with pytest.raises(SpecError, match=r"^run: unknown argument 'tiemout'; did you mean 'timeout'\?$"):
                call(["true"], tiemout=1)
        with pytest.raises(SpecError, match=r"^popen: unknown argument 'stdotu'; did you mean 'stdout'\?$"):
            box.popen(["true"], stdotu=None)
        with pytest.raises(SpecError, match=r"^popen: unknown argument 'timeout'; there are "):
            box.popen(["true"], timeout=1)
    with pytest.raises(SpecError, match=r"^Container: unknown argument 'limts'; did you mean 'limits'\?$"):
        Container(limts=None)
    with pytest.raises(SpecError, match=r"^Container: unknown argument 'colour'; there are .*hostname"):
        Container(colour="red")
