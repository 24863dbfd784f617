"""The manifests that install the runtime in a cluster: a RuntimeClass, and a DaemonSet for its nodes."""

from __future__ import annotations

from typing import Any, Final

from containerkit.errors import SpecError
from containerkit.fleet.kubenode import CONFIGURATION, HANDLER, PREFIX

__all__ = ["LABEL", "manifests"]

LABEL: Final = "containerkit/runtime"
"""The label of the nodes that the runtime is installed on, and that pods of the RuntimeClass are placed on."""

_NAME: Final = "containerkit-node"
_WAIT: Final = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, {15}); s.sigwait({15})"
"""A program that waits for SIGTERM. PID 1 receives only signals that it handles or blocks."""


def manifests(
    image: str, *, namespace: str = "kube-system", configuration: str = CONFIGURATION
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the RuntimeClass ``containerkit``, and the DaemonSet that installs the runtime on labelled nodes.

    The DaemonSet's pods have the privileges of root of the node: they write below its root directory, and restart
    containerd through its systemd if the configuration has changed.

    Args:
        image: an image with Python and containerkit; docs/kubernetes.md has a Dockerfile.
        namespace: of the DaemonSet (default ``"kube-system"``).
        configuration: containerd's configuration on the nodes.

    Raises:
        SpecError: no image.

    Source: Kubernetes API, node.k8s.io/v1 RuntimeClass, apps/v1 DaemonSet.
    """
    if not image:
        raise SpecError("image: a DaemonSet needs the name of an image with Python and containerkit")
    nodes = {LABEL: "true"}
    labels = {"app.kubernetes.io/name": _NAME}
    runtime_class = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": HANDLER},
        "handler": HANDLER,
        "scheduling": {"nodeSelector": nodes},
    }
    pod = _pod(image, configuration)
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": _NAME, "namespace": namespace, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    return runtime_class, daemon_set


def _pod(image: str, configuration: str) -> dict[str, Any]:
    """Return the pod that installs the runtime on its node, and then sleeps until it is ended."""
    install = ["containerkit", "kube", "node", "install", "--root", "/host", "--prefix", PREFIX]
    installer = {
        "name": "install",
        "image": image,
        "command": [*install, "--configuration", configuration, "--restart"],
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
    }
    waiter = {
        "name": "installed",
        "image": image,
        "command": ["python3", "-c", _WAIT],
        "resources": {"limits": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "nodeSelector": {LABEL: "true"},
        "hostPID": True,  # for the mount namespace of the node's systemd
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "initContainers": [installer],
        "containers": [waiter],
        "volumes": [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}],
    }
