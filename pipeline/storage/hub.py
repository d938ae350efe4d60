"""What the hub has: the files of a repository at a commit, with their sizes and hashes.

Nothing is downloaded here; see :mod:`pipeline.storage.download`.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

import httpx
from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, filter_repo_objects, logging, paginate

from pipeline.corpus.named import Corpus
from pipeline.errors import ConfigError
from pipeline.storage.listing import InputFile

RETRIES = 6
"""How often something that may pass is tried again, without any progress in between."""
FIRST_WAIT = 1.0
"""Seconds before the first retry; each further one waits twice as long."""
LONGEST_WAIT = 60.0
PASSING = (408, 429, 500, 502, 503, 504)
"""HTTP statuses that may pass: those that the hub's client, too, tries again after."""
NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""Files about a dataset in the format of data; the ``datasets`` library writes them."""

_URL = re.compile(r"hf://(?P<kind>datasets/)?(?P<id>[^/@]+/[^/@]+)@(?P<commit>[^/]+)/(?P<path>.+)")
T = TypeVar("T")

# The client tells each retry on stderr, where a job shows its progress.
logging.set_verbosity_error()


@dataclass(frozen=True)
class Repository:
    """A repository, as ``--corpus`` or ``--tokenizer`` names it."""

    asked: str
    """The flag and its value: what errors begin with."""
    kind: Literal["dataset", "model"]
    id: str
    revision: str


def list_files(corpus: Corpus) -> list[InputFile]:
    """The files of a corpus, by name. See :func:`list_repository` for what they tell.

    Raises:
        ConfigError: it is gated, missing, or cannot be reached, or no file matches.
    """
    asked = f"--corpus {corpus.name}"
    repository = Repository(asked, "dataset", corpus.repository, corpus.revision)
    found = filter_repo_objects(
        list_repository(repository), allow_patterns=list(corpus.files), key=lambda file: file.name
    )
    files = [file for file in found if _is_data(PurePosixPath(file.name))]
    if not files:
        raise ConfigError(
            f"{asked}: {corpus.repository} at {corpus.revision} has no file that matches "
            + " ".join(corpus.files)
        )
    check_open(repository, files[0])
    return files


def _is_data(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in NOT_DATA


def list_repository(repository: Repository) -> list[InputFile]:
    """All files of a repository, by name.

    URLs hold the commit that the revision stands for now, so that they keep their meaning.
    Versions tell the content's hash: ``sha256:…`` or, of small files, git's ``git:…``.

    Raises:
        ConfigError: it is missing or cannot be reached.
    """
    with _explaining(repository):
        commit = _ask(
            lambda: HfApi().repo_info(
                repository.id,
                revision=repository.revision,
                repo_type=repository.kind,
                expand="sha",  # and not the names of all files
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        ).sha
        entries = _ask(
            # HfApi.list_repo_tree has no timeout.
            lambda: list(
                paginate(
                    f"{constants.ENDPOINT}/api/{repository.kind}s/{repository.id}/tree/{commit}",
                    params={"recursive": True},
                    headers=build_hf_headers(),
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                )
            )
        )
    root = f"hf://{'datasets/' if repository.kind == 'dataset' else ''}{repository.id}@{commit}"
    files = [_input_file(root, entry) for entry in entries if entry["type"] == "file"]
    return sorted(files, key=lambda file: file.name)


def _input_file(root: str, entry: dict[str, Any]) -> InputFile:
    lfs = entry.get("lfs")
    version = f"sha256:{lfs['oid']}" if lfs else f"git:{entry['oid']}"
    return InputFile(f"{root}/{entry['path']}", entry["path"], entry["size"], version)


def check_open(repository: Repository, file: InputFile) -> None:
    """
    Raises:
        ConfigError: files of the repository are refused, though it may list them openly.
    """
    with _explaining(repository), suppress(RemoteEntryNotFoundError):  # told when it is fetched
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        _ask(lambda: get_hf_file_metadata(resolve_url(file.url), timeout=timeout))


def is_hub_file(file: InputFile) -> bool:
    """Whether a file comes from :func:`list_repository`."""
    return _URL.fullmatch(file.url) is not None and file.version.startswith(("sha256:", "git:"))


def _parts(url: str) -> re.Match[str]:
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError(f"{url}: not the URL of a file on the hub at a commit")
    return parts


def resolve_url(url: str) -> str:
    """Where the hub answers with the content of a file that :func:`list_repository` gave."""
    part = _parts(url)
    kind = "dataset" if part["kind"] else "model"
    return hf_hub_url(part["id"], part["path"], repo_type=kind, revision=part["commit"])


def kept_directory(file: InputFile) -> str:
    """Where files of a repository at a commit are kept, beside those of others."""
    part = _parts(file.url)
    return f"{part['id']}/{part['commit']}"


def kept_path(file: InputFile) -> str:
    """Where a file is kept, below the directory of downloads."""
    return f"{kept_directory(file)}/{file.name}"


def page(url: str) -> str:
    """The page on which people accept the licence of a file's repository."""
    return resolve_url(url).split("/resolve/")[0]


def say(error: Exception) -> str:
    """What went wrong, without URLs, which may be signed."""
    if isinstance(error, HfHubHTTPError):
        told = f": {error.server_message}" if error.server_message else ""
        return f"HTTP {error.response.status_code}{told}"
    return str(error) or type(error).__name__


def pause(failures: int) -> None:
    """Wait before a retry, a little at random: many workers fail in one moment."""
    wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
    time.sleep(wait * random.uniform(0.5, 1))


def _ask(question: Callable[[], T]) -> T:
    """The hub's answer; the client itself asks for these only once."""
    failures = 0
    while True:
        try:
            return question()
        except (httpx.TransportError, HfHubHTTPError) as error:
            failures += 1
            refused = isinstance(error, HfHubHTTPError) and (
                error.response.status_code not in PASSING
            )
            if refused or failures > RETRIES:
                raise
        pause(failures)


@contextmanager
def _explaining(repository: Repository) -> Iterator[None]:
    asked, name = repository.asked, repository.id
    try:
        yield
    except GatedRepoError as error:
        where = f"{constants.ENDPOINT}/{'datasets/' * (repository.kind == 'dataset')}{name}"
        raise ConfigError(
            f"{asked}: {name} is gated: accept its licence on {where}, then set HF_TOKEN to a "
            "token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{asked}: no {repository.kind} {name} on the hub (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{asked}: {name} has no revision {repository.revision}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"{asked}: HF_HUB_OFFLINE is set; unset it") from error
    except HFValidationError as error:
        raise ConfigError(f"{asked}: not a hub id: {error}") from error
    except HfHubHTTPError as error:
        token = " (is HF_TOKEN right?)" if error.response.status_code in (401, 403) else ""
        raise ConfigError(f"{asked}: the hub refuses it: {say(error)}{token}") from error
    except httpx.HTTPError as error:
        raise ConfigError(
            f"{asked}: the hub at {constants.ENDPOINT} cannot be reached: {say(error)}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # not the answers that are documented
        raise ConfigError(
            f"{asked}: {constants.ENDPOINT} does not answer as a hub does (HF_ENDPOINT): {error}"
        ) from error
