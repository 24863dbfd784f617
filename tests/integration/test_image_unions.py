"""Layers that depend on those below them: links to and through files of other layers."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from examples import examples
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from image_archives import archive, directory, hardlink, member, snapshot, symlink
from image_samples import add_image, layers_of
from test_image_archives import _member, chroot_tar, gnu_tar, made, spelled_once  # noqa: F401 - one is a fixture

from containerkit import Container
from containerkit.errors import ImageError
from containerkit.image import Image, Store
from containerkit.image.claimed import release
from containerkit.image.layers.stack import stack_layers
from containerkit.image.layers.unpack import layer_paths, on_top_id, unpack_layers
from containerkit.image.store.collect import unpacked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")
BUSYBOX = "/bin/busybox"


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@contextmanager
def shown(store, manifest, place):
    """The root as seen in a container."""
    with store.lease() as lease, union(stacked(store, manifest, lease).directories, place) as root:
        yield root


def stacked(store, manifest, lease):
    directories = unpack_layers(store, layers_of(store, manifest), lease)
    return stack_layers(store, layer_paths(directories), store.config(manifest).chain_ids[-1], lease)


@contextmanager
def union(directories, place):
    for name in ("", ".u", ".w"):
        Path(f"{place}{name}").mkdir()
    options = f"lowerdir={':'.join(directories)},upperdir={place}.u,workdir={place}.w"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        for name in ("", ".u", ".w"):
            shutil.rmtree(f"{place}{name}")


def seen(root, **options):
    """The content of a tree, without hard links, because overlayfs keeps them per layer."""
    return {name: facts[:-1] for name, facts in snapshot(root, **options).items()}


def content(root):
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


BASE = archive(
    directory("usr"), directory("usr/lib", mode=0o750, uid=7), member("usr/lib/libc", data=b"c", mode=0o755, uid=5),
    symlink("lib", "usr/lib"), symlink("abs", "/usr/lib/"), symlink("alias", "usr/lib/libc"), directory("d"),
    member("d/gone", data=b"g"),
)  # fmt: skip
LIBC = {"usr/lib/libc": b"c", "lib": "usr/lib", "abs": "/usr/lib/", "alias": "usr/lib/libc", "d/gone": b"g"}


@pytest.mark.parametrize(
    ("layer", "more"),
    [
        ([hardlink("again", "usr/lib/libc")], {"again": b"c"}),
        ([hardlink("again", "lib/libc")], {"again": b"c"}),
        ([hardlink("again", "alias")], {"again": "usr/lib/libc"}),
        ([member("lib/x", data=b"x")], {"usr/lib/x": b"x"}),
        ([member("abs/x", data=b"x")], {"usr/lib/x": b"x"}),
        ([member("lib/deep/x", data=b"x")], {"usr/lib/deep/x": b"x"}),
        ([symlink("mine", "lib"), member("mine/x", data=b"x")], {"mine": "lib", "usr/lib/x": b"x"}),
        ([symlink("mine", "/d"), hardlink("lib/x", "mine/gone")], {"mine": "/d", "usr/lib/x": b"g"}),
        ([member("lib/libc", data=b"new")], {"usr/lib/libc": b"new"}),
        ([directory("lib"), member("lib/x", data=b"x")], {"lib": None, "lib/x": b"x"}),
        ([member(".wh.lib"), member("lib/x", data=b"x")], {"lib": None, "lib/x": b"x"}),
        ([member("lib/.wh.libc")], {"usr/lib/libc": None}),
        ([member("lib/.wh..wh..opq"), member("lib/x", data=b"x")], {"usr/lib/libc": None, "usr/lib/x": b"x"}),
        ([hardlink("d/gone", "usr/lib/libc")], {"d/gone": b"c"}),
        ([member(".wh.usr"), member("usr/lib/x", data=b"x")], {"usr/lib/libc": None, "usr/lib/x": b"x"}),
        (
            [directory("usr/lib"), member("usr/lib/x", data=b"x"), member("usr/.wh..wh..opq")],
            {"usr/lib/libc": None, "usr/lib/x": b"x"},
        ),
        ([hardlink("b", "lib/libc"), member("b", data=b"other")], {"b": b"other"}),
        ([member("d"), directory("d"), member("d/x", data=b"x")], {"d/gone": None, "d/x": b"x"}),
    ],
)
def test_layer_is_unpacked_as_if_it_lay_on_those_below(tmp_path, layer, more):
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", BASE, archive(*layer))
    with shown(store, manifest, tmp_path / "view") as root:
        ours = seen(root)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.open("a", store=store).unpack_into(flat)
    assert seen(flat) == ours
    assert {name: data for name, data in (LIBC | more).items() if data is not None} == content(flat)
    with shown(store, add_image(store, "b", BASE), tmp_path / "view") as root:  # the base is unchanged
        assert LIBC == content(root)


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        ([hardlink("again", "usr/lib/nothing")], "which does not exist"),
        ([hardlink("again", "nowhere/at/all")], "which does not exist"),
        ([member("usr/lib/.wh.libc"), hardlink("again", "usr/lib/libc")], "which the layer deletes"),
        ([member("usr/lib/.wh..wh..opq"), hardlink("again", "usr/lib/libc")], "which does not exist"),
        ([member(".wh.usr"), hardlink("again", "usr/lib/libc")], "which the layer deletes"),
        ([hardlink("again", "usr/lib")], "can't be a hard link"),
        ([symlink("mine", "nowhere"), member("mine/x", data=b"x")], "leads to no directory"),
        ([member("alias/x", data=b"x")], "leads to no directory"),
    ],
)
def test_layer_that_refers_to_what_is_not_below_is_refused(tmp_path, layer, word):
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", BASE, archive(*layer))
    with store.lease() as lease, pytest.raises(ImageError, match=word):
        unpack_layers(store, layers_of(store, manifest), lease)
    assert [path.name for path in (tmp_path / "s/layers").glob(".new-*")] == []


def test_layer_at_the_bottom_has_nothing_to_refer_to(tmp_path):
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", archive(hardlink("again", "usr/lib/libc")))
    with store.lease() as lease, pytest.raises(ImageError, match="which does not exist"):
        unpack_layers(store, layers_of(store, manifest), lease)


def test_layer_on_different_bases_is_unpacked_for_each(tmp_path):
    store = Store(tmp_path / "s")
    top = archive(member("lib/x", data=b"x"), hardlink("l", "f"))
    one = add_image(store, "one", archive(symlink("lib", "a"), directory("a"), member("f", data=b"1")), top)
    two = add_image(store, "two", archive(symlink("lib", "b"), directory("b"), member("f", data=b"2")), top)
    three = add_image(store, "three", archive(directory("lib"), member("f", data=b"3")), top)
    found = []
    for manifest in (one, two, three, one):
        with shown(store, manifest, tmp_path / "view") as root:
            found.append((str(next(root.rglob("x")).relative_to(root)), (root / "l").read_text()))
    assert [("a/x", "1"), ("b/x", "2"), ("lib/x", "3"), ("a/x", "1")] == found


def test_layers_on_top_are_collected_with_their_images(tmp_path):
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a", BASE, archive(member("lib/x", data=b"x")), archive(hardlink("y", "lib/x")))
    with store.lease() as lease:
        unpack_layers(store, layers_of(store, manifest), lease)
    ids = {on_top_id(chain_id) for chain_id in store.config(manifest).chain_ids[1:]}
    assert (set(), ids) == (set(store.collect().layers), ids & {digest for digest, _ in unpacked(store)})
    Image.open("a", store=store).remove()
    store.collect(unnamed=True)
    assert set() == {digest for digest, _ in unpacked(store)}


@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")
def test_container_of_an_image_with_merged_directories_keeps_its_programs(tmp_path):
    """A package that adds ``bin/tool`` to a base whose ``/bin`` is a symlink."""
    store = Store(tmp_path / "s")
    with open(BUSYBOX, "rb") as file:
        busybox = member("usr/bin/busybox", data=file.read(), mode=0o755)
    base = archive(directory("usr"), directory("usr/bin"), symlink("bin", "usr/bin"), busybox)
    tool = archive(
        member("bin/tool", data=b"#!/bin/busybox sh\necho made it\n", mode=0o755), hardlink("bin/sh", "bin/busybox")
    )
    add_image(store, "a", base, tool)
    with Container(Image.open("a", store=store).rootfs()) as c:
        assert "made it\n" == c.run(["/bin/tool"], text=True, check=True).stdout
        assert (
            "2\n"
            == c.run(
                ["/bin/sh", "-c", "busybox ls /bin | busybox grep -cE '^(sh|tool)$'"], text=True, env={"PATH": "/bin"}
            ).stdout
        )


@settings(max_examples=examples(ci=50, nightly=400), deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
@given(st.lists(st.lists(_member, min_size=1, max_size=6), min_size=2, max_size=3))
@pytest.mark.timeout(600)
def test_layers_made_by_chance_are_stacked_like_gnu_tar_in_a_chroot_or_refused(tmp_path, chroot_tar, layers):  # noqa: F811 - the fixture, not a new function
    archives = [archive(*spelled_once(map(made, layer))) for layer in layers]
    base = tmp_path / "run"
    base.mkdir()
    try:
        store = Store(base / "s")
        manifest = add_image(store, "a", *archives)
        try:
            with shown(store, manifest, base / "view") as root:
                ours = seen(root)
        except ImageError:
            event("refused")
            return
        theirs = base / "gnu"
        theirs.mkdir(mode=0o755)
        if not all(gnu_tar(content, theirs, *chroot_tar) for content in archives):
            event("refused by GNU tar")
            return
        event("accepted by both")
        assert seen(theirs, skip=(".tool",)) == ours
    finally:
        release()
        shutil.rmtree(base)
