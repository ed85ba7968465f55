"""How a child is started: its command line and its configuration.  Pure; used by the supervisor.

Guarantees that a child is told all that it needs in one argument: it reads no file and no variable of its
environment to find out who it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from perdure.limits import Limits
from perdure_cli.events import ChildId, Role
from perdure_cli.places import Places
from perdure_cli.state import ClusterState
from perdure_gateway.config import GatewayConfig
from perdure_router.config import RouterConfig
from perdure_worker.config import WorkerConfig
from perdure_worker.quarantine import Blame

__all__ = ["ChildCommand", "RunConfig", "child_command", "gateway_config", "router_config", "worker_config"]

_LIMITS = Limits()

ChildCommand = Callable[[Role, str], Sequence[str]]
"""Command line of a child, from its role and its configuration in JSON."""


@dataclass(frozen=True)
class RunConfig:
    """What `perdure run` was told."""

    app: str
    """Absolute path of a file, or a module's dotted name."""
    data: Path
    workers: int | None = None
    """None: what the data directory has."""
    binds: tuple[str, ...] = ()
    """TCP endpoints of the router, besides its socket in the run directory."""
    engine: str = "leveldb"
    log_json: bool = False
    log_level: str = "INFO"
    dev: bool = False
    idle_evict_s: float = _LIMITS.idle_evict_s
    live_objects_max: int = _LIMITS.live_objects_max
    http: tuple[str, int] | None = None
    """Host and port of the gateway; None for no gateway, port 0 for any that is free."""
    allow_origins: tuple[str, ...] = ()
    http_tokens: str = ""
    """Absolute path of the token file, "" for none."""
    trusted_proxies: tuple[str, ...] = ()


def child_command(role: Role, config: str) -> Sequence[str]:
    """A fresh interpreter; -P keeps the working directory's files from shadowing our packages."""
    return [sys.executable, "-P", "-m", f"perdure_{role}", config]


def router_config(run: RunConfig, places: Places, epoch: int) -> str:
    """The router's argument."""
    return RouterConfig(
        endpoints=(places.url, *run.binds),
        control=places.control,
        epoch=epoch,
        parent=os.getpid(),
        log_json=run.log_json,
        log_level=run.log_level,
    ).to_json()


def gateway_config(run: RunConfig, places: Places, epoch: int, listener: int) -> str:
    """The gateway's argument; `listener` is the descriptor of the socket that it inherits."""
    return GatewayConfig(
        app=run.app,
        url=places.url,
        listener=listener,
        control=places.control,
        epoch=epoch,
        parent=os.getpid(),
        allow_origins=run.allow_origins,
        tokens=run.http_tokens,
        trusted_proxies=run.trusted_proxies,
        log_json=run.log_json,
        log_level=run.log_level,
    ).to_json()


def worker_config(
    run: RunConfig,
    places: Places,
    state: ClusterState,
    child: ChildId,
    epoch: int,
    *,
    shard: Path,
    marks: int,
    blame: Blame | None,
    first: bool,
) -> str:
    """A worker's argument."""
    slots = state.ranges[child.index]
    return WorkerConfig(
        app=run.app,
        index=child.index,
        shard=str(shard),
        door=f"ipc://{places.door(child.index, epoch)}",
        slots=(slots.start, slots.stop),
        slot_count=state.slot_count,
        engine=run.engine,
        dev=run.dev,
        idle_evict_s=run.idle_evict_s,
        live_objects_max=run.live_objects_max,
        marks=marks,
        blame=asdict(blame) if blame is not None else None,
        first=first,
        control=places.control,
        epoch=epoch,
        parent=os.getpid(),
        log_json=run.log_json,
        log_level=run.log_level,
    ).to_json()
