"""Hash tables that cost what is looked up: each data rank keeps some columns of every row.

FSDP gathers and reduces whole tables for each microbatch: 24.6 GB for the 3 billion parameters of
blt_1b's tables, whatever is looked up. Here, ranks exchange ids and sums of rows instead: with T
tokens a rank and a width of D, T ids for each table and twice ``T * D`` values.

**Idea.** A byte's embedding is the sum of one row of each table, and a sum can be made column by
column. Of R ranks, rank r keeps columns ``[r * D / R, (r + 1) * D / R)`` of all tables. All ranks
tell one another which rows their tokens need; each sums its columns of those rows, for everybody's
tokens; one all-to-all brings the sums to the ranks whose tokens they are. Backward, the same
all-to-all brings the gradients of the sums to the columns' ranks, which add them to each row that
was looked up.

**Invariant.** Every rank knows every lookup of the running step, in the same order, so all of them
agree about which rows have a gradient. All sizes follow from the shapes of the batch: nothing is
dropped, no table is waited for, and no rank can ask for more than the others expect. Therefore each
rank's microbatch has the same number of tokens, as the dataloader makes them.

**Example.** Two ranks, two tables of width 4, a token each. Rank 0's token needs rows 7 and 2,
rank 1's rows 7 and 5. Both ranks gather the ids ``[[7, 2], [7, 5]]``. Rank 0 keeps columns 0 and 1:
it computes ``A[7, :2] + B[2, :2]`` for itself and ``A[7, :2] + B[5, :2]`` for rank 1, and rank 1
does so for columns 2 and 3. Each sends the other's half: two values each way, where FSDP sends half
of all tables. Backward, rank 0 adds columns 0 and 1 of both tokens' gradients to its row 7 of A.

Columns rather than rows, because the sums over tables are made before they are sent, every rank has
the same work however rows are distributed, and no sizes have to be exchanged. One of 512 ranks
looks up 512 times as many rows of a 512th of the width: as many bytes. But ids grow with the ranks,
by 24 bytes per token: they are 0.4 of the 0.54 GB that a rank of 512 receives for a microbatch of
blt_1b.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from model.layers.hash_embedding import HashEmbedding


class ShardedTables(HashEmbedding):
    """Hash embeddings whose tables are DTensors, sharded by column over all data ranks.

    Parameters keep their names and global shapes, so checkpoints are those of any other form. Their
    gradients never become ``.grad``: :attr:`gradients` holds them.
    """

    def __init__(
        self,
        tables: HashEmbedding,
        mesh: DeviceMesh,
        dtype: torch.dtype,
        twins: dist.ProcessGroup | None = None,
    ):
        """
        Args:
            tables: takes over its parameters, which may be on the meta device.
            mesh: of one dimension: all ranks whose microbatches differ.
            dtype: of the sums that are exchanged and returned; rows are summed in their own.
            twins: ranks that have the same microbatches and columns (tensor parallelism); None if
                there are no others.
        """
        nn.ModuleList.__init__(self, tables)
        self.twins = twins
        self.ngrams, self.rows, self.dtype = tables.ngrams, tables.rows, dtype
        self.mesh = mesh
        for table in tables:
            assert isinstance(table, nn.Embedding)
            self.dim: int = table.embedding_dim
            shard = distribute_tensor(table.weight, mesh, [Shard(1)], src_data_rank=None)
            table.weight = nn.Parameter(shard)
        self.gradients = [RowGradient() for _ in self]
        """The gradient of each table since the optimizer's last ``zero_grad``."""
        self.sum_rows: Callable[[Sequence[Tensor], Tensor], Tensor] = sum_rows

    def compile_parts(self, **options: Any) -> None:
        """Compile the ids and the sums of rows, not the exchange between ranks around them."""
        super().compile_parts(**options)
        self.sum_rows = torch.compile(sum_rows, **options)

    def forward(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        """As :meth:`HashEmbedding.forward`; a collective: all ranks of the mesh have to call it,
        with as many tokens."""
        ids_KT = self.row_ids(tokens_T, position_T)
        if self.rows <= 1 << 31:
            ids_KT = ids_KT.int()
        training = torch.is_grad_enabled()
        summed_TD: Tensor = _SumOfRows.apply(self, ids_KT, training, *self.weights)
        return summed_TD

    def gather_ids(self, ids_KT: Tensor) -> Tensor:
        """The ids of all ranks' tokens, rank after rank, ``[tables, ranks * tokens]``."""
        ranks = self.mesh.size()
        if ranks == 1:
            return ids_KT
        ids_RKT = ids_KT.new_empty(ranks, *ids_KT.shape)
        # Into one tensor, not into a list of each rank's part: that NCCL would gather into memory
        # of its own, and copy part by part. PyTorch 2.11 has the older name alone.
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        gather(ids_RKT.flatten(0, 1), ids_KT.contiguous(), group=self.mesh.get_group())
        return ids_RKT.transpose(0, 1).flatten(1)

    def columns_to_tokens(self, x_NC: Tensor) -> Tensor:
        """From this rank's columns of all ranks' tokens to all columns of this rank's tokens."""
        ranks = self.mesh.size()
        if ranks == 1:
            return x_NC
        tokens = len(x_NC) // ranks
        sent = [tokens * x_NC.shape[1]] * ranks
        received = [tokens * width for width in self.widths]
        x = self._exchange(x_NC.flatten(), sent, received)
        # Ranks with as many columns are moved together: one by one, 512 are 512 kernels.
        full, width = self._equal_widths()
        whole, rest = x.split([full * tokens * width, len(x) - full * tokens * width])
        whole_TD = whole.view(full, tokens, width).transpose(0, 1).reshape(tokens, -1)
        return torch.cat([whole_TD, rest.view(tokens, -1)], dim=1) if len(rest) else whole_TD

    def tokens_to_columns(self, x_TD: Tensor) -> Tensor:
        """The reverse of :meth:`columns_to_tokens`."""
        ranks = self.mesh.size()
        if ranks == 1:
            return x_TD
        full, width = self._equal_widths()
        whole_TD, rest_TD = x_TD.split([full * width, self.dim - full * width], dim=1)
        x = whole_TD.reshape(-1, full, width).transpose(0, 1).flatten()
        if rest_TD.numel():
            x = torch.cat([x, rest_TD.flatten()])
        own = self.widths[self.mesh.get_local_rank()]
        sent, received = [len(x_TD) * n for n in self.widths], [len(x_TD) * own] * ranks
        return self._exchange(x, sent, received).view(len(x_TD) * ranks, own)

    def _equal_widths(self) -> tuple[int, int]:
        """How many ranks, the first ones, keep as many columns as any, and how many that are; the
        next rank keeps the rest."""
        width = self.widths[0]
        return self.dim // width, width

    def _exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send each rank its part of ``x``, of so many values; returns what they sent here."""
        out = x.new_empty(sum(received))
        dist.all_to_all_single(out, x, received, sent, group=self.mesh.get_group())
        return out

    def agree(self) -> None:
        """Take the mean of the twins' gradients, before a step of the optimizer.

        They have computed the same ones, but a GPU adds the gradients of a row in another order
        each time, and without this their tables would drift apart, rounding by rounding.
        """
        for gradient in self.gradients if self.twins is not None else ():
            if gradient.values is not None:
                dist.all_reduce(gradient.values, group=self.twins)
                gradient.values /= dist.get_world_size(self.twins)

    @property
    def weights(self) -> list[Any]:
        """The parameter of each table."""
        return [table.weight for table in self]

    @property
    def widths(self) -> list[int]:
        """How many columns each rank keeps: as many as DTensor deals out, the last ones fewer."""
        ranks = self.mesh.size()
        width = -(-self.dim // ranks)
        return [max(0, min(width, self.dim - rank * width)) for rank in range(ranks)]


def sum_rows(shards: Sequence[Tensor], ids_KN: Tensor) -> Tensor:
    """The sum over tables of the rows with these ids, ``[tokens, columns]``, in the tables' dtype.

    Args:
        shards: this rank's columns of each table.
        ids_KN: the ids of rows of each table.
    """
    summed_NC = shards[0].index_select(0, ids_KN[0])
    for shard, ids_N in zip(shards[1:], ids_KN[1:], strict=True):
        summed_NC += shard.index_select(0, ids_N)
    return summed_NC


class _SumOfRows(torch.autograd.Function):
    """The sum over tables of the rows of this rank's tokens; its gradients go to
    :attr:`ShardedTables.gradients`."""

    @staticmethod
    def forward(
        ctx: Any, tables: ShardedTables, ids_KT: Tensor, has_backward: bool, *weights: DTensor
    ) -> Tensor:
        shards = [weight.to_local() for weight in weights]
        home = shards[0].device  # CPU offload keeps weights, and so lookups, on the CPU
        ids_KN = tables.gather_ids(ids_KT).to(home)
        summed_NC = tables.sum_rows(shards, ids_KN)
        if has_backward:
            for gradient, ids_N in zip(tables.gradients, ids_KN, strict=True):
                gradient.touch(ids_N, tables.rows)
            ctx.tables, ctx.home = tables, home
            ctx.touched = HostCopy(torch.stack([g.touched for g in tables.gradients]))
            ctx.save_for_backward(ids_KN)
        return tables.columns_to_tokens(summed_NC.to(ids_KT.device, tables.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        tables: ShardedTables = ctx.tables
        (ids_KN,) = ctx.saved_tensors
        # Sent as it is: nothing is summed on the way, so the reduction's dtype begins at the rows.
        grad_NC = tables.tokens_to_columns(grads[0]).to(ctx.home, torch.float32)
        for gradient, ids_N, touched in zip(
            tables.gradients, ids_KN, ctx.touched.read(), strict=True
        ):
            gradient.add(ids_N, grad_NC, touched)
        return (None,) * (3 + len(tables))


class RowGradient:
    """This rank's columns of the gradient of one table: of the rows that were looked up alone.

    Rows get slots as they are looked up. Slot 0 is that of all other rows, and its gradient stays
    0: ``values[slot_R]`` is the whole gradient, and no row is a special case. If a microbatch looks
    up rows 7 and 2, their slots are 2 and 1; if the next one looks up 7 and 5, row 5 gets slot 3.

    Attributes:
        slot_R: int32, the slot of each of the table's rows; None if nothing was looked up.
        touched: int64 on the device, the number of rows that were looked up.
        values: ``[at least 1 + touched, columns]`` float32, the gradients of slots; None if there
            was no backward.
    """

    slot_R: Tensor | None
    touched: Tensor
    values: Tensor | None

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all gradients."""
        self.slot_R, self.values = None, None

    def touch(self, ids_N: Tensor, rows: int) -> None:
        """Give a slot to each of these rows that has none, without waiting for the device."""
        if self.slot_R is None:
            self.slot_R = torch.zeros(rows, dtype=torch.int32, device=ids_N.device)
            self.touched = torch.zeros((), dtype=torch.int64, device=ids_N.device)
        looked_up_R = torch.zeros(rows, dtype=torch.bool, device=ids_N.device)
        looked_up_R.index_fill_(0, ids_N.long(), True)
        new_R = looked_up_R & (self.slot_R == 0)
        slots_R = new_R.cumsum(0) + self.touched
        self.slot_R = torch.where(new_R, slots_R.int(), self.slot_R)
        self.touched = self.touched + new_R.sum()

    def add(self, ids_N: Tensor, grad_NC: Tensor, touched: int) -> None:
        """Add gradients to the rows that were looked up.

        Args:
            ids_N: rows, all of them touched before.
            grad_NC: their gradients; those of equal rows add up.
            touched: how many rows have been touched.
        """
        assert self.slot_R is not None
        held = 0 if self.values is None else len(self.values)
        if held <= touched:
            # An eighth more than is needed, so that later microbatches seldom copy all of it.
            needed = min(1 + touched + touched // 8, 1 + len(self.slot_R))
            grown = grad_NC.new_zeros(needed, grad_NC.shape[1])
            if self.values is not None:
                grown[:held] = self.values
            self.values = grown
        assert self.values is not None
        self.values.index_add_(0, self.slot_R[ids_N.long()], grad_NC)

    def of_rows(self, start: int, stop: int) -> Tensor:
        """The dense gradient of some rows, ``[stop - start, columns]``."""
        assert self.slot_R is not None and self.values is not None
        return self.values.index_select(0, self.slot_R[start:stop])


class HostCopy:
    """Integers on their way to the host, read when the device has long computed them."""

    def __init__(self, values: Tensor):
        self.values = values.to("cpu", non_blocking=True)
        self.copied = None if values.device.type == "cpu" else torch.Event(values.device)
        if self.copied is not None:
            self.copied.record()

    def read(self) -> list[int]:
        """Wait for the copy, if there is need to."""
        if self.copied is not None:
            self.copied.synchronize()
        numbers: list[int] = self.values.tolist()
        return numbers


def sharded_tables(model: nn.Module) -> Iterator[ShardedTables]:
    """The sharded tables of a model; at most one in those that there are."""
    return (module for module in model.modules() if isinstance(module, ShardedTables))
