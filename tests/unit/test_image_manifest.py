"""Manifests, indexes, configs and platforms."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import ImageError, SpecError
from containerkit.image import media
from containerkit.image.config import Defaults, Healthcheck, History, ImageConfig
from containerkit.image.digest import Digest
from containerkit.image.manifest import Descriptor, Index, Manifest, parse_manifest
from containerkit.image.platform import Platform


def descriptor(media_type=media.OCI_LAYER, content=b"x", **more):
    return Descriptor.of(content, media_type, **more)


def manifest(**more):
    return Manifest(config=descriptor(media.OCI_CONFIG, b"{}"), layers=(descriptor(),), **more)


def test_manifest_survives_the_round_trip():
    first = manifest(
        annotations={"a": "b"}, subject=descriptor(media.OCI_MANIFEST, b"s"), artifact_type="application/x"
    )
    assert first == parse_manifest(first.raw)
    assert Digest.of(first.raw) == first.digest == first.descriptor.digest


def test_manifest_keeps_foreign_bytes_and_so_its_digest():
    raw = json.dumps(manifest().to_json() | {"x-unknown": 1}, indent=3).encode()
    assert raw == parse_manifest(raw).raw


def test_manifest_of_docker_is_read():
    content = manifest().to_json() | {"mediaType": media.DOCKER_MANIFEST}
    assert parse_manifest(json.dumps(content).encode(), media.DOCKER_MANIFEST).media_type == media.DOCKER_MANIFEST


def test_manifest_without_a_media_type_goes_by_its_content():
    content = manifest().to_json()
    del content["mediaType"]
    assert parse_manifest(json.dumps(content).encode()).media_type == media.OCI_MANIFEST
    assert parse_manifest(b'{"schemaVersion":2,"manifests":[]}').media_type == media.OCI_INDEX


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"schemaVersion": 3}, "expected 2"),
        ({"schemaVersion": "2"}, "integer"),
        ({"mediaType": "text/html"}, "neither"),
        ({"mediaType": 5}, "string"),
        ({"config": None}, "object"),
        ({"config": {"mediaType": "a", "digest": "sha256:0", "size": 1}}, "digest"),
        ({"config": {"mediaType": "a", "digest": f"sha256:{'0' * 64}", "size": -1}}, "integer"),
        ({"config": {"mediaType": "a", "digest": f"sha256:{'0' * 64}", "size": True}}, "integer"),
        ({"config": {"mediaType": "a", "digest": f"sha256:{'0' * 64}", "size": 1 << 63}}, "integer"),
        ({"layers": {}}, "list"),
        ({"layers": [1]}, "object"),
        ({"annotations": {"a": 1}}, "table of strings"),
        ({"manifests": []}, "both a manifest and an index"),
    ],
)
def test_manifest_refuses_what_is_malformed(change, word):
    with pytest.raises(ImageError, match=word):
        parse_manifest(json.dumps(manifest().to_json() | change).encode())


def test_manifest_refuses_duplicate_keys_large_documents_and_deep_nesting():
    for raw, word in (
        (b'{"schemaVersion":2,"schemaVersion":2}', "twice"),
        (b" " * (5 << 20), "at most"),
        (b"[" * 200_000, "not a JSON"),
        (b"\xff", "not a JSON"),
        (b"[]", "object"),
    ):
        with pytest.raises(ImageError, match=word):
            parse_manifest(raw)


def test_manifest_sent_as_another_type_is_refused():
    with pytest.raises(ImageError, match="its own media type is"):
        parse_manifest(manifest().raw, media.DOCKER_MANIFEST)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size"]), x
            )
        ),
        max_leaves=9,
    )
)
def test_manifest_of_anything_is_read_or_an_image_error(content):
    with suppress(ImageError):
        parse_manifest(json.dumps(content).encode())


def offered(*names):
    return Index(
        manifests=tuple(descriptor(media.OCI_MANIFEST, name.encode(), platform=Platform.parse(name)) for name in names)
    )


@pytest.mark.parametrize(
    ("host", "names", "expected"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/amd64", ["linux/386"], 0),
        ("linux/amd64", ["linux/386", "linux/amd64"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"], 2),
        ("linux/arm64", ["linux/arm/v6", "linux/arm/v7"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6"], 1),
        ("x86_64", ["linux/amd64", "linux/amd64"], 0),
    ],
)
def test_index_selects_the_best_platform(host, names, expected):
    index = offered(*names)
    assert index.manifests[expected] is index.select(Platform.parse(host))


def test_index_without_a_matching_platform_lists_the_available_ones():
    with pytest.raises(ImageError, match="windows/amd64"):
        offered("windows/amd64", "linux/s390x").select(Platform.parse("linux/amd64"))
    with pytest.raises(ImageError, match="arm/v7"):
        offered("linux/arm/v7").select(Platform.parse("linux/arm/v6"))


def test_index_passes_over_attestations():
    attestation = descriptor(
        media.OCI_MANIFEST, b"a", platform=Platform(os="unknown", architecture="unknown"),
        annotations={"vnd.docker.reference.type": "attestation-manifest"},
    )  # fmt: skip
    index = Index(manifests=(attestation, descriptor(media.OCI_MANIFEST, b"b")))
    assert index.manifests[1] is index.select(Platform.host())
    assert index == parse_manifest(index.raw)


@pytest.mark.parametrize("text", ["", "/", "a/b/c/d", "linux/", "linux/a b"])
def test_platform_refuses_invalid_text(text):
    with pytest.raises(SpecError):
        Platform.parse(text)


def test_platform_spells_architectures_as_images_do():
    assert str(Platform.parse("x86_64")) == "linux/amd64"
    assert str(Platform.parse("linux/armhf")) == "linux/arm/v7"
    assert Platform.host().os == "linux"


def config(**more):
    return ImageConfig(platform=Platform.parse("amd64"), **more)


def test_config_survives_the_round_trip():
    first = config(
        defaults=Defaults(
            env={"A": "b=c", "E": ""}, entrypoint=("/e",), command=("a",), user="1:2", working_dir="/w",
            volumes=("/v",), labels={"l": "x"}, stop_signal="SIGINT", exposed_ports=("80/tcp",), shell=("/b", "-c"),
            healthcheck=Healthcheck(test=("CMD", "x"), interval_ns=5, retries=2), on_build=("RUN x",),
        ),
        diff_ids=(Digest.of(b"1"), Digest.of(b"2")),
        history=(History(created_by="RUN x"), History(empty_layer=True)),
        created="2020-01-01T00:00:00Z",
        author="me",
    )  # fmt: skip
    assert first == ImageConfig.parse(first.raw)
    assert first.raw == first.evolve(author="you").evolve(author="me").raw


def test_config_reads_nulls_and_missing_parts():
    found = ImageConfig.parse(b'{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":null,"Volumes":null}}')
    assert (found.diff_ids, found.defaults.argv()) == ((), ())


def test_config_argv_is_entrypoint_and_command():
    defaults = Defaults(entrypoint=("e",), command=("c", "d"))
    assert defaults.argv() == ("e", "c", "d")
    assert defaults.argv(["x"]) == ("e", "x")
    assert defaults.argv([]) == ("e",)


def test_config_chain_ids_follow_the_specification():
    one, two = Digest.of(b"1"), Digest.of(b"2")
    assert (one, Digest.of(f"{one} {two}".encode())) == config(diff_ids=(one, two)).chain_ids


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"config":[]}', b'{"config":{"Env":[1]}}', b'{"rootfs":{"diff_ids":["x"]}}', b'{"history":1}']
)
def test_config_refuses_what_is_malformed(raw):
    with pytest.raises(ImageError):
        ImageConfig.parse(raw)
