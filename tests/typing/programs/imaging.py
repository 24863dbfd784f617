"""Images: what is fetched, built, run and written. Nothing here is called: it would take a registry."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_type

from containerkit import Build, Change, CompletedProcess, Container, Image, Limits, RootFS
from containerkit.image import Digest, ProgressEvent, Reference, Store, commit


def told(event: ProgressEvent) -> None:
    if event.action == "download" and event.status == "running":
        print(event.done_bytes / event.total_bytes)


def fetched(store: Store) -> Image:
    Image.get("alpine:3.20", pull="missing", platform="linux/arm64", unpack=False)
    assert_type(Image.list(store), list[Image])
    return Image.pull(Reference.parse("alpine:3.20"), store=store, progress=told)


def built(context: Path) -> Image:
    Image.build(context, dockerfile=context / "Dockerfile", tag="app:1", args={"A": "1"}, pull="always", cache=False)
    Image.build(text="FROM alpine\n", network="none", allow=("network.host",), secrets={"token": b"x"}, log=print)
    build = (
        Build.from_("alpine:3.20")
        .run(["apk", "add", "python3"], network="none", mounts=("type=cache,target=/var/cache/apk",))
        .copy("app.py", "/srv/", chown="1000:1000", parents=False)
        .env(A="1")
        .command("python3", "/srv/app.py")
    )
    assert_type(build, Build)
    Image.build(build, context=context, tag="app:2")
    return build.build(context=context, tag="app:3", epoch=0, progress=told)


def used(image: Image, other: Image) -> None:
    assert_type(image.run(["ls"], text=True, timeout=30, container={"limits": Limits(pids=16)}), CompletedProcess[str])
    assert_type(image.run(env={"A": "1"}, cwd="/tmp").stdout, bytes)
    assert_type(image.rootfs(upper="/srv/upper", volumes=False, union="auto"), RootFS)
    assert_type(image.digest, Digest)
    assert_type(image.diff(other), Sequence[Change])
    image.save("x.tar", form="docker-archive")
    image.flatten(Path("x.img"), form="squashfs")
    assert_type(image.squash("x:1", compression="zstd"), Image)
    with Container(image.rootfs()) as c:
        assert_type(commit(c, "x:2", compression="none", entrypoint=("sh",), labels={"a": "b"}), Image)
        health = image.healthcheck(c)
        assert_type(health.wait(timeout=5), bool)
        assert health.status != "unhealthy"


if __name__ == "__main__":
    print(fetched, built, used)
