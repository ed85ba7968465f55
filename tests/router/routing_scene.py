"""What the tests of the router's decisions share: two workers, two clients, the shell's part of the play."""

from __future__ import annotations

from typing import Any

import msgpack

from perdure import protocol
from perdure.errors import from_wire
from perdure.limits import Limits
from perdure.slotmap import Seat, SlotMap, contiguous_ranges
from perdure_router.routing import Router

ALICE, BOB = b"alice", b"bob"
OF_WORKER = (b"\0\0\0\0" + bytes(28), b"\0\0\0\7" + bytes(28))
"""An object id of each worker, with eight slots and two workers."""
LIMITS = Limits()


def two_workers(version: int = 1, epochs: tuple[int, int] = (1, 1), down: tuple[int, ...] = ()) -> SlotMap:
    seats = [Seat(epoch, "" if i in down else f"ipc://w{i}.e{epoch}") for i, epoch in enumerate(epochs)]
    return SlotMap(version, tuple(contiguous_ranges(8, 2)), tuple(seats))


def make_router(**limits: Any) -> Router:
    router = Router(Limits(**limits))
    router.on_map(two_workers())
    return router


def batch(worker: int, version: int = 1, stamp: int = 0) -> bytes:
    return protocol.header(protocol.BATCH, worker, version, stamp)


def call(worker: int, sequence: int) -> bytes:
    return protocol.call_header(OF_WORKER[worker], sequence)


def from_client(
    router: Router, header: bytes, body: bytes = b"", *, origin: bytes = ALICE, now: float = 0.0
) -> None:
    router.on_client([origin, header, body], now)


def greet(router: Router, origin: bytes = ALICE, now: float = 0.0) -> None:
    from_client(router, protocol.header(protocol.HELLO), origin=origin, now=now)
    router.answers.clear()


def bundle(worker: int, epoch: int, *entries: tuple[bytes, bytes, bytes]) -> list[bytes]:
    flat = [part for entry in entries for part in entry]
    return [protocol.header(protocol.BUNDLE, worker, epoch), msgpack.packb(flat)]


def reply(sequence: int, epoch: int = 1) -> bytes:
    return protocol.header(protocol.REPLY, 0, epoch, sequence)


def send_all(router: Router, now: float = 0.0) -> list[tuple[int, protocol.Header, list[bytes]]]:
    """The shell's part: what left for the workers, as (worker, header, flat list of the bundle)."""
    messages = []
    links, router.ready = router.ready, []
    for link in links:
        while (frames := link.next_message()) is not None:
            header, body = frames
            messages.append(
                (link.worker, protocol.read_header(header), msgpack.unpackb(body) if body else [])
            )
            link.sent(now)
        router.on_drained(link)
    return messages


def take_answers(router: Router) -> list[tuple[bytes, int, bytes]]:
    """What goes to clients, as (origin, kind, body)."""
    answers, router.answers = router.answers, []
    return [(origin, protocol.read_header(header).kind, body) for origin, header, body in answers]


def call_errors(router: Router) -> dict[tuple[bytes, int], Any]:
    """The answers, which must all be errors of raw calls, by origin and sequence."""
    errors = {}
    answers, router.answers = router.answers, []
    for origin, header, body in answers:
        sequence, status, error = msgpack.unpackb(body)
        head = protocol.read_header(header)
        assert (head.kind, head.stamp, status) == (protocol.REPLY, sequence, protocol.STATUS_ERROR)
        errors[origin, sequence] = from_wire(*error)
    return errors


def refusal(router: Router) -> tuple[bytes, Any, bytes | None]:
    """The one answer, a REFUSED: origin, error, and the batch if it came back."""
    ((origin, kind, body),) = take_answers(router)
    assert kind == protocol.REFUSED
    code, text, facts, returned = [*msgpack.unpackb(body), None][:4]
    return origin, from_wire(code, text, facts), returned
