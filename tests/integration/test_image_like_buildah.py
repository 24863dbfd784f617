"""Real Dockerfiles, compared with buildah's results: the same files, modes, owners, config."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile

import pytest
from image_samples import BUSYBOX, busybox_root

from containerkit.image import Defaults, Image, Store
from containerkit.image.build import build_dockerfile
from containerkit.image.claimed import release

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="building with owners needs root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
    pytest.mark.skipif(shutil.which("buildah") is None, reason="needs Debian's package buildah"),
]

DOCKERFILES = {
    "python": r"""
ARG BASE=box:1
ARG VARIANT=${UNSET:-slim}
FROM localhost/${BASE} AS builder
ARG VARIANT
ARG VERSION=0.1
ENV VENV=/opt/venv PYTHONUNBUFFERED=1
ENV PATH="$VENV/bin:$PATH"
WORKDIR /build
COPY requirements.txt ./
RUN set -eux; \
    # a comment in between
    mkdir -p "$VENV/lib" "$VENV/bin"; \
    cat requirements.txt > $VENV/lib/reqs; \
    echo "$VARIANT-${VERSION}" > $VENV/version
COPY . .
RUN find . -type f | sort > $VENV/lib/found
FROM localhost/${BASE}
LABEL title="my app" \
      multi="a b" version=$VERSION
COPY --from=builder --chown=web:web /opt/venv /opt/venv
COPY --chown=101 app /srv/app
ENV PATH=/opt/venv/bin:$PATH
USER web
WORKDIR /srv/app
EXPOSE 8000/tcp 53/udp
HEALTHCHECK --interval=30s --timeout=5s --retries=3 CMD wget -qO- http://localhost:8000/ || exit 1
STOPSIGNAL SIGINT
ENTRYPOINT ["python3", "-m"]
CMD ["pkg"]
""",
    "static": r"""
FROM localhost/box:1 AS build
ARG TARGETOS
WORKDIR /src
COPY app/pkg ./cmd
RUN --mount=type=bind,source=app,target=/mnt/app --mount=type=tmpfs,target=/scratch \
    cp /bin/busybox /out && cat /mnt/app/pkg/__init__.py > /main && touch /scratch/x && chmod 4755 /out
FROM build AS test
RUN false
FROM scratch AS final
COPY --from=build /etc/passwd /etc/group /etc/
COPY --from=build --chmod=0555 /out /app
COPY --from=0 /main /
USER 65534:65534
ENTRYPOINT ["/app"]
""",
    "script": r"""
FROM localhost/box:1 AS deps
WORKDIR /app
COPY package*.json ./
RUN mkdir -p node_modules/a && echo a > node_modules/a/i.js
FROM deps AS build
COPY . .
RUN mkdir dist && cp -r app dist/ && ln -s ../app dist/pub
FROM localhost/box:1
ENV NODE_ENV=production
WORKDIR /app
COPY --from=deps /app/node_modules ./node_modules/
COPY --from=build /app/dist/ .
COPY app/pkg/*.py extra/
COPY link.txt README.m[d] empty ./more/
RUN ["/bin/sh", "-c", "echo \"$NODE_ENV\" > /env; chown web:web /app"]
CMD node index.js
""",
    "server": r"""
# escape=`
FROM localhost/box:1
SHELL ["/bin/sh", "-eu", "-c"]
RUN mkdir -p /etc/www `
 && ln -sf /dev/stdout /etc/www/access.log `
 && echo "www:x:500:" >> /etc/group `
 && echo "www:x:500:500::/:/bin/sh" >> /etc/passwd
COPY site.conf /etc/www/templates/
COPY --chmod=755 entry.sh /entry.sh
ADD site.tgz /usr/share/site/
ADD --chown=www:www requirements.txt /usr/share/list
RUN sed "s/\${HOST}/example.org/" /etc/www/templates/site.conf > /etc/www/site.conf
RUN rm -rf /etc/www/templates && mkdir /etc/www/templates && chmod 2775 /etc/www/templates
ENTRYPOINT ["/entry.sh"]
STOPSIGNAL SIGQUIT
CMD ["www", "-g", "daemon off;"]
""",
    "triggers": r"""
FROM localhost/box:1 AS on
ONBUILD COPY app /on/app
ONBUILD RUN cp -r /on/app /on/copy
ONBUILD ENV FROM_ON=1
FROM on
ENV A=1 B="two words" C=three\ words
ENV D=$A-${B}-${MISSING:-def}-${A:+alt}
RUN echo "$D" > /d
WORKDIR rel
WORKDIR sub
RUN pwd > /pwd
COPY entry.sh requirements.txt /dst/
ADD ["app/with space", "/sp ace/"]
COPY --chown=7:8 entry.sh /lib/through
RUN rm /dst/entry.sh && mkdir /dst/entry.sh && echo > /dst/entry.sh/x && mv /dst/requirements.txt /dst/c && ln /dst/c /dst/hard
USER 7
WORKDIR /made/by/user
RUN id -u > uid
CMD echo $A
""",
}
MADE = ("proc", "sys", "dev", "run", "etc/resolv.conf", "etc/hosts", "etc/hostname")


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A store and a storage of buildah that both have localhost/box:1."""
    directory = tmp_path_factory.mktemp("base")
    root = directory / "root"
    busybox_root(root, "usr/bin")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\nweb:x:101:101:web:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:101:\n")
    store = Store(directory / "store")
    defaults = Defaults(env={"PATH": "/bin"}, command=("/bin/sh",))
    image = Image.from_directory(root, "localhost/box:1", store=store, defaults=defaults)
    image.save(directory / "box.tar", form="docker-archive")
    buildah = ("buildah", "--root", directory / "b", "--runroot", directory / "r", "--storage-driver", "vfs")
    run(*buildah, "pull", "-q", f"docker-archive:{directory}/box.tar")
    yield store, buildah
    run(*buildah, "rm", "--all")
    run(*buildah, "rmi", "--all", "--force")


@pytest.fixture
def context(tmp_path):
    directory = tmp_path / "context"
    (directory / "app/pkg").mkdir(parents=True)
    (directory / "empty").mkdir()
    for name, content in {
        "app/pkg/__init__.py": "print()\n", "app/pkg/a.pyc": "junk", "app/with space": "s", "requirements.txt": "dep\n",
        "package.json": "{}", "package-lock.json": "{}", "README.md": "r", "CHANGES.md": "c", "keep.pyc": "k",
        "site.conf": "server_name ${HOST};\n", "entry.sh": "#!/bin/sh\n",
        ".dockerignore": "**/*.pyc\n!keep.pyc\n*.md\n!README.md\n.git\n",
    }.items():  # fmt: skip
        (directory / name).write_text(content)
    (directory / "entry.sh").chmod(0o640)
    (directory / "link.txt").symlink_to("app/pkg/__init__.py")
    with tarfile.open(directory / "site.tgz", "w:gz") as tar:
        tar.add(directory / "site.conf", "conf/site.conf")
    return directory


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def tree(top):
    found = {}
    for here, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = os.path.join(here, name)
            inside = os.path.relpath(path, top)
            if inside in MADE or inside.split("/")[0] in MADE:
                continue
            status = os.lstat(path)
            content = None
            if os.path.islink(path):
                content = os.readlink(path)
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    content = file.read()
            found[inside] = (oct(status.st_mode), status.st_uid, status.st_gid, content)
    return found


def config_of(config):
    config = {key: value for key, value in config.items() if value}
    config.get("Labels", {}).pop("io.buildah.version", None)
    names = (
        "Env",
        "Entrypoint",
        "Cmd",
        "WorkingDir",
        "User",
        "ExposedPorts",
        "Labels",
        "Healthcheck",
        "StopSignal",
        "OnBuild",
    )
    return {name: config[name] for name in names if config.get(name)}


@pytest.mark.parametrize("kind", DOCKERFILES)
def test_dockerfile_makes_what_buildah_makes_of_it(base, context, tmp_path, kind):
    store, buildah = base
    (context / "Dockerfile").write_text(DOCKERFILES[kind].lstrip())
    ours = build_dockerfile(context, store=store, pull="never")
    (tmp_path / "ours").mkdir()
    ours.unpack_into(tmp_path / "ours")
    options = ("--isolation", "chroot", "--network", "host", "--format", "docker", "--pull-never", "-q")
    theirs = run(*buildah, "build", *options, "-f", context / "Dockerfile", context).splitlines()[-1]
    made = run(*buildah, "from", "--pull-never", theirs)
    assert tree(run(*buildah, "mount", made)) == tree(tmp_path / "ours")
    config = json.loads(run(*buildah, "inspect", "--type", "image", theirs))["Docker"]["config"]
    assert config_of(config) == config_of(json.loads(ours.config.raw)["config"])
