"""Errors, and what they hold."""

import pickle
from typing import assert_type

from containerkit import (
    CleanupError,
    Container,
    ContainerError,
    ContainerTimeout,
    ExitError,
    ImageError,
    ProgramNotFoundError,
    SetupError,
    SpecError,
    StateError,
    UnsupportedError,
    probe,
    run,
)
from containerkit.errors import OutOfMemory


def told(error: ContainerError) -> str:
    if isinstance(error, OutOfMemory):
        return str(error)
    if isinstance(error, (ImageError, StateError, UnsupportedError)):
        return error.__class__.__name__
    if isinstance(error, CleanupError):
        return "; ".join(error.left)
    return f"{error}"


def main() -> None:
    try:
        run(["sh", "-c", "echo why >&2; exit 3"], check=True)
    except ExitError as error:
        assert_type(error.stderr, str | bytes | None)
        assert (error.returncode, error.stderr, error.cause == "exit") == (3, b"why\n", True)
        print(told(error), len(pickle.dumps(error)))
    try:
        run(["sleep", "60"], timeout=0.1, text=True)
    except ContainerTimeout as late:
        assert_type(late.stdout, str | bytes | None)
        assert late.timeout == 0.1
    try:
        run(["no-such-program"])
    except ProgramNotFoundError as missing:
        assert_type(missing.operation, str)
        assert missing.filename == "no-such-program"
    except SetupError as refused:
        assert_type(refused.hint, str)
    try:
        Container(hostname="")
    except SpecError as wrong:
        print(told(wrong))
    report = probe()
    assert_type(report.kernel, str)
    for feature in report.missing:
        print(feature.name, feature.hint)


if __name__ == "__main__":
    main()
