"""What batches say of their clients, and the ids of requests."""

from __future__ import annotations

from typing import Any

import pytest

from perdure_worker.clients import Clients, nested_path, read_context

ME = b"c" * 16


def test_a_client_tells_which_of_its_calls_have_ended() -> None:
    client, overtaken = Clients().on_batch([ME, 1, 24, 20, 3, 7])
    assert not overtaken
    assert [n for n in range(1, 25) if not client.has_ended(n)] == [3, 7, 20, 21, 22, 23, 24]
    assert (client.id, client.low) == (ME, 3)


def test_a_client_that_tells_its_id_alone_has_no_ended_calls() -> None:
    client, overtaken = Clients().on_batch(ME)
    assert (overtaken, client.low, client.has_ended(1)) == (False, 0, False)


def test_an_older_batch_changes_nothing_and_is_known_as_overtaken() -> None:
    clients = Clients()
    clients.on_batch([ME, 5, 24, 20])
    client, overtaken = clients.on_batch([ME, 4, 12, 10, 2])
    assert overtaken
    assert (client.floor, client.stragglers) == (20, ())
    assert not clients.on_batch([ME, 5, 24, 20])[1]


def test_the_longest_silent_client_is_forgotten_beyond_the_bound() -> None:
    clients = Clients(count_max=2)
    ids = [bytes([n]) * 16 for n in range(3)]
    clients.on_batch([ids[0], 9, 9, 5])
    clients.on_batch([ids[1], 9, 9, 5])
    clients.on_batch(ids[0])
    clients.on_batch(ids[2])
    assert len(clients) == 2
    assert clients.on_batch(ids[0])[0].floor == 5
    assert clients.on_batch(ids[1])[0].floor == 0


@pytest.mark.parametrize(
    "head", [None, 5, b"short", ME.hex(), [], [ME], [ME, 1], [ME, 1, 1], [b"short", 1, 1, 1], [ME, 1, 1, "1"]]
)
def test_what_is_no_client_is_refused(head: Any) -> None:
    with pytest.raises(TypeError):
        Clients().on_batch(head)


def test_a_context_gives_chain_and_request() -> None:
    assert read_context([None, None]) == (None, None)
    assert read_context([[[b"k", "label"]], [ME, 7, b"\x00\x01", 3], "of a newer client"]) == (
        [[b"k", "label"]],
        (ME, 7, b"\x00\x01", 3),
    )


def test_paths_of_different_calls_differ_also_beyond_two_bytes() -> None:
    ordinals = [1, 2, 255, 256, 65_534, 65_535, 65_536, 1_000_000]
    paths = {nested_path(nested_path(b"", outer), inner) for outer in ordinals for inner in ordinals}
    assert nested_path(b"\x00\x07", 1) == b"\x00\x07\x00\x01"
    assert len(paths) == len(ordinals) ** 2
