"""How fast containerkit is, beside the kernel's own floor and beside what a user would pick instead.

``python -m benchmarks`` runs all of it, ``python -m benchmarks.latency`` (or any other file) one part. What is
promised, and which of these figures holds the promise, is told in SPECIFICATION.md.
"""
