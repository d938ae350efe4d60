"""BLT read piece by piece: every part keeps what later tokens need of the earlier ones.

The weights and modules are those of :class:`model.BLT`; they run on the new tokens only. A piece
may have any length up to PIECE, so that this serves for prompts, for single bytes, and for checking
several drafted bytes at once. A piece takes four steps:

1. The entropy model scores its tokens, and the boundary rule says which of them end a patch.
2. The local encoder turns its tokens into byte states, which are kept.
3. The patches that end in the piece gather from their bytes, whose states are kept from this piece
   and earlier ones, and go through the latent transformer. The keys and values that bytes read of
   them are kept.
4. The local decoder predicts the next bytes. Each byte reads from the latest patch that has ended
   with it or before it.

For example, "ab cde" is read as the pieces ``BOS a b`` and ``space c d e``, and the tokens BOS, b
and d end patches. The first piece finishes the patches ``BOS`` and ``a b``; b reads from the latter
already. The second piece finishes ``space c d``. The space and c still read from ``a b``, while d
and e read from ``space c d``. The patch of e stays open.

Invariant: after a piece, all that is kept equals what reading the whole text at once would compute,
so that logits do not depend on how a text is cut into pieces. The content of each slot follows from
how many tokens and patches a row has read. To take tokens back (:meth:`IncrementalBLT.keep`) is
therefore to lower these counts; the next piece overwrites the rest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.generation.incremental_entropies import incremental_entropies
from model.generation.kv_cache import PIECE, KeyValueCache
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import BOE_ID


class IncrementalBLT:
    """A batch of documents that are read on. Rows are independent of one another.

    Memory grows by the encoder's states with each byte, and by latent keys and values with each
    patch; the entropy model and the attention of encoder and decoder keep a window.
    """

    def __init__(
        self,
        model: BLT,
        entropy_model: EntropyModel | NGramEntropyModel | None,
        patcher: Patcher,
        batch: int,
        *,
        reset_at_newline: bool = False,
    ):
        """
        Args:
            entropy_model: places the boundaries; None for a rule that ignores entropies.
            patcher: the boundary rule.
            batch: how many documents there are.
            reset_at_newline: the entropy model's context starts again after each newline.

        Raises:
            ValueError: the rule needs an entropy model or the whole document, or starts no patch at
                token 1, as BLT needs it.
        """
        config, device = model.config, model.device
        if patcher.reads_entropies and entropy_model is None:
            raise ValueError(f"entropy_model: the {patcher.rule} rule needs one")
        if patcher.needs_whole_document:
            raise ValueError(f"patcher: the {patcher.rule} rule chooses among a whole document")
        if not patcher.boundary_rule.first_starts.get(1):
            raise ValueError(
                f"patcher: the {patcher.rule} rule as published has no patch at token 1"
            )
        self.model, self.patcher = model, patcher
        self.entropies = (
            incremental_entropies(entropy_model, reset_at_newline)
            if entropy_model is not None and patcher.reads_entropies
            else None
        )
        window = config.local_attention_window_len
        self._encoder = KeyValueCache(config.n_layers_local_encoder, window)
        self._latent = KeyValueCache(config.n_layers_global, None)
        self._decoder = KeyValueCache(config.n_layers_local_decoder, window)
        # The id of every token, and its state after each layer that patches gather from.
        self._tokens_BS = torch.full((batch, PIECE), BOE_ID, device=device)
        self._states_BSD: list[Tensor] = []
        # The start of every patch, and the tensors that bytes read of the last ones.
        self._starts_BP = torch.zeros(batch, PIECE, dtype=torch.int64, device=device)
        self._readable_slots = PIECE + config.cross_attn_window_decoder
        self._readable: list[tuple[Tensor, ...]] = []
        # Tokens and patches that each row has read, after the last piece and before it.
        self.read_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self._patches_B = torch.zeros_like(self.read_B)
        self._before = (self.read_B, self._patches_B)
        self._kept_B = torch.zeros_like(self.read_B)
        # The entropies of the last piece and of the token before it; which tokens ended a patch.
        self._h_BX = torch.zeros(batch, 1, device=device)
        self._ends_BM = torch.zeros(batch, 0, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def read(self, tokens_BM: Tensor, counts_B: Tensor) -> Tensor:
        """Logits after each of the next tokens, ``[batch, piece, vocab_size]`` float32.

        Args:
            tokens_BM: at most PIECE columns, right-padded with any id.
            counts_B: how many tokens each row has.

        Raises:
            ValueError: the piece is longer than PIECE: caches would lose what it still sees.
        """
        columns = tokens_BM.shape[1]
        if columns > PIECE:
            raise ValueError(f"tokens: a piece has at most {PIECE}, got {columns}")
        valid_BM = torch.arange(columns, device=tokens_BM.device) < counts_B[:, None]
        tokens_BM = tokens_BM.where(valid_BM, BOE_ID)
        self._before = (self.read_B, self._patches_B)
        ends_BM = self._patch_ends(tokens_BM) & valid_BM
        self._ends_BM = ends_BM
        position_BM, x_TD = self._encode(tokens_BM, self.read_B)
        if bool(ends_BM.any()):
            self._finish_patches(ends_BM, position_BM)
        latest_BM = self._patches_B[:, None] + ends_BM.cumsum(1) - 1
        logits_BMV = self._decode(x_TD, self.read_B, position_BM, latest_BM)
        self.keep(counts_B)
        return logits_BMV

    @torch.inference_mode()
    def draft(self, token_B: Tensor, ahead: int) -> Tensor:
        """Logits after a token that may turn out wrong, ``[batch, vocab_size]``. Only the local
        models run: the latest patch stays the same, whatever the token is.

        Args:
            token_B: the token that follows in each row.
            ahead: how many tokens were drafted since the last :meth:`read`; at most PIECE.
        """
        position_BM, x_TD = self._encode(token_B[:, None], self.read_B + ahead)
        latest_B1 = self._patches_B[:, None] - 1
        return self._decode(x_TD, self.read_B + ahead, position_BM, latest_B1)[:, 0]

    def keep(self, kept_B: Tensor) -> None:
        """Take back the last piece except for its first tokens.

        Args:
            kept_B: how many tokens of each row stay.
        """
        read_B, patches_B = self._before
        stays_BM = torch.arange(self._ends_BM.shape[1], device=kept_B.device) < kept_B[:, None]
        self.read_B = read_B + kept_B
        self._patches_B = patches_B + (self._ends_BM & stays_BM).sum(1)
        if self.entropies is not None:
            self.entropies.keep(kept_B)
        self._kept_B = kept_B

    def _patch_ends(self, tokens_BM: Tensor) -> Tensor:
        """Mark each token that ends a patch."""
        before_B1 = self._tokens_BS.gather(1, (self.read_B - 1).clamp(min=0)[:, None])
        if self.entropies is None:
            h_BM = torch.zeros(tokens_BM.shape, device=tokens_BM.device)
        else:
            h_BM = self.entropies.read(tokens_BM, self.read_B).to(tokens_BM.device)
        self._h_BX = torch.cat([self._h_BX.gather(1, self._kept_B[:, None]), h_BM], 1)
        open_B = self._starts_BP.gather(1, self._patches_B[:, None])[:, 0]
        return self.patcher.ends_in_piece(
            self._h_BX, torch.cat([before_B1, tokens_BM], 1), self.read_B, open_B
        )

    def _encode(self, tokens_BM: Tensor, first_B: Tensor) -> tuple[Tensor, Tensor]:
        """The positions of the tokens, and the encoder's last states of them; all are kept."""
        model, (batch, columns) = self.model, tokens_BM.shape
        position_BM = first_B[:, None] + torch.arange(columns, device=first_B.device)
        row_B1 = torch.arange(batch, device=first_B.device)[:, None]
        needed = int(position_BM.max()) + 1
        self._tokens_BS = _with_room(self._tokens_BS, needed)
        self._tokens_BS[row_B1, position_BM] = tokens_BM
        # n-grams reach back before the piece.
        back = max(model.config.encoder_hash_byte_group_size, default=1) - 1
        place_BX = first_B[:, None] + torch.arange(-back, columns, device=first_B.device)
        nearby_BX = self._tokens_BS.gather(1, place_BX.clamp(min=0))
        embeddings = model.embed(nearby_BX.flatten(), place_BX.flatten())
        embeddings_BMD = embeddings.view(batch, -1, embeddings.shape[-1])[:, back:]
        states = model.local_encoder.byte_states(
            embeddings_BMD.flatten(0, 1),
            position_BM.flatten(),
            self._encoder.attends(first_B, columns),
        )
        if not self._states_BSD:
            self._states_BSD = [s.new_zeros(batch, PIECE, s.shape[-1]) for s in states]
        for i, state_TD in enumerate(states):
            self._states_BSD[i] = _with_room(self._states_BSD[i], needed)
            self._states_BSD[i][row_B1, position_BM] = state_TD.view(batch, columns, -1)
        return position_BM, states[-1]

    def _finish_patches(self, ends_BM: Tensor, position_BM: Tensor) -> None:
        """Run the patches that end in this piece through the latent transformer."""
        model, device = self.model, ends_BM.device
        # X patches end; the Q of one row go through the latent transformer together.
        row_X, column_X = ends_BM.nonzero(as_tuple=True)
        place_X = (ends_BM.cumsum(1) - 1)[row_X, column_X]
        patch_X = self._patches_B[row_X] + place_X
        end_X = position_BM[row_X, column_X]
        self._starts_BP = _with_room(self._starts_BP, int(patch_X.max()) + 2)
        self._starts_BP[row_X, patch_X + 1] = end_X + 1
        patches_XKD = self._gather(row_X, patch_X, end_X)
        most = int(place_X.max()) + 1
        padded = patches_XKD.new_zeros(len(ends_BM), most, *patches_XKD.shape[1:])
        padded[row_X, place_X] = patches_XKD
        position_BQ = self._patches_B[:, None] + torch.arange(most, device=device)
        latent_NG = model.global_transformer(
            padded.flatten(0, 1),
            position_BQ.flatten(),
            self._latent.attends(self._patches_B, most),
        )
        latent_XG = latent_NG.view(len(ends_BM), most, -1)[row_X, place_X]
        readable = model.local_decoder.readable(latent_XG)
        if not self._readable:
            shape = (len(ends_BM), self._readable_slots)
            self._readable = [
                tuple(new_X.new_zeros(*shape, *new_X.shape[1:]) for new_X in tensors)
                for tensors in readable
            ]
        for buffers, new in zip(self._readable, readable, strict=True):
            for buffer_BR, new_X in zip(buffers, new, strict=True):
                buffer_BR[row_X, patch_X % self._readable_slots] = new_X

    def _gather(self, row_X: Tensor, patch_X: Tensor, end_X: Tensor) -> Tensor:
        """The vectors of patches from the states of their bytes, ``[patches, k, dim]``.

        Args:
            row_X: the row of each patch.
            patch_X: its index in the row.
            end_X: the position of its last token.
        """
        patches, window = len(row_X), self.model.config.cross_attn_window_encoder
        own_X = self._starts_BP[row_X, patch_X]
        first_X = self._starts_BP[row_X, (patch_X - window + 1).clamp(min=0)]
        lengths_X = end_X - first_X + 1
        patch_T = torch.repeat_interleave(lengths_X)
        since_T = torch.arange(len(patch_T), device=row_X.device)
        position_T = since_T - (lengths_X.cumsum(0) - lengths_X - first_X)[patch_T]
        is_own_T = position_T >= own_X[patch_T]
        # Bytes of earlier patches, which a window reaches, take no part in the pooling.
        gathering = [patch_T.where(is_own_T, ~patch_T)]
        if window > 1:
            gathering.append(patch_T.where(~is_own_T, ~patch_T))
        states = [state_BSD[row_X[patch_T], position_T] for state_BSD in self._states_BSD]
        return self.model.local_encoder.patches(states, torch.stack(gathering, 1), patches)

    def _decode(
        self, x_TD: Tensor, first_B: Tensor, position_BM: Tensor, latest_BM: Tensor
    ) -> Tensor:
        """Logits after bytes that read from the patches up to the latest that they know.

        Args:
            x_TD: byte states of the encoder.
            first_B: tokens that each row has read before.
            position_BM: position of each byte.
            latest_BM: index of the latest patch that each byte knows.
        """
        batch, columns = position_BM.shape
        offset_W = torch.arange(self.model.config.cross_attn_window_decoder, device=x_TD.device)
        patch_BMW = latest_BM[:, :, None] - offset_W
        row_B11 = torch.arange(batch, device=x_TD.device)[:, None, None] * self._readable_slots
        index_BMW = (patch_BMW % self._readable_slots + row_B11).where(patch_BMW >= 0, -1)
        logits_TV: Tensor = self.model.local_decoder(
            x_TD,
            position_BM.flatten(),
            self._decoder.attends(first_B, columns),
            [tuple(buffer_BR.flatten(0, 1) for buffer_BR in buffers) for buffers in self._readable],
            index_BMW.flatten(0, 1),
        )
        return logits_TV.view(batch, columns, -1)


def _with_room(buffer_BS: Tensor, needed: int) -> Tensor:
    """The buffer, or one with the same content and room for ``needed`` columns: at least twice as
    long, so that copying is rare."""
    if needed <= buffer_BS.shape[1]:
        return buffer_BS
    more = max(needed, 2 * buffer_BS.shape[1]) - buffer_BS.shape[1]
    return F.pad(buffer_BS, (0, 0) * (buffer_BS.dim() - 2) + (0, more))
