"""What a child is started with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from perdure_cli.children import RunConfig, child_command, gateway_config, router_config, worker_config
from perdure_cli.events import ChildId, Role
from perdure_cli.places import Places
from perdure_cli.state import first_state
from perdure_gateway.config import GatewayConfig
from perdure_router.config import RouterConfig
from perdure_worker.config import WorkerConfig
from perdure_worker.quarantine import Blame

PLACES = Places(Path("/data/run"))
RUN = RunConfig("app.py", Path("/data"), binds=("tcp://127.0.0.1:7400",), log_level="DEBUG", dev=True)


def test_a_child_is_a_fresh_interpreter_that_nothing_in_the_working_directory_shadows() -> None:
    assert child_command(Role.WORKER, "{}") == [sys.executable, "-P", "-m", "perdure_worker", "{}"]


def test_the_router_is_told_every_endpoint() -> None:
    told = RouterConfig.from_json(router_config(RUN, PLACES, 7))
    assert told.endpoints == ("ipc:///data/run/router", "tcp://127.0.0.1:7400")
    assert (told.control, told.epoch, told.parent) == (PLACES.control, 7, os.getpid())


def test_a_worker_is_told_its_own_slots_and_whom_its_former_death_is_blamed_on() -> None:
    state = first_state("leveldb", 1_024, 2)
    child = ChildId(Role.WORKER, 1)
    blame = Blame("00" * 32, "Counter", "spin", "it fell silent", 6)
    shard = Path("/data/shard-0001")
    told = WorkerConfig.from_json(
        worker_config(RUN, PLACES, state, child, 7, shard=shard, marks=5, blame=blame, first=False)
    )
    assert (told.index, told.slots, told.slot_count) == (1, (512, 1_024), 1_024)
    assert (told.door, told.shard, told.marks) == ("ipc:///data/run/w1.e7", str(shard), 5)
    assert told.blame is not None
    assert (told.blame["method"], told.first, told.dev, told.log_level) == ("spin", False, True, "DEBUG")


def test_the_gateway_is_told_its_socket_and_whom_it_lets_in() -> None:
    run = RunConfig(
        "app.py",
        Path("/data"),
        http=("127.0.0.1", 0),
        allow_origins=("https://a.example",),
        http_tokens="/etc/tokens",
        trusted_proxies=("10.0.0.0/8",),
    )
    told = GatewayConfig.from_json(gateway_config(run, PLACES, 3, 9))
    assert (told.app, told.url, told.control, told.listener) == ("app.py", PLACES.url, PLACES.control, 9)
    assert (told.epoch, told.parent) == (3, os.getpid())
    assert (told.allow_origins, told.tokens) == (("https://a.example",), "/etc/tokens")
    assert told.trusted_proxies == ("10.0.0.0/8",)
