"""The latent transformer holds most of the weights and runs once per patch (arXiv 2412.09871,
section 3.1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from model.blt_config import BLTConfig
from model.layers.attention import Attend, RotaryAngles
from model.layers.transformer import Block, run_blocks


class LatentTransformer(nn.Module):
    """A causal transformer over patches; it has no final norm."""

    position_multiple = 1
    """Positions are filled up to a multiple of this for the layers, with zeros that nobody sees.
    Matrix products in float8 need 16: in the product that gives a weight's gradient, the positions
    are the dimension that is summed over."""

    def __init__(self, config: BLTConfig):
        super().__init__()
        incoming = config.dim_local * config.patch_vectors
        self.token_embedding_projection = (
            nn.Linear(incoming, config.dim_global, bias=False)
            if incoming != config.dim_global
            else nn.Identity()
        )
        shape = config.block_shape("global")
        self.layers = nn.ModuleList(Block(*shape) for _ in range(config.n_layers_global))
        self.rotary = RotaryAngles(config.dim_global // config.n_heads_global, config.rope_theta)

    def forward(self, patches_NKD: Tensor, position_N: Tensor, attends: Sequence[Attend]) -> Tensor:
        """Latent states of patches, ``[patches, dim_global]``.

        Args:
            patches_NKD: the k vectors of each patch, ``dim_local`` wide.
            position_N: position of each patch in its document.
            attends: the attention of each layer.
        """
        positions = len(position_N)
        if padding := -positions % self.position_multiple:
            patches_NKD = F.pad(patches_NKD, (0, 0, 0, 0, 0, padding))
            position_N = F.pad(position_N, (0, padding))
            attends = [_without_padding(attend, positions, padding) for attend in attends]
        x_NG = self.token_embedding_projection(patches_NKD.flatten(-2))
        return run_blocks(self.layers, x_NG, self.rotary(position_N), attends)[:positions]


def _without_padding(attend: Attend, positions: int, padding: int) -> Attend:
    """The attention of a layer whose tokens are followed by padding, which takes no part in it."""

    def attend_before(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        out_THD = attend(q_THD[:positions], k_TKD[:positions], v_TKD[:positions])
        return F.pad(out_THD, (0, 0, 0, 0, 0, padding))

    return attend_before
