"""Rows of packed documents, or of branches → logits, a row at a time."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.layers.cross_attention import CrossAttention
from model.layers.hash_embedding import HashEmbedding, hash_ngrams
from model.layers.transformer import Block
from model.layers.tree_attention import tree_attention
from pipeline.evaluate.answers import copied
from pipeline.evaluate.rows import Rows
from pipeline.evaluate.trees import PatchRows, TreeRows

RECOMPILE_LIMIT = 64
"""How often the code of a layer may be compiled: for bytes and patches of each size of rows, as
documents and as trees, and for the entropy model. PyTorch would give up after 8."""
M = TypeVar("M", bound=nn.Module)

COMPILED = (Block, CrossAttention, HashEmbedding)
"""The parts of models that are compiled for a GPU, each once per shape whatever the number of
layers."""


def with_own_layers(model: M, *, compiled: bool) -> M:
    """A copy of a model that shares its weights.

    Args:
        compiled: compile the copy's layers. The model's own stay as they are, because others call
            them with other shapes.
    """
    weights = {id(x): x for x in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, weights)
    if compiled:
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for part in own.modules() if compiled else ():
        if isinstance(part, COMPILED):
            part.compile(dynamic=False)
    if compiled and isinstance(own, BLT):
        own.compile_parts(dynamic=False)
    return own


def reading_alone(model: BLT, *, compiled: bool) -> BLT:
    """A copy of a model, as of :func:`with_own_layers`, that reads each document of a row as if it
    were alone."""
    alone = with_own_layers(model, compiled=compiled)
    alone.config = replace(
        model.config, hash_across_documents=False, cross_attn_across_documents=False
    )
    return alone


def read_rows(model: BLT | EntropyModel, rows: Rows, *, padded: bool) -> Iterator[Tensor]:
    """The logits after each token of each row, ``[tokens, vocab_size]``.

    Args:
        padded: a BLT reads padding, too, so that all rows have one shape.
    """
    tokens_RT = copied(rows.tokens_RT, model.device)
    lengths_RP = copied(rows.patch_lengths_RP, model.device)
    stop_R = rows.windows_R.cumsum()
    for row, (tokens, patches) in enumerate(
        zip(rows.tokens_R.tolist(), rows.patches_R.tolist(), strict=True)
    ):
        if isinstance(model, EntropyModel):
            of_row = slice(int(stop_R[row] - rows.windows_R[row]), int(stop_R[row]))
            lengths_W = torch.from_numpy(rows.lengths_W[of_row])
            yield model.logits_packed(tokens_RT[row, :tokens], lengths_W)
        else:
            if padded:
                tokens, patches = rows.tokens_RT.shape[1], rows.patch_lengths_RP.shape[1]
            yield model(tokens_RT[row, None, :tokens], lengths_RP[row, None, :patches])[0]


def read_tree_rows(model: BLT, rows: TreeRows, patches: PatchRows) -> Iterator[Tensor]:
    """The logits after each token of each row of branches, ``[tokens, vocab_size]`` float32."""
    config, encoder, decoder = model.config, model.local_encoder, model.local_decoder
    tables, device = model.encoder_hash_tok_embedding, model.device
    # The hashes of whole documents, from which rows take those of their branches.
    read_X, position_X = copied(rows.read_X, device), copied(rows.position_X, device)
    ids_KX = [hash_ngrams(read_X, position_X, *ngram, tables.rows) for ngram in tables.ngrams]
    arrays = (
        *(rows.x_RT, rows.tokens_RT, rows.position_RT, rows.last_RT),
        *(patches.own_RT, patches.known_RT, patches.position_RN, patches.last_RN),
    )
    for row in zip(*(copied(array, device).long() for array in arrays), strict=True):
        x_T, tokens_T, position_T, last_T, own_T, known_T, position_N, last_N = row
        looked_up = (table(ids_X[x_T]) for table, ids_X in zip(tables, ids_KX, strict=True))
        embeddings_TD = functools.reduce(torch.add, looked_up, encoder.tok_embeddings(tokens_T))
        attend_bytes = tree_attention(position_T, last_T, config.local_attention_window_len)
        attends = [attend_bytes] * config.n_layers_local_encoder
        states = encoder.byte_states(embeddings_TD, position_T, attends)
        patches_NKD = encoder.patches(states, own_T[:, None], len(position_N))
        attends = [tree_attention(position_N, last_N, None)] * config.n_layers_global
        latent_NG = model.global_transformer(patches_NKD, position_N, attends)
        attends = [attend_bytes] * config.n_layers_local_decoder
        readable = decoder.readable(latent_NG)
        yield decoder(states[-1], position_T, attends, readable, known_T[:, None])
