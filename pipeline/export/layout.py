"""A layout of an export: where the file of each shard lies, what is in its rows, how it is written
and read back, and what else belongs to the export. The layouts that there are:
:mod:`pipeline.export.layouts`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from pipeline.export.exported_file import ExportedFile
    from pipeline.export.file_writers import WriteRows
    from pipeline.shards.entries import Shard
    from pipeline.shards.shard_set import ShardSet
    from pipeline.statistics.counts import PatchStatistics
    from pipeline.storage.output import OutputDirectory

# Commands read the table of layouts to parse their flags: methods import what they need.


class ExportSettings(Protocol):
    """The flags that layouts look at."""

    @property
    def output(self) -> str: ...
    @property
    def drop_entropies(self) -> bool: ...
    @property
    def threshold(self) -> float | None: ...
    @property
    def corpus(self) -> str | None: ...
    @property
    def entropy_model_name(self) -> str | None: ...
    @property
    def staging(self) -> str | None: ...
    @property
    def private(self) -> bool: ...
    @property
    def num_workers(self) -> int | None: ...


class Layout:
    """One form of an export: Parquet files with the columns of the shards, unless a method says
    otherwise."""

    name: ClassVar[str]
    """The value of ``--layout``."""
    own_flags: ClassVar[tuple[str, ...]] = ()
    """Settings that only this layout uses."""
    needs_entropies: ClassVar[bool] = False
    output_flag: ClassVar[str] = "--output"
    """The flag that names the directory of the files."""
    pushes: ClassVar[bool] = False
    """True if the export ends on the hub."""

    @property
    def card_files(self) -> tuple[str, ...]:
        """Files that the export may hold beside its data, manifest and record."""
        return ()

    @property
    def written_as(self) -> str:
        """The layout of the files: a rerun continues an export that has the same."""
        return self.name

    def check(self, settings: ExportSettings) -> None:
        """
        Raises:
            ConfigError: a setting does not fit this layout; names the flag.
        """

    def directory(self, shards: ShardSet, settings: ExportSettings) -> str:
        """URL of the directory that holds the files and the record of the export."""
        return settings.output

    def destination(self, output: OutputDirectory, settings: ExportSettings) -> str:
        """The URL or repository where users find the export."""
        return output.url

    def paths(
        self, entries: Sequence[Shard], shards: ShardSet, settings: ExportSettings
    ) -> list[str]:
        """The path of each shard's file below the directory."""
        return [f"data/{entry.name}.parquet" for entry in entries]

    def marks(self, path: str) -> tuple[str, ...]:
        """Empty files that say that the file at ``path`` is whole."""
        return ()

    def companions(self, paths: Sequence[str]) -> list[str]:
        """Empty files that another program looks for beside the files at ``paths``; they are
        written when all of these are there."""
        return []

    def rows(self, batch: pa.RecordBatch, settings: ExportSettings) -> pa.RecordBatch:
        """The rows of a file, from those of a shard."""
        from pipeline.shards.format import without_entropies

        return without_entropies(batch) if settings.drop_entropies else batch

    def writer(self, path: Path) -> AbstractContextManager[WriteRows]:
        """A function that writes rows to a new local file, while the context lasts."""
        from pipeline.export.file_writers import parquet_writer

        return parquet_writer(path)

    def read(self, file: BufferedIOBase) -> Iterator[pa.RecordBatch]:
        """The rows of a file that was written."""
        import pyarrow.parquet as pq

        yield from pq.ParquetFile(file).iter_batches(batch_size=1024)

    def begin(self, output: OutputDirectory, settings: ExportSettings) -> None:
        """Do what has to succeed before anything is written or removed."""

    def public(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """The provenance as the manifest states it."""
        return provenance

    def finish(
        self,
        files: list[ExportedFile],
        provenance: dict[str, Any],
        statistics: PatchStatistics,
        shards: ShardSet,
        output: OutputDirectory,
        settings: ExportSettings,
    ) -> None:
        """Write what the export holds beside its files; the manifest follows."""

    def publish(
        self,
        files: list[ExportedFile],
        beside: list[str],
        output: OutputDirectory,
        settings: ExportSettings,
        console: Console,
    ) -> int:
        """Send a finished export on; returns how many data files were sent."""
        return 0
