"""Descriptions are built, compared, hashed, pickled, and compiled to a plan, without touching anything."""

import os
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import Command, IdMapping, Mount, Namespaces, RootFS, SpecError, User
from containerkit.compile.facts import Host, Mode
from containerkit.compile.joining import Joining
from containerkit.compile.start import start_plan
from containerkit.spec.container import Spec, build
from containerkit.spec.idmap import check_mappings, mapping_text
from containerkit.spec.words import path_inside, size_text
from containerkit.start.id_ranges import subordinate

VALUES = [
    RootFS.host(size="1M"),
    RootFS.dir("/srv/x", readonly=True),
    RootFS.overlay("/a", "/b", upper="/c"),
    RootFS.tmpfs("1M"),
    Mount.bind("/a", "/b", readonly=True),
    Mount.tmpfs("/x", size=1024, inodes=5),
    Mount.overlay("/m", "/l", upper="/u", work="/w"),
    Mount.proc("/p", hidepid="invisible"),
    Mount.cgroup(),
    IdMapping(0, 1000, 5),
    User(1, 2, (3,)),
    Namespaces(network="host"),
    Command(argv=["a", "b"], env={"A": "b"}, rlimits={"nofile": 5}),
    Spec(),
    build({"hostname": "x", "sysctls": {"net.ipv4.ip_forward": 1}}),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_descriptions_are_values(value):
    again = pickle.loads(pickle.dumps(value))
    assert value == again
    assert hash(value) == hash(again)
    assert type(value).__name__ in repr(value)
    with pytest.raises(AttributeError):
        value.nothing_of_the_kind = 1


def test_importing_the_package_is_cheap():
    """It must not import modules that are slow to import and needed only later."""
    import subprocess

    code = "import sys, containerkit; print(*[n for n in ('attrs', 'attr', 'typing', 'json', 're', 'asyncio', 'ctypes', 'cffi', '_cffi_backend', 'subprocess') if n in sys.modules])"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(sys.modules['containerkit'].__file__))!r}); {code}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\n" == done.stdout


def test_public_names_are_sorted_and_all_there():
    import containerkit

    assert containerkit.__all__ == sorted(
        containerkit.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )
    for name in containerkit.__all__:
        assert getattr(containerkit, name) is not None
    assert set(containerkit.__all__) <= set(dir(containerkit))
    with pytest.raises(AttributeError, match="no_such_name"):
        containerkit.no_such_name  # noqa: B018 - the access is the test


# --- Plans of descriptions -------------------------------------------------------------------------------------------


def plan_of(spec, mode=None, **host):
    return start_plan(
        spec, Host(**{"privileged": True, "programs": ("usr",), **host}), mode or Mode(command=Command(argv=["true"]))
    )


def test_the_same_description_gives_the_same_plan():
    assert plan_of(Spec()) == plan_of(Spec())


@pytest.mark.parametrize(
    ("fields", "is_last"),
    [
        ({}, True),
        ({"mounts": [Mount.tmpfs("/mnt")]}, False),  # /mnt may be a symlink to /sys
        ({"masked_paths": ("/proc/kcore", "/alias/firmware")}, False),
        ({"readonly_paths": ("/sys",)}, False),
        ({"namespaces": Namespaces(network="host")}, False),
    ],
)
def test_sys_is_mounted_last_where_nothing_else_leads_there(fields, is_last):
    text = [step.describe() for step in plan_of(build(fields))]
    covered = max(at for at, line in enumerate(text) if line.startswith("move_mount /proc/"))
    assert is_last == (covered < text.index("move_mount /sys"))
    assert is_last == (text.index("pivot_root .") < text.index("move_mount /sys"))
    assert is_last == (text.index("umount2 .") < text.index("move_mount /sys"))
    assert 1 == text.count("umount2 .")


@pytest.mark.parametrize(
    ("fields", "host", "is_beside"),
    [
        ({}, {}, True),
        ({"namespaces": Namespaces(user="host")}, {}, True),
        ({"namespaces": Namespaces(mount="host")}, {}, False),
        ({}, {"privileged": False}, False),
        ({}, {"joins": Joining(new=True, limit=b"1")}, False),
    ],
)
def test_network_namespace_is_made_beside_where_both_stages_share_their_gates(fields, host, is_beside):
    text = str(plan_of(build(fields), **host))
    assert is_beside == ("unshare network namespace" in text)
    assert is_beside != (", network" in text)


def test_parameters_of_the_network_are_set_after_it_is_joined():
    text = [step.describe() for step in plan_of(build({"sysctls": {"net.ipv4.ip_forward": 1}}))]
    by_stage_1, by_stage_2 = (at for at, line in enumerate(text) if line == "setns network namespace")
    assert by_stage_1 < by_stage_2 < text.index("write sysctl net.ipv4.ip_forward=1")


def test_a_plan_says_what_is_done():
    text = str(plan_of(Spec()))
    for line in (
        "pivot_root .",
        "fsopen proc",
        "sethostname container",
        "execve true",
    ):
        assert line in text
    clone = next(step for step in plan_of(Spec()) if step.name == "clone")
    for kind in ("user", "pid", "ipc", "uts", "mount"):
        assert kind in clone.target
    assert "unshare network namespace" in text


@pytest.mark.parametrize(
    ("joins", "file"),
    [
        (Joining(old=2, alone=(1,)), "write tasks"),
        (Joining(new=True, limit=b"67108864"), "write memory.max"),
        (Joining(new=True, late=True), "write cgroup.procs"),
    ],
)
@pytest.mark.parametrize("mode", [Mode(), *(Mode(init=init, command=Command(argv=["true"])) for init in (True, False))])
def test_no_process_that_shares_memory_joins_a_limited_group(joins, file, mode):
    steps = [step.describe() for step in plan_of(Spec(), mode, joins=joins)]
    alone = steps.index("enter the sealed init")
    assert file == steps[alone + 1]
    assert alone < steps.index("unshare cgroup namespace") < steps.index("move_mount layer")
    assert 1 == steps.count("enter the sealed init")


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "cgroup", "pid", "user"])
def test_a_namespace_that_stays_the_hosts_is_not_made(kind):
    plan = plan_of(Spec(namespaces=Namespaces(**{kind: "host"})))
    clone = next(step for step in plan if step.name == "clone")
    assert kind not in clone.target


def test_every_shape_can_be_encoded():
    shapes = [
        Spec(rootfs=rootfs, mounts=mounts, namespaces=namespaces)
        for rootfs in (
            RootFS.host(),
            RootFS.host(readonly=True),
            RootFS.dir("/x"),
            RootFS.overlay(*["/x"] * 500),
            RootFS.overlay("/x", upper="/y"),
            RootFS.tmpfs(),
        )
        for mounts in ((), (Mount.bind("/a", "/b/c"), Mount.tmpfs("/t"), Mount.proc("/p")))
        for namespaces in (Namespaces(), Namespaces(network="host", pid="host", ipc="host"))
    ]
    for spec in shapes:
        for mode in (
            Mode(command=None),
            Mode(command=Command(argv=["x"])),
            Mode(init=False, command=Command(argv=["/x"], pass_fds=[5, 9])),
        ):
            for privileged in (True, False):
                plan_of(spec, mode, privileged=privileged, directories=(True,)).encode()


# --- Small parsers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [("/", "/"), ("//a//b/", "/a/b"), ("/a/./b", "/a/b"), ("/a b", "/a b")])
def test_paths_inside_are_normalised(text, expected):
    assert expected == path_inside(text, "path")


@given(st.text())
def test_paths_inside_never_lead_up(text):
    try:
        path = path_inside(text, "path")
    except SpecError:
        return
    assert path.startswith("/")
    assert ".." not in path.split("/")
    assert "\0" not in path
    assert path == path_inside(path, "path")


@pytest.mark.parametrize(
    ("size", "expected"), [(1, "1"), ("64M", "64m"), ("1g", "1g"), ("10MB", "10m"), ("10MiB", "10m"), ("50%", "50%")]
)
def test_sizes_as_tmpfs_takes_them(size, expected):
    assert expected == size_text(size, "size")


def test_tmpfs_of_an_invalid_size_is_refused_by_its_description():
    Mount(type="tmpfs", target="/x", options=(("size", "50%"),))
    with pytest.raises(SpecError, match="mount on /x: option size: '1x' is not a size"):
        Mount(type="tmpfs", target="/x", options=(("size", "1x"),))


@given(st.one_of(st.text(max_size=8), st.integers(), st.booleans(), st.floats(), st.none()))
def test_sizes_are_numbers_or_refused(size):
    try:
        text = size_text(size, "size")
    except SpecError:
        return
    assert text.rstrip("kmgt%").isdecimal()
    assert text.isascii()


@given(st.text(max_size=12))
def test_users_are_ids_names_or_refused(text):
    """Only two plain numbers are accepted as ids."""
    try:
        user = User.parse(text)
    except SpecError:
        return
    if user is not None:
        uid, _, gid = text.partition(":")
        assert text.isascii()
        assert (int(uid), int(gid or 0)) == (user.uid, user.gid)


@pytest.mark.parametrize(
    "mappings",
    [(), (IdMapping(1, 0),), (IdMapping(0, 0, 5), IdMapping(4, 10)), (IdMapping(0, 0, 5), IdMapping(10, 4))],
)
def test_mappings_that_contradict_each_other(mappings):
    with pytest.raises(SpecError):
        check_mappings(mappings, "mappings")


@pytest.mark.parametrize(
    "values",
    [(-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, 2**32 - 1, 1), (0, 2**32 - 2, 2), ("0", 0, 1), (0, True, 1), (0, 0, 1.5)],
)
def test_invalid_mappings(values):
    with pytest.raises(SpecError):
        IdMapping(*values)


def test_mapping_text_is_as_the_kernel_reads_it():
    assert b"0 1000 1\n1 5000 10\n" == mapping_text((IdMapping(0, 1000), IdMapping(1, 5000, 10)))


def test_subordinate_ids_of_a_file(tmp_path):
    import pwd

    uid = os.getuid()
    name = pwd.getpwuid(uid).pw_name
    path = tmp_path / "subuid"
    path.write_text(
        f"other:1:2\n{name}:100000:65536\n{uid}:7:8\n{name}:bad:1\n{name}:1\n\n:1:1\n{name}:5:0\n{name}:9:-1\n"
    )
    assert ((100000, 65536), (7, 8)) == subordinate(str(path), uid)
    assert () == subordinate(str(tmp_path / "no"), uid)
