"""The command line of the OCI runtime specification: ``containerkit-oci``, what podman, containerd and Docker drive.

The engines start it several times for each container, so what its verbs load is kept to what they need: no module on
the way of ``create``, ``start``, ``state``, ``kill`` and ``delete`` imports attrs, typing, re, json or argparse. They
build their tapes with :mod:`.tape` and hand them to the interpreter of :mod:`containerkit._native`.
"""
