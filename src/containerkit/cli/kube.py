"""Run pods from Kubernetes' YAML, write a project as one, and put the runtime on nodes of a cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The kinds are Pod, Deployment, ConfigMap, Secret and PersistentVolumeClaim. The file is run as a project with the name
of the first pod: inspect it with 'containerkit compose -p NAME ps|logs|exec|top'.

  containerkit kube play pod.yaml
  containerkit kube down pod.yaml
  containerkit kube generate compose.yaml
  containerkit kube node manifests --image IMAGE | kubectl apply -f -
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    from containerkit.cli import kubenode

    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    play = verbs.add_parser("play", help="start the pods of a file; a background process holds them")
    play.add_argument("file", metavar="FILE", help="the YAML file")
    play.add_argument("--wait", action="store_true", help="return when everything is ready")
    play.add_argument(
        "--wait-timeout",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="how long --wait waits at most (default: 300)",
    )
    down = verbs.add_parser("down", help="stop them, and remove their emptyDir volumes")
    down.add_argument("file", metavar="FILE", help="the YAML file")
    down.add_argument("--force", action="store_true", help="also remove the volumes of claims")
    generate = verbs.add_parser("generate", help="print a compose file as a Pod")
    generate.add_argument("file", metavar="COMPOSE-FILE", nargs="?", help="the compose file (default: as for compose)")
    kubenode.define(verbs)


def main(options: argparse.Namespace) -> int:
    """Run a verb and return the exit status.

    Raises:
        ContainerError: the verb failed.
    """
    if options.verb == "node":
        from containerkit.cli import kubenode

        return kubenode.main(options)
    from containerkit.project import Project, volumes
    from containerkit.project.kube import load_kube
    from containerkit.project.kubewrite import objects_of
    from containerkit.project.remote import Remote
    from containerkit.project.yaml12 import dump_yaml

    if options.verb == "generate":
        project = Project.load(*([options.file] if options.file else []))
        texts = [dump_yaml(each) for each in objects_of(project)]
        print("---\n".join(texts).rstrip("\n"))  # noqa: T201 - the command line prints its output
        return 0
    project = load_kube(options.file)
    if options.verb == "play":
        project.detach(wait=options.wait_timeout if options.wait else None, log=_note)
        return 0
    Remote(project.name).ask("down", volumes=False)
    for each in project.model.get("volumes", {}).values():
        if options.force or "kube.emptydir" in each.get("labels", {}):
            volumes.remove(each["name"])
    return 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line reports its steps
