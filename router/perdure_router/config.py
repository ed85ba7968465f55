"""What the supervisor tells the router at its start.  Pure; the router process and its supervisor use it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from perdure.errors import InvalidArgument

__all__ = ["RouterConfig"]


@dataclass(frozen=True)
class RouterConfig:
    """The router's one argument, as JSON."""

    endpoints: tuple[str, ...]
    """Where clients find the router: ZeroMQ endpoints to bind, the first one is announced."""
    control: str
    """ZeroMQ endpoint of the supervisor."""
    epoch: int
    """Counts the router's incarnations."""
    parent: int
    """Process id of the supervisor; without it the router ends."""
    log_json: bool = True
    log_level: str = "INFO"

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RouterConfig:
        """Raises `InvalidArgument` that names the field which is missing, unknown or of a wrong type."""
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"the router's configuration is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidArgument("the router's configuration is a JSON object")
        endpoints = fields.get("endpoints")
        if not isinstance(endpoints, list) or not endpoints or not all(isinstance(e, str) for e in endpoints):
            raise InvalidArgument("endpoints: the router needs a list of at least one endpoint")
        try:
            config = cls(**{**fields, "endpoints": tuple(endpoints)})
        except TypeError as error:
            raise InvalidArgument(f"the router's configuration is incomplete or has more: {error}") from None
        config.check()
        return config

    def check(self) -> None:
        """Raises `InvalidArgument` for a field of the wrong type."""
        expected = {"control": str, "epoch": int, "parent": int, "log_json": bool, "log_level": str}
        for name, kind in expected.items():
            if type(getattr(self, name)) is not kind:
                raise InvalidArgument(f"{name}: expected {kind.__name__}, got {getattr(self, name)!r}")
