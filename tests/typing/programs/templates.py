"""Many containers of one description."""

from concurrent.futures import ThreadPoolExecutor
from typing import assert_type

from containerkit import CompletedProcess, Container, Namespaces, RootFS, Template


def main() -> None:
    with Container.prepare(RootFS.host(readonly=True), ready=1, hostname="typed", nested_userns=False) as template:
        assert_type(template, Template)
        assert_type(template.wait_full(30), bool)
        done = template.run(["cat", "/proc/sys/kernel/hostname"], text=True, timeout=30, check=True, init=True)
        assert_type(done, CompletedProcess[str])
        assert done.stdout == "typed\n"
        assert_type(template.run(["true"], umask=0o022).stderr, bytes)
        with template.container() as c, ThreadPoolExecutor(2) as threads:

            def echo(number: int) -> str:
                return c.run(["echo", str(number)], text=True).stdout

            assert list(threads.map(echo, range(3))) == ["0\n", "1\n", "2\n"]
        assert_type(template.ready, int)
    with Template(rootfs=RootFS.host(), networks=0, namespaces=Namespaces(uts="new"), no_new_privs=True) as other:
        assert other.run(["true"]).returncode == 0


if __name__ == "__main__":
    main()
