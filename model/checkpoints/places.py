"""Places of checkpoints: a directory, a URL, a repository of the hub, or this package itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import httpx
import huggingface_hub
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from model.checkpoints.files import CheckpointError
from model.checkpoints.names import NO_SUCH, WEIGHTS, built_in, is_for_everybody

WEIGHTS_FILES = ["*.safetensors", "*.pth"]
WANTED_FILES = ["*.json", *WEIGHTS_FILES]
UNWANTED_FILES = ["original/*"]
"""Llama's repositories hold all weights a second time."""


@contextmanager
def local_directory(what: str, source: str) -> Iterator[Path]:
    """``source`` as a local directory, which may be a temporary copy.

    Args:
        what: the kind of checkpoint, for messages.
        source: a directory, a URL that fsspec knows, a hub id, or the name of the model that comes
            with this package.

    Raises:
        CheckpointError: there is no such thing, or it cannot be reached.
    """
    if "://" in source and not source.startswith("hf://"):
        with tempfile.TemporaryDirectory() as temporary:
            # A directory below: what lies beside a checkpoint is looked at, too.
            directory = Path(temporary, "checkpoint")
            directory.mkdir()
            try:
                _copy_files(source, directory)
            except Exception as error:  # each filesystem has its own; all mean the same here
                raise CheckpointError(f"cannot read the {what} in {source}: {error}") from error
            yield directory
    elif Path(source).is_dir():
        yield Path(source)
    elif source in built_in():
        yield WEIGHTS / source
    elif Path(source).is_file():  # of two names, it would be asked for on the hub
        raise CheckpointError(f"{source}: is a file; give the directory that it lies in")
    elif is_for_everybody(source):
        yield Path(download(source.removeprefix("hf://")))
    else:
        raise CheckpointError(f"{source}: {NO_SUCH}")


def _copy_files(url: str, directory: Path) -> None:
    """Copy the files of a checkpoint from a URL."""
    filesystem, path = fsspec.core.url_to_fs(url)
    # An entropy model may lie in a directory below.
    files = filesystem.find(path, maxdepth=2)
    if not files:
        raise FileNotFoundError("there are no files there")
    for file in files:
        target = Path(directory, file.removeprefix(path).lstrip("/"))
        if target.suffix in (".json", ".safetensors", ".pth"):
            target.parent.mkdir(exist_ok=True)
            filesystem.get_file(file, str(target))


def holds_weights(directory: str | Path) -> bool:
    """True if a directory that was downloaded has weights, in it or below."""
    return any(next(Path(directory).rglob(form), None) for form in WEIGHTS_FILES)


def download(
    repository: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    offline: bool = False,
) -> str:
    """The directory of a hub repository's checkpoint, after what is missing was downloaded.

    Args:
        output: the directory to put it in; the hub's cache by default.
        revision: a branch, a tag or a commit; the main branch by default.
        offline: ask nobody: it was downloaded before.

    Raises:
        CheckpointError: it is gated, does not exist, or cannot be reached; says what to do.
    """
    try:
        return huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=WANTED_FILES,
            ignore_patterns=UNWANTED_FILES,
            local_dir=output,
            local_files_only=offline,
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its licence on its hub page, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such directory, and no such model on the hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repository}: cannot be downloaded from the hub: {error}"
        ) from error
