"""Build the C parts. Everything else about the project is in pyproject.toml."""

import os
import runpy
import shlex
import sysconfig
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/containerkit/_native")
NATIVE_BUILD = runpy.run_path(str(NATIVE / "build.py"))
FRONT = runpy.run_path(str(NATIVE / "front.py"))


class BuildNative(build_ext):
    """Builds the extension and, beside it, the static programs."""

    def run(self) -> None:
        super().run()
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
        directory = NATIVE if self.inplace else Path(self.build_lib) / "containerkit" / "_native"
        NATIVE_BUILD["build_programs"](compiler, directory)

    def get_outputs(self) -> list[str]:
        return [
            *super().get_outputs(),
            *(str(Path(self.build_lib) / "containerkit" / "_native" / name) for name in NATIVE_BUILD["PROGRAMS"]),
        ]


class BuildScripts(Command):
    """Installs the front end of the OCI command as ``containerkit-oci``: pip copies programs of a wheel as they are."""

    def initialize_options(self) -> None:
        self.build_dir = ""

    def finalize_options(self) -> None:
        self.build_dir = self.build_dir or self.get_finalized_command("build").build_scripts

    def get_source_files(self) -> list[str]:
        return []  # it is compiled

    def run(self) -> None:
        built = self.get_finalized_command("build_ext")
        directory = NATIVE if built.inplace else Path(built.build_lib) / "containerkit" / "_native"
        program = Path(self.build_dir) / "containerkit-oci"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_bytes(FRONT["beside"](str(directory / "front")))
        program.chmod(0o755)


class BuildWheel(bdist_wheel):
    """Builds one wheel for CPython 3.11 and later, with the stable ABI. Free-threaded CPython has a separate wheel."""

    def finalize_options(self) -> None:
        if NATIVE_BUILD["LIMITED_API"]:
            self.py_limited_api = "cp311"
        super().finalize_options()


setup(
    cffi_modules=["src/containerkit/_native/build.py:ffibuilder"],
    scripts=["containerkit-oci"],
    cmdclass={"build_ext": BuildNative, "build_scripts": BuildScripts, "bdist_wheel": BuildWheel},
)
