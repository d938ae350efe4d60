"""``--input`` → the files that are read, and those that are not, with the reason.

A path to a file stands for that file, whatever its name. A directory or glob stands for the files
in formats that :mod:`pipeline.corpus.formats` knows, except what is about the data or not meant for
training, as :mod:`pipeline.corpus.directories` tells. Nothing is left out without being named.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console

from pipeline.corpus.content import ending_of
from pipeline.corpus.directories import CHUNK, HELD_OUT, Directories
from pipeline.corpus.formats import AUTO, FORMATS, FormatName, file_format
from pipeline.corpus.named import ABOUT_DATA, UNKNOWN
from pipeline.corpus.prepared import ManifestChunk
from pipeline.corpus.published import UNFINISHED, Marks, in_order, is_mark
from pipeline.errors import ConfigError, translated
from pipeline.storage.lease import LEASES
from pipeline.storage.listing import (
    InputFile,
    Listing,
    as_unicode,
    has_no_such_path,
    list_files,
    same_files,
)
from pipeline.storage.places import canonical_url, refuse_credentials

MOST_NAMED = 1000
"""Files that are not read of which a manifest has the names."""


@dataclass
class Inputs:
    """The files that ``--input`` stands for."""

    files: list[InputFile] = field(default_factory=list)
    """Sorted by URL, each once; shards of the published preprocessing by their numbers."""
    unread: dict[str, str] = field(default_factory=dict)
    """Why a file, directory or link is not read, by path."""
    all_prepared: bool = False
    """True if all files are chunks of prepared corpora, whose documents have ids."""
    hashes: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of files that the manifest of a prepared corpus states, by URL."""
    held_out: dict[str, ManifestChunk] = field(default_factory=dict)
    """The validation files of prepared corpora whose chunks are read, by URL."""
    marks: Marks = field(default_factory=Marks)

    @property
    def chunk_hashes(self) -> dict[str, tuple[str, int]]:
        """SHA-256 and size of the files whose hash the manifest of a prepared corpus states."""
        return {f.url: (self.hashes[f.url], f.size) for f in self.files if f.url in self.hashes}

    @property
    def held_out_hashes(self) -> dict[str, tuple[str, int]]:
        """SHA-256 and size that manifests state of the validation files, by URL."""
        return {url: (c["sha256"], c["file_bytes"]) for url, c in self.held_out.items()}

    def print_unread(self, console: Console) -> None:
        """Say how many files are not read and why, with some of the names."""
        for reason, count in Counter(self.unread.values()).most_common():
            paths = sorted(path for path, why in self.unread.items() if why == reason)
            more = ", …" if count > 3 else ""
            files = "1 file" if count == 1 else f"{count:,} files"
            console.print(
                f"not read: {files}, {reason}: {', '.join(paths[:3])}{more}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def unread_record(self) -> dict[str, Any]:
        """The files that are not read, for a manifest."""
        named = sorted(self.unread.items())[:MOST_NAMED]
        files = [{"path": path, "reason": reason} for path, reason in named]
        return {"count": len(self.unread), "files": files}


def find_inputs(
    patterns: Sequence[str], wanted: FormatName = AUTO, *, output: str | None = None
) -> Inputs:
    """The input that paths, globs, directories and URLs stand for.

    Files in ``output``, which may lie below an input directory, are no input.

    Args:
        wanted: the format of all files; AUTO goes by names, and by content where there is no
            ending.

    Raises:
        ConfigError: an input cannot be listed, holds nothing to read, is in the output, or mixes
            documents that are held out with those for training.
    """
    result = Inputs(all_prepared=True)
    by_url: dict[str, InputFile] = {}
    for pattern in patterns:
        refuse_credentials("--input", pattern)
        listing = _outside(list_files(pattern), output)
        chosen = _choose(pattern, listing, wanted, result)
        if not chosen:
            raise _nothing(pattern, result.unread)
        by_url |= {file.url: file for file in chosen}
    again = same_files(by_url.values()) if len(patterns) > 1 else {}
    by_url = {url: file for url, file in by_url.items() if url not in again}
    result.unread |= again
    _refuse_held_out(by_url.values())
    for url in by_url:
        result.unread.pop(url, None)  # another input names it
    names = Counter(file.name for file in by_url.values())
    # Ids of documents begin with names of files: two files of one name go by their whole URLs.
    named = (
        replace(f, name=as_unicode(f.url)) if names[f.name] > 1 else f for f in by_url.values()
    )
    result.files = sorted(named, key=in_order)
    return result


def _outside(listing: Listing, output: str | None) -> Listing:
    """The listing without the files in the output.

    Raises:
        ConfigError: all of it is in the output.
    """
    if output is None:
        return listing
    below = canonical_url(output).rstrip("/") + "/"
    lease = f"{below}{LEASES}/"  # this job's own
    listed = [file for file in listing.files if not canonical_url(file.url).startswith(lease)]
    files = [file for file in listed if not canonical_url(file.url).startswith(below)]
    if listed and not files:
        raise ConfigError(
            f"--output {output}: holds the input {listed[0].url}; choose another directory"
        )
    skipped = {p: why for p, why in listing.skipped.items() if not f"{p}/".startswith(below)}
    return replace(listing, files=files, skipped=skipped)


def _nothing(pattern: str, unread: dict[str, str]) -> ConfigError:
    if has_no_such_path(pattern):
        return ConfigError(f"--input {pattern}: no such file or directory")
    known = " ".join(end for form in FORMATS.values() for end in form.endings)
    here = [f"{path} ({why})" for path, why in unread.items()]
    found = f"; not read: {', '.join(here[:5])}" if here else ""
    return ConfigError(
        f"--input {pattern}: no such file, and no files with {known} below, compressed or not"
        + found
    )


def _choose(pattern: str, listing: Listing, wanted: FormatName, result: Inputs) -> list[InputFile]:
    """The files of one listing that are read; ``result`` learns why the others are not."""
    if listing.is_file:
        result.all_prepared = False
        for file in listing.files:
            result.marks.check(file)
        return [_typed(file, wanted) for file in listing.files]
    directories = Directories(pattern, listing)
    result.unread |= listing.skipped
    chosen = []
    for file in listing.files:
        if is_mark(file):  # it is looked at with its shard
            continue
        reason = directories.reason_against(file)
        if reason is None and result.marks.is_unfinished(file):
            reason = UNFINISHED
        if reason is None and not directories.holds_chunk(file):
            file = _typed(file, wanted)
            if file_format(file, wanted) is None:
                reason = UNKNOWN
        if reason is None:
            chosen.append(file)
        else:
            result.unread[file.url] = reason
    kept = [file for file in chosen if directories.is_data(file)]
    about = {file.url for file in chosen} - {file.url for file in kept}
    result.unread |= dict.fromkeys(about, ABOUT_DATA)
    stated = ((file.url, directories.hash_of(file)) for file in kept)
    result.hashes |= {url: sha256 for url, sha256 in stated if sha256 is not None}
    result.held_out |= directories.held_out
    result.all_prepared &= all(directories.holds_chunk(file) for file in kept)
    return kept


def _typed(file: InputFile, wanted: FormatName) -> InputFile:
    """The file, with the ending that its content tells where its name has none."""
    name = PurePosixPath(file.name).name
    if wanted != AUTO or file_format(file, AUTO) is not None:
        return file
    if "." in name and not name.startswith("part-"):
        return file
    with translated(f"--input {file.url}", ConfigError):
        return replace(file, ending=ending_of(file))


def _refuse_held_out(files: Iterable[InputFile]) -> None:
    """
    Raises:
        ConfigError: a corpus's validation set is among its chunks.
    """
    chunks, held_out = dict(_matches(files, CHUNK)), dict(_matches(files, HELD_OUT))
    for corpus, url in held_out.items():
        if corpus in chunks:
            raise ConfigError(
                f"--input: {url} is held out for validation and would be mixed with "
                f"{chunks[corpus]}; name the chunks alone, as {corpus}.chunk.*, or the held-out "
                "file alone"
            )


def _matches(files: Iterable[InputFile], pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for file in files:
        directory, _, name = file.url.rpartition("/")
        if match := pattern.fullmatch(name):
            yield f"{directory}/{match['name']}", file.url
