"""What runs inside, in Python of the container: runs code that comes over a socket, and forks itself for snapshots.

Its text is given to the interpreter inside by ``-c``, so that nothing of this library has to be there. It takes Python
3.9 or later and imports what each start needs alone. The words of the conversation stand in
:mod:`containerkit.interpreter.branch`.
"""

from __future__ import annotations

# The modules in C alone: ast, json, signal and socket take half as long again as all else that a start does.
import _ast
import _signal  # type: ignore[import-not-found] # typeshed has it not
import _socket
import os
import struct
import sys

try:
    from _json import encode_basestring_ascii as quoted
except ImportError:  # another Python than CPython
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


class Channel:
    """Messages, each behind its length, with descriptors beside them: words come in, JSON goes out."""

    def __init__(self, fd: int) -> None:
        """Take over a descriptor."""
        self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fd)

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message."""
        raw = encoded(message).encode()
        raw = struct.pack("!I", len(raw)) + raw
        beside = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        sent = self.sock.sendmsg([raw], beside)
        while sent < len(raw):
            sent += self.sock.send(raw[sent:])

    def receive(self) -> tuple[str, list[int]]:
        """Return the next message and its descriptors; end the process when there will be none."""
        head = b""
        fds: list[int] = []
        while len(head) < 4:
            piece, beside, _, _ = self.sock.recvmsg(4 - len(head), _socket.CMSG_LEN(64))
            for level, kind, raw in beside:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds += struct.unpack(f"{len(raw) // 4}i", raw)
            if not piece:
                os._exit(0)
            head += piece
        left = struct.unpack("!I", head)[0]
        pieces: list[bytes] = []
        while left:
            piece = self.sock.recv(min(left, 1 << 20))
            if not piece:
                os._exit(0)
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces).decode("utf-8", "surrogatepass"), fds


def rich(value: Any) -> dict[str, Any]:
    """Return what a value looks like, by type: its own methods that notebooks call, and its repr."""
    shown = {"text/plain": repr(value)}
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
        except Exception:  # noqa: BLE001, S112 - what it looks like is no reason to fail
            continue
        if isinstance(made, tuple):  # with metadata
            made = made[0]
        if made is not None:
            shown[mime] = made
    return {mime: plain(content) for mime, content in shown.items()}


def encoded(value: Any) -> str:
    """Return JSON of a value.

    Raises:
        TypeError, RecursionError: JSON has nothing for it.
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
    raise TypeError(f"{type(value).__name__} is nothing for JSON")


def plain(content: Any) -> Any:
    """Return what JSON can take: bytes as base64."""
    if isinstance(content, (bytes, bytearray)):
        import binascii

        return binascii.b2a_base64(content, newline=False).decode()
    return content


class Agent:
    """A process in which code is run, one piece after the other."""

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
        """Do what is asked for, for ever."""
        while True:
            message, fds = self.channel.receive()
            verb, _, rest = message.partition("\0")
            if verb == "run":
                self.answer(self.run(rest))
            elif verb == "fork":
                save, restore = rest.split("\0")
                self.fork(save, restore, fds)

    def answer(self, done: dict[str, Any]) -> None:
        """Send an answer; one that is too long is replaced by an error."""
        try:
            self.channel.send(done)
        except (TypeError, ValueError, RecursionError) as error:
            self.channel.send({"error": {"name": type(error).__name__, "value": str(error), "traceback": ""}})

    def display(self, *values: Any) -> None:
        """Show values, as richly as they can be: for code that wants to show more than its last value."""
        for value in values:
            shown = rich(value)
            if sum(len(each) for each in shown.values() if isinstance(each, str)) > LONGEST:
                shown = {"text/plain": shown["text/plain"][:1000]}
            self.channel.send({"display": shown})

    # --- Running

    def run(self, code: str) -> dict[str, Any]:
        """Run a piece of code, and return what became of it."""
        self.count += 1
        name = f"<cell {self.count}>"
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        done: dict[str, Any] = {}
        try:
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
            try:
                self.execute(code, name, done)
            finally:
                _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
                self.flush()
        except BaseException as error:  # noqa: BLE001 - of code that may raise anything
            done = {"error": self.told(error, name, code)}
        after = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        pairs = list(zip(before, after))  # noqa: B905 - strict= is of Python 3.10
        done["usage"] = {
            "user_us": sum(int((b.ru_utime - a.ru_utime) * 1e6) for a, b in pairs),
            "system_us": sum(int((b.ru_stime - a.ru_stime) * 1e6) for a, b in pairs),
            "max_rss_bytes": after[0].ru_maxrss * 1024,
        }
        return done

    def execute(self, code: str, name: str, done: dict[str, Any]) -> None:
        """Run the statements; the value of an expression that comes last is the result."""
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
        """Evaluate compiled code; what awaits something at its top is run by asyncio."""
        value = eval(code, space)  # noqa: S307 - it is what this program is for
        if code.co_flags & 0x80:  # CO_COROUTINE
            import asyncio

            return asyncio.run(value)
        return value

    def remember(self, name: str, code: str) -> None:
        """Let tracebacks show the lines."""
        cache = sys.modules.get("linecache")
        if cache is not None:
            cache.cache[name] = (len(code), None, code.splitlines(True), name)

    def pictures(self) -> None:
        """Show the figures of matplotlib that nobody has saved, and close them."""
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
        """Return an error as data: with the traceback from the code's own frame on."""
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
        """Write what is still held back."""
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:  # noqa: BLE001, S112 - it was replaced, or closed
                continue

    # --- Forking

    def fork(self, save: str, restore: str, fds: list[int]) -> None:
        """Go on in a child as well, which talks over a socket of its own."""
        try:
            parent = os.fork()
        except OSError:  # the caller learns of it from the end of the socket
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
        except BaseException as error:  # noqa: BLE001 - it is told, and this process ends
            try:
                self.channel.send({"error": {"name": type(error).__name__, "value": str(error), "traceback": ""}})
            finally:
                os._exit(1)

    def raise_oom_score(self) -> None:
        """Let the kernel kill this one for memory, and not the one that it comes from."""
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("900")
        except OSError:
            return


def copy(source: str, target: str) -> None:
    """Make a directory hold what another holds."""
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
    """Begin, as the process that all others are forked from."""
    channel = Channel(int(sys.argv[1]))
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    workspace, names = sys.argv[2], sys.argv[3:]
    os.makedirs(workspace, exist_ok=True)
    os.chdir(workspace)
    sys.path.insert(0, workspace)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr] # at the start it is the interpreter's own
    sys.argv[:] = [""]
    agent = Agent(channel, workspace)
    for name in names:
        __import__(name)
    channel.send({"ready": os.getpid()})
    agent.serve()


if __name__ == "__main__":
    main()
