"""Any document of a shard set, without reading those before it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.errors import translated
from pipeline.shards.format import SAMPLE_ID, PatchedDocument, read_documents
from pipeline.shards.shard_set import ShardSet

MOST_SEARCHED = 1_000_000
"""Documents whose ids are read to find one."""


class DocumentIndex:
    """Documents of a shard set by their number: 0 for the first one of the first shard."""

    def __init__(self, shards: ShardSet):
        self.shards = shards
        self.entries = [entry for entry in shards.entries if entry.sha256 is not None]
        counts = [entry.statistics["documents"] for entry in self.entries]
        self._ends = np.cumsum(counts, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> PatchedDocument:
        """
        Raises:
            IndexError: there is no such document.
            PipelineError: its shard cannot be read; names it.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"no document {number}: there are {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        with translated(self.shards.output.locate(self.entries[shard].path)):
            return self._read(shard, number - before)

    def _read(self, shard: int, row: int) -> PatchedDocument:
        with self.shards.output.open(self.entries[shard].path) as file:
            batch_number = 0
            # The first column alone tells how long batches are.
            for ids in self._ids(file):
                if row < len(ids):
                    break
                row -= len(ids)
                batch_number += 1
            batch = pa.ipc.open_file(file).get_batch(batch_number)
        return next(read_documents(batch.slice(row, 1)))

    @staticmethod
    def _ids(file: pa.NativeFile) -> Iterator[pa.StringArray]:
        options = pa.ipc.IpcReadOptions(included_fields=[0])
        reader = pa.ipc.open_file(file, options=options)
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)[SAMPLE_ID]

    def find(self, sample_id: str) -> int | None:
        """The number of the first document with this id; None if it is not among the first
        MOST_SEARCHED.

        Raises:
            PipelineError: a shard before it cannot be read; names it.
        """
        wanted = pa.scalar(sample_id, pa.string())
        before = 0
        for entry in self.entries:
            where = self.shards.output.locate(entry.path)
            with translated(where), self.shards.output.open(entry.path) as file:
                for ids in self._ids(file):
                    row = int(ids.index(wanted).as_py())
                    if row >= 0:
                        return before + row
                    before += len(ids)
            if before >= MOST_SEARCHED:
                return None
        return None
