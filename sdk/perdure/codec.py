"""Values as bytes: msgpack with a closed set of extension types.  Runs in every process.

Every value of the closed set comes back as itself: None, bool, int of any size, float, str, bytes,
list, dict with str keys, tuple, set, frozenset, datetime, date, Decimal, UUID.  (A datetime's named
zone comes back as its fixed offset.)  Anything else fails where it is encoded, with an error that
names the type; nothing is pickled.

Decoding is bounded: five megabytes of empty maps would become 350 MB of dicts (RELIABILITY §3), so
lists and maps are counted before a large message is built.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgpack

from perdure.errors import InvalidArgument
from perdure.limits import Limits

__all__ = ["SCALARS", "BadMessage", "check_value", "decode", "encode", "make_packer", "split_array"]

# Extension codes of the wire and of the disk: never reuse one.
_EXT_TUPLE = 1
_EXT_SET = 2
_EXT_FROZENSET = 3
_EXT_BIGINT = 4
_EXT_DATETIME = 5
_EXT_DATE = 6
_EXT_DECIMAL = 7
_EXT_UUID = 8

SCALARS = frozenset({type(None), bool, int, float, bytes})
"""Types whose values always can be encoded and decoded again: no check is needed for them."""

# Every first byte that opens a map, and every one that opens a list or a map, in msgpack.
_MAP_BYTES = bytes([*range(0x80, 0x90), 0xDE, 0xDF])
_CONTAINER_BYTES = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_CONTAINERS_MAX = Limits().containers_max
_ELEMENTS_MAX = Limits().batch_calls_max

# What msgpack, our hooks and the constructors behind them raise for bytes that are no value.
_DECODE_ERRORS = (ValueError, TypeError, OverflowError, ArithmeticError, RecursionError, msgpack.OutOfData)


class BadMessage(InvalidArgument):
    """The bytes are not a value of the wire: damaged, too deep, too many parts, or of an unknown type."""


def _members(values: set[Any] | frozenset[Any]) -> bytes:
    # Sorted by their encoding: equal sets give equal bytes, so an unchanged field is seen as unchanged.
    packed = sorted(_pack_nested(value) for value in values)
    header: bytes = msgpack.Packer().pack_array_header(len(packed))
    return header + b"".join(packed)


def _default(value: Any) -> msgpack.ExtType:
    kind = type(value)
    if kind is tuple:
        return msgpack.ExtType(_EXT_TUPLE, _pack_nested(list(value)))
    if kind is set:
        return msgpack.ExtType(_EXT_SET, _members(value))
    if kind is frozenset:
        return msgpack.ExtType(_EXT_FROZENSET, _members(value))
    if kind is int:  # outside of what msgpack's 64 bits hold
        size = value.bit_length() // 8 + 1
        return msgpack.ExtType(_EXT_BIGINT, value.to_bytes(size, "big", signed=True))
    if kind is dt.datetime:
        return msgpack.ExtType(_EXT_DATETIME, value.isoformat().encode())
    if kind is dt.date:
        return msgpack.ExtType(_EXT_DATE, value.isoformat().encode())
    if kind is Decimal:
        return msgpack.ExtType(_EXT_DECIMAL, str(value).encode())
    if kind is UUID:
        return msgpack.ExtType(_EXT_UUID, value.bytes)
    raise TypeError(f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored or sent")


def _pack_nested(value: Any) -> bytes:
    # A packer of its own: `_default` runs inside another packer's work.
    packed: bytes = msgpack.packb(value, default=_default, strict_types=True)
    return packed


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _text_reader(make: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: make(data.decode("ascii"))


_LEAF_READERS: dict[int, Callable[[bytes], Any]] = {
    _EXT_BIGINT: _integer,
    _EXT_DATETIME: _text_reader(dt.datetime.fromisoformat),
    _EXT_DATE: _text_reader(dt.date.fromisoformat),
    _EXT_DECIMAL: _text_reader(Decimal),
    _EXT_UUID: lambda data: UUID(bytes=data),
}
_CONTAINER_READERS: dict[int, Callable[[list[Any]], Any]] = {
    _EXT_TUPLE: tuple,
    _EXT_SET: set,
    _EXT_FROZENSET: frozenset,
}


def _ext_hook(code: int, data: bytes) -> Any:
    make = _CONTAINER_READERS.get(code)
    if make is not None:
        return make(_unpack(data, _ext_hook))
    read = _LEAF_READERS.get(code)
    if read is None:
        raise ValueError(f"extension type {code} is not one of the wire's types")
    return read(data)


def _unpack(data: bytes, ext_hook: Callable[[int, bytes], Any], **hooks: Callable[[Any], Any]) -> Any:
    # timestamp=3: msgpack's own timestamps, which clients in other languages send, become datetimes.
    return msgpack.unpackb(data, ext_hook=ext_hook, strict_map_key=True, timestamp=3, **hooks)


class _Counting:
    """Decodes one message while counting lists and maps; only for messages that may hold too many.

    A hook call per container costs about 0.1 µs, which is why small messages do without.
    """

    def __init__(self) -> None:
        self.left = _CONTAINERS_MAX

    def seen(self, container: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {_CONTAINERS_MAX} lists and maps in one message")
        return container

    def ext_hook(self, code: int, data: bytes) -> Any:
        make = _CONTAINER_READERS.get(code)
        return _ext_hook(code, data) if make is None else make(self.decode(data))

    def decode(self, data: bytes) -> Any:
        return _unpack(data, self.ext_hook, list_hook=self.seen, object_hook=self.seen)


def decode(data: bytes) -> Any:
    """The value that `encode` made these bytes from.  Raises `BadMessage`, never anything else."""
    try:
        if len(data) > _CONTAINERS_MAX:
            containers_at_most = len(data) - len(data.translate(None, _CONTAINER_BYTES))
            if containers_at_most > _CONTAINERS_MAX:
                return _Counting().decode(data)
        return _unpack(data, _ext_hook)
    except _DECODE_ERRORS as error:
        raise BadMessage(f"not a value of the wire: {error or type(error).__name__}") from None


def make_packer() -> Callable[[Any], bytes]:
    """A fast encoder for the sole use of one thread.

    It raises what msgpack raises (see `encode` for typed errors), and does not see dict keys that
    are no strings: values of other types than `SCALARS` and str go through `check_value` first.
    """
    pack: Callable[[Any], bytes] = msgpack.Packer(default=_default, strict_types=True).pack
    return pack


def encode(value: Any) -> bytes:
    """`value` as bytes; raises `InvalidArgument` naming what cannot be encoded."""
    try:
        data = _pack_nested(value)
        if type(value) not in SCALARS and len(data.translate(None, _MAP_BYTES)) != len(data):
            # msgpack writes maps with keys of any type but, for safety, reads only str keys: what
            # could not be read back must not be stored.  Decoding is the check at C speed.
            _unpack(data, _ext_hook)
    except (*_DECODE_ERRORS, AttributeError) as error:
        raise InvalidArgument(_reason(value, error)) from None
    return data


def check_value(value: Any) -> None:
    """Raises `InvalidArgument` unless the value can be encoded and read back."""
    encode(value)


def _reason(value: Any, error: BaseException) -> str:
    kind = type(value).__name__
    if isinstance(error, RecursionError) or "recursion limit" in str(error):
        return f"this {kind} contains itself or is nested too deep to be stored or sent"
    if isinstance(error, UnicodeEncodeError):
        return f"this {kind} holds a lone surrogate, which is not valid Unicode"
    if "map_key" in str(error):
        return f"this {kind} holds a dict with a key that is no str; only str keys can be stored or sent"
    return f"this {kind} cannot be stored or sent: {str(error) or type(error).__name__}"


def split_array(data: bytes) -> list[bytes]:
    """The encoded elements of an encoded list, none of them decoded.  Raises `BadMessage`.

    With it one undecodable call of a batch is refused alone.  Lists longer than `batch_calls_max` are
    refused: this loop runs in Python, and five million elements would hold a worker up for seconds.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=len(data) or 1)
    unpacker.feed(data)
    parts: list[bytes] = []
    try:
        count = unpacker.read_array_header()
        if count > _ELEMENTS_MAX:
            raise ValueError(f"{count} elements where at most {_ELEMENTS_MAX} are allowed")
        position = unpacker.tell()
        for _ in range(count):
            unpacker.skip()
            parts.append(data[position : unpacker.tell()])
            position = unpacker.tell()
    except _DECODE_ERRORS as error:
        raise BadMessage(f"not a list of the wire: {error or type(error).__name__}") from None
    return parts
