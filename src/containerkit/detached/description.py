"""The description of a detached container: its spec and its command."""

from __future__ import annotations

import pickle

from containerkit.container.arguments import COMMAND_FIELDS, owns_nothing
from containerkit.detached.wiring import refuse_bound
from containerkit.errors import SpecError, StateError
from containerkit.spec.container import CONFINEMENT, Spec, check_names
from containerkit.spec.words import encode
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Description"]


@frozen(kw_only=True)
class Description:
    """The parts from which a container is created.

    Attributes:
        spec: the container.
        argv: the command.
        fields: its other arguments, as for ``popen``.
    """

    spec: Spec
    argv: tuple[str, ...]
    fields: Mapping[str, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not self.argv:
            raise SpecError("detach: the image has no command: pass command=[...]")
        encode(self.argv, "argv")
        check_names("detach", self.fields, COMMAND_FIELDS - {"pass_fds"} - CONFINEMENT)
        if self.spec.namespaces.pid != "new":
            raise SpecError("detach: the pid namespace must be new, so that all processes of the container end with it")
        if self.spec.wishes_for_network:
            refuse_bound(self.spec)
        if not owns_nothing(self.spec):
            raise SpecError(
                "detach: a namespace that this process holds can't be passed on: use a new one or the host's"
            )

    def dump(self) -> bytes:
        """Return it as bytes for the record.

        Raises:
            SpecError: a part of it belongs to this process.
        """
        try:
            return pickle.dumps(self)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise SpecError(f"detach: a part of the description can't outlive this process: {error}") from None

    @classmethod
    def load(cls, content: bytes) -> Description:
        """Read the result of :meth:`dump`. The record belongs to the user who reads it.

        Raises:
            StateError: it was written by another version.
        """
        try:
            found = pickle.loads(content)  # noqa: S301 - only the user can write it
        except Exception as error:  # noqa: BLE001 - a pickle of another version may fail in any way
            raise StateError(f"the description was written by another version of containerkit: {error}") from None
        if not isinstance(found, cls):
            raise StateError("the description was written by another version of containerkit")
        return found
