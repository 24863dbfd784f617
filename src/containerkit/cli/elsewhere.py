"""Options and commands of Docker that are missing here, with their replacements."""

from __future__ import annotations

from containerkit.cli.plain import SUPPRESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from typing import Any, Final

__all__ = ["ACCEPTED", "COLUMNS", "COMMANDS", "GLOBAL", "OPTIONS", "VERBS", "add"]

COMMANDS: Final = {
    "search": "the protocol of registries has no search: use a web page such as https://hub.docker.com",
    "export": "use 'containerkit commit CONTAINER NAME' and 'containerkit image export NAME'",
    "buildx": "use 'containerkit build'",
    "builder": "use 'containerkit build', and 'containerkit image prune --cache' for its cache",
    "context": "there is no daemon to connect to",
    "checkpoint": "use the library's Container.checkpoint(), or 'containerkit-oci checkpoint'",
    "manifest": "use 'containerkit image inspect --manifest NAME'",
    "plugin": "there are no plugins",
    "trust": "name images by digest: NAME@sha256:...",
    "swarm": "there are no clusters; use 'containerkit compose' on one machine",
    "stack": "use 'containerkit compose'",
    "service": "use 'containerkit compose'",
    "node": "there are no clusters",
    "secret": "use secrets of 'containerkit compose', or 'containerkit build --secret'",
    "config": "use configs of 'containerkit compose'",
    "scout": "there is no replacement",
    **dict.fromkeys(
        ("ai", "cagent", "desktop", "init", "mcp", "model", "offload", "sandbox", "sbom"),
        "plugins of Docker have no replacement",
    ),
    "debug": "use 'containerkit exec', or nsenter of the host with the pid that 'containerkit inspect' shows",
    "port": "use 'containerkit inspect', or 'containerkit compose port'",
    "events": "use 'containerkit wait', or 'containerkit ps'",
}
"""Docker's commands that are missing here, with their replacements."""

VERBS: Final[Mapping[str, Mapping[str, str]]] = {
    "container": {
        "export": COMMANDS["export"],
    },
    "compose": {
        "export": "use 'compose commit SERVICE NAME' and 'containerkit image export NAME'",
        "publish": "projects are not stored in registries: keep the compose file with its sources",
        "bridge": "use 'containerkit kube generate FILE'",
        "alpha": "experiments of Docker have no replacement",
    },
    "network": {
        "connect": "start the container with --network NAME, or use the library's LiveNetwork.attach()",
        "disconnect": "start the container without the network, or use the library's LiveNetwork.detach()",
    },
    "system": {"dial-stdio": "there is no daemon"},
    "volume": {"update": "there are no volumes of a cluster"},
}
"""Docker's verbs of groups of commands that are missing here, with their replacements."""

GLOBAL: Final = "there is no daemon to choose or to configure; options follow the command"
"""What is said about Docker's options before the command."""

COLUMNS: Final = (
    "the columns are fixed; for others use 'containerkit exec NAME ps', or ps of the host with the pids that top lists"
)

OPTIONS: Final[Mapping[str, Mapping[tuple[str, ...], str]]] = {
    "exec": {
        ("--privileged",): "a command has the privileges of its container; --user chooses the user",
        ("--detach-keys",): "end the command; only 'containerkit attach' can detach",
    },
    "logs": {("--details",): "use 'containerkit inspect' for labels"},
    "cp": {
        ("-a", "--archive"): "files belong to root of the container; change owners with 'containerkit exec NAME chown'",
        ("-L", "--follow-link"): "symlinks are copied as symlinks: name their target",
    },
    "commit": {
        ("-c", "--change"): "use the library's Detached.commit(command=..., env=...), or a Dockerfile FROM the image",
        ("-p", "--pause", "--no-pause"): "the container is not paused: use 'containerkit pause'",
    },
    "update": {("--kernel-memory",): "the kernel no longer has this limit"},
    "pull": {("-a", "--all-tags"): "name the tags; 'skopeo list-tags docker://NAME' lists them"},
    "push": {("-a", "--all-tags"): "name the tags, one command each"},
    "build": {
        ("-o", "--output"): "use 'containerkit image export' afterwards",
        ("--cache-from", "--cache-to"): "the cache is part of the store, addressed by content",
        ("--metadata-file",): "use --iidfile, and 'containerkit image inspect'",
        (
            "-m",
            "--memory",
            "--cpuset-cpus",
            "--cpu-shares",
            "--cgroup-parent",
        ): "run it in a group: systemd-run --scope",
        ("--squash",): "use 'containerkit image squash' afterwards",
        ("--compress", "--isolation", "--builder"): "there is no daemon that gets the context",
        ("--check", "--call"): "use a program that checks Dockerfiles, such as hadolint",
        ("--attest", "--provenance", "--sbom"): "images have no attestations here",
        ("--security-opt",): "use --allow security.insecure",
    },
    "load": {("--platform",): "all platforms of the archive are read"},
    "history": {("-H", "--human"): "use --format for other units"},
    "network create": {
        ("--gateway",): "the gateway is the first address of the subnet",
        ("--ip-range", "--aux-address"): "addresses are given to containers one after the other; set one with --ip",
        ("--ipv6", "--ipv4"): "both are there by default; choose with --subnet",
        ("--attachable", "--ingress", "--scope", "--config-only", "--config-from"): "there are no clusters",
        ("-o", "--opt"): "use --mtu and --isolated",
        ("--label",): "networks have no labels",
        ("--ipam-driver", "--ipam-opt"): "use --subnet",
    },
    "volume create": {("--name",): "the name is an argument: volume create NAME"},
    "login": {("-p", "--password"): "it would be visible in the list of processes: use --password-stdin"},
    "ps": {("-s", "--size"): "use 'containerkit system df'"},
    "rm": {("-l", "--link"): "there are no links between containers"},
    "images": {("--tree",): "use 'containerkit image inspect NAME'"},
    "top": {("-o", "-e", "-f", "-x", "-a", "-u"): COLUMNS},
    "stats": {("-a", "--all"): "a stopped container uses nothing"},
    "compose": {("--compatibility",): "containers have the names of the specification: PROJECT-SERVICE-1"},
    "compose build": {
        ("--builder", "--check", "--print", "--provenance", "--sbom", "-m", "--memory"): (
            "use 'containerkit build' for one image; its help has the options"
        ),
    },
    "compose commit": {
        ("-c", "--change"): "use a Dockerfile FROM the image",
        ("-p", "--pause"): "the container is not paused: use 'compose pause'",
    },
    "compose config": {
        ("--no-consistency", "--no-env-resolution", "--no-normalize", "--no-path-resolution"): (
            "the whole model is always checked and shown in full; only --no-interpolate leaves something as it is"
        ),
        ("--lock-image-digests", "--resolve-image-digests"): "name images by digest: NAME@sha256:...",
        ("--variables",): "use --environment for their values",
    },
    "compose cp": {
        ("-a", "--archive"): "files belong to root of the container; change owners with 'compose exec SERVICE chown'",
        ("-L", "--follow-link"): "symlinks are copied as symlinks: name their target",
    },
    "compose watch": {("--prune",): "use 'containerkit image prune' afterwards"},
}
"""Options of Docker's commands that are missing here, with their replacements. Those of ``run`` are in ``keeping``."""

ACCEPTED: Final[Mapping[str, Mapping[tuple[str, ...], str]]] = {
    "rm": {("-v", "--volumes"): "there are no anonymous volumes"},
    "stats": {("--no-trunc",): "nothing is shortened"},
    "attach": {("--sig-proxy", "--sig-proxy=false"): "signals end only this command"},
    "cp": {("-q", "--quiet"): "it prints nothing"},
    "build": {
        ("--rm", "--force-rm", "--load"): "no containers are left behind, and the image is in the store",
    },
    "rmi": {("-f", "--force", "--no-prune"): "only names are removed; 'prune' frees the space"},
    "pull": {("--disable-content-trust",): "images are known by their digests"},
    "push": {("--disable-content-trust",): "images are known by their digests"},
}
"""Docker's options that have no effect here, and why."""


def add(command: str, parser: argparse.ArgumentParser) -> None:
    """Add Docker's options to the parser of a command, except those that the command has itself."""
    known: Mapping[str, Any] = parser._option_string_actions  # noqa: SLF001 - argparse has no other list of them
    for names, remedy in OPTIONS.get(command, {}).items():
        if new := [name for name in names if name not in known]:
            # The replacement is stored as the name of the value, which is not shown.
            parser.add_argument(*new, action="elsewhere", nargs="?", metavar=remedy, help=SUPPRESS, dest="_")
    for names, why in ACCEPTED.get(command, {}).items():
        if new := [name for name in names if name not in known]:
            parser.add_argument(*new, action="store_true", help=f"accepted: {why}", dest="_accepted")
