"""Builds the C parts; everything else about the project is in pyproject.toml."""

import os
import runpy
import shlex
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/containerkit/_native")


class BuildNative(build_ext):
    """Builds the extension and, beside it, the static init."""

    def run(self) -> None:
        super().run()
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
        folder = NATIVE if self.inplace else Path(self.build_lib) / "containerkit" / "_native"
        runpy.run_path(str(NATIVE / "build.py"))["build_init"](compiler, folder / "init")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib) / "containerkit" / "_native" / "init")]


class BuildWheel(bdist_wheel):
    """One wheel for CPython 3.11 and later, by the stable ABI."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    cffi_modules=["src/containerkit/_native/build.py:ffibuilder"],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": BuildWheel},
)
