"""Networks, and containers that outlive the program."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Literal, assert_type

from containerkit import (
    DNS,
    Attach,
    Container,
    ContainerEvent,
    Detached,
    Egress,
    EgressRule,
    LiveNetwork,
    Macvlan,
    Network,
    Port,
    Rate,
    Refusal,
    events,
)
from containerkit.project import Service
from containerkit.volume import Volume, create


def described() -> list[str]:
    dns = DNS(servers=["192.0.2.53"], search=("example.com",), options=["ndots:2"])
    assert_type(dns.servers, Literal["host"] | tuple[str, ...])
    assert DNS(servers="host").servers == "host"
    card = Macvlan("eth0", addresses=["192.0.2.9/24"], gateway=("192.0.2.1",), mode="private")
    assert_type(card.addresses, tuple[str, ...])
    assert card.gateway == ("192.0.2.1",)
    web = Service(image="web", ports=("80:80", 81, {"target": 82}), environment=["A=b"], tmpfs="/tmp", command=["a"])
    assert_type(web, Service)
    rules = Egress.only("pypi.org", "*.example.com:443")
    assert_type(rules.rules, tuple[EgressRule, ...])
    return [rule.what for rule in rules.names]


def connected(c: Container) -> Iterator[int]:
    with Network("app", subnets=["10.9.0.0/24"], mtu=1400).open() as net:
        assert_type(net, LiveNetwork)
        assert_type(net.attach(c, Attach(net, aliases=["db"], rate=Rate(down="10M"))), tuple[str, ...])
        with Container(network=[Attach("internet"), net], publish=[8080, "81:80", Port(0, 80)]) as d:
            for port in net.ports(d):
                yield port.host_port
        for refusal in net.refusals():
            assert_type(refusal, Refusal)


def outliving(volume: Volume) -> int:
    assert_type(create("data", size="1G", exist_ok=True), Volume)
    one = Container(network=Network("app"), mounts=[volume.mount("/data", readonly=True)]).detach(
        "web", command=["sh"], restart="on-failure:3", health_command="true", health_on_failure="kill", user="1:1"
    )
    assert_type(one, Detached)
    for event in events(since=timedelta(hours=1), action="die", label="a=b"):
        assert_type(event, ContainerEvent)
        assert_type(event.attributes.get("exit_code"), str | int | None)
    assert_type(one.ports, list[Port])
    return one.wait(5)


if __name__ == "__main__":
    print(described())
