"""Flags that may be left out: their help shows neither ``None`` nor a default."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args

import tyro

T = TypeVar("T")

OrNone: TypeAlias = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]
"""The type of a field that is None unless its flag is given; its docstring says what holds then."""

REGISTRY = tyro.constructors.ConstructorRegistry()
"""Passed to :func:`tyro.cli`, it names such a flag's value by its type alone, and does not take
the word None for a value."""


@REGISTRY.primitive_rule
def _optional(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    of = [each for each in get_args(info.type) if each is not type(None)]
    if type(None) not in get_args(info.type) or of not in ([str], [int], [float], [Path]):
        return None
    (kind,) = of

    def read(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError as error:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{words[0]!r} is not {what}") from error

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )
