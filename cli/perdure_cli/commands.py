"""The command line: options become a `RunConfig`, errors become one sentence and an exit code.

Runs in the process that becomes the supervisor.  Only click is imported until a command runs, so that
help and usage errors come at once.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
from pathlib import Path

import click

from perdure.errors import PerdureError
from perdure.limits import Limits
from perdure.locate import DATA_DEFAULT
from perdure_cli.errors import BadOption, CannotRun, RunExit

__all__ = [
    "main",
    "resolve_app",
    "resolve_bind",
    "resolve_binds",
    "resolve_http",
    "resolve_origin",
    "resolve_proxy",
]

_LIMITS = Limits()
_ENGINES = ("leveldb", "memory")
_LEVELS = ("debug", "info", "warning", "error")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def resolve_app(text: str) -> str:
    """Absolute path of the file that `text` names, or `text` when it is a module's dotted name.

    Raises `BadOption` when it is neither.
    """
    path = Path(text)
    if path.is_file():
        return str(path.resolve())
    if text.endswith(".py") or os.sep in text:
        raise BadOption(f"there is no file {text!r}: name a Python file or a module, like counter.py")
    if not _MODULE.fullmatch(text):
        raise BadOption(f"{text!r} is neither a Python file nor a module's dotted name")
    return text


def resolve_bind(text: str) -> str:
    """A TCP endpoint of this machine alone, its host as a number.  Raises `BadOption`."""
    scheme, _, address = text.partition("://")
    host, _, port = address.rpartition(":")
    if scheme != "tcp" or not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise BadOption(f"--bind takes tcp://HOST:PORT, like tcp://127.0.0.1:7400, not {text!r}")
    if not 1 <= int(port) <= 65_535:
        raise BadOption(f"--bind needs a port from 1 to 65535, not {port}")
    if host == "localhost":
        host = "127.0.0.1"  # ZeroMQ binds to numbers only
    try:
        is_loopback = ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise BadOption(
            f"--bind {text} would let other machines in, and callers are not authenticated yet: only "
            "127.0.0.1 is allowed (reach it from elsewhere through a tunnel)"
        )
    return f"tcp://{host}:{int(port)}"


def resolve_binds(texts: tuple[str, ...]) -> tuple[str, ...]:
    """All of `--bind`, each as of `resolve_bind`.  Raises `BadOption`, also for one that is there twice."""
    addresses = tuple(map(resolve_bind, texts))
    if twice := next((address for address in addresses if addresses.count(address) > 1), None):
        raise BadOption(f"--bind {twice} is given twice: once is enough")
    return addresses


def resolve_http(text: str) -> tuple[str, int] | None:
    """Host and port of `--http`, None for "off".  Raises `BadOption`."""
    if text == "off":
        return None
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise BadOption(f"--http takes HOST:PORT, like 127.0.0.1:8080 or [::1]:8080, or off, not {text!r}")
    return host, int(port)


def resolve_origin(text: str) -> str:
    """An origin as browsers send it.  Raises `BadOption`."""
    if not re.fullmatch(r"https?://[A-Za-z0-9.\-_:\[\]]+", text):
        raise BadOption(f"--allow-origin takes an origin, like https://example.org, not {text!r}")
    return text.lower()


def resolve_proxy(text: str) -> str:
    """An address or a network.  Raises `BadOption`."""
    try:
        return str(ipaddress.ip_network(text)) if "/" in text else str(ipaddress.ip_address(text))
    except ValueError as error:
        raise BadOption(
            f"--trusted-proxy takes an address or a network, like 10.0.0.0/8, not {text!r}: {error}"
        ) from None


@click.group()
@click.version_option(package_name="perdure", message="%(prog)s %(version)s")
def main() -> None:
    """Self-hosted Durable Objects for Python."""


@main.command()
@click.argument("module_or_file")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(DATA_DEFAULT),
    show_default=True,
    help="Directory that holds everything; made when it is missing.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, _LIMITS.slots),
    help="Worker processes, one shard each.  [default: as before; at first one per core, at most 4]",
)
@click.option(
    "--bind",
    "binds",
    multiple=True,
    metavar="tcp://HOST:PORT",
    help="TCP endpoint for callers on this machine, besides the socket in DIR.  May be repeated.",
)
@click.option(
    "--http",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="HOST:PORT|off",
    help="Where the gateway serves HTTP; port 0 takes one that is free.",
)
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Origin whose pages may open sockets and call @public methods, besides the gateway's own.  "
    "May be repeated.",
)
@click.option(
    "--http-tokens",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Bearer tokens that the built-in front asks for: lines of a token and its namespaces (none: all).",
)
@click.option(
    "--trusted-proxy",
    "trusted_proxies",
    multiple=True,
    metavar="ADDRESS",
    help="Proxy, or network of them, whose X-Forwarded-For is believed.  May be repeated.",
)
@click.option(
    "--engine",
    type=click.Choice(_ENGINES),
    default=_ENGINES[0],
    show_default=True,
    help="memory is for trying out: nothing survives a restart.",
)
@click.option(
    "--idle-evict",
    "idle_evict_s",
    type=click.FloatRange(min=0, min_open=True),
    default=_LIMITS.idle_evict_s,
    show_default=True,
    metavar="SECONDS",
    help="An object without events for this long leaves memory.",
)
@click.option(
    "--live-objects-max",
    type=click.IntRange(min=1),
    default=_LIMITS.live_objects_max,
    show_default=True,
    metavar="N",
    help="Objects in one worker's memory; beyond it the least recently used leave.",
)
@click.option(
    "--log-json/--no-log-json",
    default=None,
    help="Log JSON objects or lines for people.  [default: JSON unless stderr is a terminal]",
)
@click.option(
    "--log-level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="info",
    show_default=True,
    help="Least serious lines to log.",
)
@click.option("--dev", is_flag=True, help="Development: callers get remote tracebacks.")
def run(
    module_or_file: str,
    data: Path,
    workers: int | None,
    binds: tuple[str, ...],
    http: str,
    allow_origins: tuple[str, ...],
    http_tokens: Path | None,
    trusted_proxies: tuple[str, ...],
    engine: str,
    idle_evict_s: float,
    live_objects_max: int,
    log_json: bool | None,
    log_level: str,
    dev: bool,
) -> None:
    """Serve the durable objects of MODULE_OR_FILE, like counter.py or package.module.

    \b
    Exit codes: 0 stopped in order, 1 the application cannot be loaded, 2 usage, 3 the data directory
    is in use, 4 stopped by force, 5 the data directory or an address cannot be used.
    """
    # Late, so that help and usage errors do not wait for asyncio and ZeroMQ (0.1 s).
    from perdure import logs
    from perdure_cli import supervisor

    json_lines = not sys.stderr.isatty() if log_json is None else log_json
    logs.setup("supervisor", log_json=json_lines, level=log_level)
    try:
        config = supervisor.RunConfig(
            app=resolve_app(module_or_file),
            data=data,
            workers=workers,
            binds=resolve_binds(binds),
            http=resolve_http(http),
            allow_origins=tuple(map(resolve_origin, allow_origins)),
            http_tokens=str(http_tokens.absolute()) if http_tokens is not None else "",
            trusted_proxies=tuple(map(resolve_proxy, trusted_proxies)),
            engine=engine,
            log_json=json_lines,
            log_level=log_level.upper(),
            dev=dev,
            idle_evict_s=idle_evict_s,
            live_objects_max=live_objects_max,
        )
        code = supervisor.run(config)
    except (PerdureError, OSError) as error:
        click.echo(f"perdure: {error}", err=True)
        code = error.exit_code if isinstance(error, CannotRun) else RunExit.CANNOT_START
    except KeyboardInterrupt:  # before the supervisor takes signals itself: nothing runs yet
        code = RunExit.FORCED
    sys.exit(code)


@main.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(DATA_DEFAULT),
    show_default=True,
    help="Directory to check, which nothing may be running on.",
)
def check(data: Path) -> None:
    """Read everything that is stored and report damage; nothing is repaired.

    \b
    Exit codes: 0 all is whole, 1 something is damaged, 3 the data directory is in use, 5 it cannot be
    checked.
    """
    from perdure_cli import check as command  # late, as above

    try:
        whole = command.check(data, click.echo)
    except (PerdureError, OSError) as error:
        click.echo(f"perdure: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, CannotRun) else RunExit.CANNOT_START)
    sys.exit(0 if whole else 1)
