"""The instructions, one method each, and the state of the stage."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import ContainerError, SpecError
from containerkit.image.build.copying import Copy, Source, fetch, mode_of, owner_of, unpack_archive
from containerkit.image.build.dockerfile import NAMES, Instruction, parse_instruction
from containerkit.image.build.draft import Draft
from containerkit.image.build.patterns import pattern
from containerkit.image.build.repositories import Repository
from containerkit.image.build.running import Run, parse_mount, shell_command
from containerkit.image.build.words import expand, name_values, split_words
from containerkit.image.config import Healthcheck, History, ImageConfig
from containerkit.archive.tarwrite import Head
from containerkit.image.layers.unpack import layer_paths, unpack_layers
from containerkit.archive.view import View
from containerkit.image.store.cache import Made, key_of
from containerkit.image.store.locks import workspace

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.image.build.engine import Engine
    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor

__all__ = ["StageBuilder"]

_SHELL: Final = ("/bin/sh", "-c")
_PROXIES: Final = frozenset(
    name
    for plain in ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
    for name in (plain, plain.upper())
)
_PORT: Final = re.compile(r"([0-9]+)(?:-([0-9]+))?(?:/(tcp|udp|sctp))?")
_ADDRESS: Final = re.compile(r"https?://")
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|µs|ms|s|m|h)")
_UNITS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


class StageBuilder:
    """Builds one stage.

    Args:
        engine: the build.
        config: the config of the base.
        layers: the layers of the base, lowest first.
        key: the cache key of the base.
    """

    def __init__(self, engine: Engine, config: ImageConfig, layers: list[tuple[Descriptor, Digest]], key: str) -> None:
        self.engine = engine
        self.config = config
        self.layers = layers
        self.key = key
        self.created = config.created
        self.arguments: dict[str, str] = {}
        self._set_command = False
        self._view: View | None = None

    # --- Helpers of the instructions

    @property
    def variables(self) -> dict[str, str]:
        """The variables that are replaced: arguments, and the environment, which takes precedence."""
        return {**self.arguments, **self.config.defaults.env}

    @property
    def shell(self) -> tuple[str, ...]:
        """The shell of shell-form commands."""
        return self.config.defaults.shell or _SHELL

    def directories(self) -> tuple[str, ...]:
        """Return the unpacked layers, topmost first, or an empty directory if there are none."""
        if not self.layers:
            empty = self.engine.store.root / "build/empty"
            empty.mkdir(exist_ok=True, mode=0o755)
            return (str(empty),)
        return layer_paths(unpack_layers(self.engine.store, self.layers, self.engine.lease))

    def view(self) -> View:
        """Return the current root."""
        if self._view is None:
            self._view = View(self.directories())
        return self._view

    def words(self, text: str) -> list[str]:
        """Split a text into words and expand them."""
        return split_words(text, self.variables, self.engine.escape)

    def word(self, text: str) -> str:
        """Expand a text without splitting it."""
        return expand(text, self.variables, self.engine.escape)

    def change(self, one: Instruction, text: str = "", **fields: Any) -> None:
        """Change fields of the config's defaults, and record the instruction in the history."""
        self.config = self.config.evolve(defaults=attrs.evolve(self.config.defaults, **fields))
        self.key = key_of(self.key, text or str(one))
        self._note(text or str(one), None, self.created)

    def layer(self, facts: str, shown: str, make: Callable[[], tuple[Descriptor, Digest] | None]) -> None:
        """Add the layer of a step, from the cache if possible."""
        key = key_of(self.key, facts)
        cached = self.engine.cache.find(key, self.engine.lease)
        if cached is None:
            self.engine.report(shown, "running")
            made = make()
            cached = Made(layer=made, created=self.engine.timestamp())
            self.engine.cache.put(key, cached)
            self.engine.report(shown, "done")
        else:
            self.engine.report(shown, "exists")
        self.key = key
        self.created = max(self.created, cached.created)
        if cached.layer is not None:
            self.layers = [*self.layers, cached.layer]
            self._view = None
        self._note(shown, cached.layer, cached.created)

    def _note(self, shown: str, layer: tuple[Descriptor, Digest] | None, created: str) -> None:
        entry = History(created=created, created_by=shown, empty_layer=layer is None)
        diff_ids = self.config.diff_ids if layer is None else (*self.config.diff_ids, layer[1])
        self.config = self.config.evolve(history=(*self.config.history, entry), diff_ids=diff_ids, created=self.created)

    def execute(self, one: Instruction) -> None:
        """Execute an instruction.

        Raises:
            SpecError: it is malformed. The error names its line.
            ExitError: its command failed.
        """
        method: Callable[[Instruction], None] = getattr(self, f"do_{one.name.lower()}")
        try:
            method(one)
        except SpecError as error:
            if str(error).startswith(f"line {one.line}: "):
                raise
            raise one.problem(str(error)) from error
        except ContainerError as error:
            error.add_note(f"in line {one.line} of the Dockerfile: {str(one)[:200]}")
            raise

    # --- Metadata

    def do_arg(self, one: Instruction) -> None:
        """ARG: declare arguments."""
        for word in split_words(one.text, self.variables, self.engine.escape):
            name, equals, default = word.partition("=")
            value = self.engine.arguments.get(name)
            if value is None:
                value = default if equals else self.engine.global_arguments.get(name)
            if value is not None:
                self.arguments[name] = value
        self._note(str(one), None, self.created)

    def do_env(self, one: Instruction) -> None:
        """ENV: set environment variables."""
        pairs = dict(name_values(one.text, self.variables, self.engine.escape))
        text = "ENV " + " ".join(f"{key}={value}" for key, value in pairs.items())
        self.change(one, text, env={**self.config.defaults.env, **pairs})

    def do_label(self, one: Instruction) -> None:
        """LABEL: set labels."""
        pairs = dict(name_values(one.text, self.variables, self.engine.escape))
        text = "LABEL " + " ".join(f"{key}={value}" for key, value in pairs.items())
        self.change(one, text, labels={**self.config.defaults.labels, **pairs})

    def do_maintainer(self, one: Instruction) -> None:
        """MAINTAINER: set the author."""
        self.config = self.config.evolve(author=one.text)
        self.change(one)

    def do_user(self, one: Instruction) -> None:
        """USER: set the user of commands."""
        user = self.word(one.text)
        if not user:
            raise one.problem("expected USER[:GROUP]")
        self.change(one, f"USER {user}", user=user)

    def do_stopsignal(self, one: Instruction) -> None:
        """STOPSIGNAL: set the signal that ends a container."""
        import signal

        name = self.word(one.text).upper()
        plain = name if name.isdecimal() or name.startswith("SIG") else f"SIG{name}"
        known = {number.name for number in signal.Signals} | {str(int(number)) for number in signal.Signals}
        if plain not in known and not plain.startswith(("SIGRTMIN+", "SIGRTMAX-")):
            raise one.problem(f"there is no signal {name!r}")
        self.change(one, f"STOPSIGNAL {name}", stop_signal=plain)

    def do_expose(self, one: Instruction) -> None:
        """EXPOSE: declare the ports on which it listens."""
        ports = list(self.config.defaults.exposed_ports)
        for word in self.words(one.text):
            found = _PORT.fullmatch(word.lower())
            first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
            if found is None or not 0 < first <= last <= 0xFFFF:
                raise one.problem(f"{word!r} is not of the form PORT[-PORT][/tcp|udp|sctp]")
            ports += [f"{port}/{found[3] or 'tcp'}" for port in range(first, last + 1)]
        self.change(one, exposed_ports=tuple(dict.fromkeys(ports)))

    def do_volume(self, one: Instruction) -> None:
        """VOLUME: declare the directories that contain data."""
        exec_form = one.json_form
        words = [self.word(word) for word in exec_form] if exec_form is not None else self.words(one.text)
        if not words or not all(words):
            raise one.problem("expected at least one directory")
        self.change(one, volumes=tuple(dict.fromkeys((*self.config.defaults.volumes, *words))))

    def do_shell(self, one: Instruction) -> None:
        """SHELL: set the shell of shell-form commands."""
        words = one.json_form
        if not words:
            raise one.problem('expected a JSON list such as ["/bin/bash", "-c"]')
        self.change(one, shell=words)

    def do_cmd(self, one: Instruction) -> None:
        """CMD: set the default command."""
        self._set_command = True
        self.change(one, command=self._command(one))

    def do_entrypoint(self, one: Instruction) -> None:
        """ENTRYPOINT: set the entrypoint. A command of the base image is removed."""
        fields: dict[str, Any] = {"entrypoint": self._command(one)}
        if not self._set_command:
            fields["command"] = ()
        self.change(one, **fields)

    def _command(self, one: Instruction) -> tuple[str, ...]:
        words = one.json_form
        if words is not None:
            return words
        return shell_command(self.shell, one.text) if one.text else ()

    def do_healthcheck(self, one: Instruction) -> None:
        """HEALTHCHECK: set the command that checks whether it works."""
        if one.text.strip().upper() == "NONE":
            self.change(one, healthcheck=Healthcheck(test=("NONE",)))
            return
        kind, _, rest = one.text.partition(" ")
        if kind.upper() != "CMD" or not rest.strip():
            raise one.problem("expected CMD and a command, or NONE")
        words = Instruction(name="CMD", text=rest.strip()).json_form
        test = ("CMD", *words) if words is not None else ("CMD-SHELL", rest.strip())
        retries = one.flag("retries", "0")
        if not retries.isdecimal():
            raise one.problem(f"--retries={retries} is not a number")
        check = Healthcheck(
            test=test,
            interval_ns=_duration(one, "interval"),
            timeout_ns=_duration(one, "timeout"),
            start_period_ns=_duration(one, "start-period"),
            start_interval_ns=_duration(one, "start-interval"),
            retries=int(retries),
        )
        self.change(one, healthcheck=check)

    def do_onbuild(self, one: Instruction) -> None:
        """ONBUILD: add an instruction for builds that start from this image."""
        name = one.text.split(None, 1)[0].upper() if one.text else ""
        if name in ("ONBUILD", "FROM", "MAINTAINER") or name not in NAMES:
            raise one.problem(f"{name or 'nothing'} can't be triggered")
        text = one.text + "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in one.heredocs)
        parse_instruction(text, self.engine.escape)
        self.change(one, on_build=(*self.config.defaults.on_build, text))

    def run_triggers(self) -> None:
        """Execute the triggers of the base image, and remove them from the config."""
        waiting = self.config.defaults.on_build
        if waiting:
            self.config = self.config.evolve(defaults=attrs.evolve(self.config.defaults, on_build=()))
            for text in waiting:
                self.execute(parse_instruction(text, self.engine.escape))

    # --- Files

    def do_workdir(self, one: Instruction) -> None:
        """WORKDIR: set the working directory. If it does not exist, it is created with the user as its owner."""
        path = self.word(one.text)
        if not path:
            raise one.problem("expected a directory")
        where = os.path.normpath(os.path.join(self.config.defaults.working_dir or "/", path))
        self.config = self.config.evolve(defaults=attrs.evolve(self.config.defaults, working_dir=where))
        view = self.view()
        parts = view.resolve(os.fsencode(where))
        found = view.find(parts)
        if found is not None and found.is_directory:
            self.change(one, f"WORKDIR {where}")
            return
        owner = (0, 0)
        with suppress(SpecError):  # the user does not exist in the image yet
            owner = owner_of(view, self.config.defaults.user or "0")
        draft = Draft(view, owner)
        draft.add_directory(parts)
        self.layer(f"WORKDIR {where} {owner}", f"WORKDIR {where}", lambda: self._written(draft))

    def _written(self, draft: Draft) -> tuple[Descriptor, Digest]:
        return draft.write(self.engine.store, self.engine.lease, self.engine.epoch)

    def do_copy(self, one: Instruction) -> None:
        """COPY: copy files to the image."""
        self._bring(one, add=False)

    def do_add(self, one: Instruction) -> None:
        """ADD: copy files, unpack archives, fetch addresses."""
        self._bring(one, add=True)

    def _bring(self, one: Instruction, *, add: bool) -> None:
        exec_form = one.json_form
        words = [self.word(word) for word in exec_form] if exec_form is not None else self._copy_words(one)
        if len(words) < 2:
            raise one.problem("expected at least one source and the destination")
        *sources, target = words
        where = os.path.join(self.config.defaults.working_dir or "/", target)
        into = target.endswith(("/", "/.")) or target == "." or len(sources) > 1
        if len(sources) > 1 and not target.endswith(("/", "/.")) and target != ".":
            raise one.problem(f"with several sources the destination must end with a slash: {target}/")
        origin = one.flag("from")
        documents = {f"<<{heredoc.name}": heredoc for heredoc in one.heredocs}
        repositories = {word: Repository.parse(word) for word in sources} if add else {}
        elsewhere = {word for word in sources if word in documents or repositories.get(word)}
        local = [word for word in sources if word not in elsewhere and not (add and _ADDRESS.match(word))]
        source = self.engine.source(self.word(origin)) if local else Source(view=self.view())
        draft = self._draft(one, keep_owner=bool(origin))
        with workspace(self.engine.store.root / "build") as directory:
            copy = Copy(
                source=source, draft=draft, target=where, into=into, parents=one.switch("parents"),
                exclude=tuple(pattern(self.word(text)) for text in one.flags.get("exclude", ())), workspace=directory,
                limits=self.engine.store.limits,
            )  # fmt: skip
            for word in sources:
                if word in documents:
                    heredoc = documents[word]
                    content = self._heredoc_content(heredoc.content, expanded=heredoc.expand)
                    goal = draft.view.resolve(os.fsencode(where))
                    inside = into or draft.is_directory(goal)
                    draft.add_content((*goal, heredoc.name.encode()) if inside else goal, content)
                elif repository := repositories.get(word):
                    self._add_repository(one, repository, copy)
                elif add and _ADDRESS.match(word):
                    self._add_address(one, word, copy, into=into)
                else:
                    copy.add(word, unpack=add and one.flag("unpack", "true") != "false")
            if draft.is_empty:
                self.change(one)
                return
            facts = f"{one.name} {draft.digest()}"
            self.layer(facts, str(one), lambda: self._written(draft))

    def _copy_words(self, one: Instruction) -> list[str]:
        text = re.sub(r"<<-?\s*([\"']?)([^\s\"']+)\1", r"<<\2", one.text) if one.heredocs else one.text
        return self.words(text)

    def _heredoc_content(self, content: str, *, expanded: bool) -> bytes:
        if expanded:
            content = expand(content, self.variables, self.engine.escape, quotes=False)
        return content.encode("utf-8", "surrogateescape")

    def _draft(self, one: Instruction, *, keep_owner: bool) -> Draft:
        owner: tuple[int, int] | None = None if keep_owner else (0, 0)
        if chown := self.word(one.flag("chown")):
            owner = owner_of(self.view(), chown)
        chmod = self.word(one.flag("chmod"))
        return Draft(self.view(), owner, mode_of(chmod) if chmod else None)

    def _add_address(self, one: Instruction, url: str, copy: Copy, *, into: bool) -> None:
        place = copy.workspace / f"fetched-{token_hex(8)}"
        name = fetch(url, place, one.flag("checksum"))
        goal = copy.draft.view.resolve(os.fsencode(copy.target))
        if one.flags.get("unpack") and one.switch("unpack"):
            copy.draft.add_directory(goal)
            with place.open("rb") as file:
                unpack_archive(file, copy.draft, goal, copy.workspace, copy.limits)
            return
        if into or copy.draft.is_directory(goal):
            goal = (*goal, name.encode())
        head = Head(name=b"", kind=b"0", mode=0o600, mtime_ns=-1)
        copy.draft.add_head(goal, head, os.fsencode(place))

    def _add_repository(self, one: Instruction, repository: Repository, copy: Copy) -> None:
        place = copy.workspace / f"repository-{token_hex(8)}"
        place.mkdir()
        repository.fetch(place, checksum=self.word(one.flag("checksum")), keep_git=one.switch("keep-git-dir"))
        source = Source(view=View([str(place)], overlay=False), name=repository.address)
        attrs.evolve(copy, source=source).add(repository.directory or ".")

    # --- RUN

    def do_run(self, one: Instruction) -> None:
        """RUN: execute a command whose changes become a layer."""
        network, insecure = self._network(one), self._is_insecure(one)
        egress = self.engine.egress if network == "internet" else None
        argv, script = self._run_command(one)
        if not argv:
            raise one.problem("expected a command")
        flags = tuple(parse_mount(self.word(text)) for text in one.flags.get("mount", ()))
        sources = [
            key_of(flag.get("from"), self._mount_facts(flag.get("from"), flag.get("source")))
            for flag in flags
            if flag.kind == "bind"
        ]
        arguments = {name: value for name, value in self.arguments.items() if name not in _PROXIES}
        proxies = {name: value for name, value in self.engine.arguments.items() if name in _PROXIES}
        env = {**proxies, **self.arguments, **self.config.defaults.env}
        facts = key_of(
            "RUN", repr(argv), repr(script), repr(sorted(arguments.items())), repr(sources), network,
            *([repr(egress)] if egress is not None else []),
            *(["insecure"] if insecure else []), *filter(None, [self.engine.around.key]), repr([sorted(flag.options.items()) for flag in flags]),
        )  # fmt: skip
        shown = f"RUN {' '.join(argv)}" if script is None else f"RUN {one.text}"

        def make() -> tuple[Descriptor, Digest] | None:
            run = Run(
                argv=argv, env=env, user=self.config.defaults.user, cwd=self.config.defaults.working_dir, mounts=flags,
                network=network, egress=egress, view=self.view(), directories=self.directories(),
                source=self.engine.source, secrets=self.engine.secrets, store=self.engine.store, log=self.engine.log,
                script=script, insecure=insecure, around=self.engine.around,
            )  # fmt: skip
            return run.make(self.engine.lease, self.engine.epoch)

        self.layer(facts, shown, make)

    def _network(self, one: Instruction) -> str:
        wanted = one.flag("network", "default")
        if wanted not in ("default", "none", "host"):
            raise one.problem(f"--network={wanted}: expected default, none or host")
        if wanted == "host" and self.engine.network != "host":
            self._require(one, "network.host", " or network='host'")
        return self.engine.network if wanted == "default" else wanted

    def _is_insecure(self, one: Instruction) -> bool:
        wanted = one.flag("security", "sandbox")
        if wanted not in ("sandbox", "insecure"):
            raise one.problem(f"--security={wanted}: expected sandbox or insecure")
        if wanted == "insecure":
            self._require(one, "security.insecure")
        return wanted == "insecure"

    def _require(self, one: Instruction, entitlement: str, other: str = "") -> None:
        if entitlement not in self.engine.allow:
            flag = "--" + entitlement.replace(".", "=")
            raise one.problem(f"{flag} must be allowed by the build (hint: pass allow=({entitlement!r},){other})")

    def _run_command(self, one: Instruction) -> tuple[tuple[str, ...], bytes | None]:
        if not one.heredocs:
            return self._command(one), None
        only = len(one.heredocs) == 1 and re.fullmatch(r"<<-?\s*[\"']?[^\s\"']+[\"']?", one.text.strip())
        if only:
            content = one.heredocs[0].content
            if content.startswith("#!"):
                return ("/run/.heredoc",), content.encode("utf-8", "surrogateescape")
            return shell_command(self.shell, content), None
        text = one.text + "\n" + "".join(f"{heredoc.content}{heredoc.name}\n" for heredoc in one.heredocs)
        return shell_command(self.shell, text.replace("<<-", "<<")), None

    def _mount_facts(self, origin: str, path: str) -> str:
        """Return a hash of the content of a bind mount, so that the command runs again if the content changes."""
        source = self.engine.source(origin)
        draft = Draft(View([self.directories()[-1]], overlay=False), owner=None)
        copy = Copy(source=source, draft=draft, target="/mounted", into=False)
        copy.add(path or ".")
        return draft.digest()


def _duration(one: Instruction, flag: str) -> int:
    text = one.flag(flag)
    if not text:
        return 0
    found = _DURATION.findall(text)
    if not found or "".join(number + unit for number, unit in found) != text:
        raise one.problem(f"--{flag}={text} is not a duration such as 1m30s")
    return round(sum(float(number) * _UNITS[unit] for number, unit in found))
