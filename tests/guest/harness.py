"""Runs one command in a virtual machine with another kernel and another cgroup layout than this machine has.

The guest is QEMU with software emulation, Debian's cloud kernel, and this machine's own root file system. virtiofsd
exports it, and the guest mounts it read-only below a tmpfs, so that nothing changes on this machine. The command, the
environment and the modules are in the initramfs. The first serial port carries the output, the second the exit status,
the third the kernel's messages.

    python tests/guest/harness.py [--layout LAYOUT] [--timeout SECONDS] COMMAND...

Debian packages: qemu-system-x86, qemu-system-common (its C virtiofsd), linux-image-cloud-amd64, busybox-static. A guest
of another architecture needs a separate root file system: see :class:`Machine`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
MODULES = ("virtio_pci", "virtiofs", "overlay", "loop", "bfq")
MEMORY = "2G"

Layout = Literal["unified", "legacy", "systemd"]

INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules); do insmod /lib/$module || echo "guest: no module $module"; done
mount -t virtiofs -o ro host /lower || echo "guest: no root file system"
mount -t tmpfs -o size=75% over /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/lower,upperdir=/over/upper,workdir=/over/work root /root
mkdir -p /root/proc /root/sys /root/dev /root/run
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
CGROUPS
cp /command /root/run/command
ip link set lo up
START
"""

# The command's / is the root of the mount namespace, as on any machine: one in a chroot could make no containers.
DIRECTLY = """cat >/root/run/first <<'END'
/bin/sh /run/command </dev/null >/dev/ttyS0 2>&1
echo $? >/dev/ttyS1
sync
exec /bin/busybox reboot -f
END
umount /proc /sys /dev
exec switch_root /root /bin/sh /run/first >/dev/ttyS2 2>&1"""

# systemd as the init, with a message bus and no more: the command is a login session's kind of scope, not delegated.
BY_SYSTEMD = """for unit in dbus.socket dbus.service; do
    mkdir -p /root/run/systemd/system/$unit.d
    printf '[Unit]\\nDefaultDependencies=no\\n' >/root/run/systemd/system/$unit.d/early.conf
done
cat >/root/run/systemd/system/guest.target <<END
[Unit]
Requires=dbus.socket guest.service
AllowIsolate=yes
END
cat >/root/run/systemd/system/guest.service <<END
[Unit]
DefaultDependencies=no
After=dbus.socket
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/bin/sh /run/command </dev/null >/dev/ttyS0 2>&1; echo \\$\\$? >/dev/ttyS1; sync; systemctl reboot -ff'
END
umount /proc /sys /dev
exec switch_root /root /lib/systemd/systemd --unit=guest.target --log-target=console --show-status=no >/dev/ttyS2 2>&1"""

UNIFIED = "mount -t cgroup2 cgroup2 /root/sys/fs/cgroup"
LEGACY = """mount -t tmpfs cgroup /root/sys/fs/cgroup
for set in cpu,cpuacct cpuset memory devices freezer blkio pids net_cls,net_prio perf_event hugetlb rdma misc; do
    mkdir /root/sys/fs/cgroup/$set
    mount -t cgroup -o $set cgroup /root/sys/fs/cgroup/$set || rmdir /root/sys/fs/cgroup/$set
done
mkdir /root/sys/fs/cgroup/systemd
mount -t cgroup -o none,name=systemd cgroup /root/sys/fs/cgroup/systemd"""


class Machine(NamedTuple):
    """The parts of a guest.

    Attributes:
        root: the directory that becomes its root file system, with a busybox without libraries in it.
        flavour: the suffix of the names of its Debian kernels, such as ``"cloud-amd64"``.
        qemu: the program, and the arguments for the board, the processor and the three serial ports.
    """

    root: Path
    flavour: str
    qemu: tuple[str, ...]

    @property
    def kernel(self) -> tuple[Path, Path] | None:
        """The newest kernel in the root and the directory of its modules; None without one."""
        for image in sorted((self.root / "boot").glob(f"vmlinuz-*-{self.flavour}"), reverse=True):
            modules = self.root / "lib/modules" / image.name.removeprefix("vmlinuz-")
            if modules.is_dir():
                return image, modules
        return None

    @property
    def busybox(self) -> Path:
        """The program of the initramfs."""
        return self.root / "bin/busybox"


PORTS = ("output", "status", "kernel")
"""The content of each serial port."""
_SERIAL_PORTS = tuple(word for name in PORTS for word in ("-serial", f"chardev:{name}"))
_SERIAL_CARDS = tuple(word for name in PORTS for word in ("-device", f"pci-serial,chardev={name}"))

HERE = Machine(
    Path("/"),
    "cloud-amd64",
    ("qemu-system-x86_64", "-M", "q35,memory-backend=m", "-cpu", "max,la57=off", *_SERIAL_PORTS),
)
"""A guest with this machine's files."""


def aarch64(root: Path) -> Machine:
    """Return a machine of another architecture. Its board has only one serial port, so the three are PCI cards."""
    return Machine(
        root,
        "cloud-arm64",
        ("qemu-system-aarch64", "-M", "virt,memory-backend=m", "-cpu", "cortex-a72", *_SERIAL_CARDS),
    )


class Finished(NamedTuple):
    """The result of the command in the guest."""

    returncode: int
    output: str
    seconds: float


def missing(machine: Machine = HERE) -> str:
    """Return what this machine lacks for a guest, or an empty string."""
    lacks = []
    if shutil.which(machine.qemu[0]) is None:
        lacks.append(machine.qemu[0])
    if not VIRTIOFSD.exists():
        lacks.append("qemu-system-common")
    if not machine.busybox.exists():
        lacks.append("busybox-static")
    if machine.kernel is None:
        lacks.append(f"linux-image-{machine.flavour}")
    if os.geteuid() != 0:
        lacks.append("root")
    return f"a guest needs {', '.join(lacks)}" if lacks else ""


def why_not() -> str:
    """Return why tests can't start a guest here, or an empty string."""
    if os.environ.get("CONTAINERKIT_GUEST") != "1":
        return "guests of another kernel take minutes: set CONTAINERKIT_GUEST=1"
    return missing()


def _module_files(directory: Path) -> list[Path]:
    """Return the modules, each after its dependencies. Built-in modules have no file."""
    needs = {}
    for line in (directory / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name.rpartition("/")[2].partition(".ko")[0]] = [*reversed(rest.split()), name]
    ordered: list[str] = []
    for module in MODULES:
        for path in needs.get(module, []):
            if path not in ordered:
                ordered.append(path)
    return [directory / path for path in ordered]


def _archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive in the "newc" format, which the kernel unpacks as its first root file system."""
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def _initramfs(
    command: list[str], directory: Path, machine: Machine, layout: Layout, environment: dict[str, str]
) -> Path:
    assert machine.kernel is not None
    files = _module_files(machine.kernel[1])
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))
    place = f"cd {shlex.quote(str(PROJECT))} && " if machine == HERE else ""
    script = f"{exports}{place}exec {shlex.join(command)}\n"
    init = INIT.replace("CGROUPS", LEGACY if layout == "legacy" else UNIFIED)
    init = init.replace("START", BY_SYSTEMD if layout == "systemd" else DIRECTLY)
    entries = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "lower", "over", "proc", "root", "sys")]
    entries += [
        ("bin/busybox", 0o100755, machine.busybox.read_bytes()),
        ("init", 0o100755, init.encode()),
        ("modules", 0o100644, " ".join(file.name for file in files).encode()),
        ("command", 0o100644, script.encode()),
        *[(f"lib/{file.name}", 0o100644, file.read_bytes()) for file in files],
    ]
    path = directory / "initramfs"
    path.write_bytes(_archive(entries))
    return path


def _share_root(root: Path, directory: Path, stack: ExitStack) -> Path:
    """Export the root file system, and return the socket."""
    socket = directory / "root.sock"
    log = stack.enter_context((directory / "virtiofsd.log").open("wb"))
    server = subprocess.Popen(
        [
            str(VIRTIOFSD),
            f"--socket-path={socket}",
            "--rlimit-nofile=0",
            "-o",
            f"source={root},cache=always,sandbox=chroot,log_level=warn",
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    stack.callback(server.wait)
    stack.callback(server.kill)
    deadline = time.monotonic() + 10
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"virtiofsd did not start: {(directory / 'virtiofsd.log').read_text()}")
        time.sleep(0.01)
    return socket


def _qemu(machine: Machine, initramfs: Path, socket: Path, directory: Path, layout: Layout) -> list[str]:
    assert machine.kernel is not None
    arguments = "quiet panic=-1 mitigations=off nokaslr psi=1 console=ttyS2 rdinit=/init"
    if layout != "legacy":
        arguments += " cgroup_no_v1=all"
    program, *board = machine.qemu
    ports = [word for name in PORTS for word in ("-chardev", f"file,id={name},path={directory / name}")]
    return [
        *(program, "-nodefaults", "-no-user-config", *ports, *board),
        *("-accel", "tcg,thread=multi", "-smp", "2"),
        *("-m", MEMORY, "-object", f"memory-backend-memfd,id=m,size={MEMORY},share=on"),
        *("-display", "none", "-no-reboot"),
        *("-kernel", str(machine.kernel[0]), "-initrd", str(initramfs), "-append", arguments),
        *("-chardev", f"socket,id=root,path={socket}", "-device", "vhost-user-fs-pci,chardev=root,tag=host"),
    ]


def run_in_guest(
    command: list[str],
    *,
    layout: Layout = "unified",
    timeout_s: float = 300,
    environment: dict[str, str] | None = None,
    machine: Machine = HERE,
) -> Finished:
    """Boot a guest, run one command in it as root, and return the result.

    Args:
        command: its arguments.
        layout: ``"unified"`` for pure version 2, ``"legacy"`` for pure version 1 with the usual joint mounts,
            ``"systemd"`` for version 2 with systemd as the init, which runs the command as a service.
        timeout_s: the time after which the guest is killed, in seconds.
        environment: additional variables.
        machine: the parts of the guest. With this machine's files the command runs in the project's directory.

    Raises:
        RuntimeError: the guest could not be started, took too long, or ended without a status.
    """
    if missing(machine):
        raise RuntimeError(missing(machine))
    whole = {"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONPATH": "src", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"} | (
        environment or {}
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="containerkit-guest-")))
        initramfs = _initramfs(command, directory, machine, layout, whole)
        socket = _share_root(machine.root, directory, stack)
        started = time.monotonic()
        guest = subprocess.Popen(
            _qemu(machine, initramfs, socket, directory, layout), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        late = False
        try:
            _, complaint = guest.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            guest.kill()
            _, complaint = guest.communicate()
        output, status, log = (
            (directory / name).read_bytes().decode(errors="replace").replace("\r\n", "\n") for name in PORTS
        )
    text = f"{output}\n{log}\n{complaint.decode(errors='replace')}"
    if late:
        raise RuntimeError(f"the guest took longer than {timeout_s} s\n{text}")
    if not status.strip().isdigit():
        raise RuntimeError(f"the guest ended without a status\n{text}")
    return Finished(int(status), output, time.monotonic() - started)


def main() -> int:
    """Run the command of the command line in a guest, and exit with its status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layout", choices=["unified", "legacy", "systemd"], default="unified", help="of the cgroups")
    parser.add_argument("--timeout", type=float, default=540, help="seconds (default: %(default)s)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if missing():
        print(f"guest: {missing()}", file=sys.stderr)
        return 77
    done = run_in_guest(arguments.command, layout=arguments.layout, timeout_s=arguments.timeout)
    print(done.output, end="")
    print(f"guest: ended with {done.returncode} after {done.seconds:.1f} s", file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
