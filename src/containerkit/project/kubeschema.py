"""The keys of Kubernetes' objects that are understood, and the shape of each; others are refused by name.

Source: the Kubernetes API reference.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.project.shapes import boolean, by_name, choice, each, fields, integer, scalar, string, strings

if TYPE_CHECKING:
    from containerkit.project.shapes import Place

__all__ = ["CONFIG_MAP", "DEPLOYMENT", "POD", "SECRET", "VOLUME_CLAIM"]


def _texts(value: Any, place: Place) -> dict[str, str]:
    found: dict[str, str] = by_name(scalar)(value, place)
    return found


def _any(value: Any, place: Place) -> Any:
    del place
    return value


_META: Final = fields(
    {"name": string, "namespace": string, "labels": _texts, "annotations": _texts, "generateName": string,
     "creationTimestamp": _any, "uid": string}
)  # fmt: skip
_EXEC: Final = fields({"exec": fields({"command": strings}, required=("command",))}, required=("exec",))
_PROBE: Final = fields(
    {
        "exec": fields({"command": strings}, required=("command",)),
        "httpGet": fields(
            {"path": string, "port": _any, "host": string, "scheme": choice("HTTP", "HTTPS")}, required=("port",)
        ),
        "tcpSocket": fields({"port": _any, "host": string}, required=("port",)),
        "initialDelaySeconds": integer, "periodSeconds": integer, "timeoutSeconds": integer,
        "failureThreshold": integer, "successThreshold": integer,
    }
)  # fmt: skip
_KEY: Final = fields({"name": string, "key": string, "optional": boolean}, required=("name", "key"))
_ENV: Final = fields(
    {
        "name": string, "value": scalar,
        "valueFrom": fields(
            {"configMapKeyRef": _KEY, "secretKeyRef": _KEY,
             "fieldRef": fields({"fieldPath": string, "apiVersion": string}, required=("fieldPath",))}
        ),
    },
    required=("name",),
)  # fmt: skip
_WHOLE: Final = fields({"name": string, "optional": boolean}, required=("name",))
_CONTEXT: Final[dict[str, Any]] = {
    "runAsUser": integer, "runAsGroup": integer, "runAsNonRoot": boolean,
    "seccompProfile": fields({"type": choice("RuntimeDefault", "Unconfined")}, required=("type",)),
}  # fmt: skip
_CONTAINER: Final = fields(
    {
        "name": string, "image": string, "imagePullPolicy": choice("Always", "IfNotPresent", "Never"),
        "command": strings, "args": strings, "workingDir": string, "tty": boolean, "stdin": boolean, "env": each(_ENV),
        "envFrom": each(fields({"configMapRef": _WHOLE, "secretRef": _WHOLE, "prefix": string})),
        "ports": each(
            fields(
                {"name": string, "containerPort": integer, "hostPort": integer, "hostIP": string,
                 "protocol": choice("TCP", "UDP")},
                required=("containerPort",),
            )
        ),
        "resources": fields({"limits": _texts, "requests": _texts}),
        "securityContext": fields(
            {
                **_CONTEXT, "privileged": boolean, "readOnlyRootFilesystem": boolean,
                "allowPrivilegeEscalation": boolean, "capabilities": fields({"add": strings, "drop": strings}),
            }
        ),
        "volumeMounts": each(
            fields(
                {"name": string, "mountPath": string, "subPath": string, "readOnly": boolean},
                required=("name", "mountPath"),
            )
        ),
        "livenessProbe": _PROBE, "readinessProbe": _PROBE, "startupProbe": _PROBE,
        "lifecycle": fields({"postStart": _EXEC, "preStop": _EXEC}),
        "terminationMessagePath": string, "terminationMessagePolicy": string,
    },
    required=("name", "image"),
)  # fmt: skip
_ITEMS: Final = each(fields({"key": string, "path": string, "mode": integer}, required=("key", "path")))
_VOLUME: Final = fields(
    {
        "name": string,
        "emptyDir": fields({"medium": string, "sizeLimit": string}),
        "hostPath": fields({"path": string, "type": string}, required=("path",)),
        "configMap": fields(
            {"name": string, "items": _ITEMS, "defaultMode": integer, "optional": boolean}, required=("name",)
        ),
        "secret": fields(
            {"secretName": string, "items": _ITEMS, "defaultMode": integer, "optional": boolean},
            required=("secretName",),
        ),
        "persistentVolumeClaim": fields({"claimName": string, "readOnly": boolean}, required=("claimName",)),
    },
    required=("name",),
)  # fmt: skip
_POD_SPEC: Final = fields(
    {
        "containers": each(_CONTAINER), "initContainers": each(_CONTAINER), "volumes": each(_VOLUME),
        "restartPolicy": choice("Always", "OnFailure", "Never"), "hostname": string, "hostNetwork": boolean,
        "hostPID": boolean, "hostIPC": boolean, "terminationGracePeriodSeconds": integer,
        "hostAliases": each(fields({"ip": string, "hostnames": strings}, required=("ip", "hostnames"))),
        "securityContext": fields(
            {
                **_CONTEXT, "fsGroup": integer, "supplementalGroups": each(integer),
                "sysctls": each(fields({"name": string, "value": scalar}, required=("name", "value"))),
            }
        ),
        "automountServiceAccountToken": boolean, "enableServiceLinks": boolean, "dnsPolicy": string,
    },
    required=("containers",),
)  # fmt: skip

POD: Final = fields(
    {"apiVersion": string, "kind": string, "metadata": _META, "spec": _POD_SPEC, "status": _any},
    required=("metadata", "spec"),
)
DEPLOYMENT: Final = fields(
    {
        "apiVersion": string, "kind": string, "metadata": _META, "status": _any,
        "spec": fields(
            {
                "replicas": integer, "selector": _any,
                "template": fields({"metadata": _META, "spec": _POD_SPEC}, required=("spec",)),
            },
            required=("template",),
        ),
    },
    required=("metadata", "spec"),
)  # fmt: skip
CONFIG_MAP: Final = fields(
    {"apiVersion": string, "kind": string, "metadata": _META, "data": _texts, "immutable": boolean},
    required=("metadata",),
)
SECRET: Final = fields(
    {
        "apiVersion": string, "kind": string, "metadata": _META, "data": _texts, "stringData": _texts, "type": string,
        "immutable": boolean,
    },
    required=("metadata",),
)  # fmt: skip
VOLUME_CLAIM: Final = fields(
    {
        "apiVersion": string, "kind": string, "metadata": _META, "status": _any,
        "spec": fields(
            {
                "accessModes": strings, "volumeMode": choice("Filesystem"),
                "resources": fields({"requests": fields({"storage": scalar})}),
            }
        ),
    },
    required=("metadata",),
)  # fmt: skip
