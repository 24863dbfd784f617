"""Mounts whose targets lead through symlinks of the image, to existing and to missing paths."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import os

import pytest
from oci_bundles import ONE, Bundle, as_root, make_rootfs, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

pytestmark = as_root
pytest_generate_tests = try_python_alone


@pytest.fixture
def own(tmp_path, rootfs):
    """A root filesystem that a test may change."""
    return make_rootfs(tmp_path / "own")


@pytest.fixture
def bundle(tmp_path, own):
    return Bundle(tmp_path / "bundle", own)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_text("of the host\n")
    return str(path)


@pytest.mark.parametrize(
    "content", ["../run/systemd/resolve/stub-resolv.conf", "/run/systemd/resolve/stub-resolv.conf", "missing"]
)
def test_bind_onto_a_dangling_symlink_makes_what_it_points_to(oci, bundle, own, source, content):
    (own / "etc/resolv.conf").symlink_to(content)
    bundle.mounts("/etc/resolv.conf", "bind", source, "rbind", "ro").runs("cat", "/etc/resolv.conf")
    assert "of the host\n" == oci.run(bundle).stdout
    assert content == os.readlink(own / "etc/resolv.conf")


def test_bind_below_a_dangling_symlink_makes_what_is_missing(oci, bundle, own, source):
    (own / "data").symlink_to("volume/of")
    (own / "volume").symlink_to("/missing/place")
    bundle.mounts("/data/some/file", "bind", source, "rbind").runs("cat", "/missing/place/of/some/file")
    assert "of the host\n" == oci.run(bundle).stdout


@pytest.mark.parametrize("up", ["/", "../" * 20])
def test_dangling_symlink_makes_nothing_outside(oci, bundle, own, source, tmp_path, up):
    victim = tmp_path / "victim"
    victim.mkdir()
    (own / "etc/resolv.conf").symlink_to(f"{up}{str(victim)[1:]}/made")
    bundle.mounts("/etc/resolv.conf", "bind", source, "rbind").runs("cat", f"{victim}/made")
    assert "of the host\n" == oci.run(bundle).stdout
    assert [] == list(victim.iterdir())


def test_symlinks_in_a_circle_are_named(oci, bundle, own, source):
    (own / "one").symlink_to("two")
    (own / "two").symlink_to("one")
    bundle.mounts("/one/file", "bind", source, "rbind").write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert "/one: too many levels of symbolic links" in told


@pytest.mark.parametrize("link", ["/run", "../run"])
def test_bind_below_a_tmpfs_that_a_symlink_leads_to(oci, bundle, own, source, link):
    """Kubernetes mounts its secrets like this. It must also work if the image has the directory."""
    (own / "run/secrets/kubernetes.io").mkdir(parents=True)
    (own / "var/run").symlink_to(link)
    bundle.mounts("/run", "tmpfs", "tmpfs", "mode=755")
    bundle.mounts("/var/run/secrets/kubernetes.io/token", "bind", source, "rbind", "ro")
    bundle.runs("cat", "/run/secrets/kubernetes.io/token")
    assert "of the host\n" == oci.run(bundle).stdout


def test_symlink_of_a_bind_is_followed_below_the_root(oci, bundle, own, source, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "link").symlink_to("/elsewhere")
    bundle.mounts("/volume", "bind", str(volume), "rbind").mounts("/volume/link/file", "bind", source, "rbind")
    bundle.runs("cat", "/elsewhere/file")
    assert "of the host\n" == oci.run(bundle).stdout
    assert ["link"] == os.listdir(volume)


def test_tmpfs_has_the_permissions_of_what_it_covers(oci, bundle, own):
    (own / "data").mkdir(mode=0o700)
    (own / "data").chmod(0o2750)
    for target, options in (("/data", ()), ("/data2", ()), ("/data/inner", ("mode=711",))):
        bundle.mounts(target, "tmpfs", "tmpfs", *options)
    bundle.runs("stat -c %a /data /data2 /data/inner")
    assert ["2750", "1777", "711"] == oci.run(bundle).stdout.split()


def test_working_directory_behind_a_dangling_symlink_is_made(oci, bundle, own):
    (own / "home").symlink_to("missing/home")
    bundle.process["cwd"] = "/home/worker"
    bundle.runs("pwd")
    assert "/missing/home/worker\n" == oci.run(bundle).stdout
