"""Files of the hub → local copies: verified, resumed where a killed process stopped, kept or not.

The hub's client downloads a file that was interrupted all over again (its issue 4196), so the body
is read here. Sessions, tokens, mirrors and what statuses mean are the client's, and so is waiting
after a busy hub.
"""

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from pipeline.corpus.named import HUB_ID
from pipeline.errors import ConfigError, PipelineError, UnreachableFileError
from pipeline.storage import hub
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory, to_json

READ_BYTES = 1 << 20
TOKENIZER_RECORD = "tokenizer/source.json"
TOKENIZERS = {
    "llama3": "meta-llama/Meta-Llama-3-8B",
    "llama2": "meta-llama/Llama-2-7b-hf",
    "gpt2": "openai-community/gpt2",
}
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "original/tokenizer.model", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)


@contextmanager
def fetched(file: InputFile, directory: Path, report: Callable[[int], None]) -> Iterator[Path]:
    """A local copy, as :func:`fetch` makes it, until the block ends."""
    path = fetch(file, directory, report)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def fetch(file: InputFile, directory: Path, report: Callable[[int], None]) -> Path:
    """A local copy with the size and the hash that the hub told.

    What an earlier, killed process downloaded to the same directory is used. Any number of
    processes may fetch different files into one directory.

    Args:
        file: from :mod:`pipeline.storage.hub`.
        report: told of each piece that arrives, in bytes.

    Raises:
        UnreachableFileError: it cannot be downloaded now, is gone, is refused, or differs from what
            the hub told; says which.
        PipelineError: the directory cannot be written, or is full.
    """
    path = directory / local_name(file)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # what an earlier process left may be wrong, or a proxy's answer
            actual = _complete(file, path, report)
            if actual == file.version:
                return path
            path.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(file, directory) from error
        raise PipelineError(f"{directory}: cannot be written: {error}") from error
    raise UnreachableFileError(
        f"{file.url}: what was downloaded, twice, has the hash {actual} and should have "
        f"{file.version}"
    )


def local_name(file: InputFile) -> str:
    """What the copy of a file is called: not its path, for directories would need removing too."""
    unique = hashlib.sha256(file.url.encode()).hexdigest()[:16]
    return f"{unique}-{PurePosixPath(file.name).name[-200:]}"


def _no_room(file: InputFile, directory: Path) -> PipelineError:
    return PipelineError(
        f"{directory}: the disk has no room for {file.name} ({file.size} bytes); make room, then "
        "run the same command again to go on"
    )


def _complete(file: InputFile, path: Path, report: Callable[[int], None]) -> str:
    """Download what the copy lacks; gives the hash of all of it."""
    kind = file.version.partition(":")[0]
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("a+b") as copy:
        copy.seek(0)
        while block := copy.read(READ_BYTES):
            digest.update(block)
        start = copy.tell()
        if shutil.disk_usage(path.parent).free < file.size - start:
            raise _no_room(file, path.parent)
        for piece in _rest(file, start):
            copy.write(piece)
            digest.update(piece)
            report(len(piece))
    return f"{kind}:{digest.hexdigest()}"


def _rest(file: InputFile, position: int) -> Iterator[bytes]:
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
            problem = hub.say(error)
        except OfflineModeIsEnabled as error:
            raise UnreachableFileError(f"{file.url}: HF_HUB_OFFLINE is set; unset it") from error
        except HfHubHTTPError as error:
            if error.response.status_code == 416:  # the file ends here, and its hash tells
                return
            raise _refusal(file, error) from error
        if position < file.size:
            failures += 1
            if failures > hub.RETRIES:
                raise _unreachable(file, problem)
            hub.pause(failures)


def _stream(file: InputFile, start: int) -> Iterator[bytes]:
    """The bytes of a file from ``start`` on, as far as one connection goes."""
    headers: dict[str, Any] = {**build_hf_headers(), "Accept-Encoding": "identity"}
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
        retry_on_exceptions=(),  # it would begin anew inside this block
        retry_on_status_codes=hub.PASSING,
    ) as response:
        hf_raise_for_status(response)
        known = start if response.status_code == 200 else 0  # the range may have been ignored
        for piece in response.iter_raw():
            if len(piece) > known:
                yield piece[known:]
            known = max(0, known - len(piece))


def _refusal(file: InputFile, error: HfHubHTTPError) -> UnreachableFileError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return UnreachableFileError(
            f"{file.url}: the hub refuses it ({hub.say(error)}): accept the licence on "
            f"{hub.page(file.url)}, and set HF_TOKEN to a token of that account"
        )
    if status == 404:
        return UnreachableFileError(f"{file.url}: is no longer on the hub")
    return _unreachable(file, hub.say(error))


def _unreachable(file: InputFile, problem: str) -> UnreachableFileError:
    return UnreachableFileError(
        f"{file.url}: cannot be downloaded now: {problem}; what has arrived is kept, run the same "
        "command again to go on"
    )


def find_tokenizer(name: str) -> list[InputFile]:
    """The files of a tokenizer.

    Args:
        name: one of TOKENIZERS, or any hub id, as ``owner/name`` or ``owner/name@revision``.

    Raises:
        ConfigError: it is gated, missing, cannot be reached, or holds no tokenizer.
    """
    asked = f"--tokenizer {name}"
    model = HUB_ID.fullmatch(TOKENIZERS.get(name, name))
    if model is None:
        raise ConfigError(
            f"{asked}: no such tokenizer; there are {', '.join(TOKENIZERS)}, and every model of "
            "the hub, as owner/name or owner/name@revision"
        )
    repository = hub.Repository(asked, "model", model["repository"], model["revision"] or "main")
    found = {file.name: file for file in hub.list_repository(repository)}
    files = [found[wanted] for wanted in TOKENIZER_FILES if wanted in found]
    whole = found.keys() & set(TOKENIZER_FILES[:3]) or {"vocab.json", "merges.txt"} <= found.keys()
    if not whole:
        raise ConfigError(
            f"{asked}: {repository.id} holds no tokenizer: neither {', '.join(TOKENIZER_FILES[:3])}"
            " nor vocab.json with merges.txt"
        )
    hub.check_open(repository, files[0])
    return files


def download_tokenizer(name: str, files: list[InputFile], output: OutputDirectory) -> list[str]:
    """Commit the files of a tokenizer below ``tokenizer/``; gives their names.

    Raises:
        UnreachableFileError: one cannot be downloaded now.
        PipelineError: the output cannot be written.
    """
    output.remove("tokenizer")
    with tempfile.TemporaryDirectory() as temporary:
        for file in files:
            copy = fetch(file, Path(temporary), report=lambda count: None)
            with output.committing(f"tokenizer/{file.name}") as target:
                shutil.copyfile(copy, target)
    # Last, so that it tells that they are all there.
    output.write(TOKENIZER_RECORD, to_json({"name": name, "files": [f.url for f in files]}))
    return [f"tokenizer/{file.name}" for file in files]


def tokenizer_there(output: OutputDirectory) -> str | None:
    """The name of the tokenizer that was downloaded, all of it."""
    if not output.exists(TOKENIZER_RECORD):
        return None
    name: str = output.read_json(TOKENIZER_RECORD)["name"]
    return name
