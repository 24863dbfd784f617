"""config.json: accepted and refused values, and the path in error messages."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._native import constants as k
from containerkit.oci import capabilities, config, mountoptions
from containerkit.oci.errors import ConfigError, RuntimeFailure
from containerkit.oci.limits import cpu_max, swap_max, weight_of_shares
from containerkit.oci.payload import candidates, number_mask
from containerkit.oci.schema import Model
from containerkit.oci.specification import default, rootless
from containerkit.oci.systemd import unit_of
from containerkit.security.capabilities import NAMES


def parse(document):
    return config.parse(json.dumps(document).encode())


def paths(cls, prefix=""):
    """Return the path of every member of a model that a document can have."""
    found = []
    for name, field in cls.FIELDS.items():
        found.append(prefix + name)
        inner = getattr(field.kind, "__self__", None)
        if isinstance(inner, type) and issubclass(inner, Model):
            found += paths(inner, f"{prefix}{name}.")
    return found


def test_default_documents_are_taken():
    assert "1.2.0" == parse(default()).oci_version
    found = parse(rootless(1000, 1001))
    assert (1000, 1) == (found.linux.uid_mappings[0].host_id, found.linux.uid_mappings[0].size)


def test_members_have_their_types_and_defaults():
    document = default()
    document["process"]["user"]["additionalGids"] = [5]
    found = parse(document)
    assert (0, [5], None) == (found.process.user.uid, found.process.user.additional_gids, found.process.user.umask)
    assert ("", [], {}) == (found.linux.mount_label, found.hooks.poststop, found.annotations)
    assert found.is_new("pid")
    assert not found.is_new("user")


def test_unknown_members_are_kept():
    document = default()
    document["vendor"] = {"a": 1}
    document["process"]["later"] = True
    found = parse(document)
    assert ({"vendor": {"a": 1}}, {"later": True}) == (found.extra, found.process.extra)


def test_null_means_absent():
    document = default()
    document.update(hooks=None, annotations=None, mounts=None)
    document["linux"].update(seccomp=None, resources=None, devices=None)
    assert [] == parse(document).mounts


@pytest.mark.parametrize("path", paths(config.Config))
def test_wrong_type_is_named_by_its_path(path):
    document = default()
    at = document
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(at.get(name), dict):
            at[name] = {}
        at = at[name]
    at[last] = 0.5  # which no member takes
    with pytest.raises(ConfigError) as caught:
        parse(document)
    required = {
        "process.scheduler.policy",
        "process.ioPriority.class",
        "linux.personality.domain",
        "linux.memoryPolicy.mode",
    }
    parent = path.rpartition(".")[0]
    assert caught.value.path == path or any(need.startswith(parent) and caught.value.path == need for need in required)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda c: c.update(ociVersion="2.0.0"), "ociVersion"),
        (lambda c: c.update(ociVersion="one"), "ociVersion"),
        (lambda c: c.pop("root"), "root"),
        (lambda c: c["process"].update(args=[""]), "process.args[0]"),
        (lambda c: c["process"].update(env=["NOVALUE"]), "process.env[0]"),
        (lambda c: c["process"].update(env=["A=b\0c"]), "process.env[0]"),
        (lambda c: c["process"].update(cwd="relative"), "process.cwd"),
        (lambda c: c["process"]["user"].update(uid=2**32 - 1), "process.user.uid"),
        (lambda c: c["process"]["user"].update(umask=0o1000), "process.user.umask"),
        (lambda c: c["process"].update(oomScoreAdj=1001), "process.oomScoreAdj"),
        (lambda c: c["process"]["rlimits"].append({"type": "RLIMIT_CPU", "soft": 2, "hard": 1}), "process.rlimits[1].soft"),
        (lambda c: c["process"]["rlimits"].append({"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}), "process.rlimits[1].type"),
        (lambda c: c["process"].update(scheduler={"policy": "SCHED_NOSUCH"}), "process.scheduler.policy"),
        (lambda c: c["mounts"].append({"destination": ""}), "mounts[7].destination"),
        (lambda c: c["mounts"].append({"destination": "/x", "uidMappings": [{"size": 1}]}), "mounts[7]"),
        (lambda c: c.update(hooks={"prestart": [{"path": "relative"}]}), "hooks.prestart[0].path"),
        (lambda c: c.update(hooks={"poststop": [{"path": "/x", "timeout": 0}]}), "hooks.poststop[0].timeout"),
        (lambda c: c["linux"].update(namespaces=[]), "linux.namespaces"),
        (lambda c: c["linux"]["namespaces"].append({"type": "pid"}), "linux.namespaces[6].type"),
        (lambda c: c["linux"].update(uidMappings=[{"containerID": 0, "hostID": 0, "size": 1}]), "linux.uidMappings"),
        (lambda c: c["linux"].update(timeOffsets={"boottime": {"secs": 1}}), "linux.timeOffsets"),
        (lambda c: c.update(hostname="x" * 65), "hostname"),
        (lambda c: c["linux"].update(sysctl={"kernel.core_pattern": "|x"}), "linux.sysctl.kernel.core_pattern"),
        (lambda c: c["linux"].update(sysctl={"net.../../kernel": "x"}), "linux.sysctl.net.../../kernel"),
        (lambda c: c["linux"].update(rootfsPropagation="wild"), "linux.rootfsPropagation"),
        (lambda c: c["linux"].update(maskedPaths=["relative"]), "linux.maskedPaths[0]"),
        (lambda c: c["linux"]["resources"].update(pids={"limit": "x"}), "linux.resources.pids.limit"),
        (lambda c: c["linux"]["resources"]["devices"].append({"access": "rwm"}), "linux.resources.devices[1].allow"),
        (lambda c: c["linux"].update(devices=[{"path": "/dev/x", "type": "z"}]), "linux.devices[0].type"),
    ],
)  # fmt: skip
def test_invalid_value_is_refused_by_its_path(change, path):
    document = copy.deepcopy(default())
    change(document)
    with pytest.raises(ConfigError) as caught:
        parse(document)
    assert path == caught.value.path
    assert path in str(caught.value)


def refusal(attempt):
    """Return the beginning of the error message, or an empty string."""
    try:
        attempt()
    except RuntimeFailure as error:
        return str(error).split(":")[0]
    return ""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=6) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(paths(config.Config)), JSON)
def test_any_value_anywhere_is_accepted_or_refused_by_name(path, value):
    document = copy.deepcopy(default())
    at = document
    *parents, last = path.split(".")
    for name in parents:
        if not isinstance(at.get(name), dict):
            at[name] = {}
        at = at[name]
    at[last] = value
    assert refusal(lambda: parse(document)) in ("", "config.json")


@given(st.binary(max_size=40))
def test_any_bytes_are_refused_with_a_reason(content):
    assert refusal(lambda: config.parse(content)) in ("", "config.json")


# --- capabilities and mount options


def test_capability_names_are_those_of_the_library():
    assert NAMES == capabilities.NAMES


def test_capabilities_that_are_missing_are_left_out():
    wanted = config.Capabilities.read(
        {name: ["CAP_CHOWN", "CAP_KILL"] for name in ("bounding", "effective", "permitted")}, ""
    )
    masks = capabilities.read(wanted)
    masks.limit(1 << 0)
    assert (1, 1, 1, ["CAP_KILL"]) == (masks.bounding, masks.effective, masks.permitted, masks.dropped)
    masks = capabilities.read(config.Capabilities.read({"bounding": ["CAP_NOSUCH", "CAP_CHOWN"]}, ""))
    assert (1, ["CAP_NOSUCH"]) == (masks.bounding, masks.unknown)


def test_mount_options_are_sorted():
    found = mountoptions.read(["rbind", "ro", "nosuid", "rnoexec", "noatime", "rslave", "size=1m", "newinstance"], "x")
    assert (True, True) == (found.bind, found.recursive)
    assert k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOATIME == found.set
    assert (k.MOUNT_ATTR__ATIME, k.MOUNT_ATTR_NOEXEC) == (found.clear, found.tree_set)
    assert [(k.MS_SLAVE, True)] == found.propagation
    assert [("size", "1m"), ("newinstance", None)] == found.data


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["ro", "rw"], (0, k.MOUNT_ATTR_RDONLY)), (["rw", "ro"], (k.MOUNT_ATTR_RDONLY, 0))],
)
def test_last_mount_option_wins(words, expected):
    found = mountoptions.read(words, "x")
    assert expected == (found.set, found.clear)


@given(st.lists(st.sampled_from(mountoptions.NAMES) | st.text(max_size=8), max_size=8))
def test_any_mount_options_are_sorted_or_refused(words):
    try:
        found = mountoptions.read(words, "x")
    except ConfigError:
        return
    assert found.set & found.clear & ~k.MOUNT_ATTR__ATIME == 0


def test_every_name_of_an_option_is_known():
    for name in mountoptions.NAMES:
        assert [] == [
            pair
            for pair in mountoptions.read(["bind", name] if name == "copy-symlink" else [name], "x").data
            if pair[0] not in ("sync", "dirsync", "mand", "lazytime", "iversion")
        ]


# --- small things


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, 1), (3, 2), (256, 35), (1000, 99), (1024, 100), (262144, 10000), (0, 1), (10**9, 10000)]
)
def test_shares_become_weights(shares, weight):
    assert weight == weight_of_shares(shares)


@pytest.mark.parametrize(
    ("limit", "swap", "most"),
    [(None, -1, "max"), (64, -1, "max"), (None, 0, "0"), (64, 0, "0"), (64, 64, "0"), (64, 100, "36")],
)
def test_swap_beside_memory_becomes_swap_alone(limit, swap, most):
    assert most == swap_max(limit, swap)


@pytest.mark.parametrize(("limit", "swap", "why"), [(None, 5, "needs memory.limit"), (-1, 5, "needs"), (64, 5, "less")])
def test_swap_that_counts_unknown_memory_is_refused(limit, swap, why):
    with pytest.raises(ConfigError, match=f"memory.swap: .*{why}"):
        swap_max(limit, swap)


@pytest.mark.parametrize(("text", "mask"), [("", 0), ("0", 1), ("0-3", 15), ("1,3-4", 0b11010)])
def test_lists_of_numbers(text, mask):
    assert mask == number_mask(text, "x")


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1,,2", "0-99999999", "1;2"])
def test_invalid_lists_of_numbers(text):
    with pytest.raises(ConfigError):
        number_mask(text, "x")


def test_program_is_looked_for_along_the_path():
    process = config.Process.read({"cwd": "/", "args": ["x"], "env": ["PATH=/a:/b:"]}, "process")
    assert [b"/a/x", b"/b/x", b"./x"] == candidates(process)
    process.args = ["./x"]
    assert [b"./x"] == candidates(process)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a-b.slice:pre:name", ("a-b.slice", "pre-name.scope", "/a.slice/a-b.slice/pre-name.scope")),
        ("x.slice::name", ("x.slice", "name.scope", "/x.slice/name.scope")),
        ("-.slice:pre:name", ("-.slice", "pre-name.scope", "/pre-name.scope")),
    ],
)
def test_paths_of_systemd(path, expected):
    assert expected == unit_of(path, "id")


@pytest.mark.parametrize("path", ["/plain/path", "a.slice:b", "a:b:c", "a/b.slice:c:d", "a--b.slice:c:d"])
def test_paths_that_systemd_refuses(path):
    with pytest.raises(ConfigError):
        unit_of(path, "id")


@pytest.mark.parametrize(
    ("now", "quota", "period", "written"),
    [
        ("max 100000\n", 5000, None, "5000 100000"),
        ("max 100000\n", None, 50_000, "max 50000"),
        ("5000 20000\n", None, 50_000, "5000 50000"),
        ("5000 20000\n", 7000, None, "7000 20000"),
        ("5000 20000\n", -1, 0, "max 20000"),
        ("", 7000, None, "7000 100000"),
    ],
)
def test_period_and_quota_of_version_2_are_independent(now, quota, period, written):
    assert written == cpu_max(now, quota, period)
