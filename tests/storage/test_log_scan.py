"""The scanner of LevelDB logs says of damaged copies what LevelDB itself says when it opens them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import plyvel
import pytest

from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.log_scan import LogReport, scan_log

COMMITS = 12
SIZES = [10, 3_000, 40_000, 100, 7, 500, 32_000, 1, 90, 20, 5_000, 60]

Damage = Callable[[bytes, random.Random], bytes]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twelve commits of mixed sizes, all of them in its log."""
    path = tmp_path_factory.mktemp("log") / "db"
    engine = LevelDBEngine(path, create=True)
    for number, size in enumerate(SIZES):
        batch = engine.new_batch()
        batch.put(b"%02d" % number, bytes([number + 1]) * size)
        engine.write(batch)
    engine.close()
    return path


def log_of(path: Path) -> Path:
    (log,) = path.glob("*.log")
    return log


def opened(path: Path, content: bytes, copy: Path) -> int | None:
    """How many commits a store with this log has; None when it is refused."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(path, copy)
    log_of(copy).write_bytes(content)
    try:
        engine = LevelDBEngine(copy)
    except plyvel.CorruptionError:
        return None
    with engine.scan(b"", b"\xff") as rows:
        count = len(list(rows))
    engine.close()
    return count


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


DAMAGES: dict[str, Damage] = {
    "none": lambda content, _: content,
    "truncated": lambda content, chance: content[: chance.randrange(len(content))],
    "a few bytes short": lambda content, chance: content[: -chance.randint(1, 90)],
    "zeros behind": lambda content, chance: content + bytes(chance.randint(1, 70_000)),
    "garbage behind": lambda content, chance: content + chance.randbytes(chance.randint(7, 600)),
    "one bit": lambda content, chance: flipped(content, chance.randrange(len(content))),
    "one bit of the last commit": lambda content, chance: flipped(content, -chance.randint(2, 60)),
    "its last bytes zeroed": lambda content, chance: content[: -(n := chance.randint(1, 50))] + bytes(n),
}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_scanner_and_leveldb_agree_on_what_is_damaged_and_what_can_be_read(
    store: Path, tmp_path: Path, damage: str, seed: int
) -> None:
    content = DAMAGES[damage](log_of(store).read_bytes(), random.Random(seed))
    report = scan_log(content)
    found = opened(store, content, tmp_path / "copy")
    assert report.damaged == (found is None)
    if found is not None:
        assert report.batches == found
    assert opened(store, content[: report.end], tmp_path / "cut") == report.batches


def test_a_whole_log_is_read_to_its_end(store: Path) -> None:
    content = log_of(store).read_bytes()
    assert scan_log(content) == LogReport(COMMITS, len(content), damaged=False, batches_behind=0)
    assert scan_log(b"") == LogReport(0, 0, damaged=False, batches_behind=0)


def test_damage_before_readable_commits_is_told_from_a_torn_end(store: Path) -> None:
    content = log_of(store).read_bytes()
    last = scan_log(content[:-1]).end  # where the last commit begins
    torn = scan_log(flipped(content, last + 20))
    assert (torn.batches, torn.end, torn.damaged, torn.batches_behind) == (COMMITS - 1, last, True, 0)
    middle = scan_log(flipped(content, 5))
    assert (middle.batches, middle.damaged) == (0, True)
    assert middle.batches_behind >= COMMITS // 2
