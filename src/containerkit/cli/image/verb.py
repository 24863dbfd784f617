"""What the verbs of ``containerkit image`` share: how one is described, which image is meant, what is shown."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from containerkit.cli.commands import printable
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from containerkit.image import Image, Store
    from containerkit.image.progress import Progress

__all__ = [
    "Verb",
    "find",
    "image_argument",
    "one_line",
    "pinned",
    "platform_option",
    "print_json",
    "progress",
    "quiet_option",
    "say",
    "size_text",
    "store",
    "table",
    "tell",
    "time_text",
]

_HEXADECIMAL: Final = frozenset("0123456789abcdef")
_SHORTEST_ID: Final = 7
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class Verb(NamedTuple):
    """One verb.

    Attributes:
        name: the word.
        purpose: what it does, after "to".
        define: adds its arguments to a parser.
        main: carries it out; returns the exit status.
        aliases: other words for it.
        epilog: more about it.
    """

    name: str
    purpose: str
    define: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]
    aliases: tuple[str, ...] = ()
    epilog: str | None = None


def image_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the argument for an image in the store, and the platform that is meant of an index."""
    parser.add_argument("image", metavar="IMAGE", help="name, digest or id", **more)
    platform_option(parser)


def platform_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for a platform."""
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="such as linux/arm64 (default: this machine's)")


def quiet_option(parser: argparse.ArgumentParser) -> None:
    """Add the option against progress bars."""
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress, not on a terminal either")


def store(options: argparse.Namespace) -> Store:
    """Return the store that is meant.

    Raises:
        ImageError, SetupError: it is none, or can't be made.
    """
    from containerkit.image import Store

    return Store(options.store)


def find(options: argparse.Namespace, text: str) -> Image:
    """Return an image of the store by its name, or by how its digest or id begins.

    Raises:
        SpecError: several begin so, or the text is neither.
        ImageError: it is not there.
    """
    from containerkit.image import Image

    place = store(options)
    number = text.removeprefix("sha256:")
    if len(number) >= _SHORTEST_ID and set(number) <= _HEXADECIMAL and not _is_name(place, text):
        images = [image for image in Image.list(place) if _begins(image, number)]
        if len({image.digest for image in images}) > 1:
            raise SpecError(f"image {text}: several begin so; write more of it")
        if images:
            return images[0]
    return Image.open(text, platform=getattr(options, "platform", None), store=place)


def _begins(image: Image, number: str) -> bool:
    return image.digest.encoded.startswith(number) or image.id.encoded.startswith(number)


def _is_name(place: Store, text: str) -> bool:
    try:
        return place.find(text) is not None
    except SpecError:  # a whole id is no name
        return False


@contextmanager
def progress(options: argparse.Namespace) -> Iterator[Progress]:
    """Lend what shows progress: bars on a terminal, silence elsewhere or when it is asked for."""
    from containerkit.image.progress import silent, terminal_progress

    if options.quiet:
        yield silent
        return
    with terminal_progress() as shown:
        yield shown


def pinned(image: Image) -> str:
    """Return a name by which just this image is found again."""
    if image.reference is None:
        return str(image.digest)
    return str(image.reference.with_digest(str(image.digest)))


# --- What is shown


def say(text: str = "") -> None:
    """Write a line to stdout."""
    print(text, flush=True)  # noqa: T201 - a command line speaks


def tell(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - a command line speaks


def print_json(value: Any) -> None:
    """Write a value to stdout as JSON, for programs."""
    import json

    say(json.dumps(value, indent=2))


def one_line(text: str) -> str:
    """Return a text of somebody else's as one line that can't steer a terminal."""
    return printable(text).replace("\n", "\\n")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write columns to stdout, each as wide as its widest entry."""
    lines = [list(titles), *([one_line(entry) for entry in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(titles))]
    for line in lines:
        say("  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip())


def size_text(size: float) -> str:
    """Return a size in bytes as people read it."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def time_text(created: str) -> str:
    """Return a time of RFC 3339 to the minute; a dash for none."""
    return created[:16].replace("T", " ") or "-"
