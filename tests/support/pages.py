"""Pages of documentation whose commands are run: their blocks of code, and what they printed.

A block of ``sh`` is what a reader would type; the block of ``text`` after it, if there is one,
shows what came of it.
"""

import re
from typing import NamedTuple

BLOCK = re.compile(r"^```sh\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """Commands of a page."""

    script: str
    shown: str | None
    """The output that the page shows; None if it shows none."""


def blocks_of(page: str) -> list[Block]:
    """The blocks of commands in a page, in order."""
    return [Block(found[1], found[2]) for found in BLOCK.finditer(page)]


def with_outputs(page: str, outputs: list[str]) -> str:
    """The page with what its blocks printed, where it shows that."""
    given = iter(outputs)

    def replaced(found: re.Match[str]) -> str:
        output = next(given)
        shown = "" if found[2] is None else f"\n```text\n{output.rstrip()}\n```\n"
        return f"```sh\n{found[1]}```\n{shown}"

    return BLOCK.sub(replaced, page)
