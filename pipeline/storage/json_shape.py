"""JSON values held against types: the first place where a value has another shape is named.

The types are those that the rest of the code works with anyway: TypedDicts and dataclasses for
objects, ``list[...]``, ``dict[str, ...]``, unions, and plain types. Numbers' ranges and the like
are their readers' own matter.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import inf
from types import MappingProxyType, NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints, is_typeddict

NAMES = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "an integer",
    list: "a list",
    str: "a string",
    NoneType: "null",
}


class _Shape(NamedTuple):
    """A type, taken apart; it is met thousands of times."""

    kind: Any
    leaves: tuple[type, ...] = ()
    """The types of values that nothing has to be looked for in."""
    options: tuple["_Shape", ...] = ()
    """The members of a union."""
    keys: Mapping[str, "_Shape"] = MappingProxyType({})
    """The values that have a name of their own."""
    required: tuple[str, ...] = ()
    others: "_Shape | None" = None
    """All other values of an object, or the items of a list; None if there may be no others."""


@cache
def _shape(kind: Any) -> _Shape:
    if isinstance(kind, UnionType):
        options = tuple(map(_shape, get_args(kind)))
        return _Shape(kind, tuple(leaf for each in options for leaf in each.leaves), options)
    if is_typeddict(kind) or is_dataclass(kind):
        keys = {name: _shape(hint) for name, hint in get_type_hints(kind).items()}
        if is_dataclass(kind):
            return _Shape(dict, keys=keys, required=_without_default(kind))
        required = tuple(name for name in keys if name in kind.__required_keys__)
        return _Shape(dict, keys=keys, required=required, others=_shape(Any))
    if get_origin(kind) in (list, dict):
        return _Shape(get_origin(kind), others=_shape(get_args(kind)[-1]))
    return _Shape(kind, (int, float) if kind is float else (kind,))


def _without_default(kind: Any) -> tuple[str, ...]:
    return tuple(
        field.name
        for field in fields(kind)
        if field.default is MISSING and field.default_factory is MISSING
    )


def problem_of(value: object, kind: Any, at: str = "it", depth: float = inf) -> str | None:
    """The first place where a JSON value is not of a type, in a sentence; None if it is.

    A key of a TypedDict has to be there unless it is ``NotRequired``, one of a dataclass unless the
    field has a default. A TypedDict may have more keys, which later releases may have written; a
    dataclass may not.

    >>> class Chunk(TypedDict):
    ...     name: str
    ...     sizes: NotRequired[list[int]]
    >>> problem_of([{"name": "a"}, {"name": "b", "sizes": [1, "2"]}], list[Chunk], "chunks")
    "chunks[1].sizes[1] is '2', not an integer"
    >>> problem_of({}, Chunk)
    "it has no 'name'"

    Args:
        at: the value's name in the sentence.
        depth: levels of objects and lists that are looked into: at 1, the values of an object have
            to be lists where the type says so, whatever is in those.
    """
    found = _find(value, _shape(kind), depth)
    if found is None:
        return None
    path, problem = found
    return f"{path.removeprefix('.') if at == 'it' and path else at + path} {problem}"


def _find(value: object, shape: _Shape, depth: float) -> tuple[str, str] | None:
    """The path of the first problem below the value, and the problem."""
    if type(value) in shape.leaves or shape.kind is Any:
        return None
    if shape.options:
        problems = [_find(value, option, depth) for option in shape.options]
        return None if None in problems else problems[0]
    if type(value) is not shape.kind:
        return "", f"is {value!r:.50}, not {NAMES[shape.kind]}"
    if depth < 1:
        return None
    if isinstance(value, dict):
        return _find_in_object(value, shape, depth - 1)
    assert isinstance(value, list) and shape.others is not None
    for i, item in enumerate(value):
        if found := _find(item, shape.others, depth - 1):
            return f"[{i}]{found[0]}", found[1]
    return None


def _find_in_object(value: dict[str, Any], shape: _Shape, depth: float) -> tuple[str, str] | None:
    for name in shape.required:
        if name not in value:
            return "", f"has no {name!r}"
    for name, item in value.items():
        inner = shape.keys.get(name, shape.others)
        if inner is None:
            return "", f"has an unknown {name!r}"
        if type(item) not in inner.leaves and (found := _find(item, inner, depth)):
            return f".{name}{found[0]}", found[1]
    return None
