"""A directory of outputs, wherever it is, in which files are committed in one atomic step."""

import contextlib
import errno
import io
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import PipelineError, message_of, translated
from pipeline.storage.checked_json import parse_checked_json
from pipeline.storage.places import filesystem_of, open_input

TEMPORARY = "_tmp"
"""Directory below a local output that holds what is not committed yet."""
MAGIC = "*?["
"""Characters that filesystems of fsspec take for patterns where they read or remove many files."""


class OutputDirectory:
    """A directory, local or remote, in which files appear whole or not at all.

    Whatever it does raises PipelineError, naming the directory, if the storage refuses.

    Raises:
        PipelineError: the URL cannot be used, such as one with a pattern in it.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        with self._reaching():
            self.filesystem, self.path = filesystem_of(self.url)
        self.local = isinstance(self.filesystem, LocalFileSystem)
        if self.local:  # workers may have another working directory
            self.url = self.path
        elif any(magic in self.path for magic in MAGIC):
            raise PipelineError(
                f"{self.url}: cannot be used: one of {' '.join(MAGIC)} makes it a pattern, and "
                "other files would be read and removed, too; choose another name"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return OutputDirectory, (self.url,)

    def locate(self, name: str) -> str:
        """The URL of a file below this directory."""
        return f"{self.path if self.local else self.url}/{name}"

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each filesystem has its own; all mean the same here
            raise PipelineError(f"{self.url}: cannot be used: {message_of(error)}") from error

    def exists(self, name: str) -> bool:
        with self._reaching():
            return bool(self.filesystem.exists(f"{self.path}/{name}"))

    def names(self, directory: str = "") -> list[str]:
        """Names of the files in this directory, or in one below; none if there is no such one."""
        self.filesystem.invalidate_cache()
        root = f"{self.path}/{directory}".rstrip("/")
        try:
            with self._reaching():
                if self.local:
                    return sorted(os.listdir(root))  # noqa: PTH208 (ls would look at each of them)
                found = self.filesystem.ls(root, detail=False)
        except FileNotFoundError:
            return []
        # Some object stores list a directory that was emptied as what is in it.
        below = (path for path in found if path.strip("/") != root.strip("/"))
        return sorted(PurePosixPath(path).name for path in below)

    def sizes(self, directory: str = "") -> dict[str, int]:
        """Bytes of the files anywhere below this directory, or one below it, by path there."""
        self.filesystem.invalidate_cache()
        root = f"{self.path}/{directory}".rstrip("/")
        with self._reaching():
            found = self.filesystem.find(root, detail=True)
        return {path.removeprefix(f"{root}/"): int(info["size"]) for path, info in found.items()}

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._reaching():
            return int(self.filesystem.size(f"{self.path}/{name}"))

    def read(self, name: str) -> bytes:
        """
        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._reaching():
            if self.local:
                return Path(self.path, name).read_bytes()
            data: bytes = self.filesystem.cat_file(f"{self.path}/{name}")
            return data

    def read_ranges(self, names: list[str], starts: list[int], stops: list[int]) -> list[bytes]:
        """A range of bytes of each file; remotely many at a time.

        Raises:
            PipelineError: one cannot be read; names it.
        """
        paths = [f"{self.path}/{name}" for name in names]
        with self._reaching():
            # A range that is empty some object stores refuse.
            wanted = [i for i in range(len(paths)) if stops[i] > starts[i]]
            arguments = ([values[i] for i in wanted] for values in (paths, starts, stops))
            ranges = self.filesystem.cat_ranges(*arguments, on_error="return")
        for i, data in zip(wanted, ranges, strict=True):
            if isinstance(data, Exception):
                where = self.locate(names[i])
                raise PipelineError(f"{where}: cannot be read: {message_of(data)}") from data
        found = dict(zip(wanted, ranges, strict=True))
        return [found.get(i, b"") for i in range(len(paths))]

    def read_into(self, name: str, start: int, target: memoryview) -> int:
        """Fill ``target`` with the bytes of a file from ``start`` on; locally without a copy.

        Returns:
            how many bytes there were: fewer than asked for if the file ends before.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._reaching():
            if not self.local:
                stop = start + len(target)
                data = self.filesystem.cat_file(f"{self.path}/{name}", start=start, end=stop)
                target[: len(data)] = data
                return len(data)
            with Path(self.path, name).open("rb", buffering=0) as file:
                file.seek(start)
                done = 0
                while count := file.readinto(target[done:]):
                    done += count
                return done

    def read_json(self, name: str) -> Any:
        """The value in a JSON file."""
        return self._parse(name, self.read(name))

    def _parse(self, name: str, data: bytes) -> Any:
        try:
            return parse_checked_json(data)
        except ValueError as error:  # commits are atomic: somebody else wrote or cut this
            raise PipelineError(
                f"{self.locate(name)}: is damaged: {error}; restore it, or start anew with "
                "--overwrite"
            ) from error

    def read_all_json(self, directory: str, names: Sequence[str] | None = None) -> dict[str, Any]:
        """The values in JSON files of a directory, all or these; remotely many at a time."""
        names = self.names(directory) if names is None else names
        paths = [f"{directory}/{name}" for name in names]
        read = zip(names, paths, self.read_all(paths), strict=True)
        return {name: self._parse(path, data) for name, path, data in read}

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The content of each of these small files; remotely many at a time.

        Raises:
            FileNotFoundError: one is missing.
        """
        if self.local or not names:
            return [self.read(name) for name in names]
        paths = [f"{self.path}/{name}" for name in names]
        with self._reaching():
            found = self.filesystem.cat(paths)
        # A filesystem's path may differ from the one that it was asked for; names do not.
        by_name = {PurePosixPath(path).name: data for path, data in found.items()}
        return [by_name[PurePosixPath(name).name] for name in names]

    def open(self, name: str) -> io.BufferedIOBase:
        return open_input(self.locate(name))

    def write(self, name: str, data: bytes) -> None:
        """Commit a small file."""
        with self.committing(name) as temporary:
            temporary.write_bytes(data)

    def create(self, name: str, data: bytes) -> bool:
        """Commit a small file unless there is one; of several processes that try one succeeds.

        A remote store that knows no conditional writes may replace the file instead, or let several
        processes succeed.

        Returns:
            False if there is one.
        """
        if self.local:
            target = Path(self.path, name)
            temporary = target.with_name(f".{uuid.uuid4().hex}")
            with self._reaching():
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(data)
                try:
                    target.hardlink_to(temporary)
                except FileExistsError:
                    return False
                finally:
                    temporary.unlink()
            return True
        path = f"{self.path}/{name}"
        try:
            self.filesystem.pipe_file(path, data, mode="create")
        except Exception as error:  # stores say in different ways that there is one
            if self.exists(name):
                return False
            unknown = isinstance(error, NotImplementedError) or (
                isinstance(error, OSError) and error.errno in (errno.ENOSYS, errno.ENOTSUP)
            )
            if not unknown:
                raise self._cannot_write(name, error) from error
            with self._reaching():
                self.filesystem.pipe_file(path, data)
        return True

    @contextlib.contextmanager
    def committing(self, name: str) -> Iterator[Path]:
        """A local path to write to; when the block ends the file is committed as ``name``.

        If the block fails nothing is left behind. Locally the commit is a rename within one
        filesystem, after the data is on disk; remotely it is one upload, which object stores show
        only when it is complete.

        Raises:
            PipelineError: the file cannot be written; names it.
        """
        temporary = self._temporary_path()
        try:
            try:
                yield temporary
            except OSError as error:
                is_full = error.errno in (errno.ENOSPC, errno.EDQUOT) and not self.local
                where = f" ({temporary.parent} on {socket.gethostname()})" if is_full else ""
                raise self._cannot_write(name, error, where) from error
            try:
                if self.local:
                    self._rename(temporary, Path(self.path, name))
                else:
                    self.filesystem.put_file(str(temporary), f"{self.path}/{name}")
            except Exception as error:  # each filesystem has its own; all mean the same here
                raise self._cannot_write(name, error) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _cannot_write(self, name: str, error: Exception, where: str = "") -> PipelineError:
        return PipelineError(
            f"cannot write {self.locate(name)}: {message_of(error)}{where}; what is committed "
            "stays, run the same command again to continue"
        )

    def _temporary_path(self) -> Path:
        name = uuid.uuid4().hex
        if not self.local:
            return Path(tempfile.gettempdir(), f"blt-titan-{name}")
        directory = Path(self.path, TEMPORARY)
        with translated(self.url, what="cannot be used"):
            directory.mkdir(parents=True, exist_ok=True)
        return directory / name

    @staticmethod
    def _rename(temporary: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        # The rename itself is on disk only when its directory is.
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def check_writable(self) -> None:
        """
        Raises:
            PipelineError: nothing can be written here.
        """
        probe = f"{TEMPORARY}/{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.remove(probe)

    def remove(self, name: str) -> None:
        """Remove a file or directory below this one, if it is there."""
        self.filesystem.invalidate_cache()  # others may have written since it was listed
        if self.exists(name):
            with self._reaching():
                self.filesystem.rm(f"{self.path}/{name}", recursive=True)

    def remove_files(self, names: Iterable[str]) -> None:
        """Remove those of these files that are there; remotely many at a time."""
        names = list(names)
        there: set[str] = set()
        for directory in {name.rpartition("/")[0] for name in names}:  # others may hold millions
            there.update(f"{directory}/{name}".lstrip("/") for name in self.names(directory))
        paths = [f"{self.path}/{name}" for name in names if name in there]
        if paths:
            with self._reaching():
                self.filesystem.rm(paths)

    def leave(self) -> None:
        """Remove the directory of temporary files, if nothing is in it: for directories that may
        hold what others write."""
        if self.local:
            with contextlib.suppress(OSError):
                Path(self.path, TEMPORARY).rmdir()

    def remove_temporary(self) -> None:
        """Remove what killed processes left uncommitted: for directories that are a job's own."""
        if self.local:
            shutil.rmtree(Path(self.path, TEMPORARY), ignore_errors=True)
