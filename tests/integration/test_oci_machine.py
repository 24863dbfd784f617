"""Verbs on two containers in any order: the state decides which are accepted, and at the end all can be deleted."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from oci_bundles import ONE, TWO, Bundle, Runtime, as_root, groups_named, make_rootfs, needs_busybox, write_runtime

pytestmark = [*as_root, pytest.mark.slow]

NAMES = st.sampled_from([ONE, TWO])


class Lifecycle(RuleBasedStateMachine):
    """The model is one word for each container: the expected output of ``state``."""

    place: Path
    bundle: Bundle

    @initialize()
    def begin(self):
        self.directory = tempfile.mkdtemp(dir=self.place)
        self.oci = Runtime(Path(self.directory) / "state")
        self.oci.words = [str(self.place / "runtime"), "--root", self.oci.root]
        self.model: dict[str, str] = {}

    def attempt(self, allowed, *words):
        code, said = self.oci.quiet(*words, check=False)
        assert allowed == (code == 0), f"{' '.join(map(str, words))} with {self.model}: {code} {said}"
        assert "Traceback" not in said

    @rule(name=NAMES)
    def create(self, name):
        self.attempt(name not in self.model, "create", "--bundle", self.bundle.path, name)
        self.model.setdefault(name, "created")

    @rule(name=NAMES)
    def start(self, name):
        self.attempt(self.model.get(name) == "created", "start", name)
        if self.model.get(name) == "created":
            self.model[name] = "running"

    @rule(name=NAMES)
    def pause(self, name):
        self.attempt(self.model.get(name) in ("created", "running"), "pause", name)
        if self.model.get(name) == "running":
            self.model[name] = "paused"
        elif self.model.get(name) == "created":
            self.attempt_thaw(name)

    def attempt_thaw(self, name):
        """A frozen created container is still created. It must not stay frozen for the next steps."""
        import json

        freezer = json.loads((Path(self.oci.root) / name / "state.json").read_text())["freezer"]
        Path(freezer).write_text("THAWED" if freezer.endswith(".state") else "0")

    @rule(name=NAMES)
    def resume(self, name):
        self.attempt(self.model.get(name) == "paused", "resume", name)
        if self.model.get(name) == "paused":
            self.model[name] = "running"

    @rule(name=NAMES)
    def execute(self, name):
        self.attempt(self.model.get(name) in ("created", "running"), "exec", name, "true")

    @rule(name=NAMES)
    def kill(self, name):
        self.attempt(self.model.get(name) in ("created", "running", "paused"), "kill", name, "KILL")
        if name in self.model:
            self.model[name] = "stopped"
            self.oci.wait(name)

    @rule(name=NAMES)
    def delete(self, name):
        self.attempt(self.model.get(name) == "stopped", "delete", name)
        if self.model.get(name) == "stopped":
            del self.model[name]

    @rule(name=NAMES)
    def delete_forced(self, name):
        self.attempt(True, "delete", "--force", name)
        self.model.pop(name, None)

    @rule(name=NAMES, delay_ms=st.integers(0, 60))
    def create_and_be_killed(self, name, delay_ms):
        if name in self.model:
            return
        with open(os.devnull, "r+b") as nothing:
            words = ["create", "--bundle", self.bundle.path, name]
            process = self.oci.popen(*words, stdin=nothing, stdout=nothing, stderr=nothing)
            time.sleep(delay_ms / 1000)
            process.kill()
            process.wait()
        self.attempt(True, "delete", "--force", name)

    @invariant()
    def state_says_so(self):
        if hasattr(self, "model"):
            for name, status in self.model.items():
                assert status == self.oci.status(name)

    def teardown(self):
        if hasattr(self, "model"):
            for name in (ONE, TWO):
                self.attempt(True, "delete", "--force", name)
                assert [] == groups_named(name)
            shutil.rmtree(self.directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    needs_busybox()
    place = tmp_path_factory.mktemp("machine")
    write_runtime(place / "runtime")
    return place


def test_any_order_of_verbs(place):
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    bundle.runs("sleep", "1000").write()
    machine = type("Machine", (Lifecycle,), {"place": place, "bundle": bundle})
    case = machine.TestCase
    case.settings = settings(
        max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
