"""The installer of nodes: its changes to containerd's configuration, and the runtime on a node without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from oci_bundles import RUN, Bundle, as_root, make_rootfs, needs_busybox

from containerkit import SpecError, UnsupportedError
from containerkit.fleet.kubemanifests import manifests
from containerkit.fleet.kubenode import configured, install, uninstall

PROGRAM = "/opt/containerkit/bin/containerkit-oci"
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
CRI = "io.containerd.grpc.v1.cri"


_OTHER = f"""version = 2
[plugins."{CRI}".containerd]
  default_runtime_name = "kata"
[plugins."{CRI}".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2\""""


def runtimes(content, plugin=CRI):
    return tomllib.loads(content)["plugins"][plugin]["containerd"]["runtimes"]


@pytest.mark.parametrize(
    ("before", "plugin", "names"),
    [
        ("", CRI, {"runc", "containerkit"}),
        ("version = 2\n", CRI, {"runc", "containerkit"}),
        ("version = 3\n# mine\n", "io.containerd.cri.v1.runtime", {"runc", "containerkit"}),
        (
            _OTHER,
            CRI,
            {"kata", "containerkit"},
        ),
    ],
)
def test_configuration_keeps_all_else_and_its_default_runtime(before, plugin, names):
    made = configured(before, PROGRAM)
    assert made.startswith(before or "version = 2\n")
    assert names == set(runtimes(made, plugin))
    assert PROGRAM == runtimes(made, plugin)["containerkit"]["options"]["BinaryName"]
    assert made == configured(made, PROGRAM)


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("version = [", "not TOML"),
        ("version = 9\n", "version 9"),
        (f'version = 2\n[plugins."{CRI}".containerd.runtimes.containerkit]\n', "already"),
        (f'version = 2\nplugins = {{"{CRI}" = {{containerd = {{runtimes = {{}}}}}}}}\n', "as a separate table"),
        ("# --- containerkit: begin\n", "by hand"),
    ],
)
def test_configuration_that_cannot_be_extended_is_refused(before, told):
    with pytest.raises(SpecError, match=told):
        configured(before, PROGRAM)


def test_manifests_are_valid():
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="no kubernetes-validate: pip install kubernetes-validate"
    )
    runtime_class, daemon_set = manifests("registry.example/containerkit:1")
    for each in (runtime_class, daemon_set):
        schemas.validate(each, schemas.latest_version(), strict=True)
    assert runtime_class["scheduling"]["nodeSelector"] == daemon_set["spec"]["template"]["spec"]["nodeSelector"]
    words = [
        sys.executable,
        "-m",
        "containerkit",
        "kube",
        "node",
        "manifests",
        "--image",
        "registry.example/containerkit:1",
    ]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert [runtime_class, daemon_set] == list(yaml.safe_load_all(told))


@pytest.fixture
def node(tmp_path):
    """The root directory of a node with a shell and a kernel, and neither Python nor a C library."""
    needs_busybox()
    root = make_rootfs(tmp_path / "node")
    (root / "etc/containerd").mkdir()
    (root / "etc/containerd/config.toml").write_text("version = 2\n# of the node\n")
    subprocess.run(["mount", "--bind", root, root], check=True)  # the root of a node is a mount
    for name in ("proc", "sys", "dev"):
        subprocess.run(["mount", "--rbind", f"/{name}", root / name], check=True)
        subprocess.run(["mount", "--make-rslave", root / name], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "run"], check=True)
    yield root
    subprocess.run(["umount", "-R", "-l", root], check=True)


@pytest.mark.root
@as_root[1]
def test_runtime_works_on_a_node_without_python(node, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "containerkit", "kube", "node", "install", "--root", str(node)],
        capture_output=True,
        check=True,
    )
    content = (node / "etc/containerd/config.toml").read_text()
    assert {"runc", "containerkit"} == set(runtimes(content))
    assert "version = 2\n# of the node\n" == (node / "etc/containerd/config.toml.before-containerkit").read_text()
    assert not shutil.which("python3", path=str(node / "bin"))

    def on_node(*argv):
        return subprocess.run(
            [CHROOT, node, *argv], env={"PATH": "/bin"}, capture_output=True, text=True, timeout=60, check=False
        )

    assert on_node(PROGRAM, "--version").stdout.startswith("containerkit-oci version ")
    bundle = Bundle(node / "bundle", "/bundle/rootfs")
    make_rootfs(node / "bundle/rootfs")
    bundle.config["hostname"] = "inside"
    bundle.runs("hostname; id -u; echo $$").write()
    done = on_node(PROGRAM, "--root", "/run/oci", "run", "--bundle", "/bundle", f"node-{RUN}")
    assert (0, "inside\n0\n1\n") == (done.returncode, done.stdout), done.stderr
    (bundle.path / "rootfs/late").write_text("#!/bin/sh\n")
    (bundle.path / "rootfs/late").chmod(0o755)
    bundle.runs("/late").write()
    with open(os.devnull, "r+b") as nothing:
        words = [CHROOT, node, PROGRAM, "--root", "/run/oci", "create", "--bundle", "/bundle", f"node-{RUN}"]
        subprocess.run(words, stdin=nothing, stdout=nothing, stderr=nothing, check=True)
    (bundle.path / "rootfs/late").unlink()
    done = on_node(PROGRAM, "--root", "/run/oci", "start", f"node-{RUN}")
    assert 'exec "/late": no such file' in done.stderr
    assert 0 == on_node(PROGRAM, "--root", "/run/oci", "delete", "--force", f"node-{RUN}").returncode

    assert not install(str(node))  # the second time the configuration does not change
    assert uninstall(str(node))
    assert "version = 2\n# of the node\n" == (node / "etc/containerd/config.toml").read_text()
    assert not os.path.exists(f"{node}/opt/containerkit")
    assert not uninstall(str(node))


def test_node_gets_nothing_where_the_front_end_was_not_built(tmp_path, monkeypatch):
    monkeypatch.setattr("containerkit._native.front.FRONT", str(tmp_path / "front"))
    (tmp_path / "node/etc").mkdir(parents=True)
    with pytest.raises(UnsupportedError, match="not built"):
        install(str(tmp_path / "node"))
    assert ["etc"] == os.listdir(tmp_path / "node")
