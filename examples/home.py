"""A smart home: one object for each device, one for the house.  `pages/home.html` plays the devices.

Run it with `perdure run examples/home.py` and open http://127.0.0.1:8080/.

A device reports what it measures; who has not reported for a while is offline, which its alarm notices also
when nothing else happens.  Reports reach the house as durable sends: in order, each once, whether or not the
house's worker is up at that moment.  The house applies its rules and sends commands back the same way.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypedDict

from perdure import Alarm, DurableObject, Request, Response, durable, public, register_exception
from perdure.websocket import WebSocket
from serving import site

OFFLINE_AFTER_S = 8.0
RULES_MAX = 50

_TESTS: Mapping[str, Callable[[float, float], bool]] = {"below": operator.lt, "above": operator.gt}


class Rule(TypedDict):
    """When `device` measures `what` below or above `limit`, `target` is set to `value`."""

    device: str
    what: str
    test: str
    limit: float
    target: str
    value: float


@register_exception
class HomeError(Exception):
    """The house cannot do that."""


class Device(DurableObject):
    """One device: a sensor, a lamp, a heater.  Its name is ``house/device``."""

    readings: dict[str, float] = durable(default_factory=dict)
    wanted: dict[str, float] = durable(default_factory=dict)
    """What it is told to be, until it reports just that."""
    online: bool = durable(False)

    @public
    def report(self, readings: dict[str, float]) -> dict[str, float]:
        """What the device measures now; gives what it shall do."""
        name = str(self.id.name)
        changed = readings != self.readings or not self.online
        self.readings, self.online = readings, True
        self.wanted = {what: value for what, value in self.wanted.items() if readings.get(what) != value}
        self.storage.set_alarm(timedelta(seconds=OFFLINE_AFTER_S), name="silent")
        if changed:
            house, _, device = name.partition("/")
            self.ctx.send(House, house).device_changed(device, readings, True)
        return self.wanted

    def command(self, what: str, value: float) -> None:
        """The device does it with its next report."""
        self.wanted[what] = value

    def alarm(self, alarm: Alarm) -> None:
        self.online = False
        house, _, device = str(self.id.name).partition("/")
        self.ctx.send(House, house).device_changed(device, self.readings, False)


class House(DurableObject):
    """What the whole house knows, and its rules."""

    devices: dict[str, dict[str, Any]] = durable(default_factory=dict)
    rules: list[Rule] = durable(default_factory=list)

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("a house has a WebSocket at /socket\n", 404)
        return self.ctx.accept_websocket(request)

    def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        ws.send_json(self._all())  # whatever a page says, it wants to see everything

    @public
    def add_rule(self, rule: Rule) -> None:
        """One more rule, which applies from the next report on."""
        if rule["test"] not in _TESTS or len(self.rules) >= RULES_MAX:
            raise HomeError(f"a rule tests 'below' or 'above', and a house has up to {RULES_MAX} of them")
        self.rules.append(rule)
        self._show()

    @public
    def remove_rule(self, number: int) -> None:
        """Takes out the rule with that number, counted from 0."""
        if not 0 <= number < len(self.rules):
            raise HomeError("there is no such rule")
        del self.rules[number]
        self._show()

    @public
    def set(self, device: str, what: str, value: float) -> None:
        """Tells a device what to be."""
        if device not in self.devices:
            raise HomeError(f"no device {device!r} has reported yet")
        self.ctx.send(Device, f"{self.id.name}/{device}").command(what, value)

    def device_changed(self, device: str, readings: dict[str, float], online: bool) -> None:
        """A device has reported, or has fallen silent."""
        self.devices[device] = {"readings": readings, "online": online}
        for rule in self.rules if online else ():
            value = readings.get(rule["what"])
            if rule["device"] == device and value is not None and _TESTS[rule["test"]](value, rule["limit"]):
                target = self.devices.get(rule["target"])
                if target is None or target["readings"].get("on") != rule["value"]:
                    self.ctx.send(Device, f"{self.id.name}/{rule['target']}").command("on", rule["value"])
        self._show()

    def _all(self) -> dict[str, Any]:
        return {"devices": self.devices, "rules": self.rules}

    def _show(self) -> None:
        text = json.dumps(self._all())
        for ws in self.ctx.websockets():
            ws.send(text)


app = site("home", Device, House)
