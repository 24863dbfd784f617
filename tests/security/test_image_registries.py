"""Malicious registries on the loopback interface: each request ends soon with a clear error."""

import json
import os
import socket
import time
from contextlib import contextmanager

import pytest
from image_registry import Quiet, environment_without_credentials, server

from containerkit.errors import ImageError, SpecError
from containerkit.image import Digest, Image, Registry, RegistrySettings, Store, media
from containerkit.image.build.copying import fetch
from containerkit.image.document import encode

pytestmark = pytest.mark.usefixtures("nothing_left")

SOON_S = 5.0
QUICK = RegistrySettings(metadata_s=1.0, window_s=1.0)


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    return environment_without_credentials(monkeypatch, tmp_path)


@contextmanager
def soon(limit_s=SOON_S):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit_s


LAYER = os.urandom(1 << 20)
CONFIG = encode({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [Digest.of(LAYER)]}})
MANIFEST = encode(
    {
        "schemaVersion": 2,
        "mediaType": media.OCI_MANIFEST,
        "config": {"mediaType": media.OCI_CONFIG, "digest": Digest.of(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": media.OCI_LAYER, "digest": Digest.of(LAYER), "size": len(LAYER)}],
    }
)


class Honest(Quiet):
    """The answers of a registry. Subclasses change one thing."""

    def do_GET(self):
        if "/manifests/" in self.path:
            self.manifest()
        elif Digest.of(CONFIG) in self.path:
            self.reply(200, CONFIG)
        elif "/blobs/" in self.path:
            self.layer()
        else:
            self.reply(200, b"{}")

    do_HEAD = do_POST = do_GET  # noqa: N815 - http.server's names

    def manifest(self):
        self.reply(200, MANIFEST, Content_Type=media.OCI_MANIFEST)

    def layer(self):
        self.reply(200, LAYER)

    def begin(self, size, status=200, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def drip(self, content, size=1, pause_s=0.05):
        """Send a few bytes from time to time, as long as the client waits."""
        try:
            for at in range(0, len(content), size):
                self.wfile.write(content[at : at + size])
                self.wfile.flush()
                time.sleep(pause_s)
        except OSError:
            self.close_connection = True


def pulled(host, tmp_path, settings=QUICK):
    return Image.pull(f"{host}/some/image:1", store=Store(tmp_path / "store"), settings=settings, unpack=False)


def test_honest_registry_is_pulled_from(tmp_path):
    with server(Honest) as host:
        assert pulled(host, tmp_path).digest == Digest.of(MANIFEST)


# --- Addresses

NO_ADDRESSES = (
    "http://[::1", "http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://", "http:///token", "http://[fe80::%]/",
    f"http://{'a' * 70}.example/", "http://\u00ad.example/", "gopher://127.0.0.1/", "http://127.0.0.1:-1/",
)  # fmt: skip


@pytest.mark.parametrize("realm", NO_ADDRESSES)
def test_realm_that_is_not_an_address(tmp_path, realm):
    class Hostile(Honest):
        def manifest(self):
            challenge = f'Bearer realm="{realm}",service="s"'.encode().decode("latin-1")
            self.reply(401, b"", WWW_Authenticate=challenge)

    with server(Hostile) as host, soon(), pytest.raises(ImageError):
        pulled(host, tmp_path)


@pytest.mark.parametrize("location", NO_ADDRESSES)
@pytest.mark.parametrize("what", ["manifest", "layer"])
def test_redirect_to_an_invalid_address(tmp_path, location, what):
    class Hostile(Honest):
        pass

    def redirect(self):
        self.reply(307, b"", Location=location.encode().decode("latin-1"))

    setattr(Hostile, what, redirect)
    with server(Hostile) as host, soon(), pytest.raises(ImageError):
        pulled(host, tmp_path)


@pytest.mark.parametrize("link", ["http://[::1", "http://127.0.0.1:99999/", "//[", "http://elsewhere.example/v2/"])
def test_next_page_at_an_invalid_address(link):
    class Hostile(Quiet):
        def do_GET(self):
            self.reply(200, b'{"tags":["1"]}', Link=f'<{link}>; rel="next"')

    with server(Hostile) as host, Registry(host, settings=QUICK) as registry, soon(), pytest.raises(ImageError):
        registry.tags("some/image")


@pytest.mark.parametrize("location", ["http://[::1", "http://127.0.0.1:99999/x", ""])
def test_upload_to_an_invalid_address(location):
    class Hostile(Honest):
        def do_POST(self):
            self.reply(202, b"", Location=location)

    with server(Hostile) as host, Registry(host, settings=QUICK) as registry, soon(), pytest.raises(ImageError):
        registry.location(registry.start_upload("some/image", Digest.of(b"")))


@pytest.mark.parametrize("digest", ["sha256:zz", "sha256:" + "A" * 64, "sha1:00", "sha256:"])
def test_invalid_digest(tmp_path, digest):
    class Hostile(Honest):
        def manifest(self):
            self.reply(200, MANIFEST, Content_Type=media.OCI_MANIFEST, Docker_Content_Digest=digest)

    with server(Hostile) as host, soon(), Registry(host, settings=QUICK) as registry, pytest.raises(ImageError):
        registry.manifest("some/image", "1")


# --- Slowness


def dripping_manifest(handler):
    handler.begin(10_000, Content_Type=media.OCI_MANIFEST)
    handler.drip(b"{" * 10_000)


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.drip(b"X-More: and more\r\n" * 10_000, size=18)


def endless_line(handler):
    handler.drip(b"HTTP/1.1 200 " + b"O" * 10_000)


def silence(handler):
    try:
        handler.connection.settimeout(20)
        handler.connection.recv(1)
    except OSError:
        pass
    handler.close_connection = True


def later(handler):
    handler.reply(429, b"", Retry_After="1000000000")


def slow_token(handler):
    if handler.path.startswith("/token"):
        handler.begin(10_000)
        handler.drip(b" " * 10_000)
    else:
        challenge = f'Bearer realm="http://{handler.headers["Host"]}/token",service="s"'
        handler.reply(401, b"", WWW_Authenticate=challenge)


def dripping_refusal(handler):
    handler.begin(10_000, status=401, WWW_Authenticate='Bearer realm="http://127.0.0.1:1/"')
    handler.drip(b" " * 10_000)


SLOW = (dripping_manifest, endless_headers, endless_line, silence, later, slow_token, dripping_refusal)


@pytest.mark.parametrize("way", SLOW)
def test_missing_metadata_times_out(tmp_path, way):
    class Hostile(Honest):
        manifest = way

        def do_GET(self):
            way(self) if self.path.startswith("/token") else super().do_GET()

    with server(Hostile) as host, soon(), pytest.raises(ImageError, match=r"timeout expired|within 1 s|cut off"):
        pulled(host, tmp_path)


def test_slow_metadata_arrives_with_a_longer_timeout(tmp_path):
    class Slow(Honest):
        def manifest(self):
            self.begin(len(MANIFEST), Content_Type=media.OCI_MANIFEST)
            self.drip(MANIFEST, size=20)

    with server(Slow) as host:
        with pytest.raises(ImageError), soon(2):
            pulled(host, tmp_path, RegistrySettings(metadata_s=0.2))
        assert pulled(host, tmp_path, RegistrySettings(metadata_s=20)).digest == Digest.of(MANIFEST)


def test_silent_port_times_out(tmp_path):
    """It does not even report that it does not support TLS."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(50)
        with soon(), pytest.raises(ImageError, match="metadata_s"):
            pulled(f"127.0.0.1:{listening.getsockname()[1]}", tmp_path)


def test_default_for_metadata_is_a_minute():
    assert RegistrySettings().metadata_s == 60


def cut_blob(handler):
    start = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
    whole = f"bytes {start}-{len(LAYER) - 1}/{len(LAYER)}"
    handler.begin(len(LAYER) - start, 206 if start else 200, **({"Content_Range": whole} if start else {}))
    handler.wfile.write(LAYER[start : start + 500])
    handler.close_connection = True


def cut_blob_that_begins_anew(handler):
    handler.begin(len(LAYER))
    handler.wfile.write(LAYER[:50_000])
    handler.close_connection = True


def dripping_blob(handler):
    handler.begin(len(LAYER))
    handler.drip(LAYER, size=10)


def silent_blob(handler):
    handler.begin(len(LAYER))
    silence(handler)


@pytest.mark.parametrize("way", [cut_blob, cut_blob_that_begins_anew, dripping_blob, silent_blob])
def test_blob_below_the_minimum_rate_fails(tmp_path, way):
    class Hostile(Honest):
        layer = way

    settings = RegistrySettings(metadata_s=2.0, window_s=1.0, least_rate_bytes=200_000)
    with server(Hostile) as host, soon(8), pytest.raises(ImageError, match=r"blob sha256:.*(bytes per second|cut off)"):
        pulled(host, tmp_path, settings)


def test_blob_over_the_total_time_fails(tmp_path):
    class Hostile(Honest):
        def layer(self):
            self.begin(len(LAYER))
            self.drip(LAYER, size=10_000)

    with server(Hostile) as host, soon(), pytest.raises(ImageError, match="did not arrive within 1 s"):
        pulled(host, tmp_path, RegistrySettings(blob_s=1.0, least_rate_bytes=1))


def test_slow_blob_above_the_minimum_rate_arrives(tmp_path):
    class Slow(Honest):
        def layer(self):
            self.begin(len(LAYER))
            self.drip(LAYER, size=25_000)

    with server(Slow) as host:
        settings = RegistrySettings(metadata_s=0.5, window_s=0.5, least_rate_bytes=100_000)
        assert pulled(host, tmp_path, settings).digest == Digest.of(MANIFEST)  # in 2 s, four windows


def test_build_download_below_the_minimum_rate_fails(tmp_path):
    class Hostile(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            Honest.drip(self, b"x" * 1_000_000)

    settings = RegistrySettings(window_s=1.0, least_rate_bytes=10_000)
    with server(Hostile) as host, soon(), pytest.raises(ImageError, match="bytes per second"):
        fetch(f"http://{host}/file", tmp_path / "file", settings=settings)


# --- Sizes


def test_endless_refusal_is_not_read_completely(tmp_path):
    sent = []

    class Hostile(Honest):
        def manifest(self):
            self.begin(1 << 40, status=404)
            try:
                while sum(sent) < 1 << 30:
                    sent.append(self.wfile.write(bytes(1 << 20)))
            except OSError:
                self.close_connection = True

    with server(Hostile) as host, soon(), pytest.raises(ImageError, match="does not exist"):
        pulled(host, tmp_path)
    assert sum(sent) < 64 << 20


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"tags":' + b"[" * 100_000, b'{"tags": 7}', b"[]", b"\xff", b""])
def test_invalid_list_of_tags(body):
    class Hostile(Quiet):
        def do_GET(self):
            self.reply(200, body)

    with server(Hostile) as host, Registry(host, settings=QUICK) as registry, soon(), pytest.raises(ImageError):
        registry.tags("some/image")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"token": 7}',
        b'{"token": "a\\nb"}',
        b'{"token":"x","expires_in":1e999}',
        b"{}",
        b'{"token":"x',
    ],
)
def test_invalid_token(tmp_path, body):
    class Hostile(Honest):
        def do_GET(self):
            if self.path.startswith("/token"):
                self.reply(200, body)
            elif "/manifests/" in self.path:
                challenge = f'Bearer realm="http://{self.headers["Host"]}/token",service="s"'
                self.reply(401, b"", WWW_Authenticate=challenge)
            else:
                super().do_GET()

    with server(Hostile) as host, soon(), pytest.raises(ImageError):
        pulled(host, tmp_path)


def test_token_without_expiry_is_renewed(tmp_path):
    token = json.dumps({"token": "x", "expires_in": 10**300}).encode()

    class Hostile(Honest):
        def do_GET(self):
            if self.path.startswith("/token"):
                self.reply(200, token)
            elif self.headers.get("Authorization") or "/v2/some" not in self.path:
                super().do_GET()
            else:
                challenge = f'Bearer realm="http://{self.headers["Host"]}/token",service="s"'
                self.reply(401, b"", WWW_Authenticate=challenge)

    with server(Hostile) as host, soon():
        assert pulled(host, tmp_path).digest == Digest.of(MANIFEST)


# --- The settings themselves


@pytest.mark.parametrize("name", ["timeout_s", "metadata_s", "least_rate_bytes", "window_s", "blob_s", "attempts"])
@pytest.mark.parametrize("value", [0, -1, None, "1", True, float("nan"), [1]])
def test_settings_that_are_not_numbers_are_refused(name, value):
    with pytest.raises(SpecError, match=name):
        RegistrySettings(**{name: value})
