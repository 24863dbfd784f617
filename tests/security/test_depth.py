"""Trees that are deeper than any path and any stack: each walk succeeds with few open descriptors."""

import errno
import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager, suppress

import pytest
from image_archives import archive, directory, hardlink, member, unpack
from image_samples import add_image

from containerkit import Container, Mount, RootFS, SetupError, SpecError
from containerkit._linux.tree_walk import DIRECTORY, Trail, chunks, remove, walk
from containerkit.archive.extract import Extraction
from containerkit.container.changes import changes
from containerkit.errors import ImageError
from containerkit.image import Image, Store, commit
from containerkit.image.build.words import expand
from containerkit.image.digest import Digest
from containerkit.image.document import encode

FRAMES = 400
"""The recursion limit during a test. By default it is 1,000, but a path's cost grows with the square of its length."""
DEPTH = FRAMES + 10
DEEPER = 1010  # than a recursion of other interpreters, which are started with their own limit
DIG = """
import os
os.chdir("/tmp")
for _ in range({depth}):
    os.mkdir("d")
    os.chdir("d")
open("end", "w").write("deep")
"""
FIND = """
import os
os.chdir("{start}")
depth = 0
while os.path.isdir("d"):
    os.chdir("d")
    depth += 1
print(depth, open("end").read())
"""


@pytest.fixture(autouse=True)
def few_descriptors():
    """Set the limit of a shell, with some descriptors in use: a descriptor for each level would not be possible."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(autouse=True)
def few_frames():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(FRAMES)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture(autouse=True)
def nothing_deep(tmp_path):
    """Remove it here in any case, because pytest's own removal recurses."""
    yield
    for name in os.listdir(tmp_path):
        clean(tmp_path / name)


@contextmanager
def opened(path):
    descriptor = os.open(path, DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def dig(path, depth=DEPTH, *, content=b"deep"):
    with opened(path) as root, Trail(root) as trail:
        for _ in range(depth):
            os.mkdir("d", dir_fd=trail.fd)
            trail.enter(b"d")
        descriptor = os.open("end", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=trail.fd)
        os.write(descriptor, content)
        os.close(descriptor)


def depth_of(path):
    with opened(path) as root:
        return max(len(trail.names) for trail, _, _ in walk(root))


def clean(path):
    with opened(path.parent) as above:
        remove(os.fsencode(path.name), above)


@pytest.fixture
def deep(tmp_path):
    (tmp_path / "deep").mkdir()
    dig(tmp_path / "deep")
    return tmp_path / "deep"


@pytest.fixture
def deeper(tmp_path):
    (tmp_path / "deeper").mkdir()
    dig(tmp_path / "deeper", DEEPER)
    return tmp_path / "deeper"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


# --- The walk itself


def test_standard_library_fails_at_this_depth(deep):
    with pytest.raises((RecursionError, OSError)):  # otherwise the test proves nothing
        shutil.rmtree(deep)
    assert deep.exists()


@pytest.mark.usefixtures("nothing_left")
def test_walk_of_a_deep_tree_opens_few_descriptors(deep):
    with opened(deep) as root:
        most = max(len(os.listdir("/proc/self/fd")) for _ in walk(root))
        before = len(os.listdir("/proc/self/fd"))
    assert most <= before + 20
    assert depth_of(deep) == DEPTH


@pytest.mark.usefixtures("nothing_left")
def test_walk_does_not_follow_a_moved_directory(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere/secret").mkdir(parents=True)
    dig(tmp_path / "a", 40)
    with opened(tmp_path / "a") as root, Trail(root, most_open=4) as trail:
        for _ in range(40):
            trail.enter(b"d")
        os.rename(tmp_path / "a" / "/".join("d" * 20), tmp_path / "elsewhere/secret/d")
        with pytest.raises(OSError, match="moved") as caught:
            for _ in range(40):
                trail.leave()
        assert (errno.ESTALE, 20) == (caught.value.errno, len(trail.names) + 1)


@pytest.mark.usefixtures("nothing_left")
def test_walk_returns_by_names_if_the_path_is_too_long_for_the_kernel(tmp_path):
    names = [f"{number:0200}".encode() for number in range(60)]
    (tmp_path / "a").mkdir()
    kept: list[int] = []
    with opened(tmp_path / "a") as root, Trail(root, kept, most_open=2, by_name=True) as trail:
        for name in names:
            os.mkdir(name, dir_fd=trail.fd)
            trail.enter(name)
            assert len(kept) <= 2
        for name in reversed(names):
            assert (name, [name]) == (trail.leave(), [os.fsencode(entry) for entry in os.listdir(trail.fd)])
            assert len(kept) <= 2
        assert ([], root) == (kept, trail.fd)


@pytest.mark.usefixtures("nothing_left")
def test_removal_does_not_follow_a_symlink(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("x")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/link").symlink_to(tmp_path / "kept")
    with opened(tmp_path) as root:
        remove(b"gone", root)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["file"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
@pytest.mark.usefixtures("nothing_left")
def test_removal_reports_what_it_cannot_remove_unless_errors_are_ignored(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / "a/b"], check=True)
    try:
        (tmp_path / "a/c").write_text("x")
        with opened(tmp_path) as root:
            with pytest.raises(OSError, match="busy"):
                remove(b"a", root)
            remove(b"a", root, ignore_errors=True)
        assert os.listdir(tmp_path / "a") == ["b"]
    finally:
        subprocess.run(["umount", tmp_path / "a/b"], check=True)


@pytest.mark.parametrize("length", [1, 3999, 4000, 4001, 40_000])
def test_paths_are_split_into_pieces_that_the_kernel_accepts(length):
    path = (b"ab/" * (length // 3 + 1))[:length].strip(b"/") or b"a"
    pieces = list(chunks(path))
    assert b"/".join(pieces) == path
    assert max(map(len, pieces)) <= 4000


# --- Containers


@pytest.mark.usefixtures("interpreter", "nothing_left")
def test_changes_get_and_put_of_a_deep_tree(tmp_path, deeper):
    with Container(mounts=[Mount.tmpfs("/data")]) as box:
        box.run(["python3", "-c", DIG.format(depth=DEEPER)], check=True)
        found = [change for change in box.changes() if change.path.startswith("/tmp/")]
        assert (DEEPER + 1, "added") == (len(found), found[-1].kind)
        assert found[-1].path == "/tmp/" + "d/" * DEEPER + "end"
        assert box.files.get("/tmp/d", tmp_path / "out") == ()
        assert depth_of(tmp_path / "out") == DEEPER - 1
        box.files.put(deeper, "/data/in")
        done = box.run(["python3", "-c", FIND.format(start="/data/in")], text=True, check=True)
        assert done.stdout == f"{DEEPER} deep\n"


@pytest.mark.usefixtures("nothing_left")
def test_changes_of_many_layers_open_few_descriptors(tmp_path):
    names = ["upper", *(f"lower{number}" for number in range(60))]
    for name in names:
        (tmp_path / name).mkdir()
        dig(tmp_path / name, 100)
    descriptors = [os.open(tmp_path / name, DIRECTORY) for name in names]
    try:
        most = 0
        for change in changes(descriptors[0], tuple(descriptors[1:])):
            most = max(most, len(os.listdir("/proc/self/fd")))
            assert change.path.endswith("/end")
        assert most <= len(os.listdir("/proc/self/fd")) + 130
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.mark.usefixtures("nothing_left")
def test_get_stays_inside_while_the_container_moves_the_tree(tmp_path):
    with Container() as box:
        box.run(["python3", "-c", DIG.format(depth=100)], check=True)
        mover = "cd /tmp; mkdir x; while :; do mv d/d/d x/ && mv x/d d/d/; done 2>/dev/null"
        with box.popen(["sh", "-c", mover]) as moving:
            for number in range(20):
                with suppress(SetupError, FileNotFoundError):  # it may have been moved away in the meantime
                    box.files.get("/tmp/d", tmp_path / f"out{number}")
                assert not (tmp_path / f"out{number}/x").exists()
            moving.kill()
            moving.wait()


@pytest.mark.several_ids
@pytest.mark.usefixtures("nothing_left")
def test_put_follows_the_symlinks_that_the_container_has(tmp_path):
    (tmp_path / "tree/bin/deeper").mkdir(parents=True)
    (tmp_path / "tree/bin/deeper/tool").write_text("x")
    dig(tmp_path / "tree/bin", 30)
    with Container() as box:
        assert box.run(["readlink", "/bin"]).stdout.strip() == b"usr/bin"
        box.files.put(tmp_path / "tree", "/")
        assert box.files.read("/usr/bin/deeper/tool") == b"x"
        assert box.files.read("/usr/bin/" + "d/" * 30 + "end") == b"deep"
        assert box.run(["readlink", "/bin"]).stdout.strip() == b"usr/bin"


# --- Images


def deep_archive(depth, *more, name="d"):
    path = f"{name}/" * depth
    above = [directory(path[: at * len(name) + at - 1]) for at in range(1, depth + 1)]
    return archive(*above, member(f"{path}end"), *more)


def imported(store, tmp_path, content, name=None):
    (tmp_path / "root.tar").write_bytes(content)
    return Image.import_tar(tmp_path / "root.tar", name, store=store)


@pytest.mark.several_ids
@pytest.mark.parametrize("name", ["d", "directory"])  # the second one makes a path that no single call can name
def test_image_of_a_deep_layer(tmp_path, store, name):
    depth = DEPTH
    assert (name == "d") == (len(f"{name}/") * depth < 4096)
    image = imported(store, tmp_path, deep_archive(depth, name=name))
    image.export(tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert max(name.count("/") for name in tar.getnames()) == depth
    squashed = image.squash()
    assert squashed.diff(image) == []
    assert image.diff(imported(store, tmp_path, archive(directory("d")))) != []
    (tmp_path / "into").mkdir()
    image.unpack_into(tmp_path / "into")
    assert depth_of(tmp_path / "into") == depth
    with Container(image.rootfs()) as box:
        assert box.files.exists(f"/{name}/{name}/{name}")
    store.collect()


@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs Debian's package erofs-utils")
def test_image_of_a_deep_layer_is_flattened(tmp_path, store):
    imported(store, tmp_path, deep_archive(DEPTH)).flatten(tmp_path / "root.erofs")
    assert (tmp_path / "root.erofs").stat().st_size > DEPTH * 32


def test_image_of_several_deep_layers_is_merged(tmp_path, store):
    trees = [deep_archive(DEPTH), deep_archive(DEPTH, member("d/" * DEPTH + "two")), archive(member("d/top"))]
    # With so many layers neighbours are merged, whatever it costs.
    trees += [archive(member(f"more/{number}")) for number in range(60)]
    manifest = add_image(store, "localhost/merged:1", *trees)
    image = Image.open("localhost/merged:1", store=store)
    lowers = image.rootfs().lowers
    assert manifest == image.manifest
    assert len(lowers) < len(trees)
    assert max(map(depth_of, lowers)) == DEPTH
    with Container(image.rootfs()) as box:
        assert box.files.exists("/d/top")
        assert box.files.exists("/more/59")
    image.export(tmp_path / "out.tar")


def test_layer_that_links_to_a_file_deep_below(tmp_path, store):
    deepest = "d/" * DEPTH + "end"
    add_image(store, "localhost/linked:1", deep_archive(DEPTH), archive(hardlink("near", deepest)))
    found = Image.open("localhost/linked:1", store=store).unpack()
    assert os.stat(f"{found[0]}/near").st_nlink == 2


@pytest.mark.usefixtures("nothing_left")
def test_layer_deletes_a_deep_tree(tmp_path, store):
    add_image(store, "localhost/deleted:1", deep_archive(DEPTH), archive(member(".wh.d"), member("kept")))
    (tmp_path / "into").mkdir()
    Image.open("localhost/deleted:1", store=store).unpack_into(tmp_path / "into")
    assert os.listdir(tmp_path / "into") == ["kept"]


@pytest.mark.several_ids
def test_opaque_mark_in_a_deep_tree_of_the_same_layer(tmp_path):
    content = deep_archive(DEPTH, member(".wh..wh..opq"))
    (tmp_path / "into").mkdir()
    unpack(content, tmp_path / "into", Extraction(whiteouts="apply"))
    assert depth_of(tmp_path / "into") == DEPTH


@pytest.mark.several_ids
@pytest.mark.usefixtures("nothing_left")
def test_commit_of_a_deep_tree(tmp_path, store, deeper):
    with Container(RootFS.dir(deeper)) as box:
        image = commit(box, store=store)
    (tmp_path / "into").mkdir()
    image.unpack_into(tmp_path / "into")
    assert depth_of(tmp_path / "into") >= DEEPER


@pytest.mark.parametrize("line", ["COPY . /here", "COPY d /here", "COPY --exclude=x . /here"])
def test_build_copies_a_deep_context(deep, store, line):
    image = Image.build(deep, text=f"FROM scratch\n{line}\n", store=store)
    assert depth_of(image.unpack()[0]) in (DEPTH, DEPTH + 1)


def test_build_copies_from_a_deep_stage(deep, store):
    text = "FROM scratch AS one\nCOPY . /a\nFROM scratch\nCOPY --from=one /a /b\n"
    assert depth_of(Image.build(deep, text=text, store=store).unpack()[0]) == DEPTH + 1


def test_build_of_a_deep_context_with_exceptions(tmp_path, store):
    (tmp_path / "context").mkdir()
    dig(tmp_path / "context", 300)
    (tmp_path / "context/.dockerignore").write_text("d\n!**/end\n")
    image = Image.build(tmp_path / "context", text="FROM scratch\nCOPY . /\n", store=store)
    assert depth_of(image.unpack()[0]) == 300


def test_overlong_name_is_refused(tmp_path, store):
    with pytest.raises(ImageError, match="the maximum is 32768"):
        imported(store, tmp_path, archive(member("d/" * 20_000))).unpack()


# --- Other things that nest


def test_dockerfile_of_a_thousand_dependent_stages(tmp_path, store):
    (tmp_path / "file").write_text("x")
    lines = ["FROM scratch AS s0", "COPY file /file"]
    for number in range(1, 1000):
        lines += [f"FROM s{number - 1} AS s{number}"] if number % 2 else [
            f"FROM scratch AS s{number}", f"COPY --from=s{number - 1} /file /file"]  # fmt: skip
    image = Image.build(tmp_path, text="\n".join(lines), store=store)
    assert os.listdir(image.unpack()[0]) == ["file"]


def test_variables_that_nest_too_deeply_are_refused():
    assert expand("${a:-" * 20 + "x" + "}" * 20, {}) == "x"
    with pytest.raises(SpecError, match="nested"):
        expand("${a:-" * 5000 + "x" + "}" * 5000, {})


def test_build_of_a_dockerfile_that_nests_too_deeply_names_the_line(tmp_path, store):
    with pytest.raises(SpecError, match="line 2"):
        Image.build(tmp_path, text="FROM scratch\nENV A=" + "${a:-" * 900 + "x" + "}" * 900, store=store)


@pytest.mark.usefixtures("nothing_left")
def test_archive_of_nested_indexes_is_loaded_or_refused(tmp_path, store):
    members, inner = {}, {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "", "size": 0}
    raw = encode({"schemaVersion": 2, "mediaType": inner["mediaType"], "manifests": []})
    for _ in range(1500):
        digest = Digest.of(raw)
        members[f"blobs/sha256/{digest.encoded}"] = raw
        entry = {**inner, "digest": str(digest), "size": len(raw)}
        raw = encode({"schemaVersion": 2, "mediaType": inner["mediaType"], "manifests": [entry]})
    path = tmp_path / "nested.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": raw, **members}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ImageError):
        Image.load(path, store=store)
    assert store.verify() == ()


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
def test_archive_whose_json_nests_too_deeply_is_refused(tmp_path, store, name):
    path = tmp_path / "nested.tar"
    content = b"[" * 200_000 + b"]" * 200_000
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ImageError, match="JSON"):
        Image.load(path, store=store)
