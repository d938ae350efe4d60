"""Input files that tell failures of their storage from broken content."""

import os
from collections.abc import Callable

from pipeline.storage.places import open_input


class ReadOnlyFile:
    """The answers that pyarrow asks of any file that is only read."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing; pyarrow calls it."""


class WatchedFile(ReadOnlyFile):
    """An input file that keeps the error with which its storage refused to be read.

    Decoders wrap, replace or swallow the errors of the file below them. This tells whether the
    storage failed, or what it gave cannot be decoded.
    """

    def __init__(self, url: str):
        self._file = open_input(url)
        self.failure: Exception | None = None
        """The first error of the storage."""
        self._read1 = getattr(self._file, "read1", self._file.read)

    def read(self, size: int = -1) -> bytes:
        return self._watched(self._file.read, size)

    def read1(self, size: int = -1) -> bytes:
        return self._watched(self._read1, size)

    def _watched(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except Exception as error:
            self.failure = self.failure or error
            raise

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
