"""Trees are removed by their owner, whatever the modes of their directories."""

import os
import subprocess
import sys

REMOVE = """
import os, sys
from containerkit._linux.tree_walk import remove
place = os.open(sys.argv[1], os.O_RDONLY)
os.fchdir(place)
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
os.makedirs("tree/closed/below")
open("tree/closed/below/file", "w").close()
for path, mode in (("tree/closed/below", 0o500), ("tree/closed", 0)):
    os.chmod(path, mode)
remove(b"tree", place)
print(os.listdir(place))
"""


def test_directories_that_their_owner_can_not_enter_are_removed(tmp_path):
    if os.geteuid() == 0:  # as another user, since root needs no mode
        os.chown(tmp_path, 65534, 65534)
    done = subprocess.run([sys.executable, "-c", REMOVE, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done
