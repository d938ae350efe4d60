"""The local encoder: byte states, and patches made of them (arXiv 2412.09871, section 3.2).

A patch starts from the largest value of each feature over its bytes. With cross attention it is
projected to k vectors, which then gather from the bytes. Without it (``cross_attn_encoder``, one of
the paper's ablations) the pooled bytes are the patch, one vector.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.blt_config import BLTConfig
from model.layers.attention import Attend, RotaryAngles
from model.layers.cross_attention import GatherFromBytes, split_index
from model.layers.runs import max_of_runs
from model.layers.transformer import Block


class LocalEncoder(nn.Module):
    """A small byte transformer, and patches of its states.

    Patches never flow back into the byte states, so that the two halves can be run apart.
    """

    def __init__(self, config: BLTConfig):
        super().__init__()
        dim, layers = config.dim_local, config.n_layers_local_encoder
        self.k = config.patch_vectors
        self.tok_embeddings = nn.Embedding(config.vocab_size, dim)
        shape = config.block_shape("local_encoder")
        self.layers = nn.ModuleList(Block(*shape) for _ in range(layers))
        first = 0 if config.cross_attn_all_layers_encoder else layers - 1
        self.pooled_layers = range(first, layers)
        """Layers after which patches are made of the byte states, or gather from them."""
        self.patch_embedding_projection = (
            nn.Linear(dim, dim * self.k, bias=False) if config.cross_attn_encoder else nn.Identity()
        )
        self.cross_attn_layers = nn.ModuleList(
            GatherFromBytes(
                dim, config.cross_attn_nheads, config.cross_attn_n_kv_heads_encoder, config.norm_eps
            )
            for _ in (self.pooled_layers if config.cross_attn_encoder else ())
        )
        self.rotary = RotaryAngles(dim // config.n_heads_local_encoder, config.rope_theta)

    def byte_states(
        self, x_TD: Tensor, position_T: Tensor, attends: Sequence[Attend]
    ) -> list[Tensor]:
        """Byte states, ``[bytes, dim]``, after each layer of :attr:`pooled_layers`. The last ones
        go on to the decoder.

        Args:
            x_TD: embeddings.
            position_T: position of each byte in its document.
            attends: the attention of each layer.
        """
        rotary = self.rotary(position_T)
        states = []
        for i, (layer, attend) in enumerate(zip(self.layers, attends, strict=True)):
            x_TD = layer(x_TD, rotary, attend)
            if i in self.pooled_layers:
                states.append(x_TD)
        return states

    def patches(self, states: Sequence[Tensor], patch_TW: Tensor, patches: int) -> Tensor:
        """The k vectors of each patch, ``[patches, k, dim]``; k is 1 without cross attention.

        They start from the largest value of each feature over the patch's own bytes, and then
        gather from the bytes that the patch sees.

        Args:
            states: as :meth:`byte_states` returns them.
            patch_TW: indices of the patches that see each byte, its own first; ``~i`` for none
                (see :mod:`model.layers.cross_attention`).
            patches: how many patches there are.
        """
        own_T, none_T = split_index(patch_TW[:, 0])
        state_TD = states[0].masked_fill(none_T[:, None], -torch.inf)
        pooled_ND = max_of_runs(state_TD, own_T, patches)
        pooled_ND = pooled_ND.masked_fill(pooled_ND == -torch.inf, 0)  # patches without bytes
        x_NKD: Tensor = self.patch_embedding_projection(pooled_ND).unflatten(-1, (self.k, -1))
        for gather, state_TD in zip(self.cross_attn_layers, states, strict=False):
            x_NKD = gather(x_NKD, state_TD, patch_TW)
        return x_NKD
