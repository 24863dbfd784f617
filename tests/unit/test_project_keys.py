"""Each key of a compose file has an effect or is refused by name, as documented."""

import re
from pathlib import Path

import pytest

from containerkit.errors import SpecError
from containerkit.project import Project, Service, keys, schema, short
from containerkit.project.plan import Observed, fingerprint, up_plan
from containerkit.project.support import unsupported_builds

PAGE = Path(__file__).parents[2] / "docs" / "projects.md"
LISTED = keys.WORKS.keys() | keys.REFUSED.keys()
PLACES = {
    "": schema.MODEL,
    "services.": schema.SERVICE,
    "services.build.": schema._BUILD,
    "services.deploy.": schema._DEPLOY.known,
    "services.networks.": schema._ON_NETWORK.known,
    "services.volumes.": short._VOLUME.known,
    "networks.": schema._NETWORK.known,
    "volumes.": schema._VOLUME.known,
    "configs.": {**schema._FILE, "content": None},
    "secrets.": {**schema._FILE, "driver": None, "driver_opts": None},
}


def test_each_key_is_on_exactly_one_list():
    assert not keys.WORKS.keys() & keys.REFUSED.keys()
    every = {f"{place}{key}" for place, known in PLACES.items() for key in known}
    above = {path.rsplit(".", depth)[0] for path in LISTED for depth in range(1, path.count(".") + 1)}
    assert not every - LISTED - above, "keys that are on no list"
    for path in LISTED:
        place = max((each for each in PLACES if path.startswith(each)), key=len)
        assert path in every or path.removeprefix(place).partition(".")[0] in PLACES[place], f"{path}: no such key"


def test_the_page_lists_them():
    if not PAGE.exists():
        pytest.skip("the documentation is not beside the tests")
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (works|refused) \| (.*?) ?\|$", PAGE.read_text(), re.MULTILINE)
    expected = {**{path: ("works", note) for path, note in keys.WORKS.items()},
                **{path: ("refused", note) for path, note in keys.REFUSED.items()}}  # fmt: skip
    assert {path: (state, note) for path, state, note in rows} == expected
    assert len(rows) == len(expected)


def made(path, value):
    """Return a project with a value at the path of a key."""
    kind, *parts = path.split(".")
    if kind == "services":
        for part in reversed(parts):
            value = (
                [{"type": "volume", "source": "v", "target": "/v", part: value}]
                if part in ("image", "volume") and parts[0] == "volumes"
                else {part: value}
            )
        if parts[0] == "networks":
            value = {"networks": {"n": value["networks"]}}
        if parts[0] == "build":
            value["build"].setdefault("context", "/")
        value.setdefault("image", "box")
        return Project(services={"a": Service(**value)}, volumes={"v": {}}, networks={"n": {}})
    for part in reversed(parts):
        value = [{"subnet": "10.9.8.0/24", part: value}] if part in ("aux_addresses", "ip_range") else {part: value}
    refers = {"networks": {"networks": ["r"]}, "volumes": {"volumes": ["r:/v"]}}.get(kind, {kind: ["r"]})
    source = {"file": "/etc/hostname"} if kind in ("configs", "secrets") and "external" not in value else {}
    return Project(services={"a": Service(image="box", **refers)}, **{kind: {"r": {**source, **value}}})


SAMPLES = {
    "services.credential_spec": {"file": "x"},
    "services.deploy.resources.reservations.generic_resources": [{"discrete_resource_spec": {"kind": "k", "value": 1}}],
    "services.networks.driver_opts": {"a": "b"}, "services.provider": {"type": "x"},
    "services.storage_opt": {"size": "1G"},
    "services.volumes.volume.labels": {"a": "b"}, "networks.ipam.config.aux_addresses": {"a": "10.9.8.7"},
    "networks.ipam.options": {"a": "b"}, "secrets.driver_opts": {"a": "b"}, "services.cpu_percent": 5,
    "services.cpu_count": 2, "services.devices": ["/dev/fuse"],
}  # fmt: skip


@pytest.mark.parametrize("path", [path for path in keys.REFUSED if "models" not in path])
def test_unsupported_key_is_refused_by_name(path):
    value = SAMPLES.get(path)
    for attempt in (value,) if value is not None else ("x", ["x"], True):
        try:
            project = made(path, attempt)
        except SpecError:  # of another type: the next
            if value is not None:
                raise
            continue
        with pytest.raises(SpecError, match=re.escape(f"{path.rsplit('.', 1)[-1]}: is not supported")):
            project.plan()
        return
    pytest.fail(f"no value fits {path}")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"logging": {"options": {"tag": "x"}}}, "logging.options: 'tag' is not supported"),
        ({"logging": {"driver": "syslog"}}, "choose from json-file, local, none; 'compose logs --follow"),
        ({"logging": {"options": {"max-size": "many"}}}, "max-size: 'many' is not a size"),
        ({"build": {"context": "/", "ssh": ["default=/k"]}}, "build.ssh: 'default=/k' is not supported; choose from default"),
        ({"logging": {"driver": "none", "options": {"max-size": "1m"}}}, "the driver none has no options"),
        ({"deploy": {"mode": "global", "replicas": 2}}, "'global' means one container"),
        ({"deploy": {"endpoint_mode": "vip"}}, "endpoint_mode: 'vip'"),
        ({"deploy": {"update_config": {"order": "start-first"}}, "ports": ["8080:80"]}, "only one can have the host's port 8080"),
        ({"deploy": {"rollback_config": {"order": "start-first"}}, "mac_address": "02:00:00:00:00:01"}, "only one can have the address 02:"),
        ({"devices": ["gpu"]}, "'gpu' is neither a path of a node nor a CDI name"),
        ({"devices": ["no.example/such=0"]}, "is of the kind 'no.example/such'"),
        ({"gpus": [{"capabilities": ["tpu"]}]}, "only GPUs are supported"),
        ({"gpus": [{"driver": "cdi"}]}, "the driver cdi needs device_ids"),
        ({"gpus": [{"options": {"a": "b"}}]}, "gpus.options: drivers have no options here"),
        ({"deploy": {"update_config": {"failure_action": "continue"}}}, "failure_action: 'continue'"),
        ({"deploy": {"update_config": {"max_failure_ratio": 0.5}}}, "max_failure_ratio"),
        ({"deploy": {"placement": {"constraints": ["node.labels.disk==ssd"]}}}, "does not meet 'node.labels.disk==ssd'"),
        ({"deploy": {"placement": {"constraints": ["node.role!=manager"]}}}, "does not meet"),
        ({"deploy": {"placement": {"max_replicas_per_node": 1}, "replicas": 2}}, "max_replicas_per_node"),
        ({"deploy": {"resources": {"reservations": {"cpus": 10000}}}}, "10000 are requested"),
        ({"volumes_from": ["container:x"]}, "volumes_from"),
        ({"build": {"context": "/", "platforms": ["linux/amd64", "linux/arm64"]}}, "only one platform"),
        ({"restart": "sometimes"}, "restart: 'sometimes'"), ({"pull_policy": "daily"}, "pull_policy: 'daily'"),
        ({"volumes": [{"type": "bind", "source": "/", "target": "/x", "bind": {"propagation": "some"}}]}, "propagation: 'some'"),
        ({"volumes": [{"type": "bind", "source": "/", "target": "/x", "read_only": True, "bind": {"recursive": "writable"}}]}, "recursive"),
        ({"pid": "service:b"}, "pid: 'service:b'"), ({"ports": ["80/sctp"]}, "protocol: 'sctp'"),
    ],
)  # fmt: skip
def test_unsupported_values_are_refused(asked, message):
    project = Project(services={"a": Service(**{"image": "box", **asked}), "b": Service(image="box")})
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        project.plan()
    assert str(caught.value).startswith("services.a.")


def test_a_build_is_refused_for_its_own_keys_only():
    keyed = {"context": "/", "cache_from": ["x"]}
    project = Project(
        services={"a": Service(build="/", gpus="all"), "b": Service(build=keyed), "c": Service(image="x", gpus="all")}
    )
    unsupported_builds(project, ["a", "c"])
    with pytest.raises(SpecError, match=r"services\.b\.build\.cache_from: is not supported: caches"):
        unsupported_builds(project, ["a", "b"])


def test_values_that_one_host_satisfies_are_accepted():
    deploy = {
        "mode": "global", "endpoint_mode": "dnsrr", "labels": {"a": "b"}, "update_config": {"order": "stop-first"},
        "placement": {"constraints": ["node.role==manager", "node.platform.os == linux", "node.hostname != none"],
                      "preferences": [{"spread": "node.labels.zone"}], "max_replicas_per_node": 1},
    }  # fmt: skip
    assert Project(services={"a": Service(image="box", deploy=deploy)}).plan().steps


def steps(how, back=False, healthcheck=None):
    keys_ = {"deploy": {"replicas": 3, "update_config": how, "rollback_config": {"parallelism": 0}}}
    project = Project(
        services={"a": Service(image="box", **keys_, **({"healthcheck": healthcheck} if healthcheck else {}))}
    )
    there = {f"project-a-{number}": Observed("a", "other") for number in (1, 2, 3)}
    assert fingerprint(project, "a") != "other"
    plan = up_plan(project, there, open_networks=("default",), back=back)
    return {step.name: step.after for step in plan.steps}


def test_containers_are_replaced_as_the_service_says():
    one = steps({})
    assert one["stop project-a-2"] == ("image a", "start project-a-1")
    two = steps({"parallelism": 2, "delay": "1s", "monitor": "2s"})
    assert two["stop project-a-1"] == two["stop project-a-2"] == ("image a",)
    assert two["stop project-a-3"] == ("image a", "wait project-a-2 delay 1s")
    assert set(two["wait project-a-2 delay 1s"]) >= {"wait project-a-1 running_for 2s", "start project-a-2"}
    assert steps({"parallelism": 0})["stop project-a-3"] == steps({}, back=True)["stop project-a-3"] == ("image a",)
    assert "wait project-a-1 service_healthy" in steps({}, healthcheck={"test": "true"})["stop project-a-2"]
