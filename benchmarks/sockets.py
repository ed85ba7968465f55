"""WebSockets: what an idle one weighs in the gateway, what calls cost beside many, how fast a room is.

    python -m benchmarks.sockets [--sockets 10000] [--members 500] [--seconds 5]

Runs in one client process, beside a `perdure run` of its own with two workers and a gateway.  Clients are
as thin as they can be (they count frames), so that what is measured is the gateway's side.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.memory import resident_bytes, settled
from perdure import connect

__all__ = ["FrameCounter", "main"]

APP = Path(__file__).resolve().with_name("socket_room.py")
ROOM_MEMBERS = 100
OPENING_AT_ONCE = 64
CALLERS = 16
READY_S = 30.0
SETTLE_S = 20.0
_UPGRADE = (
    "GET /Room/{room}/ HTTP/1.1\r\nhost: benchmark\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


class FrameCounter:
    """Cuts a stream of small server frames (RFC 6455: unmasked, below 126 bytes) into their payloads."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Opcode and payload of each frame that is complete."""
        data = self._rest + data
        frames, at = [], 0
        while len(data) - at >= 2 and len(data) - at >= 2 + (data[at + 1] & 0x7F):
            end = at + 2 + (data[at + 1] & 0x7F)
            frames.append((data[at] & 0x0F, data[at + 2 : end]))
            at = end
        self._rest = data[at:]
        return frames


class _Member(asyncio.Protocol):
    """One client."""

    def __init__(self, room: str, arrived: asyncio.Queue[float] | None, heard: list[float]) -> None:
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived = arrived
        """Where it puts the times of its messages: the sender's own."""
        self.heard = heard
        """How long each message was on its way."""
        self.room = room
        self._head = b""
        self._frames = FrameCounter()

    def connection_made(self, transport: Any) -> None:
        """Asks for the upgrade."""
        self._transport = transport  # of uvloop, whose classes are not asyncio's
        self._transport.write(_UPGRADE.format(room=self.room).encode())

    def connection_lost(self, error: Exception | None) -> None:
        """Must not happen."""
        if not self.accepted.done():
            self.accepted.set_exception(error or ConnectionError(f"refused: {self._head[:200]!r}"))

    def data_received(self, data: bytes) -> None:
        """The answer, then frames."""
        if not self.accepted.done():
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self.accepted.set_exception(ConnectionError(f"refused: {head[:200]!r}"))
                return
            self.accepted.set_result(None)
            self._head = b""
        now = time.perf_counter()
        for opcode, payload in self._frames.feed(data):
            if opcode == 9:
                self._send(0x8A, payload)
            elif opcode <= 2:
                self.heard.append(now - float(payload))
                if self.arrived is not None:
                    self.arrived.put_nowait(now)

    def _send(self, first: int, payload: bytes) -> None:
        self._transport.write(bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload)

    def say(self, opcode: int) -> None:
        """A message that is the time."""
        self._send(0x80 | opcode, repr(time.perf_counter()).encode())

    def leave(self) -> None:
        """Ends the connection."""
        self._transport.abort()


class _Cluster:
    """Where the benchmark's cluster is."""

    def __init__(self, data: Path) -> None:
        self.url = (data / "endpoint").read_text().strip()
        host, _, port = (data / "http").read_text().strip().removeprefix("http://").rpartition(":")
        self.address = (host, int(port))
        self.gateway = self._pid("perdure_gateway")

    @staticmethod
    def _pid(module: str) -> int:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if module.encode() in words and str(APP).encode() in b" ".join(words):
                    return int(folder.name)
        raise RuntimeError("the gateway does not run")

    def gateway_bytes(self) -> int:
        """Resident memory of the gateway."""
        return resident_bytes(Path(f"/proc/{self.gateway}/status").read_text("ascii"))["resident"]

    def gateway_cpu_s(self) -> float:
        """CPU time of the gateway."""
        fields = Path(f"/proc/{self.gateway}/stat").read_text("ascii").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / 100

    async def join(
        self, room: str, heard: list[float], arrived: asyncio.Queue[float] | None = None
    ) -> _Member:
        """A member of the room, accepted."""
        loop = asyncio.get_running_loop()
        _, member = await loop.create_connection(lambda: _Member(room, arrived, heard), *self.address)
        await member.accepted
        return member


@asynccontextmanager
async def _cluster() -> AsyncIterator[_Cluster]:
    with tempfile.TemporaryDirectory(prefix="perdure-sockets-") as folder:
        data = Path(folder, "data")
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "perdure_cli", "run", str(APP), "--data", str(data)),
            *("--workers", "2", "--http", "127.0.0.1:0", "--log-level", "warning"),
            stdin=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(READY_S):
                while not ((data / "endpoint").exists() and (data / "http").exists()):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                async with connect((data / "endpoint").read_text().strip()) as client:
                    await client.get("Room", "first").nothing()
                    yield_to = _Cluster(data)
            yield yield_to
        finally:
            supervisor.terminate()
            await supervisor.wait()


async def _settle(cluster: _Cluster) -> int:
    samples = [cluster.gateway_bytes()]
    for _ in range(int(SETTLE_S / 0.2)):
        if settled(samples):
            break
        await asyncio.sleep(0.2)
        samples.append(cluster.gateway_bytes())
    return samples[-1]


async def _calls(cluster: _Cluster, seconds: float) -> list[float]:
    """How long calls of other objects take."""
    taken: list[float] = []
    async with connect(cluster.url) as client:
        until = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            room = client.get("Room", f"called-{number}")
            while (began := time.perf_counter()) < until:
                await room.nothing()
                taken.append(time.perf_counter() - began)

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return taken


async def _broadcasts(
    cluster: _Cluster, members: int, ahead: int, seconds: float
) -> tuple[int, float, list[float], float]:
    """Messages delivered, in what time, how long each took, and the gateway's CPU time."""
    heard: list[float] = []
    arrived: asyncio.Queue[float] = asyncio.Queue()
    speaker = await cluster.join("broadcast", heard, arrived)
    others = [await cluster.join("broadcast", heard) for _ in range(members - 1)]
    cpu, began = cluster.gateway_cpu_s(), time.perf_counter()
    until = began + seconds
    said = 0
    for _ in range(ahead):
        speaker.say(1)
        said += 1
    while time.perf_counter() < until:
        await arrived.get()
        speaker.say(1)
        said += 1
    async with asyncio.timeout(READY_S):
        while len(heard) < said * members:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    taken = time.perf_counter() - began
    cpu = cluster.gateway_cpu_s() - cpu
    for member in (speaker, *others):
        member.leave()
    return len(heard), taken, heard, cpu


def _show(what: str, times: list[float], seconds: float) -> None:
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    print(f"{what}: {len(times) / seconds:,.0f}/s, p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms")


async def _run(sockets: int, members: int, seconds: float) -> None:
    async with _cluster() as cluster:
        ignored: list[float] = []
        warm = [await cluster.join("warm", ignored) for _ in range(20)]
        empty = await _settle(cluster)
        _show("calls beside 20 idle sockets", await _calls(cluster, seconds), seconds)

        room = asyncio.Semaphore(OPENING_AT_ONCE)

        async def open_one(number: int) -> _Member:
            async with room:
                return await cluster.join(f"idle-{number // ROOM_MEMBERS}", ignored)

        began = time.perf_counter()
        idle = await asyncio.gather(*(open_one(number) for number in range(sockets)))
        opened = time.perf_counter() - began
        full = await _settle(cluster)
        gc.freeze()  # this process' own collections are not what is measured
        print(f"{sockets:,} idle sockets: opened at {sockets / opened:,.0f}/s", end=", ")
        print(f"{(full - empty) / sockets:,.0f} bytes each in the gateway ({full / 1e6:.0f} MB in all)")
        _show(f"calls beside {sockets:,} idle sockets", await _calls(cluster, seconds), seconds)

        echoes: list[float] = []
        arrived: asyncio.Queue[float] = asyncio.Queue()
        lone = await cluster.join("echo", echoes, arrived)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            lone.say(2)
            await arrived.get()
        _show(f"one socket's echo beside {sockets:,} idle ones", echoes, seconds)

        for ahead in (1, 4):  # messages of the room that are on their way at a time
            count, taken, times, cpu = await _broadcasts(cluster, members, ahead, seconds)
            _show(f"room of {members}, {ahead} at a time: messages delivered", times, taken)
            print(f"  the gateway's CPU time: {cpu / count * 1e6:.1f} us a message delivered")
        for member in (*warm, lone, *idle):
            member.leave()


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sockets", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_run(options.sockets, options.members, options.seconds))


if __name__ == "__main__":
    main()
