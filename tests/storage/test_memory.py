"""What the memory engine adds to the interface: restarts, power loss and failing writes for tests."""

from __future__ import annotations

import pytest

from perdure_storage.memory import MemoryDisk, MemoryEngine


def put(engine: MemoryEngine, key: bytes, value: bytes) -> None:
    batch = engine.new_batch()
    batch.put(key, value)
    engine.write(batch)


def test_a_disk_outlives_its_engine() -> None:
    disk = MemoryDisk()
    engine = MemoryEngine(disk)
    put(engine, b"a", b"1")
    engine.close()
    assert MemoryEngine(disk).get(b"a") == b"1"


def test_a_copied_disk_keeps_the_moment_of_the_copy() -> None:
    engine = MemoryEngine()
    put(engine, b"a", b"1")
    copy = MemoryEngine(engine.disk.copy())
    put(engine, b"a", b"2")
    put(copy, b"b", b"3")
    assert (copy.get(b"a"), copy.get(b"b"), engine.get(b"b")) == (b"1", b"3", None)


def test_a_fault_makes_the_write_fail_with_nothing_stored() -> None:
    failing = False

    def faults() -> None:
        if failing:
            raise OSError(28, "No space left on device")

    engine = MemoryEngine(faults=faults)
    put(engine, b"a", b"1")
    failing = True
    with pytest.raises(OSError, match="No space"):
        put(engine, b"a", b"2")
    assert engine.get(b"a") == b"1"
    assert engine.stats() == {"engine": "memory", "writes": 1, "rows": 1}
