"""What the gateway's process serves: the user's own front, or a gateway of their classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import DurableObject
from perdure.limits import Limits
from perdure.loader import ApplicationError
from perdure_gateway import Gateway
from perdure_gateway.config import GatewayConfig
from perdure_gateway.process import make_app

CONFIG = GatewayConfig(
    app="app.py", url="ipc:///run/router", listener=3, allow_origins=("https://a.example",)
)


class Room(DurableObject):
    async def say(self) -> str:
        return "hello"


def module(**names: object) -> ModuleType:
    made = ModuleType("app")
    vars(made).update(names)
    return made


def test_without_an_app_the_modules_classes_are_served() -> None:
    app = make_app(CONFIG, module(Room=Room, x=1), Limits())
    assert isinstance(app, Gateway)
    assert app.classes == {"Room": Room}
    assert app.serves("Room")
    assert not app.serves("Other")
    assert app.allow_origins


def test_an_app_of_the_module_is_the_front() -> None:
    async def front(scope: object, receive: object, send: object) -> None: ...

    assert make_app(replace(CONFIG, allow_origins=()), module(Room=Room, app=front), Limits()) is front


@pytest.mark.parametrize("option", [{"tokens": "/etc/tokens"}, {"allow_origins": ("https://a.example",)}])
def test_options_that_an_app_would_not_obey_are_refused(option: Any) -> None:
    """Whoever gives a token file must not find out from the log that everybody was let in."""

    async def front(scope: object, receive: object, send: object) -> None: ...

    with pytest.raises(ApplicationError, match="--http-tokens and --allow-origin do not reach"):
        make_app(replace(CONFIG, **{"allow_origins": (), **option}), module(Room=Room, app=front), Limits())


def test_an_app_that_cannot_be_called_is_told() -> None:
    with pytest.raises(ApplicationError, match="`app` is no ASGI application"):
        make_app(CONFIG, module(Room=Room, app="app"), Limits())


def test_a_module_with_nothing_to_serve_is_told() -> None:
    with pytest.raises(ApplicationError, match="no class"):
        make_app(CONFIG, module(), Limits())


def test_the_token_file_must_be_usable_at_the_start(tmp_path: Path) -> None:
    from perdure.errors import InvalidArgument

    with pytest.raises(InvalidArgument, match="cannot be read"):
        make_app(replace(CONFIG, tokens=str(tmp_path / "none")), module(Room=Room), Limits())
