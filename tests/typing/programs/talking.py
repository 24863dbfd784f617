"""Commands that are talked with."""

import os
from typing import IO, assert_type

from containerkit import DEVNULL, PIPE, STDOUT, Container, Process


def main() -> None:
    with Container() as c:
        with c.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as p:
            assert_type(p, Process[str])
            assert p.stdin is not None
            assert p.stdout is not None
            assert_type(p.stdin, IO[str])
            p.stdin.write("one line\n")
            p.stdin.flush()
            assert p.stdout.readline() == "one line\n"
        talk = c.popen(["sh", "-c", "cat; echo late >&2"], stdin=PIPE, stdout=PIPE, stderr=STDOUT)
        assert_type(talk, Process[bytes])
        out, err = talk.communicate(b"bytes\n", timeout=30, limit_bytes=1024)
        assert_type(out, bytes)
        assert out == b"bytes\nlate\n"
        assert not err
        assert_type(talk.returncode, int | None)
        assert_type(talk.args, list[str])
        groups = [0] if os.geteuid() == 0 else None  # users need a range of ids for them
        sleeper = c.exec(["sleep", "60"], stdout=DEVNULL, encoding="utf-8", user="0:0", groups=groups, env=None)
        assert_type(sleeper, Process[str])
        assert sleeper.poll() is None
        sleeper.terminate()
        assert_type(sleeper.wait(30), int)
        with open("/dev/null", "rb") as nothing, c.popen(["cat"], stdin=nothing, stdout=PIPE) as reader:
            assert reader.stdout is not None
            assert_type(reader.stdout.read(), bytes)
        with c.popen(["true"], pty=(24, 80), errors="replace") as screen:
            assert_type(screen, Process[str] | Process[bytes])
            screen.resize(rows=25, columns=80)


if __name__ == "__main__":
    main()
