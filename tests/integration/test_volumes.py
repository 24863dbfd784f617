"""Named volumes of containers and projects: filled once, backed up, limited in size."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import time

import pytest
from image_samples import BUSYBOX, busybox_root

from containerkit import cli, volume
from containerkit.errors import ImageError, SpecError, StateError, UnsupportedError
from containerkit.image import Image, Store
from containerkit.project import volumes as of_projects
from containerkit.volume.place import changing, locked, sweep

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="busybox: a static one is needed")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTAINERKIT_VOLUMES", str(tmp_path / "volumes"))
    monkeypatch.setenv("CONTAINERKIT_IMAGES", str(tmp_path / "images"))
    return tmp_path / "volumes"


@pytest.fixture
def image(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    busybox_root(root)
    data = root / "data"
    (data / "deep" / "er").mkdir(parents=True)
    (data / "seed").write_text("seed")
    (data / "seed").chmod(0o640)
    (data / "link").symlink_to("/etc/passwd")
    os.utime(data / "seed", (1, 1))
    if os.geteuid() == 0:
        os.chown(data, 33, 34)
        os.chown(data / "seed", 35, 36)
    data.chmod(0o750)
    (root / "alias").symlink_to("data")
    archive = tmp_path / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(root, ".")
    return Image.import_tar(archive, "box:1", store=Store())


def test_a_volume_is_filled_while_it_is_empty_with_owners_modes_and_times(image):
    data = volume.used("data", image, "/alias").path
    found = os.stat(f"{data}/seed")
    assert (0o640, 1) == (stat.S_IMODE(found.st_mode), found.st_mtime)
    assert stat.S_IMODE(os.stat(data).st_mode) == 0o750
    assert os.readlink(f"{data}/link") == "/etc/passwd"
    assert os.path.isdir(f"{data}/deep/er")
    if os.geteuid() == 0:
        assert (33, 34, 35, 36) == (os.stat(data).st_uid, os.stat(data).st_gid, found.st_uid, found.st_gid)
    os.unlink(f"{data}/seed")
    assert of_projects.make("data", {}, image, "/data") == data  # a project uses the same volume
    assert not os.path.exists(f"{data}/seed"), "it was filled again"
    assert not volume.used("other", image, "/missing").fill(image, "/etc/nothing")
    assert sorted(each.name for each in volume.volumes()) == ["data", "other"]
    assert of_projects.remove("data")
    assert not of_projects.remove("data")


def test_a_container_sees_what_its_image_put_into_the_volume(image, capfd):
    run = ["run", "--cap", "dac_override", "--image", "box:1", "-v", "v:/data"]
    assert cli.main([*run, "--", "sh", "-c", "cat /data/seed; echo more > /data/seed"]) == 0
    assert cli.main([*run, "--", "cat", "/data/seed"]) == 0
    assert cli.main(["run", "--image", "box:1", "-v", "w:/data:nocopy", "--", "ls", "/data"]) == 0
    mount = "type=volume,source=v,target=/elsewhere,readonly"
    assert cli.main(["run", "--image", "box:1", "--mount", mount, "--", "sh", "-c", "! touch /elsewhere/x"]) == 0
    assert capfd.readouterr().out == "seedmore\n"
    assert cli.main(["run", "--image", "box:1", "-v", "/data", "--", "true"]) == cli.FAILED
    assert "give it a name (-v NAME:/data)" in capfd.readouterr().err


def test_a_volume_is_backed_up_and_restored(tmp_path):
    made = volume.create("a", labels={"x": "y"})
    with open(f"{made.path}/file", "w", encoding="utf-8") as file:
        file.write("content")
    os.symlink("file", f"{made.path}/link")
    os.chmod(f"{made.path}/file", 0o600)
    made.export(tmp_path / "a.tar")
    assert cli.main(["volume", "import", "b", str(tmp_path / "a.tar")]) == 0
    other = volume.get("b")
    with open(f"{other.path}/link", encoding="utf-8") as file:
        assert file.read() == "content"
    assert stat.S_IMODE(os.stat(f"{other.path}/file").st_mode) == 0o600
    assert cli.main(["volume", "import", "b", str(tmp_path / "a.tar")]) == cli.FAILED  # it contains files
    with open(f"{other.path}/later", "w", encoding="utf-8"):
        pass
    assert cli.main(["volume", "import", "--replace", "b", str(tmp_path / "a.tar")]) == 0
    assert sorted(os.listdir(other.path)) == ["file", "link"]


def test_a_backup_that_leads_out_changes_nothing(tmp_path, place):
    made = volume.create("a")
    with open(f"{made.path}/file", "w", encoding="utf-8"):
        pass
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo("../../escaped")
        tar.addfile(entry)
    with pytest.raises(ImageError):
        made.replace(tmp_path / "evil.tar")
    assert os.listdir(made.path) == ["file"]
    assert sorted(os.listdir(place / "a")) == ["data", "volume.json"]
    assert not list(tmp_path.rglob("escaped"))


def test_a_volume_that_cannot_be_is_refused(place):
    for name in ("", "../x", "a/b", ".a", "x" * 256):
        with pytest.raises(SpecError):
            volume.create(name)
    volume.create("a")
    with pytest.raises(StateError, match="already"):
        volume.create("a")
    for size in (0, "much"):
        with pytest.raises(SpecError):
            volume.create("b", size=size)
    assert os.listdir(place) == ["a"]
    assert volume.prune(labels={"x": None}) == []
    assert volume.prune() == ["a"]


def test_error_of_a_filesystem_without_quotas_names_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTAINERKIT_VOLUMES", f"/dev/shm/ck-{os.getpid()}-{time.monotonic_ns()}")
    try:
        with pytest.raises(UnsupportedError, match=r"prjquota|only root"):
            volume.create("a", size="1M")
        assert not volume.volumes()
    finally:
        shutil.rmtree(os.environ["CONTAINERKIT_VOLUMES"], ignore_errors=True)


@pytest.fixture
def quotas(tmp_path, monkeypatch):
    """An ext4 filesystem with project quotas."""
    if os.geteuid() != 0:
        pytest.skip("root: it mounts a filesystem")
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4: e2fsprogs is not installed")
    file, folder = tmp_path / "disk", tmp_path / "mounted"
    with file.open("wb") as disk:
        disk.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota", file], check=True)
    folder.mkdir()
    done = subprocess.run(["mount", "-o", "loop,prjquota", file, folder], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("CONFIG_QFMT_V2: the kernel refuses to mount ext4 with project quotas")
    monkeypatch.setenv("CONTAINERKIT_VOLUMES", str(folder / "volumes"))
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_size_limit_holds_inside_and_goes_with_the_volume(quotas, image, capfd):
    assert cli.main(["volume", "create", "--size", "1M", "small"]) == 0
    assert volume.get("small").size_bytes == 1 << 20
    fill = "dd if=/dev/zero of=/v/file bs=64k count=64 2>/dev/null; wc -c < /v/file"
    assert cli.main(["run", "--image", "box:1", "-v", "small:/v", "--", "sh", "-c", fill]) == 0
    said = capfd.readouterr().out.split()
    assert said[0] == "small"
    assert 512 << 10 <= int(said[1]) <= 1 << 20
    free = volume.create("free")
    with open(f"{free.path}/file", "wb") as file:
        file.write(bytes(2 << 20))  # the control: without a size there is no limit
    volume.get("small").remove()
    assert volume.create("small").size_bytes is None


# --- Killed processes


@pytest.mark.parametrize("has_image", [True, False])
def test_copy_of_a_killed_process_is_removed_before_the_volume_is_used(image, has_image):
    made = volume.create("half")
    place = os.path.dirname(made.path)
    for path in (f"{made.path}/seed", f"{place}/filling"):
        with open(path, "w") as file:
            file.write("hal")
    volume.used("half", image if has_image else None, "/data" if has_image else "")
    assert sorted(os.listdir(made.path)) == (["deep", "link", "seed"] if has_image else [])
    assert not os.path.exists(f"{place}/filling")
    if has_image:
        with open(f"{made.path}/seed") as file:
            assert file.read() == "seed"


def test_user_of_a_volume_waits_until_another_has_filled_it(image, place):
    path = volume.create("shared").path
    with locked(os.path.dirname(path), fcntl.LOCK_EX):  # as one that is filling it
        with open(f"{os.path.dirname(path)}/filling", "w"), open(f"{path}/seed", "w"):
            pass
        program = "from containerkit import volume; print(volume.used('shared').is_empty)"
        other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1)
        os.unlink(f"{os.path.dirname(path)}/filling")
    assert other.communicate(timeout=20)[0] == "False\n"  # complete: not removed


def test_what_killed_processes_left_is_swept_when_no_other_changes_volumes(place):
    kept = volume.create("kept")
    left = [place / ".gone.0123abcd", place / "kept" / "data.0123abcd"]
    for path in left:
        path.mkdir()
        (path / "file").touch()
    with changing():
        assert sweep() == ()
    assert sorted(sweep()) == sorted(map(str, left))
    assert volume.volumes() == [kept]
    assert os.path.isdir(kept.path)


def test_killed_import_leaves_the_former_files(tmp_path, place):
    made = volume.create("kept")
    with open(f"{made.path}/former", "w"):
        pass
    (tmp_path / "many").mkdir()
    for number in range(3000):
        (tmp_path / "many" / str(number)).touch()
    with tarfile.open(tmp_path / "many.tar", "w") as tar:
        tar.add(tmp_path / "many", ".")
    program = f"from containerkit import volume; volume.get('kept').replace({str(tmp_path / 'many.tar')!r})"
    replacing = subprocess.Popen([sys.executable, "-c", program])
    while not [name for name in os.listdir(place / "kept") if name.startswith("data.")]:
        assert replacing.poll() is None
    replacing.kill()
    replacing.wait()
    assert "former" in os.listdir(made.path) or len(os.listdir(made.path)) == 3000
    sweep()
    assert sorted(os.listdir(place / "kept")) == ["data", "volume.json"]


def test_killed_removal_leaves_no_volume_with_half_of_its_files(place):
    made = volume.create("half")
    for number in range(3000):
        with open(f"{made.path}/{number}", "w"):
            pass
    removing = subprocess.Popen([sys.executable, "-c", "from containerkit import volume; volume.get('half').remove()"])
    while os.path.isdir(made.path):
        pass
    removing.kill()
    removing.wait()
    with pytest.raises(StateError, match="no such volume"):
        volume.get("half")
    assert volume.create("half").is_empty
    sweep()
    assert os.listdir(place) == ["half"]


def test_volumes_are_listed_and_pruned_while_others_are_removed():
    program = """
from containerkit import volume
for number in range(300):
    volume.create(f"coming-{number}").remove()
"""
    other = subprocess.Popen([sys.executable, "-c", program])
    while other.poll() is None:
        assert all(each.name.startswith("coming-") for each in volume.volumes())
    assert other.returncode == 0
