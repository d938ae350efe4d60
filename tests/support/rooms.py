"""The rooms of docs/architecture.md, and the imports of the product's modules."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from support.jobs import ROOT

PACKAGES = ("model", "pipeline", "train", "jobs")
ROW = re.compile(
    r"^\| \*\*(?P<name>[\w ]+)\*\* \| `(?P<files>[^`]+)` \|[^|]*\| (?P<imports>[^|]*) \|$",
    re.MULTILINE,
)
EVERYBODY, EVERYTHING = "(everybody imports it)", "everything below"
"""In place of names: any room may import this one; this one may import any room."""


class Room(NamedTuple):
    """A row of the table in docs/architecture.md."""

    name: str
    files: str
    """A folder, ``folder/``; or some modules of one, ``folder/{a,b}.py``."""
    imports: str

    def holds(self, path: str) -> bool:
        """Whether a module lies in this room, given its path in the repository."""
        folder, _, modules = self.files.partition("{")
        directory, _, name = path.rpartition("/")
        if directory != folder.strip("/"):
            return False
        return not modules or name.removesuffix(".py") in modules.removesuffix("}.py").split(",")


class Import(NamedTuple):
    """One import: of ``target`` by ``module``, in a line of its file."""

    module: str
    line: int
    target: str


def modules() -> dict[str, Path]:
    """The files of the product's modules, by dotted name; a package stands for its __init__.py."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports() -> list[Import]:
    """All imports of one module of ours by another, wherever in the file they stand: an import
    inside a function counts as well."""
    ours = modules()
    return [
        Import(name, line, target)
        for name, path in ours.items()
        for line, target in imported(path, ours)
        if target != name
    ]


def imported(path: Path, ours: dict[str, Path]) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package, or something that the package defines.
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in ours else node.module for name in full]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name in ours)


@cache
def rooms() -> dict[str, Room]:
    """The rooms of docs/architecture.md by name, from the top down."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    return {row["name"]: Room(*row.groups()) for row in ROW.finditer(text)}


@cache
def table() -> dict[str, list[str]]:
    """The rooms that each room may import, from the top down."""
    names = list(rooms())
    common = [name for name, room in rooms().items() if room.imports == EVERYBODY]
    allowed = {}
    for place, (name, room) in enumerate(rooms().items()):
        below = names[place + 1 :]
        stated = below if room.imports == EVERYTHING else room.imports.split(", ")
        allowed[name] = [*(n for n in stated if n), *(n for n in common if n in below)]
        if room.imports == EVERYBODY:
            allowed[name] = [n for n in common if n in below]
    return allowed


@cache
def room_of(module: str) -> str:
    """The room that a module lies in: one that names the module, or else its folder's."""
    path = str(modules()[module].relative_to(ROOT))
    matches = [room for room in rooms().values() if room.holds(path)]
    return max(matches, key=lambda room: "{" in room.files).name if matches else ""
