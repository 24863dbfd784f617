"""Real programs inside: a test suite, a database, version control, a compiler."""

import os
import shutil
import subprocess
import sys

import pytest

from containerkit import PIPE, Container, Mount, run

pytestmark = [pytest.mark.usefixtures("interpreter", "nothing_left")]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def needs(program, package):
    """Skip unless the program is in a directory that a container has."""
    found = shutil.which(program, path=PATH)
    return pytest.mark.skipif(found is None, reason=f"{program} is not there: install {package}")


def database_directory():
    """The directories of initdb, in Debian and in local builds."""
    directories = (
        [f"/usr/lib/postgresql/{name}/bin" for name in sorted(os.listdir("/usr/lib/postgresql"))]
        if os.path.isdir("/usr/lib/postgresql")
        else []
    )
    for directory in (*reversed(directories), "/usr/local/bin", "/usr/bin", "/usr/local/pgsql/bin"):
        if all(os.access(f"{directory}/{name}", os.X_OK) for name in ("initdb", "pg_ctl", "psql", "postgres")):
            return directory
    return None


@needs("python3", "python3")
def test_a_python_test_suite():
    """The interpreter's own tests if they are installed, otherwise a small suite: threads, sockets, processes."""
    suite = """
import multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading, unittest

class Suite(unittest.TestCase):
    def test_subprocess(self):
        self.assertEqual(subprocess.run(["echo", "x"], capture_output=True).stdout, b"x\\n")
    def test_threads(self):
        seen = []
        threads = [threading.Thread(target=seen.append, args=(n,)) for n in range(50)]
        [t.start() for t in threads]; [t.join() for t in threads]
        self.assertEqual(sorted(seen), list(range(50)))
    def test_semaphores_of_dev_shm(self):
        with multiprocessing.get_context("fork").Pool(2) as pool:
            self.assertEqual(pool.map(abs, [-1, -2]), [1, 2])
    def test_sockets(self):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
            client.sendall(b"x")
            self.assertEqual(server.accept()[0].recv(1), b"x")
    def test_database_in_a_file(self):
        with tempfile.TemporaryDirectory() as directory:
            base = sqlite3.connect(directory + "/base")
            base.execute("create table t (a)"); base.execute("insert into t values (1)"); base.commit()
            self.assertEqual(base.execute("select a from t").fetchall(), [(1,)])
    def test_terminal(self):
        import pty
        master, slave = pty.openpty()
        os.write(slave, b"x"); self.assertEqual(os.read(master, 1), b"x")
    def test_locale_time_and_users(self):
        import locale, pwd, time
        locale.setlocale(locale.LC_ALL, ""); self.assertEqual(pwd.getpwuid(0).pw_name, "root"); time.tzset()
"""
    with Container() as container:
        container.files.write("/tmp/test_suite.py", suite)
        done = container.run(
            ["python3", "-m", "unittest", "-v", "/tmp/test_suite.py"], cwd="/tmp", text=True, timeout=100
        )
        assert 0 == done.returncode, done.stderr
        assert "Ran 7 tests" in done.stderr
        if container.run(["python3", "-c", "import test.test_json"]).returncode == 0:
            names = ["test_json", "test_tempfile", "test_threading"]
            done = container.run(["python3", "-m", "test", "-q", *names], text=True, timeout=110)
            assert 0 == done.returncode, done.stdout[-3000:]


def test_this_projects_own_unit_tests():
    """With the interpreter that runs this test, bound at the same path."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    prefix = os.path.realpath(sys.prefix)  # the directories of a symlink to it may be missing inside
    places = {prefix, os.path.realpath(sys.base_prefix), os.path.realpath(root)}
    mounts = [Mount.bind(place, place, readonly=True) for place in sorted(places) if not place.startswith("/usr")]
    if any(os.stat(mount.source).st_uid != os.geteuid() for mount in mounts) and os.geteuid():
        pytest.skip("the interpreter belongs to another user")
    words = [
        f"{prefix}/bin/{os.path.basename(sys.executable)}",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/unit/test_mountinfo.py",
        "tests/unit/test_plan.py",
    ]
    env = {
        "PYTHONPATH": f"{root}/src",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": PATH,
        "HOME": "/tmp",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/h",
    }
    done = run(words, mounts=mounts, cwd=root, env=env, text=True, timeout=100)
    assert 0 == done.returncode, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.skipif(database_directory() is None, reason="initdb is not there: install postgresql")
def test_postgresql_initdb_and_a_query_over_its_socket():
    directory = database_directory()
    env = {"PATH": f"{directory}:{PATH}", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}
    # The server refuses to run as root; with a single mapped id there is no other user.
    if os.geteuid():
        pytest.skip("PostgreSQL refuses to run as root, and this user has no other id")
    who = "1000:1000"
    with Container(mounts=[Mount.tmpfs("/data", size="512M"), Mount.tmpfs("/run/pg")]) as container:
        done = container.run(
            ["initdb", "-D", "/data/base", "-U", "me", "-A", "trust", "--no-sync"],
            env=env,
            user=who,
            text=True,
            timeout=60,
        )
        assert 0 == done.returncode, done.stderr
        server = container.popen(
            ["postgres", "-D", "/data/base", "-k", "/run/pg", "-c", "listen_addresses=", "-c", "fsync=off"],
            env=env, user=who, stdout=PIPE, stderr=PIPE,
        )  # fmt: skip
        psql = ["psql", "-h", "/run/pg", "-U", "me", "-d", "postgres", "-Atc"]
        for _ in range(100):
            ready = container.run([*psql, "select 1"], env=env, user=who, text=True)
            if ready.returncode == 0:
                break
            assert None is server.poll(), server.communicate()
        query = "create table t as select generate_series(1, 1000) n; select sum(n) from t;"
        done = container.run([*psql, query], env=env, user=who, text=True, check=True)
        assert "500500" in done.stdout
        server.terminate()
        assert 0 == server.wait(timeout=30)
        server.close()


@needs("git", "git")
def test_git_clone_of_a_local_repository(tmp_path):
    origin = tmp_path / "origin"
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    subprocess.run(["git", "init", "-q", origin], check=True, env=env)
    (origin / "file").write_text("content")
    subprocess.run(["git", "-C", origin, "add", "file"], check=True, env=env)
    subprocess.run(["git", "-C", origin, "commit", "-q", "-m", "one"], check=True, env=env)
    script = "git clone -q /origin /tmp/clone && cat /tmp/clone/file && git -C /tmp/clone log --format=%s"
    with Container(mounts=[Mount.bind(origin, "/origin", readonly=True)]) as container:
        done = container.run(["sh", "-c", script], text=True, timeout=60)
        assert (0, "contentone\n") == (done.returncode, done.stdout), done.stderr


@needs("gcc", "gcc and libc6-dev")
def test_compile_and_run_with_gcc(box):
    box.files.write(
        "/tmp/hello.c",
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf("%d\\n", getpid() > 1); return 7; }\n',
    )
    done = box.run(
        ["sh", "-c", "gcc -O2 -Wall -Werror -o /tmp/hello /tmp/hello.c && /tmp/hello"], text=True, timeout=60
    )
    assert (7, "1\n") == (done.returncode, done.stdout), done.stderr


@needs("perl", "perl")
def test_perl_and_tar_and_find(box):
    script = "cd /tmp && mkdir t && for i in 1 2 3; do echo $i >t/$i; done && tar cf t.tar t && rm -r t && tar xf t.tar && find t -type f | sort | xargs cat | perl -ne 'print $_ * 2, \"\\n\"'"
    assert "2\n4\n6\n" == box.run(["sh", "-c", script], text=True, check=True).stdout
