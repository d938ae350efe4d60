"""Whether a command is the one that an output was begun with, on the same input."""

from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.listing import InputFile

ANEW = "; --overwrite starts anew"


def check_command(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """
    Args:
        where: the output, as errors begin.
        before: the settings that the output was begun with.

    Raises:
        PipelineError: one has changed; names it.
    """
    for name, value in now.items():
        if before.get(name) != value:
            raise PipelineError(
                f"{where}: was begun with {name.replace('_', '-')} "
                f"{before.get(name)!r}, now it is {value!r}{ANEW}"
            )


def changed_files(where: str, before: list[InputFile], now: list[InputFile]) -> list[InputFile]:
    """The files whose content is not what it was.

    Raises:
        PipelineError: a file is new or gone.
    """
    known = {file.url: file for file in before}
    found = {file.url: file for file in now}
    for url in sorted(known.keys() ^ found.keys()):
        what = "is gone" if url in known else "is new"
        raise PipelineError(f"{where}: input file {url} {what} since it was begun{ANEW}")
    return [file for url, file in found.items() if file != known[url]]


def changed(where: str, file: InputFile) -> PipelineError:
    """What is raised over a changed file."""
    return PipelineError(f"{where}: input file {file.url} changed since it was begun{ANEW}")
