"""What the verbs of ``containerkit image`` share: their description, the choice of an image, and output."""

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
        name: the name of the verb.
        purpose: what it does, for the help.
        define: adds its arguments to a parser.
        main: runs it and returns the exit status.
        aliases: other names of the verb.
        epilog: more help.
    """

    name: str
    purpose: str
    define: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]
    aliases: tuple[str, ...] = ()
    epilog: str | None = None


def image_argument(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add the argument for an image in the store, and the option for the platform within an index."""
    parser.add_argument("image", metavar="IMAGE", help="name, digest or id", **more)
    platform_option(parser)


def platform_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for a platform."""
    parser.add_argument("--platform", metavar="OS/ARCH[/VARIANT]", help="such as linux/arm64 (default: this machine's)")


def quiet_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that disables progress bars."""
    parser.add_argument("-q", "--quiet", action="store_true", help="do not show progress")


def store(options: argparse.Namespace) -> Store:
    """Return the store of the options.

    Raises:
        ImageError, SetupError: the directory is not a store, or can't be created.
    """
    from containerkit.image import Store

    return Store(options.store)


def find(options: argparse.Namespace, text: str) -> Image:
    """Find an image in the store by its name, or by the first digits of its digest or id.

    Raises:
        SpecError: several images match, or the text is neither.
        ImageError: no image matches.
    """
    from containerkit.image import Image

    place = store(options)
    number = text.removeprefix("sha256:")
    if len(number) >= _SHORTEST_ID and set(number) <= _HEXADECIMAL and not _is_name(place, text):
        images = [image for image in Image.list(place) if _begins(image, number)]
        if len({image.digest for image in images}) > 1:
            raise SpecError(f"image {text}: several images match; use more digits")
        if images:
            return images[0]
    return Image.open(text, platform=getattr(options, "platform", None), store=place)


def _begins(image: Image, number: str) -> bool:
    return image.digest.encoded.startswith(number) or image.id.encoded.startswith(number)


def _is_name(place: Store, text: str) -> bool:
    try:
        return place.find(text) is not None
    except SpecError:  # a complete id is not a name
        return False


@contextmanager
def progress(options: argparse.Namespace) -> Iterator[Progress]:
    """Provide progress output: bars on a terminal, nothing elsewhere or with ``--quiet``."""
    from containerkit.image.progress import silent, terminal_progress

    if options.quiet:
        yield silent
        return
    with terminal_progress() as shown:
        yield shown


def pinned(image: Image) -> str:
    """Return a name that identifies exactly this image."""
    if image.reference is None:
        return str(image.digest)
    return str(image.reference.with_digest(str(image.digest)))


# --- Output


def say(text: str = "") -> None:
    """Write a line to stdout."""
    print(text, flush=True)  # noqa: T201 - the command line prints its output


def tell(text: str) -> None:
    """Write a line to stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line prints messages


def print_json(value: Any) -> None:
    """Write a value to stdout as JSON."""
    import json

    say(json.dumps(value, indent=2))


def one_line(text: str) -> str:
    """Return untrusted text as one line that can't control a terminal."""
    return printable(text).replace("\n", "\\n")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write columns to stdout. Each is as wide as its widest entry."""
    lines = [list(titles), *([one_line(entry) for entry in row] for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(titles))]
    for line in lines:
        say("  ".join(entry.ljust(width) for entry, width in zip(line, widths, strict=True)).rstrip())


def size_text(size: float) -> str:
    """Return a size in bytes in readable form."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def time_text(created: str) -> str:
    """Return a time of RFC 3339, rounded down to the minute, or a dash for none."""
    return created[:16].replace("T", " ") or "-"
