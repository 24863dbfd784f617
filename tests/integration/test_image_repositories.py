"""ADD of repositories from git's own daemon and from a web server on the loopback interface."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from image_registry import free_port, wait_for

from containerkit.errors import ImageError, SpecError, UnsupportedError
from containerkit.image import Build, Store
from containerkit.image.build import build_dockerfile
from containerkit.image.build.repositories import Repository
from containerkit.image.claimed import release

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building with owners needs root"),
    pytest.mark.skipif(shutil.which("git") is None, reason="needs Debian's package git"),
]
WHEN = 1_600_000_000


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


def git(directory, *words, when=WHEN):
    who = {f"GIT_{role}_{what}": "x@y" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    dates = {f"GIT_{role}_DATE": f"{when} +0000" for role in ("AUTHOR", "COMMITTER")}
    environment = {"PATH": os.environ["PATH"], "HOME": "/", **who, **dates, "GIT_ALLOW_PROTOCOL": "file"}
    return subprocess.run(
        ["git", *words], cwd=directory, check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A bare repository with two commits, a tag, a branch and symlinks, below a served directory."""
    top = tmp_path_factory.mktemp("git")
    work = top / "work"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    (work / "docs/deep").mkdir(parents=True)
    (work / "docs/deep/page").write_text("page 1\n")
    (work / "run").write_text("#!/bin/sh\n")
    (work / "run").chmod(0o755)
    (work / "out").symlink_to("../../../../etc/passwd")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "one")
    git(work, "tag", "v1")
    (work / "docs/deep/page").write_text("page 2\n")
    git(work, "commit", "-q", "-a", "-m", "two", when=WHEN + 1000)
    git(work, "checkout", "-q", "-b", "topic/a")
    (work / "topic").write_text("topic\n")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "three", when=WHEN + 2000)
    git(work, "checkout", "-q", "main")
    git(top, "clone", "-q", "--bare", "work", "repo.git")
    git(top / "repo.git", "update-server-info")
    commits = {name: git(work, "rev-parse", name) for name in ("v1", "main", "topic/a")}
    return top, commits


@pytest.fixture
def daemon(served):
    port = free_port()
    command = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={served[0]}", "--export-all"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(port, process)
        yield f"git://127.0.0.1:{port}/repo.git"
        process.terminate()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Log nothing."""


@pytest.fixture
def web(served):
    handler = functools.partial(Quiet, directory=str(served[0]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/repo.git"
        server.shutdown()
        thread.join()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def built(store, line, **options):
    return build_dockerfile(None, text=f"FROM scratch\n{line}\n", store=store, **options)


def files(image):
    layers = image.unpack()
    found = {}
    for here, _, names in os.walk(layers[0]):
        for name in names:
            path = os.path.join(here, name)
            inside = os.path.relpath(path, layers[0])
            found[inside] = os.readlink(path) if os.path.islink(path) else Path(path).read_bytes()
    return found


MAIN = {"docs/deep/page": b"page 2\n", "run": b"#!/bin/sh\n", "out": "../../../../etc/passwd"}


@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("", MAIN),
        ("#main", MAIN),
        ("#v1", MAIN | {"docs/deep/page": b"page 1\n"}),
        ("#refs/tags/v1", MAIN | {"docs/deep/page": b"page 1\n"}),
        ("#topic/a", MAIN | {"topic": b"topic\n"}),
        ("#v1:docs", {"deep/page": b"page 1\n"}),
        ("#:docs/deep", {"page": b"page 2\n"}),
        ("#COMMIT", MAIN | {"docs/deep/page": b"page 1\n"}),
    ],
)
@pytest.mark.parametrize("how", ["daemon", "web"])
def test_repository_is_added_at_a_ref(request, served, store, fragment, expected, how):
    address = request.getfixturevalue(how) + fragment.replace("COMMIT", served[1]["v1"])
    image = built(store, f"ADD {address} /src")
    assert {f"src/{name}": content for name, content in expected.items()} == files(image)
    status = os.lstat(f"{image.unpack()[0]}/src")
    assert (0o755, 0, 0) == (status.st_mode & 0o7777, status.st_uid, status.st_gid)
    if "docs/deep/page" in expected:
        when = WHEN + {b"page 1\n": 0, b"page 2\n": 1000}[expected["docs/deep/page"]] + 1000 * ("topic" in expected)
        assert when == os.lstat(f"{image.unpack()[0]}/src/docs/deep/page").st_mtime
        assert 0o755 == os.lstat(f"{image.unpack()[0]}/src/run").st_mode & 0o7777


def test_repository_gives_the_same_digest_in_another_store_at_another_time(daemon, web, tmp_path):
    found = set()
    for number in range(2):
        for address in (daemon, web):
            store = Store(tmp_path / f"{number}{address[:3]}")
            found.add(built(store, f"ADD {address}#v1 /src").manifest.layers)
            time.sleep(0.6)
    assert 1 == len(found)


def test_repository_keeps_its_git_directory_if_asked(daemon, web, served, tmp_path):
    layers = set()
    for number, address in enumerate((daemon, daemon)):
        store = Store(tmp_path / str(number))
        image = Build.from_("scratch").add(f"{address}#v1", "/src", keep_git_dir=True).build(store=store)
        layers.add(image.manifest.layers)
        copy = tmp_path / f"copy{number}"
        shutil.copytree(f"{image.unpack()[0]}/src", copy, symlinks=True)
        assert (served[1]["v1"], "") == (git(copy, "rev-parse", "HEAD"), git(copy, "status", "--porcelain"))
        assert "" == git(copy, "fsck")
        assert address == git(copy, "remote", "get-url", "origin")
        time.sleep(1.1)
    assert 1 == len(layers)


def test_repository_must_be_the_commit_that_the_checksum_says(daemon, served, store):
    commit = served[1]["v1"]
    for checksum in (commit, commit[:7]):
        assert files(built(store, f"ADD --checksum={checksum} {daemon}#v1 /"))["docs/deep/page"] == b"page 1\n"
    with pytest.raises(ImageError, match=f"v1 is commit {commit}, not {served[1]['main']}"):
        built(store, f"ADD --checksum={served[1]['main']} {daemon}#v1 /")
    with pytest.raises(SpecError, match="must be 7 to 64"):
        built(store, f"ADD --checksum=sha256:{'0' * 64} {daemon}#v1 /")


def test_repository_that_cannot_be_had_is_an_error(daemon, web, store, monkeypatch):
    for address in (daemon, web):
        with pytest.raises(ImageError, match="git"):
            built(store, f"ADD {address}#missing /")
        with pytest.raises(ImageError, match="git"):
            built(store, f"ADD {address}#{'1' * 40} /")
        with pytest.raises(SpecError, match="is not in"):
            built(store, f"ADD {address}#main:missing /")
    with pytest.raises(ImageError, match="git"):
        built(store, f"ADD {daemon.replace('repo.git', 'none.git')} /")
    for ref in ("-upload-pack=x", "+main", "^main", "a b"):
        with pytest.raises(SpecError):
            built(store, f'ADD ["{daemon}#{ref}", "/"]')
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="install git"):
        built(store, f"ADD {daemon} /")


def test_repository_is_fetched_without_the_users_settings(daemon, store, tmp_path, monkeypatch):
    (tmp_path / ".gitconfig").write_text('[core]\n\tautocrlf = true\n[url "file:///"]\n\tinsteadOf = git://\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    before = os.umask(0o077)
    try:
        image = built(store, f"ADD {daemon} /")
    finally:
        os.umask(before)
    assert b"page 2\n" == files(image)["docs/deep/page"]
    assert 0o644 == os.lstat(f"{image.unpack()[0]}/docs/deep/page").st_mode & 0o7777


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://example.org/a.git", ("https://example.org/a.git", "", "")),
        ("https://example.org/a.git#v1:x/y", ("https://example.org/a.git", "v1", "x/y")),
        ("git@example.org:a/b.git#main", ("git@example.org:a/b.git", "main", "")),
        ("ssh://git@example.org/a#:x", ("ssh://git@example.org/a", "", "x")),
        ("git://example.org/a", ("git://example.org/a", "", "")),
        ("https://example.org/a.tar.gz", None),
        ("https://example.org/a.git/file", None),
        ("file:///a.git", None),
        ("ext::sh", None),
        ("a.git", None),
    ],
)
def test_repository_is_known_by_its_address(text, expected):
    found = Repository.parse(text)
    assert expected == (found and (found.address, found.ref, found.directory))
