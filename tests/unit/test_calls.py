"""Names, errors and backends of the direct calls. Their effects in the kernel are tested in tests/integration."""

import ctypes
import errno
import inspect
import os
import signal
import subprocess
import sys
import threading

import pytest

from containerkit._native import calls, calls_seam, constants


@pytest.fixture(params=["calls_compiled", "calls_ctypes"])
def backend(request, monkeypatch):
    try:
        module = __import__(f"containerkit._native.{request.param}", fromlist=["syscall"])
    except ImportError:
        pytest.skip("the extension is not built")
    monkeypatch.setattr(calls_seam, "backend", module)
    return module


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_calls_public_names_are_sorted_and_there():
    assert sorted(calls.__all__) == calls.__all__
    assert all(callable(getattr(calls, name)) for name in calls.__all__)


@pytest.mark.parametrize("name", calls.__all__)
def test_calls_docstring_says_what_it_raises_and_ends_with_its_source(name):
    text = inspect.getdoc(getattr(calls, name))
    assert text.splitlines()[-1].startswith("Source: ")
    assert "Raises:" in text


@pytest.mark.parametrize("name", calls.__all__)
def test_calls_document_each_argument(name):
    function = getattr(calls, name)
    text = inspect.getdoc(function)
    assert [] == [each for each in inspect.signature(function).parameters if f"    {each}:" not in text]


def test_syscall_returns_the_value(backend):
    assert os.getuid() == calls.syscall("getuid")


def test_syscall_passes_negative_numbers(backend, tmp_path):
    calls.syscall("mkdirat", constants.AT_FDCWD, os.fsencode(tmp_path / "made"), 0o700)
    assert (tmp_path / "made").is_dir()


def test_syscall_passes_each_argument_whole(backend):
    """prctl checks that all 64 bits of unused arguments are 0."""
    for position in range(4):
        unused = [0, 0, 0, 0]
        unused[position] = 1 << 63
        with pytest.raises(OSError) as caught:
            calls.prctl(constants.PR_GET_NO_NEW_PRIVS, *unused)
        assert errno.EINVAL == caught.value.errno


def test_syscall_lets_the_kernel_write_into_a_bytearray(backend, pipe):
    os.write(pipe[1], b"hello")
    buffer = bytearray(8)
    assert 5 == calls.syscall("read", pipe[0], buffer, len(buffer))
    assert b"hello\0\0\0" == bytes(buffer)


def test_syscall_releases_the_bytearray(backend, pipe):
    os.write(pipe[1], b"x")
    buffer = bytearray(1)
    calls.syscall("read", pipe[0], buffer, 1)
    buffer.extend(b"y")  # a BufferError if anyone still held it
    assert b"xy" == bytes(buffer)


def test_address_is_where_the_buffer_is(backend):
    buffer = bytearray(b"pointed to")
    assert b"pointed to" == ctypes.string_at(backend.address(buffer), 10)
    buffer.extend(b"y")  # a BufferError if anyone still held it


def test_syscall_terminates_bytes(backend, tmp_path):
    path = os.fsencode(tmp_path / "file")
    fd = calls.syscall("openat", constants.AT_FDCWD, path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    os.close(fd)
    assert ["file"] == [entry.name for entry in tmp_path.iterdir()]


def test_syscall_raises_with_errno_and_target(backend):
    with pytest.raises(OSError) as caught:
        calls.syscall("close", -1, target="fd -1")
    assert (errno.EBADF, "fd -1") == (caught.value.errno, caught.value.filename)


def test_syscall_of_an_unknown_name_is_not_implemented(backend):
    with pytest.raises(OSError) as caught:
        calls.syscall("no_such_call")
    assert (errno.ENOSYS, "no_such_call") == (caught.value.errno, caught.value.filename)


def test_syscall_leaves_an_error_of_another_thread_alone(backend):
    seen = []

    def fail_often(number):
        for _ in range(300):
            try:
                calls.syscall("close", -1)
            except OSError as error:
                seen.append(error.errno == errno.EBADF)
            seen.append(calls.syscall("getuid") == os.getuid())

    threads = [threading.Thread(target=fail_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [True] * 2400 == seen


def test_syscall_runs_while_other_threads_do(backend, pipe):
    """A read that blocks would stop the writer forever if the GIL were held."""
    writer = threading.Timer(0.05, os.write, (pipe[1], b"!"))
    writer.start()
    assert 1 == calls.syscall("read", pipe[0], bytearray(1), 1)
    writer.join()


def test_syscall_continues_after_a_handled_signal(backend, pipe):
    taken = []
    before = signal.signal(signal.SIGALRM, lambda *_: (taken.append(1), os.write(pipe[1], b"!")))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert 1 == calls.syscall("read", pipe[0], bytearray(1), 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [1] == taken


def test_syscall_ends_when_the_handler_raises(backend, pipe):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            calls.syscall("read", pipe[0], bytearray(1), 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda: calls.mount("none", "/a\0b", "tmpfs"),
        lambda: calls.mount("no\0ne", "/nowhere", "tmpfs"),
        lambda: calls.umount2("/a\0b"),
        lambda: calls.pivot_root("/a\0", "/a"),
        lambda: calls.open_tree(constants.AT_FDCWD, "\0"),
        lambda: calls.openat2(constants.AT_FDCWD, b"/a\0b"),
        lambda: calls.move_mount(0, "", 0, "a\0b"),
        lambda: calls.sethostname("a\0b"),
        lambda: calls.setdomainname(b"a\0b"),
        lambda: calls.fsopen("tmp\0fs"),
        lambda: calls.fsconfig_set_string(0, "size", "1\0"),
        lambda: calls.keyctl(constants.KEYCTL_JOIN_SESSION_KEYRING, "a\0b"),
    ],
)
def test_calls_refuse_a_nul_that_the_kernel_would_not_see(call):
    with pytest.raises(ValueError, match="NUL"):
        call()


@pytest.mark.parametrize(
    "flag", [constants.CLONE_VM, constants.CLONE_VFORK, constants.CLONE_THREAD, constants.CLONE_SIGHAND]
)
def test_clone_refuses_flags_that_would_break_the_interpreter(flag):
    with pytest.raises(ValueError, match="clone"):
        calls.clone(flag)


def test_calls_use_ctypes_if_the_extension_is_missing():
    code = (
        "import sys; sys.modules['containerkit._native._lib'] = None\n"
        "from containerkit._native import calls, calls_seam\n"
        "print(calls_seam.backend.__name__.rpartition('.')[2], calls.syscall('getuid'))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"calls_ctypes {os.getuid()}\n" == output


def test_calls_import_nothing_heavy():
    pytest.importorskip("containerkit._native._lib")
    code = (
        "import sys; from containerkit._native import calls\n"
        "print(sorted({'ctypes', 'pathlib', 'json', 'asyncio', 'socket'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "[]\n" == output
