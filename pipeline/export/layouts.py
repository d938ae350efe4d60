"""The layouts that shards can be exported to: one class each, and the table of them.

To add one, write a subclass of :class:`pipeline.export.layout.Layout` and put an instance into
:data:`LAYOUTS`: ``--layout`` then takes its name, and planning, resuming, verification, manifest
and progress work as they do for the others. This is a whole layout::

    class Flat(Layout):
        name = "flat"

        def paths(self, entries, shards, settings):
            return [f"{entry.name}.parquet" for entry in entries]

    LAYOUTS["flat"] = Flat()
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from io import BufferedIOBase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipeline.errors import ConfigError
from pipeline.export.layout import ExportSettings, Layout

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from pipeline.export.exported_file import ExportedFile
    from pipeline.export.file_writers import WriteRows
    from pipeline.shards.entries import Shard
    from pipeline.shards.shard_set import ShardSet
    from pipeline.statistics.counts import PatchStatistics
    from pipeline.storage.output import OutputDirectory

# Commands read the table to parse their flags: methods import what they need, not the module.

CHUNK = re.compile(r"(?P<corpus>.+)\.chunk\.(?P<number>\d+)\.\w+")
"""Names of chunks as prepare_corpus.py gives them, and, ending in .jsonl, the published recipe."""
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


class Parquet(Layout):
    """One Parquet file for each shard, below ``data/``."""

    name = "parquet"


class Datasets(Layout):
    """Parquet files with names and a card that ``datasets.load_dataset`` understands."""

    name = "datasets"

    @property
    def card_files(self) -> tuple[str, ...]:
        from pipeline.export.dataset_card import CARD, CARD_PLOTS, PICTURES

        return (CARD, *(f"{PICTURES}/{name}.png" for name in CARD_PLOTS))

    def paths(
        self, entries: Sequence[Shard], shards: ShardSet, settings: ExportSettings
    ) -> list[str]:
        total = len(entries)
        return [f"data/train-{i:05d}-of-{total:05d}.parquet" for i in range(total)]

    def public(self, provenance: dict[str, Any]) -> dict[str, Any]:
        from pipeline.export.provenance import without_places

        return without_places(provenance)

    def finish(
        self,
        files: list[ExportedFile],
        provenance: dict[str, Any],
        statistics: PatchStatistics,
        shards: ShardSet,
        output: OutputDirectory,
        settings: ExportSettings,
    ) -> None:
        from pipeline.export.dataset_card import write_card

        name = self.destination(output, settings).rpartition("/")[2]
        write_card(name, files, provenance, statistics, shards, output)


class Hub(Datasets):
    """The datasets layout, pushed to a repository of the hub from a staging directory."""

    name = "hub"
    own_flags = ("staging", "private")
    output_flag = "--staging"
    pushes = True

    @property
    def written_as(self) -> str:
        # What is staged is the datasets layout, and can be exported as such.
        return Datasets.name

    def check(self, settings: ExportSettings) -> None:
        if not REPOSITORY.fullmatch(settings.output):
            raise ConfigError(f"--output {settings.output}: a repository is called owner/name")

    def directory(self, shards: ShardSet, settings: ExportSettings) -> str:
        return settings.staging or settings.output.replace("/", "--")

    def destination(self, output: OutputDirectory, settings: ExportSettings) -> str:
        return settings.output

    def begin(self, output: OutputDirectory, settings: ExportSettings) -> None:
        from pipeline.export.hub_upload import open_repository

        open_repository(settings.output, output, private=settings.private)

    def publish(
        self,
        files: list[ExportedFile],
        beside: list[str],
        output: OutputDirectory,
        settings: ExportSettings,
        console: Console,
    ) -> int:
        from pipeline.export.hub_upload import push

        return push(files, beside, settings.output, output, settings.num_workers, console)


class Reference(Layout):
    """The Arrow files and ``.complete`` marks that facebookresearch/blt's own loader reads, and the
    ``NAME.chunk.NN.jsonl`` by which it finds the chunks: it looks at their names only."""

    name = "reference"
    own_flags = ("corpus", "entropy_model_name")
    needs_entropies = True

    @property
    def schema(self) -> pa.Schema:
        import pyarrow as pa

        from pipeline.shards.format import ENTROPIES, SAMPLE_ID, TEXT

        return pa.schema(
            [
                pa.field(SAMPLE_ID, pa.string(), nullable=False),
                pa.field(TEXT, pa.string(), nullable=False),
                pa.field(ENTROPIES, pa.list_(pa.float16()), nullable=False),
            ]
        )

    def check(self, settings: ExportSettings) -> None:
        if settings.drop_entropies:
            raise ConfigError("--drop-entropies: the reference layout is made of them")
        if settings.threshold is not None:
            raise ConfigError(
                "--threshold: the reference layout holds no patch lengths; its loader takes a "
                "threshold of its own"
            )

    def directory(self, shards: ShardSet, settings: ExportSettings) -> str:
        source = str(shards.manifest.get("entropy_model", {}).get("source", ""))
        model = settings.entropy_model_name or PurePosixPath(source.rstrip("/")).name
        if model in ("", ".", ".."):
            raise ConfigError(f"--entropy-model-name: the set says {source!r}; name its model")
        return f"{settings.output.rstrip('/')}/{self.corpus(shards, settings)}/{model}"

    def corpus(self, shards: ShardSet, settings: ExportSettings) -> str:
        """The name of the corpus in the published layout."""
        if settings.corpus:
            return settings.corpus
        names = [PurePosixPath(entry.source).name for entry in shards.entries]
        chunks = [CHUNK.fullmatch(name) for name in names]
        first = chunks[0] if chunks else None
        return first["corpus"] if first else PurePosixPath(shards.output.url).name

    def paths(
        self, entries: Sequence[Shard], shards: ShardSet, settings: ExportSettings
    ) -> list[str]:
        """Shards are numbered within their chunk; chunks that have numbers keep them."""
        sources = list(dict.fromkeys(entry.source for entry in entries))
        chunks = [CHUNK.fullmatch(PurePosixPath(source).name) for source in sources]
        numbers = [chunk["number"] if chunk else "" for chunk in chunks]
        if not all(numbers) or len(set(map(int, numbers))) < len(numbers):
            numbers = [f"{i:02d}" for i in range(len(sources))]
        number_of = dict(zip(sources, numbers, strict=True))
        corpus, paths = self.corpus(shards, settings), []
        written: Counter[str] = Counter()
        for entry in entries:
            number = number_of[entry.source]
            paths.append(f"{corpus}.chunk.{number}.jsonl.shard_{written[number]}.arrow")
            written[number] += 1
        return paths

    def marks(self, path: str) -> tuple[str, ...]:
        return (f"{path}.complete",)

    def companions(self, paths: Sequence[str]) -> list[str]:
        return sorted({path.rpartition(".shard_")[0] for path in paths})

    def rows(self, batch: pa.RecordBatch, settings: ExportSettings) -> pa.RecordBatch:
        import pyarrow as pa

        schema = self.schema
        return pa.record_batch([batch[name] for name in schema.names], schema=schema)

    def writer(self, path: Path) -> AbstractContextManager[WriteRows]:
        from pipeline.export.file_writers import arrow_writer

        return arrow_writer(path, self.schema)

    def read(self, file: BufferedIOBase) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        reader = pa.ipc.open_file(file)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout for layout in (Parquet(), Datasets(), Reference(), Hub())
}
"""The layouts by name: the values that ``--layout`` takes."""
