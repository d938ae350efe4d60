"""Input files → the splits that workers read; the cluster looks into the files."""

import ray

from pipeline.corpus.documents import Columns, check_columns
from pipeline.corpus.formats import FormatName, known_format
from pipeline.corpus.splits import FilePlan, Split, plan_file
from pipeline.storage.listing import InputFile

FILES_PER_TASK = 64


def plan_splits(
    files: list[InputFile],
    wanted: FormatName,
    columns: Columns,
    split_bytes: int,
    *,
    format_flag: str = "--format",
) -> list[Split]:
    """The splits of all files, in order.

    Args:
        wanted: the format of all files, or "auto" to tell it from their names.
        split_bytes: approximate bytes of text per split.
        format_flag: the flag that ``wanted`` comes from, for errors.

    Raises:
        ConfigError: a file's format is not known, or a column is missing in every file.
    """
    known = [(file, known_format(file, wanted, format_flag)) for file in files]
    parts = [known[i : i + FILES_PER_TASK] for i in range(0, len(known), FILES_PER_TASK)]
    pending = [_plan_files.remote(part, split_bytes) for part in parts]
    plans = [plan for part in ray.get(pending) for plan in part]
    check_columns(plans, columns)
    return [split for plan in plans for split in plan.splits]


@ray.remote(num_cpus=1)
def _plan_files(files: list[tuple[InputFile, str]], split_bytes: int) -> list[FilePlan]:
    return [plan_file(file, name, split_bytes) for file, name in files]
