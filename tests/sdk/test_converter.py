"""What conversion errors say, and what a converter's facts promise."""

import datetime as dt

import pytest

from perdure.converter import ConversionError, Converter, describe, describe_error


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x", "str ('x')"),
        ("y" * 41, f"str ('{'y' * 40}'...)"),
        (b"ab", "bytes (b'ab')"),
        (3, "int (3)"),
        (True, "bool (True)"),
        (1.5, "float (1.5)"),
        (None, "None"),
        ([1], "list"),
        (dt.datetime(2026, 1, 1), "datetime"),
    ],
)
def test_a_value_is_described_by_its_type_and_shown_where_it_is_short(value, shown):
    assert describe(value) == shown


def test_a_huge_int_is_described_without_being_printed():
    assert describe(1 << 100_000) == "int"


def test_a_foreign_repr_never_runs_in_a_message():
    class Rude(str):
        def __repr__(self):
            raise AssertionError

    assert "Rude" in describe(Rude("x"))


def test_an_error_names_the_path_from_the_outermost_value():
    error = ConversionError(".price", "int", "str ('x')").within("[3]")
    assert (error.path, error.expected, error.got) == ("[3].price", "int", "str ('x')")
    assert str(error) == "value[3].price must be int, not str ('x')"
    assert error.argument_text("items") == "argument 'items[3].price' must be int, not str ('x')"


def test_a_bottomless_path_is_cut():
    error = ConversionError("", "int", "None")
    for _ in range(1000):
        error = error.within(".next")
    assert len(str(error)) < 300


def test_a_place_holder_is_useless_until_it_is_filled():
    placeholder = Converter.deferred("Json")
    with pytest.raises(RuntimeError, match="Json"):
        placeholder.load(1)
    placeholder.become(Converter(str, repr, expected="str", exact=str))
    assert (placeholder.load(1), placeholder.dump(1), placeholder.exact) == ("1", "1", str)


def test_an_exception_of_a_users_is_described_shortly_and_safely():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    assert describe_error(ValueError("too small")) == "ValueError: too small"
    assert "cannot be shown" in describe_error(Broken())
    assert len(describe_error(ValueError("x" * 10_000))) < 600
