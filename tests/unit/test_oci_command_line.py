"""The parts of the OCI command line without side effects: flags, signals, JSON, ids, the log, imports."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import containerkit
from containerkit import jsontext
from containerkit.oci import flags, signals, store
from containerkit.oci.errors import RuntimeFailure
from containerkit.oci.log import Log, timestamp
from containerkit.oci.main import _VERBS

KNOWN = {"force": "switch", "f": "force", "bundle": "value", "b": "bundle", "env": "value"}


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--bundle", "x"], "bundle", "x"),
        (["--bundle=x"], "bundle", "x"),
        (["-b", "x"], "bundle", "x"),
        (["-bx"], "bundle", "x"),
        (["-b=x"], "bundle", "x"),
        (["-bundle", "x"], "bundle", "x"),
        (["--bundle="], "bundle", ""),
        (["--bundle", "--x"], "bundle", "--x"),
    ],
)
def test_flags_with_a_value_have_many_forms(words, name, value):
    read = flags.read([*words, "id"], KNOWN)
    assert (value, ["id"]) == (read.text(name), read.arguments)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--force"], True), (["-f"], True), (["--force=false"], False), (["--force=true"], True), ([], False)],
)
def test_switches(words, expected):
    assert expected is flags.read(words, KNOWN).has("force")


def test_flags_end_at_the_first_argument_unless_they_may_come_anywhere():
    assert ["id", "--force"] == flags.read(["id", "--force"], KNOWN).arguments
    anywhere = flags.read(["id", "--force"], KNOWN, anywhere=True)
    assert (["id"], True) == (anywhere.arguments, anywhere.has("force"))
    assert ["--force"] == flags.read(["--", "--force"], KNOWN).arguments
    assert ["a", "b"] == flags.read(["--env", "a", "--env=b"], KNOWN).every("env")


@pytest.mark.parametrize("words", [["--nosuch"], ["-x"], ["--bundle"], ["-b"], ["--force=perhaps"]])
def test_flags_that_are_wrong_are_refused(words):
    with pytest.raises(RuntimeFailure):
        flags.read(words, KNOWN).has("force")


def test_every_alias_of_a_verb_has_its_flag():
    for _, _, known in _VERBS.values():
        for kind in known.values():
            assert kind in ("switch", "value") or known[kind] in ("switch", "value")


def test_signals_are_those_of_the_system():
    for name, number in signals.NAMES.items():
        assert getattr(signal, f"SIG{name}") == number
        assert (
            number
            == signals.parse(name)
            == signals.parse(f"SIG{name}")
            == signals.parse(name.lower())
            == signals.parse(str(number))
        )
    assert signal.SIGRTMIN == signals.parse("RTMIN")
    assert signal.SIGRTMAX - 2 == signals.parse("SIGRTMAX-2")


@pytest.mark.parametrize("text", ["", "NOSUCH", "-1", "65", "9x", "RTMIN-1", "RTMIN+99", "SIGSIGKILL"])
def test_invalid_signals_are_refused(text):
    with pytest.raises(RuntimeFailure):
        signals.parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 4))
def test_json_written_is_read_back(value, indent):
    assert value == json.loads(jsontext.dumps(value, indent)) == jsontext.loads(jsontext.dumps(value, indent))


@given(VALUES)
def test_json_is_read_as_the_package_reads_it(value):
    text = json.dumps(value, indent=1, ensure_ascii=False)
    assert (
        json.loads(text) == jsontext.loads(text.encode("utf-8", "surrogatepass")) if not has_surrogates(text) else True
    )


def has_surrogates(text):
    return any("\ud800" <= letter <= "\udfff" for letter in text)


@given(st.text(max_size=12))
def test_invalid_json_is_refused_as_by_the_package(text):
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"\w"):
            jsontext.loads(text)
    else:
        found = jsontext.loads(text) if text.strip() not in ("NaN", "Infinity", "-Infinity") else expected
        assert expected == found or expected != expected


@pytest.mark.parametrize("content", [b"\xff", b"", b"{", b"[1,]", b'{"a":1}}', b"nul", b"NaN", b"[" * 100_000])
def test_json_errors_say_where(content):
    with pytest.raises(ValueError, match=r"\w"):
        jsontext.loads(content)


@given(st.text())
def test_id_is_a_name_of_one_directory(name):
    try:
        assert name == store.check_id(name)
    except RuntimeFailure:
        return
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert name == os.path.basename(f"/x/{name}")


def test_default_root_belongs_to_the_user(monkeypatch, tmp_path):
    monkeypatch.setattr(store.os, "geteuid", lambda: 54_321)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert f"{tmp_path}/containerkit/oci" == store.default_root()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    squatted = "/tmp/containerkit-54321"
    assert f"{squatted}/oci" == store.default_root()
    os.mkdir(squatted, 0o755)
    try:
        with pytest.raises(RuntimeFailure, match="other users can access"):
            store.default_root()
    finally:
        os.rmdir(squatted)


def test_full_log_does_not_undo_the_verb(tmp_path, capsys):
    log = Log(str(tmp_path / "log"))
    log.warning("a word")
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most[1]))
    try:
        log.write_warnings()
        log.error("a reason")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    full = f"warning: --log {tmp_path}/log: file too large\n"
    assert f"warning: a word\n{full}containerkit-oci: a reason\n{full}" == capsys.readouterr().err


def test_log_lines_are_json_and_text(tmp_path, capsys):
    Log(str(tmp_path / "json"), "json").error('what "went" wrong\n')
    entry = json.loads((tmp_path / "json").read_text())
    assert ("error", 'what "went" wrong\n') == (entry["level"], entry["msg"])
    Log(str(tmp_path / "text"), "text").error("wrong")
    assert 'level=error msg="wrong"\n' in (tmp_path / "text").read_text()
    Log(str(tmp_path / "text"), "text").debug("not asked for")
    assert "not asked for" not in (tmp_path / "text").read_text()
    assert "wrong" in capsys.readouterr().err
    with pytest.raises(RuntimeFailure):
        Log("", "xml")


def test_timestamps_are_of_rfc_3339():
    assert "1970-01-01T00:00:01.500000000Z" == timestamp(1_500_000_000)
    assert "2024-02-29T12:00:00.000000001Z" == timestamp(1_709_208_000_000_000_001)


HEAVY = (
    "attr",
    "attrs",
    "typing",
    "re",
    "json",
    "argparse",
    "pathlib",
    "subprocess",
    "enum",
    "socket",
    "collections",
    "dataclasses",
    "ctypes",
    "logging",
)


@pytest.mark.parametrize("verb", ["create", "start", "state", "kill", "delete", "run", "exec"])
def test_verbs_load_nothing_heavy(verb, tmp_path):
    """A verb that fails late shows which modules it imports."""
    source = os.path.dirname(os.path.dirname(containerkit.__file__))
    import _cffi_backend

    module, _, _ = _VERBS[verb]
    further = {
        "create": ["creation", "limits", "cgroups", "users"],
        "run": ["creation", "limits", "cgroups"],
        "exec": ["execute"],
        "delete": ["cgroups"],
    }
    names = [module, *further.get(verb, [])]
    code = (
        f"import sys\nsys.path += {[source, os.path.dirname(_cffi_backend.__file__)]!r}\n"
        "import containerkit.oci.main\n"
        + "".join(f"import containerkit.oci.{name}\n" for name in names)
        + "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert set() == set(HEAVY) & set(done.stdout.split())


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["create", "--help"]])
def test_text_whose_reader_has_read_enough_is_no_error(words):
    """The control: a full device is one."""
    command = [sys.executable, "-m", "containerkit.oci", *words]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert (0, "") == (done.returncode, done.stderr)
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    where = words[0] if words[0] == "create" else "write"
    assert (1, f"containerkit-oci: {where}: no space left on device\n") == (done.returncode, done.stderr)
