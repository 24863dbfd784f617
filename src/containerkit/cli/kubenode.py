"""``containerkit kube node``: make nodes of a cluster ready for the runtime."""

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
    """Add the verb and its own verbs."""
    node = verbs.add_parser("node", help="put the OCI runtime on nodes of a cluster")
    steps = node.add_subparsers(dest="step", metavar="VERB", required=True)
    install = steps.add_parser("install", help="put it on a node, and name it in containerd's configuration")
    remove = steps.add_parser("remove", help="take it away again; its containers must have ended")
    for parser in (install, remove):
        parser.add_argument("--root", required=True, metavar="DIR", help="the node's root directory, such as /host")
        parser.add_argument("--prefix", default="/opt/containerkit", metavar="DIR", help="where it lies on the node")
        parser.add_argument("--configuration", default="/etc/containerd/config.toml", metavar="FILE")
        parser.add_argument("--restart", action="store_true", help="let systemd start containerd again if it changed")
    manifests = steps.add_parser("manifests", help="print a RuntimeClass, and the DaemonSet that installs it")
    manifests.add_argument("--image", required=True, help="an image with Python and containerkit")
    manifests.add_argument("--namespace", default="kube-system", help="of the DaemonSet (default: kube-system)")
    manifests.add_argument("--configuration", default="/etc/containerd/config.toml", metavar="FILE")


def main(options: argparse.Namespace) -> int:
    """Do what the verb says; returns 0.

    Raises:
        ContainerError: it could not be done.
        OSError: the node's file system refuses it.
    """
    from containerkit.fleet import kubenode

    if options.step == "manifests":
        _print_manifests(options)
        return 0
    do = kubenode.install if options.step == "install" else kubenode.uninstall
    changed = do(options.root, prefix=options.prefix, configuration=options.configuration)
    print("containerd's configuration has " + ("changed" if changed else "not changed"), file=sys.stderr)  # noqa: T201 - the command line tells what it does
    if changed and options.restart:
        done = subprocess.run(_RESTART, check=False)
        if done.returncode:
            raise SetupError("start containerd again", 0, " ".join(_RESTART), "start it by hand, or repeat this")
    return 0


def _print_manifests(options: argparse.Namespace) -> None:
    from containerkit.fleet.kubemanifests import manifests
    from containerkit.project.yaml12 import dump_yaml

    made = manifests(options.image, namespace=options.namespace, configuration=options.configuration)
    print("---\n".join(dump_yaml(each) for each in made).rstrip("\n"))  # noqa: T201 - the command line prints its output
