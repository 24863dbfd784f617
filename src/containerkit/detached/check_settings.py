"""The description of a health check, which only containers with one need."""

from __future__ import annotations

from containerkit.detached.health import DEFAULTS, image_of
from containerkit.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from containerkit.detached.settings import Keeping
    from containerkit.spec.container import Spec

__all__ = ["Check"]

_RETRIES: Final = 3
_NS: Final = 1_000_000_000


@frozen(kw_only=True)
class Check:
    """A health check of a container.

    Attributes:
        argv: the command; it passes with status 0.
        interval_s: the time from the end of a check to the next, in seconds.
        timeout_s: the time after which a check has failed, in seconds.
        start_period_s: the initial time in seconds in which failures do not count, unless a check has passed.
        start_interval_s: the interval in the start period, in seconds.
        retries: after so many failures in a row the container is unhealthy.
        on_failure: the reaction: ``"none"``, ``"kill"``, so that the restart policy applies, or ``"stop"``.
    """

    argv: tuple[str, ...]
    interval_s: float = DEFAULTS["interval_s"]
    timeout_s: float = DEFAULTS["timeout_s"]
    start_period_s: float = DEFAULTS["start_period_s"]
    start_interval_s: float = DEFAULTS["start_interval_s"]
    retries: int = _RETRIES
    on_failure: str = "none"

    @classmethod
    def of(cls, keeping: Keeping, spec: Spec) -> Check | None:
        """Return the requested check, or that of the image; None for no check.

        Raises:
            ImageError: the image was removed.
        """
        chosen: dict[str, Any] = {"argv": tuple(keeping.health_command)}
        if spec.rootfs.kind == "image":
            chosen = _of_image(spec, chosen["argv"])
        given = {name: getattr(keeping, f"health_{name}") for name in (*DEFAULTS, "retries", "on_failure")}
        chosen.update({name: value for name, value in given.items() if value is not None})
        return cls(**chosen) if chosen["argv"] else None

    def milliseconds(self) -> tuple[int, int, int]:
        """Return the interval, the interval in the start period, and the start period, as arguments of the keeper."""
        return (
            max(1, int(self.interval_s * 1000)),
            max(1, int(self.start_interval_s * 1000)),
            int(self.start_period_s * 1000),
        )


def _of_image(spec: Spec, argv: tuple[str, ...]) -> dict[str, Any]:
    defaults = image_of(spec, pull="never").defaults
    found = defaults.healthcheck
    if found is None:
        return {"argv": argv}
    kind, words = (found.test[0], found.test[1:]) if found.test else ("NONE", ())
    shell = defaults.shell or ("/bin/sh", "-c")
    times = {name: getattr(found, f"{name[:-2]}_ns") / _NS or value for name, value in DEFAULTS.items()}
    own = {"CMD": words, "CMD-SHELL": (*shell, *words)}.get(kind, ())
    return {**times, "retries": found.retries or _RETRIES, "argv": argv or own}
