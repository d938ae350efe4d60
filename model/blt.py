"""The Byte Latent Transformer (arXiv 2412.09871): bytes in, logits of the next byte out.

``tokens → embeddings → local encoder → patches → latent transformer → local decoder → logits``.
Packed documents (each ends with its EOS) and rows of a batch never see one another.
:mod:`model.checkpoints.blt` reads checkpoints, :mod:`model.generation.generate` writes text.
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.blt_config import BLTConfig
from model.layers.attention import BLOCK, segment_attention
from model.layers.hash_embedding import HashEmbedding
from model.layers.initializers import Initializer, init_weights, initializers, normal
from model.layers.latent_transformer import LatentTransformer
from model.layers.local_decoder import LocalDecoder
from model.layers.local_encoder import LocalEncoder
from model.layers.patch_layout import PatchLayout, check_batch


class BLT(nn.Module):
    """A BLT; parameter names and arithmetic are those of the published weights."""

    def __init__(self, config: BLTConfig):
        super().__init__()
        self.config = config
        self.local_encoder = LocalEncoder(config)
        self.encoder_hash_tok_embedding = HashEmbedding(
            config.encoder_hash_byte_group_size,
            config.encoder_hash_byte_group_nb_functions,
            config.encoder_hash_byte_group_vocab,
            config.dim_local,
        )
        self.global_transformer = LatentTransformer(config)
        self.local_decoder = LocalDecoder(config)

    def initializers(self) -> dict[str, Initializer]:
        """The initializer of each parameter, by name."""
        config = self.config
        by_name: dict[str, Initializer] = {}
        for prefix, part in self.named_children():
            if isinstance(part, HashEmbedding):
                table = normal(config.dim_local**-0.5)
                of_part = {name: table for name, _ in part.named_parameters()}
            else:
                base_std = config.init_base_std if prefix == "global_transformer" else None
                of_part = initializers(part, config.init_std_factor, base_std)
            by_name |= {f"{prefix}.{name}": initial for name, initial in of_part.items()}
        return by_name

    def init_weights(self) -> None:
        """Fill the model with weights to begin training with."""
        init_weights(self, self.initializers())

    @property
    def device(self) -> torch.device:
        """The device that holds the model and computes."""
        return self.local_decoder.output.weight.device

    def forward(self, tokens_BS: Tensor, patch_lengths_BP: Tensor) -> Tensor:
        """Logits of the token after each token.

        Args:
            tokens_BS: token ids, right-padded with -1.
            patch_lengths_BP: tokens of each patch, right-padded with 0. The first patch of a row is
                its first token; a row of n tokens has lengths that sum to n + 1 (where the next
                token's place is known, as in training) or to n, where
                ``last_reads_last_patch`` says what the last token reads.

        Returns:
            ``[batch, seq, vocab_size]`` float32; the logits of padding are meaningless.

        Raises:
            ValueError: patch lengths do not fit, or an id is not in the vocabulary. Only tensors on
                the CPU are checked, because a GPU would have to be waited for: call
                :func:`model.layers.patch_layout.check_batch` before they are copied there.
        """
        if tokens_BS.device.type == "cpu" and not torch.compiler.is_compiling():
            check_batch(tokens_BS, patch_lengths_BP, self.config.vocab_size)
        config = self.config
        layout = self.layout(tokens_BS.to(self.device), patch_lengths_BP.to(self.device))
        position_T, position_N = layout.position_T, layout.position_N
        attend_bytes = segment_attention(position_T, config.local_attention_window_len)
        attend_patches = segment_attention(position_N, None)
        attends = [attend_bytes] * config.n_layers_local_encoder
        embeddings_TD = self.embed(
            layout.tokens_T, layout.row_position_T if config.hash_across_documents else position_T
        )
        states = self.local_encoder.byte_states(embeddings_TD, position_T, attends)
        patches_NKD = self.local_encoder.patches(states, layout.gathering_TW, len(position_N))
        attends = [attend_patches] * config.n_layers_global
        latent_NG = self.global_transformer(patches_NKD, position_N, attends)
        attends = [attend_bytes] * config.n_layers_local_decoder
        vectors_NKD = self.local_decoder.vectors(latent_NG)
        logits_TV: Tensor = self.local_decoder(
            states[-1], position_T, attends, vectors_NKD, layout.read_TW
        )
        return logits_TV.view(*tokens_BS.shape, config.vocab_size)

    def layout(self, tokens_BS: Tensor, patch_lengths_BP: Tensor) -> PatchLayout:
        """The layout of a batch that is on the model's device."""
        config = self.config
        return PatchLayout.of(
            tokens_BS,
            patch_lengths_BP,
            config.cross_attn_window_encoder,
            config.cross_attn_window_decoder,
            # A GPU's attention and float8 products read whole blocks of patches.
            multiple=1 if tokens_BS.is_cpu else BLOCK,
            across_documents=config.cross_attn_across_documents,
            last_reads_last=config.last_reads_last_patch,
        )

    def compile_parts(self, **options: Any) -> None:
        """Compile what lies around the blocks of layers; arguments as for ``torch.compile``.

        Methods are replaced in place, so that neither modules nor parameters get other names.
        """
        encoder, decoder = self.local_encoder, self.local_decoder
        for part, name in ((self, "layout"), (encoder, "patches"), (decoder, "logits")):
            setattr(part, name, torch.compile(getattr(part, name), **options))
        self.encoder_hash_tok_embedding.compile_parts(**options)

    def embed(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        """Sums of token and hash n-gram embeddings, ``[tokens, dim_local]``.

        Args:
            tokens_T: int64 ids.
            position_T: how many tokens n-grams may reach back.
        """
        of_token_TD: Tensor = self.local_encoder.tok_embeddings(tokens_T)
        if not len(self.encoder_hash_tok_embedding):
            return of_token_TD
        of_ngrams_TD: Tensor = self.encoder_hash_tok_embedding(tokens_T, position_T)
        return of_token_TD + of_ngrams_TD

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each part has; the hash tables, which cost no FLOPs, are a part."""
        return {
            name: sum(parameter.numel() for parameter in part.parameters())
            for name, part in self.named_children()
        }
