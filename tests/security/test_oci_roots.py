"""Roots that another process changes while the OCI command starts, and roots that are not pivoted to."""

# ruff: noqa: F811 - fixtures are used by name

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import _cffi_backend
import attacker
import pytest
from examples import examples
from oci_bundles import ONE, as_root, rootfs  # noqa: F401 - a fixture
from oci_escapes import group, loader, needs_runc, oci, own_rootfs, program, spoilt  # noqa: F401 - fixtures

import containerkit

pytestmark = as_root


# --- the directories of the kernel's filesystems

EXCHANGER = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
root = os.open(sys.argv[1], os.O_RDONLY)
one, other = (name.encode() for name in sys.argv[2:4])
count = 0
while os.getppid() == int(sys.argv[4]):
    libc.renameat2(root, one, root, other, 2)  # RENAME_EXCHANGE
    count += 1
    if count % 64 == 0:
        os.pwrite(1, b"%d\\n" % count, 0)
    time.sleep(0.0005)
"""

FROM_THE_ROOT = """
from containerkit.oci.main import leave, main
from containerkit.oci.targets import Targets
Targets.base = lambda self, path: (self.root, path.strip("/"))
leave(main())
"""
"""A runtime that resolves each path from the root, as in the past."""

STARTS = 150


class Exchange:
    """Exchange two names in a directory continuously while it is entered."""

    def __init__(self, root, one, other, told):
        self.words = [sys.executable, "-c", EXCHANGER, str(root), one, other, str(os.getpid())]
        self.told = told

    def __enter__(self):
        with open(self.told, "wb") as told:
            self.process = subprocess.Popen(self.words, stdout=told)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def count(self):
        return int(self.told.read_text().split()[-1])


def race(oci, bundle, names, starts, words=None):
    """Start containers. Return how many got a kernel parameter open for writing, and how many ran."""
    opened = ran = 0
    places = " ".join(names)
    bundle.runs(
        "sh", "-c", f"for p in {places}; do (: >>$p/sys/kernel/core_pattern) 2>/dev/null && echo open; done; echo ran"
    )
    bundle.write()
    for _ in range(starts):
        said = subprocess.run(
            [*(words or oci.words), "run", "--bundle", str(bundle.path), ONE],
            env=oci.environment, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip
        opened += "open" in said
        ran += "ran" in said
        if opened and words:
            break
    return opened, ran


@pytest.mark.timeout(300)
def test_masks_hold_while_proc_is_renamed(oci, spoilt, own_rootfs, tmp_path):
    """A process with write access to the root continuously exchanges /proc with another directory.

    The control resolves covered paths from the root, and soon loses the masks.
    """
    (own_rootfs / "decoy").mkdir()
    number = examples(ci=40, nightly=STARTS)
    with Exchange(own_rootfs, "proc", "decoy", tmp_path / "count") as exchange:
        assert (0, number) == race(oci, spoilt, ("/proc", "/decoy"), number)
        assert exchange.count > 2000
        words = [sys.executable, "-c", FROM_THE_ROOT, "--root", oci.root]
        opened, _ = race(oci, spoilt, ("/proc", "/decoy"), STARTS, words)
    assert 1 == opened


@pytest.mark.timeout(300)
def test_devices_are_made_nowhere_else_while_dev_is_renamed(oci, spoilt, own_rootfs, tmp_path):
    """Nodes and mount targets of the new /dev are never created in the image. The control creates them there."""
    (own_rootfs / "decoy").mkdir()
    places = [own_rootfs / "dev", own_rootfs / "decoy"]
    spoilt.runs("true").write()

    def run(words):
        words = [*words, "run", "--bundle", str(spoilt.path), ONE]
        subprocess.run(words, env=oci.environment, capture_output=True, timeout=60)
        return [name for place in places for name in os.listdir(place)]

    with Exchange(own_rootfs, "dev", "decoy", tmp_path / "count"):
        assert [] == [name for _ in range(examples(ci=30, nightly=50)) for name in run(oci.words)]
        words = [sys.executable, "-c", FROM_THE_ROOT, "--root", oci.root]
        assert any(run(words) for _ in range(STARTS))


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("link", ["elsewhere", "/elsewhere", "/proc/self/root/elsewhere", "missing"])
def test_directory_of_the_kernel_that_is_a_symlink_is_refused(oci, spoilt, own_rootfs, name, link):
    (own_rootfs / name).rmdir()
    (own_rootfs / name).symlink_to(link)
    (own_rootfs / "elsewhere").mkdir()
    spoilt.write()
    said = oci.refused("run", "--bundle", spoilt.path, ONE)
    assert f"/{name}: too many levels of symbolic links (hint: it must be a directory" in said
    assert not list((own_rootfs / "elsewhere").iterdir())
    assert not (own_rootfs / "missing").exists()


@needs_runc
@pytest.mark.parametrize("name", ["proc", "sys"])
def test_runc_refuses_such_a_symlink_too(spoilt, own_rootfs, oci, name):
    (own_rootfs / name).rmdir()
    (own_rootfs / name).symlink_to("elsewhere")
    (own_rootfs / "elsewhere").mkdir()
    spoilt.config["ociVersion"] = "1.0.2"
    words = ["runc", "--root", f"{oci.root}.runc", "run", "--bundle", str(spoilt.write()), ONE]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert "must be mounted on ordinary directory" in done.stderr


@pytest.mark.parametrize("kind", ["proc", "sysfs"])
def test_proc_and_sysfs_elsewhere_do_not_follow_a_symlink(oci, spoilt, own_rootfs, kind):
    (own_rootfs / "real").mkdir()
    (own_rootfs / "other").symlink_to("real")
    spoilt.mounts("/other", kind, kind)
    spoilt.write()
    assert "too many levels of symbolic links" in oci.refused("run", "--bundle", spoilt.path, ONE)


def test_parameters_and_labels_are_written_only_to_a_procfs(oci):
    """The runtime's own /proc may be something else (CVE-2019-19921)."""
    ask = "from containerkit.oci.errors import RuntimeFailure\nfrom containerkit.oci.kernel import open_proc\n"
    ask += "try: open_proc()\nexcept RuntimeFailure as error: print(error)\nelse: print('taken')"
    told = []
    for prepare in ("true", "mount -t tmpfs none /proc"):
        words = ["unshare", "--mount", "sh", "-c", f'{prepare} && exec "$@"', "sh", sys.executable, "-c", ask]
        told.append(subprocess.run(words, env=oci.environment, capture_output=True, text=True, check=True).stdout)
    assert ["taken\n", "/proc of the host is not a procfs: mount -t proc proc /proc\n"] == told


# --- a root that is not pivoted to

CHROOT_ALONE = """
from containerkit.oci import creation
def leave_host(builder, masks, *, at_home, may_move):
    builder.tape.call("fchdir", builder.root)
    builder.tape.call("chroot", b".")
    builder.tape.call("chdir", b"/")
creation.leave_host = leave_host
from containerkit.oci.main import leave, main
leave(main())
"""
"""A runtime that leaves the host's root with chroot(2) only, as --no-pivot did in the past."""

UNMASKED = "unshare -Urmpf sh -c 'mount -t proc proc /mnt && ls /mnt/sys/kernel/core_pattern'"
"""A second procfs, without the masks of the first. The kernel refuses it unless it finds an unmasked one."""


def breaking_out(bundle, root, hook=None):
    """Give a bundle the attacks on --no-pivot. Its program reports what it reached."""
    shutil.copy(attacker.program(), root / "attacks")
    (root / "mnt").mkdir(exist_ok=True)
    for which in ("bounding", "effective", "permitted"):
        bundle.process["capabilities"][which] += ["CAP_SYS_CHROOT", "CAP_SETFCAP"]  # as Docker gives
    if hook:
        bundle.config["hooks"] = {"createContainer": [{"path": hook}]}
    bundle.runs(f"/attacks break-out {__file__}; echo; {UNMASKED} 2>&1; cut -d' ' -f5 /proc/self/mountinfo")
    bundle.process["noNewPrivileges"] = False
    return bundle


@pytest.mark.parametrize("hooked", [False, True])
def test_nothing_of_the_host_is_in_reach_without_a_pivot(oci, spoilt, own_rootfs, hooked):
    """--no-pivot still pivots if possible. The controls only use chroot, and reach the host's files if a hook has kept
    the root, or an unmasked procfs if not."""
    breaking_out(spoilt, own_rootfs, "/bin/true" if hooked else None)
    told = oci.run(spoilt, ONE, "--no-pivot").stdout
    assert told.startswith("ENOENT")
    assert "core_pattern" not in told
    assert all(
        line == "/" or line.startswith(("/proc", "/dev", "/sys")) for line in told.splitlines() if line[:1] == "/"
    )
    words = [sys.executable, "-c", CHROOT_ALONE, "--root", oci.root, "run", "--bundle", str(spoilt.path), ONE]
    control = subprocess.run(words, env=oci.environment, capture_output=True, text=True).stdout
    assert control.startswith("done") if hooked else "/mnt/sys/kernel/core_pattern" in control, control


LABORATORY = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
libc.unshare(0x20000)  # CLONE_NEWNS
call("mount", b"none", b"/", None, 0x44000, None)  # private, at every depth
namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
libc.syscall.restype = ctypes.c_long
trees = {}
for path in ("/", "/proc", "/sys", "/dev"):
    trees[path] = libc.syscall(428, -100, path.encode(), 0x88001)  # open_tree: a clone, recursive
call("umount2", b"/", 2)
call("setns", namespace, 0x20000)
made = [name for name in ("/mnt", "/proc", "/sys", "/dev") if not os.path.isdir(name)]
for name in made:
    os.mkdir(name)
for path, tree in trees.items():
    libc.syscall(429, tree, b"", -100, b"/mnt" if path == "/" else path.encode(), 4)  # move_mount
here = [f"/mnt{path}" for path in sys.argv[1].split(":")]
environment = {"PYTHONHOME": "/mnt/usr", "PYTHONPATH": ":".join(here), "PYTHONDONTWRITEBYTECODE": "1"}
libraries = ":".join(f"/mnt{path}" for path in ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"))
words = ["/mnt" + sys.argv[3], "--library-path", libraries, "/mnt" + sys.argv[4], "-c", *sys.argv[2:3], *sys.argv[5:]]
status = subprocess.run(words, env=environment).returncode
for path in ("/mnt", "/dev", "/sys", "/proc"):
    libc.umount2(path.encode(), 2)
for name in made:
    os.rmdir(name)
sys.exit(status)
"""
"""Run the runtime with an initial ramfs as the root, in a mount namespace whose lowest root is uncovered."""

PLAIN = "from containerkit.oci.main import leave, main\nleave(main())\n"


@pytest.fixture
def ramfs(oci, spoilt, own_rootfs):
    """Run a container where the root can't be pivoted to. Return the result."""
    if sys.implementation.name != "cpython" or os.uname().machine != "x86_64":
        pytest.skip("the laboratory is built for CPython on x86_64")

    def run(code, *flags):
        spoilt.config["root"]["path"] = f"/mnt{own_rootfs}"
        spoilt.write()
        # Without symlinks, because an absolute one leads nowhere below /mnt.
        found = os.path.dirname(containerkit.__file__), _cffi_backend.__file__
        places = [os.path.dirname(os.path.realpath(path)) for path in found]
        words = [sys.executable, "-c", LABORATORY, ":".join(places), code, os.path.realpath(loader())]
        words += [os.path.realpath(sys.executable), "--root", f"/mnt{oci.root}", "--cgroup-manager", "disabled"]
        words += ["run", *flags, "--bundle", f"/mnt{spoilt.path}", ONE]
        return subprocess.run(words, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("hooked", [False, True])
def test_nothing_of_the_host_is_in_reach_on_an_initial_ramfs(ramfs, spoilt, own_rootfs, hooked):
    """The kernel does not pivot there, so the root is moved. The controls are the same as with pivot_root."""
    busybox = f"/mnt{own_rootfs}/bin/true"
    breaking_out(spoilt, own_rootfs, busybox if hooked else None)
    spoilt.process["args"][2] = spoilt.process["args"][2].replace(__file__, f"/mnt{__file__}")
    done = ramfs(PLAIN)
    assert "in an initial ramfs pass --no-pivot" in done.stderr
    done = ramfs(PLAIN, "--no-pivot")
    assert "" == done.stderr
    told = done.stdout
    assert told.startswith("ENOENT")
    assert "core_pattern" not in told
    assert all(
        line == "/" or line.startswith(("/proc", "/dev", "/sys")) for line in told.splitlines() if line[:1] == "/"
    )
    control = ramfs(CHROOT_ALONE, "--no-pivot").stdout
    assert control.startswith("done") if hooked else "/mnt/sys/kernel/core_pattern" in control, control


def test_nothing_of_the_host_is_in_reach_of_a_user_namespace_on_an_initial_ramfs(ramfs, spoilt, own_rootfs):
    """The host's mounts are locked there, and what would uncover an unmasked procfs is covered."""
    breaking_out(spoilt, own_rootfs).has_user_namespace()
    done = ramfs(PLAIN, "--no-pivot")
    assert "" == done.stderr
    assert done.stdout.startswith("ENOENT")
    assert "core_pattern" not in done.stdout
    assert "/mnt/sys/kernel/core_pattern" in ramfs(CHROOT_ALONE, "--no-pivot").stdout


def test_moved_root_is_refused_to_a_program_that_could_unmount_it(ramfs, spoilt):
    spoilt.process["capabilities"]["bounding"] += ["CAP_SYS_ADMIN"]
    done = ramfs(PLAIN, "--no-pivot")
    assert done.returncode == 1
    assert "process.capabilities.bounding: CAP_SYS_ADMIN can unmount a root that was only moved" in done.stderr
