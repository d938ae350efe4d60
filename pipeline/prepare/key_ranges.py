"""The ranges of keys of the validation set and of the chunks, and the runs to merge for them.

The validation set takes the keys below a first key, the chunks divide the others equally. The first
key is chosen such that the wanted number of distinct keys lies below it; for that the lowest keys
are read from the ends of all runs, and no text. So the validation set does not depend on the number
of chunks. With keys of 4 bits, the keys 2, 4, 6, 9, 11, 13, one document for validation and
two chunks: the first key is 4, the ranges are [0, 4), [4, 10) and [10, 16). Every key lies in
exactly one range, also the highest one: the last range ends at 2**64.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import PipelineError
from pipeline.prepare.chunks import chunk_names, validation_name
from pipeline.prepare.config import VALIDATION_DOCUMENTS
from pipeline.prepare.plan import CHUNK_BYTES, MERGED_CELLS
from pipeline.prepare.shuffle import Shuffle, Slice, Sorted
from pipeline.prepare.sorted_runs import KEY_BITS, SortedRun, lowest_keys
from pipeline.storage.output import OutputDirectory

DEFAULT_SHARE = 10
"""A corpus of fewer than 2 * VALIDATION_DOCUMENTS (distinct) documents has one in so many held out,
by default."""


class Range(NamedTuple):
    """The keys of a chunk, or of the validation set."""

    name: str
    keys: range


def merge_groups(runs: Sequence[SortedRun]) -> list[Sequence[SortedRun]]:
    """Neighbouring runs, which are merged with one another."""
    return [runs[i : i + MERGED_CELLS] for i in range(0, len(runs), MERGED_CELLS)]


def slices_of(merges: Mapping[int, Sorted], shuffle: Shuffle) -> list[Slice]:
    """The merged runs, a slice per cell.

    Merge ``group * cells + cell`` merged one cell of one group of runs. With two groups and four
    cells, cell 1 has the runs of the merges 1 and 5.
    """
    numbers = sorted(merges)
    return [
        Slice(
            shuffle.fine_grid(cell),
            [run for n in numbers if n % shuffle.cells == cell for run in merges[n].runs],
        )
        for cell in range(shuffle.cells)
    ]


def key_ranges(
    documents: int,
    text_bytes: int,
    slices: Sequence[Slice],
    content: Mapping[str, Any],
    output: OutputDirectory,
) -> dict[int, Range]:
    """The validation set as number 0, unless it is to be empty, and the chunks from 1 on.

    Args:
        documents: number of documents that were read, duplicates included.
        text_bytes: bytes of their texts.
        slices: that cover all keys.
        content: the settings of the preparation.

    Raises:
        PipelineError: there are no documents, or validation would leave none.
    """
    if not documents:
        raise PipelineError(
            f"{output.url}: the input holds no document; see rejects/ there if it holds records"
        )
    first, validation = _validation(slices, content, output)
    share = 1 - validation / documents
    chunks = content["num_chunks"] or max(1, math.ceil(share * text_bytes / CHUNK_BYTES))
    edges = [first + i * ((1 << KEY_BITS) - first) // chunks for i in range(chunks + 1)]
    names = chunk_names(content["name"], content["format"], chunks)
    ranges = {i + 1: Range(names[i], range(edges[i], edges[i + 1])) for i in range(chunks)}
    if validation:
        name = validation_name(content["name"], content["format"])
        ranges[0] = Range(name, range(0, first))
    return dict(sorted(ranges.items()))


def _validation(
    slices: Sequence[Slice], content: Mapping[str, Any], output: OutputDirectory
) -> tuple[int, int]:
    """The first key that is not in the validation set, and how many documents are in it."""
    asked = content["validation_documents"]
    if asked == 0:
        return 0, 0
    enough = 2 * VALIDATION_DOCUMENTS
    reach = enough if asked is None else asked + 1
    lowest = np.zeros(0, np.uint64)
    for part in slices:
        if len(lowest) < reach:
            more = lowest_keys(output, part.runs, reach - len(lowest))
            lowest = np.concatenate([lowest, more])
    if asked is None:
        # Duplicates do not count: of many documents that are the same few, few are left.
        found = len(lowest)
        wanted = VALIDATION_DOCUMENTS if found == enough else found // DEFAULT_SHARE
    elif asked < len(lowest):
        wanted = asked
    else:
        raise PipelineError(
            f"--validation-documents: {asked} would leave none of the {len(lowest)} (distinct) "
            "documents for the chunks; ask for fewer, with --overwrite"
        )
    return (int(lowest[wanted]), wanted) if wanted else (0, 0)
