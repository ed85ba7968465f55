"""What the supervisor tells a worker survives the way through its command line."""

from __future__ import annotations

import dataclasses
import json

import pytest

from perdure_worker.config import WorkerConfig

CONFIG = WorkerConfig(
    app="ä/app.py",
    index=2,
    epoch=17,
    shard="data/shard-2",
    door="ipc://run/w2.e17",
    control="ipc://run/control",
    slots=(512, 768),
    slot_count=1024,
    engine="leveldb",
    parent=4711,
    log_json=True,
    log_level="INFO",
    dev=False,
    idle_evict_s=10.0,
    live_objects_max=200_000,
)


def test_a_config_survives_its_way_as_one_argument() -> None:
    read = WorkerConfig.from_json(CONFIG.to_json())
    assert read == CONFIG
    assert type(read.slots) is tuple
    assert len(range(*read.slots)) == 256


@pytest.mark.parametrize(
    "text",
    ["", "5", "[]", "null", "{}", '{"slots": [1, 2]}', '{"slots": 5}', CONFIG.to_json().replace("app", "pap")]
    + [json.dumps(dataclasses.asdict(CONFIG) | {"slots": slots}) for slots in ([1], [1, 2, 3], None, 5)],
)
def test_anything_else_is_a_type_error_or_value_error(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        WorkerConfig.from_json(text)
