"""Reused pids: the library never signals a process by its pid."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import containerkit

pytestmark = pytest.mark.usefixtures("nothing_left")

BY_NUMBER = {"kill", "killpg"}
ALLOWED = {
    ("_native/reference.py", "kill"): "its own child, not reaped yet: the number is its own",
    ("cli/relay.py", "kill"): "itself",
    ("cli/detached/attaching.py", "kill"): "itself",
    ("pytest_plugin/__init__.py", "kill"): "itself",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="choosing the next pid takes root")
def test_signals_never_hit_a_process_with_a_reused_pid():
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not there (package util-linux)")
    script = Path(__file__).with_name("pid_reuse.py")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    found = json.loads(done.stdout)
    controls = {name for name in found if name.startswith("the control")}
    assert len(controls) == 2
    assert {name: name not in controls for name in found} == found


def test_only_reviewed_calls_use_a_pid():
    """Each is an unreaped child of the caller, or the caller itself."""
    root = Path(containerkit.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        name = str(path.relative_to(root))
        text = path.read_text()
        if name.startswith("oci/") or not any(word in text for word in BY_NUMBER):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "os" and node.func.attr in BY_NUMBER:
                    found.add((name, node.func.attr))
    assert set() == found - set(ALLOWED)
