"""The command lines for CRIU."""

from __future__ import annotations

import pytest

from containerkit import jsontext
from containerkit.oci import checkpoint, config, criu, flags
from containerkit.oci.errors import RuntimeFailure
from containerkit.oci.main import _CHECKPOINT
from containerkit.oci.specification import default


def read(*words):
    return flags.read(words, _CHECKPOINT)


def parsed(**changes):
    content = {**default(), **changes}
    return config.parse(jsontext.dumps(content).encode())


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("--tcp-established", "--tcp-established"),
        ("--tcp-skip-in-flight", "--skip-in-flight"),
        ("--ext-unix-sk", "--ext-unix-sk"),
        ("--file-locks", "--file-locks"),
        ("--shell-job", "--shell-job"),
    ],
)
def test_switches_have_the_names_that_criu_knows(tmp_path, word, option):
    assert option in criu.common(read(word), str(tmp_path), "dump.log")
    assert option not in criu.common(read(), str(tmp_path), "dump.log")


def test_mode_of_control_groups_is_one_argument(tmp_path):
    assert "--manage-cgroups=soft" == criu.common(read(), str(tmp_path), "dump.log")[-1]
    words = criu.common(read("--manage-cgroups-mode", "full"), str(tmp_path), "dump.log")
    assert "--manage-cgroups=full" in words
    assert not any(word.startswith("--manage-cgroups-mode") for word in words)
    with pytest.raises(RuntimeFailure, match="'nosuch' is not one of none, props, soft"):
        criu.common(read("--manage-cgroups-mode", "nosuch"), str(tmp_path), "dump.log")


def test_log_goes_where_callers_look_for_it(tmp_path):
    words = criu.common(read("--work-path", str(tmp_path / "work")), str(tmp_path / "images"), "restore.log")
    assert ["--images-dir", f"{tmp_path}/images", "--work-dir", f"{tmp_path}/work"] == words[:4]
    assert ["--log-file", "restore.log"] == words[4:6]
    assert (tmp_path / "work").is_dir()


def test_empty_namespace_has_the_name_that_criu_knows(tmp_path):
    words = criu.common(read("--empty-ns", "network"), str(tmp_path), "dump.log")
    assert "net" == words[words.index("--empty-ns") + 1]


def test_memory_of_an_earlier_checkpoint():
    assert ["--track-mem"] == checkpoint._memory(read("--pre-dump"))
    assert ["--leave-running"] == checkpoint._memory(read("--leave-running"))
    words = checkpoint._memory(read("--parent-path", "../before", "--page-server", "[::1]:27"))
    assert ["--track-mem", "--prev-images-dir", "../before"] == words[:3]
    assert ["--page-server", "--address", "[::1]", "--port", "27"] == words[3:]


def test_mounts_of_the_hosts_files_are_named_by_their_targets():
    content = default()
    mounts = [
        *content["mounts"],
        {"destination": "/etc/hosts", "type": "bind", "source": "/a/hosts", "options": ["rbind"]},
        {"destination": "/data", "type": "none", "source": "data", "options": ["bind"]},
        {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"},
    ]
    found = criu.external_mounts(parsed(mounts=mounts), None)
    assert ("/a/hosts", "data") == (found["/etc/hosts"], found["/data"])
    assert "/dev/null" == found["/proc/kcore"]
    assert not {"/scratch", "/proc", "/dev", "/dev/null", "/sys/fs/cgroup"} & set(found)


def test_terminal_is_bound_onto_the_console():
    process = {**default()["process"], "terminal": True}
    assert "/dev/pts/9" == criu.external_mounts(parsed(process=process), None, "/dev/pts/9")["/dev/console"]
    process = {**process, "terminal": False}
    assert "/dev/console" not in criu.external_mounts(parsed(process=process), None)


def test_streams_are_kept_beside_the_images(tmp_path):
    assert [] == criu.read_streams(str(tmp_path))
    criu.write_streams(str(tmp_path), ["pipe:[1]", "", "/dev/null"])
    assert ["pipe:[1]", "", "/dev/null"] == criu.read_streams(str(tmp_path))
    (tmp_path / "descriptors.json").write_text("{")
    with pytest.raises(RuntimeFailure, match=r"descriptors\.json"):
        criu.read_streams(str(tmp_path))
