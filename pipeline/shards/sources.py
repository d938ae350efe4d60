"""The sources of shards, for whoever counts text by source: an input file, or a directory of them.

A large file has shards of its own, and is their source. Where many small files share a shard,
nothing in the set tells which documents are from which file, and an entry names the last one alone
(which its error is about). The source of such a shard is the directory that all of its files are
below, written as ``DIRECTORY/*``: no file gets the text of its neighbours, and a directory of
thousands of files is one source.

The files of a shard follow from its name, which begins with the number of its unit's first file:
for the files ``a/1``, ``a/2``, ``b/1``, ``b/2`` and shards that begin with file 0 and file 2 and
end with ``a/2`` and ``b/2`` these are ``a/*`` and ``b/*``. If the first ended with ``b/1``, it
would be ``*``.
"""

from collections.abc import Sequence
from itertools import takewhile

from pipeline.shards.entries import Shard


def source_names(entries: Sequence[Shard], files: Sequence[str]) -> list[str]:
    """The source of each shard.

    Args:
        entries: of a set, in order.
        files: names of all input files, in the order of their numbers.
    """
    numbers = {name: number for number, name in enumerate(files)}
    names: list[str] = []
    unit, begins = "", 0
    for entry in entries:
        # FFFFFF-SSSSS-PPPPP: the number of the unit's first file, of its split, and of the shard.
        of_unit = entry.name.rpartition("-")[0]
        if of_unit != unit:
            unit, begins = of_unit, int(of_unit.partition("-")[0])
        ends = numbers.get(entry.source)
        if ends is None or ends <= begins:  # an only file, or a manifest that lacks its sources
            names.append(entry.source)
            continue
        names.append(_directory(files[begins : ends + 1]))
        begins = ends  # the next shard of the unit may go on with this file
    return names


def _directory(names: Sequence[str]) -> str:
    """The directory that all of these files are below."""
    # What the first and the last name in alphabetical order begin with, all names begin with.
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "/".join([*(part for part, _ in pairs), "*"])
