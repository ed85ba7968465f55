"""Perdure: self-hosted Durable Objects for Python.

A class that derives from `DurableObject` describes objects that have a global id, private durable
storage, and run one call at a time in exactly one place.
"""

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
from perdure.methods import blocking, public
from perdure.object import DurableObject
from perdure.remote_errors import register_exception
from perdure.sync_client import SyncClient, connect_sync

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
    "blocking",
    "connect",
    "connect_sync",
    "durable",
    "public",
    "register_exception",
]
