"""A rank tells what goes wrong on it alone; the others say in a line that it is gone."""

import pytest
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, start, tiny

from train.checkpoints.collective import is_lost_connection

LOST = "error: rank 0 lost another rank, which ended"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(20))
    return url


@pytest.mark.parametrize(
    ("fault", "status", "told", "by_others"),
    [
        ("memory", 2, "error: --training.local-batch-size: 6 rows of 128 tokens need more", LOST),
        ("unreadable", 1, "error: shards/00001.arrow: cannot be read", LOST),
        ("full node", 1, "step-4: cannot be written", "step-4: cannot be written"),
    ],
)
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_the_cause_is_told(fault, status, told, by_others, mode, shards, tmp_path):
    given = tiny("blt_debug", shards, rows=ROWS // 2, steps=6, checkpoint_interval=2)
    run = start(tmp_path, *given, "--checkpoint.async-mode", mode, ranks=2, fault=fault).wait()
    assert run.exit_codes == [1, status]
    outputs = [(run.records / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert by_others in outputs[0] and told in outputs[1]
    assert not any("Traceback" in output for output in outputs)
    # A step whose writing had begun was completed.
    assert (tmp_path / "checkpoint" / "step-2" / ".metadata").exists()
    assert not (tmp_path / "checkpoint" / "lease").exists()


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:257", True),
        ("Timed out waiting 600000ms for recv operation to complete", True),
        ("NCCL error in: x.cpp:3, remote process exited or there was a network error", True),
        ("CUDA error: the launch timed out and was terminated", False),
        ("The size of tensor a (3) must match the size of tensor b (4)", False),
    ],
)
def test_errors_of_ranks_that_lost_another_one(text, is_lost):
    assert is_lost_connection(RuntimeError(text)) == is_lost
