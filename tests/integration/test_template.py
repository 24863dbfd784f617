"""Prepared objects for containers of one description."""

import os
import threading

import pytest

from containerkit import (
    Container,
    ExitError,
    Mount,
    Namespaces,
    RootFS,
    SpecError,
    StateError,
    Template,
    UnsupportedError,
)

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")


def test_template_runs_and_makes_containers_of_its_description():
    with Container.prepare(hostname="ready", mounts=[Mount.tmpfs("/data", size="1M")]) as template:
        assert isinstance(template, Template)
        assert "ready\n" == template.run(["cat", "/proc/sys/kernel/hostname"], text=True).stdout
        assert b"x" == template.run(["cat"], input=b"x").stdout
        with template.container("one") as c:
            assert "one" == c.id
            assert 0 == c.run(["sh", "-c", "echo x > /data/y"]).returncode
        assert 1 == template.run(["test", "-e", "/data/y"]).returncode
        with pytest.raises(ExitError):
            template.run(["false"], check=True)


def test_template_gives_each_start_a_network_of_its_own():
    try:
        template = Container.prepare(networks=3)
    except UnsupportedError:
        pytest.skip("an ordinary user's container owns its network namespace")
    with template:
        assert template.wait_full(10)
        seen = [template.run(["readlink", "/proc/self/ns/net"], text=True).stdout for _ in range(6)]
        with template.container() as c:
            seen.append(c.run(["readlink", "/proc/self/ns/net"], text=True).stdout)
        assert 7 == len(set(seen) - {os.readlink("/proc/self/ns/net") + "\n"})
        up = template.run(["cat", "/sys/class/net/lo/operstate", "/sys/class/net/lo/flags"], text=True).stdout
        assert "unknown\n0x9\n" == up  # IFF_UP | IFF_LOOPBACK


def test_template_serves_many_threads():
    with Container.prepare() as template:
        results = []
        threads = [
            threading.Thread(target=lambda n=n: results.append(template.run(["echo", str(n)], text=True).stdout))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(f"{n}\n" for n in range(8)) == sorted(results)


def test_template_refuses_options_that_are_not_of_a_command():
    with Container.prepare() as template, pytest.raises(SpecError, match="'hostname' is not an argument of a command"):
        template.run(["true"], hostname="other")


@pytest.mark.parametrize("fields", [{"rootfs": RootFS.dir("/nowhere")}, {"hostnam": "x"}, {"networks": -1}])
def test_template_is_refused_before_its_first_start(fields):
    with pytest.raises((SpecError, UnsupportedError)):
        Container.prepare(**fields)


def test_template_has_no_networks_for_those_that_share_one():
    with pytest.raises(SpecError, match="networks"):
        Container.prepare(networks=2, namespaces=Namespaces(network="host"))


def test_template_that_was_closed_starts_nothing():
    template = Container.prepare()
    template.close()
    template.close()
    for start in (template.container, lambda: template.run(["true"]), template.__enter__):
        with pytest.raises(StateError, match="closed"):
            start()
