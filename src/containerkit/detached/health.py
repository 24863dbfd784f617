"""Health checks of detached containers: their description, their results, and the execution of one.

No process stays for them. The keeper starts an interpreter for each check (``python -m containerkit.detached.check``),
which runs the command in the container and records the result.

Source: Dockerfile reference, "HEALTHCHECK".
"""

from __future__ import annotations

import signal
import time

from containerkit.detached.known import HEALTH_FILE, health_state
from containerkit.errors import SpecError
from containerkit.values import asdict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from containerkit.detached.check_settings import Check
    from containerkit.detached.container import Detached
    from containerkit.detached.settings import Keeping
    from containerkit.detached.store import Entry
    from containerkit.image import Image
    from containerkit.spec.container import Spec

__all__ = ["DEFAULTS", "begin", "check", "check_options", "default_command", "image_of", "wanted"]

DEFAULTS: Final = {"interval_s": 30.0, "timeout_s": 30.0, "start_period_s": 0.0, "start_interval_s": 5.0}
_OUTPUT_BYTES: Final = 4096
_KEPT: Final = 5
_FIELDS: Final = ("env", "extra_env", "cwd", "user", "groups")
ACTIONS: Final = ("none", "kill", "stop")


def image_of(spec: Spec, **options: Any) -> Image:
    """Return the image of a container's root.

    Args:
        spec: its root is ``RootFS.image``.
        options: as for :meth:`containerkit.image.Image.get`, instead of those of the root.

    Raises:
        ImageError: it is not available.
    """
    from containerkit.image import Image, Store

    named = ("pull", "platform", "store")
    chosen: dict[str, Any] = {name: value for name, value in spec.rootfs.arguments if name in named} | options
    if isinstance(chosen.get("store"), str):
        chosen["store"] = Store(chosen["store"])
    return Image.get(spec.rootfs.name, **chosen)


def default_command(spec: Spec) -> tuple[str, ...]:
    """Return the command of a container's image.

    Raises:
        SpecError: its root is not an image.
    """
    if spec.rootfs.kind != "image":
        raise SpecError("detach: this root has no command: pass command=[...]")
    return tuple(image_of(spec).defaults.argv(None))


def check_options(keeping: Keeping) -> None:
    """Refuse invalid options of a check.

    Raises:
        SpecError: an option is invalid.
    """
    for name in DEFAULTS:
        seconds = getattr(keeping, f"health_{name}")
        least = 0.0 if name == "start_period_s" else 0.001
        wrong = isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not least <= seconds < 2**31
        if seconds is not None and wrong:
            raise SpecError(f"health_{name}: {seconds!r:.100} is not a number of seconds, at least {least:g}")
    retries = keeping.health_retries
    if retries is not None and (isinstance(retries, bool) or not isinstance(retries, int) or retries < 1):
        raise SpecError(f"health_retries: {retries!r:.100} is not a number of at least 1")
    if keeping.health_on_failure not in ACTIONS:
        raise SpecError(f"health_on_failure: {keeping.health_on_failure!r:.100} is not one of {', '.join(ACTIONS)}")
    if keeping.health_command and not keeping.healthcheck:
        raise SpecError("health_command and healthcheck=False exclude each other")


def wanted(keeping: Keeping, spec: Spec) -> Check | None:
    """Return the requested check, or that of the image; None for no check.

    Raises:
        ImageError: the image was removed.
    """
    if not keeping.healthcheck or not (keeping.health_command or spec.rootfs.kind == "image"):
        return None
    from containerkit.detached.check_settings import Check

    return Check.of(keeping, spec)


def begin(entry: Entry, check: Check | None, run: int) -> None:
    """Record the beginning of a run without results."""
    if check is not None:
        entry.write(HEALTH_FILE, {"run": run, "check": asdict(check), "status": "starting", "streak": 0, "log": []})


def check(entry: Entry) -> bool:
    """Check once, and record the result.

    Returns:
        Whether it has passed.

    Raises:
        StateError: it is not running, or is paused, which does not count as a failure.
    """
    from containerkit.detached.check_settings import Check
    from containerkit.detached.container import Detached
    from containerkit.detached.events import emit

    one = Detached(entry)
    status, run, _ = one.looked_at()
    found = health_state(entry, status, run)
    if found is None or status != "running":
        return False
    options = Check(**{**found["check"], "argv": tuple(found["check"]["argv"])})
    result = _probe(one, options)
    found["log"] = [*found["log"], result][-_KEPT:]
    former, passed = found["status"], result["ExitCode"] == 0
    if passed:
        found.update(status="healthy", streak=0)
    elif former != "starting" or time.time() - float(run["started"]) >= options.start_period_s:
        found["streak"] += 1
        if found["streak"] >= options.retries:
            found["status"] = "unhealthy"
    entry.write(HEALTH_FILE, {key: value for key, value in found.items() if key != "version"})
    if found["status"] != former:
        emit(entry, "health_status", health=found["status"])
        if found["status"] == "unhealthy":
            _act(one, int(run["run"]), options.on_failure)
    return bool(passed)


def _act(one: Detached, run: int, action: str) -> None:
    if action == "kill":  # not stopped by hand: the restart policy applies
        one.signal_command(signal.SIGKILL, run)
    elif action == "stop":
        one.ask_to_end(run)


def _probe(one: Detached, options: Check) -> dict[str, Any]:
    from containerkit.errors import ContainerTimeout, SetupError

    began, code = time.time(), -1
    written: bytes | str = b""
    fields = {name: value for name, value in one.description().fields.items() if name in _FIELDS}
    try:
        with one.attach() as view:
            done = view.run(list(options.argv), stderr=-2, timeout=options.timeout_s, **fields)
        code, written = done.returncode, done.stdout
    except ContainerTimeout as error:
        partly = error.stdout or b""
        written = partly if isinstance(partly, bytes) else partly.encode()
        written += f"\nit has not ended within {options.timeout_s:g} s".encode()
    except SetupError as error:
        written = str(error)
    kept = written[-_OUTPUT_BYTES:]
    text = kept if isinstance(kept, str) else kept.decode("utf-8", "replace")
    return {"Start": _rfc3339(began), "End": _rfc3339(time.time()), "ExitCode": code, "Output": text}


def _rfc3339(seconds: float) -> str:
    microseconds = int(seconds % 1 * 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(seconds))) + f".{microseconds:06}Z"
