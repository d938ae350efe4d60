"""Shards of the published preprocessing: their names, and the marks that say which are whole.

``CORPUS.chunk.NN.jsonl.shard_K.arrow`` gets an empty file ``….arrow.complete`` beside it when its
writer is done. A shard without that mark is unfinished.
"""

import re

from pipeline.errors import ConfigError, translated
from pipeline.storage.listing import InputFile
from pipeline.storage.places import filesystem_of

SHARD = re.compile(r"(?P<chunk>.+\.jsonl)\.shard_(?P<number>\d+)\.arrow")
MARK = ".complete"
UNFINISHED = f"unfinished: it has no {MARK} mark beside it"


def chunk_of(file: InputFile) -> str | None:
    """The name of the chunk that such a shard, whole or not, is made of; None for another file."""
    match = SHARD.fullmatch(file.url.rpartition("/")[2])
    return match and match["chunk"]


def in_order(file: InputFile) -> tuple[str, int, str]:
    """A key that sorts files by their URLs, and the shards of a chunk by their numbers: they hold
    its documents in that order."""
    match = SHARD.fullmatch(file.url)
    return (match["chunk"], int(match["number"]), file.url) if match else (file.url, 0, file.url)


def is_mark(file: InputFile) -> bool:
    """True for the name of the mark of such a shard."""
    name = file.url.rpartition("/")[2]
    return name.endswith(MARK) and SHARD.fullmatch(name.removesuffix(MARK)) is not None


class Marks:
    """The marks of shards; each directory is listed once."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    def is_unfinished(self, file: InputFile) -> bool:
        """True for a shard without its mark.

        Raises:
            ConfigError: its directory cannot be listed.
        """
        if chunk_of(file) is None:
            return False
        directory, _, name = file.url.rpartition("/")
        if directory not in self._names:
            with translated(f"--input {directory}", ConfigError, "cannot be listed"):
                filesystem, path = filesystem_of(directory)
                names = (each.rpartition("/")[2] for each in filesystem.ls(path, detail=False))
                self._names[directory] = {each for each in names if each.endswith(MARK)}
        return name + MARK not in self._names[directory]

    def check(self, file: InputFile) -> None:
        """Check a file that was named itself.

        Raises:
            ConfigError: it is unfinished; says what to do.
        """
        if self.is_unfinished(file):
            raise ConfigError(
                f"--input {file.url}: {UNFINISHED}; let its writer finish, or make the mark "
                f"{file.url.rpartition('/')[2]}{MARK} if it is whole"
            )
