"""Namespaces of containers: new ones with their settings, joined ones, and the host's."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from containerkit import Container, Kind, Mount, Namespaces, RootFS, SetupError, SpecError, TimeOffsets, run

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")

NAMES = {"mount": "mnt", "network": "net"}


def identity(pid, kind):
    return os.readlink(f"/proc/{pid}/ns/{NAMES.get(kind, kind)}")


def own(kind, **namespaces):
    done = run(["readlink", f"/proc/self/ns/{NAMES.get(kind, kind)}"], namespaces=Namespaces(**namespaces), text=True)
    return done.stdout.strip()


# --- Settings -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("net.ipv4.ip_forward", 1),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("kernel.shmmax", 123456),
        ("kernel.msgmax", 4096),
        ("net/ipv4/ip_default_ttl", "33"),
    ],
)
def test_sysctls_are_set_inside_and_stay_inside(name, value):
    path = "/proc/sys/" + name.replace(".", "/")
    with open(path) as file:
        before = file.read()
    assert f"{value}\n" == run(["cat", path], sysctls={name: value}, text=True).stdout
    with open(path) as file:
        assert before == file.read()


def test_sysctl_with_several_numbers():
    done = run(["cat", "/proc/sys/kernel/sem"], sysctls={"kernel.sem": "100 200 30 40"}, text=True)
    assert ["100", "200", "30", "40"] == done.stdout.split()


def test_sysctl_that_is_not_there():
    with pytest.raises(SetupError) as caught:
        run(["true"], sysctls={"net.no.such": 1})
    assert "sysctl net.no.such" in str(caught.value)


def test_sysctl_of_a_namespace_that_is_not_new():
    with pytest.raises(SpecError, match=r"network.*'new'"):
        Container(sysctls={"net.ipv4.ip_forward": 1}, namespaces=Namespaces(network="host"))


def test_time_offsets_move_the_clocks():
    script = "import time; print(time.clock_gettime(time.CLOCK_MONOTONIC), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())"
    offsets = TimeOffsets(monotonic_s=100_000, boottime_s=200_000)
    with Container(time_offsets=offsets) as container:
        texts = [
            run(["python3", "-c", script], time_offsets=offsets, text=True).stdout,
            run(["python3", "-c", script], time_offsets=offsets, init=False, text=True).stdout,
            container.run(["python3", "-c", script], text=True).stdout,
        ]
    for text in texts:
        monotonic, boottime, real = map(float, text.split())
        assert abs(monotonic - time.clock_gettime(time.CLOCK_MONOTONIC) - 100_000) < 30
        assert abs(boottime - time.clock_gettime(time.CLOCK_BOOTTIME) - 200_000) < 30
        assert abs(real - time.time()) < 30


def test_time_offsets_that_cannot_be_had():
    with pytest.raises(SetupError, match="time"):
        run(["true"], time_offsets=TimeOffsets(monotonic_s=-10_000_000))


@pytest.mark.parametrize(
    "more",
    [{}, {"hostname": "its-own.example"}, {"hostname": "its-own", "rootfs": RootFS.host(readonly=True)}],
    ids=["default", "own", "read-only"],
)
def test_hostname_is_found_by_itself(more):
    script = "import socket; print(socket.gethostbyname(socket.gethostname()), socket.gethostbyname('localhost'))"
    assert "127.0.0.1 127.0.0.1\n" == run(["python3", "-SEc", script], text=True, **more).stdout


def test_hostname_that_is_no_name_of_a_host_adds_nothing_to_hosts():
    before = run(["cat", "/etc/hosts"]).stdout
    assert before == run(["cat", "/etc/hosts"], hostname="a 10.0.0.1 b").stdout


def test_hostname_of_a_directory_as_root_is_written_nowhere(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("as it was\n")
    shown = [
        Mount.bind(path, path, readonly=True) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)
    ]
    assert 0 == run(["true"], rootfs=RootFS.dir(tmp_path), mounts=shown, hostname="its-own").returncode
    assert "as it was\n" == (tmp_path / "etc/hosts").read_text()


def test_hostname_stays_inside():
    before = os.uname().nodename
    run(["true"], hostname="quite-another")
    assert before == os.uname().nodename


def test_loopback_is_up():
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname());"
        "s6 = socket.create_server(('::1', 0), family=socket.AF_INET6); print('ok')"
    )
    assert "ok\n" == run(["python3", "-c", code], text=True).stdout


def namespaces_of(argv=("sh", "-c", "readlink /proc/self/ns/net /proc/self/ns/user; ls /sys/class/net"), **more):
    return run(list(argv), text=True, check=True, **more).stdout.split()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"mounts": [Mount.tmpfs("/mnt")]},
        {"mounts": [Mount.tmpfs("/sys/fs")]},
        {"sysctls": {"net.ipv4.ip_forward": 1}},
        {"masked_paths": ("/etc/hosts",)},
        {"init": False},
    ],
    ids=str,
)
def test_network_namespace_is_new_and_its_sys_is_shown(more):
    network, user, *links = namespaces_of(**more)
    assert ["lo"] == links
    assert os.readlink("/proc/self/ns/net") != network
    assert os.readlink("/proc/self/ns/user") != user
    assert network != namespaces_of(**more)[0]


def test_network_namespace_belongs_to_the_containers_user_namespace():
    with Container() as container, container.namespace("network") as network, container.namespace("user") as user:
        owner = network.owner
        assert owner is not None
        with owner:
            assert user == owner


def test_parameter_of_the_network_is_set_in_its_own():
    before = Path("/proc/sys/net/ipv4/ip_default_ttl").read_text()
    done = run(["cat", "/proc/sys/net/ipv4/ip_default_ttl"], sysctls={"net.ipv4.ip_default_ttl": 77}, text=True)
    assert ("77\n", before) == (done.stdout, Path("/proc/sys/net/ipv4/ip_default_ttl").read_text())


def test_network_is_empty_otherwise():
    done = run(
        [
            "sh",
            "-c",
            "cat /proc/net/dev | tail -n +3 | cut -d: -f1; ls /sys/class/net; cat /proc/net/route | tail -n +2",
        ],
        text=True,
    )
    assert ["lo", "lo"] == done.stdout.split()


def test_cgroup_namespace_shows_the_own_group_as_root():
    done = run(["cat", "/proc/self/cgroup"], text=True)
    assert {"/"} == {line.split(":", 2)[2] for line in done.stdout.splitlines()}


# --- Joined ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "cgroup"])
def test_namespace_of_another_container_by_handle(box, kind):
    with box.namespace(kind) as handle:
        try:
            assert identity(box.pid, kind) == own(kind, **{kind: handle})
        except SetupError:
            if os.geteuid() == 0:
                raise
            pytest.skip("an ordinary user must join the user namespace as well")


@needs_root
@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup"])
def test_namespace_by_pid_and_by_path(box, kind):
    path = f"/proc/{box.pid}/ns/{NAMES.get(kind, kind)}"
    expected = identity(box.pid, kind)
    if kind != "pid":
        assert expected == own(kind, **{kind: box.pid})
        assert expected == own(kind, **{kind: path})
        return
    with Container(namespaces=Namespaces(pid=path)) as other:
        assert expected == other.run(["readlink", "/proc/self/ns/pid"], text=True).stdout.strip()


@needs_root
def test_two_containers_share_a_network(box):
    server = "import socket; s = socket.create_server(('127.0.0.1', 4000)); print('ready', flush=True); c, _ = s.accept(); c.sendall(b'hello'); c.close()"
    client = "import socket; print(socket.create_connection(('127.0.0.1', 4000)).recv(100).decode())"
    with box.popen(["python3", "-u", "-c", server], stdout=subprocess.PIPE, text=True) as process:
        assert "ready\n" == process.stdout.readline()
        with box.namespace("network") as network:
            done = run(["python3", "-c", client], namespaces=Namespaces(network=network), text=True)
        assert ("hello\n", "") == (done.stdout, done.stderr)
        assert 0 == process.wait(timeout=60)


@needs_root
def test_all_shared_with_another_container(box):
    kinds = ["network", "ipc", "uts", "user"]
    handles = {kind: box.namespace(kind) for kind in kinds}
    try:
        with Container(namespaces=Namespaces(**handles)) as other:
            for kind in kinds:
                assert identity(box.pid, kind) == identity(other.pid, kind)
            assert identity(box.pid, "mount") != identity(other.pid, "mount")
            assert 0 == other.run(["true"]).returncode
    finally:
        for handle in handles.values():
            handle.close()


@needs_root
def test_namespace_outlives_the_container_by_its_handle():
    with Container(hostname="first") as container:
        handle = container.namespace(Kind.UTS)
    try:
        assert "first\n" == run(["uname", "-n"], namespaces=Namespaces(uts=handle), hostname=None, text=True).stdout
    finally:
        handle.close()


@needs_root
def test_namespace_kept_by_ip_netns(tmp_path):
    place = tmp_path / "net"
    with Container() as container, container.namespace("network") as handle:
        handle.persist(place)
    try:
        listed = run(["sh", "-c", "ls /sys/class/net"], namespaces=Namespaces(network=place), text=True).stdout
        assert "lo\n" == listed
    finally:
        handle.unpersist(place)


def test_namespace_of_a_process_that_is_not_there():
    with pytest.raises((SetupError, SpecError, ProcessLookupError, FileNotFoundError)):
        run(["true"], namespaces=Namespaces(network=2**22 + 1))


@pytest.mark.parametrize("value", ["shared", 0, -1, True, 1.5, "", None])
def test_choices_that_are_none(value):
    with pytest.raises(SpecError, match="network"):
        Namespaces(network=value)


@needs_root
def test_host_user_namespace_is_root_outside(tmp_path):
    done = run(["cat", "/proc/self/uid_map"], namespaces=Namespaces(user="host"), text=True)
    with open("/proc/self/uid_map") as file:
        assert file.read() == done.stdout


@needs_root
def test_ids_that_are_chosen():
    from containerkit import IdMapping

    mapping = [IdMapping(0, 700_000, 10), IdMapping(100, 800_000, 5)]
    done = run(
        ["cat", "/proc/self/uid_map", "/proc/self/gid_map"], uid_mappings=mapping, gid_mappings=mapping, text=True
    )
    assert 2 * [["0", "700000", "10"], ["100", "800000", "5"]] == [line.split() for line in done.stdout.splitlines()]


@needs_root
def test_ids_of_many_ranges():
    from containerkit import IdMapping

    mapping = [IdMapping(number * 2, 1_000_000 + number * 2) for number in range(50)]
    done = run(["wc", "-l", "/proc/self/uid_map"], uid_mappings=mapping, gid_mappings=mapping, text=True)
    assert "50 /proc/self/uid_map\n" == done.stdout


@needs_root
def test_live_containers_have_ids_of_their_own():
    boxes = [Container().start() for _ in range(8)]
    try:
        bases = set()
        for container in boxes:
            with open(f"/proc/{container.pid}/uid_map") as file:
                inside, outside, count = map(int, file.read().split())
            assert (0, 65_536) == (inside, count)
            assert outside >= 2**28
            bases.add(outside)
        assert 8 == len(bases)
    finally:
        for container in boxes:
            container.stop()
