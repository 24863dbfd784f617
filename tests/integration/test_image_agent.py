"""RUN --mount=type=ssh with a real ssh-agent, and registries that require a client certificate."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from image_registry import certificate, needs_registry, registry
from image_samples import add_image

from containerkit.errors import ExitError, ImageError, SetupError, SpecError
from containerkit.image import Image, Store
from containerkit.image.build import build_dockerfile
from containerkit.image.build.agent import forwarded_agent
from containerkit.image.claimed import release
from containerkit.image.registry import settings as registry_settings
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.templates import make_template

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="building with owners needs root")
needs_agent = pytest.mark.skipif(
    not all(map(shutil.which, ("ssh-agent", "ssh-add", "ssh-keygen"))), reason="needs Debian's package openssh-client"
)


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """An agent with one key. Return its public part."""
    place = tmp_path / "agent"
    told = subprocess.run(["ssh-agent", "-s", "-a", place], capture_output=True, text=True, check=True).stdout
    number = int(re.search(r"PID=(\d+)", told)[1])
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        subprocess.run(["ssh-add", "-q", tmp_path / "key"], check=True)
        yield (tmp_path / "key.pub").read_text().split()[1]
    finally:
        os.kill(number, signal.SIGTERM)
        while os.path.exists(f"/proc/{number}/exe"):
            time.sleep(0.01)


@pytest.fixture
def store(tmp_path):
    pytest.importorskip("elftools")
    store = Store(tmp_path / ("long" * 25) / "store")
    programs = ["sh", "cat", "touch", "ssh-add", "ssh-keygen"]
    made = make_template("host", store=store, programs=programs)
    made.tag("tools:1")
    return store


def build(store, *lines, **options):
    text = "\n".join(("FROM tools:1", *lines, ""))
    return build_dockerfile(None, text=text, store=store, pull="never", **options)


@needs_agent
def test_build_command_signs_by_the_callers_agent_and_changes_nothing_in_it(agent, store, tmp_path):
    image = build(
        store,
        "RUN --mount=type=ssh ssh-add -L > /keys && ssh-keygen -Y sign -n x -f /keys -q < /keys > /signed",
        "RUN --mount=type=ssh,required=true ssh-add -q -D || touch /refused",
        'RUN test -z "$SSH_AUTH_SOCK"',
        "RUN --mount=type=ssh,target=/a,mode=0666,uid=5 test -S /a && test $SSH_AUTH_SOCK = /a && ssh-add -l",
    )
    layers = image.unpack()
    with open(f"{layers[1]}/keys") as keys, open(f"{layers[1]}/signed", "rb") as signed:
        assert agent == keys.read().split()[1]
        (tmp_path / "signature").write_bytes(signed.read())
    (tmp_path / "signers").write_text(f"me ssh-ed25519 {agent}\n")
    with open(f"{layers[1]}/keys", "rb") as keys:
        check = ["ssh-keygen", "-Y", "verify", "-f", tmp_path / "signers", "-I", "me", "-n", "x"]
        subprocess.run([*check, "-s", tmp_path / "signature"], stdin=keys, check=True, capture_output=True)
    assert (
        {"refused", "run"} >= {str(path.relative_to(layers[0])) for path in Path(layers[0]).rglob("*")} >= {"refused"}
    )
    assert agent in subprocess.run(["ssh-add", "-L"], capture_output=True, text=True, check=True).stdout


@needs_agent
def test_build_command_of_another_user_reaches_the_agent_only_if_allowed(agent, store):
    line = "RUN --mount=type=ssh{} ssh-add -l"
    with pytest.raises(ExitError):
        build(store, "USER 7", line.format(""))
    build(store, "USER 7", line.format(",uid=7"))
    build(store, "USER 7", line.format(",mode=0666"))


def test_build_without_an_agent_goes_on_unless_one_is_required(store, monkeypatch):
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    build(store, "RUN --mount=type=ssh true")
    with pytest.raises(SpecError, match="SSH_AUTH_SOCK is not set"):
        build(store, "RUN --mount=type=ssh,required=true touch /x")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere")
    with pytest.raises(SetupError, match="SSH_AUTH_SOCK must name a running agent"):
        build(store, "RUN --mount=type=ssh touch /y")


@needs_agent
@pytest.mark.parametrize(
    "sent", [b"", b"\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x05\x0b", b"\0\0\0\x01\x0b" * 50]
)
def test_agent_bears_whatever_is_sent_and_ends_with_its_context(agent, tmp_path, sent):
    callers = []
    with forwarded_agent(os.environ["SSH_AUTH_SOCK"], tmp_path / "s"):
        for _ in range(5):
            caller = socket.socket(socket.AF_UNIX)
            caller.connect(str(tmp_path / "s"))
            caller.sendall(sent)
            callers.append(caller)
    for caller in callers:
        caller.close()


# --- client certificates


@pytest.fixture
def authority(tmp_path):
    """A certificate of the registry, an authority, and a client's certificate and key that it has signed."""
    served = certificate(tmp_path)
    new = ["-newkey", "rsa:2048", "-nodes"]
    ca, ca_key, client, key, asked = (tmp_path / name for name in ("ca.pem", "ca.key", "c.cert", "c.key", "c.csr"))
    for command in (
        ["req", "-x509", *new, "-days", "2", "-subj", "/CN=authority", "-out", ca, "-keyout", ca_key],
        ["req", *new, "-subj", "/CN=client", "-out", asked, "-keyout", key],
        ["x509", "-req", "-in", asked, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-out", client],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return served, ca, (client, key)


@needs_registry
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs Debian's package openssl")
def test_registry_that_asks_for_a_certificate_gets_the_one_of_its_directory(authority, tmp_path, monkeypatch):
    served, ca, (client, key) = authority
    directory = tmp_path / "certs.d"
    monkeypatch.setattr(registry_settings, "_CERTIFICATES", (directory,))
    store, other = Store(tmp_path / "s"), Store(tmp_path / "o")
    with registry(tmp_path / "registry", tls=served, clients=ca) as host:
        own = directory / host
        own.mkdir(parents=True)
        shutil.copy(served[0], own / "ca.crt")
        add_image(store, f"{host}/a:1", {"f": b"x"})
        image = Image.open(f"{host}/a:1", store=store)
        quick = RegistrySettings(attempts=1)
        with pytest.raises(ImageError, match=r"refused this client.*client\.cert and client\.key"):
            image.push(settings=quick)
        shutil.copy(client, own / "client.cert")
        with pytest.raises(ImageError, match=r"client\.key"):
            image.push(settings=quick)
        shutil.copy(key, own / "client.key")
        image.push(settings=quick)
        assert image.digest == Image.pull(f"{host}/a:1", store=other, settings=quick).digest
        shutil.copy(served[0], own / "client.cert")
        shutil.copy(served[1], own / "client.key")
        with pytest.raises(ImageError):
            Image.pull(f"{host}/a:1", store=Store(tmp_path / "third"), settings=quick)
