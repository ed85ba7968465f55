"""Values as bytes: msgpack with a closed set of extension types.  Runs in every process.

Every value of the closed set comes back as itself: None, bool, int of any size, float, str, bytes,
list, dict with str or bytes keys, tuple, set, frozenset, datetime, date, Decimal, UUID.  (A datetime's
named zone comes back as its fixed offset, a bytearray or memoryview as bytes.)  Anything else fails
where it is encoded, with an error that names the type; nothing is pickled.

Decoding is bounded, against bytes that somebody made up: five megabytes of empty maps would become
350 MB of dicts (RELIABILITY §3), a kilobyte of tuples inside each other would overflow the C stack, and
200 KB of integers with one hash take a set 1.3 s, four times as much for twice the size.  What decoding
would refuse, encoding refuses.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import msgpack

from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.protocol import array_header

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
_LEAVES = SCALARS | {str}

# First bytes in msgpack: of what may be written and then not be read, which is maps (keys of any type)
# and extensions (msgpack.ExtType with any code), and of what is counted, lists and maps.
_DOUBTFUL_BYTES = bytes([*range(0x80, 0x90), 0xDE, 0xDF, 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)])
_CONTAINER_BYTES = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_CONTAINERS_MAX = Limits().containers_max
_NESTED_MAX = Limits().nested_tuples_max
# A set with fewer members is built in microseconds whatever their hashes are.
_SET_CHECKED_FROM = 1_000
# A packer's first buffer; it grows.  With msgpack's own 256 KB each value pays for a system call's memory.
_PACKER_BYTES = 1_024
_ELEMENTS_MAX = Limits().batch_calls_max


class BadMessage(InvalidArgument):
    """The bytes are not a value of the wire: damaged, too deep, too many parts, or of an unknown type."""


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _text_reader(make: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: make(data.decode("ascii"))


def _set_reader(make: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def read(members: list[Any]) -> Any:
        # Members of one hash are compared with each other, n²/2 times; one pass over the hashes sees it.
        if len(members) > _SET_CHECKED_FROM and 2 * len(set(map(hash, members))) < len(members):
            raise ValueError("most members of a set have the hash of another one")
        return make(members)

    return read


_LEAF_READERS: dict[int, Callable[[bytes], Any]] = {
    _EXT_BIGINT: _integer,
    _EXT_DATETIME: _text_reader(dt.datetime.fromisoformat),
    _EXT_DATE: _text_reader(dt.date.fromisoformat),
    _EXT_DECIMAL: _text_reader(Decimal),
    _EXT_UUID: lambda data: UUID(bytes=data),
}
_CONTAINER_READERS: dict[int, Callable[[list[Any]], Any]] = {
    _EXT_TUPLE: tuple,
    _EXT_SET: _set_reader(set),
    _EXT_FROZENSET: _set_reader(frozenset),
}


def _read_extension(code: int, data: bytes, unpack: Callable[[bytes], Any]) -> Any:
    make = _CONTAINER_READERS.get(code)
    if make is not None:
        members = unpack(data)
        if type(members) is not list:
            raise ValueError("the members of a tuple or set are a list")
        return make(members)
    read = _LEAF_READERS.get(code)
    if read is None:
        raise ValueError(f"extension type {code} is not one of the wire's types")
    return read(data)


def _unpacker(ext_hook: Callable[[int, bytes], Any], **hooks: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    # timestamp=3: msgpack's own timestamps, which clients in other languages send, become datetimes.
    return partial(msgpack.unpackb, ext_hook=ext_hook, strict_map_key=True, timestamp=3, **hooks)


def _too_deep(*_: Any) -> Any:
    raise RecursionError(f"tuples and sets stand more than {_NESTED_MAX} deep inside each other")


class _Depth:
    """msgpack with our types, for values that stand inside a certain number of tuples and sets.

    The members of each are packed and read by a msgpack call within another one.  Reading takes about
    45 KB of C stack a level, so that 200 levels end the process: the chain of depths ends before.
    """

    __slots__ = ("_pack_inner", "_unpack_inner", "unpack")

    def __init__(self, inner: _Depth | None) -> None:
        self.unpack = _unpacker(self._ext_hook)
        self._pack_inner: Callable[[Any], bytes] = inner.pack if inner is not None else _too_deep
        self._unpack_inner: Callable[[bytes], Any] = inner.unpack if inner is not None else _too_deep

    def pack(self, value: Any) -> bytes:
        # A packer for each value: `default` may be in the middle of another one's work, in any thread.
        packer = msgpack.Packer(default=self.default, strict_types=True, buf_size=_PACKER_BYTES)
        packed: bytes = packer.pack(value)
        return packed

    def _ext_hook(self, code: int, data: bytes) -> Any:
        return _read_extension(code, data, self._unpack_inner)

    def default(self, value: Any) -> msgpack.ExtType:
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(_EXT_TUPLE, self._pack_inner(list(value)))
        if kind is set:
            return msgpack.ExtType(_EXT_SET, self._members(value))
        if kind is frozenset:
            return msgpack.ExtType(_EXT_FROZENSET, self._members(value))
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

    def _members(self, values: set[Any] | frozenset[Any]) -> bytes:
        # Sorted by their encoding: equal sets give equal bytes, so an unchanged field is seen as unchanged.
        packed = sorted([self._pack_inner(value) for value in values])
        return array_header(len(packed)) + b"".join(packed)


def _outermost() -> _Depth:
    depth = None
    for _ in range(_NESTED_MAX + 1):
        depth = _Depth(depth)
    assert depth is not None
    return depth


_OUTERMOST = _outermost()


class _Counting:
    """Decodes one message while counting lists and maps; only for messages that may hold too many.

    A hook call per container costs about 0.1 µs, which is why small messages do without.
    """

    def __init__(self) -> None:
        self._left = _CONTAINERS_MAX
        self._depth = 0
        self._unpack = _unpacker(self._ext_hook, list_hook=self._seen, object_hook=self._seen)

    def _seen(self, container: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"more than {_CONTAINERS_MAX} lists and maps in one message")
        return container

    def _ext_hook(self, code: int, data: bytes) -> Any:
        return _read_extension(code, data, self._decode_inner)

    def _decode_inner(self, data: bytes) -> Any:
        if self._depth == _NESTED_MAX:
            _too_deep()
        self._depth += 1
        value = self.decode(data)
        self._depth -= 1
        return value

    def decode(self, data: bytes) -> Any:
        return self._unpack(data)


def _holds(data: bytes, first_bytes: bytes, more_than: int) -> bool:
    """Whether so many of these bytes are there; inside texts and numbers they count too."""
    return len(data) - len(data.translate(None, first_bytes)) > more_than


def _read(data: bytes) -> Any:
    if len(data) > _CONTAINERS_MAX and _holds(data, _CONTAINER_BYTES, _CONTAINERS_MAX):
        return _Counting().decode(data)
    return _OUTERMOST.unpack(data)


def decode(data: bytes) -> Any:
    """The value that `encode` made these bytes from.  Raises `BadMessage`, never anything else."""
    try:
        return _read(data)
    except Exception as error:  # msgpack, our hooks and the constructors behind them raise many kinds
        raise BadMessage(f"not a value of the wire: {str(error) or type(error).__name__}") from None


def make_packer() -> Callable[[Any], bytes]:
    """A fast encoder for the sole use of one thread.

    It raises what msgpack raises (see `encode` for typed errors), and does not see what could not be
    read back: values of other types than `SCALARS` and str go through `check_value` first.
    """
    pack: Callable[[Any], bytes] = msgpack.Packer(default=_OUTERMOST.default, strict_types=True).pack
    return pack


def encode(value: Any) -> bytes:
    """`value` as bytes; raises `InvalidArgument` naming what cannot be encoded."""
    try:
        data = _OUTERMOST.pack(value)
        # msgpack writes what it does not read, for safety or because it cannot: maps with keys of any
        # type, unknown extensions.  What could not be read back must not be stored.  Decoding is the
        # check at C speed.
        if type(value) not in _LEAVES and (
            _holds(data, _DOUBTFUL_BYTES, 0)
            or (len(data) > _CONTAINERS_MAX and _holds(data, _CONTAINER_BYTES, _CONTAINERS_MAX))
        ):
            _read(data)
    except Exception as error:  # also what a user's tzinfo raises
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
        if position != len(data):
            raise ValueError(f"{len(data) - position} bytes too many")
    except Exception as error:  # as in `decode`
        raise BadMessage(f"not a list of the wire: {str(error) or type(error).__name__}") from None
    return parts
