"""A stand-in for the worker host: one object's storage over a committer that the test steps."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from perdure.codec import decode, encode
from perdure.limits import Limits
from perdure_storage import keys
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_storage.memory import MemoryEngine
from perdure_storage.object_storage import ObjectStorage, StorageBackend

LIMITS = Limits()
OBJECT_ID = bytes(range(32))


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("the call suspended")


class Host:
    """One object's storage with a committer whose thread is stepped by the test."""

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        object_id: bytes = OBJECT_ID,
        limits: Limits = LIMITS,
        **backend: Any,
    ) -> None:
        self.engine = engine or MemoryEngine()
        self.backend = StorageBackend(self.engine, limits, encode, decode, **backend)
        self.jobs: list[Callable[[], None]] = []
        self.committer = Committer(
            self.engine,
            notify=lambda callback, group: callback(group),
            on_durable=lambda group: self.storage._settle(group),
            group_bytes_max=1 << 20,
            submit=self.jobs.append,
        )
        self.prefix = keys.object_prefix(5, "Room", object_id)
        self.names_row = keys.names_key("Room", "lobby", object_id)
        self.deleted_all = 0
        self.storage = self.wake()

    def wake(self) -> ObjectStorage:
        """A new instance of the object, as after an eviction."""
        self.storage = ObjectStorage(
            self.backend,
            prefix=self.prefix,
            names_row=self.names_row,
            commit_point=self.commit_point,
            on_delete_all=self.on_delete_all,
        )
        return self.storage

    def on_delete_all(self) -> None:
        self.deleted_all += 1

    async def commit_point(self) -> None:
        self.commit()

    def commit(self) -> None:
        """The end of a turn, and its group on disk and told."""
        self.join()
        self.settle_all()

    def join(self) -> None:
        self.storage._join(self.committer)
        self.committer.flush()

    def settle_all(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def stored_rows(self) -> list[bytes]:
        with self.engine.scan(keys.OBJECTS_REGION, b"\xff") as rows:
            return [row for row, _ in rows]
