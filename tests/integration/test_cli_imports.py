"""Which modules the commands of the command line import: each takes time before it does anything."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")

CLI = [sys.executable, "-m", "containerkit"]
LIGHT = {
    "subprocess",
    "socket",
    "shutil",
    "tempfile",
    "logging",
    "asyncio",
    "email",
    "urllib3",
    "csv",
    "ctypes",
    "importlib.metadata",
    "pathlib",
    "difflib",
    "datetime",
    "attr",
    "typing",
    "inspect",
    "argparse",
    "gettext",
    "locale",
}
OURS = {"containerkit.image", "containerkit.network", "containerkit.cgroup", "containerkit.oci", "containerkit.project"}
COUNT = "import sys, os, containerkit.cli as cli\nstatus = cli.main(sys.argv[1:])\nos.write(2, ' '.join(sys.modules).encode())\nsys.exit(status)"


def imported(*words):
    """Return the modules that a command has imported when it ends."""
    done = subprocess.run([sys.executable, "-c", COUNT, *words], capture_output=True, text=True, timeout=60)
    assert 0 == done.returncode, done.stderr[-2000:]
    return set(done.stderr.split())


@pytest.fixture
def detached():
    name = f"imports-{os.getpid()}"
    subprocess.run(
        [*CLI, "run", "-d", "--name", name, "--", "sleep", "1000"], check=True, capture_output=True, timeout=60
    )
    yield name
    subprocess.run([*CLI, "rm", "-f", name], capture_output=True, timeout=60)  # the test may have removed it


def test_run_imports_only_what_a_container_needs():
    more = {"re", "json", "pickle", "threading", "termios", "containerkit.container.lifecycle", "containerkit.detached"}
    assert set() == imported("run", "--", "true") & (LIGHT | OURS | more)


@pytest.mark.several_ids
def test_commands_for_detached_containers_import_only_what_they_need(detached):
    heavy = LIGHT | OURS
    assert set() == imported("ps") & (heavy - {"containerkit.oci"} | {"containerkit.container.lifecycle", "json", "re"})
    assert set() == imported("logs", detached) & (heavy | {"containerkit.container.lifecycle"})
    assert set() == imported("exec", detached, "true") & heavy
    starts = {"containerkit.container", "containerkit.start.staging", "containerkit.compile", "pickle"}
    assert set() == imported("stop", "--time", "0", detached) & (heavy | starts)
    assert set() == imported("rm", detached) & (heavy - {"pathlib"} | starts)
