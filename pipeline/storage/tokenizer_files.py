"""Tokenizers: one in a file or on the hub to work with, and the download of all files of one beside
a corpus."""

import shutil
import tempfile
from pathlib import Path

from pipeline.errors import ConfigError, translated
from pipeline.storage.checked_json import to_json
from pipeline.storage.download import fetch
from pipeline.storage.hub import HUB_ID, Repository, check_access, list_repository
from pipeline.storage.known_tokenizers import TOKENIZERS
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.tiktoken_ranks import is_ranks, tokenizer_json

DIRECTORY = "tokenizer"
FILE = "tokenizer.json"
RECORD = f"{DIRECTORY}/source.json"
SINGLE_FILES = (FILE, "tokenizer.model", "original/tokenizer.model")
"""Each of these is a whole tokenizer."""
FILE_PAIR = ("vocab.json", "merges.txt")
"""These are a tokenizer together."""
TOKENIZER_FILES = (
    *SINGLE_FILES,
    *FILE_PAIR,
    *("tokenizer_config.json", "special_tokens_map.json"),
)
"""Files that are downloaded, where a repository has them."""


def read_tokenizer(name: str, flag: str = "--tokenizer") -> bytes:
    """The content of a ``tokenizer.json``.

    Args:
        name: the file, tiktoken's file of ranks (``cl100k_base.tiktoken``), a directory that holds
            a ``tokenizer.json`` (itself or in ``tokenizer/``), or what :func:`find_tokenizer`
            finds on the hub.
        flag: the flag that names it, for errors.

    Raises:
        ConfigError: there is no such tokenizer, or it cannot be read.
    """
    path = Path(name).expanduser()
    places = [path, path / FILE, path / DIRECTORY / FILE]
    local = next((place for place in places if place.is_file()), None)
    if local is not None:
        with translated(f"{flag} {name}: {local}", ConfigError):
            content = local.read_bytes()
        return tokenizer_json(content, str(local), flag) if is_ranks(content) else content
    if path.exists():
        raise ConfigError(f"{flag} {name}: holds no {FILE}")
    files = {file.name: file for file in find_tokenizer(name, flag)}
    if FILE not in files:
        raise ConfigError(f"{flag} {name}: has no {FILE} on the hub, only {', '.join(files)}")
    with tempfile.TemporaryDirectory() as directory:
        return fetch(files[FILE], Path(directory), report=lambda count: None).read_bytes()


def find_tokenizer(name: str, flag: str = "--tokenizer") -> list[InputFile]:
    """The files of a tokenizer.

    Args:
        name: one of TOKENIZERS, or any hub id, as ``owner/name`` or ``owner/name@revision``.
        flag: the flag that names it, for errors.

    Raises:
        ConfigError: it is gated, missing, cannot be reached, or holds no tokenizer.
    """
    flag = f"{flag} {name}"
    model = HUB_ID.fullmatch(TOKENIZERS.get(name, name))
    if model is None:
        raise ConfigError(
            f"{flag}: no such tokenizer; there are {', '.join(TOKENIZERS)}, and every model of "
            "the hub, as owner/name or owner/name@revision"
        )
    repository = Repository(flag, "model", model["repository"], model["revision"] or "main")
    by_name = {file.name: file for file in list_repository(repository)}
    files = [by_name[wanted] for wanted in TOKENIZER_FILES if wanted in by_name]
    if not (by_name.keys() & set(SINGLE_FILES) or by_name.keys() >= set(FILE_PAIR)):
        raise ConfigError(
            f"{flag}: {repository.id} holds no tokenizer: neither {', '.join(SINGLE_FILES)}"
            f" nor {' with '.join(FILE_PAIR)}"
        )
    check_access(repository, files[0])
    return files


def download_tokenizer(name: str, files: list[InputFile], output: OutputDirectory) -> list[str]:
    """Commit the files of a tokenizer below ``tokenizer/``; returns their names there.

    Raises:
        UnreachableFileError: one cannot be downloaded now.
        PipelineError: the output cannot be written.
    """
    output.remove(DIRECTORY)
    with tempfile.TemporaryDirectory() as temporary:
        for file in files:
            copy = fetch(file, Path(temporary), report=lambda count: None)
            with output.committing(f"{DIRECTORY}/{file.name}") as target:
                shutil.copyfile(copy, target)
    # The record comes last: it tells that all files are there.
    output.write(RECORD, to_json({"name": name, "files": [file.url for file in files]}))
    return [f"{DIRECTORY}/{file.name}" for file in files]


def downloaded_tokenizer(output: OutputDirectory) -> str | None:
    """The name of the tokenizer all of whose files are in the output; None if there is none."""
    if not output.exists(RECORD):
        return None
    record = output.read_json(RECORD)
    name = record.get("name") if isinstance(record, dict) else None
    return name if isinstance(name, str) else None
