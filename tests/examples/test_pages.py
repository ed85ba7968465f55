"""Pages of kv, chunked and crdt: what they call is public and answers in JSON; they load nothing foreign."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from perdure import DurableObject
from perdure.methods import callable_methods
from processes.cluster import ROOT
from worker.host_scene import Scene

from .app_scene import do, load

CALLS: dict[str, tuple[str, str, list[tuple[str, list[Any]]]]] = {
    "kv": (
        "KvEdge",
        "demo@rome",
        [
            ("status", []),
            ("put", ["k", {"any": ["JSON", 1, None]}, 30]),
            ("get", ["k"]),
            ("keys", ["", 24, None]),
            ("listen", [False]),
            ("delete", ["k"]),
            ("get", ["k"]),
        ],
    ),
    "chunked": (
        "RangeDatabase",
        "demo@web",
        [
            ("put_many", [{f"k{number:03}": "v" for number in range(100)}]),
            ("put", ["k", "v"]),
            ("get", ["k"]),
            ("scan", ["", None, 20, True]),
            ("ranges", []),
            ("delete", ["k"]),
            ("delete_many", [["k000", "absent"]]),
        ],
    ),
    "crdt": (
        "Replica",
        "demo@rome",
        [
            ("add", ["cake"]),
            ("remove", ["cake"]),
            ("count", [-1]),
            ("write", ["title", "A party"]),
            ("connect", [False]),
            ("read", []),
        ],
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_public_method_answers_with_what_json_has(name: str) -> None:
    module = load(name)
    classes = [
        cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == module.__name__
    ]
    objects = [cls for cls in classes if issubclass(cls, DurableObject)]
    namespace, key, calls = CALLS[name]
    scene = Scene(*objects)
    for method, args in calls:
        answer = do(scene, vars(module)[namespace], key, method, *json.loads(json.dumps(args)))
        assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    scene.close()
    public = {
        cls.__name__: {
            method.name for method in callable_methods(cls, DurableObject).values() if method.public
        }
        for cls in objects
    }
    assert {cls: methods for cls, methods in public.items() if methods} == {
        namespace: {method for method, _ in calls}
    }, "a page can reach these, and nothing else"


CALLED = re.compile(
    r"""(?:call\("\w+", .+?, |ask\((?:place, )?|change\(place, |submit\()"(?P<method>\w+)\""""
)


@pytest.mark.parametrize("name", CALLS)
def test_a_page_loads_nothing_from_elsewhere_and_calls_what_is_public(name: str) -> None:
    text = (ROOT / "examples" / "pages" / f"{name}.html").read_text("utf-8")
    loaded = re.findall(r"""(?:src|href|action|from|url\(|@import)\s?=?\s?["']([^"']+)["']""", text)
    assert [address for address in loaded if not re.match(r"/(?!/)", address)] == []
    assert "//" not in re.sub(r"http://www.w3.org/2000/svg|(?m:(?:^| )// .*$)", "", text)
    namespace, _, calls = CALLS[name]
    assert f'call("{namespace}", ' in text
    methods = {call["method"] for call in CALLED.finditer(text)}
    assert len(methods) >= 4
    assert methods <= {method for method, _ in calls}
