"""Steps that are not finite change nothing but their number, and are met once."""

import json
import math
import re
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.shard_sets import real_texts, write_shards
from support.trainings import (
    BELL,
    LANES,
    LOSS,
    ROWS,
    SEQ_LEN,
    SHUFFLE_BYTES,
    Training,
    digest,
    start,
    tiny,
    train,
)

from model.tokenizer import BYTE_OFFSET, VOCAB_SIZE
from train.checkpoints.steps import StepReader
from train.data.dataloader import ShardDataLoader
from train.skipping import SKIPPED_FILE, FiniteLoss

STEPS = 8


@pytest.fixture(scope="module")
def ringing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Shards, and the number of the one row that rings: neither in the first step nor in the last
    two."""
    for document in range(30):
        url = tmp_path_factory.mktemp("shards")
        texts = [text[:3000] for text in real_texts(30)]
        texts[document] = b"A text that rings. " + bytes([BELL]) + texts[document]
        write_shards(str(url), texts)
        config = ShardDataLoader.Config(
            shards=[str(url)], shuffle_bytes=SHUFFLE_BYTES, lanes=LANES, patches=False
        )
        loader = config.build(dp_world_size=1, dp_rank=0, seq_len=SEQ_LEN, local_batch_size=1)
        rows = (inputs["input"] == BELL + BYTE_OFFSET for inputs, _ in loader)
        found = [i for i, row in enumerate(islice(rows, STEPS * ROWS)) if row.any()]
        if len(found) == 1 and ROWS <= found[0] < (STEPS - 2) * ROWS:
            return url, found[0]
    raise AssertionError("no text rings in the right steps")


@pytest.fixture(scope="module")
def shards(ringing) -> Path:
    return ringing[0]


@pytest.fixture(scope="module")
def bell(ringing) -> int:
    return ringing[1]


def begin(folder: Path, shards: Path, *more: object, rows=ROWS, **how) -> Training:
    given = tiny("entropy_debug", shards, rows=rows, steps=STEPS, checkpoint_interval=1)
    return start(folder, *given, *more, **how)


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory) -> dict[str, Training]:
    folder = tmp_path_factory.mktemp("runs")
    found = {"whole": begin(folder / "whole", shards)}
    found["row"] = begin(folder / "row", shards, fault="row")
    for run in found.values():
        run.wait()
    found["on 2"] = begin(folder / "on 2", shards, rows=ROWS // 4, ranks=2, fault="row").wait()
    assert not any(code for run in found.values() for code in run.exit_codes), found["on 2"].output
    return found


def records(run: Training) -> list[dict]:
    path = run.folder / "checkpoint" / SKIPPED_FILE
    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(run: Training, step: int) -> dict[str, str]:
    """Digests of weights and moments."""
    place = str(run.folder / "checkpoint" / f"step-{step}")
    reader = StepReader(place)
    held = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if hasattr(stored, "size")
    }
    dcp.load(held, storage_reader=reader, no_dist=True)
    assert any("exp_avg_sq" in name for name in held)
    return {name: digest(tensor) for name, tensor in held.items()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_bad_row_skips_its_step(runs, bell):
    step = bell // ROWS + 1
    for name, rank in (("row", 0), ("on 2", bell % (ROWS // 2) // (ROWS // 4))):
        run = runs[name]
        (record,) = records(run)
        assert record["step"] == step and record["gradient_norm"] == "nan"
        assert (record["first_row"], record["stop_row"]) == ((step - 1) * ROWS, step * ROWS)
        (bad,) = record["bad_rows"]
        assert (bad["row"], bad["rank"], bad["loss"]) == (bell, rank, "nan")
        assert len(bad["text"]) == 80 and bad["text"].isascii()
        assert f"skipped step {step} (rows {(step - 1) * ROWS} to" in run.output
        assert f"row {bell} on rank {rank} has the loss nan" in run.output
        before, after = tensors(run, step - 1), tensors(run, step)
        assert before == after != tensors(run, step + 1)
        assert run.rows == runs["whole"].rows
        assert sorted(run.losses) == [i for i in range(1, STEPS + 1) if i != step]
        for other, metrics in run.metrics.items():
            whole = runs["whole"].metrics[other]
            assert metrics["n_tokens_seen"] == other * ROWS * SEQ_LEN
            assert metrics["skipped_steps"] == (other > step)
            assert {n: v for n, v in metrics.items() if "lr" in n} == {
                n: v for n, v in whole.items() if "lr" in n
            }
            assert (metrics[LOSS] == pytest.approx(whole[LOSS], rel=2e-6)) == (other < step)
    assert runs["on 2"].losses == pytest.approx(runs["row"].losses, rel=5e-6)


def test_a_restart_does_not_meet_the_rows_again(runs, shards, bell, tmp_path):
    """Even if they would be finite now: the run is the one that was not interrupted."""
    step = bell // ROWS + 1
    folder = tmp_path / "run"
    shutil.copytree(runs["row"].folder, folder)
    for later in range(step, STEPS + 1):
        shutil.rmtree(folder / "checkpoint" / f"step-{later}")
    again = begin(folder, shards, rows=ROWS // 2).wait()
    assert again.exit_codes == [0], again.output
    assert f"Step {step} is passed over; it was skipped before" in again.output
    expected = {i: loss for i, loss in runs["row"].losses.items() if i > step}
    assert again.losses == pytest.approx(expected, rel=5e-6)
    assert records(again) == records(runs["row"])
    assert all(again.metrics[later]["skipped_steps"] == 1 for later in again.losses)


def test_budget(runs, shards, tmp_path):
    none = ("--skipping.max-in-a-row", 0)
    for count, said in ((1, "--skipping.max-in-a-row: 1 steps were"), (0, "is passed over")):
        run = begin(tmp_path, shards, *none, fault="row").wait()
        assert run.exit_codes == [count] and said in run.output, run.output
        assert len(records(run)) == 1
    assert run.losses[STEPS] == runs["row"].losses[STEPS]
    (tmp_path / "checkpoint" / SKIPPED_FILE).write_text("{}\n")
    shutil.rmtree(tmp_path / "checkpoint" / f"step-{STEPS}")
    damaged = begin(tmp_path, shards).wait()
    assert damaged.exit_codes == [1]
    assert re.search(f"error: .*{SKIPPED_FILE}: line 1 is damaged", damaged.output)


def test_a_gradient_alone(runs, shards, bell, tmp_path):
    run = train(tmp_path, *tiny("entropy_debug", shards, rows=ROWS, steps=STEPS), fault="gradient")
    (record,) = records(run)
    assert record["step"] == bell // ROWS + 1 and not record["bad_rows"]
    assert "the loss of each row is finite" in run.output
    assert run.losses == runs["row"].losses


def test_broken_weights_stop_the_run(shards, tmp_path):
    run = begin(
        tmp_path, shards, "--checkpoint.no-enable", rows=ROWS // 2, ranks=2, fault="weights"
    )
    assert run.wait().exit_codes == [1, 1]
    assert re.search(r"error: the weights are not finite \(\S*embed", run.output), run.output
    assert sorted(run.losses) == [1, 2]


def test_an_infinite_loss_has_no_finite_gradient():
    loss_fn = FiniteLoss.Config(global_vocab_size=VOCAB_SIZE).build()
    plain = super(FiniteLoss, loss_fn).__call__
    logits = torch.randn(1, 3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[5, 6, -100]])
    found = []
    for loss_of in (loss_fn, plain):
        given = logits.clone().requires_grad_()
        loss, _ = loss_of(given, labels, torch.tensor(2))
        loss.backward()
        found.append((loss.detach(), given.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    logits[0, 1, 6] = -math.inf
    given = logits.clone().requires_grad_()
    loss, _ = plain(given, labels)
    loss.backward()
    assert loss == math.inf and given.grad.isfinite().all()
    given = logits.clone().requires_grad_()
    loss_fn(given, labels)[0].backward()
    assert given.grad.isnan().any()
