"""Paths, globs, directories and URLs → the files that they stand for.

:mod:`pipeline.corpus.inputs` decides which of them are input.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, UnreachableFileError, translated
from pipeline.storage.places import filesystem_of

LINK_IS_BROKEN = "a link to nothing"
LINK_IS_LOOP = "a link to a directory that is read already"
NOT_REGULAR = "no regular file"
SAME_FILE = "the same file as {other}"
HUB_BLOBS = "the files of a cache of the hub, which its snapshots name"
HUB_CACHE = re.compile(r"(datasets|models|spaces)--.+")
"""The directory of a repository in the cache of ``huggingface_hub``: ``blobs`` holds files by their
hashes, and ``snapshots/REVISION`` links to them by their names."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the corpus."""

    url: str
    name: str
    """Path below the directory or glob that it was found by; ids of documents begin with it."""
    size: int
    """Bytes, as stored."""
    version: str
    """Etag, hash or time of modification: it changes when the content does."""
    ending: str = ""
    """The ending that the content deserves, such as ``.jsonl.gz``, where the name has none."""

    @property
    def typed_name(self) -> str:
        """The name, in lower case, with an ending that tells format and compression."""
        return self.name.lower() + self.ending


@dataclass(frozen=True)
class Listing:
    """The files that one path, glob or URL stands for."""

    is_file: bool = False
    """True if the pattern names one file."""
    files: list[InputFile] = field(default_factory=list)
    """All files, hidden ones as well, in no order."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why something is none of them, by path."""


def list_files(pattern: str) -> Listing:
    """The files that a path, glob, directory or URL stands for; none if there is no such thing.

    Linked directories are followed, each once, so that links in a circle end.

    Raises:
        ConfigError: the place cannot be listed, or is a pipe or device.
    """
    with translated(f"--input {pattern}", ConfigError, "cannot be listed"):
        filesystem, path = filesystem_of(pattern)
        filesystem.invalidate_cache()
        if any(magic in path for magic in "*?[") and not filesystem.exists(path):
            return _matches(filesystem, path)
        if filesystem.isdir(path):
            if isinstance(filesystem, LocalFileSystem):
                return _walk(path)
            infos, blobs = _without_blobs(filesystem.find(path, detail=True))
            return Listing(files=list(_described(filesystem, infos, path)), skipped=blobs)
        if filesystem.exists(path):
            name, info = PurePosixPath(path).name, filesystem.info(path)
            if info["type"] == "other":
                raise ConfigError(
                    f"--input {pattern}: {NOT_REGULAR}: a pipe or device can be read once, and "
                    "from its start; write it to a file first"
                )
            return Listing(True, [_input_file(filesystem, info, name)])
    return Listing()


def same_files(files: Iterable[InputFile]) -> dict[str, str]:
    """Files that are others of these once more, by another path: by URL, why they are skipped.

    The files of one listing are different ones. Those of two may not be: of ``--input a b``, ``b``
    may hold a link to ``a``.
    """
    found = _LocalFiles("/")
    for file in files:
        if "://" not in file.url:
            found.add(file.url)
    again = SAME_FILE.format(other="")
    return {path: why for path, why in found.listing.skipped.items() if why.startswith(again)}


def has_no_such_path(pattern: str) -> bool:
    """True if a pattern is a path on this machine, and there is nothing by that name."""
    return "://" not in pattern and not set("*?[") & set(pattern) and not Path(pattern).exists()


def check_unchanged(file: InputFile) -> None:
    """
    Raises:
        UnreachableFileError: the file is another one than was listed.
    """
    filesystem, path = filesystem_of(file.url)
    with translated(file.url, UnreachableFileError):
        if isinstance(filesystem, LocalFileSystem):
            now = _local_file(path, file.name, os.stat(path))  # noqa: PTH116 (quicker)
        else:
            filesystem.invalidate_cache()
            now = _input_file(filesystem, filesystem.info(path), file.name)
    # Files of the hub are known by their hash, wherever they were downloaded to.
    same_version = now.version == file.version or file.version.startswith(("sha256:", "git:"))
    if now.size != file.size or not same_version:
        raise UnreachableFileError(
            f"{file.url}: has changed since the job began ({file.size} bytes then, {now.size} now);"
            " run the same command again"
        )


def _matches(filesystem: Any, pattern: str) -> Listing:
    """The files that match a glob. Directories that match are said to be skipped."""
    first_magic = min(pattern.find(magic) for magic in "*?[" if magic in pattern)
    root = str(PurePosixPath(pattern[:first_magic] + "x").parent)
    infos, blobs = _without_blobs(filesystem.glob(pattern, detail=True))
    if isinstance(filesystem, LocalFileSystem):
        local = _LocalFiles(root)
        directories = {path for path in infos if os.path.isdir(path)}  # noqa: PTH112 (quicker)
        for path in infos:
            if path not in directories:
                local.add(path)
        listing = local.listing
    else:
        listing = Listing(files=list(_described(filesystem, infos, root)))
        directories = {path for path, info in infos.items() if info["type"] == "directory"}
    listing.skipped.update(blobs)
    if "**" not in pattern:  # otherwise what is below them matches, too
        listing.skipped.update(dict.fromkeys(sorted(directories), "a directory"))
    return listing


def _without_blobs(infos: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Entries without the blobs of caches of the hub whose snapshots are among them, and why those
    directories are skipped."""
    caches = {path.partition("/snapshots/")[0] for path in infos if "/snapshots/" in path}
    blobs = {f"{path}/blobs" for path in caches if HUB_CACHE.fullmatch(PurePosixPath(path).name)}
    if not blobs:
        return infos, {}
    kept = {path: info for path, info in infos.items() if _up_to_blobs(path) not in blobs}
    return kept, dict.fromkeys(sorted(blobs & {*map(_up_to_blobs, infos)}), HUB_BLOBS)


def _up_to_blobs(path: str) -> str:
    before, blobs, _ = f"{path}/".partition("/blobs/")
    return before + blobs.rstrip("/")


def _described(filesystem: Any, infos: dict[str, Any], root: str) -> Iterator[InputFile]:
    for path, info in infos.items():
        if info["type"] != "directory":
            yield _input_file(filesystem, info, path.removeprefix(root).lstrip("/"))


def _walk(root: str) -> Listing:
    """The files below a local directory, each once, whatever links there are."""
    local = _LocalFiles(root)
    seen = {os.path.realpath(root)}

    def fail(error: OSError) -> None:
        raise error

    for directory, below, names in os.walk(root, followlinks=True, onerror=fail):
        for name in sorted(below):
            path = f"{directory}/{name}"
            real = os.path.realpath(path)
            if real in seen:
                below.remove(name)
                local.listing.skipped[path] = LINK_IS_LOOP
            seen.add(real)
        below.sort()
        if {"blobs", "snapshots"} <= set(below) and HUB_CACHE.fullmatch(
            PurePosixPath(directory).name
        ):
            below.remove("blobs")
            local.listing.skipped[f"{directory}/blobs"] = HUB_BLOBS
        for name in sorted(names):
            local.add(f"{directory}/{name}")
    return local.listing


class _LocalFiles:
    """Collects local files, each once: several links may lead to one."""

    def __init__(self, root: str):
        """
        Args:
            root: names of files are paths below it.
        """
        self.listing = Listing()
        self._root = root
        self._seen: dict[str, str] = {}
        self._directory = ("", "")
        """A directory, and what it really is."""

    def add(self, path: str) -> None:
        """Add a file, or say why it is skipped."""
        real = self._real(path)
        try:
            info = os.stat(real)  # noqa: PTH116 (quicker)
        except OSError:
            self.listing.skipped[path] = LINK_IS_BROKEN
            return
        if not stat.S_ISREG(info.st_mode):
            self.listing.skipped[path] = NOT_REGULAR
        elif real in self._seen:
            self.listing.skipped[path] = SAME_FILE.format(other=self._seen[real])
        else:
            self._seen[real] = path
            self.listing.files.append(_local_file(path, self._name(path), info))

    def _real(self, path: str) -> str:
        """The file that a path leads to. Of the directories only the last one is kept: files of one
        follow one another."""
        if os.path.islink(path):  # noqa: PTH114 (quicker)
            return os.path.realpath(path)
        directory, _, name = path.rpartition("/")
        if directory != self._directory[0]:
            self._directory = directory, os.path.realpath(directory or "/").rstrip("/")
        return f"{self._directory[1]}/{name}"

    def _name(self, path: str) -> str:
        """The path below the root."""
        below = path.removeprefix(f"{self._root}/")
        return os.path.relpath(path, self._root) if below == path else below


def _input_file(filesystem: Any, info: dict[str, Any], name: str) -> InputFile:
    if isinstance(filesystem, LocalFileSystem):
        path = info["name"]
        return _local_file(path, name, os.stat(path))  # noqa: PTH116 (quicker)
    marks = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
    version = next((info[mark] for mark in marks if info.get(mark)), "")
    url = filesystem.unstrip_protocol(info["name"])
    return InputFile(url, name, int(info["size"]), str(version).strip('"'))


def _local_file(path: str, name: str, info: os.stat_result) -> InputFile:
    """A local file, or the one that a link leads to."""
    return InputFile(path, as_unicode(name), info.st_size, str(info.st_mtime))


def as_unicode(name: str) -> str:
    """The name of a file as ids and rejects hold it, which have to be UTF-8: names need not be."""
    return os.fsencode(name).decode(errors="backslashreplace")
