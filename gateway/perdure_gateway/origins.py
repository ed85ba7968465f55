"""Which pages may open a WebSocket: those of the gateway's own origin, and those on a list.  Pure.

Browsers send cookies with an upgrade from any page and ask nobody (no CORS), so a foreign page could speak
for a user who is logged in here.  The origin is what a browser cannot lie about; clients that are no
browsers send none, and have no user's cookies to misuse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

from perdure.errors import InvalidArgument

__all__ = ["ANY_ORIGIN", "check_origin", "may_upgrade"]

ANY_ORIGIN = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def check_origin(origin: str) -> str:
    """An entry of the allow-list in its standard form: "*" or ``scheme://host[:port]``.

    Raises `InvalidArgument`.
    """
    if origin == ANY_ORIGIN:
        return origin
    parts = _parts(origin)
    if parts is None:
        raise InvalidArgument(f"an origin is scheme://host[:port] or *, not {origin!r:.200}")
    scheme, host, port = parts
    return f"{scheme}://{host}:{port}"


def may_upgrade(headers: Iterable[tuple[bytes, bytes]], allowed: Collection[str]) -> bool:
    """Whether an upgrade with these headers may go on; `allowed` holds what `check_origin` returned."""
    origins, hosts = [], []
    for name, value in headers:
        if name == b"origin":
            origins.append(value.decode("latin-1"))
        elif name == b"host":
            hosts.append(value.decode("latin-1"))
    if not origins or ANY_ORIGIN in allowed:
        return True
    parts = _parts(origins[0])
    if len(origins) > 1 or len(hosts) > 1 or parts is None:
        return False
    scheme, host, port = parts
    if f"{scheme}://{host}:{port}" in allowed:
        return True
    # A proxy may have ended TLS in front of the gateway: the origin's own scheme decides its port.
    return bool(hosts) and _parts(f"{scheme}://{hosts[0]}") == parts


def _parts(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no origin, such as `null` of a sandboxed frame."""
    try:
        split = urlsplit(origin)
        port = split.port
    except ValueError:
        return None
    scheme, host = split.scheme.lower(), split.hostname
    if not host or split.path or split.query or split.fragment or split.username is not None:
        return None
    port = _DEFAULT_PORTS.get(scheme) if port is None else port
    return None if port is None else (scheme, host.lower(), port)
