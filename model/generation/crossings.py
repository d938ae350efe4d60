"""Patches gather from their bytes, and bytes read from patches, in states that are kept. The
arithmetic is that of :mod:`model.layers.cross_attention`."""

import torch.nn.functional as F
from torch import Tensor

from model.generation.cached_blocks import add_product, normed_product, project
from model.generation.fused import pooled, read_from
from model.generation.kv_cache import keeps_shapes
from model.layers.cross_attention import GatherFromBytes, ReadFromPatches

FEW_PATCHES = 4
"""Patches of a row up to which each looks at all bytes for its own: more scatter them."""
FEW_BYTES = 256
"""Bytes of all rows up to which a step's reading is one function to compile. It is elementwise, and
would take a lot of memory for the bytes of prompts."""


def pooled_bytes(states_BSD: Tensor, own_BS: Tensor, patches: int) -> Tensor:
    """See :func:`model.generation.fused.pooled`."""
    if patches <= FEW_PATCHES and keeps_shapes(states_BSD.device):
        return pooled(states_BSD, own_BS, patches)
    # One patch more takes the bytes that belong to none.
    batch, dim = len(states_BSD), states_BSD.shape[-1]
    pooled_ND = states_BSD.new_zeros(batch * patches + 1, dim)
    own_TD = own_BS.flatten()[:, None].expand(-1, dim)
    bytes_TD = states_BSD.flatten(0, 1)
    return pooled_ND.scatter_reduce(0, own_TD, bytes_TD, "amax", include_self=False)[:-1]


def gather_from(
    layer: GatherFromBytes,
    kv_weights: tuple[Tensor, ...],
    x_XD: Tensor,
    bytes_BSD: Tensor,
    mask_B1XS: Tensor,
) -> Tensor:
    """The vectors of patches that have gathered from bytes, as :class:`GatherFromBytes` computes
    them, written over ``x_XD``; the rows of the batch one after another."""
    batch = len(bytes_BSD)
    kv_BSE = project(layer.cross_attn_norm_kv(bytes_BSD), kv_weights)
    kv_BSHE = kv_BSE.unflatten(-1, (-1, layer.head_dim))
    if layer.groups > 1:
        kv_BSHE = kv_BSHE.repeat_interleave(layer.groups, 2)
    k_BHSE, v_BHSE = kv_BSHE.transpose(1, 2).chunk(2, 1)
    q_XE = normed_product(x_XD, layer.cross_attn_norm_q, (layer.wq.weight,))
    q_BHXE = q_XE.view(batch, -1, k_BHSE.shape[1], layer.head_dim).transpose(1, 2)
    out_BHXE = F.scaled_dot_product_attention(q_BHXE, k_BHSE, v_BHSE, attn_mask=mask_B1XS)
    return add_product(x_XD, out_BHXE.transpose(1, 2).flatten(0, 1).flatten(1), layer.wo, times=2)


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
