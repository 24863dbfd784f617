"""What a user of Docker types and finds elsewhere here: options of each command, and whole commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ACCEPTED", "COMMANDS", "OPTIONS", "Elsewhere", "add"]

COMMANDS: Final = {
    "search": "a registry can't be searched by its protocol: look at its web page, such as https://hub.docker.com",
    "export": "use 'containerkit commit CONTAINER NAME' and 'containerkit image export NAME'",
    "buildx": "use 'containerkit build'",
    "builder": "use 'containerkit build', and 'containerkit image prune --cache' for its cache",
    "context": "there is no daemon that could be elsewhere",
    "checkpoint": "the library has Container.checkpoint(); containerkit-oci has 'checkpoint' and 'restore'",
    "manifest": "use 'containerkit image inspect --manifest NAME'",
    "plugin": "there are no plugins",
    "trust": "name images by digest: NAME@sha256:...",
    "swarm": "there are no clusters; for one machine there is 'containerkit compose'",
    "stack": "use 'containerkit compose'",
    "service": "use 'containerkit compose'",
    "node": "there are no clusters",
    "secret": "use secrets of 'containerkit compose', or 'containerkit build --secret'",
    "config": "use configs of 'containerkit compose'",
    "scout": "there is nothing like it here",
    "port": "use 'containerkit inspect', or 'containerkit compose port'",
    "events": "use 'containerkit wait', or 'containerkit ps'",
}
"""Commands of Docker's that are none here, and what to use."""

OPTIONS: Final[Mapping[str, Mapping[tuple[str, ...], str]]] = {
    "exec": {
        ("-d", "--detach"): "let a shell do it: exec NAME sh -c 'setsid COMMAND </dev/null >/dev/null 2>&1 &'",
        ("--privileged",): "a command gets what its container has; --user chooses the user",
        ("--detach-keys",): "end the command, or use 'containerkit attach' for the first one",
    },
    "logs": {("--details",): "labels are shown by 'containerkit inspect'"},
    "cp": {
        ("-a", "--archive"): "files belong to root of the container; owners are set by 'containerkit exec NAME chown'",
        ("-L", "--follow-link"): "symlinks are copied as such: name what they point to",
    },
    "commit": {
        ("-c", "--change"): "use the library's Detached.commit(command=..., env=...), or a Dockerfile FROM the image",
        ("-p", "--pause", "--no-pause"): "it is not paused: 'containerkit pause' does that",
    },
    "update": {("--kernel-memory",): "the kernel has no such limit any more"},
    "pull": {("-a", "--all-tags"): "name the tags; 'skopeo list-tags docker://NAME' lists them"},
    "push": {("-a", "--all-tags"): "name the tags, one command each"},
    "build": {
        ("-o", "--output"): "use 'containerkit image export' afterwards",
        ("--cache-from", "--cache-to"): "the cache is the store's own, by content",
        ("--add-host",): "with --network host the host's /etc/hosts counts",
        ("--build-context", "--ssh", "--iidfile", "--label", "--metadata-file", "--shm-size", "--ulimit"): (
            "use the library's Build(...), or instructions of the Dockerfile, such as LABEL"
        ),
        (
            "-m",
            "--memory",
            "--cpuset-cpus",
            "--cpu-shares",
            "--cgroup-parent",
        ): "run it in a group: systemd-run --scope",
        ("--squash",): "use 'containerkit image squash' afterwards",
        ("--security-opt",): "use --allow security.insecure",
    },
    "login": {("-p", "--password"): "others would see it in the list of processes: use --password-stdin"},
    "ps": {("-s", "--size"): "use 'containerkit system df'"},
    "stats": {("-a", "--all"): "one that does not run uses nothing"},
}
"""Options of Docker's commands that are none here, and what to use. Those of ``run`` are in ``keeping``."""

ACCEPTED: Final[Mapping[str, Mapping[tuple[str, ...], str]]] = {
    "rm": {("-v", "--volumes"): "there are no volumes without a name"},
    "ps": {("--no-trunc",): "ids are short, and the JSON has the whole command"},
    "stats": {("--no-trunc",): "nothing is shortened"},
    "attach": {("--sig-proxy",): "signals end the watching only"},
    "cp": {("-q", "--quiet"): "nothing is said"},
    "build": {
        ("--rm", "--force-rm", "--load"): "there is nothing left behind, and the image is in the store",
    },
    "rmi": {("-f", "--force", "--no-prune"): "names are removed; 'prune' frees the space"},
    "pull": {("--disable-content-trust",): "images are known by their digests"},
    "push": {("--disable-content-trust",): "images are known by their digests"},
}
"""Options of Docker's that change nothing here, and why."""


class Elsewhere(argparse.Action):
    """Refuses an option and says what to use."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """End with the error."""
        del namespace, values
        parser.error(f"{option_string} is not an option here: {self.metavar}")


def add(command: str, parser: argparse.ArgumentParser) -> None:
    """Add Docker's options to the parser of a command, each unless the command has one of that name itself."""
    known: Mapping[str, Any] = parser._option_string_actions  # noqa: SLF001 - argparse has no other list of them
    for names, remedy in OPTIONS.get(command, {}).items():
        if new := [name for name in names if name not in known]:
            # The remedy takes the place of the name of the value, which is shown nowhere.
            parser.add_argument(*new, action=Elsewhere, nargs="?", metavar=remedy, help=argparse.SUPPRESS, dest="_")
    for names, why in ACCEPTED.get(command, {}).items():
        if new := [name for name in names if name not in known]:
            parser.add_argument(*new, action="store_true", help=f"accepted: {why}", dest="_accepted")
