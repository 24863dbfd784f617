"""``containerkit-oci``, the command line of the OCI runtime specification, which podman, containerd and Docker call.

Engines start it several times for each container, so its verbs import only what they need: ``create``, ``start``,
``state``, ``kill`` and ``delete`` do not import attrs, typing, re, json or argparse. They build their tapes with
:mod:`.tape` and pass them to the interpreter of :mod:`containerkit._native`.
"""
