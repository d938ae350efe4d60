"""``--input`` → the files that are read, and those that are not, with the reason.

A path to a file stands for that file, whatever its name. A directory or glob stands for the files
in formats that :mod:`pipeline.corpus.formats` knows, except what is about the data or not meant for
training. This module knows the directories that people have at hand: output of this project,
downloaded repositories of the hub, datasets that ``save_to_disk`` wrote, and Hadoop's. Nothing is
left out without being named.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console

from pipeline.corpus.content import ending_of
from pipeline.corpus.formats import AUTO, FORMATS, FormatName, file_format
from pipeline.corpus.named import (
    ABOUT_DATA,
    HIDDEN,
    NOT_DATA,
    OTHER_SPLIT,
    UNKNOWN,
    in_other_splits,
)
from pipeline.corpus.prepared import ManifestChunk, prepared_chunks, prepared_validation
from pipeline.corpus.published import UNFINISHED, Marks, in_order, is_mark
from pipeline.errors import ConfigError, translated
from pipeline.storage.checked_json import parse_json
from pipeline.storage.lease import LEASES
from pipeline.storage.listing import (
    InputFile,
    Listing,
    as_unicode,
    has_no_such_path,
    list_files,
)
from pipeline.storage.places import canonical_url, filesystem_of, open_input, refuse_credentials
from pipeline.storage.run_record import EXPORT, MANIFEST, PREPARE, RECORD

HELD_OUT = re.compile(r"(?P<name>.+)\.val\.[a-z.]+")
CHUNK = re.compile(r"(?P<name>.+)\.chunk\.\d+\.[a-z.]+")
DOCUMENTS = re.compile(r"(readme|licen[sc]e|copying|notice|citation|changelog|contributing)\b.*")
"""Names of files that come with data and are no part of it, in lower case."""
MOST_NAMED = 1000
"""Files that are not read of which a manifest has the names."""
MOST_RECORD_BYTES = 256 << 20
"""Larger files are no records of this project."""


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
    directories = _Directories(pattern, listing.files)
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


class _Directories:
    """Knows the kinds of the directories in a listing, from files that lie there."""

    def __init__(self, pattern: str, files: list[InputFile]):
        """
        Raises:
            ConfigError: a prepared corpus or a shard set is not finished, or a directory holds
                several splits and none for training.
        """
        self._chunks: dict[str, ManifestChunk] = {}
        self.held_out: dict[str, ManifestChunk] = {}
        """Validation files of prepared corpora, by URL."""
        self._prepared: set[str] = set()
        self._shard_sets: set[str] = set()
        self._have_manifests: set[str] = set()
        self._hub_copies: set[str] = set()
        self._saved: dict[str, set[str]] = {}
        self._other_splits: set[str] = set()
        """Directories of saved datasets."""
        self._held_out_files: set[str] = set()
        """Files of other splits than train, in copies of the hub's repositories."""
        self._has_data = False
        filesystem, path = filesystem_of(pattern)
        self._is_directory = filesystem.isdir(path)
        for file in files:
            self._look_at(file)
        self._check_shard_sets()
        self._check_chunks({file.url: file.size for file in files})
        data = [form for form in FORMATS.values() if form.is_data]
        suffixes = tuple(suffix for form in data for suffix in form.suffixes)
        for copy in self._hub_copies:
            names = {
                file.url.removeprefix(f"{copy}/"): file.url
                for file in files
                if self._is_below(file, copy) and file.typed_name.endswith(suffixes)
            }
            self._held_out_files |= {names[name] for name in in_other_splits(names)}
        self._has_data = any(
            file.typed_name.endswith(suffixes) and self.reason_against(file) is None
            for file in files
        )

    def _look_at(self, file: InputFile) -> None:
        directory, _, name = file.url.rpartition("/")
        if name == MANIFEST:
            self._have_manifests.add(directory)
        if name in (MANIFEST, RECORD) and directory not in self._prepared:
            kind = _kind_of_output(file)
            if kind == PREPARE:
                self._prepared.add(directory)
                if self._is_directory:
                    self._chunks |= prepared_chunks(directory) or {}
                    if (validation := prepared_validation(directory)) is not None:
                        self.held_out[validation[0]] = validation[1]
            elif kind == "shards":
                self._shard_sets.add(directory)
        elif name == ".gitattributes" or (name == "README.md" and _has_front_matter(file)):
            self._hub_copies.add(directory)
        elif "/.cache/huggingface/" in file.url:
            self._hub_copies.add(file.url.partition("/.cache/huggingface/")[0])
        elif name == "state.json":
            listed = _json(file).get("_data_files")
            if isinstance(listed, list):
                names = {part.get("filename") for part in listed if isinstance(part, dict)}
                self._saved[directory] = {f"{directory}/{name}" for name in names}
        elif name == "dataset_dict.json":
            splits = _json(file).get("splits")
            if isinstance(splits, list) and len(splits) > 1:
                if "train" not in splits:
                    raise ConfigError(
                        f"--input {directory}: holds the splits {', '.join(map(str, splits))} and "
                        "none called train; name the directory of one of them"
                    )
                others = (f"{directory}/{split}" for split in splits if split != "train")
                self._other_splits |= set(others)

    def _check_shard_sets(self) -> None:
        """
        Raises:
            ConfigError: a shard set, and no validation set within another, is not finished: a part
                of its text would be read.
        """
        for directory in sorted(self._shard_sets - self._have_manifests):
            if not any(directory.startswith(f"{other}/") for other in self._shard_sets):
                raise ConfigError(
                    f"--input {directory}: this shard set is not finished; run the command that "
                    f"makes it again, or name {directory}/shards/* for what is there"
                )

    def _check_chunks(self, sizes: dict[str, int]) -> None:
        """
        Raises:
            ConfigError: a chunk of a prepared corpus is gone, or has another size than was written.
        """
        for url, chunk in self._chunks.items():
            size = sizes.get(url)
            if size != chunk["file_bytes"]:
                what = "is gone" if size is None else f"has {size:,} bytes"
                raise ConfigError(
                    f"--input {url}: {what}; {chunk['file_bytes']:,} bytes were written: "
                    "restore it, or prepare the corpus anew with --overwrite"
                )

    def hash_of(self, file: InputFile) -> str | None:
        """The SHA-256 that a chunk's manifest states; None for other files."""
        chunk = self._chunks.get(file.url)
        return None if chunk is None else chunk["sha256"]

    def holds_chunk(self, file: InputFile) -> bool:
        """True if the file is a chunk of a prepared corpus."""
        return file.url in self._chunks

    def reason_against(self, file: InputFile) -> str | None:
        """Why the file is not read, as far as its place and name tell; None if it may be."""
        directory, _, name = file.url.rpartition("/")
        if file.url in self._chunks:
            return None
        if any(part.startswith((".", "_")) for part in PurePosixPath(file.name).parts):
            return HIDDEN
        if any(self._is_below(file, prepared) for prepared in self._prepared):
            is_chunk = directory in self._prepared and not self._is_directory
            if not (is_chunk and (CHUNK.fullmatch(name) or HELD_OUT.fullmatch(name))):
                return "part of a prepared corpus and no chunk of it"
        for shard_set in self._shard_sets:
            if self._is_below(file, shard_set) and directory != f"{shard_set}/shards":
                return "part of a shard set and no shard"
        if any(self._is_below(file, split) for split in self._other_splits):
            return OTHER_SPLIT
        if file.url in self._held_out_files:
            return OTHER_SPLIT
        if directory in self._saved and file.url not in self._saved[directory]:
            return "not in the state.json of the saved dataset"
        if name in NOT_DATA:
            return ABOUT_DATA
        return None

    def is_data(self, file: InputFile) -> bool:
        """True unless the file comes with data and is no part of it."""
        name = PurePosixPath(file.name).name
        known = file_format(file, AUTO)
        if known is None or FORMATS[known].is_data:
            return True
        if any(self._is_below(file, copy) for copy in self._hub_copies):
            return False
        return not (self._has_data and DOCUMENTS.fullmatch(name.lower()))

    @staticmethod
    def _is_below(file: InputFile, directory: str) -> bool:
        return file.url.startswith(f"{directory}/")


def _kind_of_output(file: InputFile) -> str | None:
    """The job of this project that wrote a record or manifest; None for one of somebody else's."""
    values = _json(file)
    if values.get("stage") in (PREPARE, EXPORT):
        return str(values["stage"])
    is_shards = {"patcher", "columns"} <= values.keys() or {"splits", "made_with"} <= values.keys()
    return "shards" if is_shards else None


def _json(file: InputFile) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    if file.size > MOST_RECORD_BYTES:
        return {}
    with translated(f"--input {file.url}", ConfigError), open_input(file.url) as raw:
        data = raw.read()
    try:
        values = parse_json(data)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _has_front_matter(file: InputFile) -> bool:
    with translated(f"--input {file.url}", ConfigError), open_input(file.url) as raw:
        return raw.read(4) == b"---\n"


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
