"""One live object in the worker's memory: its instance, what was saved of it, and its life.  Pure.

A resident of an idle object is meant to cost well under 1 KB beside the user's own state, so
everything that most objects never need is made when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from perdure import codec
from perdure.codec import SCALARS
from perdure.errors import InvalidArgument, StorageError
from perdure.fields import DurableField
from perdure.ids import ObjectId
from perdure_storage import keys, records
from perdure_storage.engine import Engine

if TYPE_CHECKING:
    from perdure_worker.interleaving import Inside
    from perdure_worker.mailbox import Mailbox
    from perdure_worker.registry import ObjectClass
    from perdure_worker.turn_storage import TurnStorage
    from perdure_worker.windows import Window

__all__ = ["Encoded", "Resident"]

# Index of the field, what to remember as saved, and its encoding.
Change = tuple[int, Any, bytes]


# Not through `__dict__`: an instance keeps its values without one until somebody asks for it, which takes 64
# bytes more an object, and a step more to each value.
_fill = object.__setattr__


class Encoded(bytes):
    """The last saved encoding of a field that can change in place; compared after every turn."""

    __slots__ = ()


class StartTrouble:
    """What is remembered of failed starts of an object, until one succeeds."""

    __slots__ = ("error", "failures", "retry_at")

    def __init__(self, error: BaseException | None = None) -> None:
        self.failures = 0
        self.retry_at = 0.0
        self.error = error
        """Of the last start; None while another one runs."""


class Resident:
    """A live object.  Only the host changes it."""

    __slots__ = (
        "calls",
        "check",
        "cls",
        "doomed",
        "head",
        "inside",
        "instance",
        "key",
        "mailbox",
        "misnamed",
        "name",
        "named",
        "saved",
        "storage",
        "ticket",
        "trouble",
        "turn",
        "used",
        "version",
        "window",
    )

    def __init__(self, cls: ObjectClass, key: bytes, name: str | None) -> None:
        self.cls = cls
        self.key = key
        heads = cls.row_heads
        self.head = heads[int.from_bytes(key[:4], "big") % len(heads)]
        """How the keys of its rows begin, up to its id; shared by all objects of its class and slot."""
        self.check = crc32(key, crc32(self.head))
        """The checksum of what all keys of its rows begin with: that of a row goes on from here."""
        self.name = name
        self.instance: Any = None
        """The user's object; None until its start has succeeded."""
        self.turn: Any = None
        """The running turn; None exactly when the object may start one of a serial method."""
        self.inside: Inside | None = None
        """The turns of interleaved methods; None while there are none."""
        self.doomed: BaseException | None = None
        """Why the running turn cannot end well any more, whatever its method does."""
        self.calls = 0
        """Calls to other objects whose outcome is not here yet."""
        self.mailbox: Mailbox | None = None
        """None while nothing waits."""
        self.ticket = 0
        """The last commit group that this object's writes joined."""
        self.saved: tuple[Any, ...] = ()
        """Of each durable field what storage has, or will have: the value, or `Encoded`.  A tuple and not a
        list: its items are where it is, and each turn of one of many objects looks at them anew."""
        self.version = 0
        """The class's version that the object is stored with; 0 while nothing is stored."""
        self.named = False
        """Whether the object's own record (its name and version) is stored as it should be."""
        self.misnamed = False
        """Whether it is stored under its id alone, because its first caller did not know the name."""
        self.storage: TurnStorage | None = None
        self.used = 0.0
        """When its last turn started, in seconds of the worker's clock."""
        self.window: Window | None = None
        """Recorded replies of the client that called last; the others' are found through it."""
        self.trouble: StartTrouble | None = None
        """Of an object whose start has failed lately."""

    @property
    def id(self) -> ObjectId:
        """The object's id, with its name where it is known."""
        return ObjectId(self.key, self.name)

    @property
    def label(self) -> str:
        """``Namespace/name-or-id``, for messages."""
        return f"{self.cls.namespace}/{self.name if self.name is not None else self.key.hex()}"

    def learn_name(self, name: str | None, *, stored: bool) -> None:
        """A name came from storage or with a call; a stored object gets its name with its next write."""
        if stored and name is None:
            self.misnamed = self.name is not None
        elif self.name is None and not stored:
            self.misnamed = self.version > 0
        if self.misnamed:
            self.named = False
        if name is not None:
            self.name = name

    def names_row(self) -> bytes:
        """Key of the object's row in the namespace's listing."""
        return keys.names_key(self.cls.namespace, self.name, self.key)

    def saved_with(self, index: int, value: Any) -> tuple[Any, ...]:
        """`saved` with another value of one durable field."""
        saved = self.saved
        return (*saved[:index], value, *saved[index + 1 :])

    def row_prefix(self) -> bytes:
        """The key prefix of all of this object's rows; kept, it would be a tenth of its memory."""
        return self.head + self.key

    # --- durable fields

    def load(self, engine: Engine, unknown_field: Callable[[str, str], None]) -> dict[str, Any] | None:
        """Reads name, version and fields, and fills a fresh instance.

        Gives what does not fit the class when the object must be migrated first, else None.  Raises
        `StorageError` for damaged rows, values that do not fit, and an object of a newer version.
        """
        stored = self._load_rows(engine)
        migrates = 0 < self.version < self.cls.version and self.cls.migrate is not None
        old: dict[str, Any] = {}
        cls = self.cls.cls
        instance = cls.__new__(cls)
        self.instance = instance
        saved: list[Any] = []
        for field in self.cls.fields:
            payload_or_none = stored.pop(field.name, None)
            if payload_or_none is None:
                value = field.default()
                saved.append(value if field.immutable(value) else Encoded(codec.encode(field.dump(value))))
            elif migrates and not _fits(field, payload_or_none):
                old[field.name] = codec.decode(payload_or_none)
                saved.append(Encoded(payload_or_none))
                continue
            else:
                value = field.load(codec.decode(payload_or_none))
                saved.append(value if field.immutable(value) else Encoded(payload_or_none))
            _fill(instance, field.name, value)
        self.saved = tuple(saved)
        if migrates:
            return old | {name: codec.decode(payload) for name, payload in stored.items()}
        for name in stored:
            unknown_field(self.cls.namespace, name)
        return None

    def _load_rows(self, engine: Engine) -> dict[str, bytes]:
        prefix = self.row_prefix()
        stored: dict[str, bytes] = {}
        self.named, self.version = False, 0
        with engine.scan(prefix, prefix + keys.VALUE) as rows:
            for key, record in rows:
                payload = records.unseal(key, record)
                if key.startswith(keys.META, len(prefix)):
                    meta = codec.decode(payload)
                    self.named, self.version = True, meta.get("version", 1)
                    self.learn_name(meta.get("name"), stored=True)
                else:
                    stored[key[len(prefix) + 1 :].decode()] = payload
        if self.version > self.cls.version:
            raise StorageError(
                f"{self.label} was stored by version {self.version} of its class, and this one has version "
                f"{self.cls.version}: nothing was changed; run the newer code"
            )
        if self.version < self.cls.version:
            self.named = False  # its record is written again, with the version
        return stored

    def reload_fields(self) -> None:
        """Puts back what storage has, after a turn that must leave no trace."""
        instance = self.instance
        for field, saved in zip(self.cls.fields, self.saved, strict=True):
            if type(saved) is not Encoded:
                _fill(instance, field.name, saved)
            elif self.inside is None or not _encodes_to(saved, field, getattr(instance, field.name)):
                # Of other turns inside, what this one did not change stays the object that they know.
                _fill(instance, field.name, field.load(codec.decode(saved)))

    def reset_fields(self) -> None:
        """Puts defaults back: the object's rows are being deleted."""
        for index, field in enumerate(self.cls.fields):
            value = field.default()
            _fill(self.instance, field.name, value)
            saved = value if field.immutable(value) else Encoded(codec.encode(field.dump(value)))
            self.saved = self.saved_with(index, saved)

    def changed_fields(self, pack: Callable[[Any], bytes], size_max: int) -> list[Change] | None:
        """What differs from what is saved; None if nothing.  Changes nothing itself.

        Raises `InvalidArgument` when a field holds what cannot be stored, `StorageError` when it is
        larger than `size_max` bytes encoded.
        """
        instance = self.instance
        changes: list[Change] | None = None
        index = 0
        for saved in self.saved:
            field = self.cls.fields[index]
            value = getattr(instance, field.name)
            if value is not saved:
                change = self._change(index, field, saved, value, pack)
                if change is not None:
                    if len(change[2]) > size_max:
                        raise StorageError(
                            f"{self.cls.namespace}.{field.name} has {len(change[2])} bytes encoded; "
                            f"the limit is {size_max}"
                        )
                    if changes is None:
                        changes = [change]
                    else:
                        changes.append(change)
            index += 1  # noqa: SIM113 - enumerate makes a tuple for each field of each turn
        return changes

    def _change(
        self, index: int, field: DurableField, saved: Any, value: Any, pack: Callable[[Any], bytes]
    ) -> Change | None:
        kind = type(value)
        if kind is int and type(saved) is int and field.exact is int:
            # The commonest field, without the general questions below (0.4 µs less).
            return None if value == saved else (index, value, pack(value))
        immutable = field.immutable(value)
        if immutable and field.same(saved, value):
            return None
        if kind is DurableField:  # the class's, which shows where the instance has none
            raise InvalidArgument(f"{self.cls.namespace}.{field.name}: a durable field cannot be deleted")
        try:
            plain = field.dump(value)
            encoded = pack(plain) if type(plain) in SCALARS else codec.encode(plain)
        except (TypeError, InvalidArgument) as error:
            raise InvalidArgument(f"{self.cls.namespace}.{field.name} cannot be saved: {error}") from None
        if immutable:
            return index, value, encoded
        if type(saved) is Encoded and encoded == saved:
            return None
        return index, Encoded(encoded), encoded


def _fits(field: DurableField, payload: bytes) -> bool:
    try:
        field.load(codec.decode(payload))
    except StorageError:
        return False
    return True


def _encodes_to(saved: bytes, field: DurableField, value: Any) -> bool:
    try:
        return codec.encode(field.dump(value)) == saved
    except Exception:  # of user-defined values too
        return False
