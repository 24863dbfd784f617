"""Compose files: YAML, variables, merging, extends, include, profiles."""

import os
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import SpecError
from containerkit.project import Project, Service
from containerkit.project.dotenv import parse_dotenv
from containerkit.project.interpolation import substitute
from containerkit.project.merge import merged
from containerkit.project.shapes import Place, duration, mode, size
from containerkit.project.short import port_list, volume
from containerkit.project.yaml12 import dump_yaml, parse_yaml

HERE = Place("x", "f", "/base")


@pytest.fixture
def load(tmp_path):
    def loader(text, *more, name="p", env=None, **options):
        files = []
        for number, each in enumerate((text, *more)):
            files.append(tmp_path / f"c{number}.yaml")
            files[-1].write_text(textwrap.dedent(each))
        return Project.load(*files, name=name, env=env or {}, **options).model

    return loader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("22:22", "22:22"), ("no", "no"), ("on", "on"), ("true", True), ("0440", 0o440), ("0o17", 15), ("0x1F", 31),
        ("1_000", 1000), ("1.5", 1.5), ("1e3", 1000.0), ("~", None), ("", None), ("'1'", "1"), ("2020-01-01", "2020-01-01"),
        ("08", 8.0), ("1.2.3", "1.2.3"), ("-", None), ("+1", 1), (".5", 0.5), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_those_of_yaml_1_2(text, value):
    if text == "-":
        assert parse_yaml("- ", "f") == [[None]]
    else:
        assert parse_yaml(f"a: {text}", "f") == [{"a": value}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: the key 'a' is a duplicate"),
        ("a: &x [*x]", "contains itself"),
        ("a: !thing 1", "unknown tag '!thing'"),
        ("a: [", "not YAML"),
        ("? [a]\n: 1", "a key must be a string"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(8)), "values"),
    ],
)  # fmt: skip
def test_bad_yaml_is_refused(text, message):
    with pytest.raises(SpecError, match=r"(?s).*") as caught:
        parse_yaml(text, "f")
    assert message in str(caught.value)


def test_merge_keys_of_yaml_yield_to_the_mappings_own():
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz:\n  <<: [*x, *y]\n  a: 0"
    assert parse_yaml(text, "f")[0]["z"] == {"a": 0, "b": 2, "c": 4}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner, max_size=3),
        max_leaves=10,
    )
)  # fmt: skip
def test_dumped_yaml_is_read_back(value):
    assert parse_yaml(dump_yaml({"a": value}), "f") == [{"a": value}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "1"), ("${A}b", "1b"), ("$$A", "$A"), ("${B:-x}", "x"), ("${E:-x}", "x"), ("${E-x}", ""), ("${B-x}", "x"),
        ("${A:+y}", "y"), ("${E:+y}", ""), ("${E+y}", "y"), ("${B+y}", ""), ("${B:-${A}}", "1"), ("${B:-${C:-${A}}}z", "1z"),
        ("${A:?no}", "1"), ("$(date)", "$(date)"), ("a$", "a$"), ("${B:-a}}", "a}"), ("${B}", ""), ("${A:-x}$A", "11"),
        ("${B:-{}}", "{}"),
    ],
)  # fmt: skip
def test_variables_are_replaced(text, value):
    assert substitute(text, {"A": "1", "E": ""}) == value


@pytest.mark.parametrize("text", ["${", "${A", "${1}", "${A!x}", "${}", "${A b}"])
def test_malformed_variables_are_refused(text):
    with pytest.raises(SpecError, match="a malformed variable"):
        substitute(text, {"A": "1"}, place="here")


def test_error_of_a_required_variable_has_its_reason():
    with pytest.raises(SpecError, match=r"services\.web\.image: the variable TAG is required: say which"):
        substitute("${TAG:?say which}", {"TAG": ""}, place="services.web.image")
    assert substitute("${TAG?say which}", {"TAG": ""}) == ""


@given(st.text())
def test_any_text_without_a_dollar_is_itself(text):
    if "$" not in text:
        assert substitute(text, {}) == text
    assert substitute(text.replace("$", "$$"), {}) == text


def test_files_of_variables():
    text = """\
# comment
A=1
export B = two # comment
C='$A raw'
D="${A} \\n"
E=
F=a#b
G
H: yaml
I="multi
line"
"""
    assert parse_dotenv(text, {"G": "g"}, "f") == {
        "A": "1", "B": "two", "C": "$A raw", "D": "1 \n", "E": "", "F": "a#b", "G": "g", "H": "yaml", "I": "multi\nline",
    }  # fmt: skip
    with pytest.raises(SpecError, match=r"f:2: the quote ' is not closed"):
        parse_dotenv("A=1\nB='x", {}, "f")
    with pytest.raises(SpecError, match="f:1: "):
        parse_dotenv("what is this", {}, "f")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3000", [{"target": 3000}]),
        ("8080:80", [{"published": "8080", "target": 80}]),
        ("127.0.0.1:8080:80/udp", [{"host_ip": "127.0.0.1", "published": "8080", "target": 80, "protocol": "udp"}]),
        ("[::1]:8080:80", [{"host_ip": "::1", "published": "8080", "target": 80}]),
        ("127.0.0.1::80", [{"host_ip": "127.0.0.1", "target": 80}]),
        ("8000-8001:80-81", [{"published": "8000", "target": 80}, {"published": "8001", "target": 81}]),
        ("8000-8009:80", [{"published": "8000-8009", "target": 80}]),
    ],
)
def test_ports_have_long_forms(text, expected):
    assert port_list([text], HERE) == [{"mode": "ingress", "protocol": "tcp", **each} for each in expected]


@pytest.mark.parametrize("text", ["a", "80:70000", "1.2.3:80:80", "80/xyz", "9-8:9-8", "80-82:80-81", ""])
def test_bad_ports_are_refused(text):
    with pytest.raises(SpecError, match=r"x\[0\]"):
        port_list([text], HERE)


def test_volumes_have_long_forms():
    assert volume("./a:/b:ro", HERE) == {
        "type": "bind", "source": "/base/a", "target": "/b", "read_only": True, "bind": {"create_host_path": True},
    }  # fmt: skip
    assert volume("data:/b", HERE) == {"type": "volume", "source": "data", "target": "/b", "volume": {}}
    assert volume("/b", HERE) == {"type": "volume", "target": "/b", "volume": {}}
    for bad in ("a::b", "a:b:c:d", "./a:/b:rx", "C:\\x:/y"):
        with pytest.raises(SpecError):
            volume(bad, HERE)


def test_quantities():
    assert [duration(each, HERE) for each in ("90s", "1h2m", "1500ms", "0s", "250us")] == [
        "1m30s", "1h2m0s", "1.5s", "0s", "250µs",
    ]  # fmt: skip
    assert [size(each, HERE) for each in ("64m", "1.5gb", 10, "2kb", "1 GiB")] == [
        "67108864", "1610612736", "10", "2048", "1073741824",
    ]  # fmt: skip
    assert [mode(each, HERE) for each in (0o440, "0440", "440")] == ["0440"] * 3
    for shape, bad in ((duration, "5"), (duration, 5), (size, "x"), (mode, "9"), (mode, 0o17777)):
        with pytest.raises(SpecError):
            shape(bad, HERE)


def test_files_are_merged(load):
    made = load(
        """
        services:
          web:
            image: a
            command: [one]
            ports: ["80:80"]
            environment: {A: 1, B: 2}
            labels: [x=1]
            volumes: ["./a:/v", "data:/d"]
            dns: 1.1.1.1
            depends_on: [db]
            logging: {driver: a, options: {x: 1}}
          db: {image: db}
        volumes: {data: }
        """,
        """
        services:
          web:
            command: [two]
            ports: ["80:80", "81:81"]
            environment: [B=3, C]
            labels: {y: 2}
            volumes: ["./b:/v"]
            dns: [1.1.1.1, 2.2.2.2]
            logging: {driver: b}
        """,
        env={"C": "c"},
    )["services"]["web"]
    assert made["command"] == ["two"]
    assert [each["target"] for each in made["ports"]] == [80, 81]
    assert made["environment"] == {"A": "1", "B": "3", "C": "c"}
    assert made["labels"] == {"x": "1", "y": "2"}
    assert [os.path.basename(each["source"]) for each in made["volumes"]] == ["b", "data"]
    assert made["dns"] == ["1.1.1.1", "2.2.2.2"]
    assert made["logging"] == {"driver": "b"}


def test_reset_and_override(load):
    made = load(
        "services: {web: {image: a, ports: ['80:80'], command: [x], environment: {A: 1, B: 2}, dns: [1.1.1.1]}}",
        """
        services:
          web:
            ports: !override ["81:81"]
            command: !reset null
            environment: {A: !reset null}
            dns: !reset []
        """,
    )["services"]["web"]
    assert [each["target"] for each in made["ports"]] == [81]
    assert "command" not in made
    assert made["environment"] == {"B": "2"}
    assert "dns" not in made


def test_services_extend_each_other(load, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.yaml").write_text(
        "services: {base: {image: a, volumes: ['./x:/x'], environment: {A: 1}, profiles: [p]}}"
    )
    made = load(
        """
        services:
          web: {extends: {service: base, file: sub/base.yaml}, environment: {B: 2}, profiles: !reset []}
          worker: {extends: web, command: work}
        """
    )["services"]
    assert made["worker"]["environment"] == {"A": "1", "B": "2"}
    assert made["worker"]["command"] == ["work"]
    assert made["web"]["volumes"][0]["source"] == str(tmp_path / "sub" / "x")


def test_a_file_that_is_extended_needs_only_the_services_in_use_to_be_valid(load, tmp_path):
    (tmp_path / "base.yaml").write_text(
        textwrap.dedent("""
        services:
          broken: {no-such-key: 1}
          nothing:
          first: {image: a, command: [sleep, "9"], labels: {x: "1"}}
          second: {extends: first, command: !reset null}
    """)
    )
    made = load("""
        services:
          one: {extends: {file: base.yaml, service: second}}
          two: {image: b, extends: {file: base.yaml, service: nothing}}
    """)["services"]
    assert "command" not in made["one"]
    assert made["one"]["labels"] == {"x": "1"}
    assert made["two"]["image"] == "b"
    with pytest.raises(SpecError, match="no-such-key"):
        load("services: {one: {extends: {file: base.yaml, service: broken}}}")


def test_entries_that_are_given_twice_count_once(load):
    made = load("""
        services:
          a:
            image: x
            ports: ["80:80", "81:81", "80:80/tcp", {target: 81, published: 81, mode: host}]
            volumes: ["/a:/b", "v:/c", "/a:/b"]
            devices: [/dev/null, /dev/null]
            extra_hosts: ["h=10.0.0.1,10.0.0.2", "h:10.0.0.2"]
        volumes: {v: }
    """)["services"]["a"]
    assert [(each["target"], each["mode"]) for each in made["ports"]] == [(80, "ingress"), (81, "host")]
    assert [each["target"] for each in made["volumes"]] == ["/b", "/c"]
    assert len(made["devices"]) == 1
    assert made["extra_hosts"] == ["h=10.0.0.1", "h=10.0.0.2"]
    assert (
        load("services: {a: {build: {context: ., dockerfile: ''}}}")["services"]["a"]["build"]["dockerfile"]
        == "Dockerfile"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("services: {a: {extends: b, image: x}, b: {extends: a}}", "extend each other in a circle: a -> b -> a"),
        ("services: {a: {extends: b}}", "there is no service 'b'"),
        ("services: {a: {imagee: x}}", "services.a: unknown key 'imagee'; did you mean 'image'?"),
        ("services: {a: {image: x, depends_on: [a]}}", "depend on each other in a circle: a -> a"),
        ("services: {a: {image: x, depends_on: [b]}}", "services.a: it refers to 'b', which is not among services"),
        ("services: {a: {image: x, networks: [n]}}", "it refers to 'n', which is not among networks"),
        ("services: {a: {image: x, volumes: ['v:/v']}}", "it refers to 'v', which is not among volumes"),
        ("services: {a: {}}", "services.a: it has neither an image nor a build"),
        ("services: {a: {image: 5}}", "services.a.image: must be a string, not a number (5); quote it"),
        ("services: {a: {image: x, scale: 2, container_name: c}}", "several containers can't have the same name"),
        ("services: {a: {image: x, network_mode: host, networks: [default]}}", "exclude each other"),
        ("services: {a: {image: x, healthcheck: {test: [ls]}}}", "it must start with CMD, CMD-SHELL or NONE"),
        ("services: {a: {image: x, mem_limit: lots}}", "services.a.mem_limit: 'lots' is not a size"),
        ("services: {a: {image: x, tmpfs: /x, volumes: [/x]}}", "two mounts have the target /x"),
        ("services: {a: {image: x, container_name: c}, b: {image: x, container_name: c}}", "two services have the name 'c'"),
        ("services: {'a b': {image: x}}", "'a b' is not a name"),
        ("secrets: {s: {}}\nservices: {}", "secrets.s: one of file, environment is needed"),
        ("[]", "the compose file is empty"),
        ("[1]", "must be a mapping"),
        ("services: {a: {image: '${TAG:?which}'}}", "services.a.image: the variable TAG is required: which"),
        ("services: {a: {image: x, extends: {file: https://example.org/c.yaml, service: s}}}", "remote files are not fetched"),
        ("services: {a: {image: x, volumes: [{type: tmpfs, target: /t, tmpfs: {size: -1}}]}}", "-1 is not a whole number of bytes"),
        ("services: {a: {image: x, volumes: [{type: tmpfs, target: /t, tmpfs: {size: 0.5}}]}}", "0.5 is not a whole number of bytes"),
        ("services: {a: {image: x, volumes: [{type: bind, source: 'C:\\\\x', target: /t}]}}", "paths of Windows are not supported"),
        ("services: {a: {image: x, deploy: {resources: {reservations: {devices: [{count: 1}]}}}}}", "the key 'capabilities' is missing"),
        ("services: {a: {image: x, mem_limit: 1g, deploy: {resources: {limits: {memory: 2g}}}}}", "differ"),
    ],
)  # fmt: skip
def test_errors_name_the_problem(load, text, message):
    with pytest.raises(SpecError) as caught:
        load(text)
    assert message in str(caught.value)


def test_files_are_included(load, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "compose.yaml").write_text(
        "services: {db: {image: 'db:${TAG}', volumes: ['./d:/d'], networks: [n]}}\nnetworks: {n: }"
    )
    (tmp_path / "other" / ".env").write_text("TAG=7")
    made = load("include: [other/compose.yaml]\nservices: {web: {image: 'web:${TAG:-none}', depends_on: [db]}}")
    assert made["services"]["db"]["image"] == "db:7"
    assert made["services"]["web"]["image"] == "web:none"
    assert made["services"]["db"]["volumes"][0]["source"] == str(tmp_path / "other" / "d")
    with pytest.raises(SpecError, match=r"services\.db is also in the included .*, with a different value"):
        load("include: [other/compose.yaml]\nservices: {db: {image: x}}")
    (tmp_path / "other" / "compose.yaml").write_text("include: [../c0.yaml]")
    with pytest.raises(SpecError, match="include goes in a circle"):
        load("include: [other/compose.yaml]")


def test_profiles_choose_services(load):
    text = """
        services:
          web: {image: a, depends_on: {debug: {condition: service_started, required: false}}}
          debug: {image: b, profiles: [dev]}
          test: {image: c, profiles: [test], depends_on: [debug]}
    """
    assert set(load(text)["services"]) == {"web"}
    assert set(load(text, profiles=["dev"])["services"]) == {"web", "debug"}
    assert set(load(text, env={"COMPOSE_PROFILES": "dev,test"})["services"]) == {"web", "debug", "test"}
    assert set(load(text, services=["debug"])["services"]) == {"web", "debug"}
    with pytest.raises(SpecError, match="it refers to 'debug'"):
        load(text, services=["test"])
    with pytest.raises(SpecError, match="no service 'nothing'"):
        load(text, services=["nothing"])


def test_names_come_from_where_docker_takes_them(tmp_path):
    directory = tmp_path / "My.App"
    directory.mkdir()
    file = directory / "compose.yaml"
    file.write_text("services: {a: {image: x}}")
    assert Project.load(file, env={}).name == "myapp"
    file.write_text("name: given-${N}\nservices: {a: {image: x}}")
    assert Project.load(file, env={"N": "1"}).name == "given-1"
    assert Project.load(file, env={"COMPOSE_PROJECT_NAME": "env"}).name == "env"
    assert Project.load(file, env={}, name="arg").name == "arg"
    with pytest.raises(SpecError, match="project name 'Arg'"):
        Project.load(file, env={}, name="Arg")


def test_files_of_variables_select_the_files(tmp_path, monkeypatch):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sub")
    text = "services: {a: {image: 'WHERE:$A-$B'}, b: {image: x, profiles: [p]}, c: {image: x, profiles: [q]}}"
    (tmp_path / "compose.yaml").write_text(text.replace("WHERE", "above"))
    (tmp_path / "sub" / "deep" / "x.yaml").write_text(text.replace("WHERE", "deep"))
    (tmp_path / ".env").write_text("A=above\nB=above")
    (tmp_path / "sub" / ".env").write_text("A=here\nCOMPOSE_PROFILES=p, q")
    (tmp_path / "sub" / "deep" / ".env").write_text("A=deep\nB=deep")
    (tmp_path / "sub" / "other.env").write_text("A=other\nCOMPOSE_FILE=deep/x.yaml")

    def image(*files, **env):
        return Project.load(*files, env=env).model["services"]["a"]["image"]

    assert image() == "above:here-above"  # the working directory's, then the one beside the file
    assert set(Project.load(env={}).model["services"]) == {"a", "b", "c"}
    assert image("deep/x.yaml") == "deep:deep-deep"
    assert image(COMPOSE_FILE="deep/x.yaml") == "deep:here-deep"
    assert image(COMPOSE_ENV_FILES="other.env") == "deep:other-"
    assert image("deep/x.yaml", COMPOSE_DISABLE_ENV_FILE="1") == "deep:-"
    (tmp_path / "sub" / ".env").write_text("COMPOSE_FILE=deep/x.yaml")
    assert image() == "deep:deep-deep"


def test_env_files_yield_to_environment(load, tmp_path):
    (tmp_path / "a.env").write_text("A=1\nB=2\n")
    made = load("services: {a: {image: x, env_file: a.env, environment: {B: 3}}}")
    assert made["services"]["a"]["environment"] == {"A": "1", "B": "3"}
    with pytest.raises(SpecError, match="required: false"):
        load("services: {a: {image: x, env_file: none.env}}")
    assert (
        "environment"
        not in load("services: {a: {image: x, env_file: [{path: no.env, required: false}]}}")["services"]["a"]
    )


def test_the_same_project_from_python(load):
    made = Project(
        name="p",
        services={
            "web": Service(image="a", ports=["8080:80"], depends_on=["db"]),
            "db": Service(image="b", environment=["A=1"], healthcheck={"test": "true", "interval": "1s"}),
        },
    )
    read = load(
        """
        services:
          web: {image: a, ports: ["8080:80"], depends_on: [db]}
          db: {image: b, environment: [A=1], healthcheck: {test: "true", interval: 1s}}
        """
    )
    assert made.model == read
    assert list(made.services) == ["db", "web"]
    assert made.services["web"].depends_on == {"db": "service_started"}
    with pytest.raises(SpecError, match="unknown key 'imagee'"):
        Service(imagee="x")
    with pytest.raises(SpecError, match="is not a Service"):
        Project(services={"a": {"image": "x"}})


@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers(), max_size=2)))
def test_merging_with_nothing_changes_nothing(model):
    assert merged(model, {}) == model
    assert merged({}, model) == model
