"""Object ids: how a name becomes an id, and which slot an id belongs to.  Runs in every process.

An id is 32 bytes (64 hex digits): 16 bytes that identify the object, then 16 bytes that bind them to
the namespace, so that an id of another namespace, or a mistyped one, is recognised without asking
anybody.  Ids hold no secret: anybody who knows the namespace can compute them.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

from perdure.errors import InvalidArgument
from perdure.limits import Limits

__all__ = ["ObjectId", "check_name", "id_from_name", "id_from_string", "is_id_of", "new_unique_id", "slot_of"]

ID_BYTES = 32
_HALF = 16
_LIMITS = Limits()


class ObjectId:
    """The global id of one object; `str()` gives its 64 hex digits.

    Two ids are equal when their bytes are; `name` is known only where the id was made from it, and
    takes no part in equality.
    """

    __slots__ = ("key", "name")

    def __init__(self, key: bytes, name: str | None = None) -> None:
        self.key = key
        self.name = name

    def __str__(self) -> str:
        return self.key.hex()

    def __repr__(self) -> str:
        return f"ObjectId({self.key.hex()!r}, name={self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectId) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def check_name(name: object) -> str:
    """`name` as a plain str when it can name an object; `InvalidArgument` says what is wrong otherwise."""
    if not isinstance(name, str):
        raise InvalidArgument(f"an object's name is a str, not {type(name).__name__}")
    name = str.__str__(name)  # a member of a StrEnum would not travel as itself
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidArgument("an object's name must be valid Unicode (no lone surrogates)") from None
    if not 1 <= size <= _LIMITS.name_bytes_max:
        raise InvalidArgument(
            f"an object's name has 1 to {_LIMITS.name_bytes_max} bytes in UTF-8, this one {size}"
        )
    return name


def _bound(namespace: str, head: bytes) -> bytes:
    person = blake2b(namespace.encode(), digest_size=_HALF).digest()
    return head + blake2b(head, digest_size=_HALF, key=b"perdure.check", person=person).digest()


def id_from_name(namespace: str, name: str) -> ObjectId:
    """The id of the object called `name`: the same for everybody, for ever.  Raises `InvalidArgument`."""
    name = check_name(name)
    head = blake2b(name.encode(), digest_size=_HALF, key=namespace.encode()[:64]).digest()
    return ObjectId(_bound(namespace, head), name)


def new_unique_id(namespace: str) -> ObjectId:
    """A fresh random id (128 random bits) that no name leads to."""
    return ObjectId(_bound(namespace, secrets.token_bytes(_HALF)))


def is_id_of(namespace: str, key: bytes) -> bool:
    """Whether the 32 bytes were made for this namespace."""
    return len(key) == ID_BYTES and _bound(namespace, key[:_HALF]) == key


def id_from_string(namespace: str, text: str) -> ObjectId:
    """The id that `str(id)` gave.  `InvalidArgument` for another length, non-hex, another namespace."""
    if not isinstance(text, str) or len(text) != 2 * ID_BYTES:
        raise InvalidArgument(f"an object id has {2 * ID_BYTES} hex digits: {text!r:.80}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        raise InvalidArgument(f"an object id has only hex digits: {text!r}") from None
    if len(key) != ID_BYTES or not is_id_of(namespace, key):
        raise InvalidArgument(f"this id was not made for namespace {namespace!r}: {text}")
    return ObjectId(key)


def slot_of(key: bytes, slots: int) -> int:
    """The hash bucket of an id: its first four bytes modulo the slot count (DESIGN §3)."""
    return int.from_bytes(key[:4], "big") % slots
