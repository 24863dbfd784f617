"""Images: archives, names, diffs, squashes, exports, commits, and containers made from them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import attrs
import pytest
from image_samples import add_image, tar_of

import containerkit
from containerkit import Container, IdMapping, Mount, RootFS, run
from containerkit.errors import ContainerError, ImageError, SetupError, SpecError, StateError
from containerkit.image import Defaults, Image, Store, commit
from containerkit.image.claimed import release
from containerkit.image.flatten import mounted_filesystem
from containerkit.image.layers.blob import LayerWriter
from containerkit.image.reference import Reference
from containerkit.security.capabilities import Capabilities

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking with owners needs root")
BUSYBOX = "/bin/busybox"
needs_busybox = pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


def tool(name):
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"needs the program {name}")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def box(store, tmp_path):
    """An image that contains only busybox."""
    root = tmp_path / "box"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "cat", "ls", "rm", "mkdir", "echo", "chown", "ln", "stat", "id", "touch", "chmod", "env", "pwd"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "data").mkdir()
    (root / "data/old").write_text("old")
    return Image.from_directory(
        root, "box:1", store=store, defaults=Defaults(command=("/bin/sh",), env={"PATH": "/bin"})
    )


def tree_of(image, directory):
    directory.mkdir()
    image.unpack_into(directory)
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@needs_busybox
def test_container_runs_from_an_image(box):
    with Container(box.rootfs()) as c:
        assert "old" == c.run(["/bin/cat", "/data/old"], text=True).stdout
    assert Path(box.unpack()[0], "data/old").read_text() == "old"


@needs_busybox
def test_container_runs_from_a_description_of_an_image(box, store):
    root = RootFS.image("box:1", store=str(store.root), pull="never", size="16M")
    with Container(root) as c:
        assert "old" == c.run(["/bin/cat", "/data/old"], text=True).stdout
    with (
        pytest.raises(ImageError, match="not in the store"),
        Container(RootFS.image("x", store=str(store.root), pull="never")),
    ):
        pass
    with pytest.raises(SpecError, match="unknown argument"), Container(RootFS.image("box:1", colour="red")):
        pass


@needs_busybox
def test_image_runs_its_own_program_as_its_config_says(box, store):
    image = Image.from_directory(
        store.layer_directory(box.config.diff_ids[0]) / "fs" if box.unpack() else "", "run:1", store=store,
        defaults=Defaults(
            entrypoint=("/bin/sh", "-c"), command=("echo $A $B; pwd; id -u",), env={"PATH": "/bin", "A": "1"}, user="7:8",
            working_dir="/data",
        ),
    )  # fmt: skip
    assert "1\n/data\n7\n" == image.run(text=True, check=True).stdout
    assert "1 2\n" == image.run(["echo $A $B"], env={"B": "2"}, user="0:0", text=True, check=True).stdout
    with pytest.raises(SpecError, match="pass a command"):
        Image.from_directory(box.unpack()[0], store=store).run()


@needs_busybox
def test_commit_makes_a_layer_of_what_changed_and_its_container_sees_the_same(box, store):
    script = (
        "rm /data/old; echo new > /data/new; chown 7:8 /data/new; mkdir /made; ln /data/new /made/hard; ln -s /x /made/soft;"
        "rm -r /etc; mkdir /etc; echo y > /etc/only; chmod 4755 /made; chown 65534 /made; touch /proc-not"
    )
    with Container(box.rootfs(), capabilities=Capabilities.docker()) as c:
        assert 0 == c.run(["/bin/sh", "-c", script], text=True).returncode
        image = commit(c, "box:2", base=box, author="me", message="changed", command=("/bin/cat",))
    assert ("me", "changed", ("/bin/cat",)) == (
        image.config.author, image.history()[-1].comment, image.defaults.command,
    )  # fmt: skip
    assert box.manifest.layers == image.manifest.layers[:-1]
    with Container(image.rootfs()) as c:
        found = c.run(
            ["/bin/sh", "-c", "ls /data /etc; stat -c '%u:%g %h %a' /data/new /made; cat /made/hard"], text=True
        )
    assert "/data:\nnew\n\n/etc:\nonly\n7:8 2 644\n65534:0 2 4755\nnew\n" == found.stdout


@needs_busybox
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it chooses ids of the host")
def test_commit_reads_groups_by_the_map_of_groups(box):
    users, groups = IdMapping(0, 700_000_000, 65536), IdMapping(0, 710_000_000, 65536)
    with Container(box.rootfs(), uid_mappings=[users], gid_mappings=[groups], capabilities=Capabilities.docker()) as c:
        c.run(["/bin/sh", "-c", "touch /new; chown 7:8 /new"], check=True)
        image = commit(c, base=box)
    with Container(image.rootfs()) as c:
        assert "7:8\n" == c.run(["stat", "-c", "%u:%g", "/new"], text=True).stdout


@needs_busybox
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_commit_of_the_same_changes_gives_the_same_digest(box, monkeypatch, tmp_path, where):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    digests = set()
    for number in range(2):
        options = {} if where == "memory" else {"upper": tmp_path / f"upper{number}"}
        if options:
            options["upper"].mkdir()
        with Container(box.rootfs(**options), capabilities=Capabilities.docker()) as c:
            c.run(["/bin/sh", "-c", "echo b > /b; echo a > /a; rm /data/old; chown 5:6 /a"], check=True)
            digests.add(commit(c, base=box).digest)
    assert 1 == len(digests)


@needs_busybox
def test_commit_of_nothing_adds_no_layer(box):
    with Container(box.rootfs()) as c:
        image = commit(c, base=box)
    assert box.manifest.layers == image.manifest.layers
    assert image.history()[-1].empty_layer


@needs_busybox
def test_commit_finds_the_base_by_the_description(box, store):
    with Container(RootFS.image("box:1", store=str(store.root))) as c:
        c.run(["/bin/touch", "/x"], check=True)
        image = commit(c, "box:3")
    assert 2 == len(image.manifest.layers)
    with pytest.raises(StateError, match="its root is the host's"), Container() as c:
        commit(c, store=store)
    with pytest.raises(SpecError, match="unknown field"), Container(box.rootfs()) as c:
        commit(c, base=box, colour="red")


@needs_busybox
def test_commit_follows_no_link_out_of_the_container(box, tmp_path):
    (tmp_path / "secret").write_text("of the host")
    with Container(box.rootfs()) as c:
        script = f"ln -s {tmp_path} /up; ln -s {tmp_path}/secret /direct; ln -s /proc/self/root /self"
        c.run(["/bin/sh", "-c", script], check=True)
        image = commit(c, base=box)
    directory = tmp_path / "t"
    directory.mkdir()
    image.unpack_into(directory)
    assert [str(tmp_path), f"{tmp_path}/secret", "/proc/self/root"] == [
        os.readlink(directory / name) for name in ("up", "direct", "self")
    ]


@needs_busybox
def test_commit_keeps_what_is_in_mounts_out(box, tmp_path):
    from containerkit import Mount

    with Container(box.rootfs(), mounts=[Mount.tmpfs("/data")]) as c:
        c.run(["/bin/touch", "/data/secret", "/kept"], check=True)
        image = commit(c, base=box)
    assert ["kept"] == [name for name in tree_of(image, tmp_path / "t") if "secret" in name or "kept" in name]


def test_image_open_get_list_tag_and_remove(store):
    add_image(store, "one:1", {"a": b"1"})
    image = Image.open("one:1", store=store)
    with pytest.raises(ImageError, match="hint: pull it"):
        Image.open("two", store=store)
    with pytest.raises(ImageError, match="linux/s390x"):
        Image.open("one:1", platform="s390x", store=store)
    with pytest.raises(SpecError):
        Image.get("one:1", pull="sometimes", store=store)
    assert image == Image.get("one:1", store=store)
    again = image.tag("two:2")
    assert ["one:1", "two:2"] == [one.reference.familiar for one in Image.list(store)]
    again.remove()
    assert [image] == Image.list(store)
    assert image.digest == Image.open(f"x@{image.digest}", store=store).digest
    assert "<Image one:1" in repr(image)


def test_image_diff_lists_what_the_other_adds_changes_and_deletes(store):
    base = {"kept": b"1", "changed": b"1", "gone": b"1", "dir/in": b"1", "opaque/old": b"1"}
    add_image(store, "a", base)
    top = {
        "changed": b"2",
        ".wh.gone": b"",
        "new": b"1",
        ".wh.dir": b"",
        "opaque/.wh..wh..opq": b"",
        "opaque/new": b"1",
    }
    add_image(store, "b", base, top)
    add_image(store, "c", base, {"changed": b"1"})
    a, b, c = (Image.open(name, store=store) for name in "abc")
    assert [
        ("/changed", "changed"), ("/dir", "deleted"), ("/dir/in", "deleted"), ("/gone", "deleted"), ("/new", "added"), ("/opaque/new", "added"),
        ("/opaque/old", "deleted"),
    ] == [(change.path, change.kind) for change in a.diff(b)]  # fmt: skip
    assert [] == a.diff(c)


def test_image_squash_and_export_have_the_same_root(store, tmp_path):
    add_image(store, "a", {"x": b"1", "d/gone": b"1", "f/in": b"1"}, {"d/.wh.gone": b"", "y": b"2", "f": b"file"})
    image = Image.open("a", store=store)
    expected = tree_of(image, tmp_path / "t")
    assert ["d", "f", "x", "y"] == expected
    squashed = image.squash("squashed")
    assert (1, expected) == (len(squashed.manifest.layers), tree_of(squashed, tmp_path / "s"))
    image.export(tmp_path / "root.tar")
    with tarfile.open(tmp_path / "root.tar") as tar:
        assert expected == sorted(os.path.normpath(name) for name in tar.getnames() if name != ".")
    imported = Image.import_tar(tmp_path / "root.tar", "imported", store=store)
    assert [] == image.diff(imported)
    assert [] == os.listdir(store.root / "build")
    with pytest.raises(SpecError, match="empty directory"):
        image.unpack_into(tmp_path / "t")


def test_export_is_what_gnu_tar_reads(store, tmp_path):
    long = "n" * 90 + "/" + "m" * 120
    add_image(store, "a", {long: b"1", "é": b"2"})
    Image.open("a", store=store).export(tmp_path / "root.tar")
    names = subprocess.run(["tar", "-tf", tmp_path / "root.tar"], capture_output=True, text=True, check=True).stdout
    assert f"{long}\n" in names


def full_tree(root):
    """One file of each kind, with all its properties."""
    root.mkdir()
    (root / "plain").write_bytes(b"x" * 5000)
    os.utime(root / "plain", ns=(1, 1_600_000_000_123_456_789))
    os.setxattr(root / "plain", "user.note", b"\xff\x00binary")
    subprocess.run(["setcap", "cap_net_raw+ep", root / "plain"], check=True)
    subprocess.run(["setfacl", "-m", "u:54321:rw", root / "plain"], check=True)
    os.link(root / "plain", root / "zlink")
    os.symlink("plain", root / "soft")
    os.lchown(root / "soft", 12, 13)
    os.mkfifo(root / "pipe")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    (root / "directory").mkdir()
    (root / "directory").chmod(0o2750)
    os.chown(root / "directory", 4_000_000, 5)
    (root / "setuid").write_text("s")
    os.chown(root / "setuid", 7, 7)
    (root / "setuid").chmod(0o4711)


@tool("setcap")
@tool("setfacl")
def test_image_from_a_directory_keeps_everything(store, tmp_path):
    full_tree(tmp_path / "full")
    image = Image.from_directory(tmp_path / "full", "full", store=store)
    target = tmp_path / "out"
    target.mkdir()
    image.unpack_into(target)
    for name in sorted(os.listdir(tmp_path / "full")):
        one, two = os.lstat(tmp_path / "full" / name), os.lstat(target / name)
        for field in ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_rdev", "st_nlink"):
            if name != "directory" or field != "st_size":
                assert getattr(one, field) == getattr(two, field), (name, field)
        attributes = [
            {
                key: os.getxattr(where / name, key, follow_symlinks=False)
                for key in os.listxattr(where / name, follow_symlinks=False)
            }
            for where in (tmp_path / "full", target)
        ]
        assert attributes[0] == attributes[1], name
    assert os.path.samefile(target / "plain", target / "zlink")


@tool("tar")
@tool("setcap")
@tool("setfacl")
def test_image_from_an_archive_of_gnu_tar_keeps_everything(store, tmp_path):
    full_tree(tmp_path / "full")
    with (tmp_path / "full/sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
        file.truncate(60 << 20)
    os.utime(tmp_path / "full/sparse", (1, 1))
    command = [
        "tar",
        "--xattrs",
        "--acls",
        "--xattrs-include=*",
        "--numeric-owner",
        "--sparse",
        "-C",
        tmp_path / "full",
    ]
    for form in ("posix", "gnu"):
        extra = [] if form == "posix" else ["--no-xattrs", "--no-acls"]
        subprocess.run([*command, f"--format={form}", *extra, "-cf", tmp_path / f"{form}.tar", "."], check=True)
        image = Image.import_tar(tmp_path / f"{form}.tar", form, store=store)
        target = tmp_path / form
        target.mkdir()
        image.unpack_into(target)
        sparse = (target / "sparse").stat()
        assert (60 << 20, True) == (sparse.st_size, sparse.st_blocks < 4096)
        subprocess.run(["cmp", tmp_path / "full/sparse", target / "sparse"], check=True)
        assert os.lstat(target / "directory").st_uid == 4_000_000
        if form == "posix":
            assert 1_600_000_000_123_456_789 == (target / "plain").stat().st_mtime_ns
            kept = {name: os.getxattr(target / "plain", name) for name in os.listxattr(target / "plain")}
            assert {"user.note", "security.capability", "system.posix_acl_access"} == set(kept)
            assert os.getxattr(tmp_path / "full/plain", "system.posix_acl_access") == kept["system.posix_acl_access"]


# --- Archives


def test_save_and_load_of_both_forms(store, tmp_path):
    add_image(store, "a:1", {"x": b"1"}, {"y": b"2"})
    image = Image.open("a:1", store=store)
    for form in ("oci-archive", "docker-archive"):
        image.save(tmp_path / form, form=form)
        other = Store(tmp_path / f"s-{form}")
        loaded = Image.load(tmp_path / form, store=other)
        assert ["a:1"] == [one.reference.familiar for one in loaded]
        assert image.config.diff_ids == loaded[0].config.diff_ids
        assert () == other.verify()
    assert image.manifest == Image.load(tmp_path / "oci-archive", store=Store(tmp_path / "t"))[0].manifest
    with pytest.raises(SpecError):
        image.save(tmp_path / "x", form="zip")


def test_load_of_a_compressed_archive_and_of_a_layout(store, tmp_path):
    add_image(store, "a:1", {"x": b"1"})
    image = Image.open("a:1", store=store)
    image.save(tmp_path / "a.tar")
    subprocess.run(["gzip", tmp_path / "a.tar"], check=True)
    assert image.digest == Image.load(tmp_path / "a.tar.gz", store=Store(tmp_path / "s"))[0].digest
    assert image.digest == Image.load(store.root, store=Store(tmp_path / "t"))[0].digest


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"manifest.json": b"{}"},
        {"manifest.json": b"[{}]"},
        {"manifest.json": b'[{"Config":"../../etc/passwd","Layers":[]}]'},
        {"manifest.json": b'[{"Config":"c","Layers":["l"]}]', "c": b'{"rootfs":{"diff_ids":[]}}'},
        {"index.json": b"["},
        {
            "index.json": json.dumps(
                {"manifests": [{"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 2}]}
            ).encode()
        },
    ],
)
def test_load_refuses_what_is_malformed(tmp_path, members):
    (tmp_path / "a.tar").write_bytes(tar_of(members))
    with pytest.raises(ImageError):
        Image.load(tmp_path / "a.tar", store=Store(tmp_path / "s"))
    assert [] == Image.list(Store(tmp_path / "s"))


def test_load_never_follows_a_link_out_of_a_layout(tmp_path, store):
    secret = tmp_path / "secret"
    secret.write_bytes(b"{}")
    layout = tmp_path / "layout"
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text("{}")
    digest = __import__("hashlib").sha256(b"{}").hexdigest()
    (layout / f"blobs/sha256/{digest}").symlink_to(secret)
    entry = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{digest}", "size": 2}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    with pytest.raises(ImageError, match="symbolic links"):
        Image.load(layout, store=store)


def test_load_reads_no_more_at_once_than_a_header_may_have(tmp_path, store):
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 30
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(huge.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 30)
    with pytest.raises(ImageError, match="single read"):
        Image.load(tmp_path / "a.tar", store=store)


def test_load_reports_damaged_and_missing_files(tmp_path, store):
    (tmp_path / "a").write_bytes(b"\x1f\x8b" + b"x" * 100)
    for name in ("a", "missing"):
        with pytest.raises(ContainerError, match=r"damaged|not there"):
            Image.load(tmp_path / name, store=store)


# --- Comparison with other tools


@tool("skopeo")
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_archives_are_what_skopeo_reads_and_writes(store, tmp_path, form):
    add_image(store, "a:1", {"x": b"1"}, {"y": b"2"})
    image = Image.open("a:1", store=store)
    image.save(tmp_path / "a", form=form)
    source = f"{form}:{tmp_path}/a"
    subprocess.run(
        ["skopeo", "copy", source, f"{form}:{tmp_path}/b:docker.io/library/b:1"], check=True, capture_output=True
    )
    loaded = Image.load(tmp_path / "b", store=store)[0]
    assert image.config.diff_ids == loaded.config.diff_ids
    assert "b:1" == loaded.reference.familiar


@tool("umoci")
@needs_busybox
def test_store_is_a_layout_that_umoci_unpacks_and_what_umoci_made_runs_here(box, store, tmp_path):
    entry = f"{store.root}:docker.io/library/box:1"
    subprocess.run(["umoci", "unpack", "--image", entry, tmp_path / "bundle"], check=True, capture_output=True)
    assert "old" == (tmp_path / "bundle/rootfs/data/old").read_text()
    (tmp_path / "bundle/rootfs/data/old").unlink()
    (tmp_path / "bundle/rootfs/data/umoci").write_text("made")
    layout = tmp_path / "layout"
    subprocess.run(["skopeo", "copy", f"oci:{entry}", f"oci:{layout}:box"], check=True, capture_output=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:box", tmp_path / "b2"], check=True, capture_output=True)
    (tmp_path / "b2/rootfs/data/old").unlink()
    (tmp_path / "b2/rootfs/data/umoci").write_text("made")
    subprocess.run(["umoci", "repack", "--image", f"{layout}:box", tmp_path / "b2"], check=True, capture_output=True)
    loaded = Image.load(layout, store=store)[0]
    with Container(loaded.rootfs()) as c:
        assert "umoci\nmade" == c.run(["/bin/sh", "-c", "ls /data; cat /data/*"], text=True).stdout


@tool("buildah")
@needs_busybox
def test_image_made_by_buildah_runs_here_and_ours_is_taken_by_buildah(box, tmp_path, store):
    box.save(tmp_path / "box.tar")
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(tmp_path)}
    options = ["--storage-driver", "vfs", "--root", tmp_path / "cs", "--runroot", tmp_path / "run"]

    def buildah(*words):
        done = subprocess.run(
            ["buildah", *map(str, options), *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip()

    name = buildah("from", f"oci-archive:{tmp_path}/box.tar")
    buildah("copy", name, tmp_path / "box/data/old", "/data/copied")
    buildah("config", "--env", "BY=buildah", name)
    buildah("commit", "--squash", name, f"oci-archive:{tmp_path}/out.tar:by-buildah")
    loaded = Image.load(tmp_path / "out.tar", store=store)[0]
    assert "buildah" == loaded.defaults.env["BY"]
    with Container(loaded.rootfs()) as c:
        assert "old" == c.run(["/bin/cat", "/data/copied"], text=True).stdout


# --- Filesystems


@needs_busybox
@pytest.mark.parametrize(
    "form", [pytest.param("erofs", marks=tool("mkfs.erofs")), pytest.param("squashfs", marks=tool("mksquashfs"))]
)
def test_flattened_image_is_mounted_and_runs(box, tmp_path, form):
    box.flatten(tmp_path / "fs", form=form)
    with mounted_filesystem(tmp_path / "fs") as directory:
        assert "old" == (directory / "data/old").read_text()
        with Container(RootFS.overlay(directory, idmap=form != "squashfs")) as c:
            assert "old" == c.run(["/bin/cat", "/data/old"], text=True).stdout
    with pytest.raises(SpecError):
        box.flatten(tmp_path / "x", form="ext4")
    (tmp_path / "text").write_text("no filesystem")
    with pytest.raises(ImageError), mounted_filesystem(tmp_path / "text"):
        pass


@tool("mkfs.erofs")
def test_flattened_image_is_reproducible(box, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    for name in "ab":
        box.flatten(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@needs_busybox
def test_container_shows_what_the_layers_mean_together(store, tmp_path):
    trees = [
        {"a": b"1", "d/x": b"1", "d/gone": b"1", "o/old": b"1", "r/in": b"1"},
        {"b": b"2", "d/.wh.gone": b"", "o/.wh..wh..opq": b"", "o/new": b"2"},
        {"a": b"3", ".wh.r": b"", "r": b"file"},
        {"e/f/g": b"4"},
    ]
    add_image(store, "many", *trees)
    image = Image.open("many", store=store)
    root = image.rootfs()
    with Container(root, mounts=[Mount.bind("/bin", "/tools", readonly=True)]) as c:
        found = c.run(["/tools/busybox", "find", "/", "-xdev"], text=True, check=True).stdout.split()
        assert b"3file" == c.run(["/tools/busybox", "cat", "/a", "/r"], check=True).stdout
    made = {"proc", "sys", "dev", "tools"}
    assert set(tree_of(image, tmp_path / "t")) == {name[1:] for name in found if name != "/"} - made
    assert root.lowers == image.rootfs().lowers


def test_what_was_made_for_a_stack_goes_with_its_image(store):
    add_image(store, "many", *[{f"d/f{number}": b"1"} for number in range(12)])
    lowers = Image.open("many", store=store).rootfs().lowers
    assert len(lowers) <= 9
    other = Store(store.root)
    other.collect()
    assert all(map(os.path.exists, lowers))
    Image.open("many", store=store).remove()
    other.collect()
    assert all(map(os.path.exists, lowers))  # this process uses them
    release()
    other.collect()
    assert not any(map(os.path.exists, lowers))


ORDINARY = """
import sys
from containerkit import Container
from containerkit.image import Build, Image, Store, commit
store = Store(sys.argv[1])
image = Image.load(sys.argv[2], store=store)[0]
with Container(image.rootfs()) as c:
    print(c.run(["/bin/sh", "-c", "id -u; echo new > /data/new; rm /data/old; cat /data/new"], text=True, check=True).stdout)
    second = commit(c, base=image)
built = Build.from_("box:1").run("echo built > /built && rm /data/old").build(store=store, pull="never")
for other in (second, built):
    with Container(other.rootfs()) as c:
        print(c.run(["/bin/sh", "-c", "ls /data; cat /built /data/new 2>/dev/null || true"], text=True, check=True).stdout)
"""


def python_for_others():
    """A Python that every user can run, with this one's packages."""
    paths = [str(Path(containerkit.__file__).parents[1]), *(path for path in sys.path if path.endswith("-packages"))]
    for program in (sys.executable, "/usr/bin/python3"):
        command = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "env",
            f"PYTHONPATH={':'.join(paths)}",
            program,
        ]
        try:
            if subprocess.run([*command, "-c", "import attr, cffi"], capture_output=True, check=False).returncode == 0:
                return command
        except FileNotFoundError:
            continue
    pytest.skip("no Python that an ordinary user may run")


@needs_busybox
def test_unprivileged_user_unpacks_runs_commits_and_builds(box, tmp_path):
    command = python_for_others()
    box.save(tmp_path / "box.tar")
    with tempfile.TemporaryDirectory() as home:
        os.chown(home, 65534, 65534)
        shutil.copy(tmp_path / "box.tar", home)
        os.chmod(f"{home}/box.tar", 0o644)
        done = subprocess.run(
            [*command, "-c", ORDINARY, f"{home}/store", f"{home}/box.tar"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
    if "UnsupportedError" in done.stderr:
        pytest.skip(f"this host lets no ordinary user make containers: {done.stderr[-200:]}")
    assert "" == done.stderr
    assert ["0", "new", "new", "new", "built"] == done.stdout.split()


@needs_busybox
def test_directory_that_a_layer_does_not_name_keeps_what_it_was_below(box, store, tmp_path):
    root = tmp_path / "sticky"
    (root / "tmp").mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copytree(tmp_path / "box/bin", root / "bin", symlinks=True)
    base = Image.from_directory(root, store=store)
    with store.lease() as lease, LayerWriter(store, lease) as writer:
        writer.write(tar_of({"tmp/file": b"1", "new/file": b"2"}))
        blob, diff_id = writer.commit()
        config = base.config.evolve(diff_ids=(*base.config.diff_ids, diff_id))
        store.add_image(config, (*base.manifest.layers, blob), Reference.parse("implied"), lease)
    with Container(Image.open("implied", store=store).rootfs()) as c:
        assert "1777\n755\n1" == c.run(["/bin/sh", "-c", "stat -c %a /tmp /new; cat /tmp/file"], text=True).stdout


@needs_busybox
def test_changes_of_an_image_are_what_was_changed_on_top_of_it(box, store):
    root = RootFS.image("box:1", store=str(store.root), pull="never")
    with Container(root) as c:
        c.run(["/bin/sh", "-c", "rm /data/old; echo > /data/new; chmod 700 /etc"], check=True)
        assert {("/data/old", "deleted"), ("/data/new", "added"), ("/etc", "changed")} == {
            (change.path, change.kind) for change in c.changes()
        }
        assert "overlay" == c.rootfs.kind
        assert root == c.spec.rootfs


@needs_busybox
def test_changes_of_a_template_are_what_was_changed_on_top_of_it(tmp_path):
    with Container(RootFS.template("busybox", store=str(tmp_path / "store"), size="8M")) as c:
        c.run(["touch", "/new"], check=True)
        assert [("/new", "added")] == [(change.path, change.kind) for change in c.changes()]


# --- The config's defaults for commands


@pytest.fixture
def configured(box, tmp_path, store):
    """The box with a config in which every field is set."""
    root = tmp_path / "configured"
    box_root = box.unpack()[0]
    shutil.copytree(box_root, root, symlinks=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nserver:x:70:71::/srv:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nserver:x:71:\nlog:x:72:server\n")
    defaults = Defaults(env={"PATH": "/bin", "GREETING": "hello"}, working_dir="data/", user="server")
    return Image.from_directory(root, "configured:1", store=store, defaults=defaults)


BOX_SHOW = ["sh", "-c", 'echo "$GREETING $(pwd) $(id -u) $(id -g) $(id -G)"']


@needs_busybox
def test_config_of_an_image_holds_for_commands_of_a_container(configured, store):
    description = RootFS.image("configured:1", store=str(store.root), pull="never")
    for root in (description, configured.rootfs()):
        with Container(root) as c:
            assert "hello /data 70 71 71 72\n" == c.run(BOX_SHOW, text=True, check=True).stdout


@needs_busybox
def test_config_of_an_image_holds_for_a_single_run(configured, store):
    root = RootFS.image("configured:1", store=str(store.root), pull="never")
    assert "hello /data 70 71 71 72\n" == run(BOX_SHOW, rootfs=root, text=True, check=True).stdout
    assert "hello /data 5 6 6\n" == run(BOX_SHOW, rootfs=root, user="5:6", text=True, check=True).stdout


@needs_busybox
def test_arguments_of_a_command_replace_what_the_image_says(configured):
    cases = [
        ({"env": {"PATH": "/bin"}}, " /data 70 71 71 72\n"),
        ({"env": None, "cwd": None, "user": None}, "hello /data 70 71 71 72\n"),
        ({"cwd": "/"}, "hello / 70 71 71 72\n"),
        ({"user": "0"}, "hello /data 0 0 0\n"),
        ({"user": 9}, "hello /data 9 9 9\n"),
        ({"user": "server:log"}, "hello /data 70 72 72\n"),
        ({"groups": [8]}, "hello /data 70 71 71 8\n"),
    ]
    wrong = []
    with Container(configured.rootfs()) as c:
        for given, expected in cases:
            told = [c.run(BOX_SHOW, text=True, check=True, **given).stdout]
            told.append(run(BOX_SHOW, rootfs=configured.rootfs(), text=True, check=True, **given).stdout)
            wrong += [(given, *told)] if told != [expected] * 2 else []
    assert [] == wrong


@pytest.fixture
def with_home(configured, store):
    """The same, with a home directory in its environment."""
    defaults = attrs.evolve(configured.defaults, env={"PATH": "/bin", "HOME": "/app"})
    return Image.from_directory(configured.unpack()[0], "with_home:1", store=store, defaults=defaults)


@needs_busybox
@pytest.mark.several_ids
def test_home_is_the_users_unless_the_image_sets_one(configured, with_home):
    show = ["sh", "-c", "echo $HOME"]
    homes = [(None, "/srv"), ("server", "/srv"), ("root", "/root"), (0, "/root"), (9, "/"), ("5:6", "/")]
    wrong = []
    with Container(configured.rootfs()) as c:
        for user, home in homes:
            told = [
                c.run(show, user=user, text=True, check=True),
                c.run(show, user=user, env={"PATH": "/bin"}, text=True, check=True),
                run(show, rootfs=configured.rootfs(), user=user, text=True, check=True),
                configured.run(["sh", "-c", "echo $HOME $A"], env={"A": "b"}, user=user, text=True),
                run(show, rootfs=with_home.rootfs(), user=user, text=True, check=True),
            ]
            shown = [each.stdout for each in told]
            wrong += [(user, shown)] if shown != [f"{home}\n", "\n", f"{home}\n", f"{home} b\n", "/app\n"] else []
    assert [] == wrong


@needs_busybox
@pytest.mark.several_ids
def test_command_line_has_the_home_of_the_user_of_an_image(configured, with_home, store):
    def home(image, *options):
        command = [sys.executable, "-m", "containerkit", "run", "--image", image, "--pull", "never", *options]
        environment = {**os.environ, "CONTAINERKIT_IMAGES": str(store.root), "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [*command, "--", "sh", "-c", "echo $HOME"], capture_output=True, text=True, env=environment
        )
        assert 0 == done.returncode, done.stderr
        return done.stdout.strip()

    assert ["/srv", "/root", "/", "/x"] == [
        home("configured:1", *options) for options in ([], ["--user=0"], ["--user=9"], ["--env=HOME=/x"])
    ]
    assert ["/app", "/app"] == [home("with_home:1"), home("with_home:1", "--user=root")]


LACKING = {
    "/srv/app": [("/srv", "added"), ("/srv/app", "added")],
    "srv/./../app/": [("/app", "added")],
    "/../../escape": [("/escape", "added")],
    "/data": [],
    "/way/app": [("/data/app", "added")],
    "/out/app": [("/tmp/app", "added")],
}


@needs_busybox
def test_working_directory_that_an_image_lacks_is_made_in_the_container(box, store, tmp_path):
    root = tmp_path / "lacks"
    shutil.copytree(box.unpack()[0], root, symlinks=True)
    (root / "tmp").mkdir()
    (root / "way").symlink_to("data")
    (root / "out").symlink_to("../../../../../../../../tmp")
    show = ["sh", "-c", "pwd; stat -c '%u:%g %a' ."]
    before = os.umask(0o077)
    try:
        for directory, made in LACKING.items():
            defaults = Defaults(env={"PATH": "/bin"}, working_dir=directory, user="5:6")
            image = Image.from_directory(root, "lacks:1", store=store, defaults=defaults)
            where = "/" + "/".join(os.path.normpath("/" + directory).strip("/").split("/"))
            real = where.replace("/way", "/data").replace("/out", "/tmp")
            with Container(image.rootfs()) as c:
                told = [c.run(show, text=True, check=True).stdout]
                changes = [(change.path, change.kind) for change in c.changes()]
            told.append(run(show, rootfs=image.rootfs(), text=True, check=True).stdout)
            told.append(image.run(show, text=True, check=True).stdout)
            assert (directory, [f"{real}\n0:0 755\n"] * 3, made) == (directory, told, changes)
    finally:
        os.umask(before)
    assert not os.path.exists("/tmp/app")
    assert not (root / "srv").exists()


@needs_busybox
def test_working_directory_that_cannot_be_is_an_error(box, store, tmp_path):
    root = tmp_path / "bad"
    shutil.copytree(box.unpack()[0], root, symlinks=True)
    (root / "nowhere").symlink_to("missing")
    (root / "round").symlink_to("round")
    (root / "magic").symlink_to("/proc/self/fd/3")
    accepted = []
    for directory in ("/data/old", "/data/old/below", "/nowhere/app", "/round/app", "/magic/x"):
        image = Image.from_directory(root, store=store, defaults=Defaults(env={"PATH": "/bin"}, working_dir=directory))
        try:
            with Container(image.rootfs()):
                accepted.append(directory)
        except SetupError:
            continue
    assert [] == accepted


@needs_busybox
def test_ids_of_an_image_get_the_groups_that_its_files_give_them(configured, store):
    show = ["sh", "-c", 'echo "$(id -u) $(id -g) $(id -G)"']
    groups = {"70": "70 71 71 72\n", "70:9": "70 9 9\n", "99": "99 0 0\n", "0": "0 0 0\n", "": "0 0 0\n"}
    for user, expected in groups.items():
        image = Image.from_directory(configured.unpack()[0], "ids:1", store=store, defaults=Defaults(user=user))
        with Container(image.rootfs()) as c:
            told = [c.run(show, text=True, check=True).stdout]
        told.append(run(show, rootfs=image.rootfs(), text=True, check=True).stdout)
        told.append(image.run(show, text=True, check=True).stdout)
        assert (user, [expected] * 3) == (user, told)


@needs_busybox
def test_user_that_an_image_does_not_know_is_an_error(configured, store):
    image = Image.from_directory(configured.unpack()[0], "who:1", store=store, defaults=Defaults(user="nobody-knows"))
    for go in (lambda: run(["id"], rootfs=image.rootfs()), lambda: image.run(["id"])):
        with pytest.raises(SpecError, match="the container's /etc/passwd has no 'nobody-knows'"):
            go()


@needs_busybox
def test_environment_of_an_image_decides_where_programs_are(box, store, tmp_path):
    root = tmp_path / "elsewhere"
    (root / "opt").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "opt/sh")
    image = Image.from_directory(root, store=store, defaults=Defaults(env={"PATH": "/opt"}))
    assert "/opt\n" == run(["sh", "-c", "echo $PATH"], rootfs=image.rootfs(), text=True, check=True).stdout
    with pytest.raises(SetupError, match="execve"):
        run(["sh"], rootfs=image.rootfs(), env={"PATH": "/bin"})
