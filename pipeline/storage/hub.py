"""The files of a repository on the hub at a commit, with their sizes and hashes.

Nothing is downloaded here; see :mod:`pipeline.storage.download`.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict, TypeVar

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
from huggingface_hub.utils import build_hf_headers, logging, paginate

from pipeline.errors import ConfigError
from pipeline.storage.listing import InputFile
from pipeline.storage.outages import say

RETRIES = 9
"""How often a request is repeated after failures that may pass, without progress in between."""
FIRST_WAIT = 1.0
"""Seconds before the first retry; each further one waits twice as long, up to LONGEST_WAIT: in
all two to four minutes."""
LONGEST_WAIT = 60.0
ANNOUNCED_S = 4.0
"""A wait, in seconds, that people are told of."""
TRANSIENT_STATUSES = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which the hub's client, too, repeats a request."""
HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?")
"""``owner/name`` or ``owner/name@revision``."""

_URL = re.compile(r"hf://(?P<kind>datasets/)?(?P<id>[^/@]+/[^/@]+)@(?P<commit>[^/]+)/(?P<path>.+)")
T = TypeVar("T")

# The client reports each retry on stderr, where a job shows its progress.
logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Repository:
    """A repository, as ``--corpus`` or ``--tokenizer`` names it."""

    flag: str
    """The flag with its value, as errors begin."""
    kind: Literal["dataset", "model"]
    id: str
    revision: str


def list_repository(repository: Repository) -> list[InputFile]:
    """All files of a repository, sorted by name.

    URLs hold the commit that the revision stands for now, so that they keep their meaning.
    A file's version is the hash of its content: ``sha256:…`` or, for small files, git's ``git:…``.

    Raises:
        ConfigError: it is missing or cannot be reached.
    """
    with _as_config_errors(repository):
        commit = _with_retries(
            lambda: HfApi().repo_info(
                repository.id,
                revision=repository.revision,
                repo_type=repository.kind,
                expand="sha",  # and not the names of all files
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            )
        ).sha
        entries: list[_TreeEntry] = _with_retries(
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


class _LfsFields(TypedDict):
    oid: str


class _TreeEntry(TypedDict):
    """A file or directory as the hub lists it."""

    type: str
    path: str
    size: int
    oid: str
    lfs: NotRequired[_LfsFields]


def _input_file(root: str, entry: _TreeEntry) -> InputFile:
    lfs = entry.get("lfs")
    version = f"sha256:{lfs['oid']}" if lfs else f"git:{entry['oid']}"
    return InputFile(f"{root}/{entry['path']}", entry["path"], entry["size"], version)


def check_access(repository: Repository, file: InputFile) -> None:
    """
    Raises:
        ConfigError: the hub refuses the file, although it may list the repository openly.
    """
    with _as_config_errors(repository), suppress(RemoteEntryNotFoundError):  # its download says so
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        _with_retries(lambda: get_hf_file_metadata(resolve_url(file.url), timeout=timeout))


def is_hub_file(file: InputFile) -> bool:
    """True if a file comes from :func:`list_repository`."""
    return _URL.fullmatch(file.url) is not None and file.version.startswith(("sha256:", "git:"))


def _url_parts(url: str) -> re.Match[str]:
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError(f"{url}: not the URL of a file on the hub at a commit")
    return parts


def resolve_url(url: str) -> str:
    """The URL from which the hub serves the content of a file of :func:`list_repository`."""
    part = _url_parts(url)
    kind = "dataset" if part["kind"] else "model"
    return hf_hub_url(part["id"], part["path"], repo_type=kind, revision=part["commit"])


def download_directory(file: InputFile) -> str:
    """The directory of a file's repository and commit, below that of all downloads."""
    part = _url_parts(file.url)
    return f"{part['id']}/{part['commit']}"


def download_path(file: InputFile) -> str:
    """The path of a stored file, below the directory of all downloads."""
    return f"{download_directory(file)}/{file.name}"


def repository_page(url: str) -> str:
    """The page of a file's repository, where people accept its licence."""
    return resolve_url(url).split("/resolve/")[0]


def error_message(error: Exception) -> str:
    """The message of an error without URLs, which may be signed."""
    if isinstance(error, HfHubHTTPError):
        message = f": {error.server_message}" if error.server_message else ""
        return f"HTTP {error.response.status_code}{message}"
    return str(error) or type(error).__name__


def pause(failures: int, problem: str) -> None:
    """Wait before a retry, a random time: many workers fail at the same moment. Whoever watches is
    told when it becomes long."""
    wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
    if wait / 2 < ANNOUNCED_S <= wait:
        say(f"{constants.ENDPOINT}: does not answer ({problem}); waiting for it")
    time.sleep(wait * random.uniform(0.5, 1))


def _with_retries(request: Callable[[], T]) -> T:
    """The hub's answer to a request that the client itself sends only once."""
    failures = 0
    while True:
        try:
            return request()
        except (httpx.TransportError, HfHubHTTPError) as error:
            failures += 1
            refused = isinstance(error, HfHubHTTPError) and (
                error.response.status_code not in TRANSIENT_STATUSES
            )
            if refused or failures > RETRIES:
                raise
            problem = error_message(error)
        pause(failures, problem)


@contextmanager
def _as_config_errors(repository: Repository) -> Iterator[None]:
    """Errors of the hub's client as one sentence that names the flag."""
    flag, name = repository.flag, repository.id
    try:
        yield
    except GatedRepoError as error:
        where = f"{constants.ENDPOINT}/{'datasets/' * (repository.kind == 'dataset')}{name}"
        raise ConfigError(
            f"{flag}: {name} is gated: accept its licence on {where}, then set HF_TOKEN to a "
            "token of that account"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{flag}: no {repository.kind} {name} on the hub (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{flag}: {name} has no revision {repository.revision}") from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"{flag}: HF_HUB_OFFLINE is set; unset it") from error
    except HFValidationError as error:
        raise ConfigError(f"{flag}: not a hub id: {error}") from error
    except HfHubHTTPError as error:
        token = " (is HF_TOKEN right?)" if error.response.status_code in (401, 403) else ""
        raise ConfigError(f"{flag}: the hub refuses it: {error_message(error)}{token}") from error
    except httpx.HTTPError as error:
        raise ConfigError(
            f"{flag}: the hub at {constants.ENDPOINT} cannot be reached: {error_message(error)}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:  # not the answers that are documented
        raise ConfigError(
            f"{flag}: {constants.ENDPOINT} does not answer as a hub does (HF_ENDPOINT): {error}"
        ) from error
