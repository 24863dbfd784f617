"""Signals by name and number. The module ``signal`` loads enum; these are the numbers of x86 and ARM."""

# ruff: noqa: SIM905 - the list reads better as one text

from __future__ import annotations

from containerkit.oci.errors import RuntimeFailure

__all__ = ["NAMES", "parse"]

NAMES = {
    name: number
    for number, name in enumerate(
        (
            "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN "
            "TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS"
        ).split(),
        start=1,
    )
}
_REALTIME_FIRST, _REALTIME_LAST = 34, 64


def parse(text: str) -> int:
    """Return the number of a signal: ``9``, ``KILL``, ``SIGKILL``, ``RTMIN+3``; 0 only checks permission.

    Raises:
        RuntimeFailure: there is no such signal.
    """
    if text.isdecimal():
        if int(text) <= _REALTIME_LAST:
            return int(text)
    else:
        name = text.upper().removeprefix("SIG")
        name = {"IOT": "ABRT", "POLL": "IO", "CLD": "CHLD"}.get(name, name)
        if name in NAMES:
            return NAMES[name]
        for base, number, sign in (("RTMIN", _REALTIME_FIRST, "+"), ("RTMAX", _REALTIME_LAST, "-")):
            rest = name.removeprefix(base)
            if rest == "" and name == base:
                return number
            if name.startswith(base) and rest[:1] == sign and rest[1:].isdecimal() and int(rest[1:]) <= 30:
                return number + int(rest)
    raise RuntimeFailure(f"unknown signal {text!r}")
