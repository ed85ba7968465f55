"""The way from a URL's path to an object: ``/<namespace>/<name>/...``.  Pure.

Guarantees that a name is taken as the client wrote it, whatever it holds (a "/" as %2F, any Unicode), and
that two names never mean one object.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

__all__ = ["Place", "place_of", "raw_path_of"]

_UNIQUE_ID = re.compile(rb"~[0-9a-fA-F]{64}")
_SEGMENT_SAFE = "/!$&'()*+,;=:@-._~%"


class Place(NamedTuple):
    """Where a path leads."""

    namespace: str
    name: str
    """The object's name; "" where `unique` is set."""
    unique: str
    """The 64 hex digits of an object's id, or ""."""
    path: str
    """The rest, decoded; it begins with "/"."""
    raw_path: bytes
    """The rest as the client wrote it."""
    root_path: str
    """What stood before the rest, the application's own root path included."""


def raw_path_of(scope: Any) -> bytes:
    """The path as the client wrote it, below the place where the application is mounted."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"], safe=_SEGMENT_SAFE).encode("ascii")
    raw = raw.partition(b"?")[0]
    root = scope.get("root_path", "")
    if not root:
        return raw
    # As many segments as the mount has: how it was escaped makes no difference.
    return b"/" + b"/".join(raw.split(b"/")[1 + root.rstrip("/").count("/") :])


def place_of(raw: bytes, root_path: str = "") -> Place | None:
    """The place that a path names; None for one with no object in it, or with what is no UTF-8."""
    parts = raw.split(b"/", 3)
    if len(parts) < 3 or parts[0] or not parts[1] or not parts[2]:
        return None
    rest = b"/" + parts[3] if len(parts) == 4 else b"/"
    unique = parts[2][1:].decode("ascii").lower() if _UNIQUE_ID.fullmatch(parts[2]) else ""
    try:
        namespace = _decoded(parts[1])
        name = _decoded(parts[2])
        path = _decoded(rest)
    except UnicodeDecodeError:
        return None
    root = f"{root_path}/{namespace}/{name}"
    return Place(namespace, "" if unique else name, unique, path, rest, root)


def _decoded(raw: bytes) -> str:
    return (unquote_to_bytes(raw) if b"%" in raw else raw).decode("utf-8")
