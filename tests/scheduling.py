"""Scheduling of tests: which tests run in one worker, and which test a worker gets next."""

import functools
import os
import re
from collections import Counter

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    # What dead owners left, and all of a user's containers, networks and projects: any sweep removes what others left,
    # any look at the records sees all.
    "records": frozenset(
        {
            "test_cgroup_lifecycle",
            "test_cli_imports",
            "test_cli_run",
            "test_compose_verbs",
            "test_detached",
            "test_detached_cli",
            "test_detached_death",
            "test_detached_events",
            "test_detached_logs",
            "test_detached_networks",
            "test_docker_words",
            "test_hostile_to_keepers",
            "test_killed_owner",
            "test_left_behind",
            "test_lookup_detached",
            "test_network_shared",
            "test_owner_death",
            "test_project",
            "test_project_cli",
            "test_volumes",
        }
    ),
    # Daemons and clusters, which take memory, and find their own by looking through all of the machine's.
    "daemons": frozenset(
        {
            "test_fleet_clusters",
            "test_kube_node",
            "test_oci_cri",
            "test_oci_engines",
            "test_oci_engines_rootless",
            "test_oci_slurm",
            "test_oci_swarm",
            "test_outer_containers",
        }
    ),
    # Ranges of ids, and times.
    "alone": frozenset({"test_identity", "test_interruptions", "test_liveness", "test_timeouts"}),
}
"""Modules whose tests are about more than their own process: each of these groups stays on one worker."""

SAME_FOR_EVERY_USER = frozenset(
    {
        "test_aarch64",  # compilers and an emulator
        "test_adapters",
        "test_aio",  # tasks around containers; such a user skips limits and networks
        "test_calls",  # such a user skips what takes privileges
        "test_cli_program",
        "test_cli_terminal",
        "test_depth",  # slow walks of trees; a user with a single id skips those that change owners
        "test_executor",  # what the protocol of a pool of interpreters carries, and what it refuses
        "test_executor_elsewhere",
        "test_fleet",
        "test_fleet_clusters",
        "test_fleet_kubernetes",
        "test_fleet_tls",
        "test_image_builds",  # the files of a store after a kill
        "test_image_damage",
        "test_image_registries",
        "test_interpreter",
        "test_mcp",
        "test_odd_arguments",  # what is refused before anything is asked of the kernel
        "test_pytest_plugin",
        "test_reference",  # the documentation
        "test_seccomp_filter",  # what the kernel decides by a filter
    }
)
"""Modules that find for one user what they find for another: what they test asks the kernel for nothing, or for a
container like any other. ``--beside-root`` leaves them out."""

_ON_RECORD = re.compile(r"docs/(detached|fleet|networks|projects)\.md")
"""Pages whose examples leave containers, networks or projects on record until their last command."""

BUSY_S = Counter()
"""How long each worker has run tests."""


@functools.cache
def _has_module_fixtures(path):
    return 'scope="module"' in path.read_text()


class Scheduling(LoadScopeScheduling):
    """Keeps tests that would disturb each other on one worker, and distributes the others one by one.

    The tests of a module stay together, too, if they share something that is made once for the module. The largest
    groups come first. A scheduler, since pytest-xdist 3.8 loses its groups with pytest 9.2.
    """

    def _split_scope(self, nodeid):
        path = nodeid.partition("::")[0]
        module = os.path.basename(path).removesuffix(".py")
        if module == "test_pages" and _ON_RECORD.search(nodeid):
            return "records"
        alone = path if _has_module_fixtures(self.config.rootpath / path) else nodeid
        return next((group for group, modules in TOGETHER.items() if module in modules), alone)

    def mark_test_complete(self, node, item_index, duration=0):
        BUSY_S[node.gateway.id] += duration
        nodeid = self.registered_collections[node][item_index]
        scope = self._split_scope(nodeid)
        del self.assigned_work[node][scope][nodeid]
        if not self.assigned_work[node][scope]:  # otherwise each call would search all finished tests
            del self.assigned_work[node][scope]
        self._reschedule(node)

    def _reschedule(self, node):
        if node.shutting_down or node not in self.registered_collections:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:  # no test begins without a successor
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()

    def remove_node(self, node):
        """Give the remaining tests of a worker to others, except the test that ended it."""
        left = self.assigned_work.pop(node)
        if not left:
            return None
        scope = next(iter(left))
        crashed = next(iter(left[scope]))
        del left[scope][crashed]
        self.workqueue.update({scope: tests for scope, tests in left.items() if tests})
        for other in self.nodes:
            self._reschedule(other)
        return crashed
