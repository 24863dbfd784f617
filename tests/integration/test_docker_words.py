"""Docker's command lines work, or fail with a replacement."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from detached_samples import Kept
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

from containerkit import cli
from containerkit.cli import elsewhere
from containerkit.image import Image, Store

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root: the records of a user lie below XDG_RUNTIME_DIR"),
    pytest.mark.skipif(BUSYBOX is None, reason="busybox: a static one is needed"),
]


@pytest.fixture
def ck(tmp_path, monkeypatch, capfd):
    """Return a function that runs a command in this process and returns its status, stdout and stderr."""
    monkeypatch.setenv("CONTAINERKIT_VOLUMES", str(tmp_path / "volumes"))
    monkeypatch.setenv("CONTAINERKIT_IMAGES", str(tmp_path / "images"))
    Image.import_tar(_archive(tmp_path), "box:1", store=Store())

    def run(line, status=0, *more):
        capfd.readouterr()
        found = cli.main([*line.split(), *more])
        shown = capfd.readouterr()
        assert status == found, (line, shown)
        return shown.err if status == cli.FAILED else shown.out

    return run


def _archive(tmp_path):
    import tarfile

    root = tmp_path / "tree"
    root.mkdir()
    busybox_root(root)
    with tarfile.open(tmp_path / "root.tar", "w") as tar:
        tar.add(root, ".")
    return tmp_path / "root.tar"


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


def test_images_by_their_short_names(ck, tmp_path):
    digest = ck("images -q").strip()
    assert "box:1@sha256:" in digest
    assert ck("image ls --format {{.Repository}}:{{.Tag}}") == "box:1\n"
    assert json.loads(ck("images --json"))[0]["name"] == "docker.io/library/box:1"
    assert json.loads(ck("images --format json"))["Repository"] == "box"
    assert ck("images --format", 0, r"table {{.Repository}}\t{{.Tag}}").split() == ["REPOSITORY", "TAG", "box", "1"]
    ck("tag box:1 other:3")
    assert ck("images --format {{.Repository}} --filter reference=oth*") == "other\n"
    assert ck("images other -q").count("sha256:") == 1
    assert ck("history -q box:1").count("\n") >= 1
    ck(f"save -o {tmp_path}/box.tar box:1")
    ck("rmi -f box:1")
    assert "box:1" not in ck("images --format {{.Repository}}:{{.Tag}}")
    assert "box:1@" in ck(f"load -i {tmp_path}/box.tar")
    assert json.loads(ck("inspect --type image box:1"))[0]["name"] == "docker.io/library/box:1"
    assert ck("image inspect -f {{.digest}} box:1").startswith("sha256:")
    facts = "{{.Os}} {{.RepoTags}} {{len .RootFS.Layers}} {{.Config.Cmd}}"
    assert ck("image inspect box:1 -f", 0, facts).startswith("linux [box:1] 1 ")
    assert ck("inspect box:1 -f {{.Id}}").startswith("sha256:")
    assert ck("system df --format {{.Type}}").splitlines() == ["Images", "Containers", "Local Volumes", "Build Cache"]
    assert json.loads(ck("info --json"))["Images"] == 2
    assert ck("version --format {{.Server.KernelVersion}}").strip() == os.uname().release
    assert "no terminal for the confirmation: pass --force" in ck("system prune", cli.FAILED)


def test_options_of_run(ck, tmp_path):
    box = "run --rm --image box:1"
    assert ck(f"{box} -h web hostname") == "web\n"
    assert "65536" in ck(f"{box} --tmpfs /run:rw,size=64m --read-only df /run")
    assert "8192" in ck(f"{box} --shm-size 8m df /dev/shm")
    assert "44" in ck(f"{box} -u 33:33 --group-add 44 id -G")
    assert ck(f"{box} --cap-add docker --cap-drop ALL grep CapPrm /proc/self/status").split()[1].strip("0") == ""
    assert ck(f"{box} --oom-score-adj 100 cat /proc/self/oom_score_adj") == "100\n"
    assert ck(f"{box} --uts host --pid private hostname") == f"{os.uname().nodename}\n"
    assert "Seccomp:\t0" in ck(f"{box} --security-opt seccomp=unconfined grep Seccomp: /proc/self/status")
    assert "NoNewPrivs:\t1" in ck(f"{box} --security-opt no-new-privileges grep NoNewPrivs /proc/self/status")
    (tmp_path / "labels").write_text("a=b\n")
    for words, remedy in (
        ("--privileged true", "pass what it needs"),
        ("--device /etc/passwd true", "is not a device"),
        ("--device /dev/null:/dev/new:r true", "Limits(devices="),
        ("--device vendor.example/class=x true", "no CDI specification"),
        ("--security-opt apparmor=x true", "only the library supports this"),
        ("--ip 10.0.0.2 true", "--network NAME"),
        ("--memory 64m --memory-swap 32m true", "the sum of memory and swap"),
        ("--pid container:nobody true", "nobody"),
        ("--storage-opt size=1G true", "--root-size"),
        ("--link a true", "find each other by name"),
        ("--runtime runc true", "containerkit-oci"),
        ("-v /data true", "give it a name"),
    ):
        assert remedy in ck(f"{box} {words}", cli.FAILED), words
    assert "use --image: containerkit run --image busybox-of-the-hub" in subprocess.run(
        [sys.executable, "-m", "containerkit", "run", "busybox-of-the-hub", "sh"],
        capture_output=True, text=True, check=False,
    ).stderr  # fmt: skip


def test_devices_are_shown_by_path_and_by_cdi(ck, tmp_path, monkeypatch):
    from containerkit.project import cdi

    box = "run --image box:1"
    assert ck(f"{box} --device /dev/full:/run/other sh -c", 0, "echo x > /run/other || echo full").endswith("full\n")
    spec = {
        "cdiVersion": "0.6.0",
        "kind": "example.com/null",
        "containerEdits": {"env": ["ALL=1"]},
        "devices": [{"name": "0", "containerEdits": {"deviceNodes": [{"path": "/run/mine", "hostPath": "/dev/null"}]}}],
    }
    (tmp_path / "cdi").mkdir()
    (tmp_path / "cdi" / "x.json").write_text(json.dumps(spec))
    monkeypatch.setattr(cdi, "PLACES", (str(tmp_path / "cdi"),))
    shown = ck(f"{box} --device example.com/null=0 sh -c", 0, "echo $ALL; echo x > /run/mine; stat -c %t:%T /run/mine")
    assert shown == "1\n1:3\n"
    assert "choose from 0" in ck(f"{box} --device example.com/null=1 true", cli.FAILED)


def test_detached_containers_by_dockers_words(ck, kept):
    name = f"c{os.getpid()}-{time.monotonic_ns()}"
    one = ck(f"create --name {name} --image box:1 -v data:/d sh -c", 0, "echo made; exit 3").strip()
    assert ck(f"inspect -f {{{{.State.Status}}}} {name}") == "created\n"
    assert [one] == [each.id for each in kept.new()]
    assert ck(f"start -a {name}", 3) == "made\n"
    assert f"{one}\n" == ck(f"container ls -aq --filter name={name}")
    assert json.loads(ck("volume ls --json"))[0]["UsedBy"] == [one]
    assert ck("volume prune -f") == ""
    assert ck(f"container rm -v {name}") == f"{name}\n"
    assert ck("volume rm data") == "data\n"
    assert ck("volume rm -f data") == ""


def test_named_containers_in_the_foreground(ck, kept, tmp_path):
    name = f"f{os.getpid()}-{time.monotonic_ns()}"
    assert ck(f"run --name {name} --label a=b --image box:1 sh -c", 7, "echo said; exit 7") == "said\n"
    kept.new()
    assert ck(f"ps -a --filter name={name} --format", 0, '{{.State}} {{.Label "a"}}') == "exited b\n"
    assert ck(f"start -a {name}", 7) == "said\nsaid\n"
    ck(f"rm {name}")
    words = [sys.executable, "-m", "containerkit", "run", "--rm", "--name", name, "--image", "box:1"]
    options = {"text": True, "stdout": subprocess.PIPE}
    done = subprocess.run([*words, "-i", "--cidfile", tmp_path / "id", "cat"], input="typed\n", check=True, **options)
    assert done.stdout == "typed\n"
    assert len((tmp_path / "id").read_text()) == 12
    trap = "trap 'echo asked; exit 4' TERM; echo up; while :; do sleep 0.05; done"
    with subprocess.Popen([*words, "sh", "-c", trap], **options) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.communicate(timeout=30)[0] == "asked\n"
    assert process.returncode == 4
    assert ck(f"ps -aq --filter name={name}") == ""
    ck(f"run -d --rm --name {name} --image box:1 sleep 100")
    script = "cat; sleep 0.1; touch /tmp/done; exec sleep 99"
    words = [sys.executable, "-m", "containerkit", "exec", "-d", name, "sh", "-c", script]
    assert subprocess.run(words, check=True, **options).stdout == ""
    wait_for(lambda: "/tmp/done" in ck(f"exec {name} find /tmp"))
    assert "sleep 99" in ck(f"top {name}")
    ck(f"exec -d {name} no-such-program", 127)
    assert ck(f"rm -f {name}") == f"{name}\n"


def test_lists_and_logs_by_dockers_words(ck, kept):
    one, other = (kept.shell("echo said; exec sleep 1000", image="box:1", name=f"l{os.getpid()}-{n}") for n in range(2))
    wait_for(lambda: list(one.logs()))
    assert ck("ps -lq") == f"{other.id}\n"
    assert ck("ps -q -n 2") == f"{one.id}\n{other.id}\n"
    assert one.id in ck("ps -q --filter ancestor=box:1 --filter health=none")
    assert one.id not in ck("ps -q --filter ancestor=other")
    one.stop(0)
    assert one.id in ck("ps -aq --filter exited=143")
    assert ck(f"ps -a --filter name={other.name} --format", 0, "{{.State}}") == "running\n"
    began = time.monotonic()
    assert ck(f"logs -f --until=0s {other.name}") == "said\n"  # it ends, although the container goes on
    assert time.monotonic() - began < 30
    table = ck(f"ps --filter name={other.name} --format", 0, r"table {{.Names}}\t{{.Command}}\t{{.Label `a`}}")
    assert table.splitlines()[0].split() == ["NAMES", "COMMAND", "a"]
    assert json.loads(ck(f"ps --filter name={other.name} --format json"))["Status"].startswith("Up ")
    assert ck(f"ps -a --filter name={one.name} --format", 0, "{{.Status}}").startswith("Exited (143) ")
    assert "exec sleep 1000" in ck(f"ps --filter name={other.name} --no-trunc")
    assert ck("run --mount type=tmpfs,dst=/d,tmpfs-size=1m,tmpfs-mode=1770 --image box:1 stat -c %a /d") == "1770\n"
    assert other.name in ck(f"stats --no-stream {other.name}")  # without a control group


def test_inspect_has_dockers_names(ck, kept, tmp_path, monkeypatch):
    from containerkit.network import keeper

    name = f"i{os.getpid()}-{time.monotonic_ns()}"
    ck(f"network create {name}")
    try:
        one = ck(f"run -d --name {name} --network {name} --publish 0:80 -v data:/d --image box:1 sleep 100").strip()
        kept.new()
        (port,) = ck(f"port {name} 80").split()
        (tmp_path / "Dockerfile").write_text("FROM box:1\nEXPOSE 81 53/udp\n")
        ck(f"build -q -t exposing:1 {tmp_path}")
        ck(f"run -d --rm --name {name}-all -P --network {name} --image exposing:1 sleep 100")
        assert [line.split()[0] for line in ck(f"port {name}-all").splitlines()] == ["81/tcp", "53/udp"]
        assert ck(f"rm -f {name}-all") == f"{name}-all\n"
        ports = '{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}'
        assert ck(f"inspect {name} -f", 0, ports).strip() == port.rpartition(":")[2]
        assert port in ck(f"ps --filter name={name} --format", 0, "{{.Ports}}")
        address = ck(f"inspect {name} -f", 0, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}").strip()
        assert address in ck(f"exec {name} ip -4 addr show")
        mounts = "{{range .Mounts}}{{.Type}} {{.Name}} {{.Destination}} {{.RW}}{{end}}"
        assert ck(f"inspect {name} -f", 0, mounts) == "volume data /d true\n"
        assert ck(f"inspect {name} -f", 0, "{{.Config.Image}} {{.HostConfig.NetworkMode}}") == f"box:1 {name}\n"
        known = keeper.known
        monkeypatch.setattr(keeper, "known", lambda: [each for each in known() if each[0] == name])
        assert ck(f"network ls -q --filter name={name}") == f"{name}\n"
        assert "only name=TEXT" in ck("network ls --filter driver=x", cli.FAILED)
        assert ck("network prune -f") == ""
        assert ck(f"rm -f {name}") == f"{name}\n"
        assert one not in ck("ps -aq")
        wait_for(lambda: ck("network inspect -f", 0, "{{len .containers}}", name) == "0\n")
        assert ck("network prune -f") == f"{name}\n"
    finally:
        cli.main(["rm", "-f", name])
        cli.main(["network", "rm", "-f", name])


def test_save_to_stdout_replaces_no_name(ck, tmp_path):
    before = os.lstat("/dev/stdout")
    words = [sys.executable, "-m", "containerkit", "save", "box:1"]
    (tmp_path / "piped.tar").write_bytes(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    with open(tmp_path / "written.tar", "wb") as file:
        subprocess.run(words, stdout=file, check=True)
    for name in ("piped", "written"):
        assert "box:1@" in ck(f"load -i {tmp_path}/{name}.tar")
    assert (before.st_ino, before.st_mode) == (os.lstat("/dev/stdout").st_ino, os.lstat("/dev/stdout").st_mode)
    (tmp_path / "link.tar").symlink_to("linked.tar")
    ck(f"save -o {tmp_path}/link.tar box:1")
    assert (tmp_path / "link.tar").is_symlink()
    assert "box:1@" in ck(f"load -i {tmp_path}/linked.tar")


def test_commands_that_are_elsewhere_name_the_place(ck):
    for name, remedy in elsewhere.COMMANDS.items():
        if name not in cli.COMMANDS:
            assert remedy in ck(name, cli.FAILED)
    for line, remedy in (
        ("logs --details x", "inspect"), ("login -p x", "--password-stdin"),
        ("pull -a x", "name the tags"), ("build --cache-from x .", "by content"), ("cp -a x y:/", "chown"),
        ("cp x:/y -", "exec CONTAINER tar"), ("top x -o pid", "exec NAME ps"), ("top x aux", "exec NAME ps"),
        ("rm --link x", "no links"), ("build -", "-f - DIR"), ("build --metadata-file x .", "--iidfile"),
        ("container export x", "image export"), ("container foo", "there are"), ("container lss", "'container ls'"),
        ("network connect x y", "--network NAME"), ("network create --gateway 10.0.0.1 x", "first address"),
        ("volume create --name x", "an argument"), ("volume update x", "cluster"), ("-H tcp://x ps", "no daemon"),
        ("run --publish 80 --image box:1 true", "--network internet"), ("run -P --image box:1 true", "name them with"), ("attach --sig-proxy=false x", "no such container"),
        ("load --platform x", "all platforms"), ("ps --filter network=x", "ancestor"), ("ps -n x", "a number"),
        ("compose export x", "image export"), ("compose publish x", "keep the compose file"),
    ):  # fmt: skip
        assert remedy in ck(line, cli.FAILED)


def test_explain_is_json_for_programs(ck):
    plans = json.loads(ck("explain --json -- true"))
    assert list(plans) == ["container", "command"]
    assert {"operation", "target"} == set(plans["container"][0])


def test_units_are_what_systemd_takes(ck, kept, tmp_path):
    name = f"c{os.getpid()}-{time.monotonic_ns()}"
    ck(f"create --name {name} --image box:1 -e", 0, "A=b c%d$e", "sleep", "9")
    (tmp_path / "compose.yaml").write_text("name: app\nservices: {a: {image: 'box:1', command: [sleep, '9']}}\n")
    units = {"one": ck(f"generate systemd {name}"), "two": ck(f"generate systemd -f {tmp_path}/compose.yaml")}
    assert f'"A=b c%%d$$e" --name {name} sleep 9' in units["one"]
    assert f"compose --file {tmp_path}/compose.yaml --project-name app up" in units["two"]
    assert "name a container, or the files" in ck("generate systemd", cli.FAILED)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze: it is not installed, so it could not look at the units")
    for kind, text in units.items():
        unit = tmp_path / f"{kind}.service"
        unit.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
        )
        assert str(unit.name) not in done.stderr, done.stderr
