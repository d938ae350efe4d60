"""Input files → the splits that workers read; the cluster looks into the files."""

import ray

from pipeline.corpus.documents import Columns
from pipeline.corpus.formats import FORMATS, FormatName, known_format
from pipeline.corpus.splits import FilePlan, Split, plan_file
from pipeline.errors import ConfigError
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
    formats = [known_format(file, wanted, format_flag) for file in files]
    known = list(zip(files, formats, strict=True))
    parts = [known[i : i + FILES_PER_TASK] for i in range(0, len(known), FILES_PER_TASK)]
    pending = [_plan_files.remote(part, split_bytes) for part in parts]
    plans = [plan for part in ray.get(pending) for plan in part]
    offered = [
        plan.columns if FORMATS[name].has_columns else [columns.text]
        for plan, name in zip(plans, formats, strict=True)
    ]
    _check_columns(offered, columns)
    return [split for plan in plans for split in plan.splits]


@ray.remote(num_cpus=1)
def _plan_files(files: list[tuple[InputFile, str]], split_bytes: int) -> list[FilePlan]:
    return [plan_file(file, name, split_bytes) for file, name in files]


def _check_columns(offered: list[list[str] | None], columns: Columns) -> None:
    """
    Raises:
        ConfigError: all files tell their columns, and none has one that is wanted.
    """
    known = [names for names in offered if names is not None]
    if len(known) < len(offered):
        return
    existing = list(dict.fromkeys(name for names in known for name in names))
    wanted = [("--text-column", columns.text), ("--id-column", columns.id)]
    wanted += [("--keep-columns", name) for name in columns.metadata]
    for flag, name in wanted:
        if name and name not in existing:
            raise ConfigError(
                f"{flag}: no input file has a column {name!r}; there are: {', '.join(existing)}"
            )
