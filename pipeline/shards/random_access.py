"""Any document of a shard set, without reading those before it."""

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
        """
        Raises:
            PipelineError: the set's entries are damaged; names the file.
        """
        self.shards = shards
        self._ends = shards.shards.documents.cumsum()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> PatchedDocument:
        """
        Raises:
            IndexError: there is no such document.
            PipelineError: its shard is damaged or cannot be read; names it.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"no document {number}: there are {len(self)}")
        shard = int(np.searchsorted(self._ends, number, side="right"))
        row = number - (int(self._ends[shard - 1]) if shard else 0)
        with translated(self.shards.path(shard)):
            ends = self.shards.batch_index(shard).rows.cumsum()
            batch = int(np.searchsorted(ends, row, side="right"))
            rows = self.shards.read_batch(shard, batch)
            return next(read_documents(rows.slice(row - (int(ends[batch]) - rows.num_rows), 1)))

    def find(self, sample_id: str) -> int | None:
        """The number of the first document with this id; None if it is not among the first
        MOST_SEARCHED.

        Raises:
            PipelineError: a shard before it is damaged or cannot be read; names it.
        """
        wanted = pa.scalar(sample_id, pa.string())
        before = 0
        for shard in range(len(self._ends)):
            with translated(self.shards.path(shard)):
                for batch in self.shards.shard_batches(shard, [SAMPLE_ID]):
                    row = int(batch[SAMPLE_ID].index(wanted).as_py())
                    if row >= 0:
                        return before + row
                    before += batch.num_rows
            if before >= MOST_SEARCHED:
                return None
        return None
