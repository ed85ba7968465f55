"""The handlers of the web edge in a class's table: what can be one, and what it costs who has none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure import DurableObject, Request, Response, blocking, interleaved
from perdure.errors import InvalidArgument
from perdure.web import FETCH, request_map
from perdure_worker.registry import register
from processes.cluster import environment


class Site(DurableObject):
    async def fetch(self, request: Request) -> Response:
        return Response()


class Threaded(DurableObject):
    @blocking
    def fetch(self, request: Request) -> Response:
        return Response()


class Mixin:
    def fetch(self, request: Request) -> Response:
        return Response()


class Mixed(Mixin, DurableObject):
    pass


def test_a_class_with_the_handler_takes_requests_and_one_without_does_not() -> None:
    class Dumb(DurableObject):
        pass

    table = register([Site, Threaded, Mixed, Dumb])
    entries = {name: entry.methods.get(FETCH) for name, entry in table.items()}
    assert [name for name, method in entries.items() if method is not None] == ["Site", "Threaded", "Mixed"]
    assert (entries["Site"].is_async, entries["Site"].blocking) == (True, False)
    assert (entries["Threaded"].is_async, entries["Threaded"].blocking) == (False, True)
    assert entries["Site"].title == "Site.fetch()"
    assert b"Site" in entries["Site"].mark


class NoRequest(DurableObject):
    async def fetch(self) -> Response:
        return Response()


class Generator(DurableObject):
    async def fetch(self, request: Request) -> AsyncIterator[bytes]:
        yield b""


class Beside(DurableObject):
    @interleaved
    async def fetch(self, request: Request) -> Response:
        return Response()


class Value(DurableObject):
    fetch = 5


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NoRequest, r"is called with \(self, request\)"),
        (Generator, "neither stream nor be @interleaved"),
        (Beside, "neither stream nor be @interleaved"),
        (Value, r"async def fetch\(self, request\)"),
    ],
)
def test_a_handler_that_cannot_be_one_is_refused_when_its_class_is_registered(cls: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        register([cls])


def test_the_argument_is_a_request_and_nothing_else() -> None:
    method = register([Site])["Site"].methods[FETCH]
    wire = request_map("GET", "/")
    assert method.bind([wire], None) == ([wire], None)
    for args, kwargs in (([], None), ([wire, 1], None), ([wire], {"a": 1}), ([5], None)):
        with pytest.raises(InvalidArgument):
            method.bind(args, kwargs)


def test_a_worker_without_such_a_class_does_not_load_starlette() -> None:
    program = (
        "import sys, perdure_worker.process, perdure_worker.registry as registry, perdure\n"
        "class Dumb(perdure.DurableObject): pass\n"
        "registry.register([Dumb])\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] in ('starlette', 'anyio')]\n"
        "class Site(perdure.DurableObject):\n"
        "    async def fetch(self, request): return 1\n"
        "registry.register([Site])\n"
        "assert 'starlette' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
