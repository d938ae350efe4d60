"""An exported dataset → a repository of the hub: workers upload files, the driver commits them.

Files are found in the repository by their SHA-256, so that a rerun uploads what is missing.
"""

import base64
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session
from rich.console import Console

from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import run_stage
from pipeline.errors import ConfigError, PipelineError, translated
from pipeline.export.dataset_card import CARD
from pipeline.export.exported_file import ExportedFile
from pipeline.shards.manifest import is_export
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST

KIND = "dataset"
PUSHED = "hub.json"
"""In the staging directory: the repositories that were pushed to."""
COMMIT_FILES = 50
"""Files that one commit adds: the hub limits the commits per hour and the size of each."""


def open_repository(repository: str, output: OutputDirectory, *, private: bool) -> None:
    """Make the repository unless it is there.

    Args:
        output: the staging directory, which remembers what was pushed from it.

    Raises:
        ConfigError: it is there, and holds files that no export has put there, or is public and
            was to be private.
        PipelineError: the hub refuses or cannot be reached.
    """
    disable_progress_bars()  # there is one for all workers
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    begun = output.read_json(PUSHED) if output.exists(PUSHED) else []
    with _saying(repository):
        # Without a word the owner's own default decides.
        HfApi().create_repo(repository, repo_type=KIND, private=private or None, exist_ok=True)
        info = HfApi().repo_info(repository, repo_type=KIND, expand="private")
        if private and info.private is False:
            raise ConfigError(
                f"--private: {repository} is there already, and everybody can read it; make it "
                "private in its settings on the hub, or leave the flag out"
            )
        foreign = set() if repository in begun else _foreign_files(repository)
    if foreign:
        raise ConfigError(
            f"--output {repository}: holds files that are no export's, such as {min(foreign)}; "
            "choose another repository, or remove them there first"
        )
    if repository not in begun:
        output.write(PUSHED, to_json([*begun, repository]))


def _files(repository: str) -> dict[str, str]:
    """SHA-256 of the files in a repository, by path; of small ones it is not known."""
    tree = HfApi().list_repo_tree(repository, repo_type=KIND, recursive=True)
    files = (item for item in tree if isinstance(item, RepoFile))
    return {file.path: file.lfs.sha256 if file.lfs else "" for file in files}


def _foreign_files(repository: str) -> set[str]:
    """Files of a repository beyond those it is made with; none if it holds an earlier export."""
    there = _files(repository).keys() - {".gitattributes", CARD, "LICENSE"}
    if MANIFEST not in there:
        return there
    with tempfile.TemporaryDirectory() as directory:
        path = HfApi().hf_hub_download(repository, MANIFEST, repo_type=KIND, local_dir=directory)
        try:
            manifest = json.loads(Path(path).read_bytes())
        except ValueError:
            return there
    return set() if is_export(manifest) else there


def push(
    files: list[ExportedFile],
    beside: list[str],
    repository: str,
    output: OutputDirectory,
    num_workers: int | None,
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
    api = HfApi()
    with _saying(repository):
        there = _files(repository)
    waiting = [i for i, file in enumerate(files) if there.get(file.path) != file.sha256]
    if waiting:
        _upload(waiting, files, repository, output, num_workers, console)
    expected = {file.path for file in files}
    left_over = [path for path in there if path.startswith("data/train-") and path not in expected]
    operations: list[Any] = [CommitOperationDelete(path) for path in left_over]
    operations += [CommitOperationAdd(name, output.read(name)) for name in beside]
    with _saying(repository):
        _choose_protocol(repository)
        _commit(api, repository, operations, "Card and manifest")
    return len(waiting)


def _upload(
    waiting: list[int],
    files: list[ExportedFile],
    repository: str,
    output: OutputDirectory,
    num_workers: int | None,
    console: Console,
) -> None:
    """Upload files on all workers, and commit them as they come."""
    api = HfApi()
    uploaded: list[CommitOperationAdd] = []

    def commit() -> None:
        if uploaded:
            with _saying(repository):
                _commit(api, repository, uploaded, f"{len(uploaded)} files of data")
            uploaded.clear()

    def receive(number: int, message: str) -> None:
        uploaded.append(pickle.loads(base64.b64decode(message)))
        if len(uploaded) >= COMMIT_FILES:
            commit()

    run_stage(
        "uploading",
        _upload_file,
        {i: files[i].bytes for i in waiting},
        (files, repository, output),
        console,
        workers=num_workers,
        receive=receive,
    )
    commit()


@lru_cache(maxsize=1)
def _choose_protocol(repository: str) -> None:
    """Have this process upload by plain HTTP where the hub has no Xet storage.

    Its client uploads to Xet wherever the library for it is installed, and fails at other hubs.
    """
    url = f"{constants.ENDPOINT}/api/{KIND}s/{repository}/xet-write-token/main"
    if get_session().get(url, headers=build_hf_headers()).status_code == 404:
        constants.HF_HUB_DISABLE_XET = True


def _commit(api: HfApi, repository: str, operations: list[Any], message: str) -> None:
    api.create_commit(repository, operations, commit_message=message, repo_type=KIND)


def _upload_file(
    number: int, shared: tuple[list[ExportedFile], str, OutputDirectory], report: Reporter
) -> str:
    """Upload one file with the token of this node; returns the operation that the driver has to
    commit, pickled."""
    disable_progress_bars()
    files, repository, output = shared
    file = files[number]
    with tempfile.TemporaryDirectory() as directory:
        path = _staged(file, output, directory)
        operation = CommitOperationAdd(file.path, str(path))
        with _saying(repository):
            _choose_protocol(repository)
            HfApi().preupload_lfs_files(repository, [operation], repo_type=KIND)
        if not operation._is_uploaded:  # so small that the hub takes it with the commit
            operation = CommitOperationAdd(file.path, path.read_bytes())
    report(file.bytes)
    return base64.b64encode(pickle.dumps(operation)).decode()


def _staged(file: ExportedFile, output: OutputDirectory, directory: str) -> Path:
    """The path on this node of a file that was exported.

    Raises:
        PipelineError: it is not there, or there is no room for a copy.
    """
    where = output.locate(file.path)
    path = Path(where) if output.local else Path(directory, "file")
    with translated(f"--staging: {where}", what="cannot be uploaded"):
        if not output.local:
            output.filesystem.get_file(f"{output.path}/{file.path}", str(path))
        path.open("rb").close()
    return path


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
            "run the same command again to continue"
        ) from error
    except Exception as error:  # of the network: each layer has its own
        raise PipelineError(
            f"--output {repository}: the hub cannot be reached: {type(error).__name__}: {error}; "
            "run the same command again to continue"
        ) from error
