"""RUN: execute a command in a container. Its changes become a layer."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit._linux.last_capability import last_capability
from containerkit.container.lifecycle import Container
from containerkit.errors import ExitError, SpecError
from containerkit.image.build.agent import forwarded_agent
from containerkit.image.config import DEFAULT_PATH
from containerkit.image.diff import layer_from_directory
from containerkit.archive.beneath import open_beneath
from containerkit.archive.tarwrite import Writing
from containerkit.image.store.locks import workspace
from containerkit.security.capabilities import Capabilities
from containerkit.spec.mount import Mount
from containerkit.spec.rootfs import RootFS
from containerkit.spec.traffic import Egress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from containerkit.image.build.copying import Source
    from containerkit.image.digest import Digest
    from containerkit.archive.view import Parts, View
    from containerkit.image.manifest import Descriptor
    from containerkit.image.store import Lease, Store

__all__ = ["Around", "MountFlag", "Run", "parse_mount"]

_KINDS: Final = {
    "bind": {"type", "target", "dst", "destination", "source", "src", "from", "rw", "readwrite", "readonly", "ro"},
    "cache": {
        "type", "id", "target", "dst", "destination", "source", "src", "from", "sharing", "mode", "uid", "gid",
        "ro", "readonly", "rw", "readwrite",
    },
    "tmpfs": {"type", "target", "dst", "destination", "size"},
    "secret": {"type", "id", "target", "dst", "destination", "required", "mode", "uid", "gid", "env", "source", "src"},
    "ssh": {"type", "id", "target", "dst", "destination", "required", "mode", "uid", "gid"},
}  # fmt: skip
_MADE: Final = ("/proc", "/sys", "/dev")
_FILES: Final = ("/etc/hosts", "/etc/resolv.conf")


@attrs.frozen(kw_only=True)
class MountFlag:
    """One ``--mount``.

    Attributes:
        kind: bind, cache, tmpfs, secret or ssh.
        options: the options, with their long names (``target``, ``source``).
    """

    kind: str
    options: Mapping[str, str]

    def get(self, name: str, default: str = "") -> str:
        """Return the value of an option."""
        return self.options.get(name, default)

    def switch(self, name: str) -> bool:
        """Return whether an option is on."""
        return self.options.get(name, "false").lower() in ("", "true", "1")


def parse_mount(text: str) -> MountFlag:
    """Parse the value of ``--mount``.

    Raises:
        SpecError: a type or option is unknown, or a required one is missing.

    Source: Dockerfile reference, "RUN --mount".
    """
    options: dict[str, str] = {}
    for field in text.split(","):
        key, _, value = field.partition("=")
        key = {"dst": "target", "destination": "target", "src": "source", "ro": "readonly", "rw": "readwrite"}.get(
            key, key
        )
        options[key] = value.strip('"')
    kind = options.get("type", "bind") or "bind"
    if kind not in _KINDS:
        raise SpecError(f"--mount={text}: the type must be one of {', '.join(_KINDS)}")
    if unknown := sorted(set(options) - _KINDS[kind]):
        raise SpecError(f"--mount={text}: unknown option {unknown[0]!r}")
    if kind in ("bind", "cache", "tmpfs") and not options.get("target"):
        raise SpecError(f"--mount={text}: the target is missing")
    if options.get("sharing", "shared") not in ("shared", "private", "locked"):
        raise SpecError(f"--mount={text}: sharing must be shared, private or locked")
    return MountFlag(kind=kind, options=options)


@attrs.frozen(kw_only=True)
class Around:
    """What all commands of a build find around them.

    Attributes:
        hosts: addresses of names.
        rlimits: their limits of resources; None for the default.
        shm_size: the size of ``/dev/shm``; None for the default.
    """

    hosts: Mapping[str, str] = attrs.field(factory=dict)
    rlimits: Mapping[str, int | tuple[int, int]] | None = None
    shm_size: int | str | None = None

    @property
    def key(self) -> str:
        """Its part of the key of a result in the cache."""
        return "" if self == Around() else json.dumps(attrs.astuple(self), sort_keys=True)

    def mounts(self) -> list[Mount]:
        """Return the mounts for it."""
        if self.shm_size is None:
            return []
        return [Mount.tmpfs("/dev/shm", size=self.shm_size, mode=0o1777, noexec=True)]  # noqa: S108 - inside


@attrs.frozen(kw_only=True)
class Run:
    """One RUN instruction.

    Args:
        argv: the command.
        env: its environment.
        user: ``user[:group]``; empty is root.
        cwd: its working directory.
        mounts: its mounts.
        network: ``none``, ``internet`` or ``host``.
        egress: with ``internet``: the only destinations that may be reached; None for all.
        view: the root before the command.
        directories: the layers below, topmost first.
        source: returns the source of a mount for the value of ``from`` (empty: the build context).
        secrets: contents by id.
        store: the destination of the layer.
        log: called with each line that the command writes.
        script: a file that is shown at ``/run/.heredoc`` and run by the command, or None.
        insecure: whether it has all capabilities in its user namespace, no filter and no hidden paths.
        around: what it finds around it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    user: str
    cwd: str
    mounts: tuple[MountFlag, ...]
    network: str
    egress: tuple[str, ...] | None
    view: View
    directories: tuple[str, ...]
    source: Callable[[str], Source]
    secrets: Mapping[str, bytes]
    store: Store
    log: Callable[[str], None]
    script: bytes | None = None
    insecure: bool = False
    around: Around = attrs.field(factory=Around)

    def make(self, lease: Lease, epoch: int | None) -> tuple[Descriptor, Digest] | None:
        """Run the command and make a layer of its changes.

        Args:
            lease: a claim that will cover the layer.
            epoch: in seconds; later times are set to it.

        Returns:
            The layer, or None if the command changed nothing.

        Raises:
            ExitError: the command failed.
            SpecError: the source of a mount does not exist.
            SetupError: the container can't be started.
        """
        with workspace(self.store.root / "build") as directory, ExitStack() as stack:
            directory.chmod(0o711)
            upper, work = directory / "upper", directory / "work"
            work.mkdir()
            self._make_upper(upper)
            env = {"PATH": DEFAULT_PATH, **self.env}
            mounts = [mount for flag in self.mounts for mount in self._mount(flag, directory, stack, env)]
            mounts += self.around.mounts()
            if self.script is not None:
                (directory / "script").write_bytes(self.script)
                (directory / "script").chmod(0o755)
                mounts.append(Mount.bind(directory / "script", "/run/.heredoc", readonly=True))
            if self.network == "host" and os.path.exists("/etc/resolv.conf"):
                mounts.append(Mount.bind(os.path.realpath("/etc/resolv.conf"), "/etc/resolv.conf", readonly=True))
            stood = self._run(RootFS.overlay(*self.directories, upper=upper, work=work), mounts, env)
            if self.network == "internet":  # the container's own files are mounted there
                mounts += [Mount.file(path, b"") for path in _FILES]
            exclude = (*_MADE, *(mount.target for mount in mounts))
            root = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for mount in mounts:
                    self._remove_place(root, mount.target)
                how = Writing(overlay=True, marks=stood.union == "fuse", epoch=epoch, exclude=exclude)
                return layer_from_directory(self.store, root, lease, how)
            finally:
                os.close(root)

    def _remove_place(self, root: int, target: str) -> None:
        """Remove an empty mount point that was created for a mount, and empty parent directories.

        The command may have created symlinks there. They are not followed.
        """
        parts = self.view.resolve(os.fsencode(target))
        for depth in range(len(parts), 0, -1):
            if self.view.find(parts[:depth]) is not None:
                return
            try:
                above = open_beneath(root, b"/".join(parts[: depth - 1]) or b".", os.O_PATH | os.O_DIRECTORY)
            except OSError:
                return
            try:
                status = os.stat(parts[depth - 1], dir_fd=above, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.rmdir(parts[depth - 1], dir_fd=above)
                elif depth == len(parts) and stat.S_ISREG(status.st_mode) and status.st_size == 0:
                    os.unlink(parts[depth - 1], dir_fd=above)
            except FileNotFoundError:
                pass
            except OSError:
                return  # it is not empty
            finally:
                os.close(above)

    def _make_upper(self, upper: Path) -> None:
        """Give the upper directory the mode and owner of the root below it, which the container sees as ``/``."""
        upper.mkdir()
        top = self.view.find(())
        if top is not None:
            os.chown(upper, top.status.st_uid, top.status.st_gid)
            upper.chmod(stat.S_IMODE(top.status.st_mode))

    def _network(self) -> dict[str, Any]:
        rules = {} if self.egress is None else {"egress": Egress.only(*self.egress)}
        hosts = {"hosts": self.around.hosts} if self.around.hosts and self.network == "internet" else {}
        return {"network": self.network, **rules, **hosts}

    def _run(self, rootfs: RootFS, mounts: list[Mount], env: dict[str, str]) -> RootFS:
        output: list[str] = []
        rights = _insecure() if self.insecure else {"capabilities": Capabilities.docker()}
        # Its output stays in the store, which only the caller can access, because packages contain set-user-ID
        # programs.
        container = Container(rootfs, mounts=mounts, hostname="build", set_id_bits=True, **self._network(), **rights)
        with container:
            options: dict[str, Any] = {"env": env, "cwd": self.cwd or "/", "rlimits": self.around.rlimits}
            if self.user:
                options["user"] = self.user
            read, write = os.pipe2(os.O_CLOEXEC)
            with open(read, encoding="utf-8", errors="replace") as lines:
                try:
                    process = container.popen(list(self.argv), stdin=-3, stdout=write, stderr=write, **options)
                finally:
                    os.close(write)
                with process:
                    for line in lines:
                        output.append(line)
                        self.log(line.rstrip("\n"))
                        del output[:-200]
                    status = process.wait()
            found = container.rootfs
        if status != 0:
            raise ExitError(status, list(self.argv), "".join(output), None)
        return found

    # --- Mounts

    def _mount(self, flag: MountFlag, directory: Path, stack: ExitStack, env: dict[str, str]) -> Iterator[Mount]:
        target = flag.get("target")
        if target and not target.startswith("/"):
            target = os.path.normpath(f"{self.cwd or '/'}/{target}")
        if flag.kind == "tmpfs":
            yield Mount.tmpfs(target, size=flag.get("size") or None)
        elif flag.kind == "secret":
            yield from self._secret(flag, target, directory, env)
        elif flag.kind == "ssh":
            yield from self._agent(flag, target or "/run/buildkit/ssh_agent.0", directory, stack, env)
        elif flag.kind == "cache":
            yield Mount.bind(
                self._cache_directory(flag, target, directory, stack), target, readonly=flag.switch("readonly")
            )
        else:
            yield self._bind(flag, target, directory)

    def _agent(
        self, flag: MountFlag, target: str, directory: Path, stack: ExitStack, env: dict[str, str]
    ) -> Iterator[Mount]:
        agent = os.environ.get("SSH_AUTH_SOCK")
        if not agent:
            if flag.switch("required"):
                raise SpecError("--mount=type=ssh: no agent to forward: SSH_AUTH_SOCK is not set")
            return
        place = directory / f"agent-{hashlib.sha256(target.encode()).hexdigest()[:16]}"
        stack.enter_context(forwarded_agent(agent, place))
        place.chmod(int(flag.get("mode", "0600"), 8))
        os.chown(place, int(flag.get("uid", "0")), int(flag.get("gid", "0")))
        env["SSH_AUTH_SOCK"] = target
        yield Mount.bind(place, target)

    def _secret(self, flag: MountFlag, target: str, directory: Path, env: dict[str, str]) -> Iterator[Mount]:
        name = flag.get("id") or os.path.basename(target)
        if name not in self.secrets:
            if flag.switch("required"):
                raise SpecError(f"--mount=type=secret: no secret {name!r} (hint: pass secrets={{{name!r}: ...}})")
            return
        content = self.secrets[name]
        if variable := flag.get("env"):
            env[variable] = content.decode("utf-8", "surrogateescape")
            if not target:
                return
        place = directory / f"secret-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        place.write_bytes(content)
        place.chmod(int(flag.get("mode", "0400"), 8))
        os.chown(place, int(flag.get("uid", "0")), int(flag.get("gid", "0")))
        yield Mount.bind(place, target or f"/run/secrets/{name}", readonly=True)

    def _cache_directory(self, flag: MountFlag, target: str, directory: Path, stack: ExitStack) -> Path:
        """Return the directory of a cache. It is the same for each build that names it, unless it is private."""
        name = hashlib.sha256((flag.get("id") or target).encode()).hexdigest()[:32]
        if flag.get("sharing") == "private":
            place = directory / f"cache-{name}"
        else:
            place = self.store.root / "build/mounts" / name
        if not place.exists():
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(int(flag.get("mode", "0755"), 8))
            os.chown(place, int(flag.get("uid", "0")), int(flag.get("gid", "0")))
            if flag.get("from") or flag.get("source"):
                source = self.source(flag.get("from"))
                _link_tree(source.view, source.view.resolve(os.fsencode(flag.get("source"))), place)
        if flag.get("sharing") == "locked":
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return place

    def _bind(self, flag: MountFlag, target: str, directory: Path) -> Mount:
        source = self.source(flag.get("from"))
        parts = source.view.resolve(os.fsencode(flag.get("source")))
        found = source.view.find(parts)
        if found is None:
            raise SpecError(f"--mount=type=bind: {flag.get('source') or '/'!r} is not in {source.name}")
        directories = source.view.directories(parts) if found.is_directory else (found.path,)
        writes = flag.switch("readwrite") if "readwrite" in flag.options else False
        if len(directories) == 1 and not writes:
            return Mount.bind(os.fsdecode(directories[0]), target, readonly=True)
        copy = directory / f"bind-{hashlib.sha256(target.encode()).hexdigest()[:16]}"
        if found.is_directory:
            copy.mkdir()
            _link_tree(source.view, parts, copy, copy_files=writes)
        else:
            _bring(found.path, copy, copy_file=True)
        return Mount.bind(copy, target, readonly=not writes)


def _insecure() -> dict[str, Any]:
    """Return the arguments for a container without restrictions. It still has its own user namespace.

    Source: Dockerfile reference, "RUN --security".
    """
    return {
        "capabilities": Capabilities.all(last_capability()),
        "seccomp": None,
        "no_new_privs": False,
        "masked_paths": (),
        "readonly_paths": (),
        "nested_userns": True,
    }


def _link_tree(view: View, parts: Parts, target: Path, *, copy_files: bool = True) -> None:
    """Recreate a directory of a view on the host, with hard links to its files. Nobody may write to the links."""
    for name in view.names(parts):
        found = view.find((*parts, name))
        place = target / os.fsdecode(name)
        if found is None:
            continue
        if found.is_directory:
            place.mkdir()
            _link_tree(view, (*parts, name), place, copy_files=copy_files)
            os.chown(place, found.status.st_uid, found.status.st_gid)
            place.chmod(stat.S_IMODE(found.status.st_mode))
        else:
            _bring(found.path, place, copy_file=copy_files)


def _bring(source: bytes, place: Path, *, copy_file: bool) -> None:
    import shutil

    status = os.lstat(source)
    if not copy_file:
        try:
            os.link(source, place, follow_symlinks=False)
        except OSError:
            copy_file = True
    if copy_file:
        shutil.copy2(os.fsdecode(source), place, follow_symlinks=False)
        os.lchown(place, status.st_uid, status.st_gid)


def shell_command(shell: Sequence[str], text: str) -> tuple[str, ...]:
    """Return the argv that runs a line with a shell."""
    return (*shell, text)
