"""Make a container: the plan of ``create``, and the runtime's side of the protocol with the first process.

If a step fails, the process is killed, and the control groups and the record are removed.
"""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci import capabilities, entering, kernel, protocol, store
from containerkit.oci.channel import Channel
from containerkit.oci.checks import check_host
from containerkit.oci.errors import ConfigError
from containerkit.oci.host import Host, find_program, set_limits, set_score, write_pid_file
from containerkit.oci.masks import masked_paths, readonly_paths, sysctls
from containerkit.oci.namespaces import FLAGS, Stage, idmap_namespace, is_own, open_namespace, walk
from containerkit.oci.payload import Payload, strip, unique
from containerkit.oci.pivot import leave_host
from containerkit.oci.rootfs import Builder
from containerkit.oci.session import Partner
from containerkit.oci.users import home_of, keeps_groups, may_set_groups, outside, own_streams, without_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.oci.cgroups import Groups
    from containerkit.oci.config import Config
    from containerkit.oci.main import Call
    from containerkit.oci.tape import Slot

__all__ = ["Creation"]


class Creation(Partner):
    """One container being made.

    Args:
        call: the call of the command line.
        bundle: the bundle's directory.
        content: the configuration as a JSON document.
        config: the configuration.
        foreground: whether the caller waits for the container's end.
    """

    def __init__(self, call: Call, bundle: str, content: bytes, config: Config, *, foreground: bool = False) -> None:
        if config.process is None:
            raise ConfigError("process", "is missing: there is nothing to start")
        super().__init__(call, config, config.process, foreground=foreground)
        self.bundle = bundle
        self.content = content
        self.host = Host()
        self.groups: Groups | None = None
        self.slice_name = self.unit = ""
        self.stage: Stage
        self.builder: Builder
        self.gate_step = 0
        self.envp: list[bytes] = []
        self._fds: list[int] = []

    # --- all steps

    def make(self) -> None:
        """Make the container up to the gate, where it waits for ``start``.

        Raises:
            RuntimeFailure: it can't be made. Nothing is left behind.
        """
        self.entry = store.reserve(self.call.root, self.call.name)
        try:
            self._make()
        except BaseException:
            self.abandon()
            raise
        finally:
            for fd in self._fds:
                os.close(fd)
            self._fds.clear()

    def _make(self) -> None:
        self.check_console()
        self.stage = self._stage()
        self._add_notify_socket()
        self._first_record()
        if not self.unit:
            if self.groups is not None:
                self.groups.make()
            self._limit()
        self.entry.write(store.CONFIG, self.content)
        ours, theirs = Channel.pair()
        with ours:
            with theirs, self._open_gate() as gate:
                self._write_tape(theirs.fileno(), gate.fileno())
                self._start(theirs.fileno(), gate.fileno())
            self.serve_start(
                ours,
                {
                    b"n": self._on_namespaces,
                    b"o": self._on_time,
                    b"i": self._on_idmap,
                    b"m": self._on_mounts,
                    b"r": self._on_ready,
                },
                b"r",
            )

    def abandon(self) -> None:
        """Remove everything that was made."""
        from containerkit.oci import cgroups

        self.kill()
        if self.groups is not None and self.groups.made:
            cgroups.kill_all(self.groups.places, 9)
            cgroups.remove(self.groups.places)
        self.entry.remove()
        self.entry.close()

    def before_reaping(self) -> None:
        """Thaw the group: a frozen process does not die."""
        if self.groups is not None:
            from containerkit.oci import cgroups

            cgroups.thaw(self.groups.freezer)

    def state(self) -> dict[str, Any]:
        """Return the state for hooks and agents while the container is being made."""
        return {**self.entry.state(), "status": "creating", "pid": self.pid}

    # --- before the process exists

    def _stage(self) -> Stage:
        joins: list[tuple[str, int]] = []
        for namespace in self.config.linux.namespaces:
            if namespace.path:
                fd = open_namespace(namespace.type, namespace.path)
                self._fds.append(fd)
                joins.append((namespace.type, fd))
                if is_own(namespace.type, fd):
                    check_host(self.config, namespace.type)
        linux = self.config.linux
        return Stage(
            joins=joins,
            new=[each.type for each in linux.namespaces if not each.path],
            uid_maps=linux.uid_mappings,
            gid_maps=linux.gid_mappings,
            privileged=self.host.privileged,
            time_offsets=entering.offsets(self.config) if self.config.is_new("time") else b"",
        )

    def _add_notify_socket(self) -> None:
        if "NOTIFY_SOCKET" in os.environ:
            from containerkit.oci.notify import add_socket

            self.entry.record["notifies"] = add_socket(self.config, self.entry)

    def _first_record(self) -> None:
        """Record the container before it is made, so that all that a killed runtime leaves behind is recorded."""
        import pwd

        from containerkit.oci.log import timestamp

        self.groups = self._groups()
        if self.groups is not None and not self.unit:
            self.groups.check_unused()
            self.groups.check_thawed()
        try:
            owner = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            owner = str(os.geteuid())
        root = self.config.root
        assert root is not None
        hooks = self.config.hooks
        self.entry.save(
            ociVersion=self.config.oci_version,
            phase="creating",
            creator=[os.getpid(), store.start_time(os.getpid())],
            bundle=self.bundle,
            rootfs=os.path.normpath(os.path.join(self.bundle, root.path)),
            created=timestamp(),
            owner=owner,
            annotations=self.config.annotations,
            groups=[] if self.groups is None else self.groups.places,
            freezer="" if self.groups is None else self.groups.freezer,
            unit=self.unit,
            joinsPid=not self.config.is_new("pid"),
            hooks=[
                name
                for name, each in (
                    ("startContainer", hooks.start_container),
                    ("poststart", hooks.poststart),
                    ("poststop", hooks.poststop),
                )
                if each
            ],
        )

    def _groups(self) -> Groups | None:
        if self.call.manager == "disabled":
            return None
        from containerkit.oci.cgroups import Groups, hierarchies

        path = self.config.linux.cgroups_path
        if self.call.manager == "systemd":
            from containerkit.oci.systemd import unit_of

            self.slice_name, self.unit, path = unit_of(path, self.call.name)
        path = path or f"/{self.call.name}"
        if ".." in path.split("/"):
            raise ConfigError("linux.cgroupsPath", f"{path!r} must not have '..'")
        found = hierarchies()
        if self.host.nested or not self.host.privileged:  # root of a user namespace owns its delegated groups
            found = [each for each in found if each.lets_make("/" + path.strip("/"))]
        resources = self.config.linux.resources
        if found and found[0].version == 1 and found[-1].version == 2 and not (resources and resources.unified):
            found.pop()  # if version 1 has the controllers, joining version 2 only costs a global lock
        return Groups("/" + path.strip("/"), found) if found else None

    def _limit(self) -> None:
        if self.call.manager != "disabled" and self.config.linux.resources is not None:
            from containerkit.oci import cgroups, limits

            groups = self.groups or cgroups.Groups("", ())  # without a group a limit is refused, not ignored
            rules_devices = self.host.privileged and not self.host.nested
            limits.apply(groups, self.config.linux.resources, nested=not rules_devices)

    def _open_gate(self) -> Channel:
        """Bind the socket at which the container waits. Its path is short, because an address has at most 107 bytes."""
        return Channel.listening(f"/proc/self/fd/{self.entry.fd}/{store.GATE}")

    # --- the tape

    def _masks(self) -> capabilities.Masks:
        masks = capabilities.read(self.process.capabilities)
        masks.limit(self._held)
        masks.warn(self.call.journal)
        return masks

    @property
    def _held(self) -> int:
        """The capabilities of the first process: all in a user namespace of its own, else the runtime's."""
        return self.host.all_capabilities if self.stage.changes_user else self.host.permitted

    def _payload(self, masks: capabilities.Masks) -> Payload:
        filters = None
        profile = self.config.linux.seccomp
        if profile is not None:
            from containerkit.oci.filters import program

            wanted = self.process.capabilities
            filters = program(profile, wanted.bounding if wanted is not None else (), self.call.root)
        return Payload(
            self.tape,
            self.process,
            "process",
            masks,
            held=self._held,
            filters=filters,
            may_set_groups=not self.stage.denies_groups and may_set_groups("self"),
            keeps_groups=keeps_groups(self.config),
        )

    def _write_tape(self, channel: int, gate: int) -> None:
        tape, config, flags = self.tape, self.config, self.call.flags
        masks = self._masks()
        payload = self._payload(masks)
        makes_nodes = self.host.makes_nodes(self.entry.fd)
        self.builder = builder = Builder(
            tape,
            config,
            self.bundle,
            privileged=self.host.clones_mounts(),
            makes_nodes=makes_nodes and not self.stage.changes_user,
            makes_nodes_outside=makes_nodes and bool(config.linux.uid_mappings),
            may_park=not flags.has("no-pivot"),
            groups=self.groups,
            channel=channel,
        )
        tape.call("prctl", k.PR_SET_DUMPABLE, 0, 0, 0, 0, target="protect this process from others")
        tape.call("umask", 0)
        if self.groups is not None and not self.unit:
            for fd in self.groups.open_doors():
                builder.passed.append(fd)
                tape.call("write", fd, b"0", 1, target="join the control groups")
        protocol.pause(tape, channel, b"n", "namespaces are there")
        payload.reset_affinity()
        proc = kernel.open_proc()
        builder.passed.append(proc)
        entering.enter_late(tape, config, self.stage, proc, channel)
        terminal = self._write_root(payload, proc)
        if config.hooks.prestart or config.hooks.create_runtime or config.hooks.create_container:
            protocol.pause(tape, channel, b"m", "mounts are there")
        leave_host(builder, masks, at_home=bool(config.hooks.create_container), may_move=flags.has("no-pivot"))
        builder.propagation()
        entering.set_names(tape, config)
        if not flags.has("no-new-keyring"):
            payload.keyring(self.call.name)
        payload.session(terminal)
        if terminal is not None:
            protocol.hand_over(tape, channel, b"t", tape.slot("terminal master"), "terminal")
        payload.configure(self.config.linux, self.host, proc, channel)
        protocol.pause(tape, channel, b"r", "ready")
        # It may wait for a long time, and processes that may trace it can read its memory.
        strip(tape, sorted([*self.preserved(), gate]), k.TELL_ITSELF)
        self._wait_at_gate(gate, channel)
        payload.finish(self.preserved())

    def _write_root(self, payload: Payload, proc: int) -> Slot | None:
        """Add the steps that make the root, and return the slot of the terminal, if there is one."""
        builder, config = self.builder, self.config
        builder.open_sources()
        self._fds += builder.views
        builder.attach_root(at_home=bool(config.hooks.create_container))
        builder.mounts()
        builder.devices.make()
        terminal = self._terminal(payload) if self.process.terminal else None
        sysctls(builder, proc)
        masked_paths(builder)
        readonly_paths(builder)
        builder.make_cwd(self.process.cwd)
        builder.late_attributes()
        return terminal

    def _terminal(self, payload: Payload) -> Slot:
        base, rest = self.builder.targets.base("/dev/pts/ptmx")
        terminal = payload.open_terminal(base, os.fsencode(rest))
        self.builder.console(terminal)
        return terminal

    def _wait_at_gate(self, gate: int, channel: int) -> None:
        """Add the steps that wait for a connection, and then report failures to it.

        The end of that connection means that the exec succeeded.
        """
        tape = self.tape
        caller = tape.slot("starter")
        self.gate_step = len(tape)
        tape.call("accept4", gate, 0, 0, k.O_CLOEXEC, target="the gate", result=caller)
        tape.call("dup3", caller, channel, k.O_CLOEXEC, target="the gate")
        tape.step(k.STEP_CLOSE, "close", caller)

    # --- after the process exists

    def _start(self, channel: int, gate: int) -> None:
        process = self.process
        argv = [os.fsencode(word) for word in process.args]
        self.envp = [os.fsencode(variable) for variable in self._environment()]
        if not process.terminal:
            own_streams(outside(self.config, process.user.uid))
        passed = [gate, *self.builder.passed, *[fd for kind, fd in self.stage.joins if kind == "time"]]
        try:
            self.pid, self.pidfd = walk(self.stage, self.tape, argv, self.envp, channel, passed)
        except BaseException:
            self._close_passed()
            raise

    def _close_passed(self) -> None:
        for fd in self.builder.passed:
            os.close(fd)
        self.builder.passed.clear()

    def _environment(self) -> list[str]:
        """Return the environment, with HOME from the container's passwd unless it is set."""
        env = unique([*self.process.env, *self._activation()])
        homeless = without_home(env)
        if homeless is None:
            return env
        root = self.builder.root
        return [*homeless, f"HOME={home_of(root, self.process.user.uid) if isinstance(root, int) else '/'}"]

    def _activation(self) -> list[str]:
        """Return the variables that describe the sockets of the caller to the program.

        They contain the program's own pid, which is known beforehand only in a new pid namespace.

        Source: sd_listen_fds(3).
        """
        if not self.listened() or not self.config.is_new("pid"):
            return []
        names = os.environ.get("LISTEN_FDNAMES")
        found = [f"LISTEN_FDS={self.listened()}", "LISTEN_PID=1"]
        return [*found, f"LISTEN_FDNAMES={names}"] if names else found

    # --- the protocol

    def _on_namespaces(self, _: int) -> None:
        self.entry.save(pid=self.pid, start_time=store.start_time(self.pid))
        if self.unit:
            from containerkit.oci.systemd import start_scope

            start_scope(self.unit, self.slice_name, self.pid, f"container {self.call.name}")
            if self.groups is not None:
                self.groups.make(in_use=True)
                self._limit()
                self.groups.add(self.pid)
        if self.process.oom_score_adj is not None:
            set_score(self.pid, self.process.oom_score_adj, nested=self.host.nested)
        self._map_mounts()
        self._close_passed()
        linux = self.config.linux
        if linux.net_devices:
            from containerkit.oci.netdevices import move

            move(linux.net_devices, self.pid)
        if linux.intel_rdt is not None:
            from containerkit.oci.rdt import apply

            self.entry.save(resctrl=apply(linux.intel_rdt, self.call.name, self.pid))

    def _on_time(self, _: int) -> None:
        entering.set_time_offsets(self.pid, self.config)

    def _map_mounts(self) -> None:
        """Set the id maps of mounts, when the container's user namespace exists."""
        for tree, recursive, number in self.builder.idmaps:
            self._map_mount(tree, number, recursive=recursive)

    def _map_mount(self, tree: int, number: int, *, recursive: bool) -> None:
        mount = self.config.mounts[number]
        if mount.uid_mappings:
            namespace = idmap_namespace(mount.uid_mappings, mount.gid_mappings)
        else:
            namespace = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.mount_setattr(tree, set_flags=k.MOUNT_ATTR_IDMAP, userns=namespace, recursive=recursive)
        except OSError as error:
            hint = "the filesystem of its source can't be id-mapped"
            raise kernel.refused("mount_setattr", error, f"id map of {mount.destination}", hint) from None
        finally:
            os.close(namespace)

    def _on_idmap(self, tree: int) -> None:
        """Map the ids of a mount that the process has cloned from its own root."""
        number = self.builder.inner.idmaps.pop(0)
        own = self.take(tree, f"id map of {self.config.mounts[number].destination}")
        try:
            self._map_mount(own, number, recursive=self.builder.options[number].idmap == "ridmap")
        finally:
            os.close(own)

    def _on_mounts(self, _: int) -> None:
        from containerkit.oci import hooks

        state = self.state()
        wanted = self.config.hooks
        beside = hooks.in_runtime_namespaces(self.bundle)
        hooks.run("prestart", wanted.prestart, state, beside)
        hooks.run("createRuntime", wanted.create_runtime, state, beside)
        if wanted.create_container:
            from containerkit.oci import innerhooks

            stage = Stage(target=(self.pidfd, self.kinds), privileged=self.host.privileged)
            places = [] if self.groups is None else self.groups.places
            time = f"/proc/{self.pid}/ns/time_for_children" if self.config.namespace("time") is not None else ""
            start = innerhooks.before_pivot(stage, self.builder.rootfs, self.envp, places, time)
            hooks.run("createContainer", wanted.create_container, state, start)

    @property
    def kinds(self) -> int:
        """The ``CLONE_NEW*`` of the namespaces in which the container differs from the runtime."""
        return sum(FLAGS[each.type] for each in self.config.linux.namespaces if each.type != "time")

    def _on_ready(self, _: int) -> None:
        self._find_program()
        if self.host.raises_limits:
            set_limits(self.pid, self.process, "process")
        flags = self.call.flags
        self.entry.save(
            phase="created",
            steps=[self.gate_step, [list(each[:2]) for each in self.tape.names[self.gate_step :]]],
        )
        if path := flags.text("pid-file"):
            write_pid_file(path, self.pid)
        if path := flags.text("pidfd-socket"):
            from containerkit.oci.console import send_descriptor

            send_descriptor(path, self.pidfd, b"pidfd")

    def _find_program(self) -> None:
        """Check that the program exists, so that ``create`` reports a missing one, not ``start``."""
        try:
            root = os.open(f"/proc/{self.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # not visible for this user: the start will report it
        try:
            find_program(root, self.process)
        finally:
            os.close(root)
