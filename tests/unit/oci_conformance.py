"""Write the tables of docs/oci.md: how each member of config.json is handled, and which test checks each MUST.

``python tests/unit/oci_conformance.py`` rewrites the parts between the markers. A test compares the page with the result.
"""

from __future__ import annotations

import sys
from pathlib import Path

from containerkit.oci import config
from containerkit.oci.schema import Model

PAGE = Path(__file__).parents[2] / "docs/oci.md"
TESTS = Path(__file__).parents[1]

DONE, REFUSED, IGNORED = "done", "refused", "ignored"

# By the longest prefix of the path. Members without an entry are implemented and need no remark.
NOTES = {
    "ociVersion": (DONE, "any 1.x; another major version is refused"),
    "process": (DONE, "required, since there is nothing to start without it"),
    "process.consoleSize": (DONE, "set before the program starts"),
    "process.commandLine": (IGNORED, "Windows"),
    "process.user.username": (IGNORED, "Windows"),
    "process.rlimits": (DONE, "a type given twice, or a soft limit above the hard one, is refused"),
    "process.apparmorProfile": (DONE, "refused where AppArmor is not enabled or has no such profile"),
    "process.selinuxLabel": (DONE, "refused where SELinux is not enabled"),
    "process.capabilities": (DONE, "names that are unknown, or that the runtime does not have, are left out with a warning"),
    "process.oomScoreAdj": (DONE, "a value below the runtime's own takes CAP_SYS_RESOURCE"),
    "process.scheduler": (DONE, "SCHED_ISO is refused: Linux never had it"),
    "process.execCPUAffinity": (DONE, "only for `exec`, not for the container's first process, as the specification says"),
    "root": (DONE, "required"),
    "mounts.type": (DONE, "any type the kernel knows; `bind` and `none` with a bind option are binds; if the kernel refuses a read-only sysfs, the host's is bound"),
    "mounts.options": (DONE, "rro and the other r-options, idmap and ridmap, tmpcopyup, copy-symlink, propagation; other options are passed to the filesystem; options of control groups must be those of the host's hierarchy"),
    "mounts.uidMappings": (DONE, "refused where the filesystem or the runtime can't apply them"),
    "mounts.gidMappings": (DONE, "as for uidMappings"),
    "hooks.prestart": (DONE, "deprecated by the specification; run before the createRuntime hooks"),
    "hooks.createContainer": (DONE, "in the container's namespaces and groups, before the pivot: the path is the host's"),
    "hooks.createContainer.env": (DONE, "default: the environment of process"),
    "hooks.startContainer": (DONE, "in the container: the path is the image's; restricted like the container's program"),
    "hooks.startContainer.env": (DONE, "default: the environment of process"),
    "hooks.prestart.env": (DONE, "default: the environment of the runtime"),
    "hooks.createRuntime.env": (DONE, "default: the environment of the runtime"),
    "hooks.poststart": (DONE, "if a hook fails, a warning is logged and the others run; with ociVersion 1.3 or later the container is stopped"),
    "hooks.poststart.env": (DONE, "default: the environment of the runtime"),
    "hooks.poststop.env": (DONE, "default: the environment of the runtime"),
    "hooks.poststop": (DONE, "if a hook fails, a warning is logged and the others run"),
    "linux.namespaces": (DONE, "all eight; a mount namespace is required; a path to another kind is refused"),
    "linux.uidMappings": (DONE, "required for a new user namespace, refused without one"),
    "linux.gidMappings": (DONE, "required for a new user namespace"),
    "linux.timeOffsets": (DONE, "refused without a new time namespace"),
    "linux.devices": (DONE, "made by mknod; for a new user namespace root makes them outside; where that is not permitted, the host's node of the same number is bound"),
    "linux.cgroupsPath": (DONE, "`SLICE:PREFIX:NAME` with --systemd-cgroup; default: a group named after the container"),
    "linux.resources": (DONE, "a limit that no hierarchy on this host enforces is refused"),
    "linux.resources.devices": (DONE, "version 1 by its files, version 2 by a BPF program; the default devices are always allowed; without privileges on the host no rules are set, since such containers can't make devices"),
    "linux.resources.memory.kernel": (IGNORED, "as the specification allows; kernels from 5.16 have no such limit"),
    "linux.resources.memory.swap": (DONE, "on version 2 it limits swap alone, and 0 forbids swap"),
    "linux.resources.cpu.shares": (DONE, "on version 2 converted to a weight by the formula of runc and crun: 1024 is 100"),
    "linux.resources.cpu.realtimeRuntime": (DONE, "version 1; refused on version 2"),
    "linux.resources.cpu.realtimePeriod": (DONE, "version 1; refused on version 2"),
    "linux.resources.blockIO.leafWeight": (IGNORED, "kernels from 5.0 do not have it"),
    "linux.resources.blockIO.weightDevice": (DONE, "leafWeight in it is ignored: kernels from 5.0 do not have it"),
    "linux.resources.network": (DONE, "version 1; refused where the hierarchies are not mounted"),
    "linux.resources.unified": (DONE, "written unchanged; refused where version 2 or the controller is missing"),
    "linux.seccomp": (DONE, "unknown calls, actions, flags and architectures are refused where the filter would be weaker; SCMP_ACT_NOTIFY as the default or for `write` is refused"),
    "linux.sysctl": (DONE, "a parameter that belongs to no namespace of the container is refused; so is kernel.hostname, which hostname sets"),
    "linux.mountLabel": (DONE, "the option `context` of tmpfs, devpts and mqueue"),
    "linux.intelRdt": (DONE, "refused where resctrl is not mounted"),
    "linux.intelRdt.enableCMT": (IGNORED, "removed from the specification; monitoring is the kernel's default"),
    "linux.intelRdt.enableMBM": (IGNORED, "removed from the specification"),
    "linux.intelRdt.enableMonitoring": (IGNORED, "a program that reads the data makes its own monitoring group"),
    "linux.rootfsPropagation": (DONE, "shared makes a peer group that contains only the container; nothing is propagated to the host"),
    "linux.netDevices": (DONE, "the device loses its addresses; configure it inside"),
}  # fmt: skip

LIFE, INSIDE, ORDER, ATTACK, HOOKS, UNIT = (
    "integration/test_oci_lifecycle.py",
    "integration/test_oci_configuration.py",
    "integration/test_oci_order.py",
    "integration/test_oci_attacks.py",
    "security/test_oci_hooks.py",
    "unit/test_oci_config.py",
)

# The section, what a runtime MUST do, and the tests that check it.
MUSTS = [
    ("runtime: State", "report ociVersion, id, status, pid, bundle and annotations", LIFE, "test_state_shows_what_the_specification_requires"),
    ("runtime: State", "know the states creating, created, running and stopped", LIFE, "test_create_waits_for_the_start"),
    ("runtime: Lifecycle", "use the configuration as it was at create", LIFE, "test_changes_of_the_bundle_after_create_have_no_effect"),
    ("runtime: Lifecycle", "run the hooks in their order", INSIDE, "test_hooks_run_in_their_order_with_the_state"),
    ("runtime: Lifecycle", "stop the container when a prestart, createRuntime or createContainer hook fails", INSIDE, "test_hook_that_fails_stops_the_creation"),
    ("runtime: Lifecycle", "stop the container when a startContainer hook fails", HOOKS, "test_hook_of_the_image_that_fails_stops_the_container"),
    ("runtime: Lifecycle", "log a warning and continue when a poststop hook fails", INSIDE, "test_hook_of_the_end_that_fails_does_not_keep_the_container"),
    ("runtime: Errors", "leave the environment as if the operation had not been attempted", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("runtime: Query State", "fail without the id of a container", LIFE, "test_verbs_refuse_to_have_no_id"),
    ("runtime: Query State", "fail for a container that does not exist", LIFE, "test_verbs_refuse_an_unknown_container"),
    ("runtime: Create", "fail without a bundle or an id", LIFE, "test_create_refuses_a_bundle_that_is_not_there"),
    ("runtime: Create", "fail for an id that is in use", LIFE, "test_create_refuses_an_id_that_is_there"),
    ("runtime: Create", "apply all of config.json except the program", LIFE, "test_create_waits_for_the_start"),
    ("runtime: Create", "fail for a configuration that can't be applied, and make no container", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("runtime: Start", "fail without an id", LIFE, "test_verbs_refuse_to_have_no_id"),
    ("runtime: Start", "fail for a container that is not created, without an effect on it", LIFE, "test_start_refuses_a_running_container"),
    ("runtime: Start", "run the program that process names", LIFE, "test_create_waits_for_the_start"),
    ("runtime: Start", "fail when process is not set", UNIT, "test_invalid_value_is_refused_by_its_path"),
    ("runtime: Kill", "fail without an id", LIFE, "test_verbs_refuse_to_have_no_id"),
    ("runtime: Kill", "fail for a container that is neither created nor running", LIFE, "test_kill_sends_numbers_and_names"),
    ("runtime: Kill", "send the signal to the container's process", LIFE, "test_kill_sends_numbers_and_names"),
    ("runtime: Delete", "fail without an id", LIFE, "test_verbs_refuse_to_have_no_id"),
    ("runtime: Delete", "fail for a container that has not stopped", LIFE, "test_delete_refuses_a_container_that_has_not_stopped"),
    ("runtime: Delete", "delete what create made, and nothing else", LIFE, "test_delete_keeps_files_that_create_did_not_make"),
    ("runtime: Delete", "let the id be used again", LIFE, "test_create_killed_at_any_moment_can_be_deleted"),
    ("runtime: Hooks", "hand the state to hooks on their standard input", INSIDE, "test_hooks_run_in_their_order_with_the_state"),
    ("runtime-linux: File descriptors", "pass on the standard streams, and other descriptors only when told to", LIFE, "test_descriptors_are_kept_only_when_asked_for"),
    ("runtime-linux: Dev symbolic links", "make fd, stdin, stdout and stderr in /dev", INSIDE, "test_default_devices_and_links"),
    ("config: Specification version", "refuse a version that it does not know", UNIT, "test_invalid_value_is_refused_by_its_path"),
    ("config: Root", "require a root filesystem that exists", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("config: Root", "make the root read-only when readonly is true", INSIDE, "test_read_only_root"),
    ("config: Mounts", "mount in the order of the list", ORDER, "test_mounts_are_listed_in_their_order"),
    ("config: Mounts", "make a bind mount if an option says so, whatever the type", INSIDE, "test_bind_options"),
    ("config: Mounts", "apply ro to the mount alone and rro to the tree", INSIDE, "test_read_only_of_the_mount_and_of_the_tree"),
    ("config: Mounts", "apply tmpcopyup", INSIDE, "test_tmpcopyup_starts_with_what_it_covers"),
    ("config: Mounts", "apply idmap and ridmap, and the maps of the mount", INSIDE, "test_idmapped_mount_with_its_own_maps"),
    ("config: Mounts", "fail when a filesystem can't be mounted", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("config: Process", "start in cwd, which must be absolute", INSIDE, "test_environment_and_directory"),
    ("config: Process", "give the environment", INSIDE, "test_environment_and_directory"),
    ("config: Process", "require at least one argument in args, resolved as execvp does", UNIT, "test_program_is_looked_for_along_the_path"),
    ("config: Process", "attach a terminal of consoleSize when terminal is true", LIFE, "test_terminal_goes_to_the_console_socket"),
    ("config: POSIX process", "set each rlimit, and refuse one given twice", INSIDE, "test_limits_scores_and_priorities"),
    ("config: Linux process", "refuse an AppArmor profile that can't be applied", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("config: Linux process", "set the five capability sets", INSIDE, "test_five_capability_sets"),
    ("config: Linux process", "set no_new_privs, the OOM score, the scheduler and the I/O priority", INSIDE, "test_limits_scores_and_priorities"),
    ("config: User", "set uid, gid, umask and additional groups", INSIDE, "test_user_groups_and_umask"),
    ("config: Hostname", "set hostname and domainname", INSIDE, "test_names_and_sysctls"),
    ("config: POSIX-platform hooks", "require an absolute path, and a timeout greater than zero", UNIT, "test_invalid_value_is_refused_by_its_path"),
    ("config: POSIX-platform hooks", "run createRuntime in the runtime's namespace, createContainer and startContainer in the container's", INSIDE, "test_hooks_run_in_their_order_with_the_state"),
    ("config: Annotations", "keep annotations and report them in the state", LIFE, "test_state_shows_what_the_specification_requires"),
    ("config: Extensibility", "ignore members that it does not know", INSIDE, "test_unknown_members_are_no_error"),
    ("config: Valid values", "fail for a value that is invalid", UNIT, "test_wrong_type_is_named_by_its_path"),
    ("config-linux: Default filesystems", "provide proc, sys, dev/pts and dev/shm where they are configured", INSIDE, "test_mounts_of_the_host_are_out_of_sight"),
    ("config-linux: Namespaces", "make a new namespace where no path is given, inherit what is not listed", INSIDE, "test_namespaces_are_new_joined_or_inherited"),
    ("config-linux: Namespaces", "join the namespace of a path, and fail if it is of another kind", INSIDE, "test_namespace_of_another_kind_is_refused"),
    ("config-linux: Namespaces", "fail for a kind that is listed twice or unknown", UNIT, "test_invalid_value_is_refused_by_its_path"),
    ("config-linux: User namespace mappings", "write the mappings, and not change the owner of the root", INSIDE, "test_user_namespace"),
    ("config-linux: Time offsets", "set the offsets of the time namespace", INSIDE, "test_time_namespace_has_its_offsets"),
    ("config-linux: Devices", "make the devices, and fail for an unknown type", INSIDE, "test_devices_of_ones_own"),
    ("config-linux: Default devices", "supply null, zero, full, random, urandom, tty, console and ptmx", INSIDE, "test_default_devices_and_links"),
    ("config-linux: Network devices", "move the devices, rename them, and fail for one that does not exist", INSIDE, "test_network_devices_are_moved"),
    ("config-linux: Control groups", "attach the container to the groups of cgroupsPath, the same ones every time", INSIDE, "test_limits_are_written"),
    ("config-linux: Control groups", "apply devices, memory, cpu, pids and the others", INSIDE, "test_limits_are_written"),
    ("config-linux: Control groups", "apply the device rules in the order of the list", INSIDE, "test_device_rules_deny_what_is_not_allowed"),
    ("config-linux: Control groups", "fail when a limit can't be applied", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("config-linux: IntelRdt", "fail when resctrl is not there", LIFE, "test_create_names_the_error_and_leaves_nothing"),
    ("config-linux: Sysctl", "set the parameters", INSIDE, "test_names_and_sysctls"),
    ("config-linux: Seccomp", "apply the filter with its actions and errno", INSIDE, "test_seccomp_filter"),
    ("config-linux: Seccomp", "send the listener and the container process state to listenerPath", INSIDE, "test_seccomp_listener_goes_to_its_agent"),
    ("config-linux: Seccomp", "fail for a flag or action that is not supported", INSIDE, "test_seccomp_profile_that_is_wrong_is_refused"),
    ("config-linux: Rootfs mount propagation", "set the propagation of the root", INSIDE, "test_rootfs_propagation"),
    ("config-linux: Masked paths", "hide the paths", INSIDE, "test_masked_and_readonly_paths"),
    ("config-linux: Readonly paths", "make the paths read-only", INSIDE, "test_masked_and_readonly_paths"),
    ("config-linux: Personality", "set the execution domain", INSIDE, "test_personality_of_32_bits"),
    ("config-linux: Memory policy", "set the policy before the program starts", INSIDE, "test_memory_policy"),
    ("features", "print the features document without flags", LIFE, "test_features_list_what_is_supported"),
]  # fmt: skip


def members(cls=config.Config, prefix=""):
    """Return the path of every member that the models know."""
    found = []
    for name, field in cls.FIELDS.items():
        found.append(prefix + name)
        for inner in models_of(field.kind):
            found += members(inner, f"{prefix}{name}.")
    return found


def models_of(kind):
    """Return the model for a kind, also inside lists and mappings."""
    owner = getattr(kind, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, Model):
        return [owner]
    return [
        found
        for cell in getattr(kind, "__closure__", None) or ()
        if callable(cell.cell_contents)
        for found in models_of(cell.cell_contents)
    ]


def note(path):
    """Return how a member is handled."""
    return NOTES.get(path, (DONE, ""))


def members_table():
    rows = ["| member | | remarks |", "|---|---|---|"]
    for path in members():
        status, remark = note(path)
        rows.append(f"| `{path}` | {status} | {remark} |")
    return "\n".join(rows)


def musts_table():
    rows = ["| section | a runtime must | checked by |", "|---|---|---|"]
    for section, duty, file, test in MUSTS:
        rows.append(f"| {section} | {duty} | `{file}`: `{test}` |")
    return "\n".join(rows)


TABLES = {"members": members_table, "musts": musts_table}


def rewritten(page):
    """Return the page with up-to-date tables."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = before + begin + table() + "\n" + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
    sys.stdout.write(f"{len(members())} members, {len(MUSTS)} duties\n")
