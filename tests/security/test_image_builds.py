"""Builds with a manipulated cache, context, base or store, and builds that are killed at any moment."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_samples import add_image

import containerkit
from containerkit.image import Image, Store
from containerkit.image.store.locks import UNPLACED

pytestmark = pytest.mark.usefixtures("nothing_left")

TEXT = "FROM localhost/base:1\nCOPY . /copied\nCOPY file /single\n"


class Place:
    """A context, a base and a store. :meth:`build` returns the origin of the last step, and the content of the image."""

    def __init__(self, path):
        self.store = Store(path / "store")
        self.context = path / "context"
        self.context.mkdir()
        (self.context / "file").write_bytes(b"good")
        (self.context / "link").symlink_to("file")
        add_image(self.store, "localhost/base:1", {"base": b"one"})
        self.path = path

    def build(self, text=TEXT, **options):
        seen = []
        options["progress"] = lambda event: seen.append(event.status)
        image = Image.build(self.context, text=text, store=self.store, **options)
        root = self.path / "root"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        image.unpack_into(root)
        return [status for status in seen if status != "running"], root

    def entries(self):
        return sorted((self.store.root / "build/cache").glob("*.json"))


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    made.build()
    return made


def test_same_build_comes_from_the_cache(place):
    """Otherwise the following tests would prove nothing."""
    assert place.build()[0] == ["exists", "exists"]


# --- The context


def quietly(change):
    """Change a file but keep its name, size and times."""

    def changed(context):
        before = os.lstat(context / "file"), os.stat(context)
        change(context)
        for path, state in zip((context / "file", context), before, strict=True):
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns), follow_symlinks=False)
        assert os.lstat(context / "file").st_mtime_ns == before[0].st_mtime_ns

    return changed


def in_place(context):
    with (context / "file").open("r+b") as file:
        file.write(b"evil")


def by_rename(context):
    (context / "other").write_bytes(b"evil")
    (context / "other").rename(context / "file")


def link(context):
    (context / "link").unlink()
    (context / "link").symlink_to("fild")


def mode(context):
    (context / "file").chmod(0o4755)


@pytest.mark.parametrize("change", [in_place, by_rename, link, mode])
def test_changed_context_of_the_same_size_and_time_misses_the_cache(place, change):
    quietly(change)(place.context)
    statuses, root = place.build()
    assert statuses[0] == "done"
    assert (root / "copied/file").read_bytes() == (place.context / "file").read_bytes()
    assert os.readlink(root / "copied/link") == os.readlink(place.context / "link")
    assert (root / "single").stat().st_mode == (place.context / "file").stat().st_mode


def test_ignored_file_that_is_no_longer_ignored_misses_the_cache(place):
    (place.context / ".dockerignore").write_text("link\n.dockerignore\n")
    assert place.build()[0][0] == "done"
    (place.context / ".dockerignore").write_text("lonk\n.dockerignore\n")
    statuses, root = place.build()
    assert (statuses[0], (root / "copied/link").is_symlink()) == ("exists", True)  # as it was at first


# --- The base


def test_changed_base_under_the_same_name_misses_the_cache(place):
    add_image(place.store, "localhost/base:1", {"base": b"two"})
    statuses, root = place.build()
    assert (statuses, (root / "base").read_bytes()) == (["done", "done"], b"two")


def test_changed_stage_misses_the_cache_of_what_copies_from_it(place):
    text = "FROM scratch AS one\nCOPY file /f\nFROM scratch\nCOPY --from=one /f /g\n"
    place.build(text)
    assert place.build(text)[0] == ["exists", "exists"]
    quietly(in_place)(place.context)
    statuses, root = place.build(text)
    assert (statuses, (root / "g").read_bytes()) == (["done", "done"], b"evil")


# --- The cache itself


def blob_of(place, entry):
    digest = json.loads(entry.read_bytes())["layer"]["digest"]
    return place.store.root / "blobs" / digest.replace(":", "/")


def alter(path):
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("number", [0, 1])
def test_altered_blob_of_a_cached_layer_is_not_used(place, number):
    alter(blob_of(place, place.entries()[number]))
    assert len(place.store.verify()) == 1
    statuses, root = place.build()
    assert sorted(statuses) == ["done", "exists"]
    assert (root / "single").read_bytes() == b"good"
    assert place.store.verify() == ()


def test_touched_but_unchanged_blob_is_used(place):
    for entry in place.entries():
        blob = blob_of(place, entry)
        shutil.copy2(blob, f"{blob}.new")
        os.rename(f"{blob}.new", blob)
    assert place.build()[0] == ["exists", "exists"]


def test_entry_of_a_copied_store_is_verified_before_it_is_used(place):
    shutil.copytree(place.store.root, place.path / "copy", symlinks=True)
    place.store = Store(place.path / "copy")
    alter(blob_of(place, place.entries()[0]))
    statuses, root = place.build()
    assert sorted(statuses) == ["done", "exists"]
    assert (root / "single").read_bytes() == b"good"


def test_entry_that_names_another_layer_is_not_used(place):
    """The blob is intact, but does not match the diff id of the entry."""
    add_image(place.store, "localhost/evil:1", {"single": b"evil"})
    evil = place.store.manifest(place.store.find("localhost/evil:1")).layers[0]
    for entry in place.entries():
        content = json.loads(entry.read_bytes())
        entry.write_text(json.dumps(content | {"layer": evil.to_json(), "seen": ""}))
    statuses, root = place.build()
    assert statuses == ["done", "done"]
    assert (root / "single").read_bytes() == b"good"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "{" * 5000, "[" * 50_000, '{"created":7}', '{"created":"x","layer":7}', "\x00",
     '{"created":"x","layer":{"mediaType":"x","digest":"sha256:../../../../etc/passwd","size":1},"diffID":"sha256:x"}'],
)  # fmt: skip
def test_malformed_entry_is_not_used(place, content):
    for entry in place.entries():
        entry.write_text(content)
    statuses, root = place.build()
    assert (statuses, (root / "single").read_bytes()) == (["done", "done"], b"good")


# --- kill -9

WORKER = """
import os, sys
from containerkit.image import Image, Store
while sys.stdin.readline():
    pid = os.fork()
    if pid == 0:
        store = Store(sys.argv[1])
        print("go", flush=True)
        number = 0
        while True:
            number += 1
            {work}
    sys.stdin.readline()
    os.kill(pid, 9)
    print(os.waitpid(pid, 0)[1], flush=True)
"""
"""Forks for each line, because the import takes longer than the work that is killed, and kills the fork at the next one."""
WORKS = {
    "build": 'Image.build(sys.argv[2], text=f"FROM localhost/base:1\\nCOPY . /a\\nENV A={number}\\nCOPY . /b\\n", tag="localhost/built:1", store=store)',
    "build without cache": 'Image.build(sys.argv[2], text="FROM localhost/base:1\\nCOPY . /a\\nWORKDIR /w\\n", cache=False, tag="localhost/built:1", store=store)',
    "load": "Image.load(sys.argv[3], store=store)",
    "import": 'Image.import_tar(sys.argv[4], "localhost/imported:1", store=store)',
    "squash": 'Image.open("localhost/base:1", store=store).squash("localhost/squashed:1")',
    "collect": "Image.import_tar(sys.argv[4], store=store); store.collect(unnamed=True, cache=True)",
}  # fmt: skip


def left(store):
    """Return unused files: everything in the store but blobs, unpacked layers, locks and the cache."""
    root = store.root
    found = [path for name in ("incoming", "leases", "trash") for path in (root / name).iterdir()]
    found += [path for name in ("layers", "build") for path in (root / name).glob(".new-*")]
    return found + [
        path
        for directory in (root, root / "build/cache")
        for path in directory.iterdir()
        if UNPLACED.fullmatch(path.name)
    ]


@pytest.mark.parametrize("work", WORKS)
def test_store_is_consistent_after_a_kill_at_any_moment(place, work):
    for number in range(30):
        (place.context / f"f{number}").write_bytes(os.urandom(20_000))
    base = Image.open("localhost/base:1", store=place.store)
    base.save(place.path / "saved.tar")
    large = {f"f{number}": os.urandom(50_000) for number in range(20)}
    add_image(place.store, "localhost/base:1", large, {"more": b"x"})
    Image.open("localhost/base:1", store=place.store).export(place.path / "root.tar")
    code = WORKER.format(work=WORKS[work]) if "{number}" not in WORKS[work] else WORKER.replace("{work}", WORKS[work])
    environment = os.environ | {"PYTHONPATH": str(Path(containerkit.__file__).parents[1])}
    argv = [
        sys.executable,
        "-c",
        code,
        place.store.root,
        place.context,
        place.path / "saved.tar",
        place.path / "root.tar",
    ]
    chance = random.Random(work)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(argv, **pipes, bufsize=1, text=True, env=environment) as workers:
        for _ in range(8):
            workers.stdin.write("begin\n")
            assert workers.stdout.readline() == "go\n"
            time.sleep(chance.uniform(0.0, 0.25))
            workers.stdin.write("end\n")
            status = int(workers.stdout.readline())
            assert status == signal.SIGKILL, "it worked, and went on working, until it was killed"
            assert place.store.verify() == ()
            statuses, root = place.build("FROM localhost/base:1\nCOPY . /again\n")
            assert len(statuses) == 1
            assert (root / "again/file").read_bytes() == b"good"
        workers.stdin.close()
    for path in left(place.store):
        if UNPLACED.fullmatch(path.name) or path.parent.name == "incoming":
            os.utime(path, (0, 0))  # as if a day had passed: a partial blob is kept that long, to be continued
    place.store.collect()
    assert left(place.store) == []
    assert place.store.verify() == ()


def test_old_replacement_file_is_swept(place):
    for directory in (place.store.root, place.store.root / "build/cache"):
        (directory / ".index.json.0123456789ab").write_text("x")
    place.store.collect()
    assert len(left(place.store)) == 2, "another process may be about to move it into place"
    for path in left(place.store):
        os.utime(path, (0, 0))
    assert place.store.collect().unfinished == 2
    assert left(place.store) == []
