"""Code that is run piece by piece: results, state, ends, and hostile code."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from containerkit import Container, ContainerError, Limits, Mount, Namespaces, RootFS, SetupError, SpecError, StateError
from containerkit.interpreter import Interpreter

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: control groups")


@pytest.fixture(scope="module")
def warm():
    """Create the objects that a process creates once and keeps: the layout of the control groups."""
    with Container() as container, contextlib.suppress(ContainerError):
        container.pause()


@pytest.fixture
def i():
    with Interpreter() as made:
        yield made


# --- Results


def test_variables_are_kept_and_the_last_value_is_shown(i):
    assert i.run_code("x = 40").text is None
    done = i.run_code("x + 2")
    assert (done.text, done.cause, done.error, done.state_lost) == ("42", "done", None, False)
    assert i.run_code("_").text == "42"
    assert i.run_code("def f(n):\n    return n * 2\nf(x)").text == "80"
    assert i.run_code("").text is None
    assert i.run_code("x = 1; None").text is None


def test_output_is_distinguished_and_arrives_as_it_is_written(i):
    heard = []
    code = "import sys, time\nprint('out')\nprint('err', file=sys.stderr)\ntime.sleep(0.4)\nprint('late', end='')"
    done = i.run_code(code, on_stdout=lambda text: heard.append((text, time.monotonic())))
    assert (done.stdout, done.stderr) == ("out\nlate", "err\n")
    assert "".join(text for text, _ in heard) == "out\nlate"
    assert heard[-1][1] - heard[0][1] > 0.2


def test_output_of_children_is_received(i):
    assert i.run_code("import os; os.system('echo child; echo wrong >&2'); None").stdout == "child\n"
    assert i.run_code("import subprocess; subprocess.run(['echo', 'again']); None").stdout == "again\n"


def test_errors_are_reported_with_the_lines_of_the_code(i):
    done = i.run_code("def f():\n    return 1 / 0\nf()")
    assert (done.cause, done.error.name, done.error.value) == ("error", "ZeroDivisionError", "division by zero")
    assert "return 1 / 0" in done.error.traceback
    assert "agent" not in done.error.traceback
    assert i.run_code("f(").error.name == "SyntaxError"
    assert i.run_code("raise SystemExit(3)").error.name == "SystemExit"
    assert i.run_code("class E(Exception):\n    def __str__(self): raise KeyError\nraise E").error.name == "E"
    assert i.run_code("1").text == "1"


def test_values_show_what_notebooks_ask_them_for(i):
    code = """
        class Rich:
            def __repr__(self): return "plain"
            def _repr_html_(self): return "<b>rich</b>"
            def _repr_png_(self): return b"\\x89PNG"
            def _repr_markdown_(self): raise ValueError
            def _repr_json_(self): return {"a": [1]}
        display(Rich(), 7)
        Rich()
    """
    seen = []
    done = i.run_code(textwrap.dedent(code), on_result=seen.append)
    first, second, last = done.results
    assert [result.text for result in seen] == ["plain", "7"]
    assert (first.text, first.html, first.png, first.markdown) == ("plain", "<b>rich</b>", b"\x89PNG", None)
    assert (second.text, second.html, first.json) == ("7", None, {"a": [1]})
    assert [result.is_main_result for result in done.results] == [False, False, True]
    assert done.text == "plain"
    assert (last.text, done.to_dict()["text"]) == ("plain", "plain")


def test_figures_of_matplotlib_are_pictures():
    pytest.importorskip("matplotlib")
    with Interpreter(RootFS.host(python=sys.prefix), python=sys.executable, preload=["matplotlib.pyplot"]) as i:
        done = i.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.figure()\nplt.plot([3])\nNone")
        assert [result.png[:8] for result in done.results] == [b"\x89PNG\r\n\x1a\n"] * 2
        assert i.run_code("1").results[0].png is None


def test_await_may_be_at_the_top(i):
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    return 5\n"
    assert i.run_code(f"{code}await f()").text == "5"
    assert i.run_code("y = await f()\ny + 1").text == "6"


def test_what_is_more_than_is_kept_is_dropped():
    with Interpreter(output_limit_bytes=1000) as i:
        done = i.run_code("print('x' * 10**6)")
        assert len(done.stdout) == 1000
        assert done.truncated
        done = i.run_code("display('y' * 10**5)\n1")
        assert done.truncated
        assert done.text == "1"


def test_modules_are_there_from_the_start(i):
    with Interpreter(preload=["json", "email.mime.text"]) as other:
        assert other.run_code("import sys; 'email.mime.text' in sys.modules").text == "True"
    with pytest.raises(SetupError, match="no_such_module"):
        Interpreter(preload=["no_such_module"])
    with pytest.raises(SpecError, match="not the name of a module"):
        Interpreter(preload=["os; import sys"])


def test_modules_of_the_workspace_can_be_imported(i):
    i.files.write("/workspace/mine.py", "value = 5")
    assert i.run_code("import mine, os; mine.value, os.getcwd()").text == "(5, '/workspace')"


def test_usage_is_reported(i):
    done = i.run_code("t = sum(range(3 * 10**6))")
    assert done.usage.user_us + done.usage.system_us > 10_000
    assert done.duration_s > 0.01


# --- How it ends


def test_time_that_is_up_keeps_the_variables(i):
    i.run_code("x = 1")
    began = time.monotonic()
    done = i.run_code("print('begun')\nwhile True: pass", timeout=0.3)
    assert (done.cause, done.error.name, done.state_lost, done.stdout) == (
        "timeout",
        "KeyboardInterrupt",
        False,
        "begun\n",
    )
    assert time.monotonic() - began < 20
    assert i.run_code("x").text == "1"


def test_code_that_does_not_heed_the_interrupt_is_killed(i):
    i.run_code("x = 1")
    done = i.run_code("import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)", timeout=0.3)
    assert (done.cause, done.state_lost) == ("timeout", True)
    assert i.run_code("x").error.name == "NameError"
    assert i.run_code("2").text == "2"


def test_timeout_of_the_interpreter_is_the_default():
    with Interpreter(timeout=0.3) as i:
        assert i.run_code("while True: pass").cause == "timeout"
        assert i.run_code("import time; time.sleep(0.5); 1", timeout=5).text == "1"


def test_interrupt_from_another_thread(i):
    timer = threading.Timer(0.3, i.interrupt)
    timer.start()
    done = i.run_code("while True: pass", timeout=30)
    timer.join()
    assert (done.cause, done.error.name) == ("error", "KeyboardInterrupt")
    i.interrupt()  # no code is running: it does nothing
    assert i.run_code("1").text == "1"


def test_interrupted_caller_interrupts_the_code_and_keeps_the_variables(i):
    i.run_code("x = 1")
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        i.run_code("while True: pass", timeout=30)
    timer.join()
    assert i.run_code("x").text == "1"


def test_what_a_callback_raises_ends_the_code(i):
    def refuse(text):
        raise KeyError(text)

    with pytest.raises(KeyError):
        i.run_code("print(1)\nwhile True: pass", on_stdout=refuse)
    assert i.run_code("2").text == "2"


@pytest.mark.parametrize(
    "end", ["import os; os._exit(3)", "import ctypes; ctypes.string_at(0)", "import os; os.kill(os.getpid(), 9)"]
)
def test_process_that_ends_is_replaced(i, end):
    done = i.run_code(f"print('said')\nimport sys; sys.stdout.flush()\n{end}")
    assert (done.cause, done.state_lost, done.stdout) == ("lost", True, "said\n")
    assert i.run_code("1").text == "1"


@pytest.mark.parametrize("session", ["", "os.setsid(); "])
def test_process_that_ends_is_noticed_while_its_children_go_on(i, session):
    """They keep its socket open."""
    leave = f"import os, time\nif os.fork() == 0:\n    {session}time.sleep(60)\nos._exit(3)"
    done = i.run_code(leave, timeout=50)
    assert (done.cause, done.state_lost) == ("lost", True)
    assert i.run_code("1").text == "1"


def test_long_code_and_long_answers_come_whole(i):
    text = "\N{SNOWMAN}" * 3_000_000
    assert i.run_code(f"text = {text!r}\nlen(text)").text == "3000000"
    assert i.run_code("text").text == repr(text)


def test_threads_take_turns(i):
    texts = []
    threads = [threading.Thread(target=lambda n=n: texts.append(i.run_code(f"{n}").text)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [str(n) for n in range(8)]


def test_reset_forgets(i):
    i.run_code("x = 1")
    i.files.write("/workspace/kept", "")
    i.reset()
    assert i.run_code("x").error.name == "NameError"
    assert i.files.exists("/workspace/kept")


def test_closed_interpreter_refuses_to_run():
    i = Interpreter()
    i.close()
    i.close()
    for do in (lambda: i.run_code("1"), i.snapshot, i.fork, i.reset):
        with pytest.raises(StateError, match="closed"):
            do()


def test_missing_python_is_reported():
    with pytest.raises(FileNotFoundError):
        Interpreter(python="no-such-python")
    with pytest.raises(SetupError, match="its output"):
        Interpreter(python="true")


def test_values_that_cannot_be_are_refused(i):
    for wrong in ({"timeout": -1}, {"timeout": "1"}):
        with pytest.raises(SpecError):
            i.run_code("1", **wrong)
    with pytest.raises(SpecError):
        i.run_code(b"1")
    with pytest.raises(SpecError):
        Interpreter(colour=1)


# --- State


def test_rollback_brings_back_variables_and_files(i):
    i.run_code("x = [1]\nopen('kept', 'w').write('before')\nimport os; os.mkdir('d'); open('d/f', 'w').write('f')")
    before = i.snapshot()
    i.run_code(
        "x.append(2)\nopen('kept', 'w').write('after')\nopen('new', 'w').close(); os.remove('d/f'); os.rmdir('d')"
    )
    assert i.run_code("x, sorted(os.listdir())").text == "([1, 2], ['kept', 'new'])"
    for _ in range(2):  # it can be restored more than once
        i.rollback(before)
        assert i.run_code("x, open('kept').read(), sorted(os.listdir()), os.listdir('d')").text == (
            "([1], 'before', ['d', 'kept'], ['f'])"
        )
        i.run_code("x.append(3)")
    before.close()
    with pytest.raises(StateError, match="snapshot"):
        i.rollback(before)


def test_snapshots_are_a_tree(i):
    i.run_code("x = 0")
    first = i.snapshot()
    i.run_code("x = 1")
    second = i.snapshot()
    i.rollback(first)
    assert i.run_code("x").text == "0"
    i.rollback(second)
    assert i.run_code("x").text == "1"


def test_rollback_after_the_state_was_lost(i):
    i.run_code("x = 5")
    before = i.snapshot()
    assert i.run_code("import os; os._exit(1)").state_lost
    i.rollback(before)
    assert i.run_code("x").text == "5"


def test_rollback_ends_what_the_code_has_started(i):
    before = i.snapshot()
    assert i.run_code("import subprocess; p = subprocess.Popen(['sleep', '98765'])").error is None
    assert shows(i, b"sleep\x0098765", True)
    i.rollback(before)
    assert shows(i, b"sleep\x0098765", False)


def shows(i, command, wanted):
    """Return whether a command appears, or ends, in time. Just after its exec the kernel shows no arguments."""
    deadline = time.monotonic() + 30
    while (command in commands(i)) != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def commands(i):
    found = b""
    for pid in i.container.members():
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                found += file.read()
        except OSError:
            continue
    return found


def test_fork_goes_its_own_way_and_the_last_one_ends_the_container():
    with Interpreter() as i:
        i.run_code("x = 1")
        other = i.fork()
        other.run_code("x = 2; print('mine')")
        assert (i.run_code("x").text, other.run_code("x").text) == ("1", "2")
        assert other.run_code("print('heard')").stdout == "heard\n"
        container = i.container
    assert container.state == "running"
    assert other.run_code("x").text == "2"
    other.close()
    assert container.state == "stopped"


def test_forked_child_of_the_caller_ends_nothing(i):
    i.run_code("x = 1")
    before = i.snapshot()
    child = os.fork()
    if child == 0:
        try:
            i.close()
            before.close()
            del i, before
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert i.run_code("x").text == "1"
    i.rollback(before)
    assert i.run_code("x").text == "1"


def test_snapshot_of_another_container_is_refused(i):
    with Interpreter() as other, pytest.raises(StateError, match="another container"):
        i.rollback(other.snapshot())


# --- Where it runs


def test_template_and_root():
    with Container.prepare() as template, Interpreter(template) as i:
        assert i.run_code("1 + 1").text == "2"
        with pytest.raises(SpecError):
            Interpreter(template, hostname="x")
    with Interpreter(RootFS.host(readonly=True), hostname="box", extra_env={"A": "b"}) as i:
        assert i.run_code("import os, socket; socket.gethostname(), os.environ['A']").text == "('box', 'b')"


def test_mounts_are_seen(tmp_path):
    (tmp_path / "data").write_text("x")
    tmp_path.chmod(0o755)
    with Interpreter(mounts=[Mount.bind(tmp_path, "/data", readonly=True)]) as i:
        assert i.run_code("open('/data/data').read()").text == "'x'"
        assert i.run_code("open('/data/new', 'w')").error.name in ("OSError", "PermissionError")


def test_killed_owner_leaves_nothing(left_of):
    code = "from containerkit.interpreter import Interpreter\ni = Interpreter()\nprint(i.container.pid, flush=True)\ni.run_code('while 1: pass')"

    def kill():
        owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        pid = int(owner.stdout.readline())
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        owner.stdout.close()
        deadline = time.monotonic() + 30
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{pid}")

    assert left_of(kill) == {}


# --- Hostile code


def test_nothing_is_reached_without_a_network(i):
    """It can reach neither a service of the host nor the internet: only the container's own loopback exists."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reach = "import socket; socket.create_connection(({!r}, {}), timeout=3)"
        assert i.run_code(reach.format("127.0.0.1", port)).error.name == "ConnectionRefusedError"
        assert i.run_code(reach.format("1.1.1.1", 53)).error.name == "OSError"
        with Interpreter(
            namespaces=Namespaces(network="host")
        ) as control:  # without isolation the service can be reached
            assert control.run_code(reach.format("127.0.0.1", port)).error is None


def test_kill_of_everybody_ends_no_other_container(i):
    with Interpreter() as other:
        other.run_code("x = 1")
        i.run_code("import os; os.kill(-1, 9)")
        assert i.run_code("1 + 1").text == "2"
        i.reset()
        assert i.run_code("2 + 2").text == "4"
        assert other.run_code("x").text == "1"


@root
def test_memory_that_is_used_up_costs_the_state_only():
    with Interpreter(limits=Limits(memory="150M")) as i:
        i.run_code("x = 1")
        done = i.run_code("b = bytearray(1 << 30)\nfor k in range(0, len(b), 4096): b[k] = 1")
        assert (done.cause, done.state_lost) == ("oom", True)
        assert i.run_code("1 + 1").text == "2"
        assert i.run_code("1").usage.memory_peak_bytes > 100 << 20


@root
def test_fork_bomb_is_swept_up():
    with Interpreter(limits=Limits(pids=40, memory="300M")) as i:
        bomb = "import os\nos.setsid() if os.getpid() != os.getsid(0) else None\nwhile True:\n    try:\n        if not os.fork(): os.setsid()\n    except OSError: pass"
        done = i.run_code(bomb, timeout=0.4)
        assert done.cause in ("timeout", "lost")
        i.reset()
        assert i.run_code("1 + 1", timeout=20).text == "2"


@pytest.mark.parametrize(
    "raw",
    [b"\\xff\\xff\\xff\\xff", b"\\x00\\x00\\x00\\x02[]", b"\\x00\\x00\\x00\\x05hello", b"\\x00\\x00\\x00\\x02{}"],
)
def test_answers_that_cannot_be_do_no_harm(i, raw):
    """The code finds the socket of its own process, and writes arbitrary data to it."""
    find = """
import os, stat
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b"%s")
    except OSError: pass
import time; time.sleep(0.2)
"""
    done = i.run_code(find % raw.decode(), timeout=60)
    assert done.cause in ("lost", "done")
    i.reset()
    assert i.run_code("1 + 1").text == "2"


def test_answers_with_wrong_types_do_no_harm(i):
    code = """
import json, os, stat, struct
raw = json.dumps({"result": 5, "error": [1], "usage": {"user_us": "x"}, "ready": "y"}).encode()
for fd in range(3, 64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, struct.pack("!I", len(raw)) + raw)
    except OSError: pass
"""
    done = i.run_code(code)
    assert (done.error, done.results, done.usage.user_us) == (None, (), 0)


def test_hostile_reprs_and_streams(i):
    assert i.run_code("class R:\n    def __repr__(self): raise ValueError('no')\nR()").error.value == "no"
    assert i.run_code("import sys; sys.stdout = None\nprint(1)\n5").text == "5"
    i.reset()
    assert i.run_code("import os; os.close(1); os.close(2)\n6").text == "6"
    assert i.run_code("7").text == "7"
