"""The bytecode that the launcher carries: all of it is used, and none that is out of date."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

import containerkit
from containerkit._native import front
from containerkit.oci import launcher

SOURCE = Path(containerkit.__file__).parent

INSTALL = """
import marshal, sys
sys.path += {directories!r}
content = open({content!r}, "rb").read()
code, table = marshal.loads(memoryview(content)[4:])
names = {{"__name__": "containerkit.oci.bytecode"}}
exec(code, names)
names["install"](table, content)
"""
LIST = """
for name, module in sorted(sys.modules.items()):
    loader = getattr(module, "__loader__", None)
    if getattr(module, "__file__", None) and not isinstance(loader, type) and not name.startswith("encodings"):
        print(name, type(loader).__name__)
"""
VERBS = "import containerkit.oci.main, containerkit.oci.create, containerkit.oci.execute, containerkit.oci.cgroups\n"


@pytest.fixture
def package(tmp_path):
    """A copy of the package, and what a launcher of it carries."""
    left_out = shutil.ignore_patterns("__pycache__", "*.c", "*.h", "image", "project", "network", "container")
    shutil.copytree(SOURCE, tmp_path / "containerkit", ignore=left_out)
    directories = [str(tmp_path), str(Path(_cffi_backend.__file__).parent)]
    code = f"import sys\nsys.path += {directories!r}\nfrom containerkit.oci.bytecode import gather\n"
    words = [sys.executable, "-ISc", f"{code}sys.stdout.buffer.write(gather())"]
    (tmp_path / "carried").write_bytes(subprocess.run(words, capture_output=True, check=True).stdout)
    return tmp_path


def loaded(package, code=""):
    """Import the verbs in a new interpreter, and return the loader of each module that has a file."""
    directories = [str(package), str(Path(_cffi_backend.__file__).parent)]
    program = INSTALL.format(directories=directories, content=str(package / "carried")) + VERBS + code + LIST
    done = subprocess.run([sys.executable, "-ISc", program], capture_output=True, text=True)
    assert done.stderr == ""
    return dict(map(str.split, done.stdout.splitlines()))


def test_create_and_exec_import_nothing_from_elsewhere(package):
    found = loaded(package)
    assert {"_Loader", "ExtensionFileLoader"} == set(found.values())
    assert {"containerkit", "containerkit.oci.creation", "containerkit._native.constants"} <= set(found)


@pytest.mark.parametrize("same_size", [True, False])
def test_changed_source_is_imported_instead(package, same_size):
    source = package / "containerkit/oci/create.py"
    text = source.read_text()
    source.write_text(text.replace("waits", "WAITS") if same_size else text + "CHANGED = True\n")
    found = loaded(package)
    assert "SourceFileLoader" == found.pop("containerkit.oci.create")
    assert {"_Loader", "ExtensionFileLoader"} == set(found.values())


def test_module_of_a_removed_source_is_not_found(package):
    (package / "containerkit/oci/create.py").unlink()
    with pytest.raises(AssertionError, match=r"No module named 'containerkit\.oci\.create'"):
        loaded(package)


def test_modules_have_the_attributes_of_imported_ones(package):
    code = """
import inspect
import containerkit.oci.store as store
assert store.__file__.endswith("/containerkit/oci/store.py"), store.__file__
assert store.__cached__ == store.__spec__.cached and "__pycache__" in store.__cached__, store.__cached__
assert store.open_entry.__code__.co_filename == store.__file__
assert store.__package__ == "containerkit.oci"
assert store.__spec__.parent in sys.modules and sys.modules["containerkit.oci"].__path__
assert "def open_entry" in inspect.getsource(store)
import containerkit.oci.launcher
assert type(containerkit.oci.launcher.__loader__).__name__ == "SourceFileLoader"  # found by the package's path
"""
    assert "_Loader" == loaded(package, code)["containerkit.oci.store"]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The launcher of this package."""
    path = tmp_path_factory.mktemp("launcher") / "containerkit-oci"
    path.write_bytes(launcher.program())
    path.chmod(0o755)
    return path


def test_launcher_carries_it_at_its_end(program):
    size = front.size()
    content = program.read_bytes()
    assert content[:4] == b"\x7fELF"
    assert content[size:] == launcher._carried()


@pytest.mark.parametrize("damage", ["none", "other Python", "cut off", "nothing"])
def test_launcher_works_without_it(program, tmp_path, damage):
    size = front.size()
    content = program.read_bytes()
    changed = {
        "none": content,
        "other Python": content[:size] + b"\0\0\0\0" + content[size + 4 :],
        "cut off": content[:-1],
        "nothing": content[:size],
    }[damage]
    (tmp_path / "changed").write_bytes(changed)
    (tmp_path / "changed").chmod(0o755)
    words = [tmp_path / "changed", "--root", tmp_path / "root", "exec", "one", "true"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (255, "containerkit-oci: container 'one' does not exist\n") == (done.returncode, done.stderr)


def test_interpreter_that_lacks_the_modules_is_an_error(monkeypatch):
    monkeypatch.setattr(launcher, "_directories", lambda: ["/nowhere"])
    with pytest.raises(launcher.RuntimeFailure, match="No module named 'containerkit'"):
        launcher.program()
