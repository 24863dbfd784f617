"""Create networks that several commands share, list, inspect and remove them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.cli import FAILED, elsewhere
from containerkit.cli.commands import complain
from containerkit.cli.listing import Listing, inspect, names_wanted, say
from containerkit.errors import ContainerError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

__all__ = ["EPILOG", "define", "main"]

LISTING: Final = Listing(("Name", "Subnets", "Containers", "Internal"), key="Name")

EPILOG = """\
A process keeps each network until it is removed. Containers of all processes of the same user can join it.

  containerkit network create app
  containerkit run --network app:alias=db -- ...
  containerkit run --network app -- ...
  containerkit network rm app
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    making = verbs.add_parser("create", help="create a network")
    making.add_argument("name", metavar="NAME", help="the name of the network")
    making.add_argument(
        "--subnet",
        metavar="CIDR",
        action="append",
        default=[],
        help="a subnet of IPv4 or IPv6 (default: free ones); repeatable",
    )
    making.add_argument("--internal", action="store_true", help="without access to other networks")
    making.add_argument("--isolated", action="store_true", help="its containers can't reach each other")
    making.add_argument(
        "--mtu", metavar="BYTES", type=int, help="default: that of the host's default route, at most 1500"
    )
    making.add_argument("-d", "--driver", choices=("bridge",), default="bridge", help="accepted: there is no other")
    listing = verbs.add_parser("ls", aliases=["list"], help="list the networks of this user")
    LISTING.define(listing)
    listing.add_argument(
        "-f", "--filter", metavar="name=TEXT", action="append", default=[], help="only names with this text; repeatable"
    )
    removing = verbs.add_parser("rm", aliases=["remove"], help="remove networks")
    removing.add_argument("names", metavar="NAME", nargs="+", help="the name of a network")
    removing.add_argument("-f", "--force", action="store_true", help="also if containers are on it, which lose it")
    looking = verbs.add_parser("inspect", help="print networks as JSON")
    looking.add_argument("names", metavar="NAME", nargs="+", help="the name of a network")
    looking.add_argument("-f", "--format", metavar="TEMPLATE", help="a template of Go, such as {{.subnets}}; or json")
    pruning = verbs.add_parser("prune", help="remove networks without containers")
    pruning.add_argument("-f", "--force", action="store_true", help="accepted: there is no confirmation")
    for verb in (making, listing, looking):
        elsewhere.add(verb.prog.removeprefix("containerkit "), verb)


def _answering(names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the facts about networks, except those whose keepers do not answer, which is reported."""
    from containerkit.network.kept import Kept

    found = []
    for name in names:
        try:
            found.append(_facts(name, Kept(name).inspect()))
        except ContainerError as error:
            complain(str(error))
    return found


def main(options: argparse.Namespace) -> int:
    """Run a verb. Return 0, or 125 if a network could not be removed.

    Raises:
        ContainerError: the verb failed.
    """
    from containerkit.network import keeper
    from containerkit.network.kept import Kept
    from containerkit.spec.network import Network

    if options.verb == "create":
        subnets = options.subnet or ("auto4", "auto6")
        network = Network(
            options.name, subnets=subnets, internal=options.internal, isolated=options.isolated, mtu=options.mtu
        )
        keeper.create(network)
        say(options.name)
    elif options.verb in ("ls", "list"):
        wanted = names_wanted("network ls", options.filter)
        names = [name for name in keeper.names() if all(text in name for text in wanted)]
        LISTING.show(options, _answering(names))
    elif options.verb == "inspect":
        inspect(options.format, [Kept(name).inspect() for name in options.names])
    elif options.verb == "prune":
        return _remove([name for name, told in keeper.known() if not told["containers"]], force=False)
    else:
        return _remove(options.names, force=options.force)
    return 0


def _facts(name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "Name": name,
        "Driver": "bridge",
        "Scope": "local",
        "Subnets": list(told["subnets"]),
        "Containers": len(told["containers"]),
        "Internal": bool(told["internal"]),
    }


def _remove(names: list[str], *, force: bool) -> int:
    from containerkit.network import keeper

    failed = 0
    for name in names:
        try:
            keeper.remove(name, force=force)
        except ContainerError as error:
            complain(str(error))
            failed = FAILED
        else:
            say(name)
    return failed
