"""The errors of the OCI command are the library's."""

import pickle
from errno import EACCES

import pytest

from containerkit import ContainerError, SetupError, SpecError
from containerkit.oci.errors import ConfigError, RuntimeFailure, StepError


@pytest.mark.parametrize(
    ("error", "base", "text"),
    [
        (RuntimeFailure("it failed"), ContainerError, "it failed"),
        (ConfigError("root.path", "is missing"), SpecError, "config.json: root.path: is missing"),
        (StepError("open", EACCES, "/x", "look"), SetupError, "open /x: permission denied (hint: look)"),
        (StepError("exec", EACCES, '"x"'), RuntimeFailure, 'exec "x": permission denied'),
    ],
)
def test_error_is_one_of_the_librarys(error, base, text):
    assert isinstance(error, base)
    again = pickle.loads(pickle.dumps(error))
    assert (type(error), text) == (type(again), str(again))


@pytest.mark.parametrize("name", ["ContainerError", "SpecError", "StateError", "SetupError"])
def test_error_is_named_where_it_is_imported_from(name):
    from containerkit import errors

    assert f"containerkit.errors.{name}" == f"{getattr(errors, name).__module__}.{getattr(errors, name).__qualname__}"
