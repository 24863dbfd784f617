"""Limits of a container, its events and its counters."""

import os
from typing import assert_type

from containerkit import CGroup, Container, Limits, OutOfMemory, Usage, run


def main() -> None:
    if os.geteuid() != 0:  # control groups take root here
        return
    with Container(limits=Limits(memory="64M", pids=32)) as c:
        group = c.cgroup
        assert_type(group, CGroup | None)
        assert group is not None
        with group.events(["oom_kill", "oom"]) as events:
            event = events.wait(timeout=0)
            if event is not None and event.kind == "oom_kill":
                assert_type(event.count, int)
        memory = c.stats().memory
        if memory is not None:
            assert_type(memory.current_bytes, int | None)
        assert_type(group.processes(), frozenset[int])
        c.update(Limits(pids=64))
        done = c.run(["true"])
        assert_type(done.usage, Usage)
        if done.usage.group is not None:
            assert_type(done.usage.group.oom_killed, bool)
        c.pause()
        assert c.state == "paused"
        c.resume()
    try:
        run(["tail", "/dev/zero"], limits=Limits(memory="16M"), check=True)
    except OutOfMemory as error:
        assert_type(error.stderr, str | bytes | None)


if __name__ == "__main__":
    main()
