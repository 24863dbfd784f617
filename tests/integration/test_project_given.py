"""What a project gives its containers from outside: images, devices by name, GPUs; and replacements that start first."""

import json
import os
import stat

import pytest
from image_samples import BUSYBOX, busybox_root

from containerkit import Project, Service
from containerkit.errors import SpecError, StateError
from containerkit.image import Image
from containerkit.project import cdi

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
]

SLEEP = ("sleep", "1000")
BOX = {"image": "box:1", "command": SLEEP, "stop_signal": "SIGKILL"}

TOOLS = """\
FROM box:1
RUN mkdir /tools; echo one > /tools/a; echo two > /tools/gone; ln -s /etc /out
RUN rm /tools/gone; echo three >> /tools/a; chown 7:8 /tools/a
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERKIT_IMAGES", str(tmp_path_factory.mktemp("store") / "images"))
        root = tmp_path_factory.mktemp("root")
        busybox_root(root, "proc", "dev", "sys", "run", "var")
        Image.from_directory(root, "box:1")
        Image.build(tmp_path_factory.mktemp("context"), text=TOOLS, tag="tools:1")
        yield


@pytest.fixture
def up(images, request):
    def made(**services):
        name = f"t{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"
        return Project(name=name, services={key: Service(**{**BOX, **keys}) for key, keys in services.items()})

    return made


def said(replica, script):
    return replica.run(["sh", "-c", script], text=True, stderr=-2).stdout


def mounted(**image):
    return {"type": "image", "source": "tools:1", "target": "/mnt", **({"image": image} if image else {})}


def test_an_image_is_mounted(up):
    services = {"whole": {"volumes": [mounted()]}, "part": {"volumes": [mounted(subpath="tools/a")]}}
    with up(**services).up() as stack:
        assert (
            said(stack["whole"], "cat /mnt/tools/a; ls /mnt/tools; stat -c %u:%g /mnt/tools/a")
            == "one\nthree\na\n7:8\n"
        )
        assert said(stack["whole"], "/mnt/bin/busybox echo runs") == "runs\n"
        for words in ("rm /mnt/tools/a", "echo x > /mnt/x", "mount -o remount,rw,bind /mnt"):
            assert "Read-only" in (shown := said(stack["whole"], words)) or "denied" in shown or "permitted" in shown
        assert said(stack["part"], "cat /mnt") == "one\nthree\n"
    for subpath, message in (
        ("out", "leads out of the image tools:1"),
        ("none", "does not exist in the image tools:1"),
    ):
        with pytest.raises(SpecError, match=message):
            up(a={"volumes": [mounted(subpath=subpath)]}).up()


def test_a_replacement_starts_before_the_previous_one_ends(up):
    deploy = {"update_config": {"order": "start-first", "failure_action": "pause"}}
    check = {"test": "test -e /ready", "interval": "50ms", "retries": 100}

    def version(number, script="touch /ready; exec sleep 1000", **more):
        command = ["sh", "-c", f": {number}; {script}"]
        return up(a={"command": command, "deploy": deploy, "healthcheck": {**check, **more}}, b={})

    with version(1).up(wait=10) as stack:
        first = stack["a"].pid
        plan = [f"{step.action} {step.detail}" for step in stack.apply(version(2)).steps if step.service == "a"][1:]
        assert plan == ["start beside the previous one", "wait service_healthy", "stop its replacement runs"]
        second = stack["a"].pid
        assert [len(stack.containers("a")), os.path.exists(f"/proc/{first}")] == [1, False]
        with pytest.raises(StateError, match="is unhealthy"):
            stack.apply(version(3, "exec sleep 1000", retries=2))
        assert [each.pid for each in stack.containers("a")] == [second]
        assert said(stack["a"], "test -e /ready && echo there") == "there\n"
        stack.apply(version(4, "sleep 0.3; touch /ready; exec sleep 1000"))
        assert stack["a"].pid != second
        assert said(stack["b"], "nslookup a | grep -c ^Address") == "2\n"  # the server, and one container


def test_both_answer_while_one_replaces_the_other(up):
    deploy = {"update_config": {"order": "start-first"}}
    with up(a={"deploy": deploy}).up() as stack:
        first = stack["a"].pid
        seen = []
        stack._log = lambda text: seen.append(os.path.exists(f"/proc/{first}")) if text.startswith("stop") else None
        stack.apply(up(a={"deploy": deploy, "environment": {"N": "1"}}))
        assert seen == [True]
        assert not os.path.exists(f"/proc/{first}")
        with pytest.raises(StateError, match="has ended with status 1"):
            stack.apply(up(a={"deploy": deploy, "command": ["sh", "-c", "sleep 0.05; exit 1"]}))
        assert [each.status for each in stack.containers("a")] == ["running"]


@pytest.fixture
def places(tmp_path, monkeypatch):
    (tmp_path / "cdi").mkdir()
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(cdi, "PLACES", (str(tmp_path / "cdi"),))
    monkeypatch.setattr(cdi, "DEV", str(tmp_path / "dev"))
    return tmp_path


def test_gpus_come_from_their_specification(up, places):
    def one(name, *nodes):
        paths = [{"path": f"/dev/gpu{node}", "hostPath": "/dev/zero"} for node in nodes]
        return {"name": name, "containerEdits": {"deviceNodes": paths}}

    spec = {
        "cdiVersion": "0.6.0", "kind": "nvidia.com/gpu",
        "containerEdits": {"env": ["VISIBLE=void", "MORE=1"], "hooks": [{"path": "/bin/hook"}]},
        "devices": [one("1", 1), one("0", 0), one("all", 0, 1)],
    }  # fmt: skip
    (places / "cdi" / "x.json").write_text(json.dumps(spec))
    reserved = {"resources": {"reservations": {"devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]}}}
    services = {
        "every": {"gpus": "all", "environment": {"MORE": "2"}, "command": ["sh", "-c", "echo $VISIBLE $MORE; exec sleep 9"]}, "first": {"deploy": reserved},
        "named": {"gpus": [{"device_ids": ["1"]}]},
        "cdi": {"devices": ["nvidia.com/gpu=1", "/dev/zero:/dev/other"], "device_cgroup_rules": ["c 1:99 r"]},
    }  # fmt: skip
    notes = []
    with up(**services).up(log=notes.append) as stack:
        assert said(stack["every"], "ls /dev | grep gpu") == "gpu0\ngpu1\n"
        assert next(stack.logs("every", follow=True)).text == "void 2"
        assert said(stack["first"], "ls /dev | grep gpu; echo x > /dev/gpu0") == "gpu0\n"
        assert said(stack["named"], "ls /dev | grep gpu") == "gpu1\n"
        assert said(stack["cdi"], "ls /dev | grep gpu; echo x > /dev/gpu1 && ls /dev/other") == "gpu1\n/dev/other\n"
    assert any("a hook of the CDI specification is not run: /bin/hook" in note for note in notes)
    for wanted, message in (
        ([{"count": 3}], "gpus: 3 GPUs are requested; this machine has 2: 0, 1"),
        ([{"device_ids": ["7"]}], "has no CDI device '7'; choose from 1, 0, all"),
        ([{"driver": "amd"}], "no GPU that can be given to a container: .* one of amd"),
    ):
        with pytest.raises(SpecError, match=message):
            up(a={"gpus": wanted}).plan()


def test_gpus_without_a_specification_are_their_nodes(up, places):
    with pytest.raises(SpecError, match=r"services.a.gpus: this machine has no GPU .*/nvidia0; install the driver"):
        up(a={"gpus": "all"}).plan()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        os.mknod(places / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    notes = []
    with up(a={"gpus": "all"}, b={"gpus": [{"device_ids": ["1"]}]}).up(log=notes.append) as stack:
        assert said(stack["a"], "cd /dev; ls -d nv*; echo x > nvidia0") == "nvidia0\nnvidia1\nnvidiactl\n"
        assert said(stack["b"], "cd /dev; ls -d nv*") == "nvidia1\nnvidiactl\n"
    assert any("only its nodes are shown" in note for note in notes)
    for wanted, message in (({"count": 3}, "3 GPUs are requested"), ({"device_ids": ["5"]}, "there is no GPU '5'")):
        with pytest.raises(SpecError, match=message):
            up(a={"gpus": [wanted]}).plan()
