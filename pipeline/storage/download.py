"""Files of the hub → local copies, verified; a download continues where a killed process stopped.

The hub's client downloads an interrupted file all over again (its issue 4196), so this module reads
the body itself. Sessions, tokens, mirrors, the meaning of statuses and the waiting for a busy hub
are the client's.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.storage import hub
from pipeline.storage.listing import InputFile

READ_BYTES = 1 << 20


@contextmanager
def local_copy(file: InputFile, directory: Path, report: Callable[[int], None]) -> Iterator[Path]:
    """A local copy, as :func:`fetch` makes it, which is removed when the block ends."""
    path = fetch(file, directory, report)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def fetch(file: InputFile, directory: Path, report: Callable[[int], None]) -> Path:
    """Download a file, or the rest of it; returns the path of the copy.

    The copy has the size and the hash that the hub lists. The function uses what an earlier, killed
    process downloaded to the same directory. Any number of processes may fetch different files into
    one directory.

    Args:
        file: from :mod:`pipeline.storage.hub`.
        report: called with the bytes of each piece that arrives.

    Raises:
        UnreachableFileError: it cannot be downloaded now, is gone, is refused, or differs from what
            the hub lists; says which.
        PipelineError: the directory cannot be written, or is full.
    """
    path = directory / local_name(file)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # an earlier process may have left something wrong, a proxy's answer say
            actual_hash = _complete(file, path, report)
            if actual_hash == file.version:
                return path
            path.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(file, directory) from error
        raise PipelineError(f"{directory}: cannot be written: {error}") from error
    raise UnreachableFileError(
        f"{file.url}: what was downloaded, twice, has the hash {actual_hash} and should have "
        f"{file.version}"
    )


def local_name(file: InputFile) -> str:
    """The name of a file's copy. It has no directories: those would have to be removed as well."""
    unique = hashlib.sha256(file.url.encode()).hexdigest()[:16]
    return f"{unique}-{PurePosixPath(file.name).name[-200:]}"


def _no_room(file: InputFile, directory: Path) -> PipelineError:
    return PipelineError(
        f"{directory}: the disk has no room for {file.name} ({file.size} bytes); make room, then "
        "run the same command again to continue"
    )


def _complete(file: InputFile, path: Path, report: Callable[[int], None]) -> str:
    """Download what the copy lacks; returns the hash of the whole copy, as versions have it."""
    kind = file.version.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("a+b") as copy:
        copy.seek(0)
        while block := copy.read(READ_BYTES):
            digest.update(block)
        start = copy.tell()
        if shutil.disk_usage(path.parent).free < file.size - start:
            raise _no_room(file, path.parent)
        for piece in _remaining(file, start):
            copy.write(piece)
            digest.update(piece)
            report(len(piece))
    return f"{kind}:{digest.hexdigest()}"


def _remaining(file: InputFile, position: int) -> Iterator[bytes]:
    """The bytes of a file from ``position`` on, over as many connections as that takes."""
    failures = 0
    while position < file.size:
        try:
            for piece in _stream(file, position):
                yield piece
                position += len(piece)
                failures = 0
            problem = "the connection ended early"
        except httpx.TransportError as error:
            problem = hub.error_message(error)
        except OfflineModeIsEnabled as error:
            raise UnreachableFileError(f"{file.url}: HF_HUB_OFFLINE is set; unset it") from error
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # the file ends here, and its hash tells
                return
            raise _hub_error(file, error) from error
        if position < file.size:
            failures += 1
            if failures > hub.RETRIES:
                raise _unreachable(file, problem)
            hub.pause(failures, problem)


def _stream(file: InputFile, start: int) -> Iterator[bytes]:
    """The bytes of a file from ``start`` on, as far as one connection goes."""
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with http_stream_backoff(
        "GET",
        hub.resolve_url(file.url),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=hub.RETRIES,
        base_wait_time=hub.FIRST_WAIT,
        max_wait_time=hub.LONGEST_WAIT,
        retry_on_exceptions=(),  # it would begin again inside this block
        retry_on_status_codes=hub.TRANSIENT_STATUSES,
    ) as response:
        hf_raise_for_status(response)
        # A server that ignores the range answers 200 and sends what is there already, too.
        skip = start if response.status_code == 200 else 0
        for piece in response.iter_raw():
            if len(piece) > skip:
                yield piece[skip:]
            skip = max(0, skip - len(piece))


def _hub_error(file: InputFile, error: HfHubHTTPError) -> UnreachableFileError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return UnreachableFileError(
            f"{file.url}: the hub refuses it ({hub.error_message(error)}): accept the licence on "
            f"{hub.repository_page(file.url)}, and set HF_TOKEN to a token of that account"
        )
    if status == 404:
        return UnreachableFileError(f"{file.url}: is no longer on the hub")
    return _unreachable(file, hub.error_message(error))


def _unreachable(file: InputFile, problem: str) -> UnreachableFileError:
    return UnreachableFileError(
        f"{file.url}: cannot be downloaded now: {problem}; what has arrived is kept, run the same "
        "command again to continue"
    )
