import pytest

from containerkit import late
from containerkit.errors import CleanupError, ImageError
from containerkit.gc import Swept, gc


def removes():
    return ("a", "b")


def can_not_remove():
    raise CleanupError(("c: Device or resource busy",))


def is_refused():
    raise PermissionError(13, "Permission denied", "/x")


def is_of_another_version():
    raise ImageError("/x: a layout of another version")


@pytest.fixture
def sweepers(monkeypatch):
    def choose(*functions):
        places = {function.__name__: f"{__name__}:{function.__name__}" for function in functions}
        monkeypatch.setattr(late, "SWEEPERS", places)

    return choose


def test_gc_reports_what_it_removed(sweepers):
    sweepers(removes)
    swept = gc()
    assert Swept(removed=("removes a", "removes b")) == swept
    assert swept


def test_gc_continues_after_a_failure(sweepers):
    sweepers(can_not_remove, is_refused, is_of_another_version, removes)
    swept = gc()
    assert ("removes a", "removes b") == swept.removed
    assert (
        "can_not_remove c: Device or resource busy",
        "is_refused: [Errno 13] Permission denied: '/x'",
        "is_of_another_version: /x: a layout of another version",
    ) == swept.left
    assert not swept


def test_gc_knows_where_each_kind_is_swept():
    assert all(callable(late.load(place)) for place in late.SWEEPERS.values())
