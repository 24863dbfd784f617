"""The plugin for pytest: complete runs of small suites, each in a separate interpreter."""

import json
import os
import subprocess
import sys

import pytest
from image_samples import BUSYBOX, busybox_root

HEAD = "import os, sys, time, pytest\n"


@pytest.fixture
def suite(tmp_path):
    """Return a function that runs a suite, and returns the outcome of each test and the output."""

    def run(text, *options, conftest="", env=None, others=False):
        (tmp_path / "test_it.py").write_text(HEAD + text)
        (tmp_path / "conftest.py").write_text(CONFTEST + conftest)
        (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider --strict-markers -W error\n")
        told = tmp_path / "told"
        if not others:  # hypothesis and pytest-cov take longer to import than all the rest
            env = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **(env or {})}
            options = ("-p", "containerkit.pytest_plugin", *options)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-rA", *options],
            cwd=tmp_path,
            env={**os.environ, "TOLD": str(told), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
            capture_output=True,
            text=True,
            timeout=100,
        )
        outcomes = {}
        for line in told.read_text().splitlines() if told.exists() else ():
            name, when, outcome = json.loads(line)
            if when == "call" or outcome != "passed":
                outcomes[name] = outcome if when == "call" or outcome == "skipped" else f"{when} {outcome}"
        return outcomes, done.stdout + done.stderr

    return run


CONFTEST = """
import json, os
def pytest_runtest_logreport(report):
    with open(os.environ["TOLD"], "a") as file:
        name = report.nodeid.partition("::")[2]
        file.write(json.dumps([name, report.when, report.outcome]) + "\\n")
"""


def test_function_runs_in_a_container_of_its_own(suite):
    outcomes, shown = suite(
        """
@pytest.mark.container
@pytest.mark.parametrize("n", [1, 2])
def test_inside(n):
    assert (os.getpid(), os.getppid(), os.uname().nodename) == (2, 0, "container")
    assert os.listdir("/sys/class/net") == ["lo"]
    assert not os.path.exists("/tmp/left")
    open("/tmp/left", "w").close()

@pytest.mark.container(hostname="here")
class TestClass:
    def test_options(self):
        assert os.uname().nodename == "here"

def test_outside():
    assert os.uname().nodename != "container" and not os.path.exists("/tmp/left")
"""
    )
    assert outcomes == {
        "test_inside[1]": "passed",
        "test_inside[2]": "passed",
        "TestClass::test_options": "passed",
        "test_outside": "passed",
    }, shown


def test_confinement_is_that_of_any_command(suite):
    outcomes, shown = suite(
        """
@pytest.mark.container
def test_it():
    with open("/proc/self/status") as file:
        status = dict(line.split(":\\t") for line in file.read().splitlines() if ":\\t" in line)
    assert {status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    with pytest.raises(PermissionError):
        os.sethostname("x") if hasattr(os, "sethostname") else __import__("socket").sethostname("x")
"""
    )
    assert outcomes == {"test_it": "passed"}, shown


def test_each_outcome(suite):
    outcomes, shown = suite(
        """
@pytest.mark.container
def test_fails():
    print("printed")
    value = {"a": 2}
    assert value == {"a": 1}

@pytest.mark.container
@pytest.mark.skip(reason="mine")
def test_skipped(): pass

@pytest.mark.container
def test_skips(): pytest.skip("inside")

@pytest.mark.container
@pytest.mark.xfail
def test_xfails(): assert 0

@pytest.fixture
def broken(): raise RuntimeError("of the fixture")

@pytest.mark.container
def test_broken(broken): pass

@pytest.fixture
def late():
    yield
    raise RuntimeError("at the end")

@pytest.mark.container
def test_late(late): pass
"""
    )
    assert outcomes == {
        "test_fails": "failed",
        "test_skipped": "skipped",
        "test_skips": "skipped",
        "test_xfails": "skipped",
        "test_broken": "setup failed",
        "test_late": "teardown failed",
    }, shown
    for text in ("printed", "assert {'a': 2} == {'a': 1}", "of the fixture", "at the end", "mine", "inside"):
        assert text in shown


def test_crashes_are_reported(suite):
    outcomes, shown = suite(
        """
import signal
@pytest.mark.container
def test_exits(): os._exit(3)

@pytest.mark.container
def test_crashes():
    print("its last words")
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.xfail(reason="it is known to crash", strict=True)
@pytest.mark.container
def test_crashes_as_expected(): os.kill(os.getpid(), signal.SIGSEGV)

@pytest.mark.xfail(raises=ValueError)
@pytest.mark.container
def test_crashes_instead(): os._exit(5)

@pytest.mark.container(timeout=0.5)
def test_sleeps(): time.sleep(1000)

@pytest.mark.container
def test_kills_all():
    for pid in range(1, 30):
        try:
            os.kill(pid, signal.SIGKILL) if pid != os.getpid() else None
        except OSError:
            pass

@pytest.mark.container(hostnmae="x")
def test_mistake(): pass

def test_after(): pass
"""
    )
    assert outcomes == {
        "test_exits": "failed",
        "test_crashes": "failed",
        "test_crashes_as_expected": "skipped",
        "test_crashes_instead": "failed",
        "test_sleeps": "failed",
        "test_kills_all": "passed",
        "test_mistake": "failed",
        "test_after": "passed",
    }, shown
    assert 1 == shown.count("its last words\n")
    for text in (
        "exited with 3",
        "signal 9",
        "XFAIL test_it.py::test_crashes_as_expected",
        "longer than 0.5 seconds",
        "did you mean 'hostname'",
    ):
        assert text in shown


def test_fixtures_of_each_scope(suite):
    outcomes, shown = suite(
        """
log = []

@pytest.fixture(scope="module")
def wide():
    log.append("up")
    yield log
    print("taken down in", os.uname().nodename, file=open("/dev/stderr", "w") if 0 else sys.stderr)

@pytest.fixture
def narrow(tmp_path):
    (tmp_path / "file").write_text("x")
    yield tmp_path / "file"

def test_outside(wide): assert wide == ["up"]

@pytest.mark.container
def test_inside(wide, narrow, monkeypatch, capsys):
    assert wide == ["up"]
    assert narrow.read_text() == "x"
    wide.append("inside")
    print("out")
    assert capsys.readouterr().out == "out\\n"

def test_outside_again(wide): assert wide == ["up"]
"""
    )
    assert set(outcomes.values()) == {"passed"}, shown
    assert len(outcomes) == 3


def test_modules_imported_inside_and_directories(suite, tmp_path):
    (tmp_path / "beside.py").write_text("value = 5\n")
    writable = tmp_path / "writable"
    writable.mkdir()
    outcomes, shown = suite(
        f"""
@pytest.mark.container(writable=[{str(writable)!r}])
def test_it(tmp_path):
    import beside, colorsys
    assert beside.value == 5
    assert os.getcwd() == {str(tmp_path)!r}
    open({str(writable / "new")!r}, "w").close()
    with pytest.raises(OSError):
        open({str(tmp_path / "new")!r}, "w")
"""
    )
    assert outcomes == {"test_it": "passed"}, shown
    assert (writable / "new").exists()


@pytest.mark.root
def test_limits(suite):
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")
    outcomes, shown = suite(
        """
from containerkit import Limits
@pytest.mark.container(limits=Limits(memory="200M"))
def test_too_large(): bytearray(500_000_000)

@pytest.mark.container(limits=Limits(pids=20))
def test_bomb():
    with pytest.raises(OSError):
        for _ in range(100):
            if os.fork() == 0:
                time.sleep(1000)
"""
    )
    assert outcomes == {"test_too_large": "failed", "test_bomb": "passed"}, shown
    assert "out of memory" in shown


def test_fixtures_of_containers(suite):
    outcomes, shown = suite(
        """
def test_one(container):
    assert container.run(["hostname"], text=True).stdout == "container\\n"

@pytest.mark.parametrize("container", [{"hostname": "here"}], indirect=True)
def test_with_options(container):
    assert container.run(["hostname"], text=True).stdout == "here\\n"

made = []
def test_factory(container_factory):
    made.extend(container_factory(hostname=name) for name in "ab")
    assert [each.run(["hostname"], text=True).stdout for each in made] == ["a\\n", "b\\n"]

def test_stopped():
    assert [each.state for each in made] == ["stopped", "stopped"]

def test_image(image):
    from containerkit import ImageError
    with pytest.raises(ImageError):
        image("no-such-image.example/x:1", pull="never")
"""
    )
    assert set(outcomes.values()) == {"passed"}, shown
    assert len(outcomes) == 5


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
def test_fixture_of_a_network(suite):
    outcomes, shown = suite(
        """
def test_names(network, container_factory):
    from containerkit import Attach
    server = container_factory(network=Attach(network, aliases=["db"]))
    client = container_factory(network=network)
    found = client.run(["getent", "ahostsv4", "db"], text=True, check=True)
    assert found.stdout.split()[0] in network.addresses(server)
    assert network.network.internal

@pytest.mark.parametrize("network", [{"name": "other", "isolated": True}], indirect=True)
def test_options(network):
    assert (network.network.name, network.network.isolated, network.network.internal) == ("other", True, True)
    kept.append(network)

kept = []
def test_closed():
    assert [each.closed for each in kept] == [True]
"""
    )
    assert set(outcomes.values()) == {"passed"}, shown
    assert len(outcomes) == 3


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")
def test_fixture_of_projects(suite, tmp_path):
    pytest.importorskip("yaml")
    root = tmp_path / "root"
    root.mkdir()
    busybox_root(root, "proc", "dev", "sys")
    (tmp_path / "stack.yaml").write_text(PROJECT)
    (tmp_path / "make.py").write_text(
        f"from containerkit.image import Image\nImage.from_directory({str(root)!r}, 'box:1')\n"
    )
    env = {"CONTAINERKIT_IMAGES": str(tmp_path / "images")}
    subprocess.run([sys.executable, tmp_path / "make.py"], env={**os.environ, **env}, check=True, timeout=60)
    outcomes, shown = suite(
        """
kept = []
def test_files(project):
    stack = project("stack.yaml", wait=30)
    assert stack["web"].run(["cat", "/data/file"], text=True).stdout == "of the volume\\n"
    kept.append(stack)

def test_of_python(project):
    from containerkit.project import Project, Service
    stack = project(Project(name="mine", services={"one": Service(image="box:1", command=["sleep", "1000"])}))
    assert stack["one"].run(["echo", "on"], text=True).stdout == "on\\n"

def test_down():
    from containerkit.project import volumes
    (stack,) = kept
    assert [each.status for each in stack.containers()] in ([], ["exited"])
    assert stack.project.name.startswith("test-")
    assert not os.path.exists(volumes.path_of(stack.project.name + "_data"))
""",
        env=env,
    )
    assert set(outcomes.values()) == {"passed"}, shown
    assert len(outcomes) == 3


PROJECT = """
services:
  web:
    image: box:1
    command: sh -c "echo of the volume >/data/file; exec sleep 1000"
    healthcheck: {test: test -e /data/file, interval: 100ms}
    stop_signal: SIGKILL
    volumes: ["data:/data"]
volumes: {data: {}}
"""


def test_leaks_are_reported(suite):
    outcomes, shown = suite(
        """
kept = []
def test_clean(container): container.run(["true"])

def test_descriptor(): kept.append(os.pipe())

def test_child():
    import subprocess
    kept.append(subprocess.Popen(["sleep", "3"]))

@pytest.mark.container
def test_inside(): os.pipe()
""",
        "--container-leaks",
        conftest="import containerkit.pytest_plugin\ncontainerkit.pytest_plugin._PATIENCE_S = 1.0\n",
    )
    assert outcomes == {
        "test_clean": "passed",
        "test_descriptor": "teardown failed",
        "test_child": "teardown failed",
        "test_inside": "passed",
    }, shown
    assert "left behind: {'descriptors': {'pipe:[N]': 2}}" in shown
    assert "left behind: {'children': " in shown


def test_with_xdist(suite):
    pytest.importorskip("xdist")
    outcomes, shown = suite(
        """
@pytest.mark.container
@pytest.mark.parametrize("n", range(6))
def test_it(n): assert os.getpid() == 2

@pytest.mark.container
def test_dies(): os._exit(3)
""",
        "-n2",
        others=True,
    )
    assert outcomes == {**{f"test_it[{n}]": "passed" for n in range(6)}, "test_dies": "failed"}, shown


def test_suite_that_does_not_use_it_is_not_touched(suite):
    outcomes, shown = suite(
        """
def test_it():
    mine = [name for name in sys.modules if name.startswith("containerkit")]
    own = ["containerkit", "containerkit.late", "containerkit.pytest_plugin", "containerkit.pytest_plugin.fixtures"]
    assert sorted(mine) == own
"""
    )
    assert outcomes == {"test_it": "passed"}, shown


def test_names_of_others_come_first(suite):
    outcomes, shown = suite(
        """
@pytest.fixture
def container(): return "mine"

@pytest.fixture
def image(): return "mine"

def test_it(container, image): assert container == image == "mine"
"""
    )
    assert outcomes == {"test_it": "passed"}, shown


def test_nothing_is_run_for_show(suite):
    outcomes, shown = suite("@pytest.mark.container\ndef test_it(tmp_path): os._exit(3)\n", "--setup-plan")
    assert outcomes == {}, shown
    assert "tmp_path" in shown
