"""The program inside the container: it runs code that arrives on a socket, and forks itself for snapshots.

The interpreter inside receives its text with ``-c``, so the container needs no file of this library. It requires Python
3.9 or later, and imports only modules that every start needs. :mod:`containerkit.interpreter.branch` documents the
protocol.
"""

from __future__ import annotations

# Only the modules in C: ast, json, signal and socket would make a start half as long again.
import _ast
import _signal  # type: ignore[import-not-found] # typeshed does not have it
import _socket
import os
import resource
import struct
import sys

try:
    from _json import encode_basestring_ascii as quoted
except ImportError:  # not CPython
    from json.encoder import encode_basestring_ascii as quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType
    from typing import Any

PICTURE = "image/png"
MIMES = (
    ("_repr_html_", "text/html"),
    ("_repr_markdown_", "text/markdown"),
    ("_repr_latex_", "text/latex"),
    ("_repr_svg_", "image/svg+xml"),
    ("_repr_json_", "application/json"),
    ("_repr_png_", PICTURE),
    ("_repr_jpeg_", "image/jpeg"),
)
LONGEST = 32 * 1024 * 1024
CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)
BARE = frozenset((bool, bytes, complex, dict, float, frozenset, int, list, range, set, str, tuple))
"""The types that have no representation but their repr."""


class Channel:
    """Messages with a length prefix and descriptors. Requests are words, answers are JSON."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)
        self.before = b""  # what was read of the next message

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message."""
        raw = encoded(message).encode()
        raw = struct.pack("!I", len(raw)) + raw
        beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        sent = self.sock.sendmsg([raw], beside)
        while sent < len(raw):
            sent += self.sock.send(raw[sent:])

    def receive(self) -> tuple[str, list[int]]:
        """Return the next message and its descriptors. End the process at the end of the socket."""
        fds: list[int] = []
        raw, end = bytearray(self.before), 4
        while True:
            if len(raw) >= 4:
                end = 4 + struct.unpack_from("!I", raw)[0]
                if len(raw) >= end:
                    break
            size = max(1 << 16, min(end - len(raw), 1 << 20))
            piece, beside, _, _ = self.sock.recvmsg(size, _socket.CMSG_LEN(64), CLOEXEC)
            for level, kind, data in beside:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds += struct.unpack(f"{len(data) // 4}i", data)
            if not piece:
                os._exit(0)
            raw += piece
        self.before = bytes(raw[end:])
        return raw[4:end].decode("utf-8", "surrogatepass"), fds


def rich(value: Any) -> dict[str, Any]:
    """Return the representations of a value by MIME type: those of its methods for notebooks, and its repr."""
    shown = {"text/plain": repr(value)}
    if type(value) in BARE:
        return shown
    bundle = getattr(value, "_repr_mimebundle_", None)
    if bundle is not None and not isinstance(value, type):
        made = bundle()
        shown.update(made[0] if isinstance(made, tuple) else made or {})
    for name, mime in MIMES:
        method = getattr(value, name, None)
        if mime in shown or method is None or isinstance(value, type):
            continue
        try:
            made = method()
        except Exception:  # noqa: BLE001, S112 - a failing representation is omitted
            continue
        if isinstance(made, tuple):  # with metadata
            made = made[0]
        if made is not None:
            shown[mime] = made
    return {mime: plain(content) for mime, content in shown.items()}


def encoded(value: Any) -> str:
    """Return JSON of a value.

    Raises:
        TypeError, RecursionError: JSON can't represent it.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, (int, float)):
        kind = int if isinstance(value, int) else float
        return kind.__repr__(value) if value - value == 0 else "null"
    if isinstance(value, dict):
        return "{" + ",".join([f"{quoted(str(name))}:{encoded(each)}" for name, each in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([encoded(each) for each in value]) + "]"
    raise TypeError(f"JSON can't represent {type(value).__name__}")


def plain(content: Any) -> Any:
    """Return a value for JSON, with bytes as base64."""
    if isinstance(content, (bytes, bytearray)):
        import binascii

        return binascii.b2a_base64(content, newline=False).decode()
    return content


class Agent:
    """A process that runs pieces of code, one after the other."""

    def __init__(self, channel: Channel, workspace: str) -> None:
        """Begin with an empty namespace."""
        self.channel = channel
        self.workspace = workspace
        self.count = 0
        import types

        self.module = types.ModuleType("__main__")
        self.module.__dict__["__builtins__"] = __builtins__
        self.module.__dict__["display"] = self.display
        sys.modules["__main__"] = self.module

    def serve(self) -> None:
        """Serve requests forever."""
        while True:
            message, fds = self.channel.receive()
            verb, _, rest = message.partition("\0")
            if verb == "run":
                self.answer(self.run(rest))
            elif verb == "fork":
                save, restore = rest.split("\0")
                self.fork(save, restore, fds)

    def answer(self, done: dict[str, Any]) -> None:
        """Send an answer. Replace one that is too long by an error."""
        try:
            self.channel.send(done)
        except (TypeError, ValueError, RecursionError) as error:
            self.channel.send({"error": {"name": type(error).__name__, "value": str(error), "traceback": ""}})

    def display(self, *values: Any) -> None:
        """Show values in their richest form, in addition to the last value of the code."""
        for value in values:
            shown = rich(value)
            if sum(len(each) for each in shown.values() if isinstance(each, str)) > LONGEST:
                shown = {"text/plain": shown["text/plain"][:1000]}
            self.channel.send({"display": shown})

    # --- Running

    def run(self, code: str) -> dict[str, Any]:
        """Run a piece of code, and return its outcome."""
        self.count += 1
        name = f"<cell {self.count}>"
        before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        done: dict[str, Any] = {}
        try:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
            try:
                self.execute(code, name, done)
            finally:
                _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
                self.flush()
        except BaseException as error:  # noqa: BLE001 - the code may raise anything
            done = {"error": self.told(error, name, code)}
        after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        pairs = list(zip(before, after))  # noqa: B905 - strict= needs Python 3.10
        done["usage"] = {
            "user_us": sum(int((b.ru_utime - a.ru_utime) * 1e6) for a, b in pairs),
            "system_us": sum(int((b.ru_stime - a.ru_stime) * 1e6) for a, b in pairs),
            "max_rss_bytes": after[0].ru_maxrss * 1024,
        }
        return done

    def execute(self, code: str, name: str, done: dict[str, Any]) -> None:
        """Run the statements. If the last one is an expression, its value is the result."""
        tree = compile(code, name, "exec", _ast.PyCF_ONLY_AST | _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        last = None
        if tree.body and isinstance(tree.body[-1], _ast.Expr):
            last = _ast.Expression(tree.body.pop().value)
        space = self.module.__dict__
        self.remember(name, code)
        flags = _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        if tree.body:
            self.evaluate(compile(tree, name, "exec", flags), space)
        if last is not None:
            value = self.evaluate(compile(last, name, "eval", flags), space)
            if value is not None:
                space["_"] = value
                done["result"] = rich(value)
        self.pictures()

    def evaluate(self, code: CodeType, space: dict[str, Any]) -> Any:
        """Evaluate compiled code. Code with ``await`` at its top level is run by asyncio."""
        value = eval(code, space)  # noqa: S307 - the purpose of this program
        if code.co_flags & 0x80:  # CO_COROUTINE
            import asyncio

            return asyncio.run(value)
        return value

    def remember(self, name: str, code: str) -> None:
        """Store the lines of the code for tracebacks."""
        cache = sys.modules.get("linecache")
        if cache is not None:
            cache.cache[name] = (len(code), None, code.splitlines(True), name)

    def pictures(self) -> None:
        """Show the open figures of matplotlib, and close them."""
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is None:
            return
        import io

        for number in plots.get_fignums():
            file = io.BytesIO()
            plots.figure(number).savefig(file, format="png", bbox_inches="tight")
            self.channel.send({"display": {PICTURE: plain(file.getvalue())}})
        plots.close("all")

    def told(self, error: BaseException, name: str, code: str) -> dict[str, str]:
        """Return an error as data. Its traceback begins with the code's own frame."""
        import linecache
        import traceback

        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
            trace = trace.tb_next
        try:
            value = str(error)
            text = "".join(traceback.format_exception(type(error), error, trace))
        except BaseException:  # noqa: BLE001 - a hostile __str__
            value, text = "", ""
        return {"name": type(error).__name__, "value": value[:100000], "traceback": text[-100000:]}

    def flush(self) -> None:
        """Flush the output streams."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: BLE001, S112 - the code has replaced or closed it
                continue

    # --- Forking

    def fork(self, save: str, restore: str, fds: list[int]) -> None:
        """Fork a child that continues from here, with a separate socket."""
        try:
            parent = os.fork()
        except OSError:  # the caller notices the end of the socket
            parent = -1
        if parent:
            for fd in fds:
                os.close(fd)
            return
        try:
            os.setsid()
            self.channel.sock.close()
            channel, out, err = fds
            for fd, standard in ((out, 1), (err, 2)):
                os.dup2(fd, standard)
                os.close(fd)
            self.channel = Channel(channel)
            self.raise_oom_score()
            if save:
                copy(self.workspace, save)
            if restore:
                copy(restore, self.workspace)
            pidfd = os.pidfd_open(os.getpid()) if hasattr(os, "pidfd_open") else -1
            self.channel.send({"ready": os.getpid()}, [pidfd] if pidfd >= 0 else [])
            if pidfd >= 0:
                os.close(pidfd)
        except BaseException as error:  # noqa: BLE001 - reported, then this process ends
            try:
                self.channel.send({"error": {"name": type(error).__name__, "value": str(error), "traceback": ""}})
            finally:
                os._exit(1)

    def raise_oom_score(self) -> None:
        """Make the kernel prefer this process to its parent when memory runs out."""
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("900")
        except OSError:
            return


def copy(source: str, target: str) -> None:
    """Replace the content of a directory by that of another."""
    os.makedirs(target, exist_ok=True)
    there = os.listdir(target)
    wanted = os.listdir(source) if os.path.isdir(source) else []
    if not there and not wanted:
        return
    import shutil

    for name in there:
        path = os.path.join(target, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    for name in wanted:
        path = os.path.join(source, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.copytree(path, os.path.join(target, name), symlinks=True)
        else:
            shutil.copy2(path, os.path.join(target, name), follow_symlinks=False)


def main() -> None:
    """Run as the process from which all others are forked."""
    channel = Channel(int(sys.argv[1]))
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    workspace, names = sys.argv[2], sys.argv[3:]
    os.makedirs(workspace, exist_ok=True)
    os.chdir(workspace)
    sys.path.insert(0, workspace)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # at the start it is still the interpreter's own object
    sys.argv[:] = [""]
    agent = Agent(channel, workspace)
    for name in names:
        __import__(name)
    channel.send({"ready": os.getpid()})
    agent.serve()


if __name__ == "__main__":
    main()
