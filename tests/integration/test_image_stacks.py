"""What overlayfs gets for many layers: the layers themselves, small ones merged, and directories with their attributes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
from itertools import chain
from pathlib import Path

import attrs
import pytest
from examples import examples
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from image_archives import archive, directory, hardlink, member, symlink
from image_samples import BUSYBOX, add_image, layers_of
from test_image_unions import seen, stacked, union

from containerkit import Container
from containerkit.errors import ImageError, SpecError
from containerkit.image import Image, Store
from containerkit.image.claimed import release
from containerkit.image.layers import stack
from containerkit.image.layers.stack import parts_of, stack_id
from containerkit.image.layers.unpack import layer_paths, unpack_layers
from containerkit.image.store.collect import unpacked
from containerkit.spec.rootfs import RootFS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")
needs_busybox = pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture
def merging(monkeypatch):
    """Let stacks be merged to a number of groups at most."""

    def set_few(few, entries=4000):
        monkeypatch.setattr(stack, "_FEW", few)
        monkeypatch.setattr(stack, "_MOST_ENTRIES", entries)

    return set_few


def busybox():
    with open(BUSYBOX, "rb") as file:
        return [directory("bin"), member("bin/busybox", data=file.read(), mode=0o755)]


def small_layers(count):
    return [archive(member(f"etc/f{number}", data=b"%d" % number)) for number in range(count)]


def flat(store, name, place):
    """The image as it is when each layer is extracted over the former ones, without overlayfs."""
    place.mkdir()
    Image.open(name, store=store).unpack_into(place)
    return seen(place)


# --- the union ------------------------------------------------------------------------------------------------------------

_NAMES = st.sampled_from(["a", "b", "a/a", "a/b", "b/a", "b/b", "a/a/a", "a/b/b", "b/a/b"])
_MODES = st.sampled_from([0o755, 0o700, 0o1777])


def _named(name):
    """A directory with those above it. Overlayfs shows one that is only there for a whiteout, an extraction does not."""
    parts = name.split("/") if name else []
    return [directory("/".join(parts[:depth])) for depth in range(1, len(parts) + 1)]


def _entry(name, kind, mode):
    above, _, last = name.rpartition("/")
    if kind == "directory":
        return [directory(name, mode=mode, uid=mode & 7)]
    if kind == "whiteout":
        return [*_named(above), member(os.path.join(above, f".wh.{last}"))]
    if kind == "opaque":
        return [*_named(name), member(os.path.join(name, ".wh..wh..opq"))]
    return [symlink(name, "nowhere") if kind == "symlink" else member(name, data=name.encode(), mode=mode)]


_entries = st.builds(_entry, _NAMES, st.sampled_from(["file", "directory", "whiteout", "opaque", "symlink"]), _MODES)


@settings(max_examples=examples(ci=50, nightly=1000), deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(layers=st.lists(st.lists(_entries, min_size=1, max_size=5), min_size=2, max_size=6), few=st.integers(1, 5))
@pytest.mark.timeout(600)
def test_stack_shows_what_extraction_over_each_other_gives(tmp_path, merging, layers, few):
    base = tmp_path / "run"
    base.mkdir()
    merging(few)
    try:
        store = Store(base / "s")
        manifest = add_image(store, "a", *(archive(*chain.from_iterable(layer)) for layer in layers))
        try:
            expected = flat(store, "a", base / "flat")
            with store.lease() as lease:
                found = stacked(store, manifest, lease)
        except ImageError:
            event("refused")
            return
        event(f"{len(found.directories)} directories")
        assert len(found.directories) <= few + 1
        with union(found.directories, base / "view") as root:
            assert expected == seen(root)
    finally:
        release()
        shutil.rmtree(base)


def test_whiteout_of_nothing_is_not_listed(tmp_path):
    """Overlayfs lists whiteouts in a directory that one layer alone has, as the control shows."""
    store = Store(tmp_path / "s")
    manifest = add_image(
        store, "a", archive(member("x")), archive(directory("d"), member("d/f"), member("d/.wh.never"))
    )
    with store.lease() as lease:
        directories = stacked(store, manifest, lease).directories
        with union(directories, tmp_path / "view") as root:
            assert ["f"] == os.listdir(root / "d")
        os.removexattr(f"{directories[0]}/d", "trusted.overlay.origin")
        with union(directories, tmp_path / "view") as root:
            assert ["f", "never"] == sorted(os.listdir(root / "d"))


def test_layer_with_whiteouts_is_unpacked_where_users_have_no_attributes(tmp_path, monkeypatch):
    """As on a tmpfs before Linux 6.6."""
    real = os.setxattr

    def refuse(path, name, *args, **options):
        if name.startswith("user."):
            raise OSError(errno.ENOTSUP, "not supported")
        return real(path, name, *args, **options)

    monkeypatch.setattr(os, "setxattr", refuse)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", archive(directory("d"), member("d/f")), archive(directory("d"), member("d/.wh.f")))
    with store.lease() as lease, union(stacked(store, manifest, lease).directories, tmp_path / "view") as root:
        assert [] == os.listdir(root / "d")


def test_directory_that_the_top_layer_does_not_name_keeps_its_attributes(tmp_path):
    store = Store(tmp_path / "s")
    manifest = add_image(
        store, "a", archive(directory("d", mode=0o750, uid=7), directory("d/e", mode=0o711, uid=8), directory("kept")),
        archive(member("d/e/f", data=b"x")),
    )  # fmt: skip
    with store.lease() as lease:
        found = stacked(store, manifest, lease).directories
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
    for directories, expected in ((found, [(0o750, 7), (0o711, 8)]), (plain, [(0o755, 0), (0o755, 0)])):
        with union(directories, tmp_path / "view") as root:
            states = [(root / name).stat() for name in ("d", "d/e")]
            assert expected == [(stat.S_IMODE(state.st_mode), state.st_uid) for state in states]
    assert found[1:] == plain
    assert ["d", "d/e"] == sorted(str(path.relative_to(found[0])) for path in Path(found[0]).rglob("*"))


@pytest.mark.parametrize(
    ("middle", "expected"), [(member("d/a"), (0o750, 7, ["a", "b", "c"])), (member(".wh.d"), (0o755, 0, ["b"]))]
)
def test_merged_directory_that_no_layer_names_has_the_attributes_below(tmp_path, merging, middle, expected):
    merging(2, entries=10)
    store = Store(tmp_path / "s")
    large = archive(directory("d", mode=0o750, uid=7), member("d/c"), *(member(f"f{number}") for number in range(20)))
    manifest = add_image(store, "a", large, archive(middle), archive(member("d/b")))
    with store.lease() as lease:
        found = stacked(store, manifest, lease).directories
        with union(found, tmp_path / "view") as root:
            state = (root / "d").stat()
            assert expected == (stat.S_IMODE(state.st_mode), state.st_uid, sorted(os.listdir(root / "d")))
    assert str(store.layer_directory(store.config(manifest).diff_ids[0]) / "fs") == found[-1]
    assert not any((Path(path) / "d/a").exists() and not (Path(path) / "d/b").exists() for path in found)  # merged


def test_layers_that_name_their_directories_are_used_as_they_are(tmp_path):
    store = Store(tmp_path / "s")
    layers = [archive(directory("etc"), member(f"etc/f{number}")) for number in range(8)]
    manifest = add_image(store, "a", *layers)
    with store.lease() as lease:
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
        assert (plain, str(store.layers)) == stacked(store, manifest, lease)
    assert 8 == len(list(unpacked(store)))


# --- many layers ----------------------------------------------------------------------------------------------------------


@needs_busybox
def test_image_of_forty_layers_has_few_directories_and_the_content_of_all(tmp_path):
    store = Store(tmp_path / "s")
    add_image(store, "a", archive(*busybox()), *small_layers(39))
    root = Image.open("a", store=store).rootfs()
    assert len(root.lowers) <= 9
    with Container(root) as c:
        names = c.run([BUSYBOX, "ls", "/etc"], text=True, check=True).stdout.split()
    assert {f"f{number}" for number in range(39)} <= set(names)
    expected = flat(store, "a", tmp_path / "flat")
    with union(root.lowers, tmp_path / "view") as view:
        assert expected == seen(view)


def test_large_layers_are_not_merged(tmp_path, merging):
    merging(2, entries=20)
    store = Store(tmp_path / "s")
    large = [archive(directory("d"), *(member(f"d/{at}-{n}") for n in range(30))) for at in range(3)]
    manifest = add_image(store, "a", *large, *(archive(member(f"s{number}")) for number in range(4)))
    with store.lease() as lease:
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
        found = stacked(store, manifest, lease).directories
    assert plain[-3:] == found[-3:]
    assert (1, {"s0", "s1", "s2", "s3"}) == (len(found) - 3, set(os.listdir(found[0])))


def test_merged_files_are_those_of_the_layers(tmp_path, merging):
    merging(2)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", *small_layers(5))
    with store.lease() as lease:
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
        found = stacked(store, manifest, lease).directories
    own = {path.stat().st_ino for directory in plain for path in Path(directory).rglob("f*")}
    merged = {path.stat().st_ino for directory in found for path in Path(directory).rglob("f*")}
    assert (5, own) == (len(own), merged)


def test_stack_stays_the_same_for_the_next_process(tmp_path, merging):
    """A detached container keeps its changes on top of certain directories."""
    merging(3)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", *small_layers(6))
    with store.lease() as lease:
        first = stacked(store, manifest, lease)
    merging(2)
    with Store(tmp_path / "s").lease() as lease:
        assert first == stacked(store, manifest, lease)
    shutil.rmtree(Path(first.directories[1]).parent)  # a part that is lost is made again
    merging(3)
    with Store(tmp_path / "s").lease() as lease:
        assert first == stacked(store, manifest, lease)
    assert all(map(os.path.isdir, first.directories))


def test_files_with_too_many_links_are_left_in_their_layers(tmp_path, merging, monkeypatch):
    merging(2)

    def refuse(*args, **options):
        raise OSError(31, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", *small_layers(4))
    with store.lease() as lease:
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
        assert plain == stacked(store, manifest, lease).directories[-4:]
    assert [] == list((store.root / "layers").glob(".new-*"))


# --- the store ------------------------------------------------------------------------------------------------------------


def test_merged_layers_are_collected_with_their_images(tmp_path, merging):
    merging(2)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", *small_layers(6))
    with store.lease() as lease:
        found = stacked(store, manifest, lease).directories
    record = stack_id(store.config(manifest).chain_ids[-1])
    assert parts_of(store.layer_directory(record)) <= {digest for digest, _ in unpacked(store)}
    assert () == store.collect().layers
    assert all(map(os.path.isdir, found))
    Image.open("a", store=store).remove()
    with store.lease() as lease:
        add_image(store, "b", *small_layers(6)[:2])
    store.collect(unnamed=True)
    assert 2 == len(list(unpacked(store)))


def test_merged_layers_of_a_live_container_are_kept(tmp_path, merging):
    merging(2)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", *small_layers(6))
    with store.lease() as lease:
        found = stacked(store, manifest, lease).directories
        Image.open("a", store=store).remove()
        store.collect(unnamed=True)
        assert all(map(os.path.isdir, found))
    store.collect(unnamed=True)
    assert not any(map(os.path.isdir, found))


@pytest.mark.parametrize("step", range(8))
def test_death_while_a_stack_is_made_leaves_a_store_that_works(tmp_path, merging, monkeypatch, step):
    merging(2)
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", archive(directory("etc", mode=0o711), member("etc/x")), *small_layers(5))
    with store.lease() as lease:
        unpack_layers(store, layers_of(store, manifest), lease)
    child = os.fork()
    if child == 0:
        calls = iter(range(100))
        for name in ("rename", "link", "mkdir", "replace"):
            real = getattr(os, name)

            def dies(*args, real=real, **options):
                if next(calls) >= 2 * step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)

            setattr(os, name, dies)
        stacked(store, manifest, store.lease())
        os._exit(0)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    expected = flat(store, "a", tmp_path / "flat")
    with store.lease() as lease:
        found = stacked(store, manifest, lease).directories
        with union(found, tmp_path / "view") as root:
            assert expected == seen(root)
    store.collect()
    assert [] == list((store.root / "layers").glob(".new-*"))
    assert all(map(os.path.isdir, found))


def test_store_of_an_earlier_version_still_works(tmp_path):
    """Earlier versions merged all layers under their chain id, and did not mark directories with whiteouts."""
    store = Store(tmp_path / "s")
    layers = [archive(directory("d"), member(f"d/f{number}"), member("d/.wh.never")) for number in range(3)]
    manifest = add_image(store, "a", *layers)
    with store.lease() as lease:
        for path in unpack_layers(store, layers_of(store, manifest)[:1], lease):
            marker = path.parent / "layer.json"
            facts = json.loads(marker.read_text())
            del facts["origins"]
            marker.write_text(json.dumps(facts))
            os.removexattr(path / "d", "trusted.overlay.origin")
            os.removexattr(path / "d", "user.overlay.origin")
        plain = layer_paths(unpack_layers(store, layers_of(store, manifest), lease))
        assert plain == stacked(store, manifest, lease).directories
        with union((plain[-1], plain[0]), tmp_path / "view") as root:
            assert ["f0", "f2"] == sorted(os.listdir(root / "d"))
        assert b"" == os.getxattr(f"{plain[-1]}/d", "user.overlay.origin")
        chain_id = store.config(manifest).chain_ids[-1]
        merged = store.layer_directory(chain_id)
        (merged / "fs").mkdir(parents=True)
        (merged / "fs/whole").touch()
        facts = {"merged": 3, "durable": True, "boot": ""}
        (merged / "layer.json").write_text(json.dumps(facts))
        assert (str(merged / "fs"),) == stacked(store, manifest, lease).directories
    assert () == store.collect().layers


# --- one mount for all ----------------------------------------------------------------------------------------------------


@needs_busybox
def test_layers_on_other_mounts_are_cloned_each(tmp_path):
    store = Store(tmp_path / "s")
    add_image(store, "a", archive(*busybox(), directory("d")), archive(member("d/f", data=b"below")))
    image = Image.open("a", store=store)
    assert str(store.layers) == image.rootfs().base
    release()
    top = image.rootfs().lowers[0]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(top, elsewhere)
    (elsewhere / "f").write_text("mounted")
    subprocess.run(["mount", "--bind", elsewhere, top], check=True)
    try:
        release()
        root = image.rootfs()
        assert root.base is None
        with Container(root) as c:
            assert b"mounted" == c.run([BUSYBOX, "cat", "/f"], check=True).stdout
    finally:
        subprocess.run(["umount", top], check=True)


@needs_busybox
@pytest.mark.parametrize("options", [{}, {"idmap": False}, {"upper": "upper"}, {"union": "kernel"}])
def test_container_shows_layers_by_one_mount_as_by_many(tmp_path, options):
    if "upper" in options:
        options = {"upper": tmp_path / "upper"}
        options["upper"].mkdir()
    store = Store(tmp_path / "s")
    add_image(
        store, "a", archive(*busybox(), directory("d"), member("d/gone")), archive(member("d/.wh.gone"), member("d/f"))
    )
    root = Image.open("a", store=store).rootfs(**options)
    found = []
    for each in (root, attrs.evolve(root, base=None)):
        with Container(each) as c:
            found.append(c.run([BUSYBOX, "ls", "-ln", "/", "/d", "/bin"], text=True, check=True).stdout)
            assert b"" == c.run([BUSYBOX, "grep", "-F", str(store.root), "/proc/self/mountinfo"]).stdout
    assert found[0].split("/d:")[1] == found[1].split("/d:")[1]


@needs_busybox
def test_names_that_do_not_fit_into_one_mount_call(tmp_path):
    names = [f"{number:0200}" for number in range(30)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / name[-2:]).touch()
    (tmp_path / names[0] / "bin").mkdir()
    shutil.copy(BUSYBOX, tmp_path / names[0] / "bin/busybox")
    root = attrs.evolve(RootFS.overlay(*(tmp_path / name for name in names)), base=str(tmp_path))
    with Container(root) as c:
        shown = c.run([BUSYBOX, "ls", "/"], text=True, check=True).stdout.split()
    assert {name[-2:] for name in names} <= set(shown)


@pytest.mark.parametrize("base", ["/elsewhere", "/lower", "/low", 3])
def test_base_must_contain_the_layers(base):
    with pytest.raises(SpecError, match="base"):
        attrs.evolve(RootFS.overlay("/lower/a", "/lowers/b"), base=base)
    with pytest.raises(SpecError, match="base"):
        attrs.evolve(RootFS.dir("/lower/a"), base=base)


def test_root_that_an_earlier_version_pickled_is_read():
    root = RootFS.overlay("/lower/a", size="1M")
    state = root.__getstate__()
    del state["base"]
    old = RootFS.__new__(RootFS)
    old.__setstate__(state)
    assert old == root == pickle.loads(pickle.dumps(root))


# --- changes --------------------------------------------------------------------------------------------------------------


@needs_busybox
def test_changes_know_what_the_layers_hide_from_each_other(tmp_path):
    store = Store(tmp_path / "s")
    add_image(
        store, "a",
        archive(*busybox(), directory("d"), member("d/gone"), directory("o"), member("o/old"), member("kept")),
        archive(directory("d"), member("d/.wh.gone"), directory("o"), member("o/.wh..wh..opq"), hardlink("k2", "kept")),
    )  # fmt: skip
    with Container(Image.open("a", store=store).rootfs()) as c:
        script = "for f in d/gone o/old kept; do busybox touch -d @0 /$f; busybox echo x > /$f; done"
        c.run([BUSYBOX, "sh", "-c", script], env={"PATH": "/bin"}, check=True)
        found = {change.path: change.kind for change in c.changes()}
    assert {"/d/gone": "added", "/o/old": "added", "/kept": "changed"} == {
        path: kind for path, kind in found.items() if path.count("/") == 2 or path == "/kept"
    }
