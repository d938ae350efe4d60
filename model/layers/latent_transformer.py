"""The latent transformer holds most of the weights and runs once per patch (arXiv 2412.09871,
section 3.1)."""

from collections.abc import Sequence

from torch import Tensor, nn

from model.blt_config import BLTConfig
from model.layers.attention import Attend, RotaryAngles
from model.layers.transformer import Block, run_blocks


class LatentTransformer(nn.Module):
    """A causal transformer over patches; it has no final norm."""

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
        head_dim, scaling = config.dim_global // config.n_heads_global, config.rope_scaling_global
        self.rotary = RotaryAngles(head_dim, config.rope_theta, scaling)

    def forward(self, patches_NKD: Tensor, position_N: Tensor, attends: Sequence[Attend]) -> Tensor:
        """Latent states of patches, ``[patches, dim_global]``.

        Args:
            patches_NKD: the k vectors of each patch, ``dim_local`` wide.
            position_N: position of each patch in its document.
            attends: the attention of each layer.
        """
        x_NG = self.token_embedding_projection(patches_NKD.flatten(-2))
        return run_blocks(self.layers, x_NG, self.rotary(position_N), attends)
