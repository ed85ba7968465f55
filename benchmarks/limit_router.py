"""Router process of the bare pipeline: forwards batches between clients and workers.

It reads the first byte of a request, the worker's number, and never decodes a body. Everything that is
ready for one destination in one tick leaves as one multipart message. No slot map, no limits, no checks.
"""

from __future__ import annotations

import asyncio
import functools
import sys

import uvloop
import zmq

from benchmarks import limit_wire


class Router:
    """One ROUTER socket for clients and one DEALER socket for each worker."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clients: limit_wire.Socket, workers: list[limit_wire.Socket]
    ) -> None:
        self._clients = clients
        self._workers = workers
        self._client_waits = limit_wire.readable(clients)
        self._worker_waits = [limit_wire.readable(worker) for worker in workers]
        self._recheck_clients = limit_wire.watch(loop, clients, self._on_clients)
        self._recheck_workers = [
            limit_wire.watch(loop, worker, functools.partial(self._on_worker, number))
            for number, worker in enumerate(workers)
        ]

    def _on_clients(self) -> None:
        readable, receive = self._client_waits, self._clients.recv
        ready: dict[int, list[bytes]] = {}
        for _ in range(limit_wire.MESSAGES_PER_DRAIN):
            if not readable():
                break
            client = receive(limit_wire.NOBLOCK)
            message = receive(limit_wire.NOBLOCK)
            ready.setdefault(message[0], []).extend((client, message))
        else:
            self._recheck_clients()
        for number, frames in ready.items():
            limit_wire.send_frames(self._workers[number], frames)
            self._recheck_workers[number]()

    def _on_worker(self, number: int) -> None:
        readable, receive = self._worker_waits[number], self._workers[number].recv_multipart
        for _ in range(limit_wire.MESSAGES_PER_DRAIN):
            if not readable():
                break
            frames = receive(limit_wire.NOBLOCK)
            # A worker's message has one body for each client already, so there is nothing left to join.
            for at in range(0, len(frames), 2):
                limit_wire.send_frames(self._clients, frames[at : at + 2])
        else:
            self._recheck_workers[number]()
        self._recheck_clients()


def main() -> None:
    """`python -m benchmarks.limit_router ENDPOINT WORKER_ENDPOINT...`; ends when standard input closes."""
    endpoint, *worker_endpoints = sys.argv[1:]
    loop = uvloop.new_event_loop()
    context = zmq.Context()
    workers = [limit_wire.connect(context, worker) for worker in worker_endpoints]
    Router(loop, limit_wire.bind(context, endpoint), workers)
    limit_wire.exit_when_parent_ends(loop)
    print("ready", flush=True)
    loop.run_forever()


if __name__ == "__main__":
    main()
