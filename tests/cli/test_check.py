"""`perdure check` on data directories that are whole, damaged, in use or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from perdure.codec import encode
from perdure.ids import id_from_name, slot_of
from perdure.slotmap import contiguous_ranges
from perdure_cli.commands import main
from perdure_cli.datadir import DataDirectory
from perdure_cli.shards import prepare_shards
from perdure_storage import keys
from perdure_storage.commit import InlineCommitter
from perdure_storage.records import seal
from perdure_storage.shard import open_offline, open_shard

SLOTS = 64
NAME = next(name for name in "abcdefgh" if slot_of(id_from_name("Room", name).key, SLOTS) < SLOTS // 2)
OBJECT_ID = id_from_name("Room", NAME).key
PREFIX = keys.object_prefix(slot_of(OBJECT_ID, SLOTS), "Room", OBJECT_ID)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory of two shards; the first holds one object, written in five commits."""
    path = tmp_path / "data"
    with DataDirectory.open(path, "test") as directory:
        state = prepare_shards(directory, "leveldb", 2, SLOTS)
        assert state.ranges == tuple(contiguous_ranges(SLOTS, 2))
        engine = open_shard(directory.shard_path(0), epoch=1)
    committer = InlineCommitter(engine, on_durable=lambda group: None, group_bytes_max=1 << 20)
    index = keys.names_key("Room", NAME, OBJECT_ID)
    rows = {PREFIX + keys.META: encode({"name": NAME}), index: keys.names_value(PREFIX[2], OBJECT_ID)}
    for number in range(5):
        rows[PREFIX + keys.VALUE + b"%d" % number] = bytes(1_000)
        for key, payload in rows.items():
            committer.put(key, seal(key, payload))
        committer.flush()
    committer.close()
    return path


def run(data: Path) -> Result:
    return CliRunner().invoke(main, ["check", "--data", str(data)])


def the_log(data: Path) -> Path:
    (log,) = (data / "shard-0000").glob("*.log")
    return log


def test_a_whole_directory_is_told_so_and_stays_as_it_is(data: Path) -> None:
    for _ in range(2):
        result = run(data)
        assert result.exit_code == 0, result.output
        assert "shard-0000: 1 objects, 10 rows: whole" in result.output
        assert "shard-0001: 0 objects, 2 rows: whole" in result.output


def test_a_damaged_row_is_told_and_the_other_shards_are_checked_too(data: Path) -> None:
    engine = open_offline(data / "shard-0000")
    batch = engine.new_batch()
    batch.put(PREFIX + keys.VALUE + b"2", b"\x01no record")
    engine.write(batch)
    engine.close()
    result = run(data)
    assert result.exit_code == 1
    assert "does not match its checksum" in result.output
    assert "shard-0000: 1 objects, 10 rows: damaged" in result.output
    assert "shard-0001: 0 objects, 2 rows: whole" in result.output


def test_a_torn_end_of_a_log_is_told_with_what_can_be_done_about_it(data: Path) -> None:
    log = the_log(data)
    content = log.read_bytes()
    log.write_bytes(content[:-40] + bytes(40))
    (data / "shard-0000.sequence").unlink()  # as after a loss of power: the last commit was not told of
    result = run(data)
    assert result.exit_code == 1
    assert "a damaged end" in result.output
    (size,) = (
        int(line.split("log to ")[1].split()[0]) for line in result.output.splitlines() if "log to" in line
    )
    log.write_bytes(content[:size])
    assert run(data).exit_code == 0
    engine = open_offline(data / "shard-0000")
    assert [engine.get(PREFIX + keys.VALUE + b"%d" % number) is not None for number in (3, 4)] == [
        True,
        False,
    ]
    engine.close()


def test_damage_with_commits_behind_it_is_told_apart(data: Path) -> None:
    log = the_log(data)
    content = bytearray(log.read_bytes())
    content[100] ^= 1
    log.write_bytes(content)
    result = run(data)
    assert result.exit_code == 1
    assert "commits behind it that were acknowledged" in result.output
    assert "truncate" not in result.output


def test_a_lost_log_is_told(data: Path) -> None:
    the_log(data).unlink()
    result = run(data)
    assert result.exit_code == 1
    assert "commit 5 was in it" in result.output


def test_a_directory_in_use_is_not_checked(data: Path) -> None:
    with DataDirectory.open(data, "perdure run"):
        result = run(data)
    assert result.exit_code == 3
    assert "is in use" in result.output


@pytest.mark.parametrize("made", [False, True])
def test_what_is_no_data_directory_is_an_error_and_stays_none(tmp_path: Path, made: bool) -> None:
    path = tmp_path / "other"
    if made:
        path.mkdir()
    result = run(path)
    assert result.exit_code == 5
    assert "no data directory" in result.output
    assert path.exists() == made


def test_an_unfinished_change_of_workers_is_to_be_finished_first(data: Path) -> None:
    (data / "reshard.json").write_text("{}")
    result = run(data)
    assert result.exit_code == 5
    assert "run `perdure run` once" in result.output


def test_a_directory_of_the_memory_engine_has_nothing_to_check(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path / "data", "test") as directory:
        prepare_shards(directory, "memory", 2, SLOTS)
    result = run(tmp_path / "data")
    assert (result.exit_code, "nothing is stored" in result.output) == (0, True)
