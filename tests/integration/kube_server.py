"""A small API server of Kubernetes for Jobs, with a node that runs the commands of pods as processes of this machine.

It implements parts of batch/v1 Jobs and v1 Pods: lists, watches with bookmarks and versions, following logs, removal in
the foreground, deadlines. It first checks each Job against the published schema.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

VERSION = kubernetes_validate.latest_version()
"""The version of Kubernetes for the schemas: the newest that the package has."""
TOKEN = "token-of-the-test"


class Cluster:
    """The state of the server, and the faults that it injects.

    Attributes:
        refuse: the number of next requests that get status 503.
        lose: the number of next answers to POST that are lost after the request was performed.
        throttle: the number of next POSTs that get status 429, and are to wait for ``Retry-After``.
        conflicts: the number of next requests for Jobs that get status 409, because the object changed in the meantime.
        cut: the number of next watches that are cut off at once; ``expire``: the number that get "too old" as an event,
            ``gone``: the number that get it as their status.
        token: the only one that is accepted now.
        drop_user_namespaces: whether the field is dropped, as by a cluster that does not support it.
        broken: the container states to report instead of starting a command.
        idle: whether pods stay pending.
        requests: the (method, path) of all requests.
    """

    def __init__(self, directory):
        self.directory = directory
        self.refuse = self.lose = self.cut = self.expire = self.throttle = self.conflicts = self.gone = 0
        self.token = TOKEN
        self.drop_user_namespaces = self.idle = self.no_nodes = False
        self.broken = None
        self.requests = []
        self.jobs, self.pods, self.seen = {}, {}, []
        self.patches = []
        self.processes = {}
        self.stranded, self.forced = set(), []
        self.version = 1
        self.events = []
        self.changed = threading.Condition(threading.RLock())
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
        for name in list(self.processes):
            self.kill(name)

    # --- Objects

    def note(self, kind, pod):
        """Record a change of a pod. The caller holds the lock."""
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, copy.deepcopy(pod)))
        self.changed.notify_all()

    def make_job(self, job):
        kubernetes_validate.validate(job, VERSION, strict=True)
        with self.changed:
            name = job["metadata"]["name"]
            if name in self.jobs:
                return None
            self.seen.append(copy.deepcopy(job))
            if self.drop_user_namespaces:
                job["spec"]["template"]["spec"].pop("hostUsers", None)
            job["status"] = {}
            job["metadata"]["uid"] = f"uid-{name}"
            self.jobs[name] = job
            if self.no_nodes:
                job["status"]["conditions"] = [
                    {"type": "Failed", "status": "True", "reason": "FailedCreate", "message": "over quota"}
                ]
                return job
            template = copy.deepcopy(job["spec"]["template"])
            metadata = {**template["metadata"], "name": f"{name}-x1", "namespace": job["metadata"]["namespace"]}
            pod = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": template["spec"]}
            pod["status"] = {"phase": "Pending"}
            self.pods[metadata["name"]] = pod
            self.note("ADDED", pod)
        if not self.idle:
            self.start(metadata["name"])
        return job

    def start(self, name):
        pod = self.pods[name]
        container = pod["spec"]["containers"][0]
        pod["spec"]["nodeName"] = "node-1"
        if self.broken is not None:
            with self.changed:
                pod["status"]["containerStatuses"] = [{"name": "task", "state": self.broken}]
                self.note("MODIFIED", pod)
            return
        env = {each["name"]: _expanded(each["value"]) for each in container.get("env", ())}
        with open(os.path.join(self.directory, name), "wb") as log:
            process = subprocess.Popen(
                [_expanded(each) for each in container["command"]], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], **env}, cwd=container.get("workingDir", "/"), start_new_session=True,
            )  # fmt: skip
        with self.changed:
            self.processes[name] = process
            pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "task", "state": {"running": {}}}]}
            self.note("MODIFIED", pod)
        threading.Thread(target=self._attend, args=(name, process), daemon=True).start()

    def _attend(self, name, process):
        code = process.wait()
        with self.changed:
            pod = self.pods.get(name)
            if pod is None or pod["status"]["phase"] == "Failed":
                return
            ended = {"exitCode": code if code >= 0 else 128 - code, "reason": "Completed" if code == 0 else "Error"}
            if (
                code == -9
                and pod["spec"]["containers"][0].get("resources")
                and not pod["metadata"].get("deletionTimestamp")
            ):
                ended["reason"] = "OOMKilled"
            phase = "Succeeded" if code == 0 else "Failed"
            pod["status"] = {"phase": phase, "containerStatuses": [{"name": "task", "state": {"terminated": ended}}]}
            self.note("MODIFIED", pod)

    def kill(self, name):
        process = self.processes.get(name)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def lose_node(self):
        """End all pods, as a node controller does when a node no longer answers."""
        with self.changed:
            for name, pod in self.pods.items():
                pod["status"] = {"phase": "Failed", "reason": "NodeLost", "message": "the node was lost"}
                self.note("MODIFIED", pod)
                self.kill(name)

    def evict(self, name):
        """End a pod as a kubelet does whose node has no memory left."""
        with self.changed:
            ended = {"terminated": {"exitCode": 137, "reason": "Error"}}
            self.pods[name]["status"] = {
                "phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory.",
                "containerStatuses": [{"name": "task", "state": ended}],
            }  # fmt: skip
            self.note("MODIFIED", self.pods[name])
        self.kill(name)

    def strand(self, name):
        """Remove a pod from a node that is cut off: nobody confirms it, and the pod stays."""
        with self.changed:
            self.stranded.add(name)
            self.pods[name]["metadata"] |= {
                "deletionTimestamp": "2030-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0
            }  # fmt: skip
            self.note("MODIFIED", self.pods[name])

    def force(self, label):
        """Remove the pods of a task without their node."""
        key, _, value = label.partition("=")
        with self.changed:
            names = [name for name, pod in self.pods.items() if pod["metadata"]["labels"].get(key) == value]
            self.stranded.difference_update(names)
            self.forced += names

    def remove_pod(self, name):
        with self.changed:
            if name in self.pods:
                self.pods[name]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
        self.kill(name)
        with self.changed:
            pod = self.pods.pop(name, None)
            if pod is not None:
                self.note("DELETED", pod)

    def delete_job(self, name):
        """Remove a Job in the foreground: after its pods."""
        with self.changed:
            if name not in self.jobs:
                return False
            self.jobs[name]["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
            pod = self.pods.get(f"{name}-x1")
            if pod is not None:
                pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z"
                self.note("MODIFIED", pod)

        def remove():
            while f"{name}-x1" in self.stranded:
                time.sleep(0.05)
            self.remove_pod(f"{name}-x1")
            with self.changed:
                self.jobs.pop(name, None)

        threading.Timer(0.05, remove).start()
        return True


def _expanded(text):
    """Expand a text without variables as a kubelet does: ``$$`` becomes ``$``, an unknown ``$(NAME)`` is unchanged."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "EXPANDED", text)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster = None

    def log_message(self, *words):
        pass

    def _answer(self, status, value, **headers):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, each in headers.items():
            self.send_header(name.replace("_", "-"), each)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status, message, reason="", **headers):
        told = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason,
            "code": status,
        }  # fmt: skip
        self._answer(status, told, **headers)

    def _chunk(self, content):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def _serve(self):
        cluster = self.cluster
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        cluster.requests.append((self.command, parts.path, time.monotonic()))
        if self.headers.get("Authorization") != f"Bearer {cluster.token}":
            self._refuse(401, "Unauthorized")
            return
        if cluster.refuse > 0:
            cluster.refuse -= 1
            self._refuse(503, "the server is busy")
            return
        if cluster.throttle > 0 and self.command == "POST":
            cluster.throttle -= 1
            self._refuse(429, "too many requests", "TooManyRequests", Retry_After="1")
            return
        if cluster.conflicts > 0 and "/jobs" in parts.path and self.command != "GET":
            cluster.conflicts -= 1
            self._refuse(409, "please apply your changes to the latest version and try again", "Conflict")
            return
        job = re.fullmatch(r"/apis/batch/v1/namespaces/work/jobs(?:/([^/]+))?", parts.path)
        pod = re.fullmatch(r"/api/v1/namespaces/work/pods(?:/([^/]+)/log)?", parts.path)
        if job:
            self._job(job[1], body)
        elif pod and pod[1]:
            self._log(pod[1], query)
        elif pod and self.command == "DELETE":
            if body == {"gracePeriodSeconds": 0}:
                cluster.force(query["labelSelector"])
            self._answer(200, {})
        elif pod and "watch" in query:
            self._watch(query)
        elif pod:
            self._pods(query)
        elif parts.path == "/api/v1/nodes":
            condition = [{"type": "Ready", "status": "True"}]
            status = {"allocatable": {"cpu": "1900m", "memory": "2Gi"}, "conditions": condition}
            self._answer(200, {"items": [{"metadata": {"name": "node-1", "labels": {}}, "spec": {}, "status": status}]})
        else:
            self._refuse(404, f"{parts.path} not found")

    do_GET = do_POST = do_DELETE = do_PATCH = _serve  # noqa: N815 - http.server looks for them

    def _job(self, name, body):
        cluster = self.cluster
        if self.command == "POST":
            try:
                made = cluster.make_job(body)
            except kubernetes_validate.ValidationError as error:
                self._refuse(422, f"{error.path}: {error.message}")
                return
            if cluster.lose > 0:
                cluster.lose -= 1
                self.close_connection = True
                self.connection.close()
                return
            if made is None:
                self._refuse(409, f"jobs {body['metadata']['name']} already exists", "AlreadyExists")
            else:
                self._answer(201, made)
        elif name is None:
            with cluster.changed:
                self._answer(
                    200, {"items": list(cluster.jobs.values()), "metadata": {"resourceVersion": str(cluster.version)}}
                )
        elif name not in cluster.jobs:
            self._refuse(404, f"jobs {name} not found")
        elif self.command == "DELETE":
            cluster.delete_job(name)
            self._answer(200, {})
        elif self.command == "PATCH":
            cluster.patches.append((name, body))
            cluster.jobs[name]["spec"] |= body["spec"]
            self._answer(200, cluster.jobs[name])
        else:
            self._answer(200, cluster.jobs[name])

    def _matching(self, query, pod):
        key, _, value = query.get("labelSelector", "=").partition("=")
        return not key or pod["metadata"]["labels"].get(key) == value

    def _pods(self, query):
        with self.cluster.changed:
            items = [copy.deepcopy(pod) for pod in self.cluster.pods.values() if self._matching(query, pod)]
            version = str(self.cluster.version)
        self._answer(200, {"items": items, "metadata": {"resourceVersion": version}})

    def _begin_chunks(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _watch(self, query):
        cluster = self.cluster
        if cluster.gone > 0:
            cluster.gone -= 1
            self._refuse(410, "too old resource version", "Expired")
            return
        self._begin_chunks()
        if cluster.expire > 0:
            cluster.expire -= 1
            event = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}
            self._chunk(json.dumps(event).encode() + b"\n")
            self._chunk(b"")
            return
        if cluster.cut > 0:
            cluster.cut -= 1
            self.close_connection = True
            self.connection.close()
            return
        version = int(query["resourceVersion"])
        end = time.monotonic() + 2  # watches end soon: the next one continues from there
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                with cluster.changed:
                    cluster.changed.wait(0.1)
                    events = [each for each in cluster.events if each[0] > version]
                for number, kind, pod in events:
                    version = number
                    if self._matching(query, pod):
                        self._chunk(json.dumps({"type": kind, "object": pod}).encode() + b"\n")
            mark = {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": str(version)}}}
            self._chunk(json.dumps(mark).encode() + b"\n")
            self._chunk(b"")

    def _log(self, name, query):
        path = os.path.join(self.cluster.directory, name)
        if not os.path.exists(path):
            self._refuse(404, f"pods {name} not found")
            return
        with open(path, "rb") as file:
            if "follow" not in query:
                self._answer(200, file.read(int(query.get("limitBytes", -1))))
                return
            self._begin_chunks()
            process = self.cluster.processes[name]
            with contextlib.suppress(OSError):
                over = False
                while not over:
                    over = process.poll() is not None
                    while content := file.read(4096):
                        self._chunk(content)
                    time.sleep(0.02)
                self._chunk(b"")
