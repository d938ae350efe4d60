"""The architecture is what docs/architecture.md says: its table is held against the imports."""

import re
from graphlib import CycleError, TopologicalSorter

import pytest
from pictures.rooms import PICTURE, drawn
from support.jobs import ROOT
from support.rooms import imports, modules, room_of, rooms, table

WITH_RAY = ("pipeline/cluster/", "train/cluster/", "jobs/pretrain.py", "pipeline/patch/run.py")
WITH_RAY += ("pipeline/patch/plan.py", "pipeline/patch/devices.py")
MOST_MODULES = 20
"""Modules in one folder: more cannot be taken in at a look."""


def test_every_module_has_a_room():
    assert len(rooms()) > 10
    homeless = [module for module in modules() if not room_of(module)]
    assert not homeless, f"no row of docs/architecture.md has room for {homeless}"
    empty = set(rooms()) - {room_of(module) for module in modules()}
    assert not empty, f"docs/architecture.md has rooms without a module: {empty}"


def test_arrows_go_down():
    order = list(table())
    for room, allowed in table().items():
        for target in allowed:
            assert target in order, f"{room} may import {target}, which is no room of the table"
            assert order.index(target) > order.index(room), f"{room} → {target} does not go down"


def test_rooms_import_what_the_table_says():
    wrong, used = [], set()
    for module, line, target in imports():
        a, b = room_of(module), room_of(target)
        used.add((a, b))
        if a != b and b not in table()[a]:
            path = modules()[module].relative_to(ROOT)
            wrong.append(f"{path}:{line} imports {target}: {a} may not import {b}")
    assert not wrong, "\n".join(wrong)
    stated = {(a, b) for a, room in rooms().items() for b in room.imports.split(", ")}
    unused = {(a, b) for a, b in stated - used if b in rooms()}
    assert not unused, f"nothing uses these arrows of docs/architecture.md: {unused}"


def test_no_module_imports_itself_by_way_of_others():
    graph: dict[str, set[str]] = {}
    for module, _, target in imports():
        graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(reversed(error.args[1]))}")


def test_ray_stays_where_work_is_spread():
    """Scoring, models and the trainer run where there is no Ray."""
    for path in modules().values():
        if re.search(r"^\s*(import|from) ray\b", path.read_text(), re.MULTILINE):
            place = path.relative_to(ROOT).as_posix()
            assert place.startswith(WITH_RAY), f"{place} imports Ray"


def test_no_folder_is_a_hall():
    folders = [path.parent for path in modules().values() if path.name != "__init__.py"]
    for folder in set(folders):
        assert folders.count(folder) <= MOST_MODULES, f"{folder}: which rooms are in there?"


def test_the_drawing_shows_the_table():
    again = "python tests/pictures/rooms.py draws it again"
    assert PICTURE.read_text() == drawn(table()), again
