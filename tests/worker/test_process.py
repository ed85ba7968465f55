"""What of the worker's shell can be seen without sockets: why a worker that cannot serve has ended.

Everything else of it is tested with real processes, in tests/processes.
"""

from __future__ import annotations

import dataclasses
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import lifeline, logs
from perdure.exits import WorkerExit
from perdure_storage.errors import DamagedRecord, NewerFormat, ShardDamaged, ShardLocked, StaleEpoch
from perdure_worker import process
from perdure_worker.config import WorkerConfig

PATH = Path("shard-0")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerConfig:
    """A worker's config; what `main` does to its process is kept away from the tests' own."""
    monkeypatch.setattr(lifeline, "end_with", lambda parent: None)
    monkeypatch.setattr(logs, "setup", lambda *_, **__: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    app = tmp_path / "application_of_a_worker.py"
    app.write_text("from perdure import DurableObject\n\nclass Counter(DurableObject): ...\n")
    return WorkerConfig(
        app=str(app),
        index=0,
        epoch=3,
        shard=str(tmp_path / "shard-0"),
        door=f"ipc://{tmp_path}/w0.e3",
        control="",
        slots=(0, 8),
        slot_count=8,
        engine="leveldb",
        parent=1,
        log_json=False,
        log_level="INFO",
        dev=False,
        idle_evict_s=10.0,
        live_objects_max=100,
    )


def test_an_application_that_cannot_be_loaded_ends_the_worker_with_a_code_of_its_own(
    config: WorkerConfig,
) -> None:
    wrong = dataclasses.replace(config, app="nowhere/app.py")
    assert process.main(wrong.to_json()) is WorkerExit.APP_NOT_LOADED


def test_of_several_workers_that_meet_one_error_of_the_application_one_says_it(
    config: WorkerConfig, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        wrong = dataclasses.replace(config, index=index, app="nowhere/app.py")
        assert process.main(wrong.to_json()) is WorkerExit.APP_NOT_LOADED
    assert [record.levelname for record in caplog.records if "nowhere" in record.getMessage()] == ["ERROR"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (lambda: StaleEpoch("a later one was here"), WorkerExit.STALE_EPOCH),
        (lambda: NewerFormat("of the future"), WorkerExit.NEWER_FORMAT),
        (lambda: ShardLocked("held", path=PATH), WorkerExit.SHARD_LOCKED),
        (lambda: ShardDamaged("torn", path=PATH), WorkerExit.SHARD_DAMAGED),
        (lambda: DamagedRecord("torn"), WorkerExit.SHARD_DAMAGED),
        (lambda: PermissionError("not mine"), WorkerExit.STORE_UNAVAILABLE),
        (lambda: RuntimeError("odd"), WorkerExit.STORE_UNAVAILABLE),
    ],
)
def test_a_store_that_cannot_be_opened_ends_the_worker_with_a_code_that_says_why(
    config: WorkerConfig, monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error()

    monkeypatch.setattr(process, "open_shard", refuse)
    assert process.main(config.to_json()) is code


def test_a_store_that_was_never_made_ends_the_worker_without_making_one(config: WorkerConfig) -> None:
    assert process.main(config.to_json()) == WorkerExit.SHARD_DAMAGED
    assert not Path(config.shard).exists()
