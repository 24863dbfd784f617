"""Containers for asyncio."""

import asyncio
from typing import assert_type

from containerkit import PIPE, Detached, Image, Network, aio
from containerkit.cgroup.stats import Stats
from containerkit.process.result import CompletedProcess


async def main() -> None:
    assert_type(await aio.run(["true"], text=True), CompletedProcess[str])
    assert_type(await aio.run(["true"], timeout=5, hostname="here"), CompletedProcess[bytes])
    async with aio.AsyncContainer(hostname="here") as c:
        assert_type(await c.run(["true"], encoding="utf-8"), CompletedProcess[str])
        async with c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
            if p.stdin is not None and p.stdout is not None:
                p.stdin.write(b"x")
                p.stdin.close()
                assert_type([line async for line in p.stdout], list[bytes])
            assert_type(await p.wait(), int)
        assert_type(await c.files.read_text("/etc/passwd"), str)
        async with c.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as t:
            if t.stdin is not None and t.stdout is not None:
                t.stdin.write("x")
                t.stdin.close()
                assert_type([line async for line in t.stdout], list[str])
        assert_type(await c.logs(tail=1), str)
        assert_type(await (await aio.popen(["true"], encoding="utf-8")).communicate(), tuple[str | None, str | None])
    async with aio.OpenNetwork(Network("app")) as net:
        assert_type(net.closed, bool)
    q = await aio.popen(["true"])
    assert_type(q.returncode, int | None)
    await q.aclose()


async def fetch(c: aio.AsyncContainer) -> None:
    assert_type(await c.stats(), Stats)
    assert_type(await aio.pull("alpine"), Image)


async def follow(c: Detached) -> None:
    assert_type([str(line) async for line in aio.logs(c, follow=True)], list[str])


async def get() -> None:
    assert_type(await aio.call(Image.get, "alpine", pull="never"), Image)


asyncio.run(main())
