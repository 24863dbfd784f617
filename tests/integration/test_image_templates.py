"""Templates: roots made from the host's files, and from distributions if the network allows it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from image_registry import Quiet, server
from image_samples import add_image

import containerkit
from containerkit import Container, RootFS
from containerkit.errors import ContainerError, ImageError, SpecError, UnsupportedError
from containerkit.image import Defaults, Image, Store
from containerkit.image.claimed import release
from containerkit.image.templates import Template, make_template, template_names
from containerkit.image.templates.elf import closure

pytest.importorskip("elftools")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="making roots with owners needs root")
needs_busybox = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs Debian's package busybox-static")


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_elf_closure_is_what_the_loader_finds():
    for program in map(shutil.which, ("ls", "tar", "openssl")):
        if program is None:
            continue
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.split()
        expected = {os.path.realpath(word) for word in told if word.startswith("/")}
        assert expected == {os.path.realpath(path) for path in closure([program])}


def test_elf_closure_refuses_what_is_no_program(tmp_path):
    (tmp_path / "text").write_text("no program")
    with pytest.raises(ImageError, match="not a readable program"):
        closure([str(tmp_path / "text")])


@needs_busybox
def test_template_busybox_runs(store):
    image = make_template("busybox", store=store)
    with Container(image.rootfs()) as c:
        assert "BusyBox" in c.run(["sh", "-c", "busybox | head -1"], text=True, check=True).stdout
        assert "root\n" == c.run(["id", "-un"], text=True, check=True).stdout
    assert image.digest == make_template("busybox", store=store).digest
    assert ("/bin/sh",) == image.defaults.command


@needs_busybox
def test_template_is_described_like_any_root(store):
    with Container(RootFS.template("busybox", store=str(store.root), size="8M")) as c:
        assert 0 == c.run(["touch", "/x"]).returncode


def test_template_host_holds_programs_and_what_they_need(store):
    image = make_template("host", store=store, programs=["bash", "ls", "tar"], files=["/etc/debian_version"])
    with Container(image.rootfs()) as c:
        assert "6\n" == c.run(["bash", "-c", "echo $((2*3)); tar --version > /dev/null"], text=True, check=True).stdout
        assert c.run(["ls", "/etc/debian_version"]).returncode == 0
    assert image.size_bytes < 60 << 20


@pytest.mark.slow
def test_template_host_brings_python_with_its_library(store):
    image = make_template("host", store=store, programs=[sys.executable])
    code = "import json, sqlite3, ssl, hashlib; print(json.dumps({'a': sqlite3.sqlite_version > '3', 'b': ssl.HAS_TLSv1_3}))"
    with Container(image.rootfs()) as c:
        done = c.run([os.path.realpath(sys.executable), "-c", code], text=True)
    assert ('{"a": true, "b": true}\n', "") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        {"programs": ["no-such-program"]},
        {"programs": "bash"},
        {"files": ["relative"]},
        {"files": ["/no/such"]},
        {"colour": "red"},
    ],
)
def test_template_host_refuses_what_is_not_there(store, arguments):
    with pytest.raises(SpecError):
        make_template("host", store=store, **arguments)


def test_template_that_is_unknown_names_those_there_are(store):
    with pytest.raises(SpecError, match="alpine, busybox, debian, host, image, ubuntu"):
        make_template("plan9", store=store)
    assert ["alpine", "busybox", "debian", "host", "image", "ubuntu"] == template_names()


def test_template_image_is_an_image(store):
    add_image(store, "a:1", {"x": b"1"})
    assert Image.open("a:1", store=store) == make_template("image", store=store, reference="a:1", pull="never")
    with pytest.raises(SpecError, match="reference"):
        make_template("image", store=store)


def _make_plugin(root, *, word="hello"):
    (root / "word").write_text(word)
    return Defaults(command=("/word",))


PLUGIN = Template(make=_make_plugin)


def test_template_of_another_package_is_found_by_its_entry_point(store, monkeypatch, tmp_path):
    entry = EntryPoint("mine", f"{__name__}:PLUGIN", "containerkit.templates")
    monkeypatch.setattr(EntryPoint, "load", lambda _: PLUGIN)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [entry])
    image = make_template("mine", store=store, word="plugged")
    (tmp_path / "t").mkdir()
    image.unpack_into(tmp_path / "t")
    assert "plugged" == (tmp_path / "t/word").read_text()
    with pytest.raises(SpecError, match="its arguments are word"):
        make_template("mine", store=store, words=1)


def test_template_alpine_takes_the_small_root_of_a_release(store, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("etc/alpine-release")
        info.size = 5
        tar.addfile(info, io.BytesIO(b"3.20\n"))
    archive = buffer.getvalue()
    listing = (
        "---\n-\n  flavor: alpine-virt\n  file: x.iso\n-\n  flavor: alpine-minirootfs\n  file: alpine-minirootfs-1.tar.gz\n"
        f"  sha256: {hashlib.sha256(archive).hexdigest()}\n"
    )

    class Mirror(Quiet):
        def do_GET(self):
            self.seen.append(self.path)
            self.reply(200, listing.encode() if self.path.endswith(".yaml") else archive)

    with server(Mirror) as host:
        image = make_template("alpine", store=store, branch="v3.20", mirror=f"http://{host}/alpine")
        assert [path.rpartition("/")[2] for path in Mirror.seen] == [
            "latest-releases.yaml",
            "alpine-minirootfs-1.tar.gz",
        ]
        assert (
            make_template("alpine", store=store, branch="v3.20", mirror=f"http://{host}/alpine").digest == image.digest
        )
    assert b"3.20\n" == Path(image.unpack()[0], "etc/alpine-release").read_bytes()
    with pytest.raises(UnsupportedError, match="apk"):
        make_template("alpine", store=store, packages=["curl"])
    with pytest.raises(SpecError, match="well-formed"):
        make_template("alpine", store=store, branch="../x")


def test_template_debian_names_what_is_missing(store, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="install mmdebstrap"):
        make_template("debian", store=store)
    for wrong in ({"suite": "--x"}, {"variant": "huge"}, {"packages": ["a;b"]}, {"mirror": "--hook"}):
        with pytest.raises(SpecError):
            make_template("debian", store=store, **wrong)


NEEDS_MMDEBSTRAP = pytest.mark.skipif(
    shutil.which("mmdebstrap") is None, reason="needs Debian's package mmdebstrap"
)  # fmt: skip
UNREACHABLE = re.compile(
    r"Temporary failure|Could not (resolve|connect|handshake)|Unable to connect|Network is unreachable|timed out|Connection refused"
)


def skip_if_unreachable(error):
    """Skip only if the network is missing. Any other failure is ours."""
    if UNREACHABLE.search(str(error)):
        pytest.skip(f"Debian's archive can't be reached: {error}")


@pytest.mark.slow
@pytest.mark.timeout(300)
@NEEDS_MMDEBSTRAP
def test_template_debian_runs(store):
    try:
        image = make_template("debian", store=store, suite="bookworm", variant="minbase")
    except ContainerError as error:
        skip_if_unreachable(error)
        raise
    with Container(image.rootfs()) as c:
        done = c.run(
            ["/bin/bash", "-c", ". /etc/os-release; echo $VERSION_CODENAME; dpkg -s bash > /dev/null"],
            text=True,
            check=True,
        )
    assert "bookworm\n" == done.stdout


def as_user(home, *words, ranges):
    """Run the command line as an unprivileged user with these ranges in /etc/subuid and /etc/subgid."""
    grant = home / "grant"
    grant.write_text(ranges)
    grant.chmod(0o644)
    path = os.pathsep.join([str(Path(containerkit.__file__).parents[1]), *filter(None, sys.path)])
    cover = 'mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid && exec "$@"'
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", cover, grant, *user, sys.executable, "-B", "-m", "containerkit", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": str(home), "USER": "nobody"},
    )


@pytest.fixture
def home():
    """A directory that belongs to the user and is accessible to it."""
    directory = Path(tempfile.mkdtemp(prefix="containerkit-templates-"))
    os.chown(directory, 65534, 65534)
    yield directory
    shutil.rmtree(directory)


@NEEDS_MMDEBSTRAP
@pytest.mark.skipif(shutil.which("fakechroot") is not None, reason="with fakechroot mmdebstrap needs no ids")
def test_template_debian_of_a_user_without_ids_names_what_is_missing(home):
    done = as_user(home, "template", "debian", ranges="")
    assert 125 == done.returncode
    assert (
        "Operation not permitted (hint: for an unprivileged user it needs id ranges: add a line such as" in done.stderr
    )
    assert "line 4" not in done.stderr  # of the program's own


@pytest.mark.slow
@pytest.mark.timeout(300)
@NEEDS_MMDEBSTRAP
@pytest.mark.skipif(shutil.which("newuidmap") is None, reason="needs newuidmap (package uidmap)")
def test_template_debian_of_a_user_with_ids_keeps_owners(home):
    ranges = "nobody:712000000:65536\n"
    done = as_user(home, "template", "debian", "--suite", "bookworm", "--tag", "mine:1", ranges=ranges)
    if done.returncode:
        skip_if_unreachable(done.stderr)
    assert (0, "") == (done.returncode, done.stderr)
    words = ["run", "--image", "mine:1", "--", "stat", "-c", "%u:%g", "/etc/shadow", "/var/mail", "/bin/sh"]
    shown = as_user(home, *words, ranges=ranges)
    assert ("", "0:42\n0:8\n0:0\n") == (shown.stderr, shown.stdout)
    assert [] == [path for path in (home / ".local/share/containerkit/images/build").iterdir() if path.is_dir()]
