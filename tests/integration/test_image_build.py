"""Builds: Dockerfiles of many kinds, their cache, and reproducible results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from image_registry import Quiet, server
from image_samples import BUSYBOX, busybox_root

from containerkit import Container, Egress
from containerkit.archive.compression import Plain
from containerkit.errors import ExitError, ImageError, SpecError
from containerkit.image import Build, Defaults, Digest, Image, Store
from containerkit.image.build import build_dockerfile
from containerkit.image.claimed import release
from containerkit.network import connect

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building with owners needs root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
]


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store with the image box:1."""
    directory = tmp_path_factory.mktemp("base")
    root = directory / "root"
    busybox_root(root)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nweb:x:101:102:web:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:102:\nstaff:x:50:\n")
    store = Store(directory / "store")
    Image.from_directory(root, "box:1", store=store, defaults=Defaults(env={"PATH": "/bin"}, command=("/bin/sh",)))
    return store


@pytest.fixture
def store(base, tmp_path):
    """A new store with box:1 and an empty cache."""
    fresh = Store(tmp_path / "store")
    Image.open("box:1", store=base).save(tmp_path / "box.tar")
    Image.load(tmp_path / "box.tar", store=fresh)
    return fresh


@pytest.fixture
def context(tmp_path):
    directory = tmp_path / "context"
    directory.mkdir()
    return directory


def build(store, text, context=None, **options):
    return build_dockerfile(context, text=text, store=store, pull="never", **options)


def output(image, *command, **options):
    with Container(image.rootfs()) as c:
        return c.run(list(command), text=True, check=True, env={"PATH": "/bin"}, **options).stdout


def test_build_runs_commands_and_keeps_what_they_change(store):
    image = build(
        store, "FROM box:1\nRUN echo one > /one && rm /etc/group\nRUN echo two >> /one; mkdir -m 711 /d\n", tag="t:1"
    )
    assert "one\ntwo\n711\n" == output(image, "sh", "-c", "cat /one; stat -c %a /d")
    assert "" == output(image, "sh", "-c", "ls /etc | grep group || true")
    assert image.digest == Image.open("t:1", store=store).digest
    assert 3 == len(image.manifest.layers)
    assert "RUN /bin/sh -c echo one" in image.history()[1].created_by


def test_build_sets_all_metadata(store):
    text = """
FROM box:1
ARG WHO=world
ENV A=1 B="two $WHO" \\
    C=$A
LABEL org.example.x="y z" plain=1
MAINTAINER me
EXPOSE 80 53/udp 8000-8001
VOLUME ["/data", "/more"]
USER web:staff
WORKDIR /srv
WORKDIR app
STOPSIGNAL int
SHELL ["/bin/busybox", "sh", "-c"]
HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD wget -q localhost
ONBUILD RUN echo triggered > /tmp/triggered
ENTRYPOINT ["/bin/echo"]
CMD hello
"""
    image = build(store, text, args={"WHO": "you"})
    defaults = image.defaults
    assert {"PATH": "/bin", "A": "1", "B": "two you", "C": ""} == defaults.env
    assert {"org.example.x": "y z", "plain": "1"} == defaults.labels
    assert ("80/tcp", "53/udp", "8000/tcp", "8001/tcp") == defaults.exposed_ports
    assert (("/data", "/more"), "web:staff", "/srv/app", "SIGINT", "me") == (
        defaults.volumes, defaults.user, defaults.working_dir, defaults.stop_signal, image.config.author,
    )  # fmt: skip
    assert (("/bin/echo",), ("/bin/busybox", "sh", "-c", "hello")) == (defaults.entrypoint, defaults.command)
    assert (("CMD-SHELL", "wget -q localhost"), 90_000_000_000, 500_000_000, 3) == (
        defaults.healthcheck.test, defaults.healthcheck.interval_ns, defaults.healthcheck.timeout_ns,
        defaults.healthcheck.retries,
    )  # fmt: skip
    assert ("RUN echo triggered > /tmp/triggered",) == defaults.on_build
    image.tag("trigger:1")
    child = build(store, "FROM trigger:1\nUSER root\n")
    assert () == child.defaults.on_build


def test_build_takes_further_contexts_by_name(store, tmp_path):
    (tmp_path / "file").write_text("one")
    text = "FROM other AS box\nFROM alias\nCOPY --from=dir file /file\nCOPY --from=alias /bin/busybox /copy\n"
    contexts = {"dir": tmp_path, "alias": "docker-image://box:1", "other": "docker-image://box:1"}
    image = build(store, text, contexts=contexts, labels={"a": "b"})
    assert image.defaults.labels == {"a": "b"}
    first = image.id
    assert build(store, text, contexts=contexts, labels={"a": "b"}).id == first
    (tmp_path / "file").write_text("two")
    assert build(store, text, contexts=contexts, labels={"a": "b"}).id != first
    # A context precedes a stage of the same name.
    both = build(store, "FROM scratch AS alias\nFROM box:1\nCOPY --from=alias /bin/busybox /copy\n", contexts=contexts)
    assert len(both.manifest.layers) == 2
    for asked, said in (
        ({"contexts": {"dir": tmp_path}, "text": "FROM dir\n"}, "is a directory"),
        ({"contexts": {"x": "https://h/x"}, "text": text}, "is neither a directory nor docker-image://NAME"),
        ({"contexts": {"x": tmp_path / "none"}, "text": text}, "does not exist"),
        ({"hosts": {"h": "10.0.0.1"}, "text": text}, "hosts require network='internet'"),
    ):
        with pytest.raises(SpecError, match=said):
            build(store, **asked)


def test_build_entrypoint_drops_the_command_of_the_base_and_no_other(store):
    assert () == build(store, 'FROM box:1\nENTRYPOINT ["/bin/true"]\n').defaults.command
    assert ("x",) == build(store, 'FROM box:1\nCMD ["x"]\nENTRYPOINT ["/bin/true"]\n').defaults.command


def test_build_copies_files_as_instructed(store, context):
    (context / "a.txt").write_text("a")
    (context / "b.txt").write_text("b")
    (context / "run.sh").write_text("#!/bin/sh\n")
    (context / "run.sh").chmod(0o750)
    (context / "dir/sub").mkdir(parents=True)
    (context / "dir/sub/deep").write_text("deep")
    (context / "dir/link").symlink_to("sub/deep")
    os.chown(context / "a.txt", 1234, 1234)
    text = """
FROM box:1
COPY a.txt /one
COPY *.txt /many/
COPY dir /tree
COPY --chown=web:staff --chmod=0640 a.txt run.sh /owned/
COPY ["a.txt", "/with space/"]
WORKDIR /wd
COPY run.sh .
COPY a.txt /lib/through
COPY --parents dir/./sub/deep /parents/
COPY --exclude=deep dir /partly/
"""
    image = build(store, text, context)
    script = (
        "cat /one /many/a.txt /many/b.txt /tree/sub/deep /tree/link '/with space/a.txt' /usr/lib/through; echo;"
        "stat -c '%n %u:%g %a' /one /owned/* /wd/run.sh; readlink /lib; readlink /tree/link; ls /parents/sub /partly /partly/sub"
    )
    assert (
        "aabdeepdeepaa\n/one 0:0 644\n/owned/a.txt 101:50 640\n/owned/run.sh 101:50 640\n/wd/run.sh 0:0 750\n"
        "usr/lib\nsub/deep\n/parents/sub:\ndeep\n\n/partly:\nlink\nsub\n\n/partly/sub:\n"
    ) == output(image, "sh", "-c", script)


def test_build_leaves_out_files_listed_in_dockerignore(store, context):
    for name in ("kept", "gone.log", "build/x", "build/keep/y", "secret"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(name)
    (context / ".dockerignore").write_text("*.log\nbuild\n!build/keep\nsecret\nDockerfile\n")
    image = build(store, "FROM box:1\nCOPY . /c/\n", context)
    assert "/c/.dockerignore\n/c/build/keep/y\n/c/kept\n" == output(image, "sh", "-c", "find /c -type f | sort")
    with pytest.raises(SpecError, match=r"secret.*dockerignore"):
        build(store, "FROM box:1\nCOPY secret /\n", context)
    with pytest.raises(SpecError, match="line 2: COPY"):
        build(store, "FROM box:1\nCOPY missing /\n", context)


def test_build_never_reads_outside_its_context(store, context, tmp_path):
    (tmp_path / "outside").write_text("secret")
    (context / "link").symlink_to("../outside")
    (context / "absolute").symlink_to(tmp_path / "outside")
    for word in ("../outside", "/../outside", "link", "absolute"):
        with pytest.raises(SpecError):
            build(store, f"FROM box:1\nCOPY {word} /x\n", context)
    (context / "dir").mkdir()
    (context / "dir/link").symlink_to("../../outside")
    image = build(store, "FROM box:1\nCOPY dir /d\n", context)
    assert "../../outside\n" == output(image, "readlink", "/d/link")


def test_build_adds_archives_and_addresses(store, context):
    (context / "in").write_text("in")
    with tarfile.open(context / "a.tar.gz", "w:gz") as tar:
        tar.add(context / "in", "d/in")
    shutil.copy(context / "a.tar.gz", context / "plain.bin")

    class Files(Quiet):
        def do_GET(self):
            self.seen.append(self.path)
            self.reply(200, b"fetched")

    good = Digest.of(b"fetched")
    with server(Files) as host:
        text = f"""
FROM box:1
ADD a.tar.gz /unpacked/
ADD in /plain
COPY a.tar.gz /copied.tar.gz
ADD --checksum={good} http://{host}/x/file.bin /got/
"""
        image = build(store, text, context)
        script = "cat /unpacked/d/in /plain /got/file.bin; gunzip -t /copied.tar.gz; stat -c ' %a' /got/file.bin"
        assert "ininfetched 600\n" == output(image, "sh", "-c", script)
        with pytest.raises(ImageError, match="expected digest"):
            build(store, f"FROM box:1\nADD --checksum=sha256:{'0' * 64} http://{host}/x /x\n")


def test_build_in_stages_copies_between_them(store):
    text = """
ARG BASE=box
FROM ${BASE}:1 AS tools
RUN mkdir /out && echo made > /out/file && chown 7:8 /out/file
FROM tools AS more
RUN echo more > /out/more
FROM scratch
COPY --from=tools /out/file /file
COPY --from=1 /out /all
COPY --from=box:1 /bin/busybox /bin/
"""
    image = build(store, text)
    assert "made\nmore\n7:8\n" == output(
        image, "/bin/busybox", "sh", "-c", "busybox cat /file /all/more; busybox stat -c %u:%g /file"
    )
    only = build(store, text, target="tools")
    assert "made\n" == output(only, "cat", "/out/file")
    assert 2 == len(only.manifest.layers)


def test_build_heredocs(store, context):
    text = """
FROM box:1
ARG NAME=you
RUN <<EOF
echo one > /file
echo "$NAME" >> /file
EOF
RUN <<'SCRIPT'
#!/bin/busybox sh
echo script >> /file
SCRIPT
RUN cat <<A >> /file && echo after >> /file
inner $NAME
A
COPY <<-EOF /plain
\thello $NAME
\tEOF
COPY <<'one' <<two /both/
$NAME
one
$NAME
two
"""
    image = build(store, text, context)
    assert "one\nyou\nscript\ninner you\nafter\n" == output(image, "cat", "/file")
    assert "hello you\n$NAME\nyou\n" == output(image, "cat", "/plain", "/both/one", "/both/two")


def test_build_mounts_for_commands(store, context):
    (context / "src").mkdir()
    (context / "src/file").write_text("from the context")
    text = """
FROM box:1 AS other
RUN mkdir /o && echo lower > /o/a
RUN echo upper > /o/b
FROM box:1
RUN --mount=type=cache,target=/cache echo x >> /cache/count && wc -l < /cache/count > /count
RUN --mount=type=bind,source=src,target=/src cat /src/file > /bound; (echo no > /src/file) 2>/dev/null && exit 1 || true
RUN --mount=type=bind,from=other,source=/o,target=/o cat /o/a /o/b > /both
RUN --mount=type=tmpfs,target=/scratch,size=1m stat -f -c %T /scratch > /kind; touch /scratch/gone
RUN --mount=type=secret,id=token cat /run/secrets/token > /seen && stat -c %a /run/secrets/token >> /seen
RUN --mount=type=secret,id=token,env=TOKEN echo $TOKEN >> /seen
"""
    secrets = {"token": b"s3cret\n"}
    image = build(store, text, context, secrets=secrets)
    assert "1\nfrom the contextlower\nupper\ntmpfs\ns3cret\n400\ns3cret\n" == output(
        image, "cat", "/count", "/bound", "/both", "/kind", "/seen"
    )
    script = "ls -A /cache /src /scratch /run/secrets 2>/dev/null | grep -v : | grep . || true"
    assert "" == output(image, "sh", "-c", script)
    again = build(store, text, context, secrets=secrets, cache=False)
    assert "2\n" == output(again, "cat", "/count")
    assert "from the context" == (context / "src/file").read_text()
    with pytest.raises(SpecError, match="no secret"):
        build(store, "FROM box:1\nRUN --mount=type=secret,id=gone,required=true true\n")


def test_build_leaves_nothing_of_the_places_of_mounts(store, context):
    (context / "f").write_text("x")
    mounts = (
        "--mount=type=cache,target=/new/cache --mount=type=tmpfs,target=/tt --mount=type=bind,target=/b/c/d/f,source=f"
    )
    image = build(
        store, f"FROM box:1\nRUN {mounts} --mount=type=secret,id=s touch /b/kept\n", context, secrets={"s": "x"}
    )
    assert ["b", "b/kept"] == sorted(
        str(path.relative_to(top)) for top in map(Path, image.unpack()[:1]) for path in top.rglob("*")
    )
    empty = build(store, "FROM box:1\nRUN --mount=type=cache,target=/new/cache true\n")
    assert Image.open("box:1", store=store).manifest.layers == empty.manifest.layers


def test_build_follows_no_link_when_it_takes_places_of_mounts_away(store, tmp_path):
    outside = tmp_path / "outside/cache"
    outside.mkdir(parents=True)
    text = f"FROM box:1\nRUN --mount=type=cache,target=/new/deep/cache umount /new/deep/cache; mv /new /gone && ln -s {outside.parent} /new\n"
    build(store, text.replace("--mount", "--security=insecure --mount"), allow=["security.insecure"])
    assert outside.is_dir()


def test_build_takes_known_steps_from_the_cache(store, context):
    (context / "f").write_text("1")
    text = "FROM box:1\nRUN date +%s%N > /when; cat /proc/sys/kernel/random/uuid >> /when\nCOPY f /f\nRUN cat /f > /g\nCMD x\n"
    events = []
    first = build(store, text, context)
    assert first.digest == build(store, text, context, progress=events.append).digest
    assert ["exists"] * 3 == [event.status for event in events]
    os.utime(context / "f", (1, 1))
    assert first.digest == build(store, text, context).digest
    (context / "f").write_text("2")
    changed = build(store, text, context)
    assert first.manifest.layers[:2] == changed.manifest.layers[:2]
    assert "2" == output(changed, "cat", "/g")
    fresh = build(store, text, context, cache=False)
    assert first.digest != fresh.digest
    store.collect()
    assert () == store.verify()
    assert fresh.digest == build(store, text, context).digest
    store.collect(cache=True, unnamed=True)
    assert ["docker.io/library/box:1"] == list(store.catalog.names())
    assert [] == list((store.root / "build/cache").iterdir())


def test_build_argument_decides_what_is_known(store):
    text = "FROM box:1\nARG V\nRUN echo $V > /v\n"
    assert ["1\n", "2\n"] == [output(build(store, text, args={"V": value}), "cat", "/v") for value in "12"]


def members(image):
    for layer in image.manifest.layers[1:]:
        with (
            image.store.blobs.open(layer.digest) as file,
            Plain(file, threads=0) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            yield from tar


def test_build_twice_in_different_stores_gives_the_same_digest(store, base, context):
    (context / "f").write_text("1")
    text = "FROM box:1\nRUN mkdir /a && echo x > /a/b && ln /a/b /a/c\nCOPY f /new/directory/f\nWORKDIR /w/x\nENV A=1\n"
    one, two = (build(where, text, context, epoch=1_000_000_000) for where in (store, base))
    assert one.digest == two.digest
    assert 1_000_000_000 == max(member.mtime for member in members(two))


def test_build_names_the_failed_step_and_leaves_nothing(store):
    lines = []
    with pytest.raises(ExitError) as caught:
        build(store, "FROM box:1\nRUN echo before; echo to stderr >&2; exit 7\n", log=lines.append)
    assert (7, "before\nto stderr\n") == (caught.value.returncode, caught.value.stdout)
    assert ["before", "to stderr"] == lines
    assert "line 2" in caught.value.__notes__[0]
    assert [] == [path for path in (store.root / "build").iterdir() if path.name.startswith(".new")]
    with pytest.raises(SpecError, match="unknown argument 'colour'"):
        build(store, "FROM box:1", colour="red")
    with pytest.raises(ImageError, match="not in the store"):
        build(store, "FROM missing:1")


def test_build_commands_have_no_network_by_default(store):
    text = "FROM box:1\nRUN ip -o link | grep -v ' lo:' | wc -l > /links\n"
    assert "0\n" == output(build(store, text), "cat", "/links")
    alone = "FROM box:1\nRUN --network=host readlink /proc/self/ns/net > /all\nRUN --network=none ip -o link | wc -l > /none\n"
    with pytest.raises(SpecError, match=r"line 2: RUN: --network=host must be allowed.*allow=\('network.host',\)"):
        build(store, alone)
    ours = os.readlink("/proc/self/ns/net")
    for options in ({"allow": ("network.host",)}, {"network": "host"}):
        assert f"{ours}\n1\n" == output(build(store, alone, cache=False, **options), "cat", "/all", "/none")
    with pytest.raises(SpecError, match="expected default, none or host"):
        build(store, "FROM box:1\nRUN --network=some true\n")


def test_build_commands_reach_the_outside_where_that_is_asked_for(store):
    text = "FROM box:1\nRUN ip route | grep -c default > /routes; cat /etc/resolv.conf | wc -l >> /routes\n"
    try:
        image = build(store, text, network="internet", egress=["*.example.org"])
        assert "1\n1\n" == output(image, "cat", "/routes")
        with pytest.raises(ExitError):
            output(image, "cat", "/etc/resolv.conf")
    finally:
        for live in connect._shared.values():
            live.close()
    with pytest.raises(SpecError, match="egress rules require network='internet'"):
        build(store, text, egress=["example.org"])
    with pytest.raises(SpecError, match="egress: 'a b'"):
        build(store, text, network="internet", egress=["a b"])
    with pytest.raises(SpecError, match="a list of texts"):
        build(store, text, network="internet", egress=Egress.only("example.org"))


def test_build_command_is_insecure_only_where_that_is_allowed(store):
    show = "grep -E '^(CapBnd|Seccomp):' /proc/self/status | tr -d '\\n\\t'"
    text = f"FROM box:1\nRUN {show} > /held\nRUN --security=insecure {show} > /free\n"
    text += "RUN --security=insecure mkdir /m && mount -t tmpfs none /m && touch /m/x && umount /m\n"
    with pytest.raises(SpecError, match=r"line 3: RUN: --security=insecure must be .*allow=\('security.insecure',\)"):
        build(store, text)
    image = build(store, text, allow=["security.insecure"])
    with open("/proc/sys/kernel/cap_last_cap") as file:
        every = (1 << int(file.read()) + 1) - 1
    assert f"CapBnd:{every:016x}Seccomp:0" == output(image, "cat", "/free")
    assert "CapBnd:00000000a80425fbSeccomp:2" == output(image, "cat", "/held")
    with pytest.raises(SpecError, match="must be allowed"):
        build(store, text)  # although the step is cached
    with pytest.raises(SpecError, match="expected sandbox or insecure"):
        build(store, "FROM box:1\nRUN --security=none true\n")
    for wrong in ("security.insecure", ("everything",)):
        with pytest.raises(SpecError, match="allow must be some of"):
            build(store, text, allow=wrong)
    made = Build.from_("box:1").run("test -w /proc/sys/kernel/domainname", security="insecure")
    made.build(store=store, pull="never", allow={"security.insecure"})


def test_build_command_runs_as_the_user_in_the_directory_with_the_environment(store):
    text = "FROM box:1\nENV X=1\nWORKDIR /tmp/w\nRUN chmod 777 .\nUSER web\nRUN id -u > out; echo $X$PWD >> out\n"
    assert "101\n1/tmp/w\n" == output(build(store, text), "cat", "/tmp/w/out")


def test_build_from_scratch_needs_no_program(store, context, tmp_path):
    (context / "f").write_text("1")
    image = build(store, "FROM scratch\nCOPY f /d/f\nWORKDIR /w\n", context)
    (tmp_path / "t").mkdir()
    image.unpack_into(tmp_path / "t")
    assert ["d", "w"] == sorted(os.listdir(tmp_path / "t"))


def test_build_in_python(store, context):
    (context / "app").write_text("app")
    tools = Build.from_("box:1").run(["/bin/sh", "-c", "echo $((6*7)) > /answer"])
    made = (
        Build.from_("box:1")
        .env(GREETING='hello "$USER"')
        .label({"a.b": "c d"})
        .workdir("/srv")
        .copy("app", "/srv/", chown="web")
        .copy("/answer", "/answer", from_=tools)
        .run("printf '%s' \"$GREETING\" > greeting")
        .user("web")
        .expose(80)
        .volume("/data")
        .stop_signal("SIGTERM")
        .healthcheck("true", interval="5s", retries=2)
        .entrypoint("/bin/cat")
        .command("/srv/greeting")
    )
    image = Image.build(made, context=context, store=store, pull="never", tag="py:1")
    assert 'hello "$USER"42\napp' == output(image, "cat", "/srv/greeting", "/answer", "/srv/app")
    assert ("/bin/cat", "/srv/greeting") == image.defaults.argv()
    assert ({"a.b": "c d"}, "/srv", "web") == (image.defaults.labels, image.defaults.working_dir, image.defaults.user)


TEN = {
    "python app": """
FROM box:1 AS deps
WORKDIR /wheels
RUN echo wheel > a.whl
FROM box:1
ENV PYTHONUNBUFFERED=1
WORKDIR /app
COPY --from=deps /wheels /wheels
RUN --mount=type=cache,target=/root/.cache mkdir -p /usr/lib/py && cp /wheels/*.whl /usr/lib/py/
COPY . .
USER web
EXPOSE 8000
CMD ["python", "app.py"]
""",
    "static go": """
# syntax=docker/dockerfile:1
ARG VERSION=1.2
FROM --platform=$BUILDPLATFORM box:1 AS build
ARG TARGETOS TARGETARCH VERSION
RUN echo "$TARGETOS $TARGETARCH $VERSION" > /bin/app
FROM scratch
COPY --from=build /bin/app /app
ENTRYPOINT ["/app"]
""",
    "web server": r"""
FROM box:1
RUN set -eux; \
    echo www:x:200: >> /etc/group; \
    mkdir -p /var/www /var/log/www; \
    ln -sf /dev/stdout /var/log/www/access.log
COPY *.html /var/www/
VOLUME /var/www
STOPSIGNAL SIGQUIT
HEALTHCHECK CMD wget -qO- localhost || exit 1
CMD ["httpd", "-f"]
""",
    "heredoc": """
FROM box:1
RUN <<EOF
set -e
mkdir /conf
cat > /conf/x <<INNER
value
INNER
EOF
COPY <<EOF /etc/app.conf
key=${NAME:-none}
EOF
""",
    "escapes": "# escape=`\nFROM box:1\nENV WIN=C:\\dir `\n    B=2\nRUN echo one && `\n  echo two\n",
    "arguments": """
ARG TAG=1
ARG NAME=box
FROM ${NAME}:${TAG}
ARG A=x
ARG B=${A}y
ENV C=${B:+set} D=${UNSET:-default}
RUN test "$B$C$D" = xysetdefault
""",
    "onbuild": """
FROM box:1
ONBUILD COPY . /src
ONBUILD RUN ls /src
SHELL ["/bin/sh", "-e", "-c"]
RUN true
""",
    "owners": """
FROM box:1
COPY --chown=101:102 --chmod=600 . /home/
RUN chown -R web:staff /home && find /home -user web | grep -q .
""",
    "deletions": """
FROM box:1
RUN mkdir -p /big/a /big/b && echo x > /big/a/x
RUN rm -rf /big/a && cp -r /big/b /big/c
RUN rm -rf /big && mkdir /big
""",
    "labels and links": r"""
FROM box:1
LABEL a=b \
  # a comment inside
  c="d e"
RUN ln -s /etc/passwd /p; ln /bin/busybox /bb; mkfifo /pipe
COPY --link . /lib/linked/
""",
}


@pytest.mark.parametrize("kind", TEN)
def test_dockerfiles_of_ten_kinds_build_and_give_the_same_digest_twice(store, base, context, kind):
    (context / "index.html").write_text("<html>")
    (context / "app.py").write_text("print()")
    (context / "Dockerfile").write_text(TEN[kind].lstrip())
    one = build_dockerfile(context, store=store, pull="never")
    assert one.digest == build_dockerfile(context, store=store, pull="never").digest
    options = {"pull": "never", "epoch": 1_600_000_000, "cache": False}
    apart = [build_dockerfile(context, store=where, **options) for where in (store, base)]
    assert apart[0].digest == apart[1].digest
    assert () == store.verify()
    one.unpack()


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs Debian's package umoci")
def test_built_image_is_what_umoci_unpacks(store, tmp_path):
    text = "FROM box:1\nRUN rm -r /etc && mkdir /etc && echo x > /etc/x && rm /lib\nRUN echo y > /y\n"
    image = build(store, text, tag="u:1")
    entry = f"{store.root}:docker.io/library/u:1"
    subprocess.run(["umoci", "unpack", "--image", entry, tmp_path / "b"], check=True, capture_output=True)
    (tmp_path / "t").mkdir()
    image.unpack_into(tmp_path / "t")
    command = ["diff", "-r", "--no-dereference", tmp_path / "t", tmp_path / "b/rootfs"]
    assert "" == subprocess.run(command, capture_output=True, text=True, check=False).stdout
    assert ["x"] == os.listdir(tmp_path / "t/etc")
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert ["/bin/sh"] == config["process"]["args"]


def test_build_keeps_set_id_bits_as_packages_have_them(store):
    """Only its owner can access the store, so no other user can run a build's files. Elsewhere the bits are refused."""
    made = "cp /bin/busybox /bin/own && chmod 4755 /bin/own && mkdir /var/mail && chmod 2775 /var/mail"
    text = f"FROM box:1\nRUN mkdir -p /var && {made}\nRUN --mount=type=cache,target=/cache cp /bin/own /cache/ && chmod 6755 /cache/own\n"
    image = build(store, text)
    assert ["4755", "2775"] == output(image, "stat", "-c", "%a", "/bin/own", "/var/mail").split()
    assert 0o700 == store.root.stat().st_mode & 0o777


def test_image_in_memory_takes_set_id_bits_and_one_on_disk_does_not(base, tmp_path):
    image = Image.open("box:1", store=base)
    script = ["sh", "-c", "cp /bin/busybox /bin/own && chmod 4755 /bin/own"]
    with Container(image.rootfs()) as container:
        assert 0 == container.run(script).returncode
    (tmp_path / "upper").mkdir()
    with Container(image.rootfs(upper=tmp_path / "upper")) as container:
        assert b"not permitted" in container.run(script).stderr
        assert 0o755 == (tmp_path / "upper/bin/own").stat().st_mode & 0o7777
        assert 0 == container.run(script, set_id_bits=True).returncode
    assert 0o4755 == (tmp_path / "upper/bin/own").stat().st_mode & 0o7777
