"""The mirrored commit sequence: it tells of a lost end of the log, and never of one that is there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure_storage.commit import InlineCommitter, read_sequence
from perdure_storage.errors import ShardDamaged
from perdure_storage.keys import SEQUENCE_KEY, VALUE, object_prefix
from perdure_storage.records import seal_number
from perdure_storage.sequence_mirror import (
    MIRROR_INTERVAL_S,
    SequenceMirror,
    mirror_path,
    read_mirror,
)
from perdure_storage.shard import marker_path, open_offline, open_shard, provision

PREFIX = object_prefix(3, "Room", bytes(32)) + VALUE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "data" / "shard-0000"
    provision(where)
    return where


def commit(path: Path, commits: int, *, epoch: int = 1) -> None:
    """A worker commits, and ends in order."""
    engine = open_shard(path, epoch=epoch)
    committer = InlineCommitter(engine, on_durable=lambda group: None, group_bytes_max=1 << 20)
    for number in range(commits):
        committer.put(PREFIX + b"%d" % number, bytes(100))
        committer.flush()
    committer.close()


def only_log(path: Path) -> Path:
    (log,) = path.glob("*.log")
    return log


def last_record_cut(log: Path) -> None:
    content = log.read_bytes()
    log.write_bytes(content[: len(content) - 60])


@pytest.mark.parametrize("loss", [Path.unlink, last_record_cut])
@pytest.mark.parametrize("opening", [open_offline, lambda path: open_shard(path, epoch=2)])
def test_a_store_that_lost_the_end_of_its_log_is_refused_and_left_alone(
    path: Path, loss: Callable[[Path], None], opening: Callable[[Path], object]
) -> None:
    commit(path, 5)
    loss(only_log(path))
    for _ in range(2):
        with pytest.raises(ShardDamaged, match="but commit 5 was in it"):
            opening(path)


def test_a_store_that_lost_nothing_opens_however_often_it_was_stopped(path: Path) -> None:
    for epoch in range(1, 6):
        commit(path, 3, epoch=epoch)
        assert read_mirror(path) == 3 * epoch
    engine = open_offline(path)
    assert read_sequence(engine) == 15
    engine.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from perdure_storage.commit import InlineCommitter
from perdure_storage.shard import open_shard
engine = open_shard(Path(sys.argv[1]), epoch=int(sys.argv[2]))
committer = InlineCommitter(engine, on_durable=lambda group: None, group_bytes_max=1 << 20)
for number in range(int(sys.argv[3])):
    committer.put(b"\\x01%d" % number, bytes(100))
    committer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_worker_leaves_a_bound_that_its_store_meets(path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for epoch in range(1, 4):
        command = [sys.executable, "-c", KILLED, str(path), str(epoch), str(epoch * 7)]
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
        mirrored = read_mirror(path)
        assert mirrored is not None
        engine = open_offline(path)
        assert 0 < mirrored <= read_sequence(engine)
        engine.close()


@pytest.mark.parametrize("content", [None, b"", bytes(13), seal_number(SEQUENCE_KEY, 99)[:-1], b"\xff" * 40])
def test_a_mirror_that_is_missing_or_torn_says_nothing(path: Path, content: bytes | None) -> None:
    commit(path, 5)
    if content is None:
        mirror_path(path).unlink()
    else:
        mirror_path(path).write_bytes(content)
    assert read_mirror(path) is None
    commit(path, 1, epoch=2)
    assert read_mirror(path) == 6


def test_an_older_backup_opens_when_the_younger_mirror_is_removed(path: Path, tmp_path: Path) -> None:
    commit(path, 3)
    shutil.copytree(path, tmp_path / "backup")
    commit(path, 3, epoch=2)
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "backup", path)
    with pytest.raises(ShardDamaged, match=r"remove shard-0000\.sequence"):
        open_shard(path, epoch=3)
    mirror_path(path).unlink()
    open_shard(path, epoch=3).close()


def test_a_new_store_is_not_held_to_the_mirror_of_a_former_one(path: Path) -> None:
    commit(path, 5)
    shutil.rmtree(path)
    marker_path(path).unlink()
    provision(path)
    open_shard(path, epoch=1).close()


def test_commits_are_mirrored_at_most_once_in_an_interval_and_at_the_end(path: Path) -> None:
    now = [100.0]
    sequence = [0]

    def read(key: bytes) -> bytes:
        return seal_number(key, sequence[0])

    mirror = SequenceMirror(path, clock=lambda: now[0])
    seen = []
    for pause in (0.0, MIRROR_INTERVAL_S / 2, MIRROR_INTERVAL_S, 0.0, MIRROR_INTERVAL_S):
        now[0] += pause
        sequence[0] += 1
        mirror.note(read)
        seen.append(read_mirror(path))
    assert seen == [1, 1, 3, 3, 5]
    sequence[0] = 6
    mirror.close(read)
    assert read_mirror(path) == 6


def test_a_mirror_that_cannot_be_written_stops_no_commit(path: Path) -> None:
    mirror_path(path).mkdir()
    commit(path, 3)
    engine = open_offline(path)
    assert read_sequence(engine) == 3
    engine.close()
