"""A run that was killed, on other ranks than before, is the run that was not; a finished one stays
as it is."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from rich.console import Console
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, SEQ_LEN, Training, start, tiny, train, wait_for

from model import load_entropy_model
from model.provenance import EntropyModelIdentity
from pipeline.storage.lease import held
from pipeline.storage.output import OutputDirectory
from train.checkpoints.model_json import read_model_description
from train.checkpoints.steps import read_step

STEPS = 7
EVERY = 2
"""Steps between checkpoints."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs and more are read: windows end within microbatches."""
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(8), rates=(0.15, 0.3))
    return url


def arguments(
    shards: Path, rows: int, steps: int = STEPS, config: str = "entropy_debug"
) -> tuple[object, ...]:
    return tiny(config, shards, rows=rows, steps=steps, checkpoint_interval=EVERY)


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory) -> Training:
    """Uninterrupted, on one rank."""
    return train(tmp_path_factory.mktemp("whole"), *arguments(shards, ROWS))


def copy(run: Training, folder: Path) -> Path:
    shutil.copytree(run.folder, folder)
    return folder


def state(step: str) -> dict:
    """What a checkpoint holds beside weights and optimizer."""
    held = {"dataloader.rows": "", "train_state.step": 0, "train_state.ntokens_seen": 0}
    dcp.load(held, checkpoint_id=step, no_dist=True)
    return held | {"dataloader.rows": json.loads(held["dataloader.rows"])}


def weights(step: str) -> dict[str, torch.Tensor]:
    return read_step(step).state_dict()


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All steps, and when they were written."""
    found = (file for file in sorted(folder.glob("checkpoint/step-*/**/*")) if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in found}


def everything(folder: Path) -> dict[str, bytes]:
    """Steps, and what lies beside them."""
    found = (folder / "checkpoint").rglob("*")
    return {
        f"{file} {file.stat().st_mtime_ns}": file.read_bytes() for file in found if file.is_file()
    }


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # for reading a step here
def test_killed_and_resumed_on_other_ranks(shards, tmp_path):
    """And with the other form of hash tables."""

    def begin(
        folder: str, rows: int, steps: int = STEPS, ranks: int = 1, tables: str = "sharded"
    ) -> Training:
        given = arguments(shards, rows, steps, "blt_debug")
        how = ("--parallelism.hash-tables", tables)
        return start(tmp_path / folder, *given, *how, ranks=ranks)

    whole, killed = begin("whole", ROWS), begin("killed", ROWS // 2, ranks=2, tables="plain")
    # Step 5 is being computed, or its metrics being told, and step 4 is complete.
    wait_for(lambda: any(record.get("step") == 5 for record in killed.written))
    killed.kill()
    assert killed.exit_codes == [-9, -9]
    assert len([*killed.folder.glob("checkpoint/lease/*.json")]) == 1  # of a process that is dead
    assert whole.wait().exit_codes == [0] and STEPS not in killed.losses
    # A rank that was killed while it wrote a step leaves files without an index.
    half = killed.folder / "checkpoint" / "step-6"
    half.mkdir(exist_ok=True)
    (half / ".metadata").unlink(missing_ok=True)
    (half / "__0_0.distcp").write_bytes(b"half of it")
    resumed = begin("killed", ROWS // 3, ranks=3).wait()
    assert sorted(resumed.losses) == [5, 6, 7], resumed.output
    # On one rank, with accumulation.
    longer = begin("killed", ROWS // 6, steps=8, tables="plain").wait()
    assert sorted(longer.losses) == [8], longer.output
    for run in (killed, resumed):
        of_whole = {step: whole.losses[step] for step in run.losses}
        assert run.losses == pytest.approx(of_whole, rel=5e-6)
        for step in run.losses:
            assert run.rows[step] == whole.rows[step]
            assert run.metrics[step]["n_tokens_seen"] == step * ROWS * SEQ_LEN
    for step in (2, 4, 6, 7):
        ours, theirs = (state(f"{run.folder}/checkpoint/step-{step}") for run in (killed, whole))
        assert ours == theirs
        assert ours["train_state.step"] == step
        assert ours["train_state.ntokens_seen"] == step * ROWS * SEQ_LEN
        assert ours["dataloader.rows"]["rows"] == step * ROWS
    ours, theirs = (weights(f"{run.folder}/checkpoint/step-7") for run in (killed, whole))
    for name, weight in theirs.items():
        # Adam divides tiny gradients by their own size.
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=2e-3)


def test_a_finished_run_stays_as_it_is(whole, shards, tmp_path):
    folder = copy(whole, tmp_path / "run")
    before = files(folder)
    again = train(folder, *arguments(shards, ROWS // 2), ranks=2)
    assert not again.losses and files(folder) == before
    # A step that lost a part of it is told, not passed over.
    (file,) = folder.glob("checkpoint/step-7/*.distcp")
    file.write_bytes(file.read_bytes()[:-50_000])
    refused = start(folder, *arguments(shards, ROWS)).wait()
    assert refused.exit_codes == [1]
    assert_said(refused, "checkpoint/step-7: cannot be loaded: .*; remove it to continue")
    shutil.rmtree(file.parent)
    assert train(folder, *arguments(shards, ROWS)).losses == {7: whole.losses[7]}


def test_settings_of_the_optimizer_are_those_of_the_run(whole, shards, tmp_path):
    """From the first step on, and not those that the checkpoint was trained with."""
    kwargs = "--optimizer.param-groups.0.optimizer-kwargs"
    still, decayed = (copy(whole, tmp_path / name) for name in ("still", "decayed"))
    for folder in (still, decayed):
        for step in (6, 7):
            shutil.rmtree(folder / "checkpoint" / f"step-{step}")
    run = train(still, *arguments(shards, ROWS), f"{kwargs}.lr", 0.0)
    assert "Optimizer: lr was 0.003 and is 0.0 from here on." in run.output
    before, after = (weights(f"{still}/checkpoint/step-{step}") for step in (4, 6))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    run = train(decayed, *arguments(shards, ROWS), f"{kwargs}.weight-decay", 50.0)
    assert "Optimizer: weight_decay was 0.1 and is 50.0 from here on." in run.output
    before, after = (weights(f"{decayed}/checkpoint/step-{step}") for step in (4, 6))
    assert all(after[n].norm() < 0.9 * before[n].norm() for n in before if before[n].dim() > 1)


def test_a_batch_of_another_size_is_told(whole, shards, tmp_path):
    folder = copy(whole, tmp_path / "run")
    smaller = arguments(shards, ROWS // 2, STEPS + 1)
    smaller = [
        -1 if smaller[n - 1] == "--training.global-batch-size" else v for n, v in enumerate(smaller)
    ]
    # It has steps, so it needs the weights no longer that it began with.
    run = train(folder, *smaller, "--checkpoint.initial-load-path", tmp_path / "gone")
    rows = ROWS * SEQ_LEN
    assert f"Batch: a step has {rows // 2:,} tokens, and had {rows:,} on" in run.output
    assert "Batch: " not in train(tmp_path / "new", *arguments(shards, ROWS, 1)).output


def test_going_back_to_a_step(whole, shards, tmp_path):
    """The steps after it are those of a branch that was given up."""
    folder = copy(whole, tmp_path / "run")
    back = ("--checkpoint.load-step", 4)
    dead = train(folder, *arguments(shards, ROWS, 6), *back)
    assert sorted(dead.losses) == [5, 6]
    assert "step-6, step-7 came after step 4" in dead.output
    # torchrun starts the command again, which does not go back again.
    again = train(folder, *arguments(shards, ROWS, 8), *back, restarts=1)
    assert again.losses[7] == whole.losses[7] and sorted(again.losses) == [7, 8]
    # The user does, and a restart has to if the first start has not come so far.
    anew = ("--checkpoint.load-step", 2, "--checkpoint.exclude-from-loading", "dataloader")
    first = train(folder, *arguments(shards, ROWS, 6), *anew, restarts=1)
    indexes = sorted(file.parent.name for file in folder.glob("checkpoint/*/.metadata"))
    assert indexes == ["step-2", "step-4", "step-6"]
    aside = sorted(file.parent.name for file in folder.glob("checkpoint/*/.metadata.set-aside"))
    assert aside == ["step-7", "step-8"]
    # The data begin again with the first row; a restart does not let them do so again.
    more = train(folder, *arguments(shards, ROWS, 7), *anew, restarts=1)
    assert first.rows[3] == whole.rows[1] and more.rows == {7: whole.rows[5]}
    before = everything(folder)
    looked = train(folder, *arguments(shards, ROWS, 5), *back, "--checkpoint.load-only")
    assert sorted(looked.losses) == [5] and everything(folder) == before


def test_one_run_at_a_time_writes_steps(whole, shards, tmp_path):
    """The other one is refused on all its ranks, and changes nothing."""
    folder = copy(whole, tmp_path / "run")
    before = files(folder)
    with held(OutputDirectory(f"{folder}/checkpoint"), "--output", Console()):
        given = arguments(shards, ROWS // 2, STEPS + 2, "blt_debug")
        refused = start(folder, *given, ranks=2).wait()
    assert refused.exit_codes == [1, 1]
    assert refused.output.count(f"error: --dump-folder {folder}/checkpoint: is being written") == 2
    assert files(folder) == before and not (folder / "checkpoint" / "lease").exists()


def test_machines_that_share_no_folder_are_refused(shards, tmp_path):
    """Each would write its ranks' parts of steps, and none would hold a whole one."""
    given = (*arguments(shards, ROWS // 2), "--dump-folder", "outputs")
    refused = start(tmp_path, *given, ranks=2, fault="own disks").wait()
    assert refused.exit_codes == [2, 2] and not refused.losses
    assert refused.output.count("error: --dump-folder: outputs/checkpoint: what ") == 2
    assert not list(refused.records.glob("disk-*/outputs/checkpoint/*"))


@pytest.mark.parametrize("kind", ["last-save-model-only", "last-save-in-hf"])
def test_a_last_step_of_weights(whole, shards, kind, tmp_path):
    """It cannot be gone on from; the step before can."""
    folder = copy(whole, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint" / "step-7")
    saving = ["--checkpoint.last-save-model-only"]
    saving += ["--checkpoint.last-save-in-hf"] if kind == "last-save-in-hf" else []
    last = train(folder, *arguments(shards, ROWS), *saving)
    assert last.losses == {7: whole.losses[7]}
    if kind == "last-save-in-hf":
        saved = load_entropy_model(folder / "checkpoint" / "step-7", device="cpu").state_dict()
    else:
        saved = weights(f"{folder}/checkpoint/step-7")
    for name, weight in weights(f"{whole.folder}/checkpoint/step-7").items():
        assert torch.equal(saved[name], weight)
    before = files(folder)
    again = train(folder, *arguments(shards, ROWS), *saving)
    assert not again.losses and files(folder) == before
    assert "All 7 steps were done before" in again.output
    longer = train(folder, *arguments(shards, ROWS, steps=8), *saving)
    assert longer.losses[7] == whole.losses[7] and sorted(longer.losses) == [7, 8]
    assert "step-7: holds weights alone" in longer.output
    for step in (2, 4, 6, 8):
        shutil.rmtree(folder / "checkpoint" / f"step-{step}")
    for more, said in (
        ((), "step-7: holds weights alone, which training cannot continue from, and there is no"),
        (("--checkpoint.load-step", 7), "--checkpoint.load-step: .*step-7: holds weights alone"),
        (("--checkpoint.load-step", 6), "--checkpoint.load-step: .*step-6: there is no such step"),
    ):
        refused = start(folder, *arguments(shards, ROWS, steps=9), *more).wait()
        assert refused.exit_codes == [1]
        assert_said(refused, said)


def assert_said(run: Training, text: str) -> None:
    assert re.search(f"error: .*{text}", run.output), run.output


def test_mixed_patches_are_refused_or_recorded(tmp_path):
    """Of two entropy models: in training and in validation."""
    urls = [tmp_path / name / "patched" for name in ("one", "other")]
    for url, digit in zip(urls, "ab", strict=True):
        model = EntropyModelIdentity("small", digit * 64, "cpu float32", False)
        write_shards(str(url), real_texts(4), entropy_model=model)
    one, other = urls
    validating = ("--validator.enable", "--validator.dataloader.shards", other)
    allowing = (*validating, "--validator.freq", 1, "--dataloader.allow-mixed-patches")
    once = {"rows": ROWS, "steps": 1}
    refused = start(tmp_path / "refused", *tiny("blt_debug", one, **once), *validating)
    both = tiny("blt_debug", f"{one},{other}", **once)
    run = train(tmp_path / "run", *both, *allowing)
    assert refused.wait().exit_codes == [2], refused.output
    assert_said(refused, "--validator.dataloader.shards: have other patches than the training sets")
    assert "Patches: the entropy model of " in run.output
    assert "Checkpoint: the shard sets have entropies of 2 models" in run.output
    record = read_model_description(f"{run.folder}/checkpoint/step-1").patch_provenance
    found = {each.entropy_model.fingerprint[0]: each.sets for each in record}
    assert found == {"a": ("one/patched",), "b": ("other/patched",)}
    # A run that saves nothing, or is refused, leaves the record and the steps' rule as they are.
    before = everything(run.folder)
    more = (*tiny("blt_debug", one, rows=ROWS, steps=2), "--dataloader.threshold", 1.1)
    more += ("--dataloader.allow-mixed-patches",)
    refused = start(run.folder, *more)
    train(run.folder, *more, "--dataloader.change-on-resume", "--checkpoint.load-only")
    assert refused.wait().exit_codes == [2] and everything(run.folder) == before
    # Weights that were trained on other patches are not trained on, either.
    weights = ("--checkpoint.initial-load-path", f"{run.folder}/checkpoint/step-1")
    third = tmp_path / "third"
    write_shards(str(third), real_texts(4), entropy_model=EntropyModelIdentity("c", "c" * 64))
    further = start(tmp_path / "further", *tiny("blt_debug", third, **once), *weights).wait()
    assert further.exit_codes == [1]
    assert_said(further, "checkpoint/step-1: was trained on other patches: the entropy model of ")
