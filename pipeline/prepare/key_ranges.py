"""Which keys make up the validation set and each chunk, and which runs are merged for them."""

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
"""Of a corpus that has not twice VALIDATION_DOCUMENTS one of so many is held out, by default."""


class Range(NamedTuple):
    """What a chunk, or the validation set, holds."""

    name: str
    keys: range


def merge_groups(runs: Sequence[SortedRun]) -> list[Sequence[SortedRun]]:
    """Runs that are merged with one another."""
    return [runs[i : i + MERGED_CELLS] for i in range(0, len(runs), MERGED_CELLS)]


def slices_of(merges: Mapping[int, Sorted], shuffle: Shuffle) -> list[Slice]:
    """The runs of merges, which are numbered by group, then cell."""
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
        documents: read, duplicates included.
        text_bytes: of their texts.
        content: the settings of the preparation.

    Raises:
        PipelineError: there are no documents, or validation would leave none.
    """
    if not documents:
        raise PipelineError(
            f"{output.url}: the input holds no document; see rejects/ there if it holds records"
        )
    first, validation = _validation(documents, slices, content, output)
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
    documents: int, slices: Sequence[Slice], content: Mapping[str, Any], output: OutputDirectory
) -> tuple[int, int]:
    """The first key that is not in the validation set, and how many documents are in it."""
    asked = content["validation_documents"]
    wanted = asked
    if wanted is None:
        enough = documents >= 2 * VALIDATION_DOCUMENTS
        wanted = VALIDATION_DOCUMENTS if enough else documents // DEFAULT_SHARE
    if not wanted:
        return 0, 0
    lowest = np.zeros(0, np.uint64)
    for part in slices:
        if len(lowest) <= wanted:
            found = lowest_keys(output, part.runs, wanted + 1 - len(lowest))
            lowest = np.concatenate([lowest, found])
    if len(lowest) <= wanted:
        if asked is not None:
            raise PipelineError(
                f"--validation-documents: {asked} would leave none of the {len(lowest)} (distinct) "
                "documents for the chunks; ask for fewer, with --overwrite"
            )
        wanted = len(lowest) // DEFAULT_SHARE
    return int(lowest[wanted]), wanted
