"""Gloo ranks that train a tiny BLT with its hash tables sharded and plain, in every way that
:mod:`train` does. The same processes are the ranks of all trainings, one after another; the first
of them writes down what they found.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.trainings import forks

RANKS = 4
ROWS, WIDTH, PATCH = 12, 48, 4
"""Rows of a step, of all ranks together; tokens of a row; tokens of a patch."""
STEPS, SAVED = 4, 2
"""Steps of each training, and the step that it saves."""
TABLES, TABLE_ROWS, DIM = 6, 997, 64
MAX_NORM = 0.3
"""Smaller than all norms of these gradients."""


def run_ranks(folder: Path) -> dict[str, Any]:
    """What each training of :data:`LAYOUTS` found, by its name; and "lookups"."""
    ranks = [forks.Process(target=_rank, args=(rank, folder), daemon=True) for rank in range(RANKS)]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + 300
    while any(rank.is_alive() for rank in ranks) and time.monotonic() < end:
        time.sleep(0.05)
        if any(rank.exitcode for rank in ranks):  # the others would wait for it
            break
    exit_codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert exit_codes == [0] * RANKS
    return json.loads((folder / "found.json").read_text())


LAYOUTS: tuple[tuple[int, int, tuple[tuple[str, str | None, int], ...]], ...] = (
    # Ranks; copies of the model (HSDP); trainings: form, checkpoint to begin with, microbatches.
    (2, 1, (("plain", None, 2), ("sharded", None, 2))),
    (4, 2, (("plain", None, 1), ("sharded", None, 1))),
    (
        3,
        1,
        (
            ("sharded", "plain on 2 x 1", 1),
            ("plain", "sharded on 2 x 1", 1),
            ("sharded", "sharded on 2 x 1", 1),
        ),
    ),
    (1, 1, (("sharded", None, 3), ("plain", "sharded on 4 x 2", 2))),
)


def _rank(rank: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist
    from torchtitan.distributed import ParallelDims

    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)  # as torchtitan does
    found: dict[str, Any] = {}
    for ranks, copies, trainings in LAYOUTS:
        if rank >= ranks:
            continue
        dist.init_process_group("gloo", f"file://{folder}/{ranks}", rank=rank, world_size=ranks)
        if ranks == RANKS:
            found["lookups"] = _lookups()
        dims = ParallelDims(copies, ranks // copies, 1, 1, 1, 1, ranks, "partial_dtensor")
        for form, source, accumulate in trainings:
            run = TinyTraining(dims, form)
            name = f"{form} on {ranks} x {copies}"
            if source is None:
                found[name] = run.train(1, accumulate, save=folder / name)
            else:
                run.load(folder / source)
                found[f"{source}, then {name}"] = run.train(SAVED + 1, accumulate)
        dist.destroy_process_group()
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


class TinyTraining:
    """A training made of the parts that torchtitan makes it of: forward and backward of
    microbatches, clipping, AdamW, a schedule, checkpoints."""

    def __init__(self, dims: Any, form: str, table_rows: int = TABLE_ROWS):
        import torch
        from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
        from torchtitan.config import CompileConfig, TrainingConfig

        from model import BLT_SIZES
        from train.model_spec import TrainedBLT
        from train.parallelize import Parallelism, parallelize_blt
        from train.table_optimizer import split_off_tables

        shape = replace(
            BLT_SIZES["debug"], n_layers_global=1, encoder_hash_byte_group_vocab=table_rows
        )
        torch.manual_seed(0)
        with torch.device("meta"):
            model = TrainedBLT.Config(shape=shape).build()
        self.dims = dims
        self.model = parallelize_blt(
            model,
            float8=False,
            parallel_dims=dims,
            training=TrainingConfig(mixed_precision_param="float32"),
            parallelism=Parallelism(hash_tables=form),
            compile_config=CompileConfig(),
            ac_config=None,
            dump_folder="",
        )
        self.model.to_empty(device="cpu")
        with torch.no_grad():
            self.model.init_weights()
        self.optimizers = default_adamw(lr=3e-3).build(model_parts=[self.model])
        split_off_tables(self.optimizers, [self.model], dims)
        config = LRSchedulersContainer.Config(warmup_steps=2, decay_type="cosine")
        self.schedule = config.build(optimizers=self.optimizers, training_steps=10)

    def train(self, first: int, accumulate: int, save: Path | None = None) -> dict[str, Any]:
        """Losses and norms of steps, bytes sent in the last one, and names of the state."""
        from support.traffic import counted_traffic

        losses, norms = [], []
        for step in range(first, STEPS + 1):
            with counted_traffic() as sent:
                loss, norm = self.step(step, accumulate)
            self.evaluate()
            losses.append(loss)
            norms.append(norm)
            if save and step == SAVED:
                self.save(save)
        state = self.model.state_dict() | self.optimizers.state_dict()
        shapes = {name: list(getattr(value, "shape", [])) for name, value in state.items()}
        return {"losses": losses, "norms": norms, "sent": dict(sent), "state": shapes}

    def step(self, step: int, accumulate: int) -> tuple[float, float]:
        """The loss of all rows, and the norm of the gradients before they are clipped."""
        import torch
        from torchtitan.distributed import utils as dist_utils

        from train.table_optimizer import clipping_tables

        self.optimizers.zero_grad()
        total = self.backward(step, accumulate)
        with clipping_tables([self.model]):
            norm = dist_utils.clip_grad_norm_([*self.model.parameters()], MAX_NORM, foreach=True)
        self.optimizers.step()
        self.schedule.step()
        mesh = self.dims.get_optional_mesh("batch")
        if mesh:
            torch.distributed.all_reduce(total, group=mesh.get_group())
        return float(total), float(norm)

    def backward(self, step: int, accumulate: int) -> Any:
        """Forward and backward of this rank's rows, in so many parts; their share of the loss."""
        import torch
        import torch.nn.functional as F

        generator = torch.Generator().manual_seed(step)
        # Few different bytes: rows are looked up again within a step and in the next ones.
        tokens = torch.randint(100, 104, (ROWS, WIDTH + 1), generator=generator)
        lengths = torch.tensor([1, *[PATCH] * (WIDTH // PATCH)]).expand(ROWS, -1)
        mesh = self.dims.get_optional_mesh("batch")
        rank, ranks = (mesh.get_local_rank(), mesh.size()) if mesh else (0, 1)
        total = torch.zeros(())
        for rows in torch.arange(ROWS)[rank::ranks].chunk(accumulate):
            logits = self.model(tokens[rows, :-1], lengths[rows])
            loss = F.cross_entropy(
                logits.flatten(0, 1), tokens[rows, 1:].flatten(), reduction="sum"
            )
            loss = loss / (ROWS * WIDTH)
            loss.backward()
            total += loss.detach()
        return total

    def evaluate(self) -> None:
        """Read, between steps: it has to leave no trace."""
        import torch

        with torch.no_grad():
            self.model(torch.full((1, PATCH), 100), torch.tensor([[1, PATCH - 1]]))

    def _state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizers.state_dict()}

    def save(self, place: Path) -> None:
        import torch.distributed.checkpoint as dcp

        state = self._state() | {"lr_scheduler": self.schedule.state_dict()}
        dcp.save(state, checkpoint_id=place)

    def load(self, place: Path) -> None:
        import torch.distributed.checkpoint as dcp

        state = self._state() | {"lr_scheduler": self.schedule.state_dict()}
        dcp.load(state, checkpoint_id=place)
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["lr_scheduler"])


def _lookups() -> list[float]:
    """The largest differences to plain tables, of sums and of gradients, where the last of 4 ranks
    keeps none of 6 columns."""
    import torch
    from torch.distributed.device_mesh import init_device_mesh

    from model.layers.hash_embedding import HashEmbedding
    from train.sharded_tables import ShardedTables

    torch.manual_seed(5)
    plain, tables = (HashEmbedding((2, 3), 1, rows=50, dim=6) for _ in range(2))
    tables.load_state_dict(plain.state_dict())
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("fsdp",))
    sharded = ShardedTables(tables, mesh, torch.float32)
    assert sharded.widths == [2, 2, 2, 0]
    rank = mesh.get_local_rank()
    for _ in range(2):
        tokens_RT = torch.randint(4, 8, (RANKS, 30))
        position_T = torch.arange(30)
        weights_RTD = torch.randn(RANKS, 30, 6)
        expected_RTD = torch.stack([plain(tokens_T, position_T) for tokens_T in tokens_RT])
        (expected_RTD * weights_RTD).sum().backward()
        summed_TD = sharded(tokens_RT[rank], position_T)
        (summed_TD * weights_RTD[rank]).sum().backward()
    differences = [float((summed_TD - expected_RTD[rank]).detach().abs().max())]
    for table, gradient in zip(plain, sharded.gradients, strict=True):
        columns = table.weight.grad[:, 2 * rank : 2 * rank + 2]
        assert gradient.of_rows(0, 50).shape == columns.shape
        differences.append(float((gradient.of_rows(0, 50) - columns).norm()))
        touched = int(table.weight.grad.any(dim=1).sum())
        assert int(gradient.touched) == touched < 50 and len(gradient.values) <= 51
    return differences
