"""Looks at every row of a store: checksums, places, and indexes against what they index. Offline commands.

Guarantees to change nothing, and to go on after damage: one unreadable block hides the rest of its slot
and no more. What it reports is damage, or a defect of Perdure; neither can be made by an application.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from perdure import codec
from perdure.errors import PerdureError, StorageError
from perdure.ids import slot_of
from perdure_storage import keys
from perdure_storage.engine import Engine
from perdure_storage.records import unseal

__all__ = ["RowsReport", "check_rows"]

PROBLEMS_MAX: Final = 100
"""Problems that are told in words; the others are counted."""

_OF_A_STORED_OBJECT: Final = frozenset({keys.FIELD, keys.VALUE, keys.ALARM})
"""Kinds of rows that never are without the object's META."""
_KINDS: Final = frozenset(
    {keys.META, keys.FIELD, keys.VALUE, keys.ALARM, keys.REPLY, keys.OUTBOX, keys.SOCKET}
)


@dataclass
class RowsReport:
    """What a store holds, and what is wrong with it."""

    rows: int = 0
    objects: int = 0
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)


def check_rows(engine: Engine, slots: range, slot_count: int) -> RowsReport:
    """Checks all rows of the store that owns `slots` of `slot_count`."""
    report = RowsReport()
    _check_range(engine, report, keys.SHARD_REGION, keys.OBJECTS_REGION, "the store's own rows")
    for strangers in (range(slots.start), range(slots.stop, keys.SLOTS_MAX)):
        for key, _ in _rows(engine, report, *keys.slot_bounds(strangers), "slots of other stores"):
            report.add(f"row {key[:80].hex()} is of a slot that this store does not own")
    for slot in slots:
        _check_slot(engine, report, slot, slot_count)
    _check_names(engine, report)
    _check_due(engine, report)
    _check_sockets(engine, report)
    _check_frames(engine, report)
    for key, _ in _rows(engine, report, keys.RESERVED_REGION, b"\xff", "the last rows"):
        report.add(f"row {key[:80].hex()} is of a region that this version does not know")
    return report


def _rows(
    engine: Engine, report: RowsReport, start: bytes, stop: bytes, where: str
) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a range with their records, until one cannot be read."""
    try:
        with engine.scan(start, stop) as scan:
            for row in scan:
                report.rows += 1
                yield row
    except StorageError as error:
        report.add(f"{where}: {error}")


def _payload(report: RowsReport, key: bytes, record: bytes) -> bytes | None:
    try:
        return unseal(key, record)
    except StorageError as error:
        report.add(str(error))
        return None


def _check_range(engine: Engine, report: RowsReport, start: bytes, stop: bytes, where: str) -> None:
    for key, record in _rows(engine, report, start, stop, where):
        _payload(report, key, record)


def _check_slot(engine: Engine, report: RowsReport, slot: int, slot_count: int) -> None:
    current = b""  # the object whose rows are being read
    has_meta = False
    for key, record in _rows(engine, report, *keys.slot_bounds(range(slot, slot + 1)), f"slot {slot}"):
        payload = _payload(report, key, record)
        try:
            row = keys.parse_object_row(key)
        except ValueError as error:
            report.add(str(error))
            continue
        prefix = key[: len(key) - len(row.key) - 1]
        if prefix != current:
            current, has_meta = prefix, row.kind == keys.META
            report.objects += 1
            if slot_of(row.object_id, slot_count) != slot:
                report.add(f"object {row.namespace}/{row.object_id.hex()} is in slot {slot}, not in its own")
            if not has_meta and row.kind in _OF_A_STORED_OBJECT:
                report.add(f"object {row.namespace}/{row.object_id.hex()} has rows and no META")
        if row.kind not in _KINDS:
            report.add(f"row {key[:80].hex()} is of a kind that this version does not know")
        elif row.kind == keys.META and payload is not None:
            _check_meta(engine, report, row, payload)
        elif row.kind == keys.ALARM and row.key and payload is not None:
            _check_alarm(engine, report, key, payload)
        elif row.kind == keys.SOCKET and row.key:
            _check_socket(engine, report, key, row)


def _check_meta(engine: Engine, report: RowsReport, row: keys.ObjectRow, payload: bytes) -> None:
    """The names index leads to the object."""
    try:
        name = codec.decode(payload).get("name")
        index = keys.names_key(row.namespace, name, row.object_id)
        record = engine.get(index)
    except (PerdureError, AttributeError, TypeError) as error:
        report.add(f"META of {row.namespace}/{row.object_id.hex()}: {error}")
        return
    expected = keys.names_value(row.slot, row.object_id)
    with suppress(StorageError):  # a damaged index row is told of where the index is read
        if record is None or unseal(index, record) != expected:
            report.add(f"the names index does not lead to {row.namespace}/{name or row.object_id.hex()}")


def _check_names(engine: Engine, report: RowsReport) -> None:
    """Every row of the names index leads to an object of that name."""
    stop = keys.prefix_end(keys.NAMES_REGION)
    for key, record in _rows(engine, report, keys.NAMES_REGION, stop, "the names index"):
        payload = _payload(report, key, record)
        if payload is None:
            continue
        try:
            row = keys.parse_names_row(key)
            slot, object_id = keys.parse_names_value(payload)
            meta = keys.object_prefix(slot, row.namespace, object_id) + keys.META
            stored = engine.get(meta)
            named = stored is not None and codec.decode(unseal(meta, stored)).get("name")
        except StorageError:
            continue  # the object's own row is damaged, which is told of already
        except (PerdureError, ValueError, AttributeError) as error:
            report.add(f"names row {key[:80].hex()}: {error}")
            continue
        if stored is None or named != row.name:
            title = row.name if row.name is not None else object_id.hex()
            report.add(f"the names index has {row.namespace}/{title}, which is not stored")


def _check_alarm(engine: Engine, report: RowsReport, key: bytes, payload: bytes) -> None:
    """The due index knows when the alarm is due; without that it would never run."""
    try:
        next_ms = codec.decode(payload)[2]
        lost = next_ms is not None and engine.get(keys.due_key_of(next_ms, key)) is None
    except (PerdureError, TypeError, IndexError, AttributeError, OverflowError) as error:
        report.add(f"alarm {key[:80].hex()}: {error}")
        return
    if lost:
        report.add(f"alarm {key[:80].hex()} is missing in the due index")


def _check_socket(engine: Engine, report: RowsReport, key: bytes, row: keys.ObjectRow) -> None:
    """It stands among the sockets of its gateway; without that it would outlive it."""
    prefix = keys.object_prefix(row.slot, row.namespace, row.object_id)
    if len(row.key) != keys.SOCKET_KEY_BYTES:
        report.add(f"socket {key[:80].hex()} has no key of a socket")
        return
    with suppress(StorageError):  # an unreadable row is told of where that region is read
        if engine.get(keys.socket_index_key(row.key, prefix)) is None:
            report.add(f"socket {key[:80].hex()} is missing among those of its gateway")


def _check_sockets(engine: Engine, report: RowsReport) -> None:
    """Every row of the sockets by gateway stands for a socket of an object."""
    stop = keys.prefix_end(keys.SOCKETS_REGION)
    for key, record in _rows(engine, report, keys.SOCKETS_REGION, stop, "the sockets by gateway"):
        if _payload(report, key, record) is None:
            continue
        try:
            if engine.get(keys.parse_socket_row(key).object_row) is None:
                report.add(f"the sockets by gateway have {key[:80].hex()}, which is not stored")
        except ValueError as error:
            report.add(str(error))
        except StorageError:
            continue  # the object's own row is damaged, which is told of already


def _check_frames(engine: Engine, report: RowsReport) -> None:
    """Frames for gateways can be read, and have their place."""
    stop = keys.prefix_end(keys.FRAMES_REGION)
    for key, record in _rows(engine, report, keys.FRAMES_REGION, stop, "the frames for gateways"):
        _payload(report, key, record)
        try:
            keys.frames_position(key)
        except ValueError as error:
            report.add(str(error))


def _check_due(engine: Engine, report: RowsReport) -> None:
    """Every row of the due index stands for a row of an object."""
    stop = keys.prefix_end(keys.DUE_REGION)
    for key, record in _rows(engine, report, keys.DUE_REGION, stop, "the due index"):
        if _payload(report, key, record) is None:
            continue
        try:
            row = keys.parse_due_row(key)
            prefix = keys.object_prefix(row.slot, row.namespace, row.object_id)
            if engine.get(prefix + row.kind + row.key) is None:
                report.add(f"the due index has {key[:80].hex()}, which is not stored")
        except ValueError as error:
            report.add(str(error))
        except StorageError:
            continue  # the object's own row is damaged, which is told of already
