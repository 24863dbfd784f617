"""Connections of fleets on clusters that use TLS, with certificates made by openssl."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from fleet_samples import lasting, none_of, runs_of
from waiting import wait_for

from containerkit import SpecError
from containerkit.fleet import Fleet, NodeLost
from containerkit.fleet.channel import Channel
from containerkit.fleet.executor import ExecutorEngine

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
SECRET = "seldom-word-of-this-test"


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, directory):
        directory.mkdir()
        self.directory = directory
        self.certificate = str(directory / "ca.crt")
        self._openssl("req", "-x509", *self._key("ca"), "-out", "ca.crt", "-subj", "/CN=authority")

    def _key(self, name):
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"

    def _openssl(self, *words):
        subprocess.run(["openssl", *words], cwd=self.directory, check=True, capture_output=True)

    def signed(self, name, *extensions):
        """Return the paths of a new certificate and its key."""
        (self.directory / "extensions").write_text("\n".join(extensions))
        self._openssl("req", *self._key(name), "-out", f"{name}.csr", "-subj", f"/CN={name}")
        self._openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.crt", "-extfile", "extensions",
        )  # fmt: skip
        return str(self.directory / f"{name}.crt"), str(self.directory / f"{name}.key")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = Authority(tmp_path_factory.mktemp("certificates") / "cluster")
    made.node = made.signed("node", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    made.client = made.signed("client", "extendedKeyUsage=clientAuth")  # no certificate of a server
    return made


def context_of(authority, pair, *, driver):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if driver else ssl.PROTOCOL_TLS_SERVER)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.certificate)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


class _Threads(ExecutorEngine):
    """Workers that are threads and reach the driver through a relay, which keeps what it passes on."""

    def __init__(self, executor, driver, worker):
        super().__init__(executor, "127.0.0.1")
        self.channel.close()
        self.channel = Channel("127.0.0.1", driver)
        self.worker = worker
        self.passed = bytearray()
        self.relayed = False
        self._relay = socket.create_server(("127.0.0.1", 0))

    def carry(self, ticket, limits, more, through):
        if not self.relayed:
            self.relayed = True
            threading.Thread(target=self._accept, args=(ticket.port,), daemon=True).start()
        ticket = ticket._replace(port=self._relay.getsockname()[1])
        return super().carry(ticket, limits, {**more, "tls": self.worker}, through)

    def _accept(self, port):
        while True:
            try:
                worker, _ = self._relay.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(worker, port), daemon=True).start()

    def _serve(self, worker, port):
        with worker, socket.create_connection(("127.0.0.1", port)) as driver:
            back = threading.Thread(target=self._pass, args=(driver, worker), daemon=True)
            back.start()
            self._pass(worker, driver)
            back.join()

    def _pass(self, here, there):
        try:
            while content := here.recv(1 << 16):
                self.passed += content
                there.sendall(content)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self):
        super().close()
        self._relay.shutdown(socket.SHUT_RDWR)
        self._relay.close()


@contextmanager
def fleet_of(driver, worker):
    with ThreadPoolExecutor(2) as executor:
        engine = _Threads(executor, driver, worker)
        with Fleet(engine) as fleet:
            fleet.engine = engine
            yield fleet


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_passes_is_encrypted(authority, encrypted):
    """Without TLS, as the control, the relay sees the task."""
    driver = context_of(authority, authority.client, driver=True) if encrypted else None
    with fleet_of(driver, lambda: context_of(authority, authority.node, driver=False)) as fleet:
        done = fleet.submit(["cat"], input=SECRET, text=True).result(60)
        assert (done.stdout, SECRET.encode() in fleet.engine.passed) == (SECRET, not encrypted)


def test_both_directions_carry_much_at_the_same_time(authority):
    """The driver sends large input while the worker sends output of another task over the same connection."""
    driver = context_of(authority, authority.client, driver=True)
    lines = []
    with fleet_of(driver, lambda: context_of(authority, authority.node, driver=False)) as fleet:
        spoken = [fleet.submit(["seq", "50000"], text=True, on_stdout=lines.append) for _ in range(2)]
        echoed = [fleet.submit(["cat"], input=b"x" * (8 << 20)) for _ in range(2)]
        assert [len(future.result(60).stdout) for future in echoed] == [8 << 20] * 2
        assert {future.result(60).returncode for future in spoken} == {0}
    assert len(lines) == 100_000


def _stranger(directory):
    other = Authority(directory / "other")
    return context_of(other, other.signed("stranger"), driver=False)


WORKERS = {
    "no TLS": (None, "no certificates"),
    "of another authority": (_stranger, "ALERT|closed the connection|reset"),
}


@pytest.mark.parametrize("kind", list(WORKERS))
def test_worker_without_a_certificate_of_the_cluster_gets_nothing(authority, tmp_path, kind):
    make, told = WORKERS[kind]
    worker = None if make is None else lambda: make(tmp_path)
    driver = context_of(authority, authority.client, driver=True)
    with fleet_of(driver, worker) as fleet:
        future = fleet.submit(["cat"], input=SECRET, text=True)
        with pytest.raises(NodeLost, match=told):
            future.result(60)
        assert SECRET.encode() not in fleet.engine.passed


def test_driver_without_a_certificate_gets_no_worker(authority):
    driver = context_of(authority, None, driver=True)
    worker = context_of(authority, authority.node, driver=False)
    with (
        fleet_of(driver, lambda: worker) as fleet,
        pytest.raises(NodeLost, match=r"did not return a certificate|certificate required"),
    ):
        fleet.submit(["true"]).result(60)


def test_dask_cluster_with_tls(authority):
    """One node. The certificate of the client is not one of a server, as Dask permits."""
    distributed = pytest.importorskip("distributed", reason="needs the package distributed")
    names = {"tls_ca_file": authority.certificate, "require_encryption": True}
    for role, pair in (("scheduler", authority.node), ("worker", authority.node), ("client", authority.client)):
        names |= {f"tls_{role}_cert": pair[0], f"tls_{role}_key": pair[1]}
    security = distributed.Security(**names)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, protocol="tls://", security=security, host="127.0.0.1",
            dashboard_address=None, silence_logs=50,
        ) as cluster,
        distributed.Client(cluster, security=security) as client,
    ):  # fmt: skip
        with Fleet.dask(client) as fleet:
            assert fleet.submit(["echo", "here"], text=True).result(60).stdout == "here\n"
            command = lasting()
            future = fleet.submit(command)
            wait_for(runs_of(command), 60)
            future.cancel()
            assert future.gone(30)
            assert none_of(command)()
        client.security.tls_client_cert = None
        with pytest.raises(SpecError, match="no certificate"):
            Fleet.dask(client)


RAY = """
import os, sys
import ray
from containerkit import SpecError
from containerkit.fleet import Fleet

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20, _temp_dir=sys.argv[1])
with Fleet.ray(None) as fleet:
    assert fleet._engine.channel._tls is not None
    print(fleet.submit(["echo", "here"], text=True).result(100).stdout)
os.environ["RAY_TLS_CA_CERT"] = "/absent"
try:
    Fleet.ray(None)
except SpecError as error:
    print(error)
ray.shutdown()
"""


@pytest.mark.slow  # a node of Ray with TLS takes seconds to start
@pytest.mark.timeout(120)
def test_ray_cluster_with_tls(authority, tmp_path):
    ray = pytest.importorskip("ray", reason="needs the package ray")
    address = ray.util.get_node_ip_address()  # Ray's own connections check it
    certificate, key = authority.signed("ray", f"subjectAltName=IP:127.0.0.1,IP:{address},DNS:localhost")
    names = {"SERVER_CERT": certificate, "SERVER_KEY": key, "CA_CERT": authority.certificate}
    environment = os.environ | {"RAY_USE_TLS": "1"} | {f"RAY_TLS_{name}": value for name, value in names.items()}
    directory = f"/tmp/ck-ray-{os.getpid()}"  # sockets in it have short names
    try:
        done = subprocess.run(
            [sys.executable, "-c", RAY, directory], env=environment, cwd=tmp_path, capture_output=True, text=True,
            timeout=90, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert "here\n" in done.stdout, done.stderr
    assert "RAY_USE_TLS needs RAY_TLS_SERVER_CERT" in done.stdout
