"""Without free file descriptors each operation fails with an error that says so, and leaves nothing open."""

import os
import resource
from contextlib import contextmanager

import pytest
from image_samples import add_image

from containerkit import Container, SetupError, run
from containerkit.errors import ContainerError
from containerkit.image import Image, Store

MOST = 256


@contextmanager
def free_descriptors(count):
    """Leave exactly this number of descriptors free."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MOST, before[1]))
    held = []
    try:
        while True:
            try:
                held.append(os.dup(0))
            except OSError:
                break
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def started(_):
    with Container():
        pass


def read_along(at):
    with at.box.popen(["true"], stdout=-1) as process:
        process.wait()


def loaded(at):
    Image.load(at.path / "saved.tar", store=at.store)


class Place:
    def __init__(self, path, box):
        self.path, self.box = path, box
        self.store = Store(path / "store")
        add_image(self.store, "localhost/x:1", {"f": b"x"}, {"g": b"y"})
        self.image = Image.open("localhost/x:1", store=self.store)
        self.image.save(path / "saved.tar")
        self.image.export(path / "root.tar")
        (path / "context").mkdir()
        (path / "context/f").write_text("x")
        self.count = 0

    def fresh(self):
        self.count += 1
        return self.path / f"out{self.count}"

    def directory(self):
        (made := self.fresh()).mkdir()
        return made


ASKED = {
    "run": lambda _: run(["true"]),
    "Container.start": started,
    "Container.run": lambda at: at.box.run(["true"]),
    "Container.popen": read_along,
    "Container.changes": lambda at: list(at.box.changes()),
    "files.read": lambda at: at.box.files.read("/etc/passwd"),
    "files.write": lambda at: at.box.files.write("/tmp/x", b"x"),
    "files.listdir": lambda at: at.box.files.listdir("/"),
    "files.get": lambda at: at.box.files.get("/etc/ssl", at.fresh()),
    "files.put": lambda at: at.box.files.put(at.path / "context", "/tmp/in"),
    "Image.open": lambda at: Image.open("localhost/x:1", store=at.store),
    "Image.list": lambda at: Image.list(store=at.store),
    "Image.tag": lambda at: at.image.tag("localhost/y:1"),
    "Image.unpack_into": lambda at: at.image.unpack_into(at.directory()),
    "Image.export": lambda at: at.image.export(at.fresh()),
    "Image.squash": lambda at: at.image.squash(),
    "Image.save": lambda at: at.image.save(at.fresh()),
    "Image.load": loaded,
    "Image.import_tar": lambda at: Image.import_tar(at.path / "root.tar", store=at.store),
    "Image.from_directory": lambda at: Image.from_directory(at.path / "context", store=at.store),
    "Image.diff": lambda at: at.image.diff(at.image),
    "Image.build": lambda at: Image.build(
        at.path / "context", text=f"FROM scratch\nCOPY f /f{at.count}\n", store=at.store
    ),
    "Store": lambda at: Store(at.path / "store"),
    "Store.collect": lambda at: at.store.collect(),
    "Store.verify": lambda at: at.store.verify(),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with Container() as box:
        box.run(["true"])
        yield Place(tmp_path_factory.mktemp("place"), box)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("asked", ASKED)
def test_lack_of_descriptors_is_reported(place, asked):
    ASKED[asked](place)  # creates the objects that a process creates once
    told = []
    for count in range(14):
        try:
            with free_descriptors(count):
                ASKED[asked](place)
        except ContainerError as error:
            told.append(error)
    assert told
    assert [error for error in told if not isinstance(error, SetupError) or "ulimit" not in error.hint] == []
    ASKED[asked](place)
    assert place.store.verify() == ()
