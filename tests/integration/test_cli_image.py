"""The command line for images, templates and registries, used by people and scripts."""

import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import threading

import pytest
from image_registry import environment_without_credentials, needs_registry, needs_skopeo, registry
from image_samples import tar_of

import forked_commands

CLI = [sys.executable, "-m", "containerkit"]
needs_busybox = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs Debian's package busybox-static")
needs_htpasswd = pytest.mark.skipif(shutil.which("htpasswd") is None, reason="needs Debian's package apache2-utils")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking with owners needs root")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path, forked, nothing_left):
    """A separate store, home and working directory for the test."""
    home = environment_without_credentials(monkeypatch, tmp_path)
    monkeypatch.setenv("CONTAINERKIT_IMAGES", str(tmp_path / "store"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    if os.environ.get("PYTHONPATH"):
        monkeypatch.setenv("PYTHONPATH", ":".join(map(os.path.abspath, os.environ["PYTHONPATH"].split(":"))))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return home


def cli(*words, **options):
    return forked_commands.run("containerkit", words, timeout=100, **{"text": True, **options})


def output(*words, **options):
    done = cli(*words, **options)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def complaint(*words, status=125, **options):
    done = cli(*words, **options)
    assert (status, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("containerkit: ")
    assert 1 == done.stderr.count("\n")
    return done.stderr.removeprefix("containerkit: ").rstrip("\n")


@pytest.fixture
def small(tmp_path):
    """An image of two files, under the name small:1."""
    (tmp_path / "root.tar").write_bytes(tar_of({"a": b"one", "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}))
    words = ["--command", "show 'two words'", "--entrypoint=/bin/tool", "--env", "A=1", "--user=5:6", "--label=x=y"]
    return output("image", "import", tmp_path / "root.tar", "small:1", "--cwd", "/etc", "--message", "hello", *words)


@pytest.fixture
def box():
    """The template busybox, under the name box:1."""
    return output("template", "busybox", "--tag", "box:1")


# --- What is in the store


def test_import_keeps_the_given_settings(small):
    name, _, digest = small.strip().partition("@")
    assert "docker.io/library/small:1" == name
    (found,) = json.loads(output("image", "inspect", "small:1"))
    assert (name, digest) == (found["name"], found["digest"])
    assert {
        "User": "5:6", "Env": ["A=1"], "Entrypoint": ["/bin/tool"], "Cmd": ["show", "two words"],
        "WorkingDir": "/etc", "Labels": {"x": "y"},
    } == found["config"]  # fmt: skip
    assert 1 == len(found["layers"])


def test_inspect_prints_the_documents_as_they_are(small):
    (found,) = json.loads(output("image", "inspect", "small:1"))
    for option, key in (("--manifest", "digest"), ("--config", "id")):
        raw = cli("image", "inspect", option, "small:1", text=False).stdout
        assert found[key] == f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_list_shows_each_name_once(small):
    output("image", "tag", "small:1", "other.example.org/x/y:2")
    title, *lines = output("image", "list").splitlines()
    assert ["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"] == title.split()
    assert ["other.example.org/x/y:2", "small:1"] == sorted(line.split()[0] for line in lines)
    assert all("2023-11-14 22:13" in line for line in lines)
    listed = json.loads(output("image", "list", "--json"))
    assert {"docker.io/library/small:1", "other.example.org/x/y:2"} == {one["name"] for one in listed}
    assert 1 == len({one["digest"] for one in listed})
    assert small in output("image", "ls", "--quiet").splitlines(keepends=True)


def test_list_of_nothing_is_its_titles():
    assert ["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"] == output("image", "list").split()
    assert [] == json.loads(output("image", "list", "--json"))
    assert "" == output("image", "list", "-q")


def test_history_lists_each_step(small):
    title, line = output("image", "history", "small:1").splitlines()
    assert ["CREATED", "SIZE", "CREATED BY", "COMMENT"] == [word.strip() for word in title.split("  ") if word]
    assert "import" in line
    assert "hello" in line
    (entry,) = json.loads(output("image", "history", "--json", "small:1"))
    assert ("import", "hello") == (entry["created_by"], entry["comment"])
    assert entry["size_bytes"] > 0


def test_texts_of_images_do_not_steer_the_terminal(tmp_path):
    (tmp_path / "root.tar").write_bytes(tar_of({"a\x1b]0;b\n": b""}))
    (tmp_path / "empty.tar").write_bytes(tar_of({}))
    output("image", "import", tmp_path / "root.tar", "bad:1", "--message", "\x1b[31mred\nline")
    output("image", "import", tmp_path / "empty.tar", "bad:0")
    assert "\\x1b[31mred\\nline" in output("image", "history", "bad:1")
    assert "A /a\\x1b]0;b\\n\n" == output("image", "diff", "bad:0", "bad:1")


def test_images_are_found_by_digest_and_id(small):
    (found,) = json.loads(output("image", "inspect", "small:1"))
    for text in (found["digest"], found["id"], found["digest"][7:19], found["id"][7:14], small.strip()):
        (same,) = json.loads(output("image", "inspect", text))
        assert found["digest"] == same["digest"]


def test_images_that_are_not_there_are_complained_about():
    assert "image nothing:1 is not in the store (hint: pull it)" == complaint("image", "inspect", "nothing:1")
    assert "is not in the store" in complaint("image", "history", "abcdef0")
    assert "is a bare image id" in complaint("image", "inspect", "a" * 64)
    assert "reference" in complaint("image", "tag", "Bad Name", "x")


def test_remove_takes_one_name_and_prune_the_rest(small, tmp_path):
    output("image", "tag", "small:1", "small:2")
    (found,) = json.loads(output("image", "inspect", "small:1"))
    assert "several names" in complaint("image", "remove", found["id"])
    output("image", "remove", "small:1")
    assert "" == output("image", "prune", "--quiet")
    output("image", "inspect", "small:2")
    output("image", "rm", found["id"][7:])
    done = cli("image", "prune")
    assert 0 == done.returncode
    assert f"removed blob {found['digest']}\n" in done.stdout
    assert "blobs freed" in done.stderr
    assert "" == output("image", "list", "-q")


def test_verify_names_what_is_damaged(small, tmp_path):
    assert "" == output("image", "verify")
    (found,) = json.loads(output("image", "inspect", "small:1"))
    blob = tmp_path / "store/blobs/sha256" / found["layers"][0]["digest"][7:]
    blob.write_bytes(b"x" * blob.stat().st_size)
    done = cli("image", "verify")
    assert (1, "") == (done.returncode, done.stderr)
    assert found["layers"][0]["digest"] in done.stdout
    assert 1 == cli("image", "verify", "--repair").returncode
    assert not blob.exists()


def test_store_can_be_another_for_one_command(small, tmp_path):
    output("image", "save", "small:1", "-o", "x.tar")
    assert small == output("image", "load", "x.tar", "--store", tmp_path / "second")
    assert small == output("image", "list", "-q", "--store", tmp_path / "second")


# --- Files


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive"])
def test_save_and_load_are_each_others_opposite(small, tmp_path, form):
    output("image", "tag", "small:1", "small:2")
    output("image", "save", "small:1", "small:2", "--output", "both.tar", "--format", form)
    (before,) = json.loads(output("image", "inspect", "small:1"))
    names = output("image", "load", "both.tar", "--store", tmp_path / "fresh").splitlines()
    assert ["docker.io/library/small:1", "docker.io/library/small:2"] == sorted(name.split("@")[0] for name in names)
    (after,) = json.loads(output("image", "inspect", "small:1", "--store", tmp_path / "fresh"))
    assert before["id"] == after["id"]


def test_export_writes_the_root(small):
    output("image", "export", "small:1", "-o", "root.tar")
    piped = cli("image", "export", "small:1", "-o", "-", text=False)
    with open("root.tar", "rb") as file:
        assert file.read() == piped.stdout
    with tarfile.open("root.tar") as tar:
        assert {"a", "etc", "etc/passwd"} <= {member.name.removeprefix("./") for member in tar}


def test_files_that_are_not_there_are_complained_about(tmp_path):
    assert "nothing.tar: it does not exist" == complaint("image", "load", "nothing.tar")
    assert "nothing.tar: it does not exist" == complaint("image", "import", "nothing.tar")
    (tmp_path / "here/no.tar").write_bytes(b"no archive")
    assert "no.tar" in complaint("image", "load", "no.tar")


@pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs Debian's package squashfs-tools")
def test_flatten_writes_a_filesystem(small):
    output("image", "flatten", "small:1", "-o", "root.img", "--format", "squashfs")
    with open("root.img", "rb") as file:
        assert b"hsqs" == file.read(4)


def test_squash_makes_one_layer(small):
    squashed = output("image", "squash", "small:1", "small:flat")
    assert squashed.startswith("docker.io/library/small:flat@sha256:")
    assert "" == output("image", "diff", "small:1", "small:flat")


# --- Builds

DOCKERFILE = """\
FROM {base} AS first
ARG WORD=none
RUN --mount=type=secret,id=token cat /run/secrets/token; echo "word $WORD"
COPY file /file
FROM first
ENV GREETING=hello
CMD ["sh", "-c", "echo $GREETING from $(cat /file)"]
"""


@pytest.fixture
def context(tmp_path, box):
    (tmp_path / "here/Dockerfile").write_text(DOCKERFILE.format(base="box:1"))
    (tmp_path / "here/file").write_text("a file\n")
    (tmp_path / "here/token").write_text("secret\n")
    return tmp_path / "here"


@needs_busybox
def test_build_makes_what_runs(context):
    words = [
        "image",
        "build",
        "-t",
        "app:1",
        "--tag",
        "app:2",
        "--build-arg",
        "WORD=up",
        "--secret",
        "id=token,src=token",
    ]
    done = cli(*words)
    assert 0 == done.returncode
    assert done.stdout.startswith("docker.io/library/app:1@sha256:")
    assert "=> COPY file /file\n" in done.stderr
    assert "\nsecret\nword up\n" in done.stderr
    assert "hello from a file\n" == output("run", "--image", "app:2")
    again = cli(*words)
    assert done.stdout == again.stdout
    assert "=> COPY file /file (known)\n" in again.stderr
    assert "word up" not in again.stderr
    assert done.stdout == output(*words, "--quiet", "--no-cache")


@needs_busybox
def test_build_of_a_stage_from_stdin(context):
    done = cli("image", "build", "-f", "-", "--target", "first", "-q", input=DOCKERFILE.format(base="box:1"))
    assert (0, "") == (done.returncode, done.stderr)
    (found,) = json.loads(output("image", "inspect", done.stdout.strip()))
    assert "GREETING=hello" not in found["config"].get("Env", [])


@needs_busybox
def test_build_takes_secrets_from_the_environment(context, monkeypatch):
    monkeypatch.setenv("TOKEN", "from afar")
    assert "\nfrom afarword none\n" in cli("image", "build", "--secret", "id=token,env=TOKEN").stderr
    for text in ("id=token", "src=x", "id=token,src=x,env=y", "id=token,env=NOT_THERE", "id=a,colour=b"):
        assert f"--secret {text!r}" in complaint("image", "build", "--secret", text)
    assert "no-such-file" in complaint("image", "build", "--secret", "id=token,src=no-such-file")


@needs_busybox
def test_build_names_the_line_that_failed(context):
    (context / "Dockerfile").write_text("FROM box:1\nRUN echo why; exit 3\n")
    done = cli("image", "build")
    assert (125, "") == (done.returncode, done.stdout)
    shown, said = done.stderr.rstrip("\n").rsplit("\n", 1)
    assert shown.endswith("\nwhy")
    assert said.startswith("containerkit: in line 2 of the Dockerfile: RUN echo why; exit 3: ")
    assert "status 3" in said
    assert "why\ncontainerkit: " in cli("image", "build", "--quiet").stderr
    (context / "Dockerfile").write_text("FROM box:1\nRNU x\n")
    assert "line 2" in complaint("image", "build")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "nowhere"], "nowhere contains neither a Dockerfile nor a Containerfile"),
        (["build", "--epoch", "soon"], "--epoch: 'soon' is not a number of seconds"),
        (["build", "--build-arg", "=x"], "--build-arg '=x': must be NAME=VALUE, or NAME to pass one on"),
        (["pull"], "image pull: the following arguments are required: NAME (see 'containerkit image pull --help')"),
        (["pull", "UPPER"], "reference 'UPPER': the repository must be lower case ('library/upper')"),
        (["import", "x.tar", "--command", "'"], '--command "\'": No closing quotation'),
        ([], "image: the following arguments are required: VERB (see 'containerkit image --help')"),
    ],
)
def test_mistakes_are_complained_about(words, said):
    assert said == complaint("image", *words)


# --- Running


@needs_busybox
def test_run_of_an_image_does_what_its_config_says(context):
    (context / "Dockerfile").write_text(
        'FROM box:1\nRUN echo "web:x:70:71::/:/bin/sh" >> /etc/passwd\nWORKDIR /srv\nUSER web\nENV A=1 B=2\n'
        'ENTRYPOINT ["sh", "-c", "echo \\"$A $B $(pwd) $(id -u):$(id -g) $*\\"", "sh"]\nCMD ["own"]\n'
    )
    output("image", "build", "--tag", "app", "--quiet")
    assert "1 2 /srv 70:71 own\n" == output("run", "--image", "app")
    assert "1 2 /srv 70:71 given words\n" == output("run", "--image", "app", "--", "given", "words")
    assert "1 3 / 0:0 own\n" == output("run", "--image", "app", "--env", "B=3", "--cwd", "/", "--user", "0")
    assert "/srv\n" == output("run", "--image", "app", "--entrypoint", "pwd")
    assert "70\n" == output("run", "--image", "app", "--entrypoint", "", "--", "id", "-u")
    assert "a command is required" in complaint("run", "--image", "app", "--entrypoint", "")


@needs_busybox
def test_run_of_an_image_keeps_to_the_options_of_the_root(box, tmp_path):
    assert "Read-only" in cli("run", "--image", "box:1", "--readonly", "--", "touch", "/x").stderr
    (tmp_path / "upper").mkdir()
    output("run", "--image", "box:1", "--upper", tmp_path / "upper", "--", "touch", "/new")
    assert ["new"] == os.listdir(tmp_path / "upper")
    output("run", "--image", "box:1", "--root-size", "4M", "--", "touch", "/new")


@needs_busybox
def test_run_commits_what_the_command_has_changed(box):
    script = "echo made > /made; rm /etc/hosts"
    assert "" == output("run", "--image", "box:1", "--commit", "box:2", "--", "sh", "-c", script)
    assert ["A /made", "D /etc/hosts"] == sorted(output("image", "diff", "box:1", "box:2").splitlines())
    assert "made\n" == output("run", "--image", "box:2", "--", "cat", "/made")
    assert 7 == cli("run", "--image", "box:1", "--commit", "box:3", "--", "sh", "-c", "exit 7").returncode
    assert "not in the store" in complaint("image", "inspect", "box:3")


@needs_busybox
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image", "absent:1", "--pull", "never"], "image absent:1 is not in the store (hint: pull it)"),
        (["--image", "box:1", "--rootfs", "/", "true"], "--rootfs and --image can't be used together"),
        (["--image", "box:1", "--overlay", "/", "true"], "--overlay and --image can't be used together"),
        (["--image", "box:1", "--tmpfs-root", "true"], "--tmpfs-root and --image can't be used together"),
        (["--pull", "never", "true"], "--pull needs an image: add --image"),
        (["--entrypoint", "x", "true"], "--entrypoint needs an image: add --image"),
        (["--commit", "x:1", "true"], "--commit: the machine's programs do not belong to an image"),
        (["--image", "box:1", "--readonly", "--commit", "x:1", "true"], "--commit: "),
        (["--image", "box:1", "--commit", "X:1", "true"], "reference 'X:1'"),
    ],
)
def test_run_refuses_what_does_not_fit_an_image(box, words, said):
    assert complaint("run", *words).startswith(said)


@needs_busybox
def test_explain_and_seccomp_take_images(box):
    assert "execve /bin/sh" in output("explain", "--image", "box:1")
    assert "hi\n" == output("seccomp", "record", "-o", "x.json", "--image", "box:1", "--", "echo", "hi")
    with open("x.json") as file:
        assert "write" in json.load(file)["syscalls"][0]["names"]


# --- Templates


def test_template_lists_all_of_them():
    assert {"alpine", "busybox", "debian", "host", "image", "ubuntu"} <= set(output("template", "--list").split())
    assert complaint("template").startswith("template: a name is required; choose from alpine, ")
    assert "there is no template 'nix'" in complaint("template", "nix")


def test_template_lists_its_own_options():
    text = output("template", "debian", "--help")
    for word in ("--suite SUITE", "--package PACKAGE", "--variant VARIANT", "minbase", "--into DIR", "--tag NAME"):
        assert word in text
    assert "--path PATH" in output("template", "busybox", "--help")
    said = complaint("template", "debian", "--colour", "red")
    assert "template debian: unrecognized arguments: --colour red (see 'containerkit template debian --help')" == said
    assert "--reference" in complaint("template", "image")


@needs_busybox
def test_template_is_made_once_and_named(box, tmp_path):
    name, _, digest = box.strip().partition("@")
    assert "docker.io/library/box:1" == name
    again = output("template", "busybox", "--into", tmp_path / "deep/root").strip()
    assert again.startswith("localhost/template/busybox:")
    assert again.endswith(digest)
    assert "hi\n" == output("run", "--rootfs", tmp_path / "deep/root", "--", "echo", "hi")
    assert "into an empty directory" in complaint("template", "busybox", "--into", tmp_path / "deep/root")


def test_template_of_programs_takes_a_list():
    pytest.importorskip("elftools")
    output(
        "template", "host", "--program", "cat", "--program", "ls", "--file", "/etc/debian_version", "--tag", "programs"
    )
    assert "/etc/debian_version\n" == output("run", "--image", "programs", "--", "ls", "/etc/debian_version")
    assert "no program 'nothing-such'" in complaint("template", "host", "--program", "nothing-such")


@needs_busybox
def test_template_image_is_an_image(box):
    assert box == output("template", "image", "--reference", "box:1", "--pull", "never")


# --- Registries


@needs_registry
def test_push_and_pull_go_round(small, tmp_path):
    with registry(tmp_path / "registry") as host:
        target = f"{host}/team/small:1"
        sent = output("image", "push", "small:1", target)
        assert sent.strip().startswith(f"{target}@sha256:")
        assert sent == output("image", "pull", target, "--store", tmp_path / "other")
        assert sent == output("image", "pull", sent.strip(), "--store", tmp_path / "third")
        assert "no platform" not in output("image", "pull", "--all-platforms", "--no-unpack", target)
        assert "does not exist" in complaint("image", "pull", f"{host}/team/absent:1")


@needs_registry
@needs_busybox
def test_run_pulls_what_is_not_there(box, tmp_path):
    with registry(tmp_path / "registry") as host:
        output("image", "push", "box:1", f"{host}/box:1")
        output("image", "rm", "box:1")
        words = ["run", "--image", f"{host}/box:1", "--pull"]
        assert "not in the store" in complaint(*words, "never", "--", "true")
        assert "hi\n" == output(*words, "missing", "--", "echo", "hi")
        assert "hi\n" == output(*words, "always", "--", "echo", "hi")
    assert "hi\n" == output(*words, "missing", "--", "echo", "hi")
    assert complaint(*words, "always", "--", "echo", "hi")


@needs_registry
@needs_skopeo
def test_push_is_what_skopeo_reads(small, tmp_path):
    with registry(tmp_path / "registry") as host:
        output("image", "push", "small:1", f"{host}/small:1")
        shown = subprocess.run(
            ["skopeo", "inspect", "--tls-verify=false", f"docker://{host}/small:1"], capture_output=True, check=True
        )
        assert small.strip().endswith(json.loads(shown.stdout)["Digest"])


def on_a_terminal(*words):
    """Run with a terminal as stderr. Return stdout and the output on the terminal."""
    master, slave = pty.openpty()
    shown = []

    def read():
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            if not data:
                return
            shown.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run([*CLI, *words], stdout=subprocess.PIPE, stderr=slave, timeout=60, check=True)
    finally:
        os.close(slave)
        reader.join()
        os.close(master)
    return done.stdout.decode(), b"".join(shown).decode()


@needs_registry
def test_progress_is_shown_on_a_terminal_only(small, tmp_path):
    with registry(tmp_path / "registry") as host:
        target = f"{host}/small:1"
        sent, shown = on_a_terminal("image", "push", "small:1", target)
        assert "upload" in shown
        pulled, shown = on_a_terminal("image", "pull", target, "--store", str(tmp_path / "a"))
        assert "download" in shown
        assert sent == pulled
        assert (sent, "") == on_a_terminal("image", "pull", "-q", target, "--store", str(tmp_path / "b"))
        assert sent == output("image", "pull", target, "--store", tmp_path / "c")


@needs_registry
@needs_htpasswd
def test_login_keeps_what_the_registry_takes(small, tmp_path, surroundings):
    with registry(tmp_path / "registry", users={"ann": "right"}) as host:
        target = f"{host}/small:1"
        complaint("image", "push", "small:1", target)
        words = ["login", host, "--username", "ann", "--password-stdin"]
        complaint(*words, input="wrong\n")
        assert not (surroundings / ".docker/config.json").exists()
        place = surroundings / ".docker/config.json"
        assert f"logged in to {host} as ann ({place})\n" == output(*words, input="right\n")
        assert 0o600 == place.stat().st_mode & 0o777
        output("image", "push", "small:1", target)
        assert f"logged out of {host}\n" == output("logout", f"https://{host}/")
        complaint("image", "pull", target, "--store", tmp_path / "other")
        assert f"there were no credentials for {host}\n" == output("logout", host)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["login"], "login: there is no terminal for a prompt; use --username NAME --password-stdin"),
        (["login", "--password-stdin"], "login: --password-stdin needs --username NAME"),
        (["login", "-u", "a", "--password-stdin"], "login: a name and a password are required"),
        (["login", "host/path"], "registry 'host/path': must be host[:port], without a path"),
        (["logout", "a b"], "reference 'a b/any' is not of the form [registry[:port]/]repository[:tag][@digest]"),
    ],
)
def test_login_names_what_is_missing(words, said):
    assert said == complaint(*words, input="")


# --- gc


def test_gc_sweeps_the_store(small, tmp_path):
    left = tmp_path / "store/layers/.new-left"
    left.mkdir()
    (left / "file").touch()
    assert f"removed image {left}\n" in output("gc")
    assert not left.exists()
    output("image", "inspect", "small:1")
