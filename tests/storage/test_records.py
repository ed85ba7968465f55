"""A record comes back as it was sealed under the same key, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import StorageError
from perdure_storage import records
from perdure_storage.errors import DamagedRecord, NewerFormat
from perdure_storage.records import FORMAT, seal, seal_number, unseal, unseal_number

BYTES = st.binary(max_size=40)


@given(BYTES, BYTES)
def test_a_payload_comes_back_as_it_was_sealed(key: bytes, payload: bytes) -> None:
    assert unseal(key, seal(key, payload)) == payload


@given(BYTES, st.data())
def test_a_flipped_bit_anywhere_is_found(payload: bytes, data: st.DataObject) -> None:
    record = bytearray(seal(b"key", payload))
    bit = data.draw(st.integers(0, len(record) * 8 - 1))
    record[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StorageError):
        unseal(b"key", bytes(record))


@given(BYTES, BYTES, BYTES)
def test_a_record_under_another_key_is_found(key: bytes, other: bytes, payload: bytes) -> None:
    if key != other:
        with pytest.raises(DamagedRecord):
            unseal(other, seal(key, payload))


@pytest.mark.parametrize("length", range(9))
def test_a_record_that_was_cut_off_is_found(length: int) -> None:
    with pytest.raises(DamagedRecord) as caught:
        unseal(b"key", seal(b"key", b"1234")[:length])
    assert caught.value.key == b"key"


def test_a_record_of_a_newer_format_is_refused_by_name() -> None:
    record = bytes((FORMAT + 1,)) + seal(b"key", b"payload")[1:]
    with pytest.raises(NewerFormat, match="newer version of Perdure") as caught:
        unseal(b"key", record)
    assert (caught.value.found, caught.value.supported) == (FORMAT + 1, FORMAT)


def test_records_of_format_1_stay_readable_for_ever() -> None:
    # These bytes are on users' disks; they must never be changed here.
    assert unseal(b"key", bytes.fromhex("01b0266cca7061796c6f6164")) == b"payload"


def test_records_of_an_older_format_go_to_that_formats_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    old = seal(b"key", b"payload")
    monkeypatch.setattr(records, "FORMAT", 2)
    monkeypatch.setattr(records, "_FORMAT_1", 2 << 32)  # what `seal` and `unseal` take for the current one
    assert seal(b"key", b"payload") != old
    assert unseal(b"key", old) == b"payload"
    with pytest.raises(DamagedRecord):
        unseal(b"kez", old)


def test_every_format_up_to_the_current_one_has_a_reader() -> None:
    assert sorted(records._READERS) == list(range(1, FORMAT + 1))


@given(st.integers(0, 2**64 - 1))
def test_a_number_comes_back_and_a_missing_one_is_none(number: int) -> None:
    assert unseal_number(b"k", seal_number(b"k", number)) == number
    assert unseal_number(b"k", None) is None
