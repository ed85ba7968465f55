"""The gateway process: one HTTP server around the user's `app`, or around a `Gateway` of their classes.

Guarantees that it says when it serves, gives a sign of life while its loop runs, ends with its supervisor,
and stops in order: it accepts nothing more, requests that run get their answers, then it exits 0.  It keeps
nothing: killed at any moment, its successor serves at the same listening socket, in whose queue clients wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import uvloop

from perdure import codec, descriptors, lifeline, logs
from perdure.channel import Channel, WouldBlock, open_context, open_dealer
from perdure.errors import InvalidArgument
from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure.loader import ApplicationError, is_first_to_say, load_module, object_classes
from perdure_gateway.answers import BrokenOff
from perdure_gateway.config import GatewayConfig
from perdure_gateway.gateway import Gateway
from perdure_gateway.server import HttpServer

__all__ = ["main"]

log = logging.getLogger("perdure.gateway")

_TELL_AGAIN_S: Final = 0.005
_LINGER_MS: Final = 200
_LIFESPAN_FAILED: Final = 3
# Ten thousand idle connections make full collections slow (5 ms each) and useless: they are not garbage.
_GC_THRESHOLDS: Final = (50_000, 20, 100)


class Supervised:
    """What the process tells its supervisor; nothing where there is none."""

    def __init__(
        self, config: GatewayConfig, loop: asyncio.AbstractEventLoop, stats: Callable[[], dict[str, int]]
    ) -> None:
        self._config = config
        self._loop = loop
        self._stats = stats
        self._interval_s = Limits.heartbeat_interval_s
        self._channel: Channel | None = None
        self._context = open_context()
        if config.control:
            dealer = open_dealer(self._context, config.control)
            # The slot map is not for this process: its client asks the router.
            self._channel = Channel(loop, dealer, lambda frames: None)

    def ready(self, address: str) -> None:
        """It serves from now on."""
        if self._tell("ready", endpoint=address):
            self._beat()
        else:  # the connection is not up yet
            self._loop.call_later(_TELL_AGAIN_S, self.ready, address)

    def _beat(self) -> None:
        self._tell("beat", stats=self._stats())
        self._loop.call_later(self._interval_s, self._beat)

    def _tell(self, kind: str, **facts: Any) -> bool:
        if self._channel is None or self._channel.closed:
            return True
        who = {"role": "gateway", "index": 0, "epoch": self._config.epoch, "pid": os.getpid()}
        try:
            self._channel.send([codec.encode({"type": kind, **who, **facts})])
        except WouldBlock:
            return False
        return True

    def close(self) -> None:
        """The process ends."""
        if self._channel is not None:
            self._channel.close(_LINGER_MS)
        self._context.term()


def make_app(config: GatewayConfig, module: ModuleType, limits: Limits) -> Any:
    """The module's `app`, or a `Gateway` of its classes.  Raises `ApplicationError`."""
    app = vars(module).get("app")
    if app is None:
        return Gateway(
            config.url,
            classes=object_classes(module, config.app),
            allow_origins=config.allow_origins,
            tokens=config.tokens or None,
            limits=limits,
        )
    if not callable(app):
        raise ApplicationError(f"{config.app}: `app` is no ASGI application: it cannot be called")
    if config.tokens or config.allow_origins:
        # Passed over, they would leave open what their user takes for closed.
        raise ApplicationError(
            f"{config.app} has an `app` of its own, which --http-tokens and --allow-origin do not reach: "
            "give its Gateway(...) tokens= and allow_origins="
        )
    return app


async def serve(config: GatewayConfig, app: Any) -> int:
    """Serves until SIGTERM; the exit code."""
    loop = asyncio.get_running_loop()
    listener = socket.socket(fileno=config.listener)
    address = _address_of(listener)
    descriptors_watch = descriptors.Watch()

    def stats() -> dict[str, int]:
        return {
            "requests": server.server_state.total_requests,
            "connections": server.rules.admission.connections,
            "refused_connections": server.rules.admission.refused,
            "cut_connections": server.rules.cut,
            "descriptors": descriptors_watch.look(),
        }

    def on_started() -> None:
        log.info("gateway serves", extra={"address": address, "epoch": config.epoch})
        supervised.ready(address)

    server = HttpServer(
        app, config.all_limits(), trusted_proxies=config.trusted_proxies, on_started=on_started
    )
    supervised = Supervised(config, loop, stats)
    loop.add_signal_handler(signal.SIGTERM, _stop, server)
    if isinstance(app, Gateway) and app.tokens is not None:
        loop.add_signal_handler(signal.SIGHUP, app.tokens.look)
    try:
        await server.serve(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the application's lifespan did not begin
        return _LIFESPAN_FAILED
    finally:
        supervised.close()
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's says something that was not said already."""
    return record.exc_info is None or record.exc_info[0] is not BrokenOff


def _stop(server: HttpServer) -> None:
    log.info("gateway stops")
    server.should_exit = True


def _address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main(arguments: list[str]) -> int:
    """Runs the gateway with its one argument, a `GatewayConfig` as JSON; returns the exit code."""
    if len(arguments) != 1:
        raise SystemExit("the gateway takes one argument, its configuration as JSON")
    try:
        config = GatewayConfig.from_json(arguments[0])
    except InvalidArgument as error:
        raise SystemExit(str(error)) from None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if config.parent:
        lifeline.end_with(config.parent)
    logs.setup("gateway", log_json=config.log_json, level=config.log_level)
    server_log = logging.getLogger("uvicorn.error")
    # Of starts and stops we tell ourselves; what clients send that is no HTTP is counted.
    server_log.setLevel(logging.ERROR)
    server_log.addFilter(_is_news)
    descriptors.raise_limit()
    # What the user's module connects to by itself is this cluster.
    os.environ["PERDURE_URL"] = config.url
    try:
        app = make_app(config, load_module(config.app), config.all_limits())
    except (ApplicationError, InvalidArgument, TypeError) as error:
        first = not config.control or is_first_to_say(str(error), config.control)
        log.log(logging.ERROR if first else logging.DEBUG, "the application cannot be loaded: %s", error)
        return WorkerExit.APP_NOT_LOADED
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.freeze()
    code = uvloop.run(serve(config, app))
    # Clients that the user's module has connected and never closed must not hold up the end.
    logging.shutdown()
    os._exit(code)
