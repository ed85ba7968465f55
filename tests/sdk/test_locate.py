"""Where the local cluster is, and whether a cluster's sockets can be reached from here."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from perdure import locate
from perdure.errors import ShardUnavailable
from perdure.locate import DATA_DEFAULT, ENDPOINT_FILE, boot_id, default_url, may_connect


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PERDURE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_endpoint(data: bytes) -> None:
    Path(DATA_DEFAULT).mkdir()
    Path(DATA_DEFAULT, ENDPOINT_FILE).write_bytes(data)


def test_the_local_data_directory_names_its_router() -> None:
    write_endpoint(b"ipc:///somewhere/router\n")
    assert default_url() == "ipc:///somewhere/router"


def test_the_environment_goes_before_the_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    write_endpoint(b"ipc:///somewhere/router\n")
    monkeypatch.setenv("PERDURE_URL", "tcp://10.0.0.1:7400")
    assert default_url() == "tcp://10.0.0.1:7400"
    monkeypatch.setenv("PERDURE_URL", "")
    assert default_url() == "ipc:///somewhere/router"


def test_without_a_cluster_the_error_says_how_to_start_one() -> None:
    with pytest.raises(ShardUnavailable, match=r"perdure-data/endpoint.*PERDURE_URL.*perdure run"):
        default_url()


@pytest.mark.parametrize("data", [b"", b" \n", b"\xff\xfe\x00"])
def test_an_empty_or_damaged_endpoint_file_is_no_cluster(data: bytes) -> None:
    write_endpoint(data)
    with pytest.raises(ShardUnavailable, match="no cluster found"):
        default_url()


def test_the_boot_id_is_the_same_for_every_look_and_names_boot_and_files() -> None:
    boot, files = boot_id().split()
    assert boot_id() == f"{boot} {files}"
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert files == os.readlink("/proc/self/ns/mnt")


def test_a_machine_that_tells_no_boot_id_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Path:
        raise PermissionError("no /proc here")

    monkeypatch.setattr(locate.Path, "readlink", refuse)
    assert boot_id() == ""


def test_only_a_socket_that_is_there_can_be_connected_to(tmp_path: Path) -> None:
    door = tmp_path / "door"
    assert not may_connect(f"ipc://{door}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        assert may_connect(f"ipc://{door}")
    assert not may_connect("tcp://127.0.0.1:7400")
    assert not may_connect("")
