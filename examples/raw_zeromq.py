"""A client in a page: pyzmq and msgpack alone, one call a message, through the router.

Everything here is in docs/PROTOCOL.md; a client in another language is the same page.
Run it beside ``./scripts/start``:  python examples/raw_zeromq.py ipc://perdure-data/run/router
"""

from __future__ import annotations

import os
import struct
import sys
from hashlib import blake2b
from typing import Any

import msgpack
import zmq

VERSION, CALL, REPLY, REFUSED = 1, 7, 8, 13
RESULT, RAISED, ERROR = 0, 1, 2


def object_id(namespace: str, name: str) -> bytes:
    """32 bytes: a hash of the name, and a check that binds it to the namespace."""
    head = blake2b(name.encode(), digest_size=16, key=namespace.encode()).digest()
    person = blake2b(namespace.encode(), digest_size=16).digest()
    return head + blake2b(head, digest_size=16, key=b"perdure.check", person=person).digest()


class RawClient:
    """Sends one call at a time and waits for its reply."""

    def __init__(self, url: str) -> None:
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(url)
        self.client_id = os.urandom(16)
        self.sequence = 0

    def call(self, namespace: str, name: str, method: str, *args: Any, timeout_s: float = 5.0) -> Any:
        """The method's result; raises `RuntimeError` with the server's words, or `TimeoutError`."""
        self.sequence += 1
        key = object_id(namespace, name)
        header = struct.pack(">BBHIQ32sQ", VERSION, CALL, 0, 0, 0, key, self.sequence)
        item = [self.sequence, namespace, key, name, method, list(args), None, int(timeout_s * 1000), None]
        self.socket.send_multipart([header, msgpack.packb([self.client_id, item])])
        while self.socket.poll(int((timeout_s + 1) * 1000)):
            head, body = self.socket.recv_multipart()
            _, kind, _, _, stamp = struct.unpack(">BBHIQ", head)
            if kind == REFUSED:
                raise RuntimeError(f"the router did not take the message: {msgpack.unpackb(body)[:2]}")
            if kind == REPLY and stamp == self.sequence:
                _, status, payload = msgpack.unpackb(body)
                if status == RESULT:
                    return payload
                raise RuntimeError(f"{'raised' if status == RAISED else 'failed'}: {payload}")
        raise TimeoutError(f"no reply to {method} within {timeout_s} s")

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()
        self.context.term()


def main() -> None:
    """Counts to three."""
    client = RawClient(sys.argv[1])
    for _ in range(3):
        print("raw counter =", client.call("Counter", "raw", "increment"))
    client.close()


if __name__ == "__main__":
    main()
