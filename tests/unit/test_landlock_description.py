import pickle
from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan.operation import Block
from containerkit.plan.tape import Plan
from containerkit.security.landlock import FILES, PORTS, SCOPES, UNCOVERED, Landlock, PathRule, PortRule

NEWEST = 7


def handled(operations):
    """Return the three masks of the ruleset."""
    content = operations[0].args[0]
    assert isinstance(content, Block)
    return unpack("=QQQ", content.content)


def added(operations):
    """Return (type, rights) of each rule."""
    return [
        (step.args[1], int.from_bytes(step.args[2].content[:8], "little"))
        for step in operations
        if step.name == "landlock_add_rule"
    ]


@pytest.mark.parametrize(
    ("version", "masks"),
    [
        (1, (0x1FFF, 0, 0)),
        (2, (0x3FFF, 0, 0)),
        (3, (0x7FFF, 0, 0)),
        (4, (0x7FFF, 3, 0)),
        (5, (0xFFFF, 3, 0)),
        (6, (0xFFFF, 3, 3)),
        (7, (0xFFFF, 3, 3)),
    ],
)
def test_ruleset_handles_what_each_abi_knows(version, masks):
    assert masks == handled(Landlock(strict=False).operations(version))


def test_strict_ruleset_on_an_older_kernel_names_what_is_missing():
    with pytest.raises(UnsupportedError, match=r"signal: it needs Landlock ABI 6 \(Linux 6.12\).*strict=False"):
        Landlock().operations(5)
    assert Landlock().operations(6)
    assert Landlock(scopes=[]).operations(5)


def test_ruleset_without_landlock_is_an_error_or_reported_as_unenforced():
    with pytest.raises(UnsupportedError, match="Landlock ABI 0"):
        Landlock().operations(0)
    relaxed = Landlock(strict=False)
    assert relaxed.operations(0) == ()
    assert (relaxed.report(0).enforced, len(relaxed.report(0).missing)) == ((), len(FILES) + len(PORTS) + len(SCOPES))
    assert "enforced: nothing" in str(relaxed.report(0))


def test_report_lists_enforced_and_missing_rights():
    report = Landlock(strict=False, logging=["subdomains_off"]).report(3)
    assert not report.complete
    assert [each.split(":")[0] for each in report.missing] == [
        "ioctl_dev",
        "bind_tcp",
        "connect_tcp",
        "abstract_unix_socket",
        "signal",
        "logging",
    ]
    assert all(f"never covered: {each}" in str(report) for each in UNCOVERED)
    assert Landlock().report(NEWEST).complete


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Landlock(files=["run"]),
        lambda: Landlock(files="execute"),
        lambda: Landlock(ports=["udp"]),
        lambda: Landlock(scopes=["ptrace"]),
        lambda: Landlock(logging=["all"]),
        lambda: Landlock(files=[], ports=[], scopes=[]),
        lambda: Landlock().allow_read("relative"),
        lambda: Landlock().allow_read("/nul\0byte"),
        lambda: Landlock().allow("/x", rights=[]),
        lambda: Landlock().allow_bind(65536),
        lambda: PortRule(port=1, rights=[]),
        lambda: PathRule(path="/", rights=["fly"]),
    ],
)
def test_invalid_description_is_refused(wrong):
    with pytest.raises(SpecError):
        wrong()


@given(
    st.lists(st.sampled_from(sorted(FILES)), min_size=1, unique=True),
    st.integers(1, NEWEST),
    st.lists(st.sampled_from(sorted(FILES)), unique=True),
)
def test_rules_give_exactly_the_rights_that_are_handled(rights, version, files):
    ruleset = Landlock(files=files, strict=False).allow("/x", rights=rights)
    bits = {name: 1 << bit for bit, name in enumerate(FILES)}
    expected = sum(bits[name] for name in set(rights) & set(files) if FILES[name] <= version)
    operations = ruleset.operations(version)
    total = 0
    for kind, mask in added(operations):
        assert kind == 1
        assert mask
        assert not total & mask
        total |= mask
    assert expected == total
    if operations:
        assert not total & ~handled(operations)[0]


def test_port_rules_give_the_rights():
    operations = Landlock(files=[]).allow_bind(0, 80).allow_connect(443).operations(NEWEST)
    assert [(2, 1), (2, 1), (2, 2)] == added(operations)
    assert [unpack("=QQ", step.args[2].content)[1] for step in operations if step.name == "landlock_add_rule"] == [
        0,
        80,
        443,
    ]


def test_optional_path_skips_its_own_steps_only():
    operations = Landlock().allow_write("/a", optional=True).allow_read("/b").operations(NEWEST)
    opened = next(at for at, step in enumerate(operations) if step.target == "/a")
    assert operations[opened + 1 + operations[opened].skip].target == "/b"
    assert operations[opened + operations[opened].skip].name == "close"
    assert Plan(operations).encode().steps


def test_description_pickles_and_compares():
    made = Landlock().allow_read("/usr").allow_connect(443)
    assert made == pickle.loads(pickle.dumps(made))
    assert hash(made) == hash(Landlock().allow_read("/usr").allow_connect(443))
