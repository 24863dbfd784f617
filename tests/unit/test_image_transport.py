"""Decisions of the registry client without requests: challenges, proxies, delays, and where credentials are sent."""

from __future__ import annotations

import pytest

from containerkit.errors import SpecError
from containerkit.image.config import Defaults
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.registry.tokens import may_send_to, parse_challenges
from containerkit.image.registry.transport import _reason, backoff_s, no_proxy


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (
            ['Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"'],
            {"bearer": {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"}},
        ),
        (['Basic realm="x"'], {"basic": {"realm": "x"}}),
        (["Basic"], {"basic": {}}),
        (['bearer realm=https://a , scope="b"'], {"bearer": {"realm": "https://a", "scope": "b"}}),
        (['Basic realm="a, b", Bearer realm="c"'], {"basic": {"realm": "a, b"}, "bearer": {"realm": "c"}}),
        (['Basic realm="x"', 'Bearer realm="y"'], {"basic": {"realm": "x"}, "bearer": {"realm": "y"}}),
        ([""], {}),
    ],
)
def test_challenges_are_read(headers, expected):
    assert expected == parse_challenges(headers)


@pytest.mark.parametrize(
    ("registry", "realm", "expected"),
    [
        ("registry-1.docker.io", "https://auth.docker.io/token", True),
        ("ghcr.io", "https://ghcr.io/token", True),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth", True),
        ("registry.example.org:5000", "https://registry.example.org/token", True),
        ("registry.example.org", "https://evil.org/token", False),
        ("registry.example.org", "https://example.org.evil.com/token", False),
        ("ghcr.io", "https://evil.io/token", False),
        ("127.0.0.1:5000", "http://127.0.0.1:6000/token", True),
        ("127.0.0.1:5000", "http://128.0.0.1/token", False),
        ("10.0.0.1", "http://11.0.0.1/", False),
        ("[::1]:5000", "http://[::2]/", False),
        ("localhost", "http://127.0.0.1/", False),
    ],
)
def test_credentials_go_to_the_registrys_own_domain_only(registry, realm, expected):
    assert expected == may_send_to(registry, realm)
    assert may_send_to(registry, "https://login.elsewhere.net/t", ("login.elsewhere.net",))


@pytest.mark.parametrize(
    ("host", "rule", "expected"),
    [
        ("a.example.org", "example.org", True), ("a.example.org", ".example.org", True), ("example.org", "example.org", True),
        ("badexample.org", "example.org", False), ("a.b", "*", True), ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False), ("a.org", "", False), ("a.org", "b.org, a.org:443", True), ("A.ORG", "a.org", True),
    ],
)  # fmt: skip
def test_no_proxy_is_read_as_curl_reads_it(host, rule, expected):
    assert expected == no_proxy(host, rule)


def test_backoff_grows_and_is_bounded():
    assert 3.0 == backoff_s(1, "3")
    assert 30.0 == backoff_s(1, "86400")
    assert all(0.1 <= backoff_s(1, retry_after=None) <= 0.2 for _ in range(50))
    assert all(backoff_s(40) <= 30.0 for _ in range(50))


def test_settings_are_read_from_files_and_later_ones_win(tmp_path):
    (tmp_path / "a.toml").write_text('["docker.io"]\nmirrors = ["m1"]\n["r:5000"]\ninsecure = true\nca = "/ca"\n')
    (tmp_path / "b.toml").write_text('["docker.io"]\nmirrors = ["m2"]\ntoken_hosts = ["t"]\n')
    found = RegistrySettings.load(tmp_path / "a.toml", tmp_path / "b.toml")
    assert (("m2",), frozenset({"r:5000"}), "/ca", ("t",)) == (
        found.mirrors["docker.io"], found.insecure, found.ca_paths["r:5000"], found.token_hosts["docker.io"],
    )  # fmt: skip


@pytest.mark.parametrize("text", ["x = 1", "[", '["a"]\ncolour = 1', '["a"]\nmirrors = "m"'])
def test_settings_that_are_malformed_are_refused(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(SpecError, match=r"a\.toml"):
        RegistrySettings.load(tmp_path / "a.toml")


def test_settings_have_positive_numbers():
    for wrong in ({"attempts": 0}, {"timeout_s": 0}, {"parallel": -1}, {"chunk_bytes": 0}):
        with pytest.raises(SpecError):
            RegistrySettings(**wrong)


def test_defaults_turn_into_what_a_container_takes():
    assert "/root" == Defaults().options()["env"]["HOME"]
    defaults = Defaults(env={"PATH": "/bin", "A": "1"}, user="7:8", working_dir="/w")
    assert {"env": {"PATH": "/bin", "A": "1", "HOME": "/"}, "user": "7:8", "cwd": "/w"} == defaults.options()


def test_a_reason_names_no_class():
    reason = OSError("PatientConnection(host='localhost', port=1): Failed to connect: [Errno 111] refused (again)")
    assert _reason(reason) == "Failed to connect: [Errno 111] refused (again)"
