"""Whatever happens, each message takes effect once and in the order of its pair.

Sends, outcomes, lost answers, commits, crashes of either side, pauses and tight memory in any order; the
targets keep records as workers do: what is below the highest floor that they were told is forgotten.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure.errors import OutcomeUnknown, ShardUnavailable
from perdure_worker.messages import DELAYED
from worker.outbox_scene import Flight, OutboxScene

TIGHT = {"send_pairs_max": 3, "sends_per_pair_loaded_max": 2, "sends_loaded_max": 5, "sends_in_flight_max": 3}
PAIRS = st.sampled_from([("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("b", "z")])


class Deliveries(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.scene = OutboxScene(**TIGHT)
        self.sequence = 0
        self.sent: dict[tuple[str, str], list[str]] = {}
        self.delayed: set[str] = set()
        self.effects: dict[tuple[str, str], list[str]] = {}
        self.records: dict[tuple[bytes, bytes], set[int]] = {}
        self.floors: dict[tuple[bytes, bytes], int] = {}

    @rule(pair=PAIRS)
    def send(self, pair: tuple[str, str]) -> None:
        self.sequence += 1
        what = f"{pair[0]}{pair[1]}{self.sequence}"
        self.sent.setdefault(pair, []).append(what)
        self.scene.send(*pair, what, self.sequence)

    @rule(pair=PAIRS)
    def wake_a_delayed_one(self, pair: tuple[str, str]) -> None:
        self.sequence += 1
        what = f"{pair[0]}{pair[1]}{self.sequence}"
        self.delayed.add(what)
        self.scene.wake(self.scene.store(*pair, what, self.sequence, at_ms=500))

    def _reaches_its_target(self, flight: Flight) -> None:
        message = flight.message
        window = (message.key, message.client)
        self.floors[window] = max(self.floors.get(window, 0), flight.floor)
        assert message.sequence >= self.floors[window], "the target has forgotten whether it had this one"
        records = self.records.setdefault(window, set())
        if message.sequence not in records:
            records.add(message.sequence)
            self.effects.setdefault((flight.what[0], flight.what[1]), []).append(flight.what)
        self.records[window] = {number for number in records if number >= self.floors[window]}

    @precondition(lambda self: self.scene.hands.flights)
    @rule(data=st.data(), answered=st.booleans())
    def arrive(self, data: st.DataObject, answered: bool) -> None:
        flight = data.draw(st.sampled_from(self.scene.hands.flights))
        self.scene.hands.flights.remove(flight)
        self._reaches_its_target(flight)
        flight.end(None if answered else OutcomeUnknown("lost"))

    @precondition(lambda self: self.scene.hands.flights)
    @rule(data=st.data())
    def get_lost(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from(self.scene.hands.flights))
        self.scene.hands.flights.remove(flight)
        flight.end(ShardUnavailable("down"))

    @rule(pair=PAIRS)
    def send_two_and_let_everything_arrive(self, pair: tuple[str, str]) -> None:
        self.send(pair)
        self.send(pair)
        for flight in list(self.scene.hands.flights):
            self.scene.hands.flights.remove(flight)
            self._reaches_its_target(flight)
            flight.end()

    @rule(seconds=st.sampled_from([0.0, 0.3, 20.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.scene.tick(seconds)

    @rule()
    def commit(self) -> None:
        self.scene.hands.commit()

    @rule(arriving=st.integers(0, 2))
    def crash(self, arriving: int) -> None:
        flights = self.scene.hands.flights
        for flight in flights[:arriving]:  # on their way when the sender died
            self._reaches_its_target(flight)
        self.scene = self.scene.restarted()

    @rule(name=st.sampled_from("xyz"))
    def a_target_goes_down_or_comes_back(self, name: str) -> None:
        self.scene.hands.down ^= {name.encode().ljust(32, b".")}

    @invariant()
    def effects_are_in_order_and_happen_once(self) -> None:
        for pair, effects in self.effects.items():
            assert len(effects) == len(set(effects))
            ordered = [what for what in effects if what not in self.delayed]
            assert ordered == self.sent.get(pair, [])[: len(ordered)]

    @invariant()
    def one_of_each_pair_is_on_its_way(self) -> None:
        pairs = [flight.message.pair for flight in self.scene.hands.flights]
        assert len(pairs) == len(set(pairs)) <= TIGHT["sends_in_flight_max"]

    def teardown(self) -> None:
        scene = self.scene
        scene.hands.down.clear()
        for _ in range(400):
            if not scene.left:
                break
            scene.tick(20.0)
            for flight in list(scene.hands.flights):
                scene.hands.flights.remove(flight)
                self._reaches_its_target(flight)
                flight.end()
            scene.hands.commit()
        assert scene.left == []
        self.effects_are_in_order_and_happen_once()
        happened = {what for effects in self.effects.values() for what in effects}
        assert happened == self.delayed.union(*self.sent.values())
        assert all(row.lane != DELAYED for row in scene.hands.rows.values())


Deliveries.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestDeliveries = Deliveries.TestCase
