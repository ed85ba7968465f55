"""A real router process, and the supervisor, doors and clients around it that the tests play themselves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zmq

from perdure import codec, protocol
from perdure.slotmap import Seat, SlotMap, contiguous_ranges

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 10.0
OF_WORKER = (b"\0\0\0\0" + bytes(28), b"\0\0\0\7" + bytes(28))


class Socket:
    """A ZeroMQ socket that waits a bounded time for what must come."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int) -> None:
        self.zmq = context.socket(kind)
        self.zmq.setsockopt(zmq.RECONNECT_IVL, 20)
        self.zmq.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
        self.send = self.zmq.send_multipart

    def receive(self, patience_s: float = PATIENCE_S) -> list[bytes]:
        assert self.zmq.poll(int(patience_s * 1000)), "no message came"
        return self.zmq.recv_multipart()

    def answer(self) -> tuple[int, bytes]:
        """A message to a client, as kind and body."""
        header, body = self.receive()
        return protocol.read_header(header).kind, body

    def silent(self) -> bool:
        return not self.zmq.poll(0)


class Cluster:
    """The supervisor of one router process."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sockets: list[Socket] = []
        self.control = self.bound("control")
        self.router: subprocess.Popen[bytes] | None = None
        self.identity = b""
        self.epoch = 0
        self.endpoints: list[str] = [f"ipc://{run}/router"]

    def socket(self, kind: int) -> Socket:
        self.sockets.append(Socket(self.context, kind))
        return self.sockets[-1]

    def bound(self, name: str) -> Socket:
        door = self.socket(zmq.ROUTER)
        door.zmq.bind(f"ipc://{self.run}/{name}")
        return door

    def client(self, endpoint: str | None = None) -> Socket:
        client = self.socket(zmq.DEALER)
        client.zmq.connect(endpoint or self.endpoints[0])
        return client

    def slot_map(self, version: int, *names: str, epochs: tuple[int, ...] = (1, 1)) -> SlotMap:
        """A map of two workers with the doors of these names; an empty name is a worker that is down."""
        seats = [Seat(e, f"ipc://{self.run}/{n}" if n else "") for n, e in zip(names, epochs, strict=True)]
        return SlotMap(version, tuple(contiguous_ranges(8, 2)), tuple(seats))

    def spawn(self, **changes: Any) -> subprocess.Popen[bytes]:
        self.epoch += 1
        config = {
            "endpoints": [f"ipc://{self.run}/router"],
            "control": f"ipc://{self.run}/control",
            "epoch": self.epoch,
            "parent": os.getpid(),
            "log_json": True,
            "log_level": "INFO",
            **changes,
        }
        self.router = spawn_python("-m", "perdure_router", json.dumps(config))
        return self.router

    def start(self, slot_map: SlotMap | None = None, **changes: Any) -> subprocess.Popen[bytes]:
        """Starts a router, waits until it is ready, and hands it the map."""
        router = self.spawn(**changes)
        ready = self.heard("ready")
        assert (ready["role"], ready["index"], ready["pid"]) == ("router", 0, router.pid)
        self.endpoints = ready["endpoints"]
        assert ready["endpoint"] == self.endpoints[0]
        if slot_map is not None:
            self.tell({"type": "map", "map": slot_map.to_wire()})
        return router

    def heard(self, kind: str, wanted: Callable[[Any], bool] = lambda message: True) -> dict[str, Any]:
        """The next message of this kind, of the present incarnation, for which `wanted` holds."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < deadline, f"the router sent no such {kind}"
            identity, frame = self.control.receive()
            message: dict[str, Any] = codec.decode(frame)
            if (message["type"], message["epoch"]) == (kind, self.epoch) and wanted(message):
                self.identity = identity
                return message

    def tell(self, message: dict[str, Any]) -> None:
        self.control.send([self.identity, codec.encode(message)])

    def stats(self, wanted: Callable[[dict[str, int]], bool] = lambda stats: True) -> dict[str, int]:
        stats: dict[str, int] = self.heard("beat", lambda message: wanted(message["stats"]))["stats"]
        return stats

    def end(self) -> None:
        if self.router is not None:
            reap(self.router)
        self.context.destroy(linger=0)


def spawn_python(*arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT / "sdk"), str(ROOT / "router")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def reap(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.communicate(timeout=PATIENCE_S)


def call(worker: int, sequence: int) -> list[bytes]:
    return [protocol.call_header(OF_WORKER[worker], sequence), b"\x92call"]


def batch(worker: int, version: int, body: bytes = b"\x92batch") -> list[bytes]:
    return [protocol.header(protocol.BATCH, worker, version), body]


def reach(client: Socket, door: Socket, message: list[bytes]) -> None:
    """Sends a client's first call until the worker's door has it.

    The router's map comes by another socket, so a call may be there first; it is refused then.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert time.monotonic() < deadline, "the router got no map"
        client.send(message)
        poller = zmq.Poller()
        poller.register(client.zmq, zmq.POLLIN)
        poller.register(door.zmq, zmq.POLLIN)
        if door.zmq in dict(poller.poll(PATIENCE_S * 1000)):
            return
        assert error_of(client.answer())[1] == "ShardUnavailable"


HELLO = [protocol.header(protocol.HELLO), codec.encode({"client": bytes(16)})]


def error_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    """(sequence, code) of a REPLY with an error."""
    kind, body = answer
    assert kind == protocol.REPLY
    sequence, status, error = codec.decode(body)
    assert status == protocol.STATUS_ERROR
    return sequence, error[0]


def serve(door: Socket, calls: int, epoch: int = 1) -> list[bytes]:
    """Answers `calls` messages of clients with their own bodies; returns the bodies."""
    bodies: list[bytes] = []
    while len(bodies) < calls:
        identity, header, body = door.receive()
        head = protocol.read_header(header)
        assert (head.kind, head.number) == (protocol.BUNDLE, epoch)
        flat, answers = msgpack.unpackb(body), []
        for origin, inner, inner_body in zip(flat[0::3], flat[1::3], flat[2::3], strict=True):
            raw = protocol.read_header(inner).kind == protocol.CALL
            sequence = protocol.read_call_header(inner).sequence if raw else 0
            kind = protocol.REPLY if raw else protocol.REPLIES
            answers += [origin, protocol.header(kind, head.worker, epoch, sequence), inner_body]
            bodies.append(inner_body)
        door.send([identity, protocol.header(protocol.BUNDLE, head.worker, epoch), msgpack.packb(answers)])
    return bodies
