"""Control groups of the OCI runtime with layouts that this machine lacks: version 2, version 1 with joint mounts, systemd."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "guest"))
from harness import run_in_guest, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(2500),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

CONFIGURATION, GROUPS, LIFECYCLE = (
    f"tests/integration/test_oci_{name}.py" for name in ("configuration", "groups", "lifecycle")
)
CHOSEN = {
    CONFIGURATION: (
        "test_cgroup_mount_shows_the_own_groups",
        "test_cgroup_mount_without_a_namespace",
        "test_device_rules_deny_what_is_not_allowed",
        "test_limits_are_written",
        "test_processes_over_the_limit_are_refused",
        "test_memory_over_the_limit_is_killed",
        "test_group_in_use_is_refused",
        "test_control_groups_show_on_the_hosts_sysfs",
        "test_devices_of_a_user_namespace_are_as_they_are_asked_for",
        "test_device_of_a_user_namespace_is_ruled_like_any_other",
    ),
    GROUPS: (
        "test_container_in_a_frozen_group_is_refused",
        "test_group_above_that_is_busy_is_named",
        "test_options_of_a_control_group_mount_are_those_of_the_host",
        "test_joined_cgroup_namespace_of_the_host_shows_the_group_alone",
        "test_control_group_mount_spreads_as_it_is_asked_to",
    ),
    LIFECYCLE: (
        "test_exec_runs_beside_the_first_process",
        "test_pause_freezes_and_resume_thaws",
        "test_kill_of_a_paused_container_kills",
        "test_kill_all_reaches_processes_beside_the_first",
        "test_update_changes_limits",
        "test_events_stats_ps_and_list",
    ),
}


def in_guest(layout, tests):
    done = run_in_guest(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600", *tests],
        layout=layout,
        timeout_s=2400,
    )
    print(done.output)
    assert 0 == done.returncode
    assert " passed" in done.output
    return done.output


@pytest.mark.parametrize("layout", ["unified", "legacy"])
def test_control_groups_of_another_layout(layout):
    in_guest(layout, [f"{file}::{test}" for file, tests in CHOSEN.items() for test in tests])


def test_scopes_of_systemd():
    if not os.path.exists("/lib/systemd/systemd"):
        pytest.skip("a guest with systemd needs the packages systemd and dbus")
    assert "1 passed" in in_guest("systemd", [f"{CONFIGURATION}::test_systemd_makes_the_groups"])
