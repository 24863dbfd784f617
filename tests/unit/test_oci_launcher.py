"""The program that starts the runtime."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from containerkit.oci import launcher


@pytest.fixture
def place():
    """A directory that everybody can reach."""
    with tempfile.TemporaryDirectory(prefix="ck-oci-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.parametrize("hidden", ["", "closed", "closed/open/python"])
def test_interpreter_that_others_cannot_reach_is_named(place, monkeypatch, hidden):
    program = place / "closed/open/python"
    program.parent.mkdir(parents=True)
    program.write_text("")
    program.chmod(0o755)
    if hidden:
        (place / hidden).chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    found = launcher._hidden_from_others()
    if hidden:
        assert str(place / hidden) == found
    else:
        assert not found.startswith(str(place))
