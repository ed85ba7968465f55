"""What an object sees of its durable sends: values that say all there is, and cannot be changed."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from perdure.ids import ObjectId
from perdure.outbox import OutboxMessage


def test_a_message_is_a_value() -> None:
    message = OutboxMessage(
        id="00",
        namespace="Account",
        target=ObjectId(b"k" * 32, "bob"),
        method="receive",
        args=[5],
        kwargs={},
        sent_at=datetime(2026, 1, 1, tzinfo=UTC),
        due_at=None,
        attempts=0,
        error=None,
        dead=False,
    )
    assert message == dataclasses.replace(message)
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.dead = True  # type: ignore[misc]
