"""Bearer tokens of the built-in front, from a file that may change while it is used.

    # token, then the namespaces that it opens; without one, all of them
    9f0c...e1  Counter Room
    5b77...20

Guarantees that a token is compared in constant time, that a changed file counts within a second or at once
after SIGHUP, and that a file which others can read, or which cannot be read any more, lets nobody new in.
Runs in the gateway process.
"""

from __future__ import annotations

import hmac
import logging
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.object import namespace_of

__all__ = ["TokenFile", "bearer_token", "read_tokens"]

log = logging.getLogger("perdure.gateway")

_ALL: frozenset[str] = frozenset({"*"})
_LOOK_S = 1.0
_KEY_BYTES = 8
_LIMITS = Limits()


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The token of a request's Authorization header; None without a usable one."""
    values = [value for name, value in headers if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, token = values[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token.strip() else None


def read_tokens(text: str) -> dict[bytes, frozenset[str]]:
    """Digests of tokens and what they open.  Raises `InvalidArgument` naming the line that is wrong."""
    tokens: dict[bytes, frozenset[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(tokens) == _LIMITS.http_tokens_max:
            raise InvalidArgument(f"line {number}: there are more than {_LIMITS.http_tokens_max} tokens")
        if len(words[0]) < _LIMITS.http_token_chars_min:
            raise InvalidArgument(
                f"line {number}: a token has {_LIMITS.http_token_chars_min} characters or more, which nobody "
                "can guess: openssl rand -hex 32"
            )
        try:
            namespaces = frozenset(map(namespace_of, words[1:]))
        except InvalidArgument as error:
            raise InvalidArgument(f"line {number}: {error}") from None
        digest = _digest(words[0].encode())
        tokens[digest] = _ALL if not namespaces else tokens.get(digest, frozenset()) | namespaces
    return tokens


def _digest(token: bytes) -> bytes:
    return blake2b(token, digest_size=32).digest()


class TokenFile:
    """The tokens of a file; `clock` is monotonic, in seconds."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Raises `InvalidArgument` when the file cannot be used."""
        self._path = path
        self._clock = clock
        self._seen: tuple[int, ...] = ()
        self._tokens: Mapping[bytes, tuple[bytes, frozenset[str]]] = {}
        self._next_look = clock() + _LOOK_S
        self._read()

    def namespaces(self, token: bytes | None) -> frozenset[str] | None:
        """What a token opens (``{"*"}``: everything); None for none and for an unknown one."""
        if self._clock() >= self._next_look:
            self.look()
        if token is None:
            return None
        # Found by a part of its digest, which tells nothing of a guess; then compared in constant time.
        digest = _digest(token)
        found = self._tokens.get(digest[:_KEY_BYTES])
        return found[1] if found is not None and hmac.compare_digest(found[0], digest) else None

    def opens(self, token: bytes | None, namespace: str) -> bool:
        """Whether the token opens the namespace."""
        found = self.namespaces(token)
        return found is not None and (found is _ALL or namespace in found)

    def look(self) -> None:
        """Reads the file again if it has changed; one that cannot be used leaves what was known."""
        self._next_look = self._clock() + _LOOK_S
        try:
            if self._stamp() != self._seen:
                self._read()
                log.info("the tokens were read again", extra={"tokens": len(self._tokens)})
        except (InvalidArgument, OSError) as error:
            if self._seen:
                log.error("the token file cannot be used, what was read before stays: %s", error)
            self._seen = ()

    def _stamp(self) -> tuple[int, ...]:
        facts = self._path.stat()
        return facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode

    def _read(self) -> None:
        try:
            with open(self._path, encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                if mode & (stat.S_IROTH | stat.S_IWOTH):
                    raise InvalidArgument(f"{self._path} can be read by every user: chmod 600")
                tokens = read_tokens(file.read())
            self._tokens = {digest[:_KEY_BYTES]: (digest, opened) for digest, opened in tokens.items()}
            self._seen = self._stamp()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"{self._path} cannot be read: {error}") from None
        except InvalidArgument as error:
            raise InvalidArgument(f"{self._path}: {error}") from None
