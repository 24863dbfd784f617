"""Make a root from files of the host or of a distribution, and print its name. The same options reuse it."""

from __future__ import annotations

import argparse
import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.image.verb import pinned, say
from containerkit.cli.parsing import Parser
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
'containerkit template NAME --help' describes the options of each. The result is an image in the store.

  containerkit template --list
  containerkit template debian --suite bookworm --package curl --tag my-debian
  containerkit template host --program python3 --into ./root
  containerkit run --image my-debian -- bash
"""

_ARGUMENT: Final = re.compile(r"^    (\w+): (.*(?:\n {8,}.*)*)", re.MULTILINE)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments. Those of a template are added when its name is known."""
    parser.usage = f"{parser.prog} [--list] [NAME [OPTIONS]]"
    parser.add_argument("--list", action="store_true", help="list the templates")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the template")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> int:
    """Make the root and return 0.

    Raises:
        SpecError: a template or argument is unknown.
        ImageError, UnsupportedError: the root can't be made.
    """
    from containerkit.image.templates import template_names

    if options.list:
        for name in template_names():
            say(name)
        return 0
    if options.name is None:
        raise SpecError(f"template: a name is required; choose from {', '.join(template_names())}")
    return _make(options.name, options.options)


def _make(name: str, words: list[str]) -> int:
    from containerkit.image import Store
    from containerkit.image.templates import make_template

    maker = _maker(name)
    parser, flags = _parser(name, maker)
    chosen = vars(parser.parse_args(words))
    arguments = {key: chosen[flag] for key, flag in flags.items() if chosen[flag] is not None}
    image = make_template(name, store=Store(chosen["store"]), again=chosen["again"], **arguments)
    if chosen["tag"] is not None:
        image = image.tag(chosen["tag"])
    if chosen["into"] is not None:
        _fill(image, chosen["into"])
    say(pinned(image))
    return 0


def _fill(image: Any, directory: str) -> None:
    import os

    os.makedirs(directory, exist_ok=True)
    image.unpack_into(directory)


def _maker(name: str) -> Callable[..., Any]:
    from containerkit.image.templates import find_template

    return _image if name == "image" else find_template(name).make


def _image(root: object, *, reference: str, platform: str = "", pull: str = "missing") -> None:
    """Use an image unchanged.

    Args:
        root: the directory.
        reference: the name of the image.
        platform: such as ``linux/arm64``. Default: this machine's.
        pull: ``missing``, ``always`` or ``never``.
    """


def _parser(name: str, maker: Callable[..., Any]) -> tuple[Parser, Mapping[str, str]]:
    """Return the parser for a template's own arguments, and the name under which it stores each of them."""
    documentation = inspect.getdoc(maker) or ""
    parser = Parser(
        prog=f"containerkit template {name}",
        description=documentation.partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    told = {key: " ".join(text.split()).replace("``", "") for key, text in _ARGUMENT.findall(documentation)}
    flags: dict[str, str] = {}
    own = parser.add_argument_group(f"the template {name}")
    for parameter in list(inspect.signature(maker).parameters.values())[1:]:
        flags[parameter.name] = _add_option(own, parameter, told.get(parameter.name, ""))
    group = parser.add_argument_group("the image")
    group.add_argument("--tag", metavar="NAME", help="an additional name for it")
    group.add_argument("--into", metavar="DIR", help="write the root to an empty directory as well")
    group.add_argument("--again", action="store_true", help="make it again even if it exists")
    group.add_argument("--store", metavar="DIR", help="the directory of the images (default: the user's store)")
    return parser, flags


def _add_option(group: Any, parameter: inspect.Parameter, told: str) -> str:
    """Add the option for an argument. A list becomes a repeatable option with a singular name."""
    default = parameter.default
    many = isinstance(default, (tuple, list))
    name = parameter.name.removesuffix("s") if many else parameter.name
    shown = ", ".join(default) if many else default
    if default not in (parameter.empty, "", (), None, False) and "Default" not in told:
        told = f"{told.rstrip('.')} (default: {shown})".strip()
    where = f"template_{parameter.name}"
    how: dict[str, Any] = {"dest": where, "default": None, "help": told.replace("%", "%%") or None}
    if isinstance(default, bool):
        how["action"] = argparse.BooleanOptionalAction
    else:
        how["metavar"] = name.upper()
        how["required"] = default is parameter.empty
        if many:
            how["action"] = "append"
    group.add_argument(f"--{name.replace('_', '-')}", **how)
    return where
