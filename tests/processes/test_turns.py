"""Interleaved methods and migrations in real workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure import RemoteError, StorageError, connect

from .cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes

ROOMS = """
import asyncio
from perdure import DurableObject, durable, interleaved

class Room(DurableObject):
    value: int = durable(0)

    def __init__(self):
        self.log = []
        self.go = asyncio.Event()

    @interleaved
    async def stay(self, tag: str) -> list[str]:
        self.value += 1
        self.log.append(f"in {tag}")
        await self.go.wait()
        self.log.append(f"out {tag}")
        return self.log

    @interleaved
    async def open(self) -> list[str]:
        before = list(self.log)
        self.go.set()
        return before

    async def alone(self) -> list[str]:
        self.log.append("alone")
        return self.log
"""

VERSION_1 = """
from perdure import DurableObject, durable

class Account(DurableObject):
    cents: int = durable(0)

    async def pay_in(self, cents: int) -> int:
        self.cents += cents
        return self.cents
"""

VERSION_2 = """
from perdure import DurableObject, durable

class Account(DurableObject):
    version = 2
    euros: float = durable(0.0)
    migrations: int = durable(0)

    async def on_migrate(self, old_version: int) -> None:
        if self.id.name == "broken":
            raise LookupError("no rate for this one")
        self.euros = self.ctx.old_fields.pop("cents") / 100
        self.migrations += 1

    async def pay_in(self, cents: int) -> int:
        self.euros += cents / 100
        return round(self.euros * 100)

    async def look(self) -> tuple[float, int]:
        return self.euros, self.migrations
"""


def test_interleaved_calls_overlap_while_a_serial_one_waits(tmp_path: Path) -> None:
    app = tmp_path / "rooms.py"
    app.write_text(ROOMS)

    async def story(cluster: Cluster) -> None:
        async with connect(cluster.url) as client:
            room = client.get("Room", "a", timeout=20)
            # One stub's calls arrive in order: three come in and wait, the fourth opens the door.
            inside = [asyncio.ensure_future(room.stay(str(n))) for n in range(3)]
            assert await room.open() == ["in 0", "in 1", "in 2"]
            assert sorted((await asyncio.gather(*inside))[-1][:3]) == ["in 0", "in 1", "in 2"]

            room = client.get("Room", "b", timeout=20)
            staying = asyncio.ensure_future(room.stay("0"))
            opened = asyncio.ensure_future(room.open())
            alone = asyncio.ensure_future(room.alone())
            after = asyncio.ensure_future(room.stay("1"))
            assert await opened == ["in 0"]
            assert (await alone)[:3] == ["in 0", "out 0", "alone"]
            await asyncio.gather(staying, after)
            assert await room.alone() == ["in 0", "out 0", "alone", "in 1", "out 1", "alone"]

    with running_cluster(app, tmp_path / "data", workers=1) as cluster:
        asyncio.run(story(cluster))


def test_objects_are_migrated_when_a_changed_file_is_started_on_their_data(tmp_path: Path) -> None:
    app = tmp_path / "accounts.py"
    app.write_text(VERSION_1)
    data = tmp_path / "data"
    with running_cluster(app, data) as cluster:
        with cluster.connect() as client:
            assert client.get("Account", "ann").pay_in(1250) == 1250
            assert client.get("Account", "broken").pay_in(7) == 7
        cluster.stop()
    app.write_text(VERSION_2)
    with running_cluster(app, data) as cluster:
        with cluster.connect() as client:
            assert client.get("Account", "ann").look() == (12.5, 1)
            assert client.get("Account", "ann").pay_in(50) == 1300
            assert client.get("Account", "new").look() == (0.0, 0)
            with pytest.raises(RemoteError, match=r"Account/broken: on_migrate from version 1 to 2 failed"):
                client.get("Account", "broken").look()
        cluster.kill_all()
        cluster.start()
        with cluster.connect() as client:
            assert client.get("Account", "ann").look() == (13.0, 1)
        cluster.stop()
    app.write_text(VERSION_1)
    with running_cluster(app, data) as cluster, cluster.connect() as client:
        with pytest.raises(StorageError, match="was stored by version 2 of its class"):
            client.get("Account", "ann").pay_in(1)
        assert client.get("Account", "broken").pay_in(1) == 8
