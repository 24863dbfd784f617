"""Run pods from Kubernetes' YAML, write a project as one, and put the runtime on nodes of a cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The kinds are Pod, Deployment, ConfigMap, Secret and PersistentVolumeClaim. A pod is a project of the name of the first:
'containerkit compose -p NAME ps|logs|exec|top' look into it.

  containerkit kube play pod.yaml
  containerkit kube down pod.yaml
  containerkit kube generate compose.yaml
  containerkit kube node manifests --image IMAGE | kubectl apply -f -
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    from containerkit.cli import kubenode

    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    play = verbs.add_parser("play", help="start what a file describes; a process of its own holds it")
    play.add_argument("file", metavar="FILE")
    play.add_argument("--wait", action="store_true", help="return when all is ready")
    play.add_argument("--wait-timeout", metavar="SECONDS", type=float, default=300.0)
    down = verbs.add_parser("down", help="end it; what an emptyDir holds is removed")
    down.add_argument("file", metavar="FILE")
    down.add_argument("--force", action="store_true", help="remove the volumes of claims, too")
    generate = verbs.add_parser("generate", help="write the Pod that a compose file means")
    generate.add_argument("file", metavar="COMPOSE-FILE", nargs="?")
    kubenode.define(verbs)


def main(options: argparse.Namespace) -> int:
    """Do what the verb says.

    Raises:
        ContainerError: it could not be done.
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
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line tells what it does
