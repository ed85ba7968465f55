"""`perdure run` as a person types it: what reaches the processes, and what is refused with which words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from perdure.exits import WorkerExit
from perdure_cli.commands import main, resolve_app, resolve_bind, resolve_binds, resolve_http
from perdure_cli.errors import BadOption, RunExit

from .cluster import DEADLINE_S, HERE, PACKAGES, ROOT, Cluster, free_port, wait_for

STAND_INS = str(HERE / "stand_ins")


@pytest.fixture
def app(short_path: Path) -> Path:
    """A file that could hold an application; stand-ins do not look into it."""
    path = short_path / "shop.py"
    path.touch()
    return path


# --- what reaches the processes


@pytest.mark.processes
def test_options_reach_the_router_and_the_workers(cluster: Cluster, app: Path) -> None:
    arguments = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data), "--workers", "3"]
    arguments += ["--engine", "memory", "--idle-evict", "0.5", "--live-objects-max", "10", "--dev"]
    port = free_port()
    arguments += ["--bind", f"tcp://localhost:{port}", "--log-level", "warning"]
    supervisor = cluster.launch(arguments, first_on_path=STAND_INS, wait=False)
    cluster.wait_for_entry("map", "router")
    worker = cluster.wait_for_entry("started", "worker-2")
    assert worker["argv"][1:4] == ["-P", "-m", "perdure_worker"]
    told = {
        name: worker["config"][name]
        for name in ("app", "engine", "idle_evict_s", "live_objects_max", "dev", "log_json", "log_level")
    }
    assert told == {
        "app": str(app),
        "engine": "memory",
        "idle_evict_s": 0.5,
        "live_objects_max": 10,
        "dev": True,
        "log_json": True,
        "log_level": "WARNING",
    }
    assert cluster.latest("router")["config"]["endpoints"][1] == f"tcp://127.0.0.1:{port}"
    assert cluster.stop(supervisor) == RunExit.OK


@pytest.mark.processes
def test_without_options_a_new_directory_gets_stores_and_a_line_tells_where_it_serves(
    cluster: Cluster, app: Path
) -> None:
    arguments = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data), "--no-log-json"]
    supervisor = cluster.launch(arguments, first_on_path=STAND_INS)
    workers = min(len(os.sched_getaffinity(0)), 4)
    assert cluster.said() == (
        f"ready  url=ipc://{cluster.data}/run/router workers={workers} data={cluster.data}\n"
    )
    started = [entry for entry in cluster.journal("started") if entry["child"] != "router"]
    assert [entry["config"]["engine"] for entry in started] == ["leveldb"] * workers
    assert all((Path(entry["config"]["shard"]) / "CURRENT").exists() for entry in started)
    assert cluster.stop(supervisor) == RunExit.OK


@pytest.mark.processes
def test_the_number_of_workers_stays_when_none_is_named(cluster: Cluster, app: Path) -> None:
    command = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data)]
    for options in (["--workers", "3"], []):
        supervisor = cluster.launch([*command, *options], first_on_path=STAND_INS)
        assert [line["workers"] for line in cluster.log() if line["message"] == "ready"] == [3]
        assert cluster.stop(supervisor) == RunExit.OK


@pytest.mark.processes
def test_the_script_does_the_same_without_an_installation(cluster: Cluster, app: Path) -> None:
    script = str(ROOT / "scripts" / "supervisor.py")
    arguments = [script, "run", str(app), "--data", str(cluster.data), "--engine", "memory", "--workers", "1"]
    supervisor = cluster.launch(arguments, path=[STAND_INS])
    assert len(cluster.journal("started")) == 2
    assert cluster.stop(supervisor) == RunExit.OK


@pytest.mark.processes
def test_a_second_run_on_the_same_directory_says_in_one_line_who_holds_it(
    cluster: Cluster, app: Path
) -> None:
    command = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data), "--engine", "memory"]
    first = cluster.launch(command, first_on_path=STAND_INS)
    second = cluster.launch(command, first_on_path=STAND_INS, wait=False)
    assert second.wait(DEADLINE_S) == RunExit.LOCKED
    [line] = cluster.log_text().splitlines()
    assert line.startswith(f"perdure: the data directory {cluster.data} is in use by process {first.pid} (")
    assert "perdure_cli run" in line


@pytest.mark.processes
def test_a_directory_of_another_engine_is_refused(cluster: Cluster, app: Path) -> None:
    command = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data)]
    first = cluster.launch([*command, "--engine", "memory"], first_on_path=STAND_INS)
    assert cluster.stop(first) == RunExit.OK
    second = cluster.launch(command, first_on_path=STAND_INS, wait=False)
    assert second.wait(DEADLINE_S) == RunExit.USAGE
    assert "--engine memory" in cluster.log_text()


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "MODULE_OR_FILE"),
        (["run", "missing.py"], "there is no file 'missing.py'"),
        (["run", "not a module"], "neither a Python file nor a module"),
        (["run", "app", "--bind", "tcp://0.0.0.0:7400"], "not authenticated"),
        (["run", "app", "--workers", "0"], "--workers"),
        (["run", "app", "--workers", "1025"], "--workers"),
        (["run", "app", "--engine", "sqlite"], "--engine"),
        (["run", "app", "--idle-evict", "0"], "--idle-evict"),
        (["run", "app", "--http", "8080"], "--http takes HOST:PORT"),
        (["run", "app", "--http", "::1:8080"], "--http takes HOST:PORT"),
        (["run", "app", "--http", "127.0.0.1:65536"], "--http takes HOST:PORT"),
        (["run", "app", "--allow-origin", "example.org"], "--allow-origin takes an origin"),
        (["run", "app", "--trusted-proxy", "proxy"], "--trusted-proxy takes an address"),
    ],
)
def test_a_wrong_command_line_is_explained_and_exits_with_2(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == RunExit.USAGE
    assert words in result.output
    assert list(tmp_path.iterdir()) == [], "nothing was made for a command that is wrong"


def test_help_does_not_wait_for_the_supervisor_to_be_loaded() -> None:
    script = (
        "import sys, json; from click.testing import CliRunner; from perdure_cli.commands import main\n"
        "result = CliRunner().invoke(main, ['run', '--help'])\n"
        "print(json.dumps([result.exit_code, result.output, 'perdure_cli.supervisor' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=environment())
    code, output, loaded = json.loads(done.stdout)
    assert code == 0
    assert "--idle-evict SECONDS" in output
    assert not loaded


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


# --- names


@pytest.mark.parametrize("text", ["shop.py", "./shop.py", "folder/../shop.py"])
def test_a_file_is_named_from_anywhere(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "shop.py").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_app(text) == str(tmp_path / "shop.py")


@pytest.mark.parametrize("text", ["shop", "shop.cart", "läden.körbe", "_a.b1", "package"])
def test_a_module_is_named_as_it_is_imported(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_app(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "./folder", "shop.py", "folder/shop", "1shop", "a..b", ".a", "a-b", "a b"]
)
def test_what_names_no_application_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadOption):
        resolve_app(text)


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("tcp://127.0.0.1:7400", "tcp://127.0.0.1:7400"),
        ("tcp://127.8.9.1:1", "tcp://127.8.9.1:1"),
        ("tcp://localhost:65535", "tcp://127.0.0.1:65535"),
    ],
)
def test_an_address_of_this_machine_alone_is_taken(text: str, endpoint: str) -> None:
    assert resolve_bind(text) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *("tcp://0.0.0.0:7400", "tcp://*:7400", "tcp://192.168.1.5:7400", "tcp://example.com:7400"),
        *("tcp://127.0.0.1.example.com:7400", "tcp://[::]:7400", "tcp://2130706433:7400", "tcp://eth0:7400"),
        *(
            "tcp://127.0.0.1",
            "tcp://127.0.0.1:",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:65536",
            "tcp://127.0.0.1:*",
        ),
        *("127.0.0.1:7400", "http://127.0.0.1:7400", "ipc:///tmp/router", "tcp://", "", "tcp://:7400"),
        *(
            "tcp://127.0.0.1:-1",
            "tcp://127.0.0.1:٧٤٠٠",
            "tcp://127.0.0.1:7400\n",
            "tcp://1.2.3.4;127.0.0.1:7400",
        ),
    ],
)
def test_every_other_address_is_refused(text: str) -> None:
    with pytest.raises(BadOption, match="--bind"):
        resolve_bind(text)


def test_an_address_that_is_there_twice_is_refused() -> None:
    assert resolve_binds(("tcp://localhost:7400", "tcp://127.0.0.1:7401")) == (
        "tcp://127.0.0.1:7400",
        "tcp://127.0.0.1:7401",
    )
    with pytest.raises(BadOption, match=r"--bind tcp://127\.0\.0\.1:7400 is given twice"):
        resolve_binds(("tcp://localhost:7400", "tcp://127.0.0.1:7401", "tcp://127.0.0.1:07400"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8080", ("::1", 8080)),
        ("off", None),
    ],
)
def test_where_http_is_served(text: str, address: tuple[str, int] | None) -> None:
    assert resolve_http(text) == address


def test_a_path_that_is_not_utf_8_is_refused_with_one_line(short_path: Path, app: Path) -> None:
    data = os.fsencode(short_path) + b"/caf\xe9"
    for command in (["run", str(app), "--data", data], ["check", "--data", data]):
        run = subprocess.run(
            [sys.executable, "-m", "perdure_cli", *command],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)},
            timeout=DEADLINE_S,
            check=False,
        )
        assert run.returncode == RunExit.CANNOT_START
        [line] = run.stderr.splitlines()
        assert line.startswith("perdure: ")
    assert not Path(os.fsdecode(data)).exists()


# --- with real workers


@pytest.mark.processes
def test_an_application_that_cannot_be_loaded_is_told_once_however_many_workers_meet_it(
    cluster: Cluster, app: Path
) -> None:
    app.write_text("import no_such_module_of_mine\n")
    arguments = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data), "--workers", "4"]
    supervisor = cluster.launch([*arguments, "--engine", "memory"], wait=False)
    assert supervisor.wait(DEADLINE_S) == RunExit.APPLICATION
    [told] = [line for line in cluster.log() if line["level"] not in ("debug", "info")]
    assert told["level"] == "error"
    assert "no_such_module_of_mine" in told["message"]
    assert f"{app}:1" in told["message"]
    last = cluster.log_text().splitlines()[-1]
    assert last == "perdure: " + told["message"], "what counts is repeated at the end"


@pytest.mark.processes
def test_a_store_that_cannot_be_opened_is_served_again_when_what_was_in_the_way_is_gone(
    cluster: Cluster, app: Path
) -> None:
    app.write_text("from perdure import DurableObject\n\nclass Shelf(DurableObject): ...\n")
    arguments = ["-m", "perdure_cli", "run", str(app), "--data", str(cluster.data), "--workers", "2"]
    first = cluster.launch(arguments)
    assert cluster.stop(first) == RunExit.OK
    in_the_way = cluster.data / "shard-0001" / "LOCK"
    in_the_way.unlink()
    in_the_way.mkdir()
    second = cluster.launch(arguments, wait=False)
    why = f"worker-1 ended: exit code 75: {WorkerExit.STORE_UNAVAILABLE.meaning}"
    wait_for("it is tried again", lambda: cluster.log_text().count(why) >= 2)
    assert not cluster.is_ready()
    in_the_way.rmdir()
    wait_for("the cluster is ready", cluster.is_ready)
    assert "parked" not in cluster.log_text()
    assert cluster.stop(second) == RunExit.OK
