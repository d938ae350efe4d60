"""The sums of a stage, kept as news of its pieces comes. No Ray in here.

A stage may have hundreds of thousands of pieces, and its driver shows how far it is twice a second.
So sums are kept: news of a piece takes the same time however many there are, and a look at all of
it (:meth:`StageSums.state`) goes over the pieces that are being worked on, no others.
"""

from collections.abc import Mapping

from pipeline.cli.progress_bar import Rate
from pipeline.cli.progress_json import StageState
from pipeline.cli.work_counts import WorkCounts


class StageSums:
    """Sums over the pieces of a stage. Each piece is in one of three states: *waiting*, *working*
    (a worker reported something of it) or *finished*.

    Counts of a piece are totals, so that one that is repeated is not counted twice.
    """

    def __init__(self, estimates: Mapping[int, int], done: Mapping[int, int]):
        """
        Args:
            estimates: approximate bytes of text per piece that is to be done.
            done: bytes per piece that an earlier run finished; they do not count for the rate.
        """
        self._estimates = estimates
        self._working: dict[int, WorkCounts] = {}
        self._finished: dict[int, WorkCounts] = {}
        self._counts = WorkCounts()
        """Of all pieces, working and finished."""
        self._waiting_bytes = sum(estimates.values())
        self._expected = self._held = 0
        """Bytes of the finished pieces: the estimates, and what they turned out to hold."""
        self._done_bytes, self._done_pieces = sum(done.values()), len(done)

    def report(self, piece: int, counts: WorkCounts) -> None:
        """Take what a worker says of a piece; it is too late if the piece is finished."""
        if piece not in self._finished:
            self._replace(piece, counts)
            self._working[piece] = counts

    def finish(self, piece: int, counts: WorkCounts) -> None:
        """Take what was done of a piece that is finished."""
        self._replace(piece, counts)
        if piece not in self._finished:
            self._expected += self._estimates[piece]
        self._held += counts.bytes - self._finished.get(piece, WorkCounts()).bytes
        self._working.pop(piece, None)
        self._finished[piece] = counts

    def _replace(self, piece: int, counts: WorkCounts) -> None:
        before = self._working.get(piece) or self._finished.get(piece)
        if before is None:
            self._waiting_bytes -= self._estimates[piece]
        self._counts += counts if before is None else counts - before

    def state(self, stage: str, seconds: float, rate: Rate) -> StageState:
        """How far the stage is.

        What is left is corrected by what finished pieces turned out to hold. For example, a
        compressed file may hold four times its size where three times were expected.

        Args:
            seconds: since it began.
            rate: gets what is done now.
        """
        scale = self._held / self._expected if self._held and self._expected else 1.0
        of_working = (
            max(scale * self._estimates[piece] - counts.bytes, 0)
            for piece, counts in self._working.items()
        )
        left = scale * self._waiting_bytes + sum(of_working)
        completed = self._counts + WorkCounts(bytes=self._done_bytes)
        rate.add(seconds, completed.bytes)
        # As long as the last minutes tell nothing, the time since the beginning does.
        per_second = rate.per_second or (self._counts.bytes / seconds if seconds else 0.0)
        begun = len(self._working) + len(self._finished)
        return StageState(
            stage,
            seconds,
            completed,
            round(left),
            per_second,
            pieces_waiting=len(self._estimates) - begun,
            pieces_working=len(self._working),
            pieces_done=self._done_pieces + len(self._finished),
        )
