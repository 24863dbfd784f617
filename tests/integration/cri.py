"""A client of containerd's CRI, in a separate process, which keeps gRPC's threads and descriptors out of the tests.

It reads the definition of the messages from containerd's binary, because a Go program contains it.
Source: runtime.v1 of the Container Runtime Interface.

    python cri.py SOCKET PROGRAM     requests in JSON on stdin, answers on stdout, one per line
"""

from __future__ import annotations

import json
import subprocess
import sys
import zlib

_PACKAGE = "runtime.v1"


class RefusedError(AssertionError):
    """The daemon answered with an error.

    Attributes:
        code: the name of gRPC's status, such as ``"NOT_FOUND"``.
    """

    def __init__(self, method, code, message):
        super().__init__(f"{method}: {code}: {message}")
        self.code = code


class CRI:
    """The two services of a daemon: ``cri("RunPodSandbox", {...})`` returns a dict."""

    def __init__(self, socket, program):
        self._process = subprocess.Popen(
            [sys.executable, __file__, socket, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, method, request=None):
        self._process.stdin.write(json.dumps([method, request or {}]) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "code" in answer:
            raise RefusedError(method, answer["code"], answer["message"])
        return answer["response"]

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


# --- The process


def description_in(program):
    """Return the serialized FileDescriptorProto of the CRI, which a Go program contains compressed."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.message import DecodeError

    with open(program, "rb") as file:
        content = file.read()
    place = -1
    while (place := content.find(b"\x1f\x8b\x08", place + 1)) >= 0:
        found = FileDescriptorProto()
        try:
            found.ParseFromString(zlib.decompressobj(31).decompress(content[place : place + 400_000]))
        except (zlib.error, DecodeError):
            continue
        if found.package == _PACKAGE:
            return found
    raise LookupError(f"{program}: it holds no description of {_PACKAGE}")


def _serve(socket, program):
    import grpc
    from google.protobuf import descriptor_pool, json_format, message_factory

    file = description_in(program)
    del file.dependency[:]  # options of a Go code generator
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    methods = {}
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        for service in file.service:
            for method in pool.FindServiceByName(f"{_PACKAGE}.{service.name}").methods:
                request = message_factory.GetMessageClass(method.input_type)
                response = message_factory.GetMessageClass(method.output_type)
                path = f"/{_PACKAGE}.{service.name}/{method.name}"
                call = channel.unary_unary(path, request.SerializeToString, response.FromString)
                methods[method.name] = request, call
        for line in sys.stdin:
            name, fields = json.loads(line)
            request, call = methods[name]
            message = json_format.ParseDict(fields, request())
            try:
                found = call(message, timeout=60, wait_for_ready=True)
            except grpc.RpcError as error:
                answer = {"code": error.code().name, "message": error.details()}
            else:
                shown = json_format.MessageToDict(
                    found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
                )
                answer = {"response": shown}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
