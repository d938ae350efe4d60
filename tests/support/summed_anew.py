"""How far a stage is, summed over all of its pieces at each look: what StageSums keeps running."""

from collections.abc import Mapping

from pipeline.cli.progress_bar import Rate
from pipeline.cli.progress_json import StageState
from pipeline.cli.work_counts import WorkCounts


def summed_anew(
    stage: str,
    seconds: float,
    estimates: Mapping[int, int],
    done: Mapping[int, int],
    reported: Mapping[int, WorkCounts],
    actual: Mapping[int, WorkCounts],
    rate: Rate,
) -> StageState:
    """
    Args:
        reported: the last that workers said of each piece.
        actual: what was done of the pieces that are finished.
    """
    current = {**reported, **actual}
    unfinished = estimates.keys() - actual.keys()
    working = unfinished & reported.keys()
    counts = sum(current.values(), WorkCounts())
    expected = sum(estimates[piece] for piece in actual)
    held = sum(current[piece].bytes for piece in actual)
    scale = held / expected if held and expected else 1.0
    left = sum(
        max(scale * estimates[n] - (current[n].bytes if n in current else 0), 0) for n in unfinished
    )
    completed = counts + WorkCounts(bytes=sum(done.values()))
    rate.add(seconds, completed.bytes)
    per_second = rate.per_second or (counts.bytes / seconds if seconds else 0.0)
    return StageState(
        stage,
        seconds,
        completed,
        round(left),
        per_second,
        pieces_waiting=len(unfinished) - len(working),
        pieces_working=len(working),
        pieces_done=len(done) + len(actual),
    )
