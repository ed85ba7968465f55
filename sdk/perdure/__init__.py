"""Perdure: self-hosted Durable Objects for Python.

A class that derives from `DurableObject` describes objects that have a global id, private durable
storage, and run one call at a time in exactly one place.
"""

from typing import TYPE_CHECKING, Any

from perdure.alarm import Alarm
from perdure.client import Client, connect
from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    RemoteError,
    ShardUnavailable,
    StorageError,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.fields import durable
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.listing import ListedObject, Listing
from perdure.methods import blocking, interleaved, public
from perdure.object import DurableObject
from perdure.remote_errors import register_exception
from perdure.sync_client import SyncClient, connect_sync
from perdure.web import WebReply
from perdure.websocket import WebSocket, WebSocketResponse

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException as HTTPException
    from starlette.requests import ClientDisconnect as ClientDisconnect
    from starlette.requests import Request as Request
    from starlette.responses import FileResponse as FileResponse
    from starlette.responses import HTMLResponse as HTMLResponse
    from starlette.responses import JSONResponse as JSONResponse
    from starlette.responses import PlainTextResponse as PlainTextResponse
    from starlette.responses import RedirectResponse as RedirectResponse
    from starlette.responses import Response as Response
    from starlette.responses import StreamingResponse as StreamingResponse

__all__ = [
    "Alarm",
    "Client",
    "DeadlineExceeded",
    "DeadlockError",
    "DurableObject",
    "InvalidArgument",
    "Limits",
    "ListedObject",
    "Listing",
    "MessageTooLarge",
    "NotExecuted",
    "ObjectId",
    "OutcomeUnknown",
    "Overloaded",
    "PerdureError",
    "RemoteError",
    "ShardUnavailable",
    "StorageError",
    "SyncClient",
    "UnknownMethod",
    "UnknownNamespace",
    "WebReply",
    "WebSocket",
    "WebSocketResponse",
    "blocking",
    "connect",
    "connect_sync",
    "durable",
    "interleaved",
    "public",
    "register_exception",
]

_STARLETTE = {
    "starlette.exceptions": ("HTTPException",),
    "starlette.requests": ("ClientDisconnect", "Request"),
    "starlette.responses": (
        "FileResponse",
        "HTMLResponse",
        "JSONResponse",
        "PlainTextResponse",
        "RedirectResponse",
        "Response",
        "StreamingResponse",
    ),
}


def __getattr__(name: str) -> Any:
    """Starlette's classes, imported when the first of them is used: clients and most workers need none."""
    for module, names in _STARLETTE.items():
        if name in names:
            import importlib

            value = globals()[name] = getattr(importlib.import_module(module), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
