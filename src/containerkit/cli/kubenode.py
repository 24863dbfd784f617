"""``containerkit kube node``: install the runtime on nodes of a cluster."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SetupError

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]

_RESTART: Final = ("nsenter", "--target", "1", "--mount", "--", "systemctl", "restart", "containerd")


def define(verbs: Any) -> None:
    """Add the verb and its subcommands."""
    node = verbs.add_parser("node", help="install the OCI runtime on nodes of a cluster")
    steps = node.add_subparsers(dest="step", metavar="VERB", required=True)
    install = steps.add_parser("install", help="install it on a node, and add it to containerd's configuration")
    remove = steps.add_parser("remove", help="uninstall it; its containers must have ended")
    for parser in (install, remove):
        parser.add_argument("--root", required=True, metavar="DIR", help="the node's root directory, such as /host")
        parser.add_argument("--prefix", default="/opt/containerkit", metavar="DIR", help="its directory on the node")
        parser.add_argument(
            "--configuration",
            default="/etc/containerd/config.toml",
            metavar="FILE",
            help="the configuration of containerd on the node (default: /etc/containerd/config.toml)",
        )
        parser.add_argument(
            "--restart", action="store_true", help="restart containerd with systemd if its configuration changed"
        )
    manifests = steps.add_parser("manifests", help="print a RuntimeClass, and the DaemonSet that installs it")
    manifests.add_argument("--image", required=True, help="an image with Python and containerkit")
    manifests.add_argument(
        "--namespace", default="kube-system", help="the namespace of the DaemonSet (default: kube-system)"
    )
    manifests.add_argument(
        "--configuration",
        default="/etc/containerd/config.toml",
        metavar="FILE",
        help="the configuration of containerd on the nodes (default: /etc/containerd/config.toml)",
    )


def main(options: argparse.Namespace) -> int:
    """Run the verb. Return 0.

    Raises:
        ContainerError: the verb failed.
        OSError: a file of the node can't be read or written.
    """
    from containerkit.fleet import kubenode

    if options.step == "manifests":
        _print_manifests(options)
        return 0
    do = kubenode.install if options.step == "install" else kubenode.uninstall
    changed = do(options.root, prefix=options.prefix, configuration=options.configuration)
    print("containerd's configuration has " + ("changed" if changed else "not changed"), file=sys.stderr)  # noqa: T201 - the command line reports its steps
    if changed and options.restart:
        done = subprocess.run(_RESTART, check=False)
        if done.returncode:
            raise SetupError(
                "restart containerd", 0, " ".join(_RESTART), "restart it by hand, or run this command again"
            )
    return 0


def _print_manifests(options: argparse.Namespace) -> None:
    from containerkit.fleet.kubemanifests import manifests
    from containerkit.project.yaml12 import dump_yaml

    made = manifests(options.image, namespace=options.namespace, configuration=options.configuration)
    print("---\n".join(dump_yaml(each) for each in made).rstrip("\n"))  # noqa: T201 - the command line prints its output
