"""The local decoder: next-byte logits from byte states and latent patches (arXiv 2412.09871,
section 3.3).

Bytes read patches by cross attention. Without it (``cross_attn_decoder``, one of the paper's
ablations) the vector of the patch that a byte would read is added to the byte's state before the
first layer.
"""

from collections.abc import Iterable, Sequence
from typing import cast

from torch import Tensor, nn

from model.blt_config import BLTConfig
from model.layers.attention import Attend, RotaryAngles
from model.layers.cross_attention import ReadFromPatches, Vectors
from model.layers.runs import take_rows
from model.layers.transformer import Block

Readable = Sequence[tuple[Tensor, ...]]
"""Tensors with one entry for each patch: for each cross attention keys and values, ``[patches, k,
heads, head_dim]``; without cross attention the vectors to add, once, ``[patches, dim]``."""


class ReadingBlock(Block):
    """A layer before which bytes read from patches: both are one piece for the compiler and for
    activation checkpointing, and keys and values of the patches are made inside of it."""

    def forward(  # type: ignore[override]
        self,
        x_TD: Tensor,
        rotary: Tensor,
        attend: Attend,
        read: ReadFromPatches,
        patches: Vectors,
        patch_TW: Tensor,
    ) -> Tensor:
        """States after the layer, ``[tokens, dim]``.

        Args:
            x_TD, rotary, attend: as for :class:`Block`.
            read: the cross attention. It is no part of this module, because parameters keep their
                published names.
            patches, patch_TW: as for ``read``.
        """
        return super().forward(read(x_TD, patches, patch_TW), rotary, attend)


class LocalDecoder(nn.Module):
    """A small byte transformer that reads from latent patches."""

    def __init__(self, config: BLTConfig):
        super().__init__()
        dim, layers = config.dim_local, config.n_layers_local_decoder
        self.k = config.read_vectors
        self.patch_embedding_projection = (
            nn.Linear(config.dim_global, dim * self.k, bias=False)
            if config.projects_equal_widths
            else nn.Identity()
        )
        shape, crossings = config.block_shape("local_decoder"), config.decoder_crossings
        self.layers = nn.ModuleList(
            (ReadingBlock if i < crossings else Block)(*shape) for i in range(layers)
        )
        self.cross_attn_layers = nn.ModuleList(
            ReadFromPatches(
                dim, config.cross_attn_nheads, config.cross_attn_n_kv_heads_decoder, config.norm_eps
            )
            for _ in range(crossings)
        )
        self.norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.output = nn.Linear(dim, config.vocab_size, bias=False)
        self.rotary = RotaryAngles(dim // config.n_heads_local_decoder, config.rope_theta)

    def vectors(self, latent_NG: Tensor) -> Tensor:
        """The vectors of each patch that bytes read, ``[patches, k, dim]``; k is 1 without cross
        attention.

        Args:
            latent_NG: states of the latent transformer, ``dim_global`` wide.
        """
        x_NKD: Tensor = self.patch_embedding_projection(latent_NG).unflatten(-1, (self.k, -1))
        return x_NKD

    def readable(self, latent_NG: Tensor) -> Readable:
        """The tensors that bytes read of each patch, for those who keep them; argument as for
        :meth:`vectors`."""
        x_NKD = self.vectors(latent_NG)
        if not len(self.cross_attn_layers):
            return [(x_NKD.squeeze(1),)]
        layers = cast(Iterable[ReadFromPatches], self.cross_attn_layers)
        return [layer.keys_values(x_NKD) for layer in layers]

    def forward(
        self,
        x_TD: Tensor,
        position_T: Tensor,
        attends: Sequence[Attend],
        patches: Tensor | Readable,
        patch_TW: Tensor,
    ) -> Tensor:
        """Logits of the token after each byte, ``[bytes, vocab_size]`` float32.

        Args:
            x_TD: byte states of the encoder.
            position_T: position of each byte in its document.
            attends: the attention of each layer.
            patches: as :meth:`vectors` or :meth:`readable` returns them.
            patch_TW: indices of the patches that each byte reads from; ``~i`` for none (see
                :mod:`model.layers.cross_attention`).
        """
        rotary = self.rotary(position_T)
        if not len(self.cross_attn_layers):
            vector_ND = patches.squeeze(1) if isinstance(patches, Tensor) else patches[0][0]
            x_TD = x_TD + take_rows(vector_ND, patch_TW[:, 0])
        for i, (layer, attend) in enumerate(zip(self.layers, attends, strict=True)):
            reads: tuple[object, ...] = ()
            if i < len(self.cross_attn_layers):
                seen = patches if isinstance(patches, Tensor) else patches[i]
                reads = self.cross_attn_layers[i], seen, patch_TW
            x_TD = layer(x_TD, rotary, attend, *reads)
        return self.logits(x_TD)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Logits of byte states after the last layer, ``[bytes, vocab_size]`` float32."""
        logits_TV: Tensor = self.output(self.norm(x_TD))
        return logits_TV.float()
