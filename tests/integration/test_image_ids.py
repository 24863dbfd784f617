"""Images of an unprivileged user with ranges of ids: files have their owners inside, and ids of the ranges on disk."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from image_archives import archive as tarred
from image_archives import directory, member, symlink
from image_samples import add_image

import containerkit
from containerkit.image import Defaults, Image, Store

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)
NOBODY = 65534
FIRST = 700_000_000
PROGRAMS = ("sh", "cat", "ls", "rm", "mkdir", "echo", "chown", "chmod", "stat", "id", "touch", "su", "getfattr")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="these tests become another user, which needs CAP_SETUID"),
    pytest.mark.skipif(BUSYBOX is None, reason="needs busybox (package busybox-static)"),
    pytest.mark.skipif(shutil.which("newuidmap") is None, reason="needs newuidmap (package uidmap)"),
    pytest.mark.skipif(not os.path.exists("/etc/subuid"), reason="needs an /etc/subuid to put another over"),
]


@functools.cache
def user_python(paths):
    for program in (sys.executable, "/usr/bin/python3"):
        command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        env = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"PYTHONPATH={paths}", "PYTHONDONTWRITEBYTECODE=1"]
        try:
            words = [*command, *env, program, "-W", "error"]
            if subprocess.run([*words, "-c", "import attr, cffi"], capture_output=True, check=False).returncode == 0:
                return words
        except FileNotFoundError:
            continue
    pytest.skip("no Python that an ordinary user may run")


@pytest.fixture
def home(tmp_path_factory):
    """A directory that belongs to the user and is accessible to it."""
    import tempfile

    directory = tempfile.mkdtemp(prefix="containerkit-ids-")
    os.chown(directory, NOBODY, NOBODY)
    yield Path(directory)
    shutil.rmtree(directory)


@pytest.fixture
def run_as(home):
    """Run a script as the user with a range of ids in /etc/subuid and /etc/subgid, given by first id and count; 0 for none."""
    paths = ":".join([str(Path(containerkit.__file__).parents[1]), *(p for p in sys.path if p.endswith("-packages"))])
    python = user_python(paths)

    def run(script, *arguments, count=65_536, first=FIRST):
        grant = home / "grant"
        grant.write_text(f"nobody:{first}:{count}\n" if count else "")
        grant.chmod(0o644)
        cover = 'mount --bind "$0" /etc/subuid && mount --bind "$0" /etc/subgid && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", cover, grant, *python, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "HOME": str(home)},
        )
        if "UnsupportedError" in done.stderr:
            pytest.skip(f"this host lets no ordinary user make containers: {done.stderr[-300:]}")
        assert "" == done.stderr, done.stderr[-3000:]
        assert 0 == done.returncode
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    return run


@pytest.fixture
def archive(tmp_path, home):
    """An image whose files have many owners, modes and attributes."""
    root = tmp_path / "box"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in PROGRAMS:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nwww:x:33:\n")
    (root / "srv").mkdir()
    (root / "srv/page").write_text("page")
    (root / "srv/secret").mkdir()
    (root / "srv/secret/key").write_text("key")
    (root / "srv/secret/key").chmod(0o600)
    (root / "srv/link").symlink_to("page")
    for name in ("srv", "srv/page", "srv/secret", "srv/secret/key", "srv/link"):
        os.chown(root / name, 33, 34, follow_symlinks=False)
    (root / "srv/secret").chmod(0o700)
    (root / "set").write_text("s")
    os.chown(root / "set", 33, 0)
    (root / "set").chmod(0o4755)
    shutil.copy(BUSYBOX, root / "able")
    subprocess.run(["setcap", "cap_net_raw+ep", root / "able"], check=True)
    (root / "far").write_text("far")
    os.chown(root / "far", 123_456, 7)
    store = Store(tmp_path / "store")
    image = Image.from_directory(root, "box:1", store=store, defaults=Defaults(env={"PATH": "/bin"}))
    image.save(home / "box.tar")
    (home / "box.tar").chmod(0o644)
    return home / "box.tar"


HEAD = """
import json, os, sys
from pathlib import Path
from containerkit import Capabilities, Container
root = {"capabilities": Capabilities.docker()}
from containerkit.image import Build, Image, Store, commit
store = Store(sys.argv[1])
def shell(rootfs, line):
    with Container(rootfs, **root) as c:
        return c.run(["/bin/sh", "-c", line], text=True, check=True).stdout.split()
"""

OWNERS = "stat -c %u:%g:%a /srv /srv/page /srv/secret /srv/secret/key /srv/link /set /far /bin"
SHOWN = ["33:34:755", "33:34:644", "33:34:700", "33:34:600", "33:34:777", "33:0:4755", "0:0:644", "0:0:755"]


def test_files_have_their_owners_inside_and_belong_to_the_range_outside(run_as, archive, home):
    script = (
        HEAD
        + f"""
image = Image.load(sys.argv[2], store=store)[0]
inside = shell(image.rootfs(), {OWNERS!r})
with Container(image.rootfs()) as c:
    read = c.run(["cat", "/srv/secret/key"], user="33:34", text=True, check=True).stdout
    refused = c.run(["cat", "/srv/secret/key"], user="5:5", stderr=-3).returncode
directory = image.unpack()[0]
status = os.stat(directory + "/srv/page")
able = os.getxattr(directory + "/able", "security.capability").hex()
print(json.dumps([inside, read, refused, [status.st_uid, status.st_gid], able, os.listxattr(directory + "/far")]))
"""
    )
    inside, read, refused, outside, able, far = run_as(script, home / "store", archive)
    assert SHOWN == inside
    assert "key" == read
    assert 1 == refused
    assert [FIRST + 32, FIRST + 33] == outside
    # Capabilities of a user namespace: of the one whose root is the user. Source: capabilities(7).
    assert "01000003" == able[:8]
    assert f"{NOBODY:08x}" == bytes.fromhex(able)[:-5:-1].hex()
    assert ["user.fuseoverlayfs.override_stat"] == far  # an id outside the range is recorded


def test_commit_export_and_build_have_the_owners(run_as, archive, home):
    script = (
        HEAD
        + """
image = Image.load(sys.argv[2], store=store)[0]
with Container(image.rootfs(), **root) as c:
    line = "mkdir /new; echo x > /new/of33; chown 33:34 /new /new/of33; chmod 700 /new; chown 40 /srv/page; rm /set"
    c.run(["/bin/sh", "-c", line], check=True)
    changed = sorted((change.path, change.kind) for change in c.changes())
    second = commit(c, "second", base=image)
third = (
    Build.from_("second").run("echo b > /new/built; chown 50:51 /new/built; mkdir /new/shut; chown 60 /new/shut; "
    "chmod 700 /new/shut; echo y > /new/shut/in").copy("/srv/secret/key", "/copied", from_="box:1", chown="33:34")
    .run("id -u > /srv/secret/who").build(store=store, pull="never", tag="third", log=lines.append)
)
""".replace("third = (", "lines = []\nthird = (", 1)
        + f"""
shown = shell(third.rootfs(), {OWNERS.replace(" /set", " /new/of33 /new/built /new/shut/in /copied")!r})
third.export(sys.argv[1] + ".tar")
squashed = third.squash()
one = shell(squashed.rootfs(), "stat -c %u /new/built /srv/link")
print(json.dumps([changed, shown, one]))
"""
    )
    changed, shown, one = run_as(script, home / "store", archive)
    assert [
        ["/new", "added"],
        ["/new/of33", "added"],
        ["/set", "deleted"],
        ["/srv/page", "changed"],
    ] == changed
    assert [
        "33:34:755",
        "40:34:644",
        "33:34:700",
        "33:34:600",
        "33:34:777",
        "33:34:644",
        "50:51:644",
        "0:0:644",
        "33:34:600",
        "0:0:644",
        "0:0:755",
    ] == shown
    assert ["50", "33"] == one
    with tarfile.open(home / "store.tar") as tar:
        members = {member.name.rstrip("/"): member for member in tar}
    owners = {name: (member.uid, member.gid) for name, member in members.items()}
    assert (33, 34) == owners["srv/secret/key"]
    assert (33, 34) == owners["srv/link"]
    assert (40, 34) == owners["srv/page"]
    assert (50, 51) == owners["new/built"]
    assert (60, 0) == owners["new/shut"]
    assert (123_456, 7) == owners["far"]
    assert "SCHILY.xattr.security.capability" in members["able"].pax_headers
    assert [] == list((home / "store/build").glob(".new-*"))
    assert [] == list((home / "store/trash").iterdir())


@pytest.mark.parametrize("count", [0, 65_536])
def test_volumes_have_the_owners(run_as, archive, home, count):
    script = (
        HEAD
        + """
image = Image.load(sys.argv[2], store=store)[0]
with Container(image.rootfs(), **root) as c:
    c.run(["mkdir", "/data"], check=True)
    if os.sys.argv[3] == "65536":
        c.run(["chown", "7:8", "/data"], check=True)
    second = commit(c, base=image, volumes=("/srv/secret", "/data"))
with Container(second.rootfs(), **root) as c:
    line = "stat -c %u:%g:%a /srv/secret /srv/secret/key /data; echo x > /srv/secret/key; echo y > /data/y"
    shown = c.run(["/bin/sh", "-c", line], text=True, check=True).stdout.split()
    print(json.dumps([shown, [change.path for change in c.changes()]]))
"""
    )
    shown, changed = run_as(script, home / "store", archive, count, count=count)
    assert (["33:34:700", "33:34:600", "7:8:755"] if count else ["0:0:700", "0:0:600", "0:0:755"]) == shown
    assert [] == changed


@pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="needs fuse-overlayfs (package fuse-overlayfs)")
@pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or os.stat("/dev/fuse").st_mode & 0o006 != 0o006,
    reason="other users may not open /dev/fuse",
)
@pytest.mark.parametrize("count", [0, 65_536])
def test_union_by_fuse_overlayfs_has_the_owners(run_as, archive, home, count):
    for name in ("l", "u", "w", "m"):
        (home / name).mkdir()
    options = f"lowerdir={home}/l,upperdir={home}/u,workdir={home}/w"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, home / "m"], check=True)
    try:
        (home / "m/upper").mkdir()
        for directory in (home / "m", home / "m/upper"):
            os.chown(directory, NOBODY, NOBODY)
        script = (
            HEAD
            + """
image = Image.load(sys.argv[2], store=store)[0]
with Container(image.rootfs(upper=sys.argv[3]), **root) as c:
    line = "stat -c %u:%g /srv/page; chown 40 /srv/page 2>/dev/null; echo n > /srv/new; rm /set; stat -c %u /srv/page"
    shown = c.run(["/bin/sh", "-c", line], text=True, check=True).stdout.split()
    changed = sorted(change.path for change in c.changes())
    second = commit(c, base=image)
    union = c.rootfs.union
print(json.dumps([union, shown, changed, shell(second.rootfs(), "stat -c %u /srv/page; echo /set*")]))
"""
        )
        union, shown, changed, later = run_as(script, home / "store", archive, home / "m/upper", count=count)
    finally:
        subprocess.run(["umount", home / "m"], check=True)
    assert "fuse" == union
    assert (["33:34", "40"] if count else ["0:0", "0"]) == shown
    assert ["/set", "/srv/new", *(["/srv/page"] if count else [])] == changed
    assert [shown[1], "/set*"] == later


@pytest.mark.parametrize("count", [0, 65_536])
def test_many_layers_have_the_owners_and_are_collected(run_as, home, tmp_path, count):
    with open(BUSYBOX, "rb") as file:
        programs = [directory("bin"), member("bin/busybox", data=file.read(), mode=0o755)]
    programs += [symlink(f"bin/{name}", "busybox") for name in PROGRAMS]
    srv = [directory("srv", mode=0o750, uid=33), member("srv/gone"), member("srv/page", uid=33)]
    small = [tarred(member(f"srv/f{number:02}", uid=number)) for number in range(12)]
    gone = tarred(
        directory("srv", mode=0o750, uid=33), member("srv/.wh.gone"), directory("new"), member("new/.wh.never")
    )
    store = Store(tmp_path / "store")
    add_image(store, "many", tarred(*programs, *srv), gone, *small)
    Image.open("many", store=store).save(home / "many.tar")
    (home / "many.tar").chmod(0o644)
    script = (
        HEAD
        + """
from containerkit.image.claimed import release
image = Image.load(sys.argv[2], store=store)[0]
found = image.rootfs()
line = "ls /srv; ls /new; stat -c %u:%a /srv /srv/page /srv/f03; echo x > /srv/gone; rm /srv/f04"
with Container(found, **root) as c:
    shown = c.run(["/bin/sh", "-c", line], text=True, check=True).stdout.split()
    changed = [[change.path, change.kind] for change in c.changes()]
    second = commit(c, base=image)
again = shell(second.rootfs(), "ls /srv; stat -c %u:%a /srv")
release()
kept = len(store.collect().layers)
image.remove()
second.remove()
store.collect(unnamed=True)
left = [str(path) for path in (store.root / "layers").rglob("fs")]
print(json.dumps([shown, changed, again, len(found.lowers), found.base, kept, left, os.listdir(store.root / "trash")]))
"""
    )
    shown, changed, again, lowers, base, kept, left, trash = run_as(
        script, home / "store", home / "many.tar", count=count
    )
    names = [f"f{number:02}" for number in range(12)]
    owners = ["33:750", "33:644", "3:644"] if count else ["0:750", "0:644", "0:644"]
    assert [*names, "page", *owners] == shown
    assert [["/srv/f04", "deleted"], ["/srv/gone", "added"]] == changed
    names.remove("f04")
    assert [*names, "gone", "page", owners[0]] == again
    assert lowers <= 9
    assert str(home / "store/layers") in base
    assert [0, [], []] == [kept, left, trash]


def test_what_belongs_to_the_range_is_collected(run_as, archive, home):
    script = (
        HEAD
        + """
from containerkit.image.claimed import release
image = Image.load(sys.argv[2], store=store)[0]
directory = Path(image.unpack()[0])
release()
image.remove()
gone = store.collect(unnamed=True)
print(json.dumps([directory.exists(), len(gone.layers), os.listdir(store.root / "trash"), os.listdir(directory.parents[1])]))
"""
    )
    assert [False, 1, [], []] == run_as(script, home / "store", archive)


def test_store_outlives_a_change_of_the_ranges(run_as, archive, home):
    script = (
        HEAD
        + """
image = Image.load(sys.argv[2], store=store)[0]
print(json.dumps(shell(image.rootfs(), "stat -c %u:%g /srv/page /bin")))
"""
    )
    arguments = (home / "store", archive)
    assert ["0:0", "0:0"] == run_as(script, *arguments, count=0)
    assert ["33:34", "0:0"] == run_as(script, *arguments)
    assert ["33:34", "0:0"] == run_as(script, *arguments, first=FIRST + 65_536)
    assert ["0:0", "0:0"] == run_as(script, *arguments, count=0)
    kinds = sorted(path.name.partition("-")[0] for path in (home / "store/layers").iterdir() if path.name[0] != ".")
    assert ["ids", "ids", "sha256"] == kinds
    # The next collection removes files for other ids, and reports obstacles.
    collected = run_as(HEAD + "print(json.dumps([str(d)[:6] for d in store.collect().layers]))", home / "store")
    assert ["sha256", "sha256"] == collected


def test_nothing_is_left_of_the_helper_process_and_of_its_calls(run_as, archive, home):
    script = (
        HEAD
        + """
import threading
from containerkit.start import userns_helper
image = Image.load(sys.argv[2], store=store)[0]
userns_helper.call(os.getpid)
before = sorted(os.listdir("/proc/self/fd"))
children = lambda: Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
with userns_helper.kept():
    answers = [userns_helper.call(os.getuid), userns_helper.call(os.path.join, "a", "b")]
    try:
        userns_helper.call(os.scandir, "/nowhere")
    except FileNotFoundError as error:
        answers.append(error.filename)
    two = [threading.Thread(target=lambda: answers.append(userns_helper.call(len, "abc"))) for _ in range(2)]
    [one.start() for one in two]; [one.join() for one in two]
    alive = len(children())
    try:
        userns_helper.call(os._exit, 3)
    except OSError as error:
        answers.append(error.strerror)
print(json.dumps([answers, alive, children(), before == sorted(os.listdir("/proc/self/fd"))]))
"""
    )
    answers, alive, after, same = run_as(script, home / "store", archive)
    assert [0, "a/b", "/nowhere", 3, 3, "No child processes"] == answers
    assert 1 == alive
    assert [] == after
    assert same


def test_build_that_is_broken_off_leaves_nothing(run_as, archive, home):
    script = (
        HEAD
        + """
image = Image.load(sys.argv[2], store=store)[0]
def stop(line):
    raise ValueError(line)
try:
    Build.from_("box:1").run("mkdir /a; chown 33 /a; chmod 700 /a; echo one; cat /dev/zero > /dev/null").build(
        store=store, log=stop)
except ValueError as error:
    told = str(error)
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(json.dumps([told, children, [name for name in os.listdir(store.root / "build") if name.startswith(".new")]]))
"""
    )
    assert ["one", [], []] == run_as(script, home / "store", archive)
