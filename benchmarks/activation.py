"""How long an object with state takes to get into a worker's memory, from its row on disk.

A process of its own, made like a worker without sockets: the worker's `Host` on a real shard that holds
100,000 counters. The shard is filled, closed and opened again, so the store's own cache is empty while the
kernel's holds the files. Then calls of `get` come in one by one, of objects chosen at random that are not
in memory: from the call's bytes to the reply's, with admission, reading, checking and decoding the rows,
making the instance, and the turn itself. The same call again, now that the object is in memory, tells what
the turn's part is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.contender import Child, object_name
from benchmarks.driver import percentile
from benchmarks.perdure_counter import APPLICATION, NAMESPACE
from perdure import codec, ids, protocol
from perdure.calls import Caller
from perdure.limits import Limits
from perdure.remote_errors import load_exception
from perdure_storage.commit import InlineCommitter
from perdure_storage.engine import Engine
from perdure_storage.shard import open_shard, provision
from perdure_worker import process
from perdure_worker.host import Host
from perdure_worker.loader import load_application
from perdure_worker.peers import Peers
from perdure_worker.registry import ObjectClass
from perdure_worker.settings import Collaborators, HostSettings

__all__ = ["measure"]

OBJECTS = 100_000
SAMPLES = 10_000
SEED = 20_240_229
FILL_BATCH_CALLS = 1_000
TIMEOUT_MS = 30_000
MEASURE_TIMEOUT_S = 120.0
SEQUENCES = 1 << 32
"""Far more than counters: each batch has sequences of its own."""


def measure(directory: Path, objects: int = OBJECTS, samples: int = SAMPLES) -> dict[str, float]:
    """Percentiles of the first call of objects on disk, and of a call to them in memory; in microseconds."""
    child = Child("benchmarks.activation", os.fspath(directory / "shard"), str(objects), str(samples))
    try:
        figures: dict[str, float] = json.loads(child.read_line(MEASURE_TIMEOUT_S))
    finally:
        child.stop()
    return figures


class Bench:
    """A host on a store, without sockets; replies are read back at once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, engine: Engine, classes: dict[str, ObjectClass]
    ) -> None:
        slots = Limits().slots
        self._peers = Peers(worker=0, epoch=1)
        self._peer = self._peers.get(b"client")
        self._committer = InlineCommitter(
            engine,
            on_durable=self._on_durable,
            group_bytes_max=Limits().commit_group_bytes_max,
        )
        caller = Caller(
            secrets.token_bytes(16),
            clock=time.monotonic,
            random_source=random.Random(SEED),
            load_exception=load_exception,
            want_flush=_nothing,
            want_map=_nothing,
        )
        parts = Collaborators(
            classes=classes,
            engine=engine,
            committer=self._committer,
            peers=self._peers,
            caller=caller,
            loop=loop,
            clock=time.monotonic,
            want_flush=_nothing,
            want_turns=_nothing,
        )
        self.host = Host(HostSettings(slots=range(slots), slot_count=slots), parts)
        self._client_id = secrets.token_bytes(16)
        """Of this host's caller alone: a request id that was used before gets a recorded reply."""
        self._batches = 0

    def call(self, method: str, indexes: Iterable[int]) -> float:
        """Calls the method of these counters in one batch; seconds until the host has encoded the replies.

        Raises RuntimeError when one does not say that its counter stands at 1.
        """
        self._batches += 1
        first = self._batches * SEQUENCES
        body = codec.encode([self._client_id, *(_item(first + index, method, index) for index in indexes)])
        started = time.perf_counter()
        self.host.on_calls(self._peer, body)
        elapsed_s = time.perf_counter() - started
        while self.host.busy:  # a long batch is taken in slices
            self.host.go_on()
        self.host.pace.end()
        self._committer.flush()
        for _, _, replies in self._peers.take_messages(_pack_none):
            for sequence, status, value in codec.decode(replies):
                if (status, value) != (protocol.STATUS_RESULT, 1):
                    counter = sequence % SEQUENCES
                    raise RuntimeError(f"{method} of counter {counter} was answered with {status}, {value!r}")
        return elapsed_s

    def close(self) -> None:
        """Closes the store."""
        self._committer.close()

    def _on_durable(self, group: int) -> None:
        self.host.on_durable(group)


def _item(sequence: int, method: str, index: int) -> list[Any]:
    name = object_name(index)
    key = ids.id_from_name(NAMESPACE, name).key
    return [sequence, NAMESPACE, key, name, method, [], None, TIMEOUT_MS, None]


def _nothing() -> None:
    """Replies and commits are looked after with each call."""


def _pack_none(parts: list[bytes]) -> bytes:
    raise RuntimeError(f"there is no router, but {len(parts)} parts for one")


def _fill(bench: Bench, objects: int) -> None:
    for start in range(0, objects, FILL_BATCH_CALLS):
        bench.call("increment", range(start, min(objects, start + FILL_BATCH_CALLS)))
    bench.close()


def _sample(bench: Bench, objects: int, samples: int) -> dict[str, float]:
    chosen = random.Random(SEED).sample(range(objects), samples)
    cold_s = sorted(bench.call("get", (index,)) for index in chosen)
    if len(bench.host.live) != samples:
        raise RuntimeError(f"{len(bench.host.live)} objects are in memory after {samples} were called")
    warm_s = sorted(bench.call("get", (index,)) for index in chosen)
    bench.close()
    return {
        "objects": objects,
        "samples": samples,
        "p50_us": percentile(cold_s, 0.5) * 1e6,
        "p99_us": percentile(cold_s, 0.99) * 1e6,
        "in_memory_p50_us": percentile(warm_s, 0.5) * 1e6,
        "in_memory_p99_us": percentile(warm_s, 0.99) * 1e6,
    }


def main() -> None:
    """`python -m benchmarks.activation SHARD OBJECTS SAMPLES`; prints the figures as one line of JSON."""
    shard, objects, samples = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    classes = load_application(os.fspath(APPLICATION))
    loop = uvloop.new_event_loop()
    provision(shard)

    def fill() -> None:
        _fill(Bench(loop, open_shard(shard, epoch=1), classes), objects)

    def sample() -> None:
        bench = Bench(loop, open_shard(shard, epoch=2), classes)
        # The interpreter as a worker sets it.
        sys.setswitchinterval(process._SWITCH_INTERVAL_S)
        gc.set_threshold(*process._GC_THRESHOLDS)
        gc.collect()
        gc.freeze()
        print(json.dumps(_sample(bench, objects, samples)), flush=True)

    # In callbacks, as a worker runs its turns; an error of one ends the process.
    for step in (fill, sample):
        _run_in_callback(loop, step)


def _run_in_callback(loop: asyncio.AbstractEventLoop, step: Callable[[], None]) -> None:
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            step()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon(run)
    loop.run_until_complete(done)


if __name__ == "__main__":
    main()
