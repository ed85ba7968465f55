"""Exceptions arrive with type, message, causes and object; registered classes arrive as themselves."""

import asyncio
import dataclasses
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from perdure import codec
from perdure.errors import Overloaded, RemoteError
from perdure.remote_errors import (
    ErrorLimits,
    ExceptionLoader,
    dump_exception,
    load_exception,
    register_exception,
    type_name_of,
)

LIMITS = ErrorLimits()


@register_exception
class OutOfStock(Exception):
    def __init__(self, sku: str, *, left: int) -> None:
        super().__init__(f"{sku} is out of stock")
        self.sku = sku
        self.left = left


class StillUnregistered(OutOfStock):
    pass


@register_exception(name="shop.Refused")
class Refused(ValueError):
    pass


@register_exception
@dataclasses.dataclass
class Detailed(Exception):
    code: int
    detail: str = ""


@register_exception
class OwnObjectId(Exception):
    object_id = "mine"


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def travelled(
    error: BaseException, object_id: str = "Shop/main", *, with_traceback: bool = False
) -> Exception:
    dumped = dump_exception(error, object_id, with_traceback=with_traceback)
    return load_exception(codec.decode(codec.encode(dumped)))


# --- what every exception brings along


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("k"),
        PermissionError(13, "no"),
        TimeoutError(),
        ZeroDivisionError("division by zero"),
        KeyboardInterrupt("stop"),
        SystemExit(3),
        StopIteration(1),
    ],
)
def test_a_builtin_exception_arrives_as_a_remote_error_with_its_bare_name(error):
    loaded = travelled(raised(error))
    assert type(loaded) is RemoteError
    assert loaded.type_name == type(error).__name__
    assert loaded.message == str(error)
    assert loaded.object_id == "Shop/main"
    assert loaded.causes == []
    assert loaded.traceback is None


def test_other_exceptions_have_qualified_names():
    assert travelled(raised(asyncio.CancelledError())).type_name == "asyncio.exceptions.CancelledError"
    loaded = travelled(StillUnregistered("a", left=1))
    assert type(loaded) is RemoteError
    assert loaded.type_name == f"{__name__}.StillUnregistered"


def test_errors_of_ours_that_a_method_did_not_catch_say_nothing_about_this_call():
    loaded = travelled(Overloaded("full"))
    assert type(loaded) is RemoteError
    assert (loaded.type_name, loaded.message) == ("perdure.errors.Overloaded", "full")


def test_the_chain_of_causes_arrives():
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904 - the implicit context is the case under test
        except ValueError as error:
            raise RuntimeError("third") from error
    except RuntimeError as error:
        loaded = travelled(error)
    assert loaded.causes == [("ValueError", "second"), ("KeyError", "'first'")]


def test_a_suppressed_context_does_not_arrive():
    try:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as caught:
        error = caught
    assert travelled(error).causes == []


def test_a_chain_is_bounded_and_may_be_a_circle():
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert travelled(first).causes == [("KeyError", "'b'")]
    error = ValueError("0")
    for number in range(50):
        outer = ValueError(str(number))
        outer.__cause__ = error
        error = outer
    assert len(travelled(error).causes) == LIMITS.causes_max


def test_members_of_an_exception_group_arrive_as_causes():
    inner = ValueError("inner")
    inner.__cause__ = OSError("why")
    loaded = travelled(ExceptionGroup("several", [inner, ExceptionGroup("more", [KeyError("k")])]))
    assert loaded.causes == [
        ("ValueError", "inner"),
        ("OSError", "why"),
        ("ExceptionGroup", "more (1 sub-exception)"),
        ("KeyError", "'k'"),
    ]


def test_messages_are_cut_and_made_encodable():
    loaded = travelled(ValueError("ä" * 5000))
    assert len(loaded.message.encode()) <= LIMITS.message_bytes_max
    assert loaded.message.endswith("ä...")
    fitting = "x" * LIMITS.message_bytes_max
    assert travelled(ValueError(fitting)).message == fitting
    assert travelled(ValueError("lone \udc80")).message == "lone \\udc80"


def test_an_exception_that_cannot_be_shown_arrives_all_the_same():
    class Broken(Exception):
        def __str__(self):
            raise RuntimeError

    loaded = travelled(Broken(), with_traceback=True)
    assert loaded.type_name.endswith("Broken")
    assert "cannot be shown" in loaded.message


def test_the_traceback_is_sent_only_where_it_is_allowed():
    error = raised(ValueError("bad"))
    assert dump_exception(error, "A/a", with_traceback=False)["traceback"] is None
    text = travelled(error, with_traceback=True).traceback
    assert "in raised" in text
    assert text.endswith("ValueError: bad\n")


def test_a_traceback_is_bounded_and_keeps_its_end():
    def deep(level: int) -> None:
        if level == 0:
            raise ValueError("bottom")
        (deep if level % 2 else other)(level - 1)

    def other(level: int) -> None:
        deep(level - 1) if level else deep(0)

    try:
        deep(400)
    except ValueError as caught:
        error = caught
    limits = ErrorLimits(traceback_bytes_max=1000)
    text = dump_exception(error, "A/a", with_traceback=True, limits=limits)["traceback"]
    assert len(text.encode()) <= 1000
    assert text.endswith("ValueError: bottom\n")
    full = dump_exception(error, "A/a", with_traceback=True)["traceback"]
    assert full.count(", in ") <= LIMITS.traceback_frames_max


# --- registered classes


def test_a_registered_class_arrives_as_itself_with_its_attributes():
    loaded = travelled(raised(OutOfStock("apple", left=2)))
    assert type(loaded) is OutOfStock
    assert (loaded.sku, loaded.left) == ("apple", 2)
    assert str(loaded) == "apple is out of stock"
    assert loaded.args == ("apple is out of stock",)
    assert (loaded.object_id, loaded.causes, loaded.traceback) == ("Shop/main", [], None)
    with pytest.raises(OutOfStock):
        raise loaded


def test_a_registered_dataclass_arrives_complete():
    assert travelled(Detailed(5, "why")) == Detailed(5, "why")


def test_a_registered_class_is_shown_with_where_it_was_raised():
    loaded = travelled(raised(OutOfStock("apple", left=2)), with_traceback=True)
    shown = "".join(traceback.format_exception(loaded))
    assert "raised in Shop/main" in shown
    assert "in raised" in shown


def test_a_name_may_be_agreed_on():
    error = raised(Refused("no", 5))
    assert dump_exception(error, "A/a", with_traceback=False)["registered"] == "shop.Refused"
    loaded = travelled(error)
    assert (type(loaded), loaded.args) == (Refused, ("no", 5))


def test_a_subclass_needs_a_mark_of_its_own():
    assert type(travelled(StillUnregistered("a", left=1))) is RemoteError


def test_attributes_of_typed_values_arrive_plain_and_others_are_left_out():
    error = OutOfStock("apple", left=1)
    error.point = Detailed
    error.when = {"at": (1, {2})}
    error.text = "lone \udc80"
    error.big = b"x" * LIMITS.attributes_bytes_max
    error.__dict__[5] = "no name"
    error.args = ("apple", object())
    loaded = travelled(error)
    assert loaded.args == ("apple", None)
    own = {name for name in vars(loaded) if not name.startswith("__")}
    assert own == {"sku", "left", "when", "object_id", "causes", "traceback"}
    assert loaded.when == {"at": (1, {2})}


def test_an_attribute_of_the_users_is_not_replaced():
    assert travelled(OwnObjectId("x")).object_id == "mine"
    error = OutOfStock("apple", left=1)
    error.causes = "mine"
    assert travelled(error).causes == "mine"


def test_an_unknown_registered_class_arrives_as_a_remote_error():
    dumped = dump_exception(OutOfStock("apple", left=2), "Shop/main", with_traceback=False)
    loaded = load_exception({**dumped, "registered": "elsewhere.OutOfStock"})
    assert type(loaded) is RemoteError
    assert loaded.type_name == f"{__name__}.OutOfStock"


def test_a_loader_remembers_the_classes_it_has_found():
    loader = ExceptionLoader()
    dumped = dump_exception(Refused("no"), "A/a", with_traceback=False)
    assert type(loader.load(dumped)) is Refused
    mark, Refused.__perdure_exception__ = Refused.__perdure_exception__, "renamed"
    try:
        assert type(loader.load(dumped)) is Refused
        assert type(ExceptionLoader().load(dumped)) is RemoteError
    finally:
        Refused.__perdure_exception__ = mark


@pytest.mark.parametrize(
    "wrong", [int, KeyboardInterrupt, RemoteError, Overloaded, ValueError, StopIteration, 5]
)
def test_only_exception_classes_of_the_users_can_be_registered(wrong):
    with pytest.raises(TypeError):
        register_exception(wrong)
    assert "__perdure_exception__" not in getattr(wrong, "__dict__", {})
    with pytest.raises(TypeError, match="KeyError is a builtin"):
        register_exception(KeyError)


def test_a_class_with_a_constructor_of_its_own_kind_never_breaks_the_client():
    @register_exception
    class Demanding(Exception):
        def __new__(cls, *args, key):
            return super().__new__(cls, *args)

        def __init__(self, *args, key):
            super().__init__(*args)

    @register_exception
    class Changeling(Exception):
        def __new__(cls, *args):
            return ValueError(*args) if args == ("turn",) else super().__new__(cls, *args)

    error = Changeling("x")
    error.args = ("turn",)
    assert type(travelled(Demanding("x", key=1))) is RemoteError
    assert type(travelled(error)) is RemoteError


@pytest.mark.parametrize(
    "dumped",
    [
        None,
        5,
        {},
        {"type": 5, "message": None, "causes": 3, "traceback": 7, "registered": []},
        {"causes": [1, ["a"], ["a", "b"], [1, 2]]},
        {"registered": "shop.Refused", "args": 5, "attributes": 6},
        {"registered": "shop.Refused", "attributes": {"__class__": 1, "__dict__": {}, "with_traceback": 1}},
    ],
)
def test_no_message_from_outside_breaks_the_client(dumped):
    loaded = load_exception(dumped)
    assert isinstance(loaded, RemoteError | Refused)
    assert type(loaded) in (RemoteError, Refused)
    str(loaded)


def test_dunder_attributes_from_outside_are_not_set():
    loaded = load_exception(
        {"registered": "shop.Refused", "attributes": {"__cause__": 1, "__secret__": 1, "x": 1}}
    )
    assert loaded.x == 1
    assert "__secret__" not in vars(loaded)
    assert loaded.__cause__ is None


# --- through several objects


def test_an_exception_that_passes_through_an_object_keeps_its_origin():
    first = travelled(raised(ValueError("bad")), "B/b", with_traceback=True)
    second = travelled(raised(first), "A/a", with_traceback=True)
    assert type(second) is RemoteError
    assert (second.type_name, second.message, second.object_id) == ("ValueError", "bad", "B/b")
    assert second.traceback.index("ValueError: bad") < second.traceback.index("met as")


def test_a_registered_exception_that_passes_through_an_object_keeps_its_origin():
    error = OutOfStock("apple", left=2)
    error.__cause__ = KeyError("k")
    first = travelled(error, "B/b", with_traceback=True)
    assert dump_exception(first, "A/a", with_traceback=False)["attributes"] == {"sku": "apple", "left": 2}
    second = travelled(raised(first), "A/a", with_traceback=True)
    assert type(second) is OutOfStock
    assert (second.sku, second.left, second.object_id) == ("apple", 2, "B/b")
    assert second.causes == [("KeyError", "'k'")]


def test_what_an_object_on_the_way_changes_in_an_exception_travels_on():
    first = travelled(OutOfStock("apple", left=2), "B/b")
    first.left = None
    first.causes = ["mine"]
    second = travelled(raised(first), "A/a")
    assert (second.sku, second.left, second.causes) == ("apple", None, ["mine"])


def test_an_exception_raised_because_of_a_remote_one_has_it_as_its_cause():
    remote = travelled(ValueError("bad"), "B/b")
    try:
        raise RuntimeError("gave up") from remote
    except RuntimeError as error:
        loaded = travelled(error, "A/a")
    assert (loaded.type_name, loaded.object_id) == ("RuntimeError", "A/a")
    assert loaded.causes == [("perdure.errors.RemoteError", "ValueError: bad (raised in B/b)")]


# --- names


def test_names_are_bare_for_builtins_and_qualified_for_others():
    assert type_name_of(ValueError) == "ValueError"
    assert type_name_of(RemoteError) == "perdure.errors.RemoteError"


def test_a_class_of_a_script_has_the_name_under_which_others_import_it(tmp_path):
    script = tmp_path / "shop.py"
    script.write_text(
        "from perdure.remote_errors import dump_exception, register_exception\n"
        "@register_exception\n"
        "class Gone(Exception): pass\n"
        "print(dump_exception(Gone(), 'A/a', with_traceback=False)['registered'])\n"
    )
    environment = {"PYTHONPATH": str(Path(sys.modules["perdure.remote_errors"].__file__).parents[1])}
    for command in ([str(script)], ["-m", "shop"]):
        result = subprocess.run(
            [sys.executable, *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == "shop.Gone\n"
