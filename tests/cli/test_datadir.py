"""The data directory: one owner, a state file that survives any crash, sockets where others cannot reach."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from perdure_cli import datadir
from perdure_cli.datadir import SOCKET_PATH_BYTES_MAX, DataDirectory
from perdure_cli.errors import AlreadyRunning, CannotRun, StateDamaged, UnsafeDirectory
from perdure_cli.state import first_state

from .cluster import PACKAGES

STATE = first_state("leveldb", 1_024, 2)


def opened(path: Path) -> DataDirectory:
    return DataDirectory.open(path, "perdure run app.py")


# --- the lock


def test_a_missing_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "deep" / "data") as directory:
        assert directory.path.stat().st_mode & 0o777 == 0o700
        assert (directory.path / "lock").stat().st_mode & 0o777 == 0o600


def test_who_comes_second_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(AlreadyRunning) as raised:
        opened(tmp_path)
    assert (raised.value.pid, raised.value.command) == (os.getpid(), "perdure run app.py")


def test_a_holder_that_has_not_written_its_name_yet_still_holds(tmp_path: Path) -> None:
    with opened(tmp_path):
        os.truncate(tmp_path / "lock", 0)
        with pytest.raises(AlreadyRunning) as raised:
            opened(tmp_path)
    assert raised.value.pid is None


def test_the_lock_is_free_again_after_close(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path).close()


@pytest.mark.processes
def test_the_lock_goes_with_a_killed_holder_whose_name_stays_behind(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from perdure_cli.datadir import DataDirectory\n"
        "held = DataDirectory.open(Path(sys.argv[1]), 'the holder'); print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning) as raised:
            opened(tmp_path)
        assert (raised.value.pid, raised.value.command) == (holder.pid, "the holder")
        holder.kill()
        holder.wait()
    assert "the holder" in (tmp_path / "lock").read_text()
    opened(tmp_path).close()


def test_children_do_not_inherit_the_lock(tmp_path: Path) -> None:
    with opened(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        opened(tmp_path).close()
    finally:
        child.kill()
        child.wait()


# --- what is refused


def make_file(path: Path) -> None:
    path.write_text("")


def make_open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "problem"), [(make_file, "not a directory"), (make_open_to_all, "every user")]
)
def test_a_data_directory_that_others_could_write_to_is_refused(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    make(tmp_path / "data")
    with pytest.raises(UnsafeDirectory, match=problem):
        opened(tmp_path / "data")


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "_file_system", lambda path: "nfs4")
    with pytest.raises(UnsafeDirectory, match="network file system"):
        opened(tmp_path)


def test_the_file_system_of_a_path_is_that_of_its_innermost_mount() -> None:
    assert datadir._file_system(Path("/proc/self")) == "proc"
    assert datadir._file_system(Path("/")) != "proc"


def link(run: Path) -> None:
    (run.parent / "elsewhere").mkdir()
    run.symlink_to(run.parent / "elsewhere")


def group_may_enter(run: Path) -> None:
    run.mkdir()
    run.chmod(0o750)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (link, "symbolic link"),
        (make_file, "no directory"),
        (make_open_to_all, "chmod"),
        (group_may_enter, "chmod"),
    ],
)
def test_a_run_directory_that_others_could_enter_or_replace_is_refused(
    tmp_path: Path, make: Callable[[Path], None], problem: str
) -> None:
    with opened(tmp_path) as directory:
        make(tmp_path / "run")
        with pytest.raises(UnsafeDirectory, match=problem):
            directory.make_run_directory()


def test_a_run_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as directory:
        directory.make_run_directory()
        somebody_else = os.geteuid() + 1
        monkeypatch.setattr(datadir.os, "geteuid", lambda: somebody_else)
        with pytest.raises(UnsafeDirectory, match="belongs to user"):
            directory.make_run_directory()


# --- the state file


def test_a_written_state_is_read_back(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        assert directory.read_state() is None
        for version in range(3):
            directory.write_state(replace(STATE, map_version=version))
        assert directory.read_state() == replace(STATE, map_version=2)


@pytest.mark.parametrize("torn", [b"", b"{", b"\x00" * 400])
def test_a_draft_that_a_crash_left_behind_is_no_state(tmp_path: Path, torn: bytes) -> None:
    with opened(tmp_path) as directory:
        directory.write_state(STATE)
        (tmp_path / "state.json.tmp").write_bytes(torn)
        assert directory.read_state() == STATE
        directory.write_state(replace(STATE, map_version=5))
        assert directory.read_state() == replace(STATE, map_version=5)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00"])
def test_a_damaged_state_is_an_error_and_no_new_beginning(tmp_path: Path, damage: bytes) -> None:
    with opened(tmp_path) as directory:
        (tmp_path / "state.json").write_bytes(damage)
        with pytest.raises(StateDamaged):
            directory.read_state()


def test_a_lost_state_beside_shards_is_an_error_and_no_new_beginning(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        (tmp_path / "shard-0000.provisioned").touch()
        with pytest.raises(StateDamaged, match="shard-0000"):
            directory.read_state()


@pytest.mark.processes
def test_the_state_is_synced_then_renamed_then_the_directory_is_synced(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from perdure_cli.datadir import DataDirectory\n"
        "from perdure_cli.state import first_state\n"
        "with DataDirectory.open(Path(sys.argv[1]), '') as d: d.write_state(first_state('memory', 8, 1))"
    )
    trace = tmp_path / "trace"
    data = tmp_path / "data"
    subprocess.run(
        [
            *("strace", "-y", "-o", trace, "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"),
            *(sys.executable, "-c", script, str(data)),
        ],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)},
    )
    calls = [line for line in trace.read_text().splitlines() if str(data) in line]
    assert len(calls) >= 3
    synced, renamed, entered = calls[-3:]
    assert "sync(" in synced
    assert "state.json.tmp>" in synced
    assert "rename" in renamed
    assert "fsync(" in entered
    assert f"<{data}>" in entered


def test_a_state_that_may_not_be_on_disk_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        directory.write_state(STATE)
        (tmp_path / "state.json.tmp").mkdir()
        with pytest.raises(OSError, match="directory"):
            directory.write_state(replace(STATE, map_version=9))
        assert directory.read_state() == STATE


# --- run directory and endpoint


def deep(short_path: Path, length: int) -> Path:
    path = short_path
    while len(str(path)) < length:
        path = path / ("d" * min(50, length - len(str(path)) - 1))
    return path


def test_sockets_live_in_the_data_directory_and_old_ones_are_swept_away(short_path: Path) -> None:
    with opened(short_path) as directory:
        run = directory.make_run_directory()
        assert run == short_path / "run"
        assert run.stat().st_mode & 0o777 == 0o700
        (run / "w0.e3").touch()
        assert list(directory.make_run_directory().iterdir()) == []


def test_a_path_too_long_for_sockets_moves_them_to_a_private_directory_elsewhere(short_path: Path) -> None:
    data = deep(short_path, 120)
    with opened(data) as directory:
        run = directory.make_run_directory()
        assert not run.is_relative_to(data)
        assert run.stat().st_mode & 0o777 == 0o700
        assert len(os.fsencode(run / "w1023.e999999999999")) <= SOCKET_PATH_BYTES_MAX
        (run / "router").touch()
    assert not run.exists()
    with opened(data) as directory:
        assert directory.make_run_directory() == run, "clients that outlive a restart find the router again"


def test_a_path_that_is_not_utf_8_is_refused_and_nothing_is_made(short_path: Path) -> None:
    data = Path(os.fsdecode(os.fsencode(short_path) + b"/caf\xe9"))
    with pytest.raises(CannotRun, match="not UTF-8"):
        DataDirectory.open(data, "test")
    assert not data.exists()


def test_a_command_that_is_not_utf_8_is_told_all_the_same(short_path: Path) -> None:
    with DataDirectory.open(short_path, "run caf\udce9.py"), pytest.raises(AlreadyRunning, match="caf"):
        DataDirectory.open(short_path, "another")


def test_the_sessions_own_directory_goes_before_the_temporary_one(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = short_path / "session"
    session.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    data = deep(short_path, 120)
    with opened(data) as directory:
        assert directory.make_run_directory().parent == session
    session.chmod(0o755)
    with opened(data) as directory:
        assert directory.make_run_directory().parent != session, "others could look into it"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path / "gone"))
    with opened(data) as directory:
        assert directory.make_run_directory().parent in (Path(tempfile.gettempdir()), Path("/tmp"))


def test_the_longest_path_that_fits_is_used(short_path: Path) -> None:
    name = len("/run/w1023.e999999999999")
    with opened(deep(short_path, SOCKET_PATH_BYTES_MAX - name)) as directory:
        assert directory.make_run_directory() == directory.path / "run"
    with opened(deep(short_path, SOCKET_PATH_BYTES_MAX - name + 1)) as directory:
        assert directory.make_run_directory() != directory.path / "run"


def test_a_name_elsewhere_that_somebody_took_before_us_is_not_used(short_path: Path) -> None:
    with opened(deep(short_path, 120)) as directory:
        taken = directory.make_run_directory()
    taken.symlink_to(short_path)
    try:
        with opened(directory.path) as directory:
            run = directory.make_run_directory()
            assert run != taken
            assert run.stat().st_mode & 0o777 == 0o700
            assert not run.is_symlink()
    finally:
        taken.unlink()
    assert not run.exists()


def test_no_place_for_sockets_at_all_is_said(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datadir, "SOCKET_PATH_BYTES_MAX", 10)
    with opened(short_path) as directory, pytest.raises(CannotRun, match="too long for sockets"):
        directory.make_run_directory()


def test_the_endpoint_stands_in_its_file_until_close(short_path: Path) -> None:
    with opened(short_path) as directory:
        directory.write_endpoint("ipc:///somewhere/router")
        assert (short_path / "endpoint").read_text() == "ipc:///somewhere/router\n"
    assert not (short_path / "endpoint").exists()


def test_the_gateways_address_stands_in_its_file_until_close(short_path: Path) -> None:
    with opened(short_path) as directory:
        directory.write_http("http://127.0.0.1:8080")
        assert (short_path / "http").read_text() == "http://127.0.0.1:8080\n"
        directory.write_http("")
        assert not (short_path / "http").exists(), "what an earlier run left behind"
        directory.write_http("http://127.0.0.1:8080")
    assert not (short_path / "http").exists()
