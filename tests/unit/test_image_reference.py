"""References and digests: exactly the grammar is accepted."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import SpecError
from containerkit.image.digest import Digest
from containerkit.image.reference import Reference, is_loopback

HEX = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", None),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", None),
        ("org/app", "docker.io", "org/app", "latest", None),
        ("docker.io/alpine", "docker.io", "library/alpine", "latest", None),
        ("index.docker.io/library/alpine:1", "docker.io", "library/alpine", "1", None),
        ("ghcr.io/org/deep/app:v1", "ghcr.io", "org/deep/app", "v1", None),
        ("localhost/app", "localhost", "app", "latest", None),
        ("localhost:5000/app:x", "localhost:5000", "app", "x", None),
        ("127.0.0.1:5000/a/b", "127.0.0.1:5000", "a/b", "latest", None),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", None),
        ("Host/app", "Host", "app", "latest", None),
        (f"alpine@sha256:{HEX}", "docker.io", "library/alpine", "", f"sha256:{HEX}"),
        (f"alpine:3@sha256:{HEX}", "docker.io", "library/alpine", "3", f"sha256:{HEX}"),
        ("a__b/c-d.e--f", "docker.io", "a__b/c-d.e--f", "latest", None),
    ],
)
def test_reference_parse_reads_each_form(text, registry, repository, tag, digest):
    found = Reference.parse(text)
    assert (registry, repository, tag, digest) == (found.registry, found.repository, found.tag, found.digest)


@pytest.mark.parametrize(
    "text",
    [
        "", "@", ":", "a:", "a@", "A", "docker.io/A", "a//b", "/a", "a/", "a b", "a:b c", "a:-x", "a:.x", "a@sha256:12",
        f"a@sha256:{HEX.upper()}", f"a@md5:{HEX}", HEX, "-a", "a_", "a..b", "a/../b", "a___b", "x" * 256,
        "host.io:0/a", "host.io:70000/a", "host.io:port/a", "a:" + "t" * 129, "é", "a\n", "a:b\n", "host.io/", "a:b:c",
        f"a@sha256:{HEX}@sha256:{HEX}",
    ],
)  # fmt: skip
def test_reference_parse_refuses_invalid_text(text):
    with pytest.raises(SpecError):
        Reference.parse(text)


def test_reference_has_a_shortest_form():
    assert Reference.parse("docker.io/library/alpine:latest").familiar == "alpine"
    assert Reference.parse("alpine:3").familiar == "alpine:3"
    assert Reference.parse("ghcr.io/a/b:latest").familiar == "ghcr.io/a/b"
    assert f"alpine@sha256:{HEX}" == Reference.parse(f"alpine@sha256:{HEX}").familiar


def test_reference_constructor_checks_each_part():
    for wrong in (
        {"repository": "UP"},
        {"repository": "a", "registry": "bad host"},
        {"repository": "a", "tag": "-"},
        {"repository": "a", "digest": "sha256:1"},
    ):
        with pytest.raises(SpecError):
            Reference(**wrong)


def test_reference_uses_another_default_registry():
    assert str(Reference.parse("app", registry="quay.io")) == "quay.io/app:latest"


def test_reference_target_prefers_the_digest():
    reference = Reference.parse("alpine:3").with_digest(f"sha256:{HEX}")
    assert f"sha256:{HEX}" == reference.target
    assert str(reference.without_digest()) == "docker.io/library/alpine:3"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("localhost:5000", True), ("127.0.0.1:1", True), ("127.9.9.9", True), ("[::1]", True),
        ("[::1]:80", True), ("a.localhost", True), ("127.0.0.1.evil.org", False), ("localhost.evil.org", False),
        ("10.0.0.1", False), ("docker.io", False), ("[::2]", False),
    ],
)  # fmt: skip
def test_reference_loopback_is_only_this_machine(host, expected):
    assert expected == is_loopback(host)


_part = st.from_regex(r"\A[a-z0-9]{1,6}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}\Z")
_host = st.sampled_from(["docker.io", "localhost", "localhost:5000", "ghcr.io", "[::1]:5000", "10.1.2.3:80"])
_tag = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z")


@given(_host, st.lists(_part, min_size=2, max_size=4), st.one_of(st.just(""), _tag), st.booleans())
def test_reference_text_and_value_are_the_same_thing(host, parts, tag, pinned):
    digest = f"sha256:{HEX}" if pinned else None
    reference = Reference(registry=host, repository="/".join(parts), tag=tag or ("" if pinned else "x"), digest=digest)
    assert reference == Reference.parse(str(reference)) == Reference.parse(reference.familiar)
    assert reference == pickle.loads(pickle.dumps(reference))


@given(st.text(max_size=80))
def test_reference_parse_of_anything_is_a_reference_or_a_spec_error(text):
    try:
        reference = Reference.parse(text)
    except SpecError:
        return
    assert reference == Reference.parse(str(reference))


def test_digest_is_a_checked_string():
    digest = Digest(f"sha256:{HEX}")
    assert digest == Digest.of(b"")
    assert ("sha256", HEX, HEX[:12]) == (digest.algorithm, digest.encoded, digest.short)
    assert digest == pickle.loads(pickle.dumps(digest))
    for wrong in (
        "",
        "sha256:",
        f"sha256:{HEX}0",
        f"sha512:{HEX}",
        f"SHA256:{HEX}",
        f"sha256:../{HEX[3:]}",
        f"{HEX}\n",
    ):
        with pytest.raises(SpecError):
            Digest(wrong)
