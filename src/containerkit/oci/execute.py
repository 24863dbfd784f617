"""``exec``: another process in a running container."""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit._native import constants as k
from containerkit.oci import capabilities, files, foreground, kernel, protocol, store
from containerkit.oci import config as configuration
from containerkit.oci.channel import Channel
from containerkit.oci.checks import check_process
from containerkit.oci.config import Process, User
from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror
from containerkit.oci.host import Host, find_program, set_limits, set_score, write_pid_file
from containerkit.oci.lifehooks import kinds_of, stored_config
from containerkit.oci.namespaces import FLAGS, Stage, walk
from containerkit.oci.payload import Payload, unique
from containerkit.oci.session import Partner
from containerkit.oci.users import home_of, keeps_groups, may_set_groups, outside, own_streams, without_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.flags import Flags
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["execute"]


def execute(call: Call) -> int:
    """Run a process in a container; with ``--detach`` the call returns once it runs."""
    detached = call.flags.has("detach")
    if not detached:
        foreground.interruptible()
    with store.open_entry(call.root, call.name) as entry:
        status = entry.status()
        if status == "stopped":
            raise RuntimeFailure("cannot exec in a stopped container: container not running")
        if status == "paused" and not call.flags.has("ignore-paused"):
            raise RuntimeFailure("cannot exec in a paused container (use --ignore-paused to override)")
        if status == "creating":
            raise RuntimeFailure("cannot exec in a container that is being created")
        config = stored_config(entry)
        process = _process(call.flags, config)
        joining = Joining(call, config, process, entry, foreground=not detached)
        joining.join()
    if detached:
        return 0
    code = foreground.follow(joining.pidfd, joining.master)
    os.close(joining.pidfd)
    return code


# --- the process to run


def _process(flags: Flags, config: Config) -> Process:
    """Return the process that the flags describe, based on the container's own.

    Raises:
        RuntimeFailure: there is no program to run, or a file can't be read.
        ConfigError: the description is not valid.
    """
    path = flags.text("process")
    process = _from_file(path) if path else _from_flags(flags, config)
    if flags.given("tty"):
        process.terminal = flags.has("tty")
    check_process(process, "process")
    return process


def _from_file(path: str) -> Process:
    try:
        content = jsontext.loads(files.read(path))
    except OSError as error:
        raise RuntimeFailure(f"open {path}: {strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise RuntimeFailure(f"{path}: {error}") from None
    return Process.read(content, "process")


def _from_flags(flags: Flags, config: Config) -> Process:
    process = config.process
    if process is None:
        raise ConfigError("process", "is missing")
    process.args = flags.arguments[1:]
    if process.args[:1] == ["--"]:
        process.args = process.args[1:]
    if not process.args:
        raise RuntimeFailure("exec: nothing to run: name a program, or pass --process")
    process.terminal = flags.has("tty")
    process.env = [*process.env, *flags.every("env")]
    if cwd := flags.text("cwd"):
        process.cwd = cwd
    if label := flags.text("process-label"):
        process.selinux_label = label
    if profile := flags.text("apparmor"):
        process.apparmor_profile = profile
    if flags.given("no-new-privs"):
        process.no_new_privileges = flags.has("no-new-privs")
    if user := flags.text("user"):
        process.user = _user(user, process.user)
    for text in flags.every("additional-gids"):
        process.user.additional_gids = [*process.user.additional_gids, _number(text, "--additional-gids")]
    _add_capabilities(process, flags.every("cap"))
    return process


def _user(text: str, former: User) -> User:
    uid, colon, gid = text.partition(":")
    return User.read(
        {
            "uid": _number(uid, "--user"),
            "gid": _number(gid, "--user") if colon else former.gid,
            "umask": former.umask,
            "additionalGids": former.additional_gids,
        },
        "process.user",
    )


def _number(text: str, what: str) -> int:
    """Read an id strictly, so that a word that is not a number never means root (CVE-2026-30892)."""
    if not text.isascii() or not text.isdecimal():
        raise RuntimeFailure(f"{what}: {text!r} is not an id")
    return int(text)


def _add_capabilities(process: Process, names: list[str]) -> None:
    if not names:
        return
    found = process.capabilities or configuration.Capabilities.read({}, "process.capabilities")
    for which in ("bounding", "effective", "permitted"):
        setattr(found, which, [*getattr(found, which), *names])
    inheritable = {name.upper() for name in found.inheritable}
    found.ambient = [*found.ambient, *(name for name in names if name.upper() in inheritable)]
    process.capabilities = found


# --- how it joins the container


def _below(places: list[str], wanted: list[str]) -> list[str]:
    """Return the groups to join, as ``--cgroup [CONTROLLER,...:]PATH`` names them.

    Args:
        places: the directories of the container's groups.
        wanted: the values of the flag. A value without a controller applies to all of them.

    Raises:
        RuntimeFailure: a path leads out, or a controller has no group.
    """
    from containerkit.oci.cgroups import Groups, hierarchies

    groups = Groups.of(places, hierarchies())
    chosen = dict.fromkeys(groups.places, "")
    for word in wanted:
        names, colon, path = word.rpartition(":")
        if ".." in path.split("/"):
            raise RuntimeFailure(f"--cgroup: {path!r} must not have '..'")
        if not colon:
            chosen = dict.fromkeys(chosen, path)
        for name in names.split(",") if colon else ():
            place = groups.directory(name)
            if not place:
                raise RuntimeFailure(f"--cgroup: the container has no group of the {name} controller")
            chosen[place] = path
    return [f"{place}/{path.strip('/')}".rstrip("/") for place, path in chosen.items()]


class Joining(Partner):
    """One process that enters a container.

    Args:
        call: the call of the command line.
        config: the container's configuration.
        process: the process to run.
        entry: the container's record.
        foreground: whether the caller waits for its end.
    """

    def __init__(self, call: Call, config: Config, process: Process, entry: Entry, *, foreground: bool) -> None:
        super().__init__(call, config, process, foreground=foreground)
        self.entry = entry
        self.host = Host()
        self.doors: list[int] = []

    def join(self) -> None:
        """Start the process, up to the exec of its program.

        Raises:
            RuntimeFailure: this failed. The process no longer exists.
        """
        self.check_console()
        target = self._open_target()
        time = self._open_time()
        proc = kernel.open_proc()
        self.doors = self._open_doors()
        ours, theirs = Channel.pair()
        try:
            with ours:
                with theirs:
                    self._write_tape(theirs.fileno(), proc, time, target)
                    self._start(theirs.fileno(), [proc, *self.doors, *([time] if time >= 0 else [])])
                self.serve_start(ours, {b"n": self._on_namespaces, b"r": self._on_ready}, b"r")
                self._await_exec(ours)
        except BaseException:
            self.kill()
            raise
        finally:
            for fd in (target, proc, time, *self.doors):
                if fd >= 0:
                    os.close(fd)

    def _open_target(self) -> int:
        try:
            pidfd = os.pidfd_open(self.entry.pid)
        except ProcessLookupError:
            raise RuntimeFailure("cannot exec in a stopped container: container not running") from None
        if not self.entry.is_running():
            os.close(pidfd)
            raise RuntimeFailure("cannot exec in a stopped container: container not running")
        return pidfd

    def _open_time(self) -> int:
        """Open the time namespace. Only a process with its own memory can join it, so the new process does so."""
        if self.config.namespace("time") is None:
            return -1
        return self._open_of_container("ns/time_for_children", os.O_RDONLY)

    def _open_of_container(self, name: str, flags: int) -> int:
        """Open a file of the first process's directory in /proc.

        Raises:
            OSError: this user is not permitted to.
            RuntimeFailure: the process has ended. Its pid may have been reused.
        """
        fd = os.open(f"/proc/{self.entry.pid}/{name}", flags | os.O_CLOEXEC)
        if not self.entry.is_running():
            os.close(fd)
            raise RuntimeFailure("cannot exec in a stopped container: container not running")
        return fd

    def _open_doors(self) -> list[int]:
        """Return the files by which the process joins the container's control groups, or its own group below them."""
        from containerkit.oci.cgroups import open_doors

        places: list[str] = self.entry.record.get("groups", [])
        wanted = self.call.flags.every("cgroup")
        return open_doors(_below(places, wanted) if wanted else places)

    def _write_tape(self, channel: int, proc: int, time: int, target: int) -> None:
        tape, process = self.tape, self.process
        linux = self.config.linux
        self.stage = Stage(
            target=(target, kinds_of(self.config)),
            uid_maps=linux.uid_mappings,
            gid_maps=linux.gid_mappings,
            privileged=self.host.privileged,
        )
        held = self.host.all_capabilities if self.stage.changes_user else self.host.permitted
        masks = capabilities.read(process.capabilities)
        masks.limit(held)
        masks.warn(self.call.journal)
        payload = Payload(
            tape,
            process,
            "process",
            masks,
            held=held,
            filters=self._filters(),
            may_set_groups=may_set_groups(self.entry.pid),
            keeps_groups=keeps_groups(self.config),
        )
        tape.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0, target="protect this process from others")
        tape.call("umask", 0)
        if process.exec_cpu_affinity is not None:
            payload.affinity(process.exec_cpu_affinity.initial, "process.execCPUAffinity.initial")
        for fd in self.doors:
            tape.call("write", fd, b"0", 1, target="join the control groups")
        protocol.pause(tape, channel, b"n", "namespaces are joined")
        if process.exec_cpu_affinity is not None:
            payload.affinity(process.exec_cpu_affinity.final, "process.execCPUAffinity.final")
        else:
            payload.reset_affinity()
        if time >= 0:
            tape.call("setns", time, FLAGS["time"], target="time namespace")
        terminal = None
        if process.terminal:
            root = tape.slot("root")
            tape.call("openat", k.AT_FDCWD, b"/", k.O_PATH | k.O_CLOEXEC, 0, target="/", result=root)
            terminal = payload.open_terminal(root, b"dev/pts/ptmx")
        payload.keyring(self.call.name)
        payload.session(terminal)
        if terminal is not None:
            protocol.hand_over(tape, channel, b"t", tape.slot("terminal master"), "terminal")
        payload.configure(linux, self.host, proc, channel)
        protocol.pause(tape, channel, b"r", "ready")
        payload.finish(self.preserved())

    def _filters(self) -> tuple[bytes, int] | None:
        profile = self.config.linux.seccomp
        if profile is None:
            return None
        from containerkit.oci.filters import program

        wanted = self.process.capabilities
        return program(profile, wanted.bounding if wanted is not None else (), self.call.root)

    def _start(self, channel: int, passed: list[int]) -> None:
        envp = [os.fsencode(each) for each in self._environment()]
        self._own_streams()
        self.pid, self.pidfd = walk(self.stage, self.tape, self._argv(), envp, channel, passed)

    def _argv(self) -> list[bytes]:
        return [os.fsencode(word) for word in self.process.args]

    def _environment(self) -> list[str]:
        env = unique(self.process.env)
        homeless = without_home(env)
        if homeless is None:
            return env
        return [*homeless, f"HOME={self._home()}"]

    def _home(self) -> str:
        try:
            root = self._open_of_container("root", os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return "/"
        try:
            return home_of(root, self.process.user.uid)
        finally:
            os.close(root)

    def _own_streams(self) -> None:
        if not self.process.terminal:
            own_streams(outside(self.config, self.process.user.uid))

    def _on_namespaces(self, _: int) -> None:
        wanted = self.process.oom_score_adj
        if wanted is not None:
            set_score(self.pid, wanted, nested=self.host.nested)

    def _on_ready(self, _: int) -> None:
        root = self._open_of_container("root", os.O_PATH | os.O_DIRECTORY)
        try:
            find_program(root, self.process)
        finally:
            os.close(root)
        if self.host.raises_limits:
            set_limits(self.pid, self.process, "process")

    def _await_exec(self, channel: Channel) -> None:
        """Wait until the channel closes, which means that the program was executed. Then write the pid file."""
        message = protocol.receive(channel)
        if isinstance(message, protocol.Failure):
            raise self.failure(message)
        if path := self.call.flags.text("pid-file"):
            write_pid_file(path, self.pid)
        if path := self.call.flags.text("pidfd-socket"):
            from containerkit.oci.console import send_descriptor

            send_descriptor(path, self.pidfd, b"pidfd")
