"""Corpora on the hub: where they are, which files belong to them, and in which columns.

To add a named corpus, add an entry to :data:`CORPORA`; ``--corpus``, its help and its error
messages follow the table.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pipeline.corpus.formats import AUTO, FORMATS, FormatName, file_format
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.storage.listing import InputFile

NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files about a dataset in a format of data; the ``datasets`` library writes them."""
HIDDEN = "hidden"
UNKNOWN = "in no known format"
ABOUT_DATA = "about the data"
OTHER_SPLIT = "in another split than train"
TRAIN = ("train", "training")
OTHERS = ("validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
"""Words in the names of files and directories that tell a split."""
_WORDS = re.compile(r"[-._ 0-9/]+")


@dataclass(frozen=True)
class Corpus:
    """Files of a dataset repository on the hub."""

    name: str
    repository: str
    """Hub id: ``owner/name``."""
    files: tuple[str, ...]
    """Patterns of paths in the repository; a ``*`` matches ``/`` too, as in the hub's client."""
    format: FormatName
    text_column: str
    id_column: str | None
    """Without one a document's id is ``file name#position``."""
    revision: str
    """Commit, branch or tag. Named corpora have a commit, so that they stay what they are."""
    whole: bool = False
    """True if nobody chose among the repository's files: those of other splits than train are left
    out."""


def _fineweb_edu(name: str, files: str) -> Corpus:
    revision = "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9"
    return Corpus(
        name, "HuggingFaceFW/fineweb-edu", (files,), "parquet", "text", "id", revision=revision
    )


def _dclm_baseline(name: str, files: str) -> Corpus:
    revision = "a3b142c183aebe5af344955ae20836eb34dcf69b"
    return Corpus(
        name, "mlfoundations/dclm-baseline-1.0", (files,), "jsonl", "text", None, revision=revision
    )


CORPORA = {
    corpus.name: corpus
    for corpus in (
        _fineweb_edu("fineweb_edu", "data/*/*.parquet"),
        _fineweb_edu("fineweb_edu_10bt", "sample/10BT/*.parquet"),
        _dclm_baseline("dclm_baseline_1.0", "*.jsonl.zst"),
        _dclm_baseline("dclm_baseline_1.0_10prct", "global-shard_01_of_10/*.jsonl.zst"),
    )
}


def find_corpus(name: str) -> Corpus:
    """The corpus that ``--corpus`` names.

    A hub id stands for all files of the repository in a format of data, but those of other splits
    than train, with the column ``text``.

    Raises:
        ConfigError: it is neither a named corpus nor a hub id.
    """
    from pipeline.storage.hub import HUB_ID

    if name in CORPORA:
        return CORPORA[name]
    dataset = HUB_ID.fullmatch(name.removeprefix("hf://datasets/"))
    if dataset is None:
        raise ConfigError(
            f"--corpus {name}: no such corpus; there are {', '.join(CORPORA)}, and every dataset "
            "of the hub, as owner/name or owner/name@revision"
        )
    revision = dataset["revision"] or "main"
    data = [form for form in FORMATS.values() if form.is_data]
    files = tuple(f"*{suffix}" for form in data for suffix in form.suffixes)
    repository = dataset["repository"]
    return Corpus(name, repository, files, AUTO, "text", None, revision=revision, whole=True)


def in_other_splits(names: Collection[str]) -> set[str]:
    """The files of a dataset's repository that are in another split than train.

    The names of files and directories tell splits, by the same words as for the ``datasets``
    library. Files whose names tell none are in no other split, nor is any if none is called train.

    >>> in_other_splits(["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"])
    {'data/test-00000-of-00001.parquet'}
    """
    words = {name: set(_WORDS.split(name)) for name in names}
    if not any(not said.isdisjoint(TRAIN) for said in words.values()):
        return set()
    return {
        name
        for name, said in words.items()
        if said.isdisjoint(TRAIN) and not said.isdisjoint(OTHERS)
    }


def list_corpus(corpus: Corpus) -> tuple[list[InputFile], dict[str, str]]:
    """The files of a corpus, sorted by name, as :func:`list_repository` describes them; and, by
    path, why the others of the repository are left out, unless somebody chose among them.

    Raises:
        ConfigError: it is gated, missing, or cannot be reached, or no file matches.
    """
    from huggingface_hub.utils import filter_repo_objects

    from pipeline.storage.hub import Repository, check_access, list_repository

    flag = f"--corpus {corpus.name}"
    repository = Repository(flag, "dataset", corpus.repository, corpus.revision)
    every, patterns = list_repository(repository), list(corpus.files)
    matches = filter_repo_objects(every, allow_patterns=patterns, key=lambda file: file.name)
    files = [file for file in matches if _is_data(PurePosixPath(file.name))]
    left_out: dict[str, str] = {}
    if corpus.whole:
        others = in_other_splits([file.name for file in files])
        files = [file for file in files if file.name not in others]
        read = {file.name for file in files}
        left_out = {
            file.url: OTHER_SPLIT if file.name in others else _reason_against(file)
            for file in every
            if file.name not in read
        }
    if not files:
        raise ConfigError(
            f"{flag}: {corpus.repository} at {corpus.revision} has no file that matches "
            + " ".join(corpus.files)
        )
    check_access(repository, files[0])
    return files, left_out


def _reason_against(file: InputFile) -> str:
    """Why a file is none of a repository's data."""
    path = PurePosixPath(file.name)
    if any(part.startswith((".", "_")) for part in path.parts):
        return HIDDEN
    return UNKNOWN if file_format(file, AUTO) is None else ABOUT_DATA


def _is_data(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in NOT_DATA
