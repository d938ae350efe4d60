"""Input files → the splits that workers read; the cluster looks into the files."""

from collections.abc import Iterable

import ray

from pipeline.cluster.alone import PROCESS_ENDED
from pipeline.corpus.documents import Columns, check_columns
from pipeline.corpus.formats import FORMATS, FormatName, known_format
from pipeline.corpus.splits import FilePlan, Split, plan_file, whole_file
from pipeline.storage.listing import InputFile

FILES_PER_TASK = 64


def plan_files(
    files: list[InputFile],
    wanted: FormatName,
    columns: Columns,
    split_bytes: int,
    *,
    format_flag: str = "--input-format",
) -> list[FilePlan]:
    """How each file is read, in order.

    Args:
        wanted: the format of all files, or "auto" to tell it from their names.
        columns: those that are read.
        split_bytes: approximate bytes of text per split.
        format_flag: the flag that ``wanted`` comes from, for errors.

    Raises:
        ConfigError: a file's format is not known, or a column is missing in every file.
    """
    known = [(file, known_format(file, wanted, format_flag)) for file in files]
    looked_into = [(file, name) for file, name in known if FORMATS[name].is_looked_into]
    starts = range(0, len(looked_into), FILES_PER_TASK)
    parts = [looked_into[start : start + FILES_PER_TASK] for start in starts]
    pending = [_plan_files.remote(part, split_bytes) for part in parts]
    found = (
        plan
        for part, plans_of_part in zip(parts, pending, strict=True)
        for plan in _planned(part, plans_of_part, split_bytes)
    )
    plans = [
        next(found) if FORMATS[name].is_looked_into else FilePlan([whole_file(file, name)], None)
        for file, name in known
    ]
    check_columns(plans, columns)
    return plans


def text_bytes(files: list[InputFile], wanted: FormatName) -> int:
    """Estimate of the bytes of text in files, from their names and sizes alone.

    Args:
        wanted: the format of all files, or "auto" to tell it from their names.
    """
    return sum(FORMATS[known_format(f, wanted, "--input-format")].text_bytes(f) for f in files)


def splits_of(plans: Iterable[FilePlan]) -> list[Split]:
    """The splits of all files, in order."""
    return [split for plan in plans for split in plan.splits]


def _planned(
    part: list[tuple[InputFile, str]], pending: "ray.ObjectRef[list[FilePlan]]", split_bytes: int
) -> list[FilePlan]:
    """The plans of some files. If one of them ends the process that looks into it, each is planned
    alone, and that one is read as a whole: its reader will name it."""
    try:
        plans: list[FilePlan] = ray.get(pending)
    except PROCESS_ENDED:
        if len(part) == 1:
            return [FilePlan([whole_file(*part[0])], None)]
        alone = [[file] for file in part]
        again = [_plan_files.remote(one, split_bytes) for one in alone]
        return [_planned(one, plan, split_bytes)[0] for one, plan in zip(alone, again, strict=True)]
    return plans


@ray.remote(num_cpus=1, max_retries=1)
def _plan_files(files: list[tuple[InputFile, str]], split_bytes: int) -> list[FilePlan]:
    return [plan_file(file, name, split_bytes) for file, name in files]
