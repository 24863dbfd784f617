"""``containerkit image list``, ``inspect`` and the other verbs that inspect and clean a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.image.verb import (
    Verb,
    find,
    image_argument,
    one_line,
    pinned,
    platform_option,
    print_json,
    say,
    size_text,
    table,
    tell,
    time_text,
)
from containerkit.cli.image.verb import store as chosen_store
from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    import argparse

    from containerkit.image import History, Image, ImageConfig

__all__ = ["VERBS", "described"]

_MARKS: Final = {"added": "A", "changed": "C", "deleted": "D"}


# --- list


def _define_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "repository", metavar="NAME", nargs="?", help="list only images of this repository, or with this tag"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON")
    how.add_argument("-q", "--quiet", action="store_true", help="print only names and digests")
    how.add_argument("--format", metavar="TEMPLATE", help="a template of Go, such as {{.Repository}}:{{.Tag}}; or json")
    parser.add_argument(
        "-f",
        "--filter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="reference, dangling, label; repeatable",
    )
    for name, why in (("-a/--all", "there are no hidden ones"), ("--digests", "shown"), ("--no-trunc", "in the JSON")):
        parser.add_argument(*name.split("/"), action="store_true", help=f"accepted: {why}", dest="_accepted")


def _list(options: argparse.Namespace) -> int:
    from containerkit.cli.image.filters import chosen, docker_fields
    from containerkit.cli.listing import listed

    images = chosen(chosen_store(options), options.repository, options.filter)
    if options.quiet:
        for image in images:
            say(pinned(image))
    elif options.json:
        print_json([_summary(image) for image in images])
    elif options.format in (None, "table"):
        table(("NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"), map(_row, images))
    else:
        for line in listed(options.format, map(docker_fields, images)):
            say(line)
    return 0


def _config(image: Image) -> ImageConfig | None:
    """Return the config of an image, or None for other artifacts."""
    try:
        return image.config
    except ImageError:
        return None


def _row(image: Image) -> tuple[str, ...]:
    config = _config(image)
    return (
        image.reference.familiar_with_tag if image.reference else "-",
        image.digest.short,
        str(config.platform) if config else "-",
        time_text(config.created) if config else "-",
        size_text(image.size_bytes),
    )


def _summary(image: Image) -> dict[str, Any]:
    config = _config(image)
    return {
        "name": str(image.reference) if image.reference else None,
        "digest": str(image.digest),
        "id": str(image.id),
        "platform": str(config.platform) if config else None,
        "created": config.created if config else None,
        "size_bytes": image.size_bytes,
    }


# --- inspect, history, diff


def _define_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name, digest or id")
    platform_option(parser)
    raw = parser.add_mutually_exclusive_group()
    raw.add_argument("--manifest", action="store_true", help="print only the manifest, unchanged")
    raw.add_argument("--config", action="store_true", help="print only the config, unchanged")
    raw.add_argument(
        "-f", "--format", metavar="TEMPLATE", help="a template of Go, such as {{.digest}} or {{json .config}}"
    )


def _inspect(options: argparse.Namespace) -> int:
    images = [find(options, text) for text in options.images]
    if options.manifest or options.config:
        import sys

        for image in images:
            sys.stdout.buffer.write(image.config.raw if options.config else image.manifest.raw)
        sys.stdout.flush()
    elif options.format is not None:
        from containerkit.cli.listing import listed

        for line in listed(options.format, map(described, images)):
            say(line)
    else:
        print_json([described(image) for image in images])
    return 0


def described(image: Image) -> dict[str, Any]:
    """Return all known facts about an image, and the most used ones also with Docker's names."""
    config = image.config
    name = image.reference.familiar_with_tag if image.reference else ""
    layers = zip(image.manifest.layers, config.diff_ids, strict=True)
    return {
        **_summary(image),
        "author": config.author,
        "layers": [
            {
                "digest": str(blob.digest),
                "diff_id": str(diff_id),
                "media_type": blob.media_type,
                "size_bytes": blob.size,
            }
            for blob, diff_id in layers
        ],
        "config": config.defaults.to_json(),
        "annotations": dict(image.manifest.annotations),
        "Id": str(image.id),
        "RepoTags": [name] if name and "@" not in name else [],
        "RepoDigests": [f"{name.rpartition(':')[0]}@{image.digest}"] if name and "@" not in name else [],
        "Created": config.created,
        "Author": config.author,
        "Architecture": config.platform.architecture,
        "Os": config.platform.os,
        "Size": image.size_bytes,
        "Config": {**_EMPTY_CONFIG, **config.defaults.to_json()},
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in config.diff_ids]},
    }


_EMPTY_CONFIG: Final[dict[str, Any]] = {
    "User": "", "Env": None, "Cmd": None, "Entrypoint": None, "WorkingDir": "", "Labels": None, "ExposedPorts": None,
    "Volumes": None,
}  # fmt: skip


def _define_history(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--format", metavar="TEMPLATE", help="a template of Go, such as {{.CreatedBy}}; or json")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the command of each step")
    parser.add_argument("--no-trunc", action="store_true", help="accepted: nothing is shortened")


def _history(options: argparse.Namespace) -> int:
    image = find(options, options.image)
    sizes = _sizes(image)
    if options.json:
        print_json([{**entry.to_json(), "size_bytes": size} for entry, size in sizes])
    elif options.quiet:
        for entry, _ in sizes:
            say(one_line(entry.created_by))
    elif options.format is not None:
        from containerkit.cli.listing import listed

        fields = (
            {
                "CreatedAt": entry.created, "CreatedBy": one_line(entry.created_by), "Comment": entry.comment,
                "Size": size_text(size),
            }
            for entry, size in sizes
        )  # fmt: skip
        for line in listed(options.format, fields):
            say(line)
    else:
        rows = ((time_text(entry.created), size_text(size), entry.created_by, entry.comment) for entry, size in sizes)
        table(("CREATED", "SIZE", "CREATED BY", "COMMENT"), rows)
    return 0


def _sizes(image: Image) -> list[tuple[History, int]]:
    """Return each step with the size of its layer, the latest first. The size is 0 for a step without layer."""
    blobs = iter(image.manifest.layers)
    found: list[tuple[History, int]] = []
    for entry in image.history():
        blob = None if entry.empty_layer else next(blobs, None)
        found.append((entry, blob.size if blob is not None else 0))
    return found[::-1]


def _define_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("before", metavar="BEFORE", help="name, digest or id of the first image")
    parser.add_argument("after", metavar="AFTER", help="name, digest or id of the second image")
    platform_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _diff(options: argparse.Namespace) -> int:
    changes = find(options, options.before).diff(find(options, options.after))
    if options.json:
        print_json([{"path": change.path, "kind": change.kind} for change in changes])
    else:
        for change in changes:
            say(f"{_MARKS[change.kind]} {one_line(change.path)}")
    return 0


# --- tag, remove


def _define_tag(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    parser.add_argument("name", metavar="NAME", help="the additional name; an image that has it now loses it")


def _tag(options: argparse.Namespace) -> int:
    find(options, options.image).tag(options.name)
    return 0


def _define_remove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name, digest or id")


def _remove(options: argparse.Namespace) -> int:
    from containerkit.image import Reference

    catalog = chosen_store(options).catalog
    for text in options.images:
        try:
            reference = Reference.parse(text)
        except ValueError:  # an id is not a name
            reference = None
        if reference is not None and catalog.find(reference) is not None:  # for other platforms too
            catalog.remove(reference)
        else:
            _only_name(options, find(options, text)).remove()
    return 0


def _only_name(options: argparse.Namespace, image: Image) -> Image:
    """Return an image that was given by its id, if it has at most one name.

    Raises:
        SpecError: it has several.
    """
    entries = chosen_store(options).catalog.entries()
    names = [entry.ref_name for entry in entries if entry.digest == image.digest and entry.ref_name]
    if len(names) > 1:
        raise SpecError(f"image {image.digest.short} has several names: {', '.join(names)}; use one of them")
    return image


# --- verify, prune


def _define_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="delete damaged files, for the next pull to replace")


def _verify(options: argparse.Namespace) -> int:
    problems = chosen_store(options).verify(repair=options.repair)
    for problem in problems:
        say(one_line(str(problem)))
    return 1 if problems else 0


def _define_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--unnamed", "--all", action="store_true", help="delete images without a name too")
    parser.add_argument("-f", "--force", action="store_true", help="accepted: there is no confirmation")
    parser.add_argument("--cache", action="store_true", help="delete the build cache too")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not list what is removed")


def _prune(options: argparse.Namespace) -> int:
    done = chosen_store(options).collect(unnamed=options.unnamed, cache=options.cache)
    if not options.quiet:
        for digest in done.blobs:
            say(f"removed blob {digest}")
        for digest in done.layers:
            say(f"removed unpacked layer {digest}")
        tell(f"{size_text(done.freed_bytes)} of blobs freed, {done.unfinished} unfinished files removed")
    return 0


VERBS: Final = (
    Verb("list", "list the images of the store", _define_list, _list, ("ls",)),
    Verb("inspect", "print manifests and configs of images as JSON", _define_inspect, _inspect),
    Verb("history", "list the steps that built an image, the latest first", _define_history, _history),
    Verb("diff", "list what an image adds (A), changes (C) and deletes (D) compared to another", _define_diff, _diff),
    Verb("tag", "give an image an additional name", _define_tag, _tag),
    Verb("remove", "remove names; 'prune' then frees the space", _define_remove, _remove, ("rm",)),
    Verb(
        "verify",
        "read everything in the store and compare it with its digests",
        _define_verify,
        _verify,
        epilog="The status is 1 if something is damaged.",
    ),
    Verb("prune", "delete what no name and no running process uses", _define_prune, _prune),
)
