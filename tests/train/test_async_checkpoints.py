"""Checkpoints that are written while training goes on are those that it would have waited for."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, Training, start, tiny, train, wait_for

from train.checkpoints.steps import INDEX, read_step

STEPS = 7
ASYNC = ("--checkpoint.async-mode", "async")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(20))
    return url


def arguments(shards: Path, every: int, rows: int = ROWS) -> tuple[object, ...]:
    return tiny("entropy_debug", shards, rows=rows, steps=STEPS, checkpoint_interval=every)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Training:
    return train(tmp_path_factory.mktemp("whole"), *arguments(shards, 2))


def steps(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.glob("checkpoint/step-*"))


def kill_in_step_4(run: Training) -> None:
    """While step 5 is trained, or later, and step 4 is half written."""
    half = run.folder / "checkpoint" / "step-4"
    wait_for(lambda: any(record.get("step") == 5 for record in run.written))
    wait_for(lambda: list(half.glob("*.distcp")))
    run.kill()
    assert not (half / INDEX).exists()


def test_steps_are_those_of_waiting(whole, shards, tmp_path):
    """On two ranks; the last step has weights alone; old steps go."""
    more = (*ASYNC, "--checkpoint.keep-latest-k", 2, "--checkpoint.last-save-model-only")
    run = train(tmp_path, *arguments(shards, 1, ROWS // 2), *more, ranks=2)
    wait_for(lambda: len(steps(tmp_path)) == 4)  # a thread removes them
    # Two complete ones while step 6 was saved, that one, and the last.
    assert steps(tmp_path) == ["step-4", "step-5", "step-6", "step-7"]
    assert run.losses == pytest.approx(whole.losses, rel=5e-6)
    for step in (4, 6, 7):
        theirs = read_step(f"{whole.folder}/checkpoint/step-{step}").state_dict()
        for name, weight in read_step(f"{tmp_path}/checkpoint/step-{step}").state_dict().items():
            torch.testing.assert_close(weight, theirs[name], rtol=0, atol=2e-3)
    longer = tiny("entropy_debug", shards, rows=ROWS, steps=STEPS + 1, checkpoint_interval=1)
    resumed = train(tmp_path, *longer, *ASYNC)
    assert sorted(resumed.losses) == [7, 8]
    assert resumed.losses[7] == pytest.approx(whole.losses[7], rel=5e-6)


def test_killed_while_a_step_is_saved(whole, shards, tmp_path):
    """On a URL. The incomplete step is no step to continue from, nor one that lets others go."""
    url = ("--dump-folder", f"file://{tmp_path}", "--checkpoint.keep-latest-k", 2)
    run = start(tmp_path, *arguments(shards, 2), *url, *ASYNC, fault="slow index")
    kill_in_step_4(run)
    resumed = train(tmp_path, *arguments(shards, 1), *url, *ASYNC)
    assert resumed.losses == pytest.approx({i: whole.losses[i] for i in range(3, 8)}, rel=5e-6)
    wait_for(lambda: "step-2" not in steps(tmp_path))
    assert steps(tmp_path)[-4:] == ["step-4", "step-5", "step-6", "step-7"]
    theirs = read_step(f"{whole.folder}/checkpoint/step-7").state_dict()
    found = read_step(f"file://{tmp_path}/checkpoint/step-7").state_dict()
    assert all(torch.equal(weight, theirs[name]) for name, weight in found.items())


def test_others_may_not_write_before_a_step_is_written(shards, tmp_path):
    """The run is ended while step 4 is being saved."""
    run = start(tmp_path, *arguments(shards, 4), *ASYNC, fault="late index")
    wait_for(lambda: any(record.get("step") == 5 for record in run.written))
    os.kill(run.ranks[0].pid, signal.SIGTERM)
    wait_for(lambda: not list(tmp_path.glob("checkpoint/lease/*.json")))
    assert (tmp_path / "checkpoint" / "step-4" / INDEX).exists()
    assert run.wait().exit_codes == [143]


def test_a_step_that_cannot_be_written_is_named(whole, shards, tmp_path):
    """Later, at the next step to be saved. A run that goes back overwrites no step by halves."""
    failed = start(tmp_path, *arguments(shards, 2), *ASYNC, fault="no room").wait()
    assert failed.exit_codes == [1]
    assert re.search(r"error: \S*step-4: cannot be written.*No space left", failed.output)
    resumed = train(tmp_path, *arguments(shards, 2), *ASYNC)
    assert sorted(resumed.losses) == [3, 4, 5, 6, 7]
    again = start(
        tmp_path,
        *arguments(shards, 2),
        *("--checkpoint.load-step", 2, *ASYNC),
        fault="slow index",
    )
    kill_in_step_4(again)


def test_pinned_memory_needs_a_gpu(shards, tmp_path):
    pinned = ("--checkpoint.async-mode", "async_with_pinned_mem")
    refused = start(tmp_path, *arguments(shards, 2), *pinned).wait()
    assert refused.exit_codes == [2]
    assert "--checkpoint.async-mode: pinned memory needs a GPU" in refused.output
