"""Bearer tokens from a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.errors import InvalidArgument
from perdure_gateway.tokens import TokenFile, bearer_token, read_tokens

A, B = "a" * 20, "b" * 20


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# ours\n{A} Room Counter # for two\n\n{B}\n")
    path.chmod(0o600)
    return path


def test_a_token_opens_its_namespaces_and_one_without_any_opens_all(file: Path) -> None:
    tokens = TokenFile(file, Clock())
    assert [tokens.opens(A.encode(), name) for name in ("Room", "Counter", "Other")] == [True, True, False]
    assert tokens.opens(B.encode(), "Other")
    assert not tokens.opens(b"c" * 20, "Room")
    assert not tokens.opens(None, "Room")
    assert tokens.namespaces(b"") is None


@pytest.mark.parametrize("mode", [0o604, 0o606, 0o602, 0o644])
def test_a_file_that_everybody_can_read_or_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(InvalidArgument, match="chmod 600"):
        TokenFile(file, Clock())


def test_a_changed_file_counts_after_a_second_or_when_it_is_looked_at(file: Path) -> None:
    clock = Clock()
    tokens = TokenFile(file, clock)
    file.write_text(f"{'c' * 20}\n")
    assert tokens.opens(B.encode(), "Room")
    clock.now += 1.1
    assert not tokens.opens(B.encode(), "Room")
    assert tokens.opens(b"c" * 20, "Room")
    file.write_text(f"{'d' * 21}\n")
    tokens.look()
    assert tokens.opens(b"d" * 21, "Room")


def test_a_file_that_becomes_unusable_changes_nothing_until_it_is_mended(file: Path) -> None:
    clock = Clock()
    tokens = TokenFile(file, clock)
    file.write_text("short\n")
    tokens.look()
    assert tokens.opens(B.encode(), "Room")
    file.unlink()
    tokens.look()
    assert tokens.opens(B.encode(), "Room")
    file.write_text(f"{A}\n")
    os.chmod(file, 0o600)
    tokens.look()
    assert tokens.opens(A.encode(), "Other")
    assert not tokens.opens(B.encode(), "Room")


@pytest.mark.parametrize(
    ("text", "told"),
    [("short\n", "line 1: a token has 16 characters"), (f"\n{A} no/namespace\n", "line 2: a namespace is")],
)
def test_a_line_that_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        read_tokens(text)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        TokenFile(tmp_path / "none", Clock())


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ([b"Bearer abc"], b"abc"),
        ([b"bearer   abc "], b"abc"),
        ([b"Basic abc"], None),
        ([b"Bearer "], None),
        ([b"Bearer"], None),
        ([b"Bearer a", b"Bearer b"], None),
        ([], None),
    ],
)
def test_a_token_stands_in_one_authorization_header(values: list[bytes], token: bytes | None) -> None:
    assert bearer_token([(b"authorization", value) for value in values]) == token
