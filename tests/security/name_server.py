"""A name server for tests, on its own loopback address. It gives configured answers, and records the questions."""

from __future__ import annotations

import secrets
import socket
import struct
import threading
from typing import Self

from containerkit.network import dns


class NameServer:
    def __init__(
        self, names: dict[str, tuple[str, ...]], *, long: bool = False, address: str = "", only_udp: bool = False
    ) -> None:
        self.names, self.long, self.only_udp = names, long, only_udp
        self.asked: list[str] = []
        self.streams = 0
        while True:
            self.address = (
                address or f"127.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}.{secrets.randbelow(250) + 2}"
            )
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                self._udp.bind((self.address, 53))
                self._tcp.bind((self.address, 53))
                break
            except OSError:
                self._udp.close()
                self._tcp.close()
                if address:
                    raise
        self._tcp.listen(16)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._datagrams, self._accept)]
        for each in self._threads:
            each.start()

    def _answer(self, data: bytes) -> bytes:
        asked = dns.question(data)
        self.asked.append(asked.name)
        if asked.name not in self.names:
            return dns.failure(asked, dns.NO_NAME)
        return dns.answer(asked, self.names[asked.name], 30)

    def _datagrams(self) -> None:
        while True:
            try:
                data, place = self._udp.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            reply = self._answer(data)
            self._udp.sendto(dns.truncated(dns.question(data)) if self.long else reply, place)

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._tcp.accept()
            except OSError:
                return
            with accepted:
                data = accepted.recv(4096)
                if len(data) < 3:
                    return
                self.streams += 1
                if self.only_udp:
                    continue
                reply = self._answer(data[2:])
                accepted.sendall(struct.pack(">H", len(reply)) + reply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waking:
            waking.sendto(b"", (self.address, 53))
        with socket.create_connection((self.address, 53)):
            pass
        for each in self._threads:
            each.join(5)
        self._udp.close()
        self._tcp.close()
