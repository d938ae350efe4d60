"""An exported dataset → a repository of the hub: workers upload files, the driver commits them.

Files are found in the repository by their SHA-256, so that a rerun uploads what is missing.
"""

import base64
import logging
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import disable_progress_bars
from rich.console import Console

from pipeline.errors import PipelineError
from pipeline.export import ExportedFile
from pipeline.export_config import ExportShardsConfig
from pipeline.memory import bound_memory
from pipeline.pool import attempt, new_board, work_off
from pipeline.progress import Reporter
from pipeline.storage import OutputDirectory

KIND = "dataset"
COMMIT_FILES = 50
"""Files that one commit adds: the hub limits commits an hour, and what one can hold."""


def open_repository(config: ExportShardsConfig) -> None:
    """Make the repository unless it is there.

    Raises:
        PipelineError: the hub refuses or cannot be reached.
    """
    disable_progress_bars()  # there is one for all workers
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with _saying(config.output):
        # Without a word the owner's own default decides.
        private = config.private or None
        HfApi().create_repo(config.output, repo_type=KIND, private=private, exist_ok=True)


def push(
    files: list[ExportedFile],
    beside: list[str],
    config: ExportShardsConfig,
    output: OutputDirectory,
    console: Console,
) -> int:
    """Bring a repository to what was exported: data first, then what tells of it.

    Args:
        beside: manifest, card and its pictures, below the output.

    Returns:
        how many data files were uploaded.

    Raises:
        PipelineError: the hub refuses or cannot be reached; what is committed stays there.
    """
    repository = config.output
    api = HfApi()
    with _saying(repository):
        tree = api.list_repo_tree(repository, repo_type=KIND, recursive=True)
        there = {
            item.path: item.lfs.sha256 if item.lfs else ""
            for item in tree
            if isinstance(item, RepoFile)
        }
    waiting = [i for i, file in enumerate(files) if there.get(file.path) != file.sha256]
    if waiting:
        _upload(waiting, files, config, output, console)
    expected = {file.path for file in files}
    left_over = [path for path in there if path.startswith("data/train-") and path not in expected]
    operations: list[Any] = [CommitOperationDelete(path) for path in left_over]
    operations += [CommitOperationAdd(name, output.read(name)) for name in beside]
    with _saying(repository):
        _commit(api, repository, operations, "Card and manifest")
    return len(waiting)


def _upload(
    waiting: list[int],
    files: list[ExportedFile],
    config: ExportShardsConfig,
    output: OutputDirectory,
    console: Console,
) -> None:
    """Upload files on all workers, and commit them as they come."""
    api, repository = HfApi(), config.output
    uploaded: list[CommitOperationAdd] = []

    def commit() -> None:
        if uploaded:
            with _saying(repository):
                _commit(api, repository, uploaded, f"{len(uploaded)} files of data")
            uploaded.clear()

    def receive(number: int, result: str) -> None:
        uploaded.append(pickle.loads(base64.b64decode(result)))
        if len(uploaded) >= COMMIT_FILES:
            commit()

    light = [replace(file, statistics={}) for file in files]
    board = new_board()
    work_off(
        {i: files[i].bytes for i in waiting},
        {},
        console,
        "uploading",
        board,
        _upload_file,
        receive=receive,
        fn_args=(ray.put(light), repository, output, board),
        concurrency=config.num_workers,
    )
    commit()


def _commit(api: HfApi, repository: str, operations: list[Any], message: str) -> None:
    api.create_commit(repository, operations, commit_message=message, repo_type=KIND)


def _upload_file(
    row: dict[str, Any], shared: Any, repository: str, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    bound_memory()
    disable_progress_bars()

    def upload(number: int, report: Reporter) -> str:
        """The operation that the driver has to commit, pickled. The token is that of the node."""
        file: ExportedFile = ray.get(shared)[number]
        with tempfile.TemporaryDirectory() as directory, _saying(repository):
            path = Path(output.locate(file.path))
            if not output.local:
                path = Path(directory, "file")
                output.filesystem.get_file(f"{output.path}/{file.path}", str(path))
            operation = CommitOperationAdd(file.path, str(path))
            HfApi().preupload_lfs_files(repository, [operation], repo_type=KIND)
            if not operation._is_uploaded:  # so small that the hub takes it with the commit
                operation = CommitOperationAdd(file.path, path.read_bytes())
        report(file.bytes)
        return base64.b64encode(pickle.dumps(operation)).decode()

    return attempt(row, board, upload)


@contextmanager
def _saying(repository: str) -> Iterator[None]:
    """
    Raises:
        PipelineError: instead of what the hub's client raises; never with a token in it.
    """
    try:
        yield
    except PipelineError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hints = {
            401: "no valid token; set HF_TOKEN to one that may write",
            403: "the token may not write there",
            404: "there is no such owner, or the token may not see it",
        }
        said = hints.get(status, error.server_message or str(error).splitlines()[0])
        raise PipelineError(
            f"--output {repository}: the hub refuses ({status}): {said}; what is committed stays, "
            "run the same command again to go on"
        ) from error
    except Exception as error:  # of the network: each layer has its own
        raise PipelineError(
            f"--output {repository}: the hub cannot be reached: {type(error).__name__}: {error}; "
            "run the same command again to go on"
        ) from error
