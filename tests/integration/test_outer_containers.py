"""The README's example inside containers of other engines, and under their restrictions: it runs, or names the remedy."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from oci_engines import user_with_ids

import containerkit

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an engine's container as root")
SOURCE = str(Path(containerkit.__file__).parents[1])
JOB = "from containerkit import run; print(run(['id', '-u'], text=True, check=True).stdout, end='')"
needs_podman = pytest.mark.skipif(
    shutil.which("podman") is None or shutil.which("runc") is None, reason="needs Debian's packages podman and runc"
)
needs_nspawn = pytest.mark.skipif(
    shutil.which("systemd-nspawn") is None, reason="needs Debian's package systemd-container"
)
PROBE = "from containerkit import probe; print({each.name: str(each) for each in probe().missing})"
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")


def python(prefix, code, **more):
    environment = {**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))}
    return subprocess.run(
        [*prefix, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, **more
    )


def make_root(root):
    """Create an empty root for this machine's programs and this Python. Return the directories to mount in it."""
    wanted = {SOURCE, *(path for path in sys.path if os.path.isdir(path)), sys.prefix, sys.base_prefix}
    shown = ["/usr", *sorted(path for path in wanted if not f"{path}/".startswith("/usr/"))]
    for path in ("/etc", "/proc", "/sys", "/dev", "/tmp", "/run", "/var", "/root", *shown):
        (root / path[1:]).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
    return shown


SEARCHED = "PYTHONPATH=" + ":".join(filter(None, sys.path))


def words_of_podman(options, root, shown, code):
    binds = [word for path in shown for word in ("--volume", f"{path}:{path}:ro")]
    limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]  # otherwise podman would raise them
    command = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs", "run", "--rm", "--network=none"]
    return [*command, *limits, *options, *binds, "--env", SEARCHED, "--rootfs", str(root), sys.executable, "-c", code]


@pytest.fixture
def podman(tmp_path):
    """Run a program in a container of podman with this machine's programs and this Python."""
    root = tmp_path / "root"
    shown = make_root(root)

    def job(*options, code=JOB):
        words = words_of_podman(options, root, shown, code)
        return subprocess.run(words, capture_output=True, text=True, timeout=90)

    return job


@pytest.fixture(scope="module")
def rootless():
    """Do the same as an unprivileged user with subordinate ids."""
    with user_with_ids("job", 1_700_000_000) as (name, home):
        try:
            subprocess.run([sys.executable, "-c", ""], user=name, extra_groups=[], check=True, cwd="/")
        except (PermissionError, subprocess.CalledProcessError):
            pytest.skip("an unprivileged user can't run this interpreter")
        shown = make_root(home / "root")
        (home / "storage.conf").write_text(f'[storage]\ndriver="vfs"\ngraphroot="{home}/graph"\nrunroot="{home}/run"\n')
        (home / "runtime-dir").mkdir(mode=0o700)
        for directory, names, files in os.walk(home):
            for path in (directory, *(os.path.join(directory, one) for one in (*names, *files))):
                os.chown(path, pwd.getpwnam(name).pw_uid, -1, follow_symlinks=False)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "runtime-dir"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        }
        how = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": [], "cwd": home, "env": environment}

        def job(*options, code=JOB):
            words = words_of_podman(options, home / "root", shown, code)
            return subprocess.run(words, capture_output=True, text=True, timeout=90, **how)

        yield job
        pause = home / "runtime-dir/libpod/tmp/pause.pid"  # podman's own process, which keeps its namespaces
        if pause.exists():
            os.kill(int(pause.read_text()), signal.SIGKILL)


@needs_podman
@pytest.mark.parametrize(
    "options",
    [
        ["--privileged"],
        ["--cap-add=SYS_ADMIN"],
        ["--cap-add=SYS_ADMIN", "--security-opt=unmask=ALL"],
        ["--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"],
        ["--privileged", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/run"],
    ],
    ids=" ".join,
)
def test_job_runs_in_podman(podman, options):
    done = podman(*options)
    assert ("0\n", 0) == (done.stdout, done.returncode), done.stderr


@needs_podman
@pytest.mark.parametrize("options", [[], ["--security-opt=unmask=ALL"]], ids=["default", "unmasked"])
def test_refusal_of_podmans_filter_is_named_with_its_remedy(podman, options):
    done = podman(*options)
    assert 0 != done.returncode
    assert "seccomp filter" in done.stderr
    assert "--cap-add SYS_ADMIN" in done.stderr


@needs_podman
@pytest.mark.parametrize(
    "options",
    [
        ["--privileged"],
        ["--cap-add=SYS_ADMIN", "--security-opt=unmask=ALL"],
        ["--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"],
    ],
    ids=" ".join,
)
def test_job_runs_in_podman_of_a_user(rootless, options):
    done = rootless(*options)
    assert ("0\n", 0) == (done.stdout, done.returncode), done.stderr


@needs_podman
@pytest.mark.parametrize("options", [[], ["--security-opt=unmask=ALL"]], ids=["default", "unmasked"])
def test_refusal_of_the_filter_of_podman_of_a_user_is_named_with_its_remedy(rootless, options):
    done = rootless(*options)
    assert 0 != done.returncode
    assert "seccomp filter" in done.stderr
    assert "--cap-add SYS_ADMIN" in done.stderr


@needs_podman
@pytest.mark.parametrize("options", [["--cap-add=SYS_ADMIN"], ["--security-opt=seccomp=unconfined"]], ids=" ".join)
def test_mask_of_podman_of_a_user_is_named_with_its_remedy(rootless, options):
    done = rootless(*options)
    assert 0 != done.returncode
    assert "fsmount proc: Operation not permitted (hint: the kernel mounts a new one only where" in done.stderr
    assert "--security-opt unmask=ALL" in done.stderr
    assert "(mounted here: /proc/" in done.stderr
    missing = eval(rootless(*options, code=PROBE).stdout)
    assert "/proc/" in missing["proc_in_user_namespace"]
    assert "--security-opt unmask=ALL" in missing["proc_in_user_namespace"]


@needs_podman
def test_probe_lists_what_podman_refuses(podman):
    missing = eval(podman("--read-only", "--read-only-tmpfs=false", code=PROBE).stdout)
    assert {"system_calls", "leases"} <= set(missing), missing
    assert "sethostname" in missing["system_calls"]
    assert "--security-opt seccomp=unconfined" in missing["system_calls"]
    assert "read-only file system" in missing["leases"]
    assert "--tmpfs /run" in missing["leases"]
    assert "own_root" not in missing


@pytest.fixture
def nspawn(tmp_path):
    """Run a program in a container of systemd-nspawn, without registering it with systemd."""
    root = tmp_path / f"nspawn-{os.getpid()}"
    shown = make_root(root)
    (root / "etc/os-release").touch()

    def job(*options, code=JOB):
        command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", f"--directory={root}"]
        binds = [f"--bind-ro={path}" for path in shown]
        words = [*command, *options, *binds, f"--setenv={SEARCHED}", sys.executable, "-c", code]
        return subprocess.run(words, capture_output=True, text=True, timeout=90)

    return job


@needs_nspawn
@pytest.mark.parametrize(
    "options",
    [
        ["--system-call-filter=keyctl"],
        ["--system-call-filter=@keyring", "--capability=all"],
        ["--system-call-filter=@keyring", "--private-users=1800000000:65536"],
    ],
    ids=" ".join,
)
def test_job_runs_in_nspawn(nspawn, options):
    done = nspawn(*options)
    assert ("0\n", 0) == (done.stdout, done.returncode), done.stderr


@needs_nspawn
def test_refusal_of_nspawns_filter_is_named_with_its_remedies(nspawn):
    done = nspawn()
    assert 0 != done.returncode
    assert "probably refuses keyctl" in done.stderr
    assert "systemd-nspawn: --system-call-filter=keyctl" in done.stderr
    assert "keyring='host'" in done.stderr
    missing = eval(nspawn(code=PROBE).stdout)
    assert "keyctl landlock_create_ruleset: operation not permitted" in missing["system_calls"]
    assert "--system-call-filter=landlock_create_ruleset" in missing["landlock"]
    other = nspawn(code=JOB.replace("check=True", "check=True, keyring='host'"))
    assert ("0\n", 0) == (other.stdout, other.returncode), other.stderr


# --- Chroots


IN_A_MOUNT = 'mount --rbind / "$0"; exec chroot {} "$0" "$@"'
IN_A_DIRECTORY = """
mount -t tmpfs root "$0"; mkdir "$0/in"
for name in $(ls /); do
    if test -h "/$name"; then cp -P "/$name" "$0/in/"
    elif test -d "/$name"; then mkdir "$0/in/$name"; mount --rbind "/$name" "$0/in/$name"; fi
done
exec chroot {} "$0/in" "$@"
"""
BY_PIVOT_ROOT = 'mount --rbind / "$0"; cd "$0"; pivot_root . mnt; umount -l /mnt; exec "$@"'


def changed(script, tmp_path, user=""):
    place = tmp_path / "root"
    place.mkdir()
    return ["unshare", "--mount", "--propagation=private", "sh", "-c", script.format(user), str(place)]


@pytest.mark.parametrize("user", ["", "--userspec=54327:54327"], ids=["root", "user"])
@pytest.mark.parametrize("script", [IN_A_MOUNT, IN_A_DIRECTORY], ids=["mount", "directory"])
def test_chroot_is_named_with_its_remedy(tmp_path, script, user):
    tmp_path.chmod(0o755)
    prefix = changed(script, tmp_path, user)
    done = python(prefix, JOB)
    assert "UnsupportedError" in done.stderr, done.stderr
    assert "this process is probably in a chroot" in done.stderr
    assert "systemd-nspawn --directory=DIR" in done.stderr
    missing = eval(python(prefix, PROBE).stdout)
    assert missing["own_root"].startswith("no  the root of the mount namespace as /: a chroot")


def test_root_that_was_entered_by_pivot_root_is_no_chroot(tmp_path):
    done = python(changed(BY_PIVOT_ROOT, tmp_path), JOB)
    assert ("0\n", 0) == (done.stdout, done.returncode), done.stderr


# --- Single restrictions


@pytest.mark.parametrize(
    "cover",
    [
        "mount -t tmpfs x /proc/sys",
        "mount -t tmpfs x /proc/sys/kernel",
        "mount --bind /dev/null /proc/sys/kernel/cap_last_cap",
    ],
)
def test_masked_number_of_the_last_capability_is_asked_of_the_kernel(cover):
    script = "print(run(['grep', '^Cap', '/proc/self/status'], text=True, check=True).stdout, end='')"
    done = python(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", f'{cover}; exec "$@"', "sh"],
        f"from containerkit import run; {script}",
    )
    assert (5, {"0000000000000000"}) == (
        len(done.stdout.splitlines()),
        {line.split()[1] for line in done.stdout.splitlines()},
    ), done.stderr


def test_mounts_below_the_programs_that_a_user_cannot_leave_out_are_named(tmp_path):
    script = 'mount -t tmpfs x /usr/local/games; exec unshare --user --map-root-user "$@"'
    done = python(["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"], JOB)
    assert "open_tree /usr: Invalid argument (hint: it has mounts below" in done.stderr, done.stderr
    assert "/usr/local/games" in done.stderr


@needs_podman
def test_read_only_run_is_named_with_its_remedy(podman):
    done = podman("--privileged", "--read-only", "--read-only-tmpfs=false")
    assert 0 != done.returncode
    assert "SetupError: open /run/containerkit/ids" in done.stderr
    assert "--tmpfs /run" in done.stderr


def test_missing_proc_is_named_with_its_remedy():
    done = python(["unshare", "--mount", "--propagation=private", "sh", "-c", 'umount -l /proc; exec "$@"', "sh"], JOB)
    assert "SetupError: stat /proc/self/ns" in done.stderr
    assert "mount -t proc proc /proc" in done.stderr


@pytest.mark.parametrize(
    "call", ["Sandbox(landlock=Landlock().allow_read('/').allow_execute('/')).run(['true'])", "CGroup.create()"]
)
def test_missing_proc_is_named_by_what_is_no_container(call):
    prefix = ["unshare", "--mount", "--propagation=private", "sh", "-c", 'umount -l /proc; exec "$@"', "sh"]
    done = python(prefix, f"from containerkit import CGroup, Landlock, Sandbox; {call}")
    assert "SetupError: stat /proc/self/ns" in done.stderr, done.stderr
    assert "mount -t proc proc /proc" in done.stderr


@needs_setpriv
def test_root_that_may_not_make_nodes_gets_those_that_are_there():
    code = """
import os
from containerkit import run
run(["true"])
before = len(os.listdir("/proc/self/fd"))
script = "head -c 4 /dev/zero | wc -c; echo x >/dev/null; touch /dev/x || chmod 666 /dev/null || echo unchanged"
print(run(["sh", "-c", script], text=True, check=True).stdout.split(), len(os.listdir("/proc/self/fd")) - before)
"""
    done = python(["setpriv", "--bounding-set=-mknod"], code)
    assert ("['4', 'unchanged'] 0\n", "") == (done.stdout, done.stderr)
