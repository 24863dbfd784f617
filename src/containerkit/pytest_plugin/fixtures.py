"""The fixtures of the plugin for pytest. What one of them needs is imported by the tests that use it."""

from __future__ import annotations

import itertools
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Unpack

    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.network import LiveNetwork
    from containerkit.options import ContainerOptions
    from containerkit.project import Project
    from containerkit.project.stack import Stack
    from containerkit.spec.rootfs import RootFS

__all__ = ["container", "container_factory", "image", "network", "project"]

_numbers: Final = itertools.count(1)
"""For names that no other test has."""


@pytest.fixture
def container_factory() -> Iterator[Callable[..., Container]]:
    """A function that starts a container: the arguments are those of :class:`containerkit.Container`.

    All are stopped at the end of the test.
    """
    from containerkit import Container

    with ExitStack() as stack:

        def start(rootfs: RootFS | None = None, **options: Unpack[ContainerOptions]) -> Container:
            return stack.enter_context(Container(rootfs, **options))

        yield start


@pytest.fixture
def container(request: pytest.FixtureRequest, container_factory: Callable[..., Container]) -> Container:
    """A running container, stopped at the end of the test.

    Its options are the mapping with which it is parametrized: ``@pytest.mark.parametrize("container", [{"hostname":
    "here"}], indirect=True)``.
    """
    return container_factory(**getattr(request, "param", {}))


@pytest.fixture(scope="session")
def image() -> Callable[..., Image]:
    """A function that returns an image, pulled if it is not in the store: :meth:`containerkit.Image.get`."""
    from containerkit import Image

    return Image.get


@pytest.fixture
def network(request: pytest.FixtureRequest) -> Iterator[LiveNetwork]:
    """An open internal network, closed at the end of the test. It does not reach the outside.

    Its options, those of :class:`containerkit.Network`, are the mapping with which it is parametrized; ``internal``
    is True unless that says otherwise.
    """
    from containerkit import Network

    options = {"name": "test", "internal": True, **getattr(request, "param", {})}
    with Network(options.pop("name"), **options).open() as live:
        yield live


@pytest.fixture
def project(request: pytest.FixtureRequest) -> Iterator[Callable[..., Stack]]:
    """A function that starts a project and returns its :class:`~containerkit.project.stack.Stack`.

    It takes a :class:`containerkit.project.Project`, or compose files, relative to the file of the test, which get a
    project name that no other test has; and the options of :meth:`Project.up`. At the end of the test each project is
    taken down. Named volumes are removed where the name of the project was chosen here.
    """
    from containerkit.project import Project as Made

    with ExitStack() as stack:

        def start(*sources: Project | str | os.PathLike[str], **options: Any) -> Stack:
            known = sources[0] if len(sources) == 1 and isinstance(sources[0], Made) else None
            if known is None:
                paths = [request.path.parent / os.fspath(each) for each in sources]  # type: ignore[arg-type] # refused there
                name = f"test-{os.getpid()}-{next(_numbers)}"
                begun = Made.load(*paths, name=name, directory=None if paths else request.path.parent).up(**options)
            else:
                begun = known.up(**options)
            stack.callback(begun.down, remove_volumes=known is None)
            return begun

        yield start
