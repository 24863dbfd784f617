"""Builds: create images step by step, from a Dockerfile or from Python.

::

    image = (
        Build.from_("debian:12")
        .run("apt-get update && apt-get install -y python3")
        .copy("app.py", "/srv/")
        .command("python3", "/srv/app.py")
        .build(context=".", tag="app:1")
    )
"""

from __future__ import annotations

from containerkit.image.build.api import Build, build_dockerfile
from containerkit.image.build.dockerfile import Dockerfile, Instruction, Stage, parse_dockerfile

__all__ = ["Build", "Dockerfile", "Instruction", "Stage", "build_dockerfile", "parse_dockerfile"]
