"""The settings of a detached container, which its record contains."""

from __future__ import annotations

import os

from containerkit.detached.health import check_options
from containerkit.detached.known import signal_number
from containerkit.errors import SpecError
from containerkit.security.checks import check_bool
from containerkit.spec.words import checked_id, sequence
from containerkit.values import field, fields_of, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final, Self

    from containerkit.options import ListOf, Word

__all__ = ["NEVER", "Keeping", "Policy"]

_POLICIES: Final = {"no": 0, "on-failure": 1, "always": 2, "unless-stopped": 2}


@frozen
class Policy:
    """When a container is restarted after its end.

    Attributes:
        name: ``"no"``, ``"on-failure"``, ``"always"`` or ``"unless-stopped"``. None of them restarts a container that
            was stopped by hand. Without a daemon that starts at boot, the last two are equal.
        most: the maximum number of consecutive restarts, for ``on-failure``; 0 for any number.
    """

    name: str = "no"
    most: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the policy of ``no``, ``on-failure[:N]``, ``always`` or ``unless-stopped``.

        Raises:
            SpecError: none of these.
        """
        name, colon, most = text.partition(":") if isinstance(text, str) else ("", "", "")
        if name not in _POLICIES or (colon and (name != "on-failure" or not most.isascii() or not most.isdecimal())):
            raise SpecError(f"restart: {text!r:.100} is not one of no, on-failure[:N], always, unless-stopped")
        return cls(name, int(most) if colon else 0)

    def __str__(self) -> str:
        return f"{self.name}:{self.most}" if self.most else self.name

    def number(self, restarts: int) -> int:
        """Return the number for the keeper: 0 never, 1 on failure, 2 always.

        Args:
            restarts: the number of restarts so far.
        """
        return 0 if self.most and restarts >= self.most else _POLICIES[self.name]


NEVER: Final = Policy()


def _check_command(value: ListOf[Word] | str | None) -> tuple[str, ...]:
    """Return the argv of a check. A text is run by the shell."""
    if isinstance(value, str):
        return ("/bin/sh", "-c", value) if value else ()
    return tuple(map(os.fsdecode, sequence(value, "health_command"))) if value is not None else ()


@frozen(kw_only=True)
class Keeping:
    """The settings of a detached container.

    Attributes:
        name: its name; empty for none.
        restart: the policy, as text.
        labels: arbitrary strings.
        stop_signal: the signal that asks it to end; None for that of its image, or SIGTERM.
        stop_timeout_s: the time that it has to end by itself, in seconds.
        tty: whether the command gets a terminal.
        stdin_open: whether its standard input stays open, for ``attach``.
        remove: whether the record is removed at its end.
        log_max_bytes: the size at which a log is rotated.
        log_files: the number of logs to keep.
        image: the name of its image, for display.
        command_line: the options and the command of ``run`` that created it; empty if it was created from Python.
        directory: the working directory of ``run``.
        healthcheck: whether its health is checked.
        health_command: the command that checks it; empty for that of its image.
        health_interval_s, health_timeout_s, health_start_period_s, health_start_interval_s, health_retries,
            health_on_failure: see :class:`containerkit.detached.check_settings.Check`; None for those of its image.
    """

    name: str = ""
    restart: str = "no"
    labels: Mapping[str, str] = field(factory=dict)
    stop_signal: int | str | None = None
    stop_timeout_s: float = 10.0
    tty: bool = False
    stdin_open: bool = False
    remove: bool = False
    log_max_bytes: int = 16 << 20
    log_files: int = 3
    image: str = ""
    command_line: tuple[str, ...] = ()
    directory: str = ""
    healthcheck: bool = True
    health_command: tuple[str, ...] = field(default=(), converter=_check_command)
    health_interval_s: float | None = None
    health_timeout_s: float | None = None
    health_start_period_s: float | None = None
    health_start_interval_s: float | None = None
    health_retries: int | None = None
    health_on_failure: str = "none"

    def __attrs_post_init__(self) -> None:
        if self.name:
            checked_id(self.name)
        policy = Policy.parse(self.restart)
        check_options(self)
        for name in ("tty", "stdin_open", "remove", "healthcheck"):
            check_bool(getattr(self, name), name)
        if self.remove and policy.name != "no":
            raise SpecError(f"remove and restart={self.restart!r} exclude each other: it would be removed at its end")
        if self.stop_signal is not None:
            signal_number(self.stop_signal)
        for key, value in self.labels.items():
            if not isinstance(key, str) or not key or not isinstance(value, str):
                raise SpecError(f"labels: {key!r:.100}: {value!r:.100}: both must be text, and the key not empty")
        for name, least in (("log_max_bytes", 4096), ("log_files", 1)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**60:
                raise SpecError(f"{name}: {number!r:.100} is not a number of at least {least}")
        seconds = self.stop_timeout_s
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 2**31:
            raise SpecError(f"stop_timeout_s: {seconds!r:.100} is not a number of seconds")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Return the settings in a record's ``config.json``."""
        return cls(**{field.name: config[field.name] for field in fields_of(cls) if field.name in config})
