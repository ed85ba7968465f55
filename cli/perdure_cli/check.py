"""`perdure check`: reads everything that a stopped data directory holds and says what is wrong with it.

Runs in a process of its own under the data directory's lock, so never beside a supervisor. Guarantees to
repair nothing and to make nothing; opening a store does what every start does, it replays its log.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perdure.errors import StorageError
from perdure_cli.datadir import DataDirectory
from perdure_cli.errors import CannotRun
from perdure_cli.state import ClusterState

__all__ = ["check"]


def check(data: Path, say: Callable[[str], None]) -> bool:
    """Whether the data directory is whole; `say` gets the report, line by line.

    Raises `CannotRun` when there is nothing to check, a process uses it, or a start must be repeated
    first; OSError when files cannot be read.
    """
    if not (data / "state.json").exists():
        raise CannotRun(f"{data} is no data directory of Perdure: it has no state.json")
    with DataDirectory.open(data, "perdure check") as directory:
        state = directory.read_state()
        if state is None or state.engine == "memory":
            say("nothing is stored: the engine is memory")
            return True
        if directory.reshard_journal.exists():
            raise CannotRun("a change of the number of workers is unfinished: run `perdure run` once, first")
        # All of them, also when the first one is damaged.
        whole = [_check_shard(directory, state, shard, say) for shard in range(state.workers)]
    return all(whole)


def _check_shard(
    directory: DataDirectory, state: ClusterState, shard: int, say: Callable[[str], None]
) -> bool:
    # Late: LevelDB is imported where a store is touched only.
    from perdure_storage.shard import open_offline
    from perdure_storage.verify import check_rows

    path = directory.shard_path(shard)
    if shard in state.unprovisioned:
        say(f"{path.name}: not made yet")
        return True
    try:
        engine = open_offline(path)
    except StorageError as error:
        say(f"{path.name}: {error}")
        _explain_logs(path, say)
        return False
    try:
        report = check_rows(engine, state.ranges[shard], state.slot_count)
    finally:
        engine.close()
    for problem in report.problems:
        say(f"{path.name}: {problem}")
    if report.problem_count > len(report.problems):
        say(f"{path.name}: and {report.problem_count - len(report.problems)} more")
    verdict = "damaged, restore it from a backup" if report.problem_count else "whole"
    say(f"{path.name}: {report.objects} objects, {report.rows} rows: {verdict}")
    return report.problem_count == 0


def _explain_logs(path: Path, say: Callable[[str], None]) -> None:
    """Says of each log of a store that does not open where it is damaged, and what that means."""
    from perdure_storage.log_scan import scan_log

    for log in sorted(path.glob("*.log")):
        report = scan_log(log.read_bytes())
        where = f"{path.name}/{log.name}: {report.batches} commits can be read, up to byte {report.end}"
        if not report.damaged:
            say(f"{where}; the log is not damaged")
        elif report.batches_behind:
            say(
                f"{where}; then damage, with {report.batches_behind} commits behind it that were acknowledged"
            )
        else:
            say(
                f"{where}; then a damaged end. A loss of power tears a write that was never acknowledged "
                "like that; a disk that damaged the last commit looks the same. To go on without it: copy "
                f"the directory, then truncate the log to {report.end} bytes"
            )
