"""The D-Bus codec: written values can be read back, the bytes match the specification, garbage is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.cgroup.dbus import decode, encode

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
BASIC = {
    "y": st.integers(0, 255),
    "n": st.integers(-(1 << 15), (1 << 15) - 1),
    "q": st.integers(0, (1 << 16) - 1),
    "i": st.integers(-(1 << 31), (1 << 31) - 1),
    "u": st.integers(0, (1 << 32) - 1),
    "x": st.integers(-(1 << 63), (1 << 63) - 1),
    "t": st.integers(0, (1 << 64) - 1),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "o": TEXT,
    "g": st.sampled_from(["", "s", "a{sv}"]),
}


def typed(depth):
    """Draw pairs of a type and a value of it."""
    basic = st.sampled_from(sorted(BASIC)).flatmap(lambda code: st.tuples(st.just(code), BASIC[code]))
    if not depth:
        return basic
    inner = typed(depth - 1)
    arrays = inner.map(lambda pair: ("a" + pair[0], [pair[1]] * 3))
    structs = st.lists(inner, min_size=1, max_size=3).map(
        lambda pairs: ("(" + "".join(code for code, _ in pairs) + ")", tuple(value for _, value in pairs))
    )
    return st.one_of(basic, arrays, structs)


@given(st.lists(typed(2), max_size=4), st.integers(0, 16))
def test_values_read_back(pairs, start):
    signature = "".join(code for code, _ in pairs)
    values = [value for _, value in pairs]
    data = bytes(start) + encode(signature, values, start)
    assert (values, len(data)) == decode(signature, data, start)


def test_variant_carries_its_type_and_reads_back_as_its_value():
    data = encode("a(sv)", [[("PIDs", ("au", [7])), ("Delegate", ("b", 1))]])
    assert [[("PIDs", [7]), ("Delegate", 1)]] == decode("a(sv)", data)[0]


def test_alignment_is_as_the_specification_draws_it():
    assert bytes.fromhex("01 000000 03000000 616263 00") == encode("ys", (1, "abc"))
    assert bytes.fromhex("08000000 00000000 0500000000000000") == encode("at", ([5],))
    assert bytes.fromhex("00000000 00000000") == encode("at", ([],))


@given(st.binary(max_size=200), st.sampled_from(["a(yv)", "s", "v", "a{sv}", "uoss", "aas", "(ybnqiuxtdsogv)"]))
def test_garbage_raises_nothing_but_a_value_error(data, signature):
    with contextlib.suppress(ValueError):
        decode(signature, data)


@pytest.mark.parametrize("signature", ["z", "(s", "a", "(", "{s"])
def test_malformed_signature_is_refused(signature):
    with pytest.raises(ValueError, match="signature"):
        decode(signature, bytes(64))
