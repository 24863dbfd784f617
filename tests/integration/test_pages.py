"""The examples of the pages and of the README do what they say."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from image_registry import REGISTRY, registry
from image_samples import BUSYBOX, busybox_root

import forked_commands
from containerkit.image import Defaults, Image, Store

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

OF_SHELLS = re.compile(r"[|&;<>$`*?()~\n]")

# The requirements of examples that are neither created here nor available to every user, by their first line.
NEEDS = {
    "# as root\n": "needs root: control groups, or CAP_SYS_ADMIN over the machine's namespaces",
    "# needs images of a registry, and packages\n": "needs docker.io and mirrors of Alpine and Debian",
    "# needs CRIU, and a root filesystem at /srv/root\n": "needs CRIU, and a root filesystem at /srv/root",
    "# needs smolagents and a model\n": "needs a model; test_adapters.py lets an agent follow a script",
    "# needs Ray\n": "needs a Ray cluster; test_fleet_clusters.py runs fleets and workers in containers on one",
    "# needs Dask with TLS\n": "needs a cluster with certificates; test_fleet_tls.py runs fleets on one",
    "# needs Kubernetes\n": "needs a cluster; test_fleet_kubernetes.py runs fleets on a small API server",
    "# needs dask\n": "test_executor_elsewhere.py lets dask compute by an executor",
    "# needs joblib\n": "test_executor_elsewhere.py runs joblib's Parallel",
    "# needs llm-sandbox\n": "test_adapters.py runs the backend",
    "# needs a compose.yaml\n": "test_pytest_plugin.py starts one",
    '# needs a container "web" on record\n': "test_attach.py runs Container.attach on containers that it creates",
}

# Command lines that can't be run unchanged.
NOT_RUN = {
    "containerkit run --bind .:/work --cwd /work --memory 1G --timeout 60 -- make test": "needs a Makefile, and root",
    'containerkit run --image postgres:16 --bind "$PWD/data:/var/lib/postgresql/data"': "needs docker.io",
    "containerkit image build --tag app:1 --network host .": "needs docker.io and a Dockerfile",
    "containerkit login registry.example.org && containerkit image push app:1 registry.example.org/team/app:1": (
        "needs a registry and its password"
    ),
    "containerkit run --network internet -p 8080:80 -- python3 -m http.server 80": (
        "serves until it is interrupted; test_network.py reaches ports that are published"
    ),
    "containerkit compose config": "needs a compose file; test_project_cli.py runs it",
    "containerkit compose plan": "needs a compose file; test_project_cli.py runs it",
    "containerkit compose up -d --wait": "needs a compose file; test_project_cli.py runs it",
    "containerkit compose exec web sh": "needs a compose file; test_project_cli.py runs it",
    "containerkit compose logs -f web": "needs a compose file; test_project_cli.py runs it",
    "containerkit compose down -v": "needs a compose file; test_project_cli.py runs it",
    "containerkit template debian --suite bookworm --tag mine:2": "needs a mirror of Debian",
}


def blocks(*languages):
    """Yield each example in one of the languages: its page, its line, its text."""
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            if found[1] in languages:
                yield page.relative_to(ROOT), text.count("\n", 0, found.start()) + 1, found[2]


def commands():
    """Yield each containerkit command line of the shell examples, without its comment."""
    for page, _, text in blocks("sh", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*", "", line).removeprefix("$ ").strip()
            if command.startswith("containerkit"):
                yield page, command


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """Run a registry with an image alpine:3.20. Return the settings that make it the mirror of docker.io."""
    if REGISTRY is None or not os.path.exists(BUSYBOX):
        pytest.skip("needs Debian's packages docker-registry and busybox-static")
    made = tmp_path_factory.mktemp("mirror")
    busybox_root(made / "root")
    (made / "root/etc/alpine-release").write_text("3.20.0\n")
    with registry(made / "registry") as host:
        image = Image.from_directory(
            made / "root", defaults=Defaults(command=("/bin/sh",)), store=Store(made / "store")
        )
        image.push(f"{host}/library/alpine:3.20")
        (made / "containerkit").mkdir()
        (made / "containerkit/registries.toml").write_text(f'["docker.io"]\nmirrors = ["{host}"]\n')
        yield {"XDG_CONFIG_HOME": str(made)}


@pytest.fixture
def surroundings(request, tmp_path):
    """Return a function for the environment of an example: a separate store, and the mirror if it needs one."""

    def made_for(text):
        more = request.getfixturevalue("mirror") if "alpine:3.20" in text else {}
        return {**os.environ, "CONTAINERKIT_IMAGES": str(tmp_path / "images"), **more}

    return made_for


@pytest.mark.parametrize(
    "code", [pytest.param(text, id=f"{page} line {line}") for page, line, text in blocks("python")]
)
def test_example_holds(code, tmp_path, surroundings):
    needs = next((reason for first, reason in NEEDS.items() if code.startswith(first)), None)
    if needs is not None and (os.geteuid() != 0 or not code.startswith("# as root\n")):
        pytest.skip(needs)
    if "\nContainer(limits=" in code and os.geteuid() != 0:
        code = re.sub(r"^Container\(limits=.*\n", "", code, flags=re.MULTILINE)
    # As a separate program, so that only the example's own definitions exist.
    path = tmp_path / "example.py"
    path.write_text(code)
    tests = len(re.findall("^def test_", code, re.MULTILINE))
    started = [
        sys.executable,
        "-W",
        "error",
        *(("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "containerkit.pytest_plugin") if tests else ()),
        path,
    ]
    environment = {**surroundings(code), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others take long to import
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
    if tests:
        assert f"{tests} passed" in done.stdout
        return
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("page", "command"), [pytest.param(page, command, id=f"{page} {command}") for page, command in commands()]
)
@pytest.mark.usefixtures("forked")
def test_command_works(page, command, tmp_path, surroundings):
    """Those of the README, and those that need a shell, as programs."""
    if command in NOT_RUN:
        pytest.skip(NOT_RUN[command])
    more = {"cwd": tmp_path, "env": surroundings(command), "text": True, "timeout": 90}
    if str(page) == "README.md" or OF_SHELLS.search(command) or not command.startswith("containerkit "):
        line = command.replace("containerkit", f"{sys.executable} -m containerkit", 1)
        done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, **more)
    else:
        done = forked_commands.run("containerkit", shlex.split(command)[1:], **more)
    assert (0, "") == (done.returncode, done.stderr)


def test_examples_that_are_not_run_are_there():
    firsts = {text.splitlines(keepends=True)[0] for _, _, text in blocks("python")}
    assert set(NEEDS) <= firsts
    assert {first for first in firsts if first.startswith("# needs")} <= set(NEEDS)
    assert set(NOT_RUN) <= {command for _, command in commands()}


def test_examples_for_python_are_marked():
    """An example that is only indented, or has no language, would not be run."""
    unmarked = re.compile(r"^(?:    |```\n)(?:from|import) \w+|^(?:    |```\n)containerkit ", re.MULTILINE)
    assert [] == [page for page in PAGES if unmarked.search(BLOCK.sub("", page.read_text()))]


def test_links_lead_to_existing_targets():
    links = {
        (page, target) for page in PAGES for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    }
    assert len(links) > len(PAGES)
    assert [] == [link for link in links if "://" not in link[1] and not (link[0].parent / link[1]).exists()]
