import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import Mount, Namespaces, RootFS, cli
from containerkit.cli import arguments, commands, values
from containerkit.cli.parsing import Parser
from containerkit.errors import SpecError
from containerkit.spec.idmap import IdMapping


def parsed(*words):
    parser = Parser(exit_on_error=False, allow_abbrev=False)
    arguments.define(parser)
    return parser.parse_args(words)


# --- Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", Mount.bind("/a", "/b")),
        ("/a:/b:ro", Mount.bind("/a", "/b", readonly=True)),
        ("/a:/b:rw", Mount.bind("/a", "/b", readonly=False)),
        ("/a:/b:ro,noexec,norecursive", Mount.bind("/a", "/b", readonly=True, noexec=True, recursive=False)),
        ("/a:/b:noidmap", Mount.bind("/a", "/b", idmap=False)),
        ("/a", Mount.bind("/a", "/a")),
        ("/a::ro", Mount.bind("/a", "/a", readonly=True)),
    ],
)
def test_bind_is_source_target_options(text, expected):
    assert expected == values.bind(text)


def test_bind_takes_relative_sources_from_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Mount.bind(tmp_path / "here", str(tmp_path / "here")) == values.bind("here")


@pytest.mark.parametrize("text", ["", ":/b", "/a:b", "/a:/b:zz", "/a:/b:ro:x", "/a:/../b", "/a:/"])
def test_bind_refuses_invalid_text(text):
    with pytest.raises(SpecError):
        values.bind(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=bind,source=/a,target=/b", Mount.bind("/a", "/b")),
        ("src=/a,dst=/b,ro", Mount.bind("/a", "/b", readonly=True)),
        ("source=/a,destination=/b,readonly=false", Mount.bind("/a", "/b")),
        ('"source=/a,b",target=/c', Mount.bind("/a,b", "/c")),
        ("type=tmpfs,target=/t,size=64m,mode=755", Mount(type="tmpfs", source="tmpfs", target="/t",
                                                       options=(("size", "64m"), ("mode", "755")))),
        ("type=proc,target=/proc,noexec", Mount(type="proc", source="proc", target="/proc", noexec=True)),
        ("type=ext4,source=/dev/vda,target=/x,noload", Mount(type="ext4", source="/dev/vda", target="/x",
                                                             options=(("noload", None),))),
        ("source=/a,target=/b,propagation=slave", Mount(source="/a", target="/b", propagation="slave")),
    ],
)  # fmt: skip
def test_mount_is_a_list_of_fields_and_options(text, expected):
    assert expected == values.mount(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("type=bind,source=/a", "target"),
        ("source=/a,target=/b,size=3", "not an option of a bind"),
        ("source=/a,target=/b,readonly=perhaps", "true or false"),
        ("target=/b", "source"),
        ("source=/a,target=b", "absolute"),
    ],
)
def test_mount_errors_name_the_problem(text, reason):
    with pytest.raises(SpecError, match=reason):
        values.mount(text)


def test_tmpfs_is_target_and_size():
    assert Mount.tmpfs("/tmp") == values.tmpfs("/tmp")
    assert Mount.tmpfs("/tmp", size="64M") == values.tmpfs("/tmp:64M")
    for text in ("/tmp:", "tmp", "/tmp:lots"):
        with pytest.raises(SpecError):
            values.tmpfs(text)


def test_environment_sets_and_passes_on(monkeypatch):
    monkeypatch.setenv("PASSED", "on")
    monkeypatch.delenv("ABSENT", raising=False)
    given_texts = ["A=1", "B=", "C=x=y", "PASSED", "ABSENT", "A=2"]
    assert {"PATH": "/bin", "A": "2", "B": "", "C": "x=y", "PASSED": "on"} == values.environment(
        given_texts, {"PATH": "/bin"}
    )
    with pytest.raises(SpecError):
        values.environment(["=x"], {})


def test_id_mapping_has_a_count_of_one_unless_it_is_given():
    assert IdMapping(0, 1000, 1) == values.id_mapping("--uid-map", "0:1000")
    assert IdMapping(0, 1000, 5) == values.id_mapping("--uid-map", "0:1000:5")


@pytest.mark.parametrize("text", ["", "0", "0:", "0:-1", "0:1:2:3", "a:b", "0:1:0", "0:4294967295", "0:١"])  # noqa: RUF001 - a digit, but not ours
def test_id_mapping_is_parsed_strictly(text):
    with pytest.raises(SpecError):
        values.id_mapping("--uid-map", text)


def test_namespaces_takes_words_pids_and_paths():
    assert {"pid": "host", "network": 12, "ipc": "/proc/1/ns/ipc"} == values.namespaces(
        ["pid=host", "network=12", "ipc=/proc/1/ns/ipc"]
    )


def test_rlimits_takes_one_number_or_two():
    assert {"nofile": (64, 128), "core": (0, 0), "cpu": (5, -1)} == values.rlimits(
        ["nofile=64:128", "core=0", "cpu=5:unlimited"]
    )
    for text in ("nofile", "nofile=", "nofile=a", "nofile=1:", "nofile=-1"):
        with pytest.raises(SpecError):
            values.rlimits([text])


@given(st.text(max_size=40))
def test_values_give_a_mount_or_a_spec_error(text):
    for parse in (values.bind, values.mount, values.tmpfs):
        try:
            mount = parse(text)
        except SpecError:
            continue
        assert mount.target.startswith("/")


# --- Options


def test_options_default_to_the_strict_container():
    assert {
        "rootfs": RootFS.host(), "mounts": (), "namespaces": Namespaces(), "sysctls": {},
    } == arguments.container(parsed("true"))  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--rootfs", "/r"], RootFS.dir("/r")),
        (["--rootfs", "/r", "--readonly"], RootFS.dir("/r", readonly=True)),
        (["--readonly"], RootFS.host(readonly=True)),
        (["--no-idmap"], RootFS.host(idmap=False)),
        (["--rootfs", "/r", "--no-idmap"], RootFS.dir("/r", idmap=False)),
        (["--root-size", "8M"], RootFS.host(size="8M")),
        (["--tmpfs-root", "--root-size=8M"], RootFS.tmpfs("8M")),
        (["--overlay", "/a", "--overlay", "/b"], RootFS.overlay("/a", "/b")),
        (["--overlay", "/a", "--upper", "/u"], RootFS.overlay("/a", upper="/u")),
    ],
)
def test_options_choose_the_root(words, expected):
    assert expected == arguments.container(parsed(*words, "true"))["rootfs"]


def test_options_keep_mounts_of_all_kinds_in_their_order():
    words = ["--tmpfs", "/a", "--bind", "/x:/b", "--mount", "type=proc,target=/c", "--tmpfs", "/d"]
    assert ["/a", "/b", "/c", "/d"] == [mount.target for mount in arguments.container(parsed(*words, "true"))["mounts"]]


@pytest.mark.parametrize(
    "words",
    [
        ["--upper", "/u"],
        ["--rootfs", "/r", "--root-size", "1M"],
        ["--share-net", "--namespace", "network=new"],
        ["--namespace", "colour=new"],
        ["--namespace", "pid=some"],
        ["--namespace", "pid"],
        ["--cpus", "many"],
        ["--memory", "much"],
        ["--sysctl", "x"],
    ],
)
def test_options_that_do_not_fit_are_refused(words):
    with pytest.raises(SpecError):
        arguments.container(parsed(*words, "true"))


def test_options_share_the_network():
    assert Namespaces(network="host") == arguments.container(parsed("--share-net", "true"))["namespaces"]


def test_options_use_one_id_map_for_both_kinds():
    fields = arguments.container(parsed("--uid-map", "0:5:2", "true"))
    assert (IdMapping(0, 5, 2),) == fields["uid_mappings"] == fields["gid_mappings"]


def test_options_describe_the_command():
    options = parsed("-e", "A=1", "--cwd=/tmp", "--user=1:2", "--umask=077", "--nice", "-5", "--rlimit=core=0", "true")
    fields = arguments.command(options, terminal="xterm")
    assert {"A": "1", "TERM": "xterm"}.items() <= fields.pop("env").items()
    assert {"cwd": "/tmp", "user": "1:2", "umask": 0o077, "nice": -5, "rlimits": {"core": (0, 0)}} == fields


@pytest.mark.parametrize("words", [["--umask=9"], ["--nice=x"]])
def test_options_of_the_command_that_are_no_numbers_are_refused(words):
    with pytest.raises(SpecError):
        arguments.command(parsed(*words, "true"))


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "soon"])
def test_options_refuse_a_timeout_that_is_no_time(text):
    with pytest.raises(SpecError):
        arguments.timeout(parsed(f"--timeout={text}", "true"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ls", "-l", "--user"], ["ls", "-l", "--user"]),
        (["--", "ls", "-l"], ["ls", "-l"]),
        (["--", "ls", "--", "x"], ["ls", "--", "x"]),
        (["ls", "--", "x"], ["ls", "--", "x"]),
        (["--", "--", "x"], ["--", "x"]),
        (["--cwd", "/", "ls", "--cwd", "b"], ["ls", "--cwd", "b"]),
    ],
)
def test_arguments_after_the_command_belong_to_it(words, expected):
    assert expected == arguments.words(parsed(*words))


def test_command_is_required():
    for given_words in ([], ["--"], ["--cwd=/"]):
        with pytest.raises(SpecError, match="a command is required"):
            arguments.words(parsed(*given_words))


# --- The command line


def test_main_helps(capsys):
    for words in ([], ["--help"], ["help"]):
        assert cli.main(words) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_main_helps_with_each_command(name, capsys):
    assert cli.main([name, "--help"]) == 0
    one = capsys.readouterr().out
    assert f"usage: containerkit {name}" in one
    assert cli.main(["help", name]) == 0
    assert one == capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rnu"], "containerkit: no command 'rnu'; did you mean 'run'?\n"),
        (["xyzzy"], f"containerkit: no command 'xyzzy'; there are {', '.join(cli.COMMANDS)}\n"),
        (["run", "--colour", "ls"], "containerkit: run: unrecognized arguments: --colour (see 'containerkit run --help')\n"),
        (["run", "--hostn", "x", "ls"], "containerkit: run: unrecognized arguments: --hostn (see 'containerkit run --help')\n"),
        (["run"], "containerkit: a command is required, such as: containerkit run -- sh\n"),
        (["run", "--user", "1:", "ls"], "containerkit: user '1:': a part is empty\n"),
        (["run", "--rootfs", "/nonexistent", "ls"], "containerkit: rootfs: /nonexistent is missing, or not a directory\n"),
        (["explain", "--user", "www-data", "ls"],
         "containerkit: --user 'www-data': names are looked up inside a container; explain needs ids\n"),
    ],
)  # fmt: skip
def test_main_says_what_is_wrong_and_fails_as_itself(words, message, capsys):
    assert cli.main(words) == cli.FAILED == 125
    shown = capsys.readouterr()
    assert ("", message) == (shown.out, shown.err)


def test_main_imports_only_what_the_command_needs():
    code = "import sys, containerkit.cli as cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not {"argparse", "attr", "containerkit.container.lifecycle"} & set(loaded)


def test_run_loads_nothing_that_only_others_need():
    code = "import sys, containerkit.cli.run; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "argparse",
        "re",
        "json",
        "asyncio",
        "urllib3",
        "click",
        "rich",
        "csv",
        "logging",
        "tempfile",
        "containerkit.image",
    }
    assert not heavy & set(loaded)


def test_errors_contain_no_terminal_control_characters(capsys):
    commands.complain("a\x1b[2Jb\tc\nd é")
    assert capsys.readouterr().err == "containerkit: a\\x1b[2Jb\\tc\nd é\n"


def test_errors_without_a_reader_are_dropped(monkeypatch):
    class Gone:
        def write(self, _):
            raise OSError(5, "Input/output error")

        def flush(self):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert commands.complain("x") is None
