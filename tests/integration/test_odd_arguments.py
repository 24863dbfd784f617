"""Any value of an argument of ``run`` is accepted, or refused by a SpecError before anything is created."""

import os

import pytest

from containerkit import Container, ContainerTimeout, SetupError, SpecError, run
from containerkit.errors import ContainerError

pytestmark = pytest.mark.usefixtures("nothing_left")

ODD = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, 0.5, float("nan"), float("inf"), 1j, "", "x", "/x", "\0",
    "/x\0y", "\ud800", "/\ud800", "\udcff", "x" * 70_000, "1:2:3", "\u0663", b"", b"x", b"\xff\0", (), (1,), ("x",),
    (None,), ("\ud800",), ("a\0",), (1, 2, 3), [], ["x"], ["\ud800"], [[]], {}, {"x": 1}, {1: 2}, {"\ud800": "x"},
    {"x": "\ud800"}, {"x": "a\0b"}, {"nofile": (1, 2, 3)}, set(), {1}, range(3), object(), object, print, ...,
)  # fmt: skip
NUMBERS = {"stdin", "stdout", "stderr", "pass_fds"}  # these are descriptors, and some are open
ARGUMENTS = (
    "argv", "input", "timeout", "check", "capture_output", "output_limit_bytes", "init", "stdin", "stdout", "stderr", "text",
    "encoding", "errors", "own_group", "syscall_handler", "cwd", "env", "user", "groups", "umask", "rlimits", "nice",
    "pass_fds", "hostname", "mounts", "limits", "sysctls", "capabilities", "seccomp", "nested_userns", "rootfs",
)  # fmt: skip
THE_KERNELS = {
    "argv",
    "cwd",
    "user",
    "groups",
    "nice",
    "rlimits",
    "rootfs",
    "sysctls",
}  # only the kernel can check these


@pytest.fixture(scope="module", autouse=True)
def once():
    with Container() as box:
        box.run(["true"])
    run(["true"])


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_odd_value_is_accepted_or_refused(argument):
    wrong = []
    for value in ODD:
        if argument in NUMBERS and isinstance(value, (int, tuple, set, range)):
            continue
        try:
            run(**{"argv": ["true"], "timeout": 5, argument: value})
        except SpecError:
            continue
        except ContainerError as error:
            timed_out = argument == "timeout" and isinstance(error, ContainerTimeout)
            if not timed_out and (argument not in THE_KERNELS or not isinstance(error, SetupError)):
                wrong.append(f"{value!r:.40}: {error!r:.100}")
        except Exception as error:  # noqa: BLE001 - the kind of exception is tested
            wrong.append(f"{value!r:.40}: {error!r:.100}")
    assert wrong == []


@pytest.mark.parametrize("options", [{"text": True}, {"encoding": "ascii"}, {"encoding": "utf-8", "errors": "strict"}])
def test_input_that_has_no_bytes_is_refused(options):
    with pytest.raises(SpecError, match="input"):
        run(["cat"], input="\ud800", **options)
    assert run(["cat"], input="a\udcffb", text=True, errors="surrogateescape").stdout == "a\udcffb"


@pytest.mark.parametrize("path", ["/\ud800", "/a\0b", "x", "", None, 7, b"/x"])
@pytest.mark.parametrize("method", ["read", "write", "listdir", "exists", "make_directory", "put", "get"])
def test_odd_path_of_a_file_is_refused(tmp_path, path, method):
    more = {"write": [b""], "get": [tmp_path / "out"]}.get(method, [])
    first = [os.fspath(tmp_path), path] if method == "put" else [path, *more]
    with Container() as box, pytest.raises(SpecError):
        getattr(box.files, method)(*first)


@pytest.mark.parametrize("path", ["/\ud800", "/a\0b", "", None, 7, b"/x"])
def test_odd_path_outside_is_refused(path):
    with Container() as box:
        with pytest.raises(SpecError):
            box.files.put(path, "/tmp/x")
        with pytest.raises(SpecError):
            box.files.get("/etc/passwd", path)
        with pytest.raises(SpecError):
            box.files.write("/tmp/x", "\ud800")
