"""Ids as both clients make them: computed here, nothing is sent.  Runs in the user's process."""

from __future__ import annotations

from perdure import ids
from perdure.ids import ObjectId
from perdure.object import namespace_of

__all__ = ["ClientIds"]


class ClientIds:
    """The part of a client that needs no cluster; `ns` is a class or its namespace's name."""

    def id_from_name(self, ns: type | str, name: str) -> ObjectId:
        """The id of the object of that name."""
        return ids.id_from_name(namespace_of(ns), name)

    def new_unique_id(self, ns: type | str) -> ObjectId:
        """A fresh random id; the object exists once it has written something."""
        return ids.new_unique_id(namespace_of(ns))

    def id_from_string(self, ns: type | str, hex: str) -> ObjectId:
        """The id from its 64 hex digits; raises `InvalidArgument` for anything else."""
        return ids.id_from_string(namespace_of(ns), hex)
