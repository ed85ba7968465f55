"""Router process of the bare pipeline: forwards batches between clients and workers.

It reads the first byte of a request, the worker's number, and never decodes a body. Everything that is
ready for one destination in one tick leaves as one multipart message. No slot map, no limits, no checks.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
import zmq

from benchmarks import limit_wire


class Router:
    """One ROUTER socket for clients and one DEALER socket for each worker."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clients: zmq.Socket[bytes],
        workers: list[zmq.Socket[bytes]],
    ) -> None:
        self._clients = clients
        self._workers = workers
        self._recheck_clients = limit_wire.watch(loop, clients, self._on_clients)
        self._recheck_workers = [
            limit_wire.watch(loop, worker, lambda number=number: self._on_worker(number))  # type: ignore[misc]
            for number, worker in enumerate(workers)
        ]

    def _on_clients(self) -> None:
        receive, get = self._clients.recv, self._clients.getsockopt
        events, pollin, noblock = zmq.EVENTS, zmq.POLLIN, zmq.NOBLOCK
        ready: dict[int, list[bytes]] = {}
        for _ in range(limit_wire.MESSAGES_PER_DRAIN):
            if not get(events) & pollin:  # type: ignore[operator]
                break
            client = receive(noblock)
            message = receive(noblock)
            frames = ready.get(message[0])
            if frames is None:
                ready[message[0]] = [client, message]
            else:
                frames += (client, message)
        else:
            self._recheck_clients()
        for number, frames in ready.items():
            self._workers[number].send_multipart(frames, noblock)
            self._recheck_workers[number]()

    def _on_worker(self, number: int) -> None:
        worker = self._workers[number]
        get = worker.getsockopt
        events, pollin, noblock = zmq.EVENTS, zmq.POLLIN, zmq.NOBLOCK
        send = self._clients.send_multipart
        for _ in range(limit_wire.MESSAGES_PER_DRAIN):
            if not get(events) & pollin:  # type: ignore[operator]
                break
            frames = worker.recv_multipart(noblock)
            # A worker's message has one body for each client already, so there is nothing left to join.
            for at in range(0, len(frames), 2):
                send(frames[at : at + 2], noblock)
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
