"""Sums that grow byte by byte give the patches that their bytes give when they end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.kernels_on_cpus import stand_for_kernels
from support.weights import sharpen

from model import BLT, BLT_SIZES
from model.generation.cached_blocks import JoinedWeights
from model.generation.gathering import KeptBytes, OpenPatches, gathering
from model.generation.incremental import LATER
from model.generation.piece import Piece

SHAPE = replace(
    BLT_SIZES["debug"],
    n_layers_local_encoder=2,
    cross_attn_all_layers_encoder=True,
    cross_attn_nheads=2,
    n_heads_local_encoder=2,
    n_kv_heads_local_encoder=1,
)
BATCH, BYTES = 3, 14


def tell(piece: Piece, position_B, start_B, ended_B) -> None:
    after_B1 = np.where(ended_B, position_B + 1, LATER)[:, None]
    bounds_BX = np.concatenate([start_B[:, None], after_B1], 1)
    end_B = position_B * ended_B
    no_B1 = np.zeros((BATCH, 1), np.int64)
    told, values = piece.told(
        (0, 0, ended_B.astype(np.int64), end_B, 1), (position_B[:, None], no_B1, bounds_BX)
    )
    told.copy_(torch.from_numpy(values))


@pytest.mark.parametrize("crossings", [True, False])
@torch.inference_mode()
def test_open_patches_are_those_of_kept_bytes(monkeypatch, crossings):
    """A row in which none ended changes nothing, and a byte that is read again neither; rows taken
    from a batch that reads many tokens at a time go on in the middle of a patch."""
    stand_for_kernels(monkeypatch)
    monkeypatch.setattr("model.generation.cached_blocks.keeps_shapes", lambda device: True)
    torch.manual_seed(0)
    switches = {"cross_attn_encoder": crossings, "cross_attn_all_layers_encoder": crossings}
    model = BLT(replace(SHAPE, **switches)).eval()
    sharpen(model, 2)
    encoder, parts = model.local_encoder, len(model.local_encoder.pooled_layers)
    assert parts == (2 if crossings else 1)
    piece = Piece(BATCH, 1, 1, torch.device("cpu"))
    summed = gathering(encoder, piece, JoinedWeights())
    kept = KeptBytes(encoder, piece, JoinedWeights())
    assert isinstance(summed, OpenPatches)
    draw = np.random.default_rng(1)
    position_B, start_B = np.array([0, 5, 20]), np.array([0, 3, 20])
    states_PBSD = torch.randn(parts, BATCH, 40, encoder.tok_embeddings.weight.shape[1])
    kept.make_room(40)
    kept.kept.data[:, :, :40] = states_PBSD
    summed.make_room(3)
    for row in range(BATCH):
        summed.take(row, kept, row, int(start_B[row]), int(position_B[row]))
    compared = 0
    for _ in range(BYTES):
        summed.make_room(int((position_B + 1 - start_B).max()))
        tell(piece, position_B, start_B, np.zeros(BATCH, bool))
        for part in range(parts):
            x_BD = states_PBSD[part, range(BATCH), position_B]
            for _ in range(2):
                summed.keep(part, x_BD.clone(), piece.positions(1))
        ended_B = draw.random(BATCH) < 0.3
        tell(piece, position_B, start_B, ended_B)
        if ended_B.any():
            expected_BKD = kept.vectors(1, kept.span(20))
            found_BKD = summed.vectors(1, summed.span(20))
            torch.testing.assert_close(found_BKD[ended_B], expected_BKD[ended_B])
            found_BKD.zero_()  # the latent transformer writes over them
        compared += ended_B.sum()
        start_B = np.where(ended_B, position_B + 1, start_B)
        position_B = position_B + 1
    assert compared > 8, compared


def test_where_bytes_have_to_be_kept(monkeypatch):
    """Pieces of several tokens, windows of several patches, and heads that cannot be turned."""
    stand_for_kernels(monkeypatch)
    cpu = torch.device("cpu")
    encoder = BLT(SHAPE).local_encoder
    for longest, window in ((2, 1), (1, 2)):
        piece = Piece(BATCH, longest, window, cpu)
        assert isinstance(gathering(encoder, piece, JoinedWeights()), KeptBytes)
    odd = BLT(
        replace(
            SHAPE,
            dim_local=60,
            cross_attn_nheads=4,
            n_heads_local_encoder=2,
            n_kv_heads_local_encoder=1,
            n_heads_local_decoder=2,
            n_kv_heads_local_decoder=1,
        )
    ).local_encoder
    assert odd.cross_attn_layers[0].head_dim == 15
    assert isinstance(gathering(odd, Piece(BATCH, 1, 1, cpu), JoinedWeights()), KeptBytes)
