"""The host's ids of a container belong to no one else: for root, for a user with ranges, and for a user without."""

import errno
import itertools
import json
import os
import subprocess
import sys

import pytest
from attacker import (
    EVERYTHING,
    SUBIDS,
    USER,
    armed,
    as_user,
    attempt,
    attempt_in,
    become,
    cover,
    in_child,
    in_user_namespace,
    load_everything,
)

from containerkit import Container, IdMapping, Namespaces, SpecError, UnsupportedError, run
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.start.id_ranges import RANGE, lease

pytestmark = pytest.mark.usefixtures("nothing_left")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="ordinary users have no ranges to lend")


def uid_map(container):
    """Return the id map of a container: (inside, outside, count) of each line."""
    lines = container.run(["cat", "/proc/self/uid_map"], text=True, check=True).stdout.splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def overlap(ranges):
    ordered = sorted((first, first + count) for _, first, count in ranges)
    return any(one[1] > two[0] for one, two in itertools.pairwise(ordered))


# --- Ranges of root


@needs_root
def test_live_containers_have_no_id_in_common():
    containers = [Container().start() for _ in range(12)]
    try:
        maps = [entry for container in containers for entry in uid_map(container)]
    finally:
        for container in containers:
            container.stop()
    assert [RANGE] * 12 == [count for _, _, count in maps]
    assert not overlap(maps)


@needs_root
def test_containers_of_other_processes_have_no_id_in_common():
    code = "from containerkit import run; print(run(['cat', '/proc/self/uid_map'], text=True).stdout); input()"
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        maps = [tuple(map(int, other.stdout.readline().split())) for other in others]
        with Container() as container:
            maps += uid_map(container)
    finally:
        for other in others:
            other.communicate("\n")
    assert not overlap(maps)


@needs_root
def test_ids_are_far_from_those_of_users():
    with Container() as container:
        [(inside, outside, _)] = uid_map(container)
    assert (0, True) == (inside, outside >= 2**16)


@needs_root
def test_processes_belong_to_no_user_of_the_host():
    """Seen from outside, root of the container is a user that does not exist."""
    with Container() as container, container.popen(["sleep", "30"]) as sleeper:
        with open(f"/proc/{sleeper.pid}/status") as file:
            uids = next(line.split()[1:] for line in file if line.startswith("Uid:"))
        sleeper.kill()
    assert [uids[0]] * 4 == uids
    assert int(uids[0]) >= 2**16


@needs_root
def test_root_inside_is_not_root_of_a_bind(tmp_path):
    """With id maps files keep their numbers, and writing a file gives it no id of the machine."""
    from containerkit import Mount

    tmp_path.chmod(0o777)
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    plain = Mount.bind(tmp_path, "/bound", idmap=False)
    assert "EACCES" == attempt("read-file", "/bound/secret", mounts=[plain])
    assert "EACCES" == attempt("read-file", "/bound/secret", mounts=[plain], **EVERYTHING)
    assert "done" == attempt("read-file", "/bound/secret", mounts=[Mount.bind(tmp_path, "/bound")])


@needs_root
def test_user_host_is_the_documented_exception():
    """It is root of the machine then, but without its capabilities."""
    done = run(["cat", "/proc/self/uid_map"], namespaces=Namespaces(user="host"), text=True)
    with open("/proc/self/uid_map") as file:
        assert file.read() == done.stdout
    caps = run(["grep", "^Cap", "/proc/self/status"], namespaces=Namespaces(user="host"), text=True).stdout.split()
    assert {"0000000000000000"} == set(caps[1::2])


def granted(text, work):
    """Run a function with other contents of /etc/subuid and /etc/subgid."""
    return in_child(work, lambda: cover({"/etc/subuid": text, "/etc/subgid": text}))


def firsts(count):
    """Return the first ids of several containers that live at the same time."""
    containers = [Container().start() for _ in range(count)]
    try:
        return [entry[1] for container in containers for entry in uid_map(container)]
    finally:
        for container in containers:
            container.stop()


needs_files = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/etc/subuid") or not os.path.exists("/etc/subgid"),
    reason="needs root, and an /etc/subuid to put another over",
)


@needs_files
def test_range_that_root_is_granted_is_used():
    assert [SUBIDS] == granted(f"root:{SUBIDS}:{RANGE}\n", lambda: firsts(1))


@needs_files
def test_larger_grant_is_divided_among_containers():
    text = f"somebody:5000:70000\nroot:{SUBIDS}:{3 * RANGE + 5}\n"
    assert [SUBIDS, SUBIDS + RANGE, SUBIDS + 2 * RANGE] == sorted(granted(text, lambda: firsts(3)))


@needs_files
def test_grant_to_the_user_containerkit_is_used_first():
    text = f"root:{SUBIDS}:{RANGE}\ncontainerkit:{SUBIDS + 5 * RANGE}:{RANGE}\n"
    assert [SUBIDS + 5 * RANGE] == granted(text, lambda: firsts(1))


@needs_files
def test_container_without_a_free_granted_range_gets_one_of_the_librarys():
    first, second = granted(f"root:{SUBIDS}:{RANGE}\n", lambda: firsts(2))
    assert first == SUBIDS
    assert abs(second - SUBIDS) >= RANGE


@needs_files
def test_granted_range_is_used_again_after_its_container():
    assert [SUBIDS] * 3 == granted(f"root:{SUBIDS}:{RANGE}\n", lambda: firsts(1) + firsts(1) + firsts(1))


@needs_files
def test_grant_too_small_for_a_container_is_not_used():
    assert [True] == granted(f"root:{SUBIDS}:1000\n", lambda: [first != SUBIDS for first in firsts(1)])


@needs_root
def test_range_is_given_back_once():
    one = lease()
    assert "held" in repr(one)
    one.release()
    one.release()
    two, three = lease(), lease()
    assert two.base != three.base
    two.release()
    three.release()
    assert "released" in repr(one)


@needs_files
def test_granted_range_of_another_process_is_left_alone():
    """The lock of the other process decides: two processes have the same grant."""
    text = f"root:{SUBIDS}:{2 * RANGE}\n"

    def work():
        mine = lease()
        other = in_child(lambda: lease().base)
        mine.release()
        return [mine.base, other]

    assert [SUBIDS, SUBIDS + RANGE] == granted(text, work)


# --- Groups


@needs_root
def test_supplementary_groups_of_the_caller_are_left():
    """The container does not have a group of the caller through which it could read."""

    def work():
        os.setgroups([4, 27, 42])
        return attempt("who").split()

    assert ["0", "0", "0", "0"] == in_child(work)


def test_groups_cannot_be_dropped():
    assert "EPERM" == attempt("drop-groups")


# --- The same for every caller

CORE = {
    "unshare": (("unshare", 0x10000000), {"EPERM"}),
    "mount": (("mount-tmpfs", "/mnt"), {"EPERM"}),
    "init": (("attach", 1), {"EPERM"}),
    "init's memory": (("write-file", "/proc/1/mem", "x"), {"EACCES"}),
    "init's program": (("write-file", "/proc/1/exe", "x"), {"EACCES", "ETXTBSY"}),
    "device": (("make-device", "/tmp/null"), {"EPERM"}),
    "raw socket": (("make-socket", 2, 3, 1), {"EPERM"}),
    "interfaces": (("interfaces",), {"lo"}),
    "io_uring": (("io-uring",), {"EPERM"}),
    "key": (("add-key",), {"EPERM"}),
    "kernel parameter": (("write-file", "/proc/sys/kernel/core_pattern", "x"), {"EROFS", "EACCES"}),
    "sysfs": (("create-file", "/sys/kernel/attack"), {"EROFS", "EACCES"}),
    "groups": (("drop-groups",), {"EPERM"}),
    "user": (("become", 1), {"EPERM", "EINVAL"}),
    "node of a device": (("change-mode", "/dev/null", "777"), {"EROFS", "EPERM"}),
    "password": (("read-file", "/etc/shadow"), {"EACCES", "ENOENT"}),
}
SECOND = {  # what still protects without a filter and with every capability inside
    "userns": (("unshare", 0x10000000), {"ENOSPC"}),
    "device": (("make-device", "/tmp/null"), {"EPERM"}),
    "init's program": (("write-file", "/proc/1/exe", "x"), {"EACCES", "ETXTBSY", "EPERM"}),
    "kernel parameter": (("write-file", "/proc/sys/kernel/core_pattern", "x"), {"EROFS", "EACCES"}),
    "sysfs": (("create-file", "/sys/kernel/attack"), {"EROFS", "EACCES"}),
    "node of a device": (("change-mode", "/dev/null", "777"), {"EROFS", "EPERM"}),
    "the caller": (("signal", 2**22, 9), {"ESRCH"}),
}


def core():
    """Try the main attacks. Return the outcome of each."""
    with Container(mounts=armed()) as container:
        answers = {name: attempt_in(container, *words) for name, (words, _) in CORE.items()}
    with Container(mounts=armed(), **EVERYTHING) as container:
        # If the container's root is the caller's own user, init's image also belongs to it, but it is sealed.
        attempt_in(container, "change-mode", "/proc/1/exe", "777")
        answers |= {f"without {name}": attempt_in(container, *words) for name, (words, _) in SECOND.items()}
    return answers


@pytest.mark.parametrize("caller", ["root", "user with ranges", "user without ranges"])
def test_core_holds_for_every_caller(caller):
    if caller == "root":
        if os.geteuid() != 0:
            pytest.skip("not root")
        answers = core()
    else:
        answers = as_user(core, ranges=caller == "user with ranges")
    expected = {**CORE, **{f"without {name}": attack for name, attack in SECOND.items()}}
    assert {} == {name: said for name, said in answers.items() if said not in expected[name][1]}


@pytest.mark.parametrize(("ranges", "count"), [(True, 65537), (False, 1)])
def test_ids_of_an_unprivileged_user(ranges, count):
    def work():
        with Container() as container:
            return {
                "map": uid_map(container),
                "setgroups": container.run(["cat", "/proc/self/setgroups"], text=True).stdout.strip(),
                "who": container.run(["id", "-u"], text=True).stdout.strip(),
            }

    found = as_user(work, ranges=ranges)
    assert count == sum(entry[2] for entry in found["map"])
    assert ("allow" if ranges else "deny") == found["setgroups"], "CVE-2014-8989"
    assert "0" == found["who"]


def test_user_without_ranges_has_only_one_id():
    def work():
        answers = []
        for options in ({"user": "1000:1000"}, {"user": "0:0", "groups": [5]}):
            try:
                run(["true"], **options)
                answers.append("done")
            except (SpecError, OSError) as error:
                answers.append(str(error))
        return answers

    user, groups = as_user(work, ranges=False)
    assert "not mapped" in user
    assert "/etc/subgid" in groups


def test_user_with_ranges_has_many_ids():
    def work():
        done = run(["id"], user="1000:1001", groups=[5], text=True)
        return done.stdout

    said = as_user(work, ranges=True)
    assert "uid=1000" in said
    assert "gid=1001" in said


def test_user_cannot_use_ids_of_other_users():
    def work():
        try:
            run(["true"], uid_mappings=[IdMapping(0, 0, 1)], gid_mappings=[IdMapping(0, 0, 1)])
        except SpecError as error:
            return str(error)

    assert "not granted" in as_user(work, ranges=False)


def test_user_cannot_share_its_user_namespace():
    def work():
        try:
            run(["true"], namespaces=Namespaces(user="host"))
        except UnsupportedError as error:
            return str(error)

    assert "only a privileged caller" in as_user(work, ranges=False)


# --- Hosts that forbid user namespaces


@pytest.mark.parametrize("name", ["max_user_namespaces", "max_mnt_namespaces", "max_pid_namespaces"])
@pytest.mark.parametrize("uid", [0, USER], ids=["root", "user"])
def test_limit_that_forbids_namespaces_is_named(name, uid):
    """It is lowered in a user namespace of the test. The machine's value is not changed."""

    def work():
        with open(f"/proc/sys/user/{name}", "w") as file:
            file.write("0")
        if uid:
            become(uid)
        run(["true"])

    with pytest.raises(UnsupportedError, match=rf"user\.{name} is 0 here") as caught:
        in_user_namespace(work)
    assert errno.ENOSPC == caught.value.errno


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
    ],
)
def test_rule_that_forbids_user_namespaces_is_named(path, value):
    """A filter around the caller makes the kernel refuse. The rule is written where the kernel would have it.

    This kernel has neither rule, so a directory of the test is mounted over /proc/sys/kernel.
    """
    if os.path.exists(path):
        pytest.skip("this kernel has the rule, and it must not be changed")
    from containerkit import Condition, Seccomp
    from containerkit.security.direct import perform

    refusing = Seccomp.permissive().deny("clone3").deny(
        "clone", "unshare", when=[Condition(argument=0, op="masked_eq", mask=k.CLONE_NEWUSER, value=k.CLONE_NEWUSER)]
    )  # fmt: skip

    def work():
        cover({path: value + "\n"})
        become(USER)
        calls.prctl(k.PR_SET_NO_NEW_PRIVS, 1)
        perform(refusing.operations())
        run(["true"])

    if os.geteuid() != 0:
        pytest.skip("covering a file of /proc takes root")
    load_everything()
    with pytest.raises(UnsupportedError) as caught:
        in_child(work)
    assert os.path.basename(path) in caught.value.hint


def test_root_of_a_user_namespace_has_containers():
    """A namespace as 'unshare -Ur' creates it: root inside, an unprivileged user on the machine."""
    done = subprocess.run(
        [
            "unshare",
            "-Ur",
            sys.executable,
            "-c",
            "import containerkit as c; print(c.run(['id', '-u'], text=True).stdout)",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("this host forbids user namespaces")
    assert "0" == done.stdout.strip(), done.stderr


def test_error_is_unchanged_by_pickling():
    error = UnsupportedError("clone", errno.EPERM, "user namespace", "sysctl")
    assert str(error) == str(UnsupportedError(*json.loads(json.dumps(error.__reduce__()[1]))))
