"""JSON values against types: the first place that is wrong is named."""

from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import pytest

from pipeline.storage.json_shape import problem_of


class Chunk(TypedDict):
    name: str
    size: NotRequired[int | None]
    share: NotRequired[float]
    anything: NotRequired[Any]


@dataclass
class Entry:
    name: str
    is_last: bool = False
    counts: dict[str, int] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([], list[Chunk]),
        ({"name": "a", "of a later release": 1}, Chunk),
        ({"name": "a", "size": None, "share": 1, "anything": [{}]}, Chunk),
        ({"name": "a", "size": 3, "share": 0.5}, Chunk),
        ({"name": "a", "is_last": True, "counts": {"1": 2}}, Entry),
        ([{"a": [1]}, {}], list[dict[str, list[int]]]),
    ],
)
def test_what_is_of_its_type_has_no_problem(value, kind):
    assert problem_of(value, kind) is None


WRONG = {
    "it is [], not an object": ([], Chunk),
    "it has no 'name'": ({"size": 3}, Chunk),
    "name is None, not a string": ({"name": None}, Chunk),
    "size is True, not an integer": ({"name": "a", "size": True}, Chunk),
    "share is '1', not a number": ({"name": "a", "share": "1"}, Chunk),
    "[1].name is 3, not a string": ([{"name": "a"}, {"name": 3}], list[Chunk]),
    "[1] is None, not an object": ([{"name": "a"}, None], list[Chunk]),
    "it has an unknown 'size'": ({"name": "a", "size": 3}, Entry),
    "is_last is 1, not a boolean": ({"name": "a", "is_last": 1}, Entry),
    "counts.1 is 0.5, not an integer": ({"name": "a", "counts": {"1": 0.5}}, Entry),
    "it has no 'name', unlike null": ({}, Chunk | None),
}


@pytest.mark.parametrize("problem", WRONG)
def test_the_first_problem_is_a_sentence(problem):
    assert problem_of(*WRONG[problem]) == problem.removesuffix(", unlike null")


def test_the_place_begins_with_the_name_of_the_value():
    assert problem_of(3, Chunk, "chunk") == "chunk is 3, not an object"
    assert problem_of([{"name": 3}], list[Chunk], "chunks") == "chunks[0].name is 3, not a string"


@pytest.mark.parametrize("depth", range(4))
def test_what_lies_deeper_is_not_looked_at(depth):
    value = {"name": "a", "counts": {"1": "2"}}
    assert (problem_of([value], list[Entry], depth=depth) is None) == (depth < 3)
