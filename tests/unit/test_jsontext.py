"""JSON with the interpreter's own scanner, whose settings are private to each version of Python."""

import subprocess
import sys

import pytest

DOCUMENT = '{"a": [1, 2.5, true, null], "b": {"c": "\\u00e9"}}'
READ = "from containerkit import jsontext\nassert jsontext.loads(sys.argv[1]) == json.loads(sys.argv[1])\n"


@pytest.mark.parametrize("error", [None, "AttributeError", "TypeError"])
def test_a_scanner_that_wants_other_settings_is_done_without(error):
    other = "" if error is None else f"import _json\ndef refuse(settings): raise {error}\n_json.make_scanner = refuse\n"
    program = f"import sys, json\n{other}{READ}assert (jsontext._scan is None) == {error is not None}"
    done = subprocess.run([sys.executable, "-c", program, DOCUMENT], capture_output=True, text=True, timeout=20)
    assert (0, "") == (done.returncode, done.stderr)


def test_the_scanner_gets_all_that_the_packages_own_decoder_has():
    import json.decoder

    from containerkit.jsontext import _Settings

    given = {
        name
        for name in vars(json.decoder.JSONDecoder())
        if not name.startswith(("parse_object", "parse_array", "parse_string", "scan_once"))
    }
    assert given <= set(dir(_Settings))
