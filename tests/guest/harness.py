"""Runs one command in a virtual machine with another kernel and another cgroup layout than this machine has.

The guest is QEMU with software emulation, Debian's cloud kernel, and this machine's own root file system: virtiofsd
offers it, the guest mounts it read-only and puts a tmpfs over it, so that nothing of what happens inside is left here.
Command, environment and modules go in with the initramfs; the output comes out through the first serial port, the exit
status through the second, the kernel's messages through the third.

    python tests/guest/harness.py [--layout LAYOUT] [--timeout SECONDS] COMMAND...

Debian packages: qemu-system-x86, qemu-system-common (its C virtiofsd), linux-image-cloud-amd64, busybox-static.
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
BUSYBOX = Path("/bin/busybox")
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


class Finished(NamedTuple):
    """How the command ended in the guest."""

    returncode: int
    output: str
    seconds: float


def missing() -> str:
    """Return what this machine lacks for a guest, an empty string if nothing."""
    lacks = []
    if shutil.which("qemu-system-x86_64") is None:
        lacks.append("qemu-system-x86")
    if not VIRTIOFSD.exists():
        lacks.append("qemu-system-common")
    if not BUSYBOX.exists():
        lacks.append("busybox-static")
    if _kernel() is None:
        lacks.append("linux-image-cloud-amd64")
    if os.geteuid() != 0:
        lacks.append("root")
    return f"a guest needs {', '.join(lacks)}" if lacks else ""


def why_not() -> str:
    """Return why tests start no guest here, an empty string if they do."""
    if os.environ.get("CONTAINERKIT_GUEST") != "1":
        return "guests of another kernel take minutes: set CONTAINERKIT_GUEST=1"
    return missing()


def _kernel() -> tuple[Path, Path] | None:
    """Return the newest cloud kernel and the folder of its modules."""
    for image in sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), reverse=True):
        modules = Path("/lib/modules") / image.name.removeprefix("vmlinuz-")
        if modules.is_dir():
            return image, modules
    return None


def _module_files(folder: Path) -> list[Path]:
    """Return the modules with what each depends on before it; one that is built in has no file."""
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        needs[name.rpartition("/")[2].partition(".ko")[0]] = [*reversed(rest.split()), name]
    ordered: list[str] = []
    for module in MODULES:
        for path in needs.get(module, []):
            if path not in ordered:
                ordered.append(path)
    return [folder / path for path in ordered]


def _archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """Return a cpio archive of the "newc" form, which the kernel unpacks as its first root file system."""
    parts = []
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        encoded = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        parts += [head, bytes(-len(head) % 4), content, bytes(-len(content) % 4)]
    return b"".join(parts)


def _initramfs(command: list[str], folder: Path, modules: Path, layout: Layout, environment: dict[str, str]) -> Path:
    files = _module_files(modules)
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))
    script = f"{exports}cd {shlex.quote(str(PROJECT))} && exec {shlex.join(command)}\n"
    init = INIT.replace("CGROUPS", LEGACY if layout == "legacy" else UNIFIED)
    init = init.replace("START", BY_SYSTEMD if layout == "systemd" else DIRECTLY)
    entries = [(name, 0o040755, b"") for name in ("bin", "dev", "lib", "lower", "over", "proc", "root", "sys")]
    entries += [
        ("bin/busybox", 0o100755, BUSYBOX.read_bytes()),
        ("init", 0o100755, init.encode()),
        ("modules", 0o100644, " ".join(file.name for file in files).encode()),
        ("command", 0o100644, script.encode()),
        *[(f"lib/{file.name}", 0o100644, file.read_bytes()) for file in files],
    ]
    path = folder / "initramfs"
    path.write_bytes(_archive(entries))
    return path


def _share_root(folder: Path, stack: ExitStack) -> Path:
    """Offer this machine's root file system and return the socket."""
    socket = folder / "root.sock"
    log = stack.enter_context((folder / "virtiofsd.log").open("wb"))
    server = subprocess.Popen(
        [
            str(VIRTIOFSD),
            f"--socket-path={socket}",
            "--rlimit-nofile=0",
            "-o",
            "source=/,cache=always,sandbox=chroot,log_level=warn",
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
            raise RuntimeError(f"virtiofsd did not start: {(folder / 'virtiofsd.log').read_text()}")
        time.sleep(0.01)
    return socket


def _qemu(kernel: Path, initramfs: Path, socket: Path, folder: Path, layout: Layout) -> list[str]:
    arguments = "quiet panic=-1 mitigations=off nokaslr psi=1 console=ttyS2 rdinit=/init"
    if layout != "legacy":
        arguments += " cgroup_no_v1=all"
    return [
        "qemu-system-x86_64",
        *("-M", "q35,memory-backend=m", "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "1"),
        *("-m", MEMORY, "-object", f"memory-backend-memfd,id=m,size={MEMORY},share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", arguments),
        *("-chardev", f"socket,id=root,path={socket}", "-device", "vhost-user-fs-pci,chardev=root,tag=host"),
        *("-serial", f"file:{folder / 'output'}", "-serial", f"file:{folder / 'status'}"),
        *("-serial", f"file:{folder / 'kernel'}"),
    ]


def run_in_guest(
    command: list[str],
    *,
    layout: Layout = "unified",
    timeout_s: float = 300,
    environment: dict[str, str] | None = None,
) -> Finished:
    """Boot a guest, run one command in it as root from the project's folder, and return how it ended.

    Args:
        command: its arguments.
        layout: ``"unified"`` for pure version 2, ``"legacy"`` for pure version 1 with the usual joint mounts,
            ``"systemd"`` for version 2 with systemd as the init, which runs the command as a service.
        timeout_s: after so many seconds the guest is killed.
        environment: more of it.

    Raises:
        RuntimeError: the guest could not be started, took too long, or ended without a status.
    """
    kernel = _kernel()
    if kernel is None or missing():
        raise RuntimeError(missing())
    whole = {"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONPATH": "src", "LC_ALL": "C.UTF-8", "NO_COLOR": "1"} | (
        environment or {}
    )
    image, modules = kernel
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="containerkit-guest-")))
        initramfs = _initramfs(command, folder, modules, layout, whole)
        socket = _share_root(folder, stack)
        started = time.monotonic()
        machine = subprocess.Popen(
            _qemu(image, initramfs, socket, folder, layout), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        late = False
        try:
            _, complaint = machine.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            machine.kill()
            _, complaint = machine.communicate()
        output, status, log = (
            (folder / name).read_bytes().decode(errors="replace").replace("\r\n", "\n")
            for name in ("output", "status", "kernel")
        )
    text = f"{output}\n{log}\n{complaint.decode(errors='replace')}"
    if late:
        raise RuntimeError(f"the guest took longer than {timeout_s} s\n{text}")
    if not status.strip().isdigit():
        raise RuntimeError(f"the guest ended without a status\n{text}")
    return Finished(int(status), output, time.monotonic() - started)


def main() -> int:
    """Run the command of the command line in a guest, and end as it ended."""
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
