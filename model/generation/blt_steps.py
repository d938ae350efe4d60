"""The steps in which a BLT reads on, on whatever device; see :mod:`model.generation.graphs`.

A piece of new tokens takes four steps:

1. ``score``: the entropy model gives the entropy after each token. The host learns it, and the
   boundary rule says which tokens end a patch.
2. ``encode``: the local encoder turns tokens into byte states, which are kept.
3. ``patch``, if any patch ended: these patches gather from their bytes, which are kept of this
   piece and earlier ones, and go through the latent transformer. The keys and values that bytes
   read of them are kept.
4. ``predict``: the local decoder predicts the next bytes. Each byte reads from the latest patch
   that has ended with it or before it.

For example, "ab cde" is read as the pieces ``BOS a b`` and ``space c d e``, and the tokens BOS, b
and d end patches. The first piece finishes the patches ``BOS`` and ``a b``; b reads from the latter
already. The second piece finishes ``space c d``. The space and c still read from ``a b``, while d
and e read from ``space c d``. The patch of e stays open.

All rows take part in every step, whether a patch of theirs ended or not. A row without one writes
its latent vector to the place of the next patch, which nobody reads before the patch is there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blt import BLT
from model.generation.cached_blocks import CachedBlocks, JoinedWeights, normed_product
from model.generation.crossings import read_patches
from model.generation.fused import angles, embedded, ngram_rows
from model.generation.gathering import KeptBytes, gathering
from model.generation.graphs import StepRunner
from model.generation.incremental_entropies import CachedEntropyModel
from model.generation.kv_cache import KeyValueCache, Ring
from model.generation.piece import Piece
from model.generation.sampling import likeliest
from model.layers.cross_attention import ReadFromPatches


class BLTSteps:
    """The steps of one batch, and all that it keeps on the device."""

    def __init__(
        self,
        model: BLT,
        piece: Piece,
        entropies: CachedEntropyModel | None,
        runner: StepRunner,
        weights: JoinedWeights,
    ):
        """
        Args:
            entropies: the entropy model, if it runs on the same device.
        """
        config, self.model, self.piece, self.entropies = model.config, model, piece, entropies
        self._runner = runner
        batch, longest, window = piece.batch, piece.longest, config.local_attention_window_len
        self.encoder = CachedBlocks(model.local_encoder.layers, batch, window, longest, weights)
        self.latent = CachedBlocks(model.global_transformer.layers, batch, None, longest, weights)
        self.decoder = CachedBlocks(model.local_decoder.layers, batch, window, longest, weights)
        weight = model.local_decoder.output.weight.detach()
        self._powers_GX = _powers(model).to(weight.device)
        # n-grams reach back before the piece.
        reach = self._powers_GX.shape[1] + longest
        self.tokens = Ring(1, batch, reach, like=piece.tokens_BM)
        """The last tokens of each row."""
        self.gathering = gathering(model.local_encoder, piece, weights)
        shape = (1, config.dim_local)
        if crossings := config.decoder_crossings:
            heads = config.cross_attn_nheads
            features = config.dim_local // heads
            shape = (crossings, config.cross_attn_k, 2, heads, features)  # type: ignore[assignment]
        reading = cast(Iterable[ReadFromPatches], model.local_decoder.cross_attn_layers)
        self._read_kv = [weights.of(layer.wk, layer.wv) for layer in reading]
        slots = config.cross_attn_window_decoder + longest
        self.readable = Ring(1, batch, slots, *shape, like=weight)
        """What bytes read of the last patches: keys and values, or a vector to add."""
        self._row_B1 = torch.arange(batch, device=weight.device)[:, None]
        self.x_BMD = weight.new_zeros(batch, longest, config.dim_local)
        """The encoder's last states of the piece."""
        self.logits_BMV = torch.zeros(batch, longest, config.vocab_size, device=weight.device)
        """Logits of the token after each token of the piece, float32."""

    def listen(self, columns: int, then: Callable[[], None] | None = None) -> None:
        """Score and encode, which need nothing of each other.

        Args:
            then: what is to be done beside the scoring when the tokens are encoded.
        """
        self.piece.heard_BM2[:, :columns, 0] = self.piece.tokens_BM[:, :columns]

        def score() -> None:
            if self.entropies is not None:
                self.entropies.score(columns)

        def encode() -> None:
            self.encode(columns)
            if then is not None:
                then()

        self._runner.side_by_side(score, encode)

    def encode(self, columns: int, begin: int = 0) -> None:
        """Run the encoder on tokens of the piece."""
        encoder, position_BM = self.model.local_encoder, self.piece.positions(columns, begin)
        tokens_BM = self.piece.tokens_BM[:, begin : begin + columns]
        self.tokens.write(0, position_BM % self.tokens.slots, tokens_BM)
        x_TD = self._embed(tokens_BM, position_BM)
        view = self.encoder.view(position_BM)
        rotary_TF2 = angles(position_BM.flatten(), encoder.rotary.bits_F)
        first = encoder.pooled_layers.start
        for i in range(len(self.encoder.layers)):
            x_TD = self.encoder.run_layer(i, x_TD, rotary_TF2, view)
            if i in encoder.pooled_layers:
                self.gathering.keep(i - first, x_TD, position_BM)
        self.x_BMD[:, begin : begin + columns] = x_TD.view(*position_BM.shape, -1)

    def _embed(self, tokens_BM: Tensor, position_BM: Tensor) -> Tensor:
        """Sums of token and hash n-gram embeddings, as :meth:`model.blt.BLT.embed` makes them; all
        hashes are computed at once."""
        tables = cast(Sequence[nn.Embedding], self.model.encoder_hash_tok_embedding)
        tokens_T, weight = tokens_BM.flatten(), self.model.local_encoder.tok_embeddings.weight
        if not len(tables):
            return F.embedding(tokens_T, weight)
        back_X = torch.arange(self._powers_GX.shape[1], device=position_BM.device)
        place_BX = (position_BM[:, :, None] - back_X).flatten(1)
        near_TX, place_TX = (
            x_BX.reshape(-1, len(back_X)) for x_BX in (self.tokens.read(0, place_BX), place_BX)
        )
        row_TG = ngram_rows(near_TX, place_TX, self._powers_GX, tables[0].num_embeddings)
        return embedded(tokens_T, row_TG, weight, [each.weight for each in tables])

    def patch(self, patches: int, span: int) -> None:
        """Run the patches that ended through the latent transformer; arguments as for
        :meth:`Gathering.vectors`."""
        model, piece = self.model, self.piece
        x_NKD = self.gathering.vectors(patches, span)
        x_NG = model.global_transformer.token_embedding_projection(x_NKD.flatten(-2))
        offset_Q = torch.arange(patches, device=x_NG.device)
        index_BQ = piece.patches_B[:, None] + offset_Q
        rotary_NF2 = angles(index_BQ.flatten(), model.global_transformer.rotary.bits_F)
        view = self.latent.view(index_BQ, needed_B=piece.ended_B)
        x_NG = self.latent.run(x_NG, rotary_NF2, view)
        readable_BQ = self._readable(x_NG).unflatten(0, index_BQ.shape)
        self.readable.write(0, index_BQ % self.readable.slots, readable_BQ)

    def _readable(self, latent_NG: Tensor) -> Tensor:
        """What bytes read of patches, as :meth:`LocalDecoder.readable` makes it, in the form of
        :attr:`readable`, ``[patches, ...]``."""
        decoder = self.model.local_decoder
        x_NKD: Tensor = decoder.patch_embedding_projection(latent_NG)
        x_NKD = x_NKD.unflatten(-1, (decoder.k, -1))
        if not self._read_kv:
            return x_NKD
        read = []
        for layer, weights in zip(decoder.cross_attn_layers, self._read_kv, strict=True):
            layer = cast(ReadFromPatches, layer)
            kv_XE = normed_product(x_NKD.flatten(0, 1), layer.cross_attn_norm_kv, weights)
            kv_NK2HE = kv_XE.view(len(x_NKD), decoder.k, 2, -1, layer.head_dim)
            if layer.groups > 1:
                kv_NK2HE = kv_NK2HE.repeat_interleave(layer.groups, -2)
            read.append(kv_NK2HE)
        return torch.stack(read, 1)

    def predict(self, columns: int, begin: int = 0) -> None:
        """Predict what follows tokens of the piece from the patches that they know."""
        decoder, position_BM = self.model.local_decoder, self.piece.positions(columns, begin)
        x_TD = self.x_BMD[:, begin : begin + columns].flatten(0, 1).clone()
        offset_W = torch.arange(
            self.model.config.cross_attn_window_decoder, device=position_BM.device
        )
        patch_BMW = self.piece.latest(columns, begin)[:, :, None] - offset_W
        readable_TW = self.readable.read(0, patch_BMW.flatten(1)).flatten(0, 1)
        readable_TW = readable_TW.unflatten(0, (-1, len(offset_W)))
        mask = None
        if len(offset_W) > 1:
            mask = self._absent(patch_BMW.flatten(0, 1))
        if not len(decoder.cross_attn_layers):
            x_TD += readable_TW[:, 0, 0]
        view = self.decoder.view(position_BM)
        rotary_TF2 = angles(position_BM.flatten(), decoder.rotary.bits_F)
        for i in range(len(self.decoder.layers)):
            if i < len(decoder.cross_attn_layers):
                layer = cast(ReadFromPatches, decoder.cross_attn_layers[i])
                x_TD = read_patches(layer, x_TD, readable_TW[:, :, i], mask)
            x_TD = self.decoder.run_layer(i, x_TD, rotary_TF2, view)
        logits_TV = decoder.output(decoder.norm(x_TD))
        self.logits_BMV[:, begin : begin + columns] = logits_TV.view(*position_BM.shape, -1)

    def _absent(self, patch_TW: Tensor) -> Tensor:
        """The mask of patches before the first, ``[tokens, window * k]``."""
        absent_TX = (patch_TW < 0).repeat_interleave(self.model.config.cross_attn_k, 1)
        return self.x_BMD.new_zeros(absent_TX.shape).masked_fill_(absent_TX, -torch.inf)

    def span(self, needed: int) -> int:
        """See :meth:`Gathering.span`."""
        return self.gathering.span(needed)

    def draft(self, ahead: int) -> None:
        """Put after the first token of the piece what the local models alone would write; the
        latest patch stays the same, whatever these tokens are."""
        for i in range(ahead):
            self.encode(1, i)
            self.predict(1, i)
            self.piece.tokens_BM[:, i + 1] = likeliest(self.logits_BMV[:, i])

    def repeat(self) -> None:
        """Read the last token again, whose patch is made, and predict what follows it."""
        self.encode(1)
        self.predict(1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers that shapes of all steps depend on, and that change."""
        return tuple(cache.used for cache in self._caches())

    def _caches(self) -> list[KeyValueCache]:
        stacks = [self.latent, self.encoder, self.decoder]
        if self.entropies is not None:
            stacks.append(self.entropies.blocks)
        return [stack.cache for stack in stacks]

    def make_room(self, tokens: int, patches: int, span: int) -> bool:
        """Prepare for rows of so many tokens and patches, of which the last ``span`` tokens may be
        gathered from. Returns True if anything moved in memory."""
        latent, *local = self._caches()
        moved = [cache.make_room(tokens) for cache in local]
        return any([*moved, latent.make_room(patches), self.gathering.make_room(span)])

    def take(
        self, row: int, other: "BLTSteps", its_row: int, tokens: int, patches: int, begin: int
    ) -> None:
        """Go on in a row where another batch is in one of its rows, of so many tokens and patches;
        the open patch begins at token ``begin``. There must be room for them."""
        latent, *local = zip(self._caches(), other._caches(), strict=True)
        rings = [(mine.ring, its.ring, tokens) for mine, its in local]
        rings.append((latent[0].ring, latent[1].ring, patches))
        rings.append((self.tokens, other.tokens, tokens))
        rings.append((self.readable, other.readable, patches))
        for mine, its, length in rings:
            mine.take(row, its, its_row, length)
        assert isinstance(other.gathering, KeptBytes)
        self.gathering.take(row, other.gathering, its_row, begin, tokens)


def _powers(model: BLT) -> Tensor:
    """What a token counts in the hash of each n-gram, by how far back it is: ``[tables, longest]``
    int64, 0 beyond the n-gram; see :func:`model.layers.hash_embedding.hash_ngrams`."""
    ngrams = model.encoder_hash_tok_embedding.ngrams
    powers_GX = torch.zeros(len(ngrams), max((size for size, _ in ngrams), default=0)).long()
    for powers_X, (size, prime) in zip(powers_GX, ngrams, strict=True):
        # The product wraps, as the hash does.
        powers_X[:size] = torch.tensor([1] + [prime] * (size - 1)).cumprod(0).flip(0)
    return powers_GX
