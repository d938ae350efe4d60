"""Input files → the splits that workers read; the cluster looks into the files."""

from itertools import chain

import ray

from pipeline.corpus.documents import Columns, Format, Split, file_format
from pipeline.corpus.splits import FilePlan, plan_file
from pipeline.errors import ConfigError
from pipeline.storage.listing import InputFile


def plan_splits(
    files: list[InputFile],
    wanted: Format,
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
    parts = [known[i : i + 64] for i in range(0, len(known), 64)]
    pending = [_plan_files.remote(part, split_bytes) for part in parts]
    plans = [plan for part in ray.get(pending) for plan in part]
    names = [
        [columns.text] if kind == "text" else plan.columns
        for plan, (_, kind) in zip(plans, known, strict=True)
    ]
    _check_columns(names, columns)
    return [split for plan in plans for split in plan.splits]


def known_format(file: InputFile, wanted: Format, flag: str) -> Format:
    """The format of a file.

    Raises:
        ConfigError: neither the flag nor the file's name tells it.
    """
    kind = file_format(file, wanted)
    if kind is None:
        raise ConfigError(f"{flag}: cannot tell what {file.url} holds from its name")
    return kind


@ray.remote(num_cpus=1)
def _plan_files(files: list[tuple[InputFile, Format]], split_bytes: int) -> list[FilePlan]:
    return [plan_file(file, kind, split_bytes) for file, kind in files]


def _check_columns(names: list[list[str] | None], columns: Columns) -> None:
    """
    Args:
        names: columns per file; None where a file cannot be read, which its split reports.

    Raises:
        ConfigError: all files could be read, and none has a column that is wanted.
    """
    offered = [file for file in names if file is not None]
    wanted = [("--text-column", columns.text), ("--id-column", columns.id)]
    wanted += [("--keep-columns", name) for name in columns.metadata]
    for flag, name in wanted:
        if name and len(offered) == len(names) and not any(name in file for file in offered):
            existing = ", ".join(dict.fromkeys(chain.from_iterable(offered)))
            raise ConfigError(f"{flag}: no input file has a column {name!r}; there are: {existing}")
