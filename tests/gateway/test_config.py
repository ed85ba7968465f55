"""What the supervisor tells the gateway comes through JSON as it was, or is refused."""

from __future__ import annotations

import json

import pytest

from perdure.errors import InvalidArgument
from perdure_gateway.config import GatewayConfig

CONFIG = GatewayConfig(
    app="app.py",
    url="ipc:///run/router",
    listener=5,
    control="ipc:///run/control",
    epoch=3,
    parent=7,
    allow_origins=("https://a.example",),
    tokens="/etc/tokens",
    trusted_proxies=("10.0.0.0/8",),
    limits={"http_keep_alive_s": 1.0},
)


def test_a_configuration_comes_back_as_it_was() -> None:
    assert GatewayConfig.from_json(CONFIG.to_json()) == CONFIG


def test_a_process_without_a_supervisor_needs_little() -> None:
    config = GatewayConfig.from_json('{"app": "a.py", "url": "ipc://x", "listener": 3}')
    assert (config.control, config.parent, config.allow_origins) == ("", 0, ())


def test_limits_may_be_others_than_the_usual_ones() -> None:
    assert CONFIG.all_limits().http_keep_alive_s == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"listener": "5"},
        {"app": None},
        {"log_json": 1},
        {"unknown": 1},
        {"allow_origins": [1]},
        {"limits": {"no_such_limit": 1}},
    ],
)
def test_a_field_that_is_wrong_is_named(change: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(change)) if "limits" not in change else "no_such"):
        GatewayConfig.from_json(json.dumps({**json.loads(CONFIG.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '"text"'])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        GatewayConfig.from_json(text)
