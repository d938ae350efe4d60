"""The entropy model: a small causal byte transformer whose next-byte entropy places the patches.

Parameter names and arithmetic are those of the published weights (arXiv 2412.09871, section 2.3).
:mod:`model.checkpoints.entropy_model` reads checkpoints; ``pipeline/patch/scoring.py`` has the hot
loop over documents.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from model.entropies import batch_entropies, queue_copy
from model.entropy_model_config import EntropyModelConfig
from model.kernels.scoring import fits
from model.layers.attention import (
    BLOCK,
    SMALL_BLOCK,
    Attend,
    BlockedAttention,
    attend_flex,
    scoring_kernel,
    segment_attention,
    window_block_mask,
)
from model.layers.transformer import (
    Stack,
    check_plain_layers,
    run_blocks,
    run_blocks_in_place,
)
from model.segments import document_starts, since_start, token_positions
from model.tokenizer import BOE_ID, PAD_ID

CPU_TOKENS = 4096
"""Tokens per pack on a CPU: the activations of a layer then stay near the cache."""
GPU_TOKENS = 65536
"""Tokens per pack on a GPU: enough rows to keep the matrix units busy."""
SMALL_SHARE = 8
"""A pack for what is left has GPU_TOKENS / SMALL_SHARE tokens, and no less than the context."""
ALIGNED = 8
"""Values of two bytes that a row of a product is made a multiple of."""

FIXED_KERNELS: dict[str, str | int | bool | Callable[..., Any]] = {
    "deterministic": True,
    "max_autotune": False,
    "max_autotune_gemm": False,
    "max_autotune_pointwise": False,
    "coordinate_descent_tuning": False,
}
"""Inductor's settings for scoring, whatever the environment says: where a choice changes how
numbers are rounded (how sums are split, whether operands of products are padded) rules decide, and
not the clock. So all processes on one kind of device compute the same bits."""


def entropy_of(logits_TV: Tensor) -> Tensor:
    """The entropy (nats, float32) of the distribution that each row of logits stands for."""
    logp_TV = logits_TV.float().log_softmax(-1)
    if logp_TV.is_cpu:
        return -torch.einsum("tv,tv->t", logp_TV.exp(), logp_TV)
    # The same sum, in a form that is compiled into one kernel with the rest.
    return -(logp_TV.exp() * logp_TV).sum(-1)


class EntropyModel(Stack):
    """A byte transformer over segments laid end to end; it computes in its weights' dtype."""

    def __init__(self, config: EntropyModelConfig):
        super().__init__(config)
        self.config = config

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code is bound to this object: a copy compiles its own.
        return {name: v for name, v in self.__dict__.items() if not name.startswith("_compiled_")}

    @property
    def device(self) -> torch.device:
        """The device that holds the model and computes."""
        return self.output.weight.device

    @property
    def _on_cpu(self) -> bool:
        # On the meta device tests follow what a GPU would do.
        return self.device.type == "cpu"

    @property
    def context_length(self) -> int:
        """Tokens of the longest segment that the model can read."""
        return self.config.context_length

    @property
    def token_budget(self) -> int:
        """Tokens that a pack should hold on the model's device."""
        return max(CPU_TOKENS if self._on_cpu else GPU_TOKENS, self.context_length)

    @property
    def pack_sizes(self) -> tuple[int, ...]:
        """The sizes that packs are filled up to on a GPU, ascending: a kernel is compiled for each.
        None on a CPU."""
        if self._on_cpu:
            return ()
        context = -(-self.context_length // BLOCK) * BLOCK
        return tuple(sorted({max(n, context) for n in (GPU_TOKENS // SMALL_SHARE, GPU_TOKENS)}))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits of the token after each token, for training: shapes are fixed, so that a GPU is
        never waited for.

        A document ends with its EOS. Rows and documents do not see one another, and context starts
        again after every ``context_length`` tokens.

        Args:
            tokens_BS: token ids, right-padded with -1.

        Returns:
            ``[batch, seq, vocab_size]`` float32; the logits of padding are meaningless.
        """
        position_T = since_start(document_starts(tokens_BS)).remainder(self.context_length)
        attend = segment_attention(position_T, self.config.window)
        tokens_T = tokens_BS.masked_fill(tokens_BS == PAD_ID, BOE_ID).flatten()
        logits_TV = self._trunk(tokens_T, self.rotary(position_T), attend)
        return logits_TV.float().view(*tokens_BS.shape, -1)

    def logits_packed(self, tokens_T: Tensor, lengths_S: Tensor) -> Tensor:
        """Next-byte logits of one pack. On a GPU nothing goes backward through them.

        Args:
            tokens_T: token ids of segments laid end to end.
            lengths_S: tokens of each segment, none longer than ``context_length``.

        Returns:
            ``[tokens, vocab_size]``, in the weights' dtype.

        Raises:
            ValueError: a segment is longer than the context.
        """
        tokens_T, position_T, tokens = self._padded(tokens_T, lengths_S)
        if self._on_cpu:
            return self._logits_on_cpu(tokens_T, position_T)[:tokens]
        return self._run_compiled(self._compiled_logits, tokens_T, position_T)[:tokens]

    @torch.inference_mode()
    def entropies_packed(self, tokens_T: Tensor, lengths_S: Tensor) -> Tensor:
        """Entropy (nats, float32) of the prediction after each token of one pack.

        Arguments and errors are those of :meth:`logits_packed`.
        """
        tokens_T, position_T, tokens = self._padded(tokens_T, lengths_S)
        if self._on_cpu:
            return entropy_of(self._logits_on_cpu(tokens_T, position_T)[:tokens])
        return self._run_compiled(self._compiled_entropies, tokens_T, position_T)[:tokens]

    def _padded(self, tokens_T: Tensor, lengths_S: Tensor) -> tuple[Tensor, Tensor, int]:
        """A pack of a size that the device takes, on the device: token ids, their positions, and
        how many are not padding."""
        if len(lengths_S) and int(lengths_S.max()) > self.context_length:
            raise ValueError(
                f"a segment of {int(lengths_S.max())} tokens is longer than the context of "
                f"{self.context_length}: cut it with cut_segments first"
            )
        tokens = len(tokens_T)
        padding = self._padded_size(tokens) - tokens
        tokens_T = F.pad(queue_copy(tokens_T, self.device), (0, padding), value=BOE_ID)
        # Padding stands in segments of one token each, so that it costs the attention least.
        lengths_S = F.pad(queue_copy(lengths_S, self.device), (0, padding), value=1)
        return tokens_T, token_positions(lengths_S, len(tokens_T)), tokens

    def _padded_size(self, tokens: int) -> int:
        # A compiled kernel is made for one shape.
        units = self.pack_sizes or (BLOCK,)
        unit = next((size for size in units if tokens <= size), units[-1])
        return max(-(-tokens // unit), 1) * unit

    def _trunk(self, tokens_T: Tensor, rotary: Tensor, attend: Attend) -> Tensor:
        x_TD = self.tok_embeddings(tokens_T)
        x_TD = run_blocks(self.layers, x_TD, rotary, [attend] * len(self.layers))
        logits_TV: Tensor = self.output(self.norm(x_TD))
        return logits_TV

    def _logits_on_cpu(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        attend = BlockedAttention(position_T, self.config.window)
        return self._trunk(tokens_T, self.rotary(position_T), attend)

    @torch.no_grad()
    def _run_compiled(
        self, compiled: Callable[..., Tensor], tokens_T: Tensor, position_T: Tensor
    ) -> Tensor:
        fused = self._fused(len(tokens_T))
        mask = window_block_mask(position_T, self.config.window, SMALL_BLOCK if fused else BLOCK)
        rotary = self.rotary(position_T)
        if fused:  # laid out here: the compiler would do it for each layer
            rotary = rotary.transpose(1, 2).contiguous()
        return compiled(tokens_T, rotary, mask, fused)

    def _fused(self, tokens: int) -> bool:
        # Asked before the compiler traces: what it makes is for one answer.
        shape = self.config.block_shape
        widths = shape.dim, shape.hidden_dim
        return fits(self.device, self.output.weight.dtype, tokens, self.config.head_dim, widths)

    def _logits_in_place(
        self, tokens_T: Tensor, rotary: Tensor, mask: BlockMask, fused: bool
    ) -> Tensor:
        x_TD = self.tok_embeddings(tokens_T)
        kernel = scoring_kernel(self.config.head_dim, x_TD.dtype)
        attend = functools.partial(attend_flex, mask=mask, scale=1.0, kernel=kernel)
        run_blocks_in_place(self.layers, x_TD, rotary, attend, fused=fused)
        # Rows of 260 logits would not begin where the fast kernels of products want them to.
        weight_VD = self.output.weight
        weight_WD = F.pad(weight_VD, (0, 0, 0, -len(weight_VD) % ALIGNED))
        return F.linear(self.norm(x_TD), weight_WD)[:, : len(weight_VD)]

    def _entropies_in_place(
        self, tokens_T: Tensor, rotary: Tensor, mask: BlockMask, fused: bool
    ) -> Tensor:
        return entropy_of(self._logits_in_place(tokens_T, rotary, mask, fused))

    def _compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        check_plain_layers(self, "output")
        # What cannot be compiled as a whole is an error: eagerly, attention would write all pairs.
        # Two graphs per model; a process may have many models.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        return torch.compile(function, fullgraph=True, dynamic=False, options=FIXED_KERNELS)

    @functools.cached_property
    def _compiled_logits(self) -> Callable[..., Tensor]:
        return self._compile(self._logits_in_place)

    @functools.cached_property
    def _compiled_entropies(self) -> Callable[..., Tensor]:
        return self._compile(self._entropies_in_place)

    def entropies(self, tokens_BS: Tensor, *, reset_at_newline: bool = False) -> Tensor:
        """Entropies of a batch; see :func:`model.entropies.batch_entropies`."""
        return batch_entropies(self, tokens_BS, reset_at_newline=reset_at_newline)
