"""Pull and push with Debian's docker-registry, compared with skopeo, and with servers that misbehave."""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import attrs
import pytest

import containerkit

pytest.importorskip("urllib3")
from image_registry import (
    Quiet,
    certificate,
    environment_without_credentials,
    needs_registry,
    needs_skopeo,
    registry,
    relay,
    server,
    skopeo,
    token_service,
    wants_token,
)
from image_samples import add_image, layers_of, small_disk, tar_of

from containerkit.errors import ImageError, SetupError
from containerkit.image import media
from containerkit.image.claimed import release
from containerkit.image.digest import Digest
from containerkit.image.layers.unpack import unpack_layers
from containerkit.image.manifest import Descriptor, Index, Manifest
from containerkit.image.platform import Platform
from containerkit.image.reference import Reference
from containerkit.image.registry import Credentials, Registry, RegistrySettings, pull, push, save_credentials
from containerkit.image.registry.credentials import find_credentials, forget_credentials
from containerkit.image.store import Store

pytestmark = [needs_registry, pytest.mark.skipif(os.geteuid() != 0, reason="unpacking with owners needs root")]
QUICK = RegistrySettings(attempts=3, timeout_s=5, chunk_bytes=1 << 20)


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    return environment_without_credentials(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A registry without TLS and login that contains the image made:1."""
    directory = tmp_path_factory.mktemp("registry")
    with registry(directory) as host:
        store = Store(directory / "store")
        random.seed(1)
        trees = [{f"f{number}": random.randbytes(400_000)} for number in range(4)]
        manifest = add_image(store, "made:1", *trees)
        push(manifest.descriptor, Reference.parse(f"{host}/made:1"), store, settings=QUICK)
        yield host, manifest


def test_push_and_pull_give_the_same_bytes(plain, tmp_path):
    host, manifest = plain
    store = Store(tmp_path / "s")
    assert manifest == pull(Reference.parse(f"{host}/made:1"), store, settings=QUICK)
    assert store.verify() == ()
    assert len(list((store.root / "layers/sha256").iterdir())) == 4
    assert os.listdir(store.root / "incoming") == []


@needs_skopeo
def test_push_is_what_skopeo_pulls_byte_for_byte(plain, tmp_path):
    host, manifest = plain
    skopeo("copy", "--src-tls-verify=false", f"docker://{host}/made:1", f"oci:{tmp_path}/o:x")
    copied = Store(tmp_path / "o")
    assert manifest.raw == copied.manifest(copied.catalog.entries()[0]).raw
    for blob in (manifest.config, *manifest.layers):
        assert copied.blobs.has(blob)


@needs_skopeo
@pytest.mark.parametrize(("form", "compression"), [("oci", "gzip"), ("oci", "zstd"), ("v2s2", "gzip")])
def test_pull_reads_what_skopeo_pushed(plain, tmp_path, form, compression):
    host, _ = plain
    layout = Store(tmp_path / "o")
    made = add_image(layout, "x:1", {"a": b"1"}, {"b": b"2", ".wh.a": b""})
    options = ["--format", form]
    if compression == "zstd":
        options += ["--dest-compress-format", "zstd"]
    entry = f"oci:{layout.root}:docker.io/library/x:1"
    skopeo("copy", *options, "--dest-tls-verify=false", entry, f"docker://{host}/by/skopeo:{form}-{compression}")
    store = Store(tmp_path / "s")
    found = pull(Reference.parse(f"{host}/by/skopeo:{form}-{compression}"), store, settings=QUICK)
    assert (media.DOCKER_MANIFEST if form == "v2s2" else media.OCI_MANIFEST) == found.media_type
    assert layout.config(made).diff_ids == store.config(found).diff_ids
    assert store.verify() == ()


def test_pull_fetches_nothing_twice(plain, tmp_path):
    host, manifest = plain
    store = Store(tmp_path / "s")
    passing = relay(host)
    with server(passing) as between:
        pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK)
        first = len([path for _, path, _ in passing.seen if "/blobs/" in path])
        pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK)
        again = [path for _, path, _ in passing.seen if "/blobs/" in path]
    assert (first, len(again)) == (5, 5)
    assert manifest.digest == store.find(f"{between}/made:1").digest


def test_pull_by_digest_is_verified_and_found_again_without_the_registry(plain, tmp_path):
    host, manifest = plain
    store = Store(tmp_path / "s")
    reference = Reference.parse(f"{host}/made@{manifest.digest}")
    assert manifest == pull(reference, store, settings=QUICK)
    assert manifest.digest == store.find(reference).digest
    assert manifest == pull(Reference.parse(f"{host}/gone@{manifest.digest}"), store, settings=QUICK)


def test_pull_of_a_missing_image_is_reported(plain, tmp_path):
    host, _ = plain
    for name in ("made:2", "missing"):
        with pytest.raises(ImageError, match="does not exist: status 404"):
            pull(Reference.parse(f"{host}/{name}"), Store(tmp_path / "s"), settings=QUICK)
    with pytest.raises(ImageError, match="GET"):
        pull(Reference.parse("127.0.0.1:1/x"), Store(tmp_path / "s"), settings=attrs.evolve(QUICK, attempts=1))


def test_push_sends_nothing_twice_and_mounts_from_a_neighbour(plain, tmp_path):
    host, manifest = plain
    store = Store(tmp_path / "s")
    pull(Reference.parse(f"{host}/made:1"), store, settings=QUICK)
    events = []
    push(manifest.descriptor, Reference.parse(f"{host}/neighbour:1"), store, settings=QUICK, progress=events.append)
    assert {"exists"} == {event.status for event in events}
    events.clear()
    push(manifest.descriptor, Reference.parse(f"{host}/made:again"), store, settings=QUICK, progress=events.append)
    assert {"exists"} == {event.status for event in events}
    with Registry(host, settings=QUICK) as client:
        assert sorted(client.tags("made")) == ["1", "again"]
        assert manifest.digest == client.manifest_digest("made", "again")


def test_push_in_pieces_gives_the_same_blob(plain, tmp_path):
    host, _ = plain
    store = Store(tmp_path / "s")
    manifest = add_image(store, "big", {"f": random.randbytes(5_300_000)})
    events = []
    reference = Reference.parse(f"{host}/big:1")
    push(manifest.descriptor, reference, store, settings=QUICK, progress=events.append)
    assert len([event for event in events if event.status == "running"]) > 5
    assert manifest == pull(reference, Store(tmp_path / "t"), settings=QUICK)


def test_push_goes_on_after_a_broken_piece(plain, tmp_path):
    host, _ = plain
    store = Store(tmp_path / "s")
    manifest = add_image(store, "big", {"f": random.randbytes(4_300_000)})
    broken = []

    def change(handler, path):
        if handler.command == "PATCH" and len(broken) < 2 and handler.headers["Content-Range"].startswith("1048576-"):
            broken.append(path)
            handler.rfile.read(1000)
            handler.close_connection = True
            handler.connection.close()
            return True
        return False

    passing = relay(host, change=change)
    with server(passing) as between:
        push(manifest.descriptor, Reference.parse(f"{between}/broken:1"), store, settings=QUICK)
    assert len(broken) == 2
    assert manifest == pull(Reference.parse(f"{host}/broken:1"), Store(tmp_path / "t"), settings=QUICK)


def test_push_begins_a_small_blob_anew_when_the_connection_breaks(plain, tmp_path):
    host, _ = plain
    store = Store(tmp_path / "s")
    manifest = add_image(store, "small", {"f": b"small and new"})
    broken = []

    def change(handler, path):
        if handler.command == "PUT" and "/uploads/" in path and not broken:
            broken.append(path)
            handler.close_connection = True
            handler.connection.close()
            return True
        return False

    passing = relay(host, change=change)
    with server(passing) as between:
        push(manifest.descriptor, Reference.parse(f"{between}/small:1"), store, settings=QUICK)
    assert 1 == len(broken)
    assert manifest == pull(Reference.parse(f"{host}/small:1"), Store(tmp_path / "t"), settings=QUICK)


def test_index_of_platforms_is_pushed_and_selected_from(plain, tmp_path):
    host, _ = plain
    store = Store(tmp_path / "s")
    images = [add_image(store, f"p{number}", {"f": bytes([number])}) for number in range(2)]
    names = ("linux/s390x", str(Platform.host()))
    index = Index(
        manifests=tuple(
            attrs.evolve(image.descriptor, platform=Platform.parse(name))
            for image, name in zip(images, names, strict=True)
        )
    )
    store.blobs.add(index.raw, index.media_type)
    reference = Reference.parse(f"{host}/multi:1")
    assert index.digest == push(index.descriptor, reference, store, settings=QUICK)
    other = Store(tmp_path / "t")
    assert images[1] == pull(reference, other, settings=QUICK)
    assert not other.blobs.has(images[0].digest)
    assert images[1].digest == other.find(f"{host}/multi@{index.digest}").digest
    assert images[0] == pull(reference, other, platform=Platform.parse("s390x"), settings=QUICK)
    third = Store(tmp_path / "u")
    pull(reference, third, all_platforms=True, settings=QUICK)
    assert index == third.document(third.find(reference))
    assert third.verify() == ()
    with pytest.raises(ImageError, match="s390x"):
        pull(reference, other, platform=Platform.parse("riscv64"), settings=QUICK)
    assert list(other.blobs) != []
    other.collect()
    assert other.verify() == ()


def test_referrers_are_listed_by_their_tag_where_the_registry_has_no_api(plain, tmp_path):
    host, manifest = plain
    store = Store(tmp_path / "s")
    empty = store.blobs.add(b"{}", media.OCI_EMPTY)
    signature = Manifest(
        config=empty, layers=(empty,), artifact_type="application/x-signature", subject=manifest.descriptor
    )
    listed = Index(manifests=(attrs.evolve(signature.descriptor, artifact_type="application/x-signature"),))
    with Registry(host, settings=QUICK) as client:
        assert client.referrers("made", manifest.digest) == ()
        for document in (signature, listed):
            store.blobs.add(document.raw, document.media_type)
        push(signature.descriptor, Reference.parse(f"{host}/made@{signature.digest}"), store, settings=QUICK)
        client.put_manifest("made", f"sha256-{manifest.digest.encoded}", listed)
        assert [signature.digest] == [one.digest for one in client.referrers("made", manifest.digest)]
        assert client.referrers("made", manifest.digest, "application/other") == ()
        with pytest.raises(ImageError, match="artifact of type application/x-signature"):
            store.config(signature)


# --- TLS and logins --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    directory = tmp_path_factory.mktemp("secure")
    pair = certificate(directory)
    with registry(directory / "r", tls=pair, users={"me": "secret"}) as host:
        yield host, pair[0]


def trusting(host, authority):
    return attrs.evolve(QUICK, ca_paths={host: str(authority)})


def test_login_by_password_over_tls(secure, tmp_path, home):
    host, authority = secure
    store = Store(tmp_path / "s")
    manifest = add_image(store, "x", {"f": b"1"})
    reference = Reference.parse(f"{host}/x:1")
    with pytest.raises(ImageError, match="containerkit login"):
        push(manifest.descriptor, reference, store, settings=trusting(host, authority))
    wrong = Credentials(username="me", password="wrong")
    with pytest.raises(ImageError, match="password is wrong"):
        push(manifest.descriptor, reference, store, settings=trusting(host, authority), credentials=wrong)
    save_credentials(host, Credentials(username="me", password="secret"))
    push(manifest.descriptor, reference, store, settings=trusting(host, authority))
    assert manifest == pull(reference, Store(tmp_path / "t"), settings=trusting(host, authority))
    assert (home / ".docker/config.json").stat().st_mode & 0o777 == 0o600
    assert forget_credentials(host)
    assert find_credentials(host) is None


def test_certificate_that_is_not_trusted_is_refused_and_never_leads_to_plain_http(secure, tmp_path):
    host, _ = secure
    with pytest.raises(ImageError, match=r"not trusted.*ca_paths"):
        pull(Reference.parse(f"{host}/x:1"), Store(tmp_path / "s"), settings=QUICK)


def test_plain_http_is_only_for_loopback_or_where_the_settings_say_so():
    with Registry("registry.invalid", settings=QUICK) as client:
        assert client._transport.origin("registry.invalid") == "https://registry.invalid"
    with Registry("x.invalid", settings=RegistrySettings(insecure=frozenset({"x.invalid"}))) as client:
        assert client._transport.origin("x.invalid") == "http://x.invalid"


def test_credentials_of_other_tools_are_found(home, monkeypatch, tmp_path):
    entry = {"auth": base64.b64encode(b"me:pa:ss").decode()}
    (home / ".docker/config.json").write_text(
        json.dumps(
            {"auths": {"r.io": entry, "https://index.docker.io/v1/": entry, "r.io/team": {"identitytoken": "t"}}}
        )
    )
    assert (find_credentials("r.io").username, find_credentials("r.io").password) == ("me", "pa:ss")
    assert find_credentials("docker.io").username == "me"
    assert find_credentials("r.io", "team/app").identity_token == "t"
    assert find_credentials("other.io") is None
    (tmp_path / "auth.json").write_text(
        json.dumps({"auths": {"r.io": {"auth": base64.b64encode(b"first:x").decode()}}})
    )
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    assert find_credentials("r.io").username == "first"
    (tmp_path / "auth.json").write_text("[")
    with pytest.raises(ImageError, match=r"auth.json"):
        find_credentials("r.io")


def test_credentials_come_from_a_helper_program(home, monkeypatch, tmp_path):
    script = tmp_path / "bin/docker-credential-test"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\nread server\necho "$1 $server" >> "$HOME/asked"\n'
        'case "$1 $server" in\n'
        '  "get r.io") echo \'{"ServerURL":"r.io","Username":"helped","Secret":"s"}\' ;;\n'
        '  "get t.io") echo \'{"Username":"<token>","Secret":"s"}\' ;;\n'
        "  store*|erase*) ;;\n"
        '  *) echo "credentials not found in native keychain"; exit 1 ;;\nesac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": "test", "credHelpers": {"t.io": "test"}}))
    assert find_credentials("r.io").username == "helped"
    assert find_credentials("t.io").identity_token == "s"
    assert find_credentials("unknown.io") is None
    save_credentials("r.io", Credentials(username="a", password="b"))
    assert "store" in (home / "asked").read_text()
    (home / ".docker/config.json").write_text(json.dumps({"credsStore": "missing"}))
    with pytest.raises(ImageError, match="docker-credential-missing"):
        find_credentials("r.io")


def test_token_dance_for_pull_and_push(plain, tmp_path):
    host, manifest = plain
    service = token_service({"me": "secret"})
    with server(service) as tokens:
        may = wants_token(
            f"http://{tokens}/token", lambda name, method: method in ("GET", "HEAD") or name == "me:secret"
        )
        passing = relay(host, change=may)
        with server(passing) as between:
            reference = Reference.parse(f"{between}/made:1")
            store = Store(tmp_path / "s")
            assert manifest == pull(reference, store, settings=QUICK)
            asked = len(service.seen)
            assert asked == 1
            with pytest.raises(ImageError, match=r"after logging in|not authorized"):
                push(manifest.descriptor, Reference.parse(f"{between}/made:2"), store, settings=QUICK)
            me = Credentials(username="me", password="secret")
            push(manifest.descriptor, Reference.parse(f"{between}/made:2"), store, settings=QUICK, credentials=me)
            wrong = Credentials(username="me", password="wrong")
            with pytest.raises(ImageError, match="token service answers with status 401"):
                push(
                    manifest.descriptor, Reference.parse(f"{between}/made:3"), store, settings=QUICK, credentials=wrong
                )
            identity = Credentials(identity_token="refresh")
            pull(reference, Store(tmp_path / "t"), settings=QUICK, credentials=identity)
            assert service.seen[-1][1]["refresh_token"][0] == "refresh"


def test_token_realm_on_another_host_gets_no_credentials(plain, tmp_path):
    host, _ = plain
    service = token_service({"me": "secret"})
    me = Credentials(username="me", password="secret")
    with server(service) as tokens:
        elsewhere = f"http://{tokens.replace('127.0.0.1', 'localhost')}/token"
        with server(relay(host, change=wants_token(elsewhere, lambda *_: True))) as between:
            reference = Reference.parse(f"{between}/made:1")
            with pytest.raises(ImageError, match=r"outside its own domain.*token_hosts"):
                pull(reference, Store(tmp_path / "s"), settings=QUICK, credentials=me)
            assert service.seen == []
            allowing = attrs.evolve(QUICK, token_hosts={between: ("localhost",)})
            pull(reference, Store(tmp_path / "s"), settings=allowing, credentials=me)
            assert "Authorization" in service.seen[0][1]


def test_redirect_to_another_host_gets_no_token(plain, tmp_path):
    host, manifest = plain
    storing = relay(host)
    with server(storing) as storage:

        def change(handler, path):
            if "/blobs/" in path and handler.command == "GET":
                assert handler.headers.get("Authorization")
                handler.reply(307, Location=f"http://{storage}{path}")
                return True
            if not handler.headers.get("Authorization"):
                handler.reply(401, WWW_Authenticate='Basic realm="x"')
                return True
            del handler.headers["Authorization"]
            return False

        passing = relay(host, change=change)
        with server(passing) as between:
            me = Credentials(username="me", password="secret")
            store = Store(tmp_path / "s")
            assert manifest == pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK, credentials=me)
        seen = storing.seen
        assert len(seen) == 5
        assert not any("authorization" in {key.lower() for key in headers} for _, _, headers in seen)


def test_redirects_without_an_end_are_cut(tmp_path):
    class Loop(Quiet):
        def do_GET(self):
            self.seen.append(self.path)
            self.reply(302, Location=self.path + "x")

    with server(Loop) as host, pytest.raises(ImageError, match="more than 5 redirects"):
        pull(Reference.parse(f"{host}/x"), Store(tmp_path / "s"), settings=QUICK)


# --- servers that fail -----------------------------------------------------------------------------------------------


def test_pull_cut_off_again_and_again_resumes_and_ends_well(plain, tmp_path):
    host, manifest = plain
    random.seed(7)

    def change(handler, path):
        if "/blobs/" not in path or handler.command != "GET":
            return False
        digest = Digest(path.rpartition("/")[2])
        blob = next(one for one in (manifest.config, *manifest.layers) if one.digest == digest)
        content = fetch(host, path)
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        end = min(blob.size, start + random.randrange(1, 200_000))
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(blob.size - start))
        handler.send_header("Content-Range", f"bytes {start}-{blob.size - 1}/{blob.size}")
        handler.end_headers()
        handler.wfile.write(content[start:end])
        handler.close_connection = True
        return True

    passing = relay(host, change=change)
    with server(passing) as between:
        store = Store(tmp_path / "s")
        assert manifest == pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK)
        assert any("Range" in headers for _, _, headers in passing.seen)
    assert store.verify() == ()


def fetch(host, path):
    with urllib.request.urlopen(f"http://{host}{path}") as answer:
        return answer.read()


@pytest.mark.parametrize("fault", ["flip", "longer", "shorter", "html", "500"])
def test_pull_of_damaged_blobs_is_refused_and_leaves_the_store_whole(plain, tmp_path, fault):
    host, manifest = plain

    def change(handler, path):
        if "/blobs/" not in path or handler.command != "GET" or manifest.layers[2].digest not in path:
            return False
        content = fetch(host, path)
        damaged = {
            "flip": content[:5] + bytes([content[5] ^ 1]) + content[6:],
            "longer": content + b"x",
            "shorter": content[:-1],
            "html": b"<html>",
            "500": b"",
        }[fault]
        handler.reply(500 if fault == "500" else 200, damaged)
        return True

    store = Store(tmp_path / "s")
    passing = relay(host, change=change)
    with server(passing) as between:
        reference = Reference.parse(f"{between}/made:1")
        with pytest.raises(ImageError, match=r"digest|bytes|status 500"):
            pull(reference, store, settings=attrs.evolve(QUICK, attempts=2))
        assert store.find(reference) is None
    assert store.verify() == ()
    assert manifest == pull(Reference.parse(f"{host}/made:1"), store, settings=QUICK)


def test_pull_of_a_manifest_with_another_digest_is_refused(plain, tmp_path):
    host, manifest = plain

    def change(handler, path):
        if "/manifests/" in path:
            handler.reply(200, manifest.raw + b" ", Content_Type=manifest.media_type)
            return True
        return False

    passing = relay(host, change=change)
    with server(passing) as between, pytest.raises(ImageError, match="expected digest"):
        pull(Reference.parse(f"{between}/made@{manifest.digest}"), Store(tmp_path / "s"), settings=QUICK)


def test_pull_waits_and_tries_again_when_there_are_too_many_requests(plain, tmp_path):
    host, manifest = plain
    refused = []

    def change(handler, path):
        if "/manifests/" in path and len(refused) < 2:
            refused.append(path)
            handler.reply(429, Retry_After="0")
            return True
        return False

    passing = relay(host, change=change)
    with server(passing) as between:
        assert manifest == pull(Reference.parse(f"{between}/made:1"), Store(tmp_path / "s"), settings=QUICK)
    assert len(refused) == 2


def test_mirror_is_asked_first_and_the_registry_when_it_fails(plain, tmp_path):
    host, manifest = plain
    settings = attrs.evolve(QUICK, mirrors={"registry.invalid": ("127.0.0.1:1", host)}, attempts=1)
    reference = Reference.parse("registry.invalid/made:1")
    store = Store(tmp_path / "s")
    assert manifest == pull(reference, store, settings=settings)
    assert manifest.digest == store.find(reference).digest
    with pytest.raises(ImageError, match="no source provides it"):
        pull(Reference.parse("registry.invalid/none:1"), store, settings=settings)


def test_proxy_is_used_for_others_and_never_for_loopback(plain, tmp_path, monkeypatch):
    host, manifest = plain

    def change(handler, path):
        handler.path = path.removeprefix("http://registry.invalid")
        return False

    proxy = relay(host, change=change)
    plainly = attrs.evolve(QUICK, insecure=frozenset({"registry.invalid"}))
    with server(proxy) as between:
        monkeypatch.setenv("http_proxy", f"http://{between}")
        assert manifest == pull(Reference.parse("registry.invalid/made:1"), Store(tmp_path / "s"), settings=plainly)
        count = len(proxy.seen)
        assert count == 6
        assert manifest == pull(Reference.parse(f"{host}/made:1"), Store(tmp_path / "t"), settings=plainly)
        monkeypatch.setenv("no_proxy", "invalid")
        with pytest.raises(ImageError, match=r"registry\.invalid"):
            pull(Reference.parse("registry.invalid/made:1"), Store(tmp_path / "u"), settings=plainly)
        assert count == len(proxy.seen)


def test_pull_onto_a_full_disk_ends_at_once_and_leaves_the_store_whole(plain, tmp_path):
    host, manifest = plain

    def change(handler, path):
        if manifest.layers[3].digest not in path:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(manifest.layers[3].size))
        handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.1)
        return True

    passing = relay(host, change=change)
    with small_disk(tmp_path / "disk", "1m") as disk, server(passing) as between:
        store = Store(disk / "s")
        began = time.monotonic()
        with pytest.raises(SetupError, match="disk is full"):
            pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK)
        assert time.monotonic() - began < 10
        assert () == store.verify()


PULLER = """
import sys
from containerkit.image.reference import Reference
from containerkit.image.registry import RegistrySettings, pull
from containerkit.image.store import Store
print("go", flush=True)
pull(Reference.parse(sys.argv[1]), Store(sys.argv[2]), settings=RegistrySettings(attempts=3))
print("done", flush=True)
"""


def puller(reference, root):
    environment = os.environ | {"PYTHONPATH": str(Path(containerkit.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", PULLER, reference, str(root)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_two_processes_pull_the_same_image_at_once(plain, tmp_path):
    host, manifest = plain
    passing = relay(host)
    with server(passing) as between:
        with puller(f"{between}/made:1", tmp_path / "s") as one, puller(f"{between}/made:1", tmp_path / "s") as two:
            assert (one.stdout.read(), two.stdout.read()) == ("go\ndone\n", "go\ndone\n")
        fetched = [path for _, path, _ in passing.seen if "/blobs/" in path]
    assert len(fetched) == 5
    store = Store(tmp_path / "s")
    assert (manifest.digest, ()) == (store.find(f"{between}/made:1").digest, store.verify())


def test_pull_killed_at_any_moment_leaves_a_store_that_the_next_pull_completes(plain, tmp_path):
    host, manifest = plain

    def slow(handler, path):
        if "/blobs/" in path:
            time.sleep(0.02)
        return False

    passing = relay(host, change=slow)
    with server(passing) as between:
        for delay in (0.0, 0.02, 0.05, 0.1, 0.15):
            with puller(f"{between}/made:1", tmp_path / "s") as one:
                one.stdout.readline()
                time.sleep(delay)
                one.send_signal(signal.SIGKILL)
            assert Store(tmp_path / "s").verify() == ()
        store = Store(tmp_path / "s")
        assert manifest == pull(Reference.parse(f"{between}/made:1"), store, settings=QUICK)
    assert store.verify() == ()
    store.collect()
    assert [path for path in (tmp_path / "s/layers").iterdir() if path.name.startswith(".new")] == []
    with store.lease() as lease:
        directories = unpack_layers(store, layers_of(store, manifest), lease)
    assert os.listdir(directories[0]) == ["f0"]
    assert os.listdir(tmp_path / "s/leases") == []


def test_descriptor_of_a_layer_is_that_of_its_bytes():
    content = gzip.compress(tar_of({"a": b"1"}), mtime=0)
    assert Descriptor.of(content, "t").digest == Digest.of(content)
