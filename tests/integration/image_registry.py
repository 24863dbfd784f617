"""Registries on the loopback interface: Debian's docker-registry, and small servers that misbehave."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

REGISTRY = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(REGISTRY is None, reason="needs Debian's package docker-registry")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs Debian's package skopeo")


def free_port():
    """Return a port that is free, below those that the kernel gives to connections and to other tests at any moment."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@contextmanager
def registry(directory, *, tls=None, users=None, token=None, clients=None):
    """Run docker-registry.

    Args:
        directory: for its data.
        tls: (certificate, key).
        users: a table of passwords: basic authentication.
        token: (realm, certificate of the signer): tokens.
        clients: certificate of the authority for clients' certificates.
    """
    if users and shutil.which("htpasswd") is None:
        pytest.skip("needs Debian's package apache2-utils")
    directory.mkdir(exist_ok=True)
    port = free_port()
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "x"},
    }
    if tls:
        config["http"]["tls"] = {"certificate": str(tls[0]), "key": str(tls[1])}
        if clients:
            config["http"]["tls"]["clientcas"] = [str(clients)]
    if users:
        lines = [
            subprocess.run(["htpasswd", "-Bbn", *pair], capture_output=True, text=True, check=True).stdout.strip()
            for pair in users.items()
        ]
        (directory / "htpasswd").write_text("\n".join(lines))
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(directory / "htpasswd")}}
    (directory / "config.json").write_text(json.dumps(config))  # JSON is YAML as well
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([REGISTRY, "serve", directory / "config.json"], stdout=log, stderr=log)
    try:
        wait_for(port, process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wait_for(port, process, timeout_s=60):
    """Wait until a process serves a port."""
    deadline = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)
        else:
            return


def certificate(directory):
    """A self-signed certificate for 127.0.0.1."""
    paths = directory / "cert.pem", directory / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-out", paths[0], "-keyout", paths[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


def skopeo(*words, check=True):
    done = subprocess.run(["skopeo", *map(str, words)], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(done.stderr)
    return done


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def server(handler):
    """Run a handler. Its class gets a new list ``seen`` of requests."""
    handler.seen = []
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def relay(backend, *, change=None):
    """Return a handler that forwards requests to a registry. ``change(handler, path)`` may answer instead."""

    class Relay(Quiet):
        def do_GET(self):
            self.seen.append((self.command, self.path, dict(self.headers)))
            if change is not None and change(self, self.path):
                return
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else None
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            request = urllib.request.Request(f"http://{backend}{self.path}", body, headers, method=self.command)
            try:
                with urllib.request.urlopen(request) as answer:
                    self.pass_on(answer.status, answer.headers, answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    self.pass_on(error.code, error.headers, error.read())

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

        def pass_on(self, status, headers, body):
            self.send_response(status)
            for key, value in headers.items():
                if key.lower() not in ("connection", "transfer-encoding", "date"):
                    here = value.replace(backend, self.headers["Host"]) if key.lower() == "location" else value
                    self.send_header(key, here)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Relay


def token_service(users, *, lifetime=60):
    """Return a handler that issues tokens, and one that requires them."""

    class Service(Quiet):
        def do_GET(self):
            self.seen.append((self.path, dict(self.headers)))
            query = parse_qs(urlsplit(self.path).query)
            sent = self.headers.get("Authorization", "")
            name = base64.b64decode(sent.removeprefix("Basic ")).decode() if sent else ""
            if name and name.partition(":")[::2] not in users.items():
                self.reply(401)
                return
            scopes = " ".join(query.get("scope", []))
            token = base64.urlsafe_b64encode(f"{name}|{scopes}".encode()).decode()
            self.reply(200, json.dumps({"token": token, "expires_in": lifetime}).encode())

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.seen.append((self.path, form))
            token = base64.urlsafe_b64encode(f"identity|{form['scope'][0]}".encode()).decode()
            self.reply(200, json.dumps({"access_token": token}).encode())

    return Service


def wants_token(realm, may):
    """Return a ``change`` for :func:`relay` that accepts only tokens whose scope contains the request."""

    def change(handler, path):
        method = handler.command
        parts = path.partition("?")[0].removeprefix("/v2/").split("/")
        repository = "/".join(parts[:-2]) if "uploads" not in parts else "/".join(parts[: parts.index("blobs")])
        scope = f"repository:{repository}:{'pull' if method in ('GET', 'HEAD') else 'pull,push'}"
        sent = handler.headers.get("Authorization", "")
        if sent.startswith("Bearer "):
            name, _, scopes = base64.urlsafe_b64decode(sent[7:]).decode().partition("|")
            wanted = {f"repository:{repository}:pull", f"repository:{repository}:pull,push"}
            fits = {scope} if "push" in scope else wanted
            if fits & set(scopes.split(" ")) and may(name, method):
                return False
        challenge = f'Bearer realm="{realm}",service="test",scope="{scope}"'
        if handler.headers.get("Content-Length"):
            handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.reply(401, b'{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}', WWW_Authenticate=challenge)
        return True

    return change


def environment_without_credentials(monkeypatch, tmp_path):
    for name in ("REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("DOCKER_CONFIG", str(home / ".docker"))
    os.makedirs(home / ".docker", exist_ok=True)
    return home
