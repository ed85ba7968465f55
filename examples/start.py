"""All example applications in one cluster, with a start page.  `./scripts/start` runs it.

Run it with `perdure run examples/start.py` and open http://127.0.0.1:8080/.
"""

from __future__ import annotations

from cart import Cart, Shelf
from chat import ChatLimiter, ChatLobby, ChatRoom
from chunked import RangeChunk, RangeDatabase, RangeDirectory
from comments import Thread
from counter import Counter
from crdt import Replica
from feed import Account
from game import Match
from home import Device, House
from kv import KvEdge, KvShard
from serving import site
from spreadsheet import Sheet

__all__ = [
    "Account",
    "Cart",
    "ChatLimiter",
    "ChatLobby",
    "ChatRoom",
    "Counter",
    "Device",
    "House",
    "KvEdge",
    "KvShard",
    "Match",
    "RangeChunk",
    "RangeDatabase",
    "RangeDirectory",
    "Replica",
    "Sheet",
    "Shelf",
    "Thread",
]

app = site(
    "index",
    *(Account, Cart, ChatLobby, ChatRoom, Counter, Device, House, KvEdge, Match, RangeDatabase, Replica),
    *(Sheet, Shelf, Thread),
)
