"""Running sums of a stage say what summing all of its pieces anew says, and cost no more the more
pieces there are."""

import random
from dataclasses import asdict

import pytest
from support.summed_anew import summed_anew

from pipeline.cli.progress_bar import Rate
from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.progress import _Counter
from pipeline.cluster.stage_sums import StageSums


def values(state) -> dict[str, object]:
    values = asdict(state)
    # Halves may be rounded either way, and floats are added in another order.
    values["bytes_left"] = pytest.approx(values["bytes_left"], abs=1)
    values["counts"]["device_seconds"] = pytest.approx(values["counts"]["device_seconds"])
    return values


@pytest.mark.parametrize("seed", range(20))
def test_sums_are_those_of_all_pieces(seed):
    """Pieces are reported, begun again by another worker, finished without a report, finished
    twice, and reported too late."""
    draw = random.Random(seed)
    estimates = {n: draw.randrange(0, 1000) for n in range(draw.randrange(1, 30))}
    done = {100 + n: draw.randrange(1000) for n in range(draw.randrange(3))}
    sums, rates = StageSums(estimates, done), (Rate(), Rate())
    reported: dict[int, WorkCounts] = {}
    actual: dict[int, WorkCounts] = {}
    for second in range(60):
        for _ in range(draw.randrange(4)):
            piece = draw.choice(list(estimates))
            counts = WorkCounts(draw.randrange(2000), draw.randrange(9), draw.randrange(2), 0.1)
            if draw.random() < 0.3:
                sums.finish(piece, counts)
                actual[piece] = counts
            else:
                sums.report(piece, counts)
                reported[piece] = counts
        expected = summed_anew("x", second, estimates, done, reported, actual, rates[0])
        assert values(sums.state("x", second, rates[1])) == asdict(expected)
    assert actual


def test_a_look_touches_only_what_is_worked_on():
    looked_at: list[int] = []

    class Estimates(dict[int, int]):
        def __getitem__(self, piece):
            looked_at.append(piece)
            return super().__getitem__(piece)

        def _refuse(self, *arguments):
            pytest.fail("went over all pieces")

    estimates = Estimates.fromkeys(range(1000), 10)
    sums = StageSums(estimates, {})
    for piece in range(500):
        sums.finish(piece, WorkCounts(20))
    sums.report(700, WorkCounts(5))
    Estimates.__iter__ = Estimates.keys = Estimates.values = Estimates.items = Estimates._refuse
    looked_at.clear()
    state = sums.state("x", 1.0, Rate())
    assert looked_at == [700]
    assert state.bytes_left == 499 * 20 + 15 and state.counts.bytes == 500 * 20 + 5
    assert (state.pieces_waiting, state.pieces_working, state.pieces_done) == (499, 1, 500)


def test_the_actor_tells_each_thing_once():
    """It is started again without what it held: the driver has that, and the next report of a piece
    brings what was not asked for."""
    counter = _Counter.__ray_metadata__.modified_class()
    sums = StageSums({0: 10, 1: 10}, {})

    def poll() -> int:
        counts, _ = counter.get(1)
        for piece, of_piece in counts.items():
            sums.report(piece, of_piece)
        return len(counts)

    counter.put(1, {0: WorkCounts(4)})
    counter.put(1, {0: WorkCounts(6), 1: WorkCounts(2)})
    assert poll() == 2 and poll() == 0
    counter.put(1, {0: WorkCounts(8)})  # is lost
    counter = _Counter.__ray_metadata__.modified_class()
    assert poll() == 0 and sums.state("x", 1.0, Rate()).counts.bytes == 8
    counter.put(1, {0: WorkCounts(9)})
    assert poll() == 1 and sums.state("x", 1.0, Rate()).counts.bytes == 11
    counter.put(2, {1: WorkCounts(3)})
    counter.put(1, {0: WorkCounts(10)})  # late: that stage has ended
    assert counter.get(2)[0] == {1: WorkCounts(3)}
