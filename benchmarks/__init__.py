"""The speed of containerkit, compared to the kernel's own floor and to other programs.

``python -m benchmarks`` runs everything, ``python -m benchmarks.latency`` (or another file) runs one part.
SPECIFICATION.md lists the promised figures and which measurement checks each of them.
"""
