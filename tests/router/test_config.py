"""The router's argument is read strictly, and what is wrong with it is said."""

from __future__ import annotations

import json
from typing import Any

import pytest

from perdure.errors import InvalidArgument
from perdure_router.config import RouterConfig

GOOD = {"endpoints": ["ipc:///run/router"], "control": "ipc:///run/control", "epoch": 3, "parent": 77}


def test_a_configuration_survives_its_journey() -> None:
    config = RouterConfig(("ipc:///a", "tcp://127.0.0.1:*"), "ipc:///c", 3, 77, False, "DEBUG")
    assert RouterConfig.from_json(config.to_json()) == config


def test_logging_has_defaults() -> None:
    config = RouterConfig.from_json(json.dumps(GOOD))
    assert (config.log_json, config.log_level) == (True, "INFO")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": "ipc:///a"}, "endpoints"),
        ({"endpoints": [1]}, "endpoints"),
        ({"epoch": "3"}, "epoch"),
        ({"parent": True}, "parent"),
        ({"control": None}, "control"),
        ({"log_json": 1}, "log_json"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        RouterConfig.from_json(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"endpoints": ["ipc:///a"]}'])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="configuration"):
        RouterConfig.from_json(text)
