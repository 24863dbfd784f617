"""Restore a container and, on request, start programs in it.

Called as ``lookup_restored_child.py IMAGES CRIU alone|passing PROGRAM ...``. It prints the pid of the init first.
"""

import os
import sys

from lookup_child import shown

from containerkit import Container


def main():
    images, criu, how, *programs = sys.argv[1:]
    os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a descriptor of the caller's own,
    inherited = os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY)  # and one that is inherited
    os.set_inheritable(inherited, True)
    passed = (inherited,) if how == "passing" else ()
    with Container.restore(images, criu=criu) as c:
        print(c.pid, flush=True)
        sys.stdin.readline()
        for name in programs:
            try:
                done = c.run([name], timeout=20, pass_fds=passed)
                told = f"status {done.returncode} {shown(done.stdout)} {shown(done.stderr)}"
            except OSError as error:
                told = f"error {error.errno}"
            print(name, " ".join(told.split()), flush=True)


if __name__ == "__main__":
    main()
