"""Closing a shard set: its entries are added up, put into columns, and named by the manifest.

The work is done in parts of SHARDS_PER_PART shards, so that no process holds what all entries and
summaries say. Parts may be made anywhere (:func:`make_part`), also by several processes; one adds
them up in their order (:class:`Closing`). What is written depends on the entries alone.
"""

import base64
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import orjson
import pyarrow as pa

from pipeline.shards.entries import SUMMARIES, ShardEntry
from pipeline.shards.manifest import FORMAT_VERSION
from pipeline.shards.record_batches import BatchWriter
from pipeline.shards.tables import (
    BATCHES_FILE,
    BATCHES_SCHEMA,
    ENTRIES_FILE,
    ENTRIES_SCHEMA,
    batch_rows,
    entry_rows,
    table_record,
)
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.checked_json import parse_json, to_checked_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST

READ_TOGETHER = 64
"""Summaries that are read at a time: one after the other, each would wait for an object store."""


@dataclass
class Part:
    """Neighbouring shards of a set."""

    entries: pa.RecordBatch
    """Rows of ``entries.arrow``."""
    batches: list[pa.RecordBatch]
    """Rows of ``batches.arrow``."""
    statistics: PatchStatistics
    """The sum of the shards'."""
    summary: Summary | None
    """The sum of the shards' summaries; None if one has none, because an earlier release wrote
    it."""

    def to_message(self) -> str:
        """The part as text, for a stage on Ray to return."""
        columns = [base64.b64encode(_stream([self.entries])).decode()]
        if self.batches:
            columns.append(base64.b64encode(_stream(self.batches)).decode())
        summary = None if self.summary is None else self.summary.to_json()
        values = {"columns": columns, "summary": summary, "statistics": self.statistics.to_json()}
        return orjson.dumps(values).decode()

    @classmethod
    def from_message(cls, message: str) -> Self:
        values = parse_json(message.encode())
        (entries,), *batches = (
            list(pa.ipc.open_stream(base64.b64decode(stream))) for stream in values["columns"]
        )
        summary = values["summary"]
        return cls(
            entries,
            batches[0] if batches else [],
            PatchStatistics.from_json(values["statistics"]),
            None if summary is None else Summary.from_json(summary),
        )


def _stream(batches: Sequence[pa.RecordBatch]) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def make_part(output: OutputDirectory, entries: Sequence[ShardEntry]) -> Part:
    """Add up the entries and the summaries of some shards."""
    statistics = sum((entry.patch_statistics for entry in entries), PatchStatistics())
    summary = _sum_of_summaries(output, entries)
    if summary is not None:  # a sum of any number of parts stays as small as one
        summary = Summary.from_json(summary.to_json())
    return Part(entry_rows(entries), batch_rows(entries), statistics, summary)


def _sum_of_summaries(output: OutputDirectory, entries: Sequence[ShardEntry]) -> Summary | None:
    total = Summary()
    for start in range(0, len(entries), READ_TOGETHER):
        names = [f"{entry.name}.json" for entry in entries[start : start + READ_TOGETHER]]
        try:
            read = output.read_all_json(SUMMARIES, names)
        except FileNotFoundError:
            return None
        for values in read.values():
            total += Summary.from_json(values)
    return total


class Closing:
    """Writes the columns of a set part by part, and at the end its manifest. A context: if it is
    left by an error, nothing is committed."""

    def __init__(self, output: OutputDirectory, provenance: Mapping[str, Any]):
        """
        Args:
            provenance: how the shards were made, as the manifest says it: tokenizer, entropy
                model, rule, columns, sources, configuration.
        """
        self._output, self._provenance = output, provenance
        self.statistics = PatchStatistics()
        self._summary: Summary | None = Summary()

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._entries = self._writer(stack, ENTRIES_FILE, ENTRIES_SCHEMA)
            self._batches = self._writer(stack, BATCHES_FILE, BATCHES_SCHEMA)
            self._stack = stack.pop_all()
        return self

    def _writer(self, stack: ExitStack, name: str, schema: pa.Schema) -> BatchWriter:
        path = stack.enter_context(self._output.committing(name))
        return stack.enter_context(BatchWriter(path, schema))

    def add(self, part: Part) -> None:
        """Add the shards that follow."""
        self._entries.write(part.entries)
        for batch in part.batches:
            self._batches.write(batch)
        self.statistics += part.statistics
        both = self._summary is not None and part.summary is not None
        self._summary = self._summary + part.summary if both else None  # type: ignore[operator]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tables = {}
        if error is None:
            files = {"entries": self._entries.close(), "batches": self._batches.close()}
            tables = {name: table_record(file) for name, file in files.items()}
        self._stack.__exit__(kind, error, traceback)
        if error is None:
            summary = None if self._summary is None else self._summary.to_json()
            manifest = {
                "format_version": FORMAT_VERSION,
                **self._provenance,
                **tables,
                "statistics": self.statistics.to_json(),
                "summary": summary,
            }
            self._output.write(MANIFEST, to_checked_json(manifest))
