"""Places: every path is a URL that fsspec knows, or a plain local path. Credentials come from the
usual environment and are never stored or printed."""

import errno
import hashlib
import io
import os
from typing import Any
from urllib.parse import urlsplit

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import (
    BadFileError,
    ConfigError,
    UnreachableFileError,
    message_of,
    translated,
)
from pipeline.storage.outages import patient

_LOCAL = LocalFileSystem()
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "file")
"""Schemes whose filesystems need no other below them."""
READ_AHEAD = 8 << 20
"""Bytes that a remote file is read in at a time."""


def filesystem_of(url: str) -> tuple[Any, str]:
    """The filesystem of a URL or local path, and the path there; absolute if it is local.

    Remote filesystems wait outages out: see :mod:`pipeline.storage.outages`.
    """
    if "://" not in url:  # a plain path means itself, whatever characters are in it
        return _LOCAL, os.path.abspath(os.path.expanduser(url))  # noqa: PTH100, PTH111 (quicker)
    unchained = _unchained(url)
    filesystem, path = unchained or url_to_fs(url)
    if isinstance(filesystem, LocalFileSystem):  # file://
        return filesystem, str(path)
    last = url if unchained else url.rpartition("::")[2]
    scheme, _, rest = last.partition("://")
    return patient(filesystem, f"{scheme}://{rest.partition('/')[0]}"), str(path)


def _unchained(url: str) -> tuple[Any, str] | None:
    """The filesystem and path of a URL with "::" in the path. fsspec takes that for a chain of
    filesystems, which it is behind a cache or an archive, as in ``zip://a.txt::/b.zip``; objects of
    stores may just be called so."""
    scheme, _, rest = url.partition("://")
    if "::" not in rest or scheme not in STORES or "://" in rest:
        return None
    filesystem, _ = url_to_fs(url.partition("::")[0])
    return filesystem, filesystem._strip_protocol(url)


def canonical_url(url: str) -> str:
    """One URL for all ways to write a place; local ones are absolute paths."""
    filesystem, path = filesystem_of(url)
    if not isinstance(filesystem, LocalFileSystem):
        path = str(filesystem.unstrip_protocol(path))
    return path.rstrip("/") or "/"


def refuse_credentials(flag: str, url: str) -> None:
    """
    Raises:
        ConfigError: a URL holds a user name or password, or a query, which may be a token: they
            would be stored with it.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ConfigError(f"{flag}: no credentials in URLs, please: they would be stored")
    if parts.scheme in ("http", "https") and parts.query:
        plain = url.partition("?")[0]
        raise ConfigError(
            f"{flag} {plain}?…: no queries in URLs, please: tokens in them would be stored; "
            "download the file first"
        )


def open_input(url: str) -> io.BufferedIOBase:
    """A seekable binary file that reads ahead in large pieces; the caller closes it."""
    filesystem, path = filesystem_of(url)
    ahead = {} if isinstance(filesystem, LocalFileSystem) else {"block_size": READ_AHEAD}
    file: io.BufferedIOBase = filesystem.open(path, "rb", **ahead)
    return file


def sha256_of(url: str) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        BadFileError: a sector of a local disk cannot be read.
        UnreachableFileError: the file cannot be read now, which says nothing of what is in it.
    """
    with translated(url, UnreachableFileError):
        try:
            with open_input(url) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if error.errno != errno.EIO or "://" in url:
                raise
            raise BadFileError(f"{url}: cannot be read: {message_of(error)}") from error
