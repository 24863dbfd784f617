"""Events and health checks of detached containers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from detached_samples import Kept, needs_root, runs
from image_samples import busybox_root
from waiting import wait_for

import containerkit
from containerkit.detached import events as stream
from containerkit.detached import logs
from containerkit.errors import SpecError
from containerkit.image import Defaults, Healthcheck, Image, Store

CLI = [sys.executable, "-m", "containerkit"]
OFTEN = {"health_interval_s": 0.02, "health_start_interval_s": 0.02}


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


@pytest.fixture
def name():
    return f"e{os.getpid()}-{time.monotonic_ns()}"


def actions(one):
    return [event.action for event in containerkit.events(id=one.id)]


# --- Events


def test_events_of_a_life_are_in_order(kept, name):
    one = kept.shell("trap 'exit 3' USR1; echo up; while :; do sleep 0.01; done", name=name, labels={"a": "b"})
    wait_for(lambda: list(one.logs()))
    one.kill("USR1")
    one.wait(10)
    wait_for(lambda: "die" in actions(one))
    one.start()
    one.rename(f"{name}-2")
    one.stop(0)
    one.remove()
    told = list(containerkit.events(id=one.id))
    assert all(isinstance(each, containerkit.ContainerEvent) for each in told)
    assert ["create", "start", "kill", "die", "start", "rename", "die", "stop", "destroy"] == [e.action for e in told]
    assert {name, f"{name}-2"} == {e.name for e in told}
    assert all(e.labels == {"a": "b"} for e in told)
    assert told[2].attributes == {"signal": int(signal.SIGUSR1)}
    assert told[3].attributes == {"exit_code": 3}
    assert (told[6].name, told[5].attributes) == (f"{name}-2", {"former": name})
    assert told == sorted(told, key=lambda e: e.time)


def test_policy_and_removal_are_reported(kept):
    one = kept.shell("exit 4", restart="on-failure:1")
    wait_for(lambda: actions(one) == ["create", "start", "die", "start", "die"])
    restarts = [e.attributes["restarts"] for e in containerkit.events(id=one.id, action="start")]
    assert restarts == [0, 1]
    gone = kept.make("true", remove=True)
    wait_for(lambda: actions(gone)[-1] == "destroy")


def test_filters_and_times(kept, name):
    before = time.time()
    one = kept.make("true", name=name, labels={"kind": name})
    wait_for(lambda: "die" in actions(one))
    after = time.time()
    assert len(list(containerkit.events(label=f"kind={name}", action="die"))) == 1
    assert list(containerkit.events(label="kind=other")) == []
    assert [] == [e for e in containerkit.events(until=before) if e.id == one.id]
    assert [] == [e for e in containerkit.events(since=after + 1) if e.id == one.id]


def test_follower_receives_new_events(kept, name):
    words = [*CLI, "events", "--filter", f"container={name}", "--format", "{{.Action}} {{.Actor.Attributes.name}}"]
    with subprocess.Popen([*words, "--since", "1s"], stdout=subprocess.PIPE, text=True) as follower:
        one = kept.make("sleep", "100", name=name)
        assert [follower.stdout.readline() for _ in range(2)] == [f"create {name}\n", f"start {name}\n"]
        one.kill()
        assert [follower.stdout.readline() for _ in range(2)] == [f"kill {name}\n", f"die {name}\n"]
        follower.terminate()


def test_events_until_now_end(kept):
    one = kept.make("sleep", "100")
    words = [*CLI, "events", "--since", "10m", "--until", "0s", "--format", "json", "--filter", f"container={one.id}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(e["Action"], e["Actor"]["ID"]) for e in told] == [("create", one.id), ("start", one.id)]


def test_full_stream_goes_on_in_another_log(kept, name, monkeypatch):
    monkeypatch.setattr(stream, "_MOST_BYTES", 1)
    one = kept.make("sleep", "100", name=name)
    following = containerkit.events(id=one.id, follow=True)
    heard = [next(following).action]
    for _ in range(8):
        one.rename(name)
        heard.append(next(following).action)
    one.kill()  # the keeper reports its end, into the log that is current then
    heard += [next(following).action for _ in range(2)]
    assert sorted([*["rename"] * 8, "create", "kill", "start"]) == sorted(heard)
    assert next(following).action == "die"
    place = stream._place()
    assert len(logs.numbers(place)) <= stream._MOST_LOGS + 1
    assert os.readlink(f"{place}/current") == f"log.{logs.last_log(place)}"


# --- Health


def test_health_follows_the_checks(kept):
    one = kept.shell(
        "touch /tmp/ok; sleep 100", health_command="test -e /tmp/ok || { echo gone; false; }", health_retries=2, **OFTEN
    )
    wait_for(lambda: one.health == "healthy", 30)
    with one.attach() as view:
        view.run(["rm", "/tmp/ok"], check=True)
    wait_for(lambda: one.health == "unhealthy", 30)
    health = one.inspect()["State"]["Health"]
    assert health["FailingStreak"] >= 2
    assert (health["Log"][-1]["ExitCode"], health["Log"][-1]["Output"]) == (1, "gone\n")
    assert 1 <= len(health["Log"]) <= 5
    wait_for(
        lambda: (
            ["healthy", "unhealthy"]
            == [e.attributes["health"] for e in containerkit.events(id=one.id, action="health_status")]
        )
    )
    assert one.summary()["health"] == "unhealthy"
    one.stop(0)
    assert one.health is None


def test_failures_do_not_count_while_it_starts(kept):
    one = kept.make("sleep", "100", health_command=["false"], health_start_period_s=600, health_retries=1, **OFTEN)
    wait_for(lambda: len((one.inspect()["State"]["Health"] or {"Log": []})["Log"]) >= 2, 30)
    assert one.health == "starting"


def test_check_that_hangs_has_failed(kept):
    one = kept.make(
        "sleep", "100", health_command="echo begun; sleep 1000", health_timeout_s=0.1, health_retries=1, **OFTEN
    )
    wait_for(lambda: one.health == "unhealthy", 30)
    assert "it has not ended within 0.1 s" in one.inspect()["State"]["Health"]["Log"][-1]["Output"]


@pytest.mark.parametrize(("action", "policy", "starts"), [("kill", "on-failure:1", 2), ("stop", "always", 1)])
def test_unhealthy_container_is_ended_where_that_is_asked(kept, action, policy, starts):
    one = kept.shell(
        "exec sleep 100",
        health_command=["false"],
        health_retries=1,
        health_on_failure=action,
        restart=policy,
        **OFTEN,
    )
    wait_for(lambda: (actions(one).count("start"), actions(one).count("die")) == (starts, starts), 30)
    wait_for(lambda: one.status == "exited")
    assert one.exit_code == (-9 if action == "kill" else -15)


def test_end_of_the_keeper_ends_a_check(kept):
    one = kept.make("sleep", "100", health_command=["sleep", "1000"], **OFTEN)

    def checks():
        children = Path(f"/proc/{one.keeper}/task/{one.keeper}/children").read_text(encoding="ascii").split()
        return [int(pid) for pid in children if b"detached.check" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    wait_for(checks, 30)
    found = checks()
    os.kill(one.keeper, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, found)))
    wait_for(lambda: one.status == "dead")


@needs_root
def test_image_says_how_it_is_checked(kept, tmp_path):
    store = Store(tmp_path / "store")
    check = Healthcheck(test=("CMD", "true"), interval_ns=20_000_000)
    busybox_root(tmp_path / "root")
    Image.from_directory(tmp_path / "root", defaults=Defaults(healthcheck=check), store=store).tag("checked:1")
    root = containerkit.RootFS.image("checked:1", store=str(tmp_path / "store"))
    one = kept.make("/bin/sleep", "100", rootfs=root)
    wait_for(lambda: one.health == "healthy", 30)
    none = kept.make("/bin/sleep", "100", rootfs=root, healthcheck=False)
    assert (none.health, none.inspect()["State"]["Health"]) == (None, None)


def test_options_of_a_shell(kept, name):
    words = ["--health-cmd", "exit 0", "--health-interval", "20ms", "--health-retries", "2", "--name", name]
    subprocess.run([*CLI, "run", "-d", *words, "--", "sleep", "100"], check=True, timeout=60, stdout=subprocess.DEVNULL)
    one = containerkit.detached.container.find(name)
    wait_for(lambda: one.health == "healthy", 30)
    done = subprocess.run([*CLI, "ps", "-f", f"name={name}"], capture_output=True, text=True, timeout=60, check=True)
    assert "running (healthy)" in done.stdout


@pytest.mark.parametrize(
    "options",
    [
        {"health_interval_s": 0},
        {"health_timeout_s": "1"},
        {"health_retries": 0},
        {"health_on_failure": "restart"},
        {"health_command": ["true"], "healthcheck": False},
    ],
)
def test_checks_that_cannot_be_are_refused(kept, options):
    with pytest.raises(SpecError, match="health"):
        kept.make("true", **options)
    assert [] == kept.new()
