"""The shape of a BLT: its configuration and the paper's sizes. Their FLOPs: :mod:`model.flops`.

Names are those of the published arguments. ``encoder``, ``global`` and ``decoder`` are the local
encoder, the latent transformer and the local decoder of arXiv 2412.09871, section 3.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from model.initialisation import InitStdFactor, check_initialisation
from model.patcher import Patcher
from model.provenance import LatentOrigin, PatchProvenance
from model.tokenizer import VOCAB_SIZE
from model.widths import (
    BlockShape,
    added_later,
    as_tuple,
    check_heads,
    check_numbers,
    check_rope_scaling,
    check_types,
    default_hidden_dim,
)

PARTS = ("local_encoder", "local_decoder", "global")
"""The three transformers; the names of their arguments end in these."""
WIDTHS = dict(zip(PARTS, ("dim_local", "dim_local", "dim_global"), strict=True))
"""The name of each part's width."""
ROW_READING = (
    "hash_across_documents",
    "cross_attn_across_documents",
    "last_reads_last_patch",
)
"""The fields that say how a row is read that holds several documents, or whose patch lengths leave
out the token after it. They change no weight's shape, and nothing of a document by itself that is
trained on, scored or written."""
MOST_NGRAM = 64
"""The longest n-gram that may be hashed, in bytes; longer ones hardly ever occur twice."""


@dataclass(frozen=True)
class BLTConfig:
    """Shape of a BLT; the defaults are those of the published 1B model.

    Raises:
        ValueError: values do not fit together; the message names one.
    """

    dim_local: int = 1024
    """Width of encoder and decoder."""
    n_layers_local_encoder: int = 1
    """Layers of the encoder."""
    n_heads_local_encoder: int = 16
    """Attention heads of the encoder."""
    n_kv_heads_local_encoder: int | None = None
    """Key and value heads of the encoder; as many as heads by default."""
    hidden_dim_local_encoder: int | None = None
    """Width of the encoder's feed-forward layers; from ``dim_local`` by default."""
    n_layers_local_decoder: int = 9
    """Layers of the decoder."""
    n_heads_local_decoder: int = 16
    """Attention heads of the decoder."""
    n_kv_heads_local_decoder: int | None = None
    """Key and value heads of the decoder; as many as heads by default."""
    hidden_dim_local_decoder: int | None = None
    """Width of the decoder's feed-forward layers; from ``dim_local`` by default."""
    dim_global: int = 2048
    """Width of the latent transformer."""
    n_layers_global: int = 25
    """Layers of the latent transformer."""
    n_heads_global: int = 16
    """Attention heads of the latent transformer."""
    n_kv_heads_global: int | None = None
    """Key and value heads of the latent transformer; as many as heads by default."""
    hidden_dim_global: int | None = None
    """Width of the latent transformer's feed-forward layers; from ``dim_global`` by default."""

    cross_attn_encoder: bool = added_later(True)
    """Patches gather from their bytes by cross attention. If false, a patch is the largest value of
    each feature over its bytes, ``dim_local`` wide."""
    cross_attn_decoder: bool = added_later(True)
    """Bytes read from patches by cross attention. If false, the patch that a byte would read is
    projected to ``dim_local`` and added to the byte's state, once, before the first layer."""
    cross_attn_k: int = 2
    """Vectors per patch, each ``dim_local`` wide."""
    cross_attn_nheads: int = 16
    """Heads of cross attention."""
    cross_attn_all_layers_encoder: bool = False
    """Patches gather from bytes after every layer, not only after the last."""
    cross_attn_all_layers_decoder: bool = True
    """Bytes read from patches before every layer, not only before the first."""
    cross_attn_window_encoder: int = 1
    """How many patches gather from a byte: its own and those after it."""
    cross_attn_window_decoder: int = 1
    """How many patches a byte reads from: the latest known and those before it."""

    encoder_hash_byte_group_size: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """The lengths of the hashed n-grams, in bytes; none of them: no hash embeddings."""
    encoder_hash_byte_group_vocab: int = 500_002
    """Rows of each hash table."""
    encoder_hash_byte_group_nb_functions: int = 1
    """Hash functions; each has a table for each length."""
    hash_across_documents: bool = False
    """If true, n-grams at the start of a packed document reach back into the one before, as they
    did when the published weights were trained. If false, a packed document is read as if it were
    alone."""
    cross_attn_across_documents: bool = added_later(False)
    """If true, the windows of cross attention count the patches of a row, whatever documents these
    belong to, as published. If false, windows end where their document does. Windows of one patch
    are the same either way."""
    last_reads_last_patch: bool = added_later(False)
    """The last token of a row, whose patch lengths leave out the token after it, reads the last
    patch, as published; if false, it reads the one before, as transformers does. Training,
    generation and evaluation never depend on it."""
    projects_equal_widths: bool = added_later(True)
    """The decoder projects a latent state to its own width even where both have one width and a
    patch is read as a single vector. If false, it reads the latent state itself, as published.
    True wherever the widths differ."""

    local_attention_window_len: int | None = 512
    """How many bytes a byte sees in encoder and decoder, itself included; None for all that its
    document holds before it."""
    rope_theta: float = 500_000.0
    """Base of the rotary positions."""
    rope_scaling_global: tuple[float, ...] = added_later(())
    """How the latent transformer's rotary frequencies are scaled, if they are: Llama 3.1's factor,
    low and high frequency factor, and original length, which are 8, 1, 4 and 8192 there."""
    norm_eps: float = 1e-5
    """Added to the mean square that norms divide by."""
    vocab_size: int = VOCAB_SIZE
    """Token ids: 256 bytes and the special ones; more are never predicted."""
    patcher: Patcher | None = None
    """The boundary rule that the weights were trained with, if it is known and one."""
    patch_provenance: tuple[PatchProvenance, ...] = added_later(())
    """How the patches were made that the weights were trained with, the latest first; empty if it
    is not known. It changes nothing that is computed."""
    latent_origin: LatentOrigin | None = added_later(None)  # noqa: RUF009
    """The model of tokens whose blocks the latent transformer began with, if it did. It changes
    nothing that is computed."""
    init_std_factor: InitStdFactor = added_later("disabled")  # noqa: RUF009
    """The divisor of initial deviations: see :func:`model.initialisation.std_divisor`."""
    init_base_std: float | None = added_later(None)
    """The deviation of the initial weights of the latent transformer's blocks, instead of the one
    that follows from their widths and the factor."""

    FOLLOWS: ClassVar[Mapping[str, str]] = {
        **{f"n_kv_heads_{part}": f"n_heads_{part}" for part in PARTS},
        **{f"hidden_dim_{part}": WIDTHS[part] for part in PARTS},
    }
    """Values that follow from another one where they are None; see :func:`model.widths.resized`."""

    def __post_init__(self) -> None:
        for name in ("encoder_hash_byte_group_size", "rope_scaling_global"):
            object.__setattr__(self, name, as_tuple(name, getattr(self, name)))
        sizes = self.encoder_hash_byte_group_size
        check_rope_scaling("rope_scaling_global", self.rope_scaling_global)
        check_types(self)
        check_initialisation(self.init_std_factor, self.init_base_std)
        check_numbers(asdict(self))
        for part in PARTS:
            names = f"n_heads_{part}", f"n_kv_heads_{part}"
            self._default(names[1], getattr(self, names[0]))
            self._default(f"hidden_dim_{part}", default_hidden_dim(self.dim_of(part)))
            heads, kv_heads = (getattr(self, name) for name in names)
            check_heads(names, self.dim_of(part), heads, kv_heads)
        self._check_cross_attention()
        if self.dim_global != self.dim_local or self.read_vectors > 1:
            object.__setattr__(self, "projects_equal_widths", True)  # they are not equal
        known = range(1, MOST_NGRAM + 1)
        if wrong := [size for size in sizes if not isinstance(size, int) or size not in known]:
            raise ValueError(
                f"encoder_hash_byte_group_size: lengths from 1 to {MOST_NGRAM}, got {wrong[0]!r}"
            )
        if twice := [size for size in sizes if sizes.count(size) > 1]:
            raise ValueError(f"encoder_hash_byte_group_size: {twice[0]} is there twice")
        if self.vocab_size < VOCAB_SIZE:
            raise ValueError(f"vocab_size: bytes need {VOCAB_SIZE}, got {self.vocab_size}")

    def _check_cross_attention(self) -> None:
        if self.cross_attn_nheads > self.dim_local:
            raise ValueError(
                f"cross_attn_nheads: {self.cross_attn_nheads} heads for {self.dim_local} features"
            )
        for side in ("encoder", "decoder"):
            switch, heads = f"cross_attn_{side}", getattr(self, f"n_heads_local_{side}")
            kv_heads = getattr(self, f"n_kv_heads_local_{side}")
            if getattr(self, switch):
                groups = heads // kv_heads
                if self.cross_attn_nheads % groups:
                    raise ValueError(
                        f"cross_attn_nheads: {self.cross_attn_nheads} heads cannot share keys and "
                        f"values in groups of {groups}, as the {side}'s {heads} heads do "
                        f"(n_kv_heads_local_{side} is {kv_heads})"
                    )
            elif getattr(self, f"cross_attn_window_{side}") > 1:
                raise ValueError(f"cross_attn_window_{side}: needs {switch}, which is switched off")
        if self.cross_attn_all_layers_encoder and not self.cross_attn_encoder:
            raise ValueError(
                "cross_attn_all_layers_encoder: needs cross_attn_encoder, which is switched off"
            )

    @property
    def known_patches(self) -> tuple[PatchProvenance, ...]:
        """The provenances that are recorded; without a record the rule alone, if it is known."""
        alone = () if self.patcher is None else (PatchProvenance(self.patcher),)
        return self.patch_provenance or alone

    def _default(self, name: str, value: int) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def dim_of(self, part: str) -> int:
        """Width of one of PARTS."""
        width: int = getattr(self, WIDTHS[part])
        return width

    @property
    def patch_vectors(self) -> int:
        """Vectors, each ``dim_local`` wide, in which a patch reaches the latent transformer."""
        return self.cross_attn_k if self.cross_attn_encoder else 1

    @property
    def encoder_crossings(self) -> int:
        """Cross attentions of the encoder."""
        layers = self.n_layers_local_encoder if self.cross_attn_all_layers_encoder else 1
        return layers if self.cross_attn_encoder else 0

    @property
    def decoder_crossings(self) -> int:
        """Cross attentions of the decoder."""
        layers = self.n_layers_local_decoder if self.cross_attn_all_layers_decoder else 1
        return layers if self.cross_attn_decoder else 0

    @property
    def read_vectors(self) -> int:
        """Vectors, each ``dim_local`` wide, in which bytes read a patch."""
        return self.cross_attn_k if self.cross_attn_decoder else 1

    def block_shape(self, part: str) -> BlockShape:
        """The shape of a layer of one of PARTS."""
        heads, kv_heads, hidden = (
            getattr(self, f"{name}_{part}") for name in ("n_heads", "n_kv_heads", "hidden_dim")
        )
        return BlockShape(self.dim_of(part), heads, kv_heads, hidden, self.norm_eps)

    @property
    def cross_attn_n_kv_heads_encoder(self) -> int:
        """Key and value heads of cross attention, which groups them like the self-attention."""
        return self._cross_kv_heads(self.n_heads_local_encoder, self.n_kv_heads_local_encoder)

    @property
    def cross_attn_n_kv_heads_decoder(self) -> int:
        """Key-value heads of the decoder's cross-attention."""
        return self._cross_kv_heads(self.n_heads_local_decoder, self.n_kv_heads_local_decoder)

    def _cross_kv_heads(self, heads: int, kv_heads: int | None) -> int:
        return self.cross_attn_nheads * (kv_heads or heads) // heads


def _size(layers: int, dim: int, heads: int, k: int, **local: int) -> BLTConfig:
    shape = {"dim_local": 1024, "decoder": 9, "local_heads": 16, "cross_heads": 16} | local
    return BLTConfig(
        dim_local=shape["dim_local"],
        n_heads_local_encoder=shape["local_heads"],
        n_heads_local_decoder=shape["local_heads"],
        n_layers_local_decoder=shape["decoder"],
        dim_global=dim,
        n_layers_global=layers,
        n_heads_global=heads,
        cross_attn_k=k,
        cross_attn_nheads=shape["cross_heads"],
    )


BLT_SIZES = {
    "400m": _size(24, 1280, 10, 2, dim_local=768, decoder=7, local_heads=12, cross_heads=10),
    "1b": _size(25, 2048, 16, 2),
    "2b": _size(26, 2560, 20, 3),
    "4b": _size(36, 3072, 24, 3),
    "8b": _size(32, 4096, 32, 4, dim_local=1280, decoder=6, local_heads=20, cross_heads=20),
    # For tests and for trying things out.
    "debug": BLTConfig(
        dim_local=64,
        n_heads_local_encoder=4,
        n_layers_local_decoder=2,
        n_heads_local_decoder=4,
        dim_global=128,
        n_layers_global=2,
        n_heads_global=4,
        cross_attn_nheads=4,
        encoder_hash_byte_group_vocab=4096,
    ),
}
"""The paper's sizes (appendix, table of hyper-parameters)."""
