"""Sharded hash tables are plain ones that cost less: same losses, same checkpoints."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.fake_ranks import fake_ranks, parallelized
from support.table_ranks import (
    DIM,
    MAX_NORM,
    ROWS,
    SAVED,
    TABLE_ROWS,
    TABLES,
    WIDTH,
    TinyTraining,
    run_ranks,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import AdamW
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.components.optimizer import default_adamw
from torchtitan.distributed import ParallelDims

from model.layers.hash_embedding import HashEmbedding
from pipeline.errors import ConfigError
from train.config_registry import blt_debug
from train.sharded_tables import (
    HostCopy,
    RowGradient,
    ShardedTables,
    _SumOfRows,
    sharded_tables,
)
from train.table_optimizer import TableAdamW, split_off_tables

CLOSE = {"rel": 1e-6, "abs": 0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_ranks(tmp_path_factory.mktemp("ranks"))


def test_losses_are_those_of_plain_tables(found):
    """With accumulation (2 x 1, 1 x 1), copies of the model (4 x 2), and clipping in each step."""
    expected = found["plain on 2 x 1"]
    assert min(expected["norms"]) > 2 * MAX_NORM
    assert expected["losses"][-1] < expected["losses"][0] - 1
    for name in ("sharded on 2 x 1", "sharded on 4 x 2", "plain on 4 x 2", "sharded on 1 x 1"):
        assert found[name]["losses"] == pytest.approx(expected["losses"], **CLOSE), name
        assert found[name]["norms"] == pytest.approx(expected["norms"], **CLOSE), name


def test_checkpoints_are_interchangeable(found):
    expected = found["plain on 2 x 1"]
    resumed = [name for name in found if "then" in name]
    assert len(resumed) == 4
    for name in resumed:
        assert found[name]["losses"] == pytest.approx(expected["losses"][SAVED:], **CLOSE), name
        assert found[name]["norms"] == pytest.approx(expected["norms"][SAVED:], **CLOSE), name
    state = expected["state"]
    assert found["sharded on 2 x 1"]["state"] == state
    table = "encoder_hash_tok_embedding.5.weight"
    assert state[table] == state[f"state.{table}.exp_avg_sq"] == [TABLE_ROWS, DIM]


@pytest.mark.parametrize(("ranks", "copies", "microbatches"), [(2, 1, 2), (4, 2, 1)])
def test_traffic_of_a_step(found, ranks, copies, microbatches):
    """It is counted, and equals what follows from the shapes, as it does for larger models."""
    plain, sharded = (
        found[f"{form} on {ranks} x {copies}"]["sent"] for form in ("plain", "sharded")
    )
    tokens = ROWS * WIDTH // ranks  # of all microbatches of a rank
    ids = (ranks - 1) * TABLES * tokens * 4
    sums = 2 * (ranks - 1) / ranks * tokens * DIM * 4
    assert sharded["sharded tables"] == ids + sums
    # Gathered for the forward and for the backward; reduced, and then between copies.
    within = ranks // copies
    padded = -(-TABLE_ROWS // within) * within * DIM * 4
    each = 3 * (within - 1) / within * padded
    each += 2 * (copies - 1) / copies * padded / within
    for table in range(TABLES):
        assert plain[f"encoder_hash_tok_embedding.{table}"] == microbatches * each
    of_others = {name for name in plain if "hash" not in name and name}
    assert all(plain[name] == sharded[name] for name in of_others)
    assert not any("hash" in name for name in sharded)


def test_a_rank_without_columns(found):
    assert max(found["lookups"]) < 1e-5


def dense_gradient(gradient: RowGradient, rows: int, columns: int) -> torch.Tensor:
    return torch.cat([gradient.of_rows(row, row + 1) for row in range(rows)]).view(rows, columns)


def test_gradients_of_rows():
    """Rows come in any order, several times, over microbatches; forwards may run ahead."""
    gradient, rows = RowGradient(), 40
    expected_RC = torch.zeros(rows, 3)
    random = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, most, (25,), generator=random).int() for most in (10, 6, 25, 10)]
    grads = [torch.randn(25, 3, generator=random) for _ in ids]
    for pair in (0, 2):
        counts = []
        for ids_N in ids[pair : pair + 2]:
            gradient.touch(ids_N, rows)
            counts.append(HostCopy(gradient.touched).read())
        for index, count in zip((pair, pair + 1), counts, strict=True):
            gradient.add(ids[index], grads[index], count)
            expected_RC.index_add_(0, ids[index].long(), grads[index])
    touched = len(torch.cat(ids).unique())
    assert int(gradient.touched) == touched < rows
    assert touched < len(gradient.values) <= 1 + touched + touched // 8
    assert torch.equal(dense_gradient(gradient, rows, 3), expected_RC)
    assert not gradient.values[0].any()
    gradient.clear()
    gradient.touch(torch.tensor([39]), rows)
    gradient.add(torch.tensor([39, 39]), torch.ones(2, 3), 1)
    assert dense_gradient(gradient, rows, 3).sum() == 6 and len(gradient.values) == 2


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("fsdp",))
    dist.destroy_process_group()


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"amsgrad": True}, {}])
def test_optimizer_is_adamw_bit_by_bit(how, one_rank, monkeypatch):
    """Also for rows that are not looked up, in several chunks; and a step without a backward."""
    monkeypatch.setattr("train.table_optimizer.CHUNK", 4 * 7)
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(50, 4))
    table = nn.Parameter(distribute_tensor(whole.detach().clone(), one_rank, [Shard(1)]))
    given = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1, **how}
    expected = AdamW([whole], **given)
    gradient = RowGradient()
    optimizer = TableAdamW([{"params": [table], **expected.defaults}], {table: gradient})
    for step in range(4):
        optimizer.zero_grad()
        if step != 2:
            ids = torch.randint(0, 50, (20,))
            gradient.touch(ids, 50)
            gradient.add(ids, torch.randn(20, 4), int(gradient.touched))
        whole.grad = dense_gradient(gradient, 50, 4) if step != 2 else None
        optimizer.step()
        expected.step()
        assert torch.equal(table.to_local(), whole)
    for name, value in expected.state[whole].items():
        ours = optimizer.state[table][name]
        assert torch.equal(ours.to_local() if isinstance(ours, DTensor) else ours, value), name


def a_model(mesh: DeviceMesh) -> nn.Module:
    tables = ShardedTables(HashEmbedding((3,), 2, rows=11, dim=4), mesh, torch.float32)
    return nn.ModuleDict({"tables": tables, "head": nn.Linear(4, 4)})


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_with_the_same_rows_take_one_gradient(ranks, monkeypatch):
    """A GPU adds in another order on each of them, and tables would drift apart."""
    config = blt_debug()
    config.parallelism.tensor_parallel_degree = ranks
    reduced: list[int] = []

    def all_reduce(value: torch.Tensor, group: Any) -> None:
        reduced.append(dist.get_world_size(group))
        value += value + 0.5  # the other rank's

    with fake_ranks(4):
        (tables,) = sharded_tables(parallelized(config, 4))
        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        for gradient in tables.gradients[1:]:  # the first has none
            gradient.values = torch.ones(3, 2)
        tables.agree()
    expected = 1.25 if ranks == 2 else 1.0
    assert all((gradient.values == expected).all() for gradient in tables.gradients[1:])
    assert reduced == ([2] * (len(tables) - 1) if ranks == 2 else [])


def test_tables_keep_the_settings_of_their_group(one_rank):
    model = a_model(one_rank)
    config = default_adamw(lr=0.1)
    first = replace(config.param_groups[0], pattern="tables.0", optimizer_kwargs={"lr": 0.5})
    config.param_groups.insert(0, first)
    optimizers = config.build(model_parts=[model])
    split_off_tables(optimizers, [model], None)
    found = [
        (type(optimizer), group["lr"], group["param_names"])
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    assert found == [
        (AdamW, 0.1, ["head.weight", "head.bias"]),
        (TableAdamW, 0.5, ["tables.0.weight"]),
        (TableAdamW, 0.1, ["tables.1.weight"]),
    ]


def test_other_optimizers_are_refused(one_rank):
    model = a_model(one_rank)
    config = default_adamw(lr=0.1)
    config.param_groups[0].optimizer_name = "Adam"
    optimizers = config.build(model_parts=[model])
    with pytest.raises(
        ConfigError, match=r"sharded tables need AdamW, and tables.0.weight has Adam"
    ):
        split_off_tables(optimizers, [model], None)
    config = blt_debug()
    config.optimizer.implementation = "fused_opt_states_bf16"
    with pytest.raises(ConfigError, match=r"add --parallelism.hash-tables plain"):
        replace(config)
    config.parallelism.hash_tables = "plain"
    replace(config)


@pytest.mark.filterwarnings("ignore:Expected a tensor or a traceable wrapper-subclass")
def test_memory_follows_the_rows_looked_up(one_rank):
    """Tensors that are alive in a step: a gradient of each table, or of the rows looked up."""
    rows = 20_000
    dims = ParallelDims(1, 1, 1, 1, 1, 1, 1, "partial_dtensor")
    state, peak = {}, {}
    for form in ("plain", "sharded"):
        run = TinyTraining(dims, form, rows)
        tracker = MemTracker()
        tracker.track_external(run.model)
        with tracker:
            run.backward(1, 1)
        device = torch.device("cpu")
        state[form] = tracker.get_tracker_snapshot("current")[device]["Total"]
        peak[form] = tracker.get_tracker_snapshot("peak")[device]["Total"]
    tables = TABLES * rows * DIM * 4
    looked_up = TABLES * ROWS * WIDTH * DIM * 4
    assert 10 * looked_up < tables
    slots = TABLES * rows * 4
    assert tables - 1.125 * looked_up - slots < state["plain"] - state["sharded"] < tables
    assert peak["plain"] - peak["sharded"] > tables / 2


class Operations(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_exchanges_have_as_many_operations_on_any_number_of_ranks():
    """On a GPU each would be a kernel: 512 small ones cost more than what they move."""
    counts = {}
    for ranks in (3, 8, 512):
        with fake_ranks(ranks):
            mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
            tables = ShardedTables(HashEmbedding((3,), 2, rows=5, dim=1280), mesh, torch.float32)
            with Operations() as counted:
                assert tables.gather_ids(torch.ones(2, 4).int()).shape == (2, 4 * ranks)
                summed_TD = tables.columns_to_tokens(torch.ones(4 * ranks, tables.widths[0]))
                assert summed_TD.shape == (4, 1280)
                grad_NC = tables.tokens_to_columns(summed_TD)
                assert grad_NC.shape == (4 * ranks, tables.widths[0])
            counts[ranks] = counted.count
    assert counts[512] <= counts[3] and counts[8] <= counts[3] < 40, counts


def test_offloaded_tables_of_512_ranks(monkeypatch):
    """Tables stay on the CPU, and every operation finds its tensors on one device; each rank keeps
    2 of 1024 columns."""
    touched = 900
    monkeypatch.setattr(HostCopy, "__init__", lambda self, values: None)
    monkeypatch.setattr(HostCopy, "read", lambda self: [touched] * 2)
    dist.init_process_group("fake", rank=17, world_size=512)
    try:
        mesh = init_device_mesh("cpu", (512,), mesh_dim_names=("fsdp",))
        with FakeTensorMode():
            with torch.device("meta"):
                plain = HashEmbedding((3, 4), 1, rows=5000, dim=1024)
            tables = ShardedTables(plain, mesh, torch.bfloat16)
            tables.to_empty(device="cpu")
            tokens_T = torch.zeros(64, dtype=torch.int64, device="cuda")
            ids_KT = torch.stack([*tables.row_ids(tokens_T, tokens_T)]).int()
            # Without a GPU there is no autograd on its fake tensors.
            context = SimpleNamespace()
            context.save_for_backward = lambda ids_KN: vars(context).update(saved_tensors=(ids_KN,))
            with torch.no_grad():
                summed_TD = _SumOfRows.forward(context, tables, ids_KT, True, *tables.weights)
                assert summed_TD.shape == (64, 1024) and summed_TD.dtype == torch.bfloat16
                assert summed_TD.device.type == "cuda"
                _SumOfRows.backward(context, torch.ones_like(summed_TD))
            for table, gradient in zip(tables, tables.gradients, strict=True):
                assert table.weight.grad is None and table.weight.to_local().shape == (5000, 2)
                assert gradient.of_rows(0, 4).device.type == "cpu"
                assert gradient.values.shape == (1 + touched + touched // 8, 2)
                assert gradient.values.dtype == torch.float32
    finally:
        dist.destroy_process_group()
