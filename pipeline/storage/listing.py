"""Paths, globs, directories and URLs → the files that they stand for."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, translated
from pipeline.storage.output import canonical_url, filesystem_of, refuse_credentials


@dataclass(frozen=True)
class InputFile:
    """One file of the corpus."""

    url: str
    name: str
    """Path below the directory or glob that it was found by; ids of documents begin with it."""
    size: int
    """Bytes, as stored."""
    version: str
    """Etag, hash or time of modification: it changes when the content does."""


def list_inputs(
    inputs: Sequence[str], *, suffixes: tuple[str, ...], output: str | None = None
) -> list[InputFile]:
    """The files that paths, globs, directories and URLs stand for, sorted by URL, each once.

    A directory or glob stands for its files that are not hidden and end in one of ``suffixes``, a
    path to a file for that file, whatever its name. Files in ``output``, which may lie below an
    input directory, are no input.

    Raises:
        ConfigError: an input cannot be listed, holds no such file, or is in the output.
    """
    by_url: dict[str, InputFile] = {}
    for pattern in inputs:
        refuse_credentials("--input", pattern)
        with translated(f"--input {pattern}", ConfigError, "cannot be listed"):
            files = list(_list_one(pattern, suffixes))
        below = canonical_url(output).rstrip("/") + "/" if output is not None else None
        inside = [file for file in files if below and canonical_url(file.url).startswith(below)]
        if inside and len(inside) == len(files):
            raise ConfigError(
                f"--output {output}: holds the input {inside[0].url}; choose another directory"
            )
        files = [file for file in files if file not in inside]
        if not files:
            known = " ".join(suffixes)
            raise ConfigError(f"--input {pattern}: no such file, and no files with {known} below")
        by_url |= {file.url: file for file in files}
    names = Counter(file.name for file in by_url.values())
    # Ids of documents begin with names of files: two files of one name go by their whole URLs.
    named = (replace(f, name=f.url) if names[f.name] > 1 else f for f in by_url.values())
    return sorted(named, key=lambda file: file.url)


def _list_one(pattern: str, suffixes: tuple[str, ...]) -> Iterator[InputFile]:
    filesystem, path = filesystem_of(pattern)
    filesystem.invalidate_cache()
    if any(magic in path for magic in "*?[") and not filesystem.exists(path):
        root = str(
            PurePosixPath(path[: min(path.find(m) for m in "*?[" if m in path)] + "x").parent
        )
        infos = filesystem.glob(path, detail=True)
    elif filesystem.isdir(path):
        root, infos = path, filesystem.find(path, detail=True)
    elif filesystem.exists(path):
        yield _input_file(filesystem, filesystem.info(path), PurePosixPath(path).name)
        return
    else:
        return
    for file, info in infos.items():
        name = file.removeprefix(root).lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in PurePosixPath(name).parts)
        if info["type"] != "directory" and not hidden and name.endswith(suffixes):
            yield _input_file(filesystem, info, name)


def _input_file(filesystem: Any, info: dict[str, Any], name: str) -> InputFile:
    marks = ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")
    version = next((info[mark] for mark in marks if info.get(mark)), "")
    local = isinstance(filesystem, LocalFileSystem)
    url = info["name"] if local else filesystem.unstrip_protocol(info["name"])
    return InputFile(url, name, int(info["size"]), str(version).strip('"'))
