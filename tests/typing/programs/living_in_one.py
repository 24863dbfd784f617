"""A container that stays, and the files in it."""

import tempfile
from pathlib import Path
from typing import assert_type

from containerkit import Capabilities, Change, Container, Mount, Namespace, RootFS, Timings


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "in").write_text("from outside\n")
        with Container(
            RootFS.host(),
            id="typed-program",
            hostname="typed",
            mounts=(Mount.bind(directory, "/work", readonly=True, noexec=True, propagation="private"),),
            capabilities=Capabilities.of("CAP_CHOWN"),
            masked_paths=["/proc/kcore"],
            sysctls={"net.ipv4.ip_forward": 0},
        ) as c:
            assert_type(c, Container)
            assert c.run(["cat", "/work/in"], text=True).stdout == "from outside\n"
            c.files.write("/tmp/note", "hello", mode=0o600)
            assert_type(c.files.read("/tmp/note"), bytes)
            assert_type(c.files.read_text("/tmp/note"), str)
            c.files.put(directory / "in", "/tmp/copy")
            assert_type(c.files.get("/tmp/copy", directory / "out"), tuple[str, ...])
            assert_type(c.files.listdir("/tmp"), list[str])
            for change in c.changes():
                assert_type(change, Change)
                if change.kind == "added":
                    print(change.path)
            assert c.state == "running"
            assert_type(c.pid, int)
            assert_type(c.members(), list[int])
            with c.namespace("network") as network:
                assert_type(network, Namespace)
            timings = c.timings
            assert_type(timings, Timings | None)
            if timings is not None:
                assert_type(timings.total_us, float)
        c.stop(grace_s=0.5, stop_signal=15)


if __name__ == "__main__":
    main()
