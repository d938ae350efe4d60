"""Bytes read from patches that are kept. The arithmetic is that of
:mod:`model.layers.cross_attention`."""

import torch.nn.functional as F
from torch import Tensor

from model.generation.cached_blocks import add_product, normed_product
from model.generation.fused import read_from
from model.generation.kv_cache import keeps_shapes
from model.layers.cross_attention import ReadFromPatches

FEW_BYTES = 256
"""Bytes of all rows up to which a step's reading is one function to compile. It is elementwise, and
would take a lot of memory for the bytes of prompts."""


def read_patches(
    layer: ReadFromPatches, x_TD: Tensor, kv_TWK2HE: Tensor, mask: Tensor | None
) -> Tensor:
    """Byte states that have read from patches, as :class:`ReadFromPatches` computes them, written
    over ``x_TD``.

    Args:
        mask: minus infinity for patches that are not there, ``[tokens, window * k]``.
    """
    q_TE = normed_product(x_TD, layer.cross_attn_norm_q, (layer.wq.weight,))
    kv_TX2HE = kv_TWK2HE.flatten(1, 2)
    if keeps_shapes(x_TD.device) and len(x_TD) <= FEW_BYTES:
        return add_product(x_TD, read_from(q_TE, kv_TX2HE, mask), layer.wo, times=2)
    q_TH1E = q_TE.unflatten(-1, (-1, 1, layer.head_dim))
    k_THXE, v_THXE = (x.transpose(1, 2) for x in kv_TX2HE.unbind(2))
    mask_T11X = None if mask is None else mask[:, None, None]
    out_TH1E = F.scaled_dot_product_attention(q_TH1E, k_THXE, v_THXE, attn_mask=mask_T11X)
    return add_product(x_TD, out_TH1E.flatten(1), layer.wo, times=2)
