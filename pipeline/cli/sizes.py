"""Sizes in bytes, as people write them: 64 MiB, 4TB, 100000."""

import re
from fractions import Fraction
from typing import Annotated, TypeAlias

import tyro

UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGTP", 1)
    for suffix, base in (("iB", 1024), ("B", 1000), ("", 1000))
}
"""Factors by unit: KiB, MiB, … are powers of 1024, KB and K, MB and M, … powers of 1000."""


def parse_size(text: str) -> int:
    """The bytes that a text such as ``64 MiB``, ``4TB``, ``1.5M`` or ``100_000`` stands for.

    Raises:
        ValueError: it is no such text, or no whole number of bytes.
    """
    found = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([a-zA-Z]*)", text.strip())
    by_unit = {unit.lower(): factor for unit, factor in UNITS.items()}
    size = Fraction(found[1]) * by_unit.get(found[2].lower(), -1) if found else Fraction(-1)
    if size < 0 or size.denominator != 1:
        raise ValueError(f"{text!r} is no size in bytes; give one like 1000000, 64MiB or 4TB")
    return int(size)


def format_size(size: int) -> str:
    """The shortest exact text for a size: 67108864 is ``64MiB``, 12000000 ``12MB``."""
    texts = [
        f"{size // factor}{unit}"
        for unit, factor in UNITS.items()
        if unit.endswith("B") and size and size % factor == 0 and factor > 1
    ]
    return min([str(size), *texts], key=len)


Size: TypeAlias = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIZE",
        instance_from_str=lambda words: parse_size(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda size: [format_size(size)],
    ),
]
"""The type of a flag that takes a size in bytes, with or without a unit."""
