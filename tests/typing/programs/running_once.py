"""One command in a container of its own."""

from typing import assert_type

from containerkit import DEVNULL, CompletedProcess, Mount, Namespaces, RootFS, Usage, User, run


def main() -> None:
    raw = run(["echo", b"a", "b"])
    assert_type(raw, CompletedProcess[bytes])
    assert_type(raw.stdout, bytes)
    assert raw.stdout.split() == [b"a", b"b"]

    text = run(("cat",), input="hello", text=True, timeout=30, check=True)
    assert_type(text, CompletedProcess[str])
    assert_type(text.stdout, str)
    assert_type(text.usage, Usage)
    assert text.stdout.upper() == "HELLO"

    encoded = run(["printf", r"\344"], encoding="latin-1")
    assert_type(encoded.stdout, str)
    assert encoded.stdout == "\xe4"

    assert run(["cat"], input=bytearray(b"x")).stdout == b"x"
    assert run(["cat"], input=memoryview(b"x"), stderr=DEVNULL).stdout == b"x"
    done = run(
        ["sh", "-c", 'echo "$A"; pwd; id -u; umask'],
        text=True,
        env={"A": "1", "PATH": "/usr/bin:/bin"},
        cwd="/tmp",
        user=User(0),
        umask=0o077,
        nice=5,
        rlimits={"nofile": 64, "core": (0, 0)},
        rootfs=RootFS.host(size="64M"),
        mounts=[Mount.tmpfs("/scratch", size="1M")],
        namespaces=Namespaces(network="new"),
        hostname="once",
        seccomp="default",
        keyring="new",
        init=True,
        own_group=True,
        output_limit_bytes=None,
    )
    assert_type(done.returncode, int)
    assert (done.returncode, done.stdout.split()) == (0, ["1", "/tmp", "0", "0077"])
    if done.cause == "exit":
        print(done.duration_s, done.usage.user_us, done.usage.max_rss_bytes)


if __name__ == "__main__":
    main()
