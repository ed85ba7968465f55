"""What the supervisor tells the gateway at its start: one JSON argument.  Pure; both use it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from perdure.errors import InvalidArgument
from perdure.limits import Limits

__all__ = ["GatewayConfig"]

_LISTS = ("allow_origins", "trusted_proxies")


@dataclass(frozen=True)
class GatewayConfig:
    """The gateway's one argument, as JSON."""

    app: str
    """Module or file of the user's classes."""
    url: str
    """The router's endpoint."""
    listener: int
    """Descriptor of the listening socket, which whoever started the process has made."""
    control: str = ""
    """ZeroMQ endpoint of the supervisor; without one the process tells nobody of itself."""
    epoch: int = 1
    """Counts the gateway's incarnations."""
    parent: int = 0
    """Process id of the supervisor, with which the gateway ends; 0 for none."""
    allow_origins: tuple[str, ...] = ()
    """Origins besides the own one whose pages may open sockets."""
    tokens: str = ""
    """File of bearer tokens for the built-in front; without one everybody is let in."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    log_json: bool = True
    log_level: str = "INFO"
    limits: dict[str, Any] = field(default_factory=dict)
    """Limits that are not the usual ones, by name."""

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> GatewayConfig:
        """Raises `InvalidArgument` that names the field which is missing, unknown or of a wrong type."""
        try:
            values = json.loads(text)
            config = cls(**{**values, **{name: tuple(values.get(name, ())) for name in _LISTS}})
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"the gateway's configuration cannot be read: {error}") from None
        kinds = {"str": str, "int": int, "bool": bool}
        for entry in fields(cls):
            kind = kinds.get(str(entry.type))
            if kind is not None and type(getattr(config, entry.name)) is not kind:
                raise InvalidArgument(f"{entry.name}: expected {kind.__name__}")
        for name in _LISTS:
            if not all(isinstance(text, str) for text in getattr(config, name)):
                raise InvalidArgument(f"{name}: expected a list of str")
        config.all_limits()
        return config

    def all_limits(self) -> Limits:
        """The limits of this gateway; raises `InvalidArgument` for one that does not exist."""
        try:
            return Limits(**self.limits)
        except TypeError as error:
            raise InvalidArgument(f"limits: {error}") from None
