"""The shape of a BLT: its configuration and the paper's sizes. Their FLOPs: :mod:`model.flops`.

Names are those of the published arguments. ``encoder``, ``global`` and ``decoder`` are the local
encoder, the latent transformer and the local decoder of arXiv 2412.09871, section 3.
"""

from dataclasses import asdict, dataclass

from model.initialisation import InitStdFactor, check_initialisation
from model.patcher import Patcher
from model.provenance import PatchProvenance
from model.tokenizer import VOCAB_SIZE
from model.widths import BlockShape, default_hidden_dim

PARTS = ("local_encoder", "local_decoder", "global")
"""The three transformers; the names of their arguments end in these."""


@dataclass(frozen=True)
class BLTConfig:
    """Shape of a BLT; the defaults are those of the published 1B model.

    Raises:
        ValueError: values do not fit together; the message names one.
    """

    dim_local: int = 1024
    """Width of encoder and decoder."""
    n_layers_local_encoder: int = 1
    n_heads_local_encoder: int = 16
    n_kv_heads_local_encoder: int | None = None
    """Key and value heads; as many as heads by default, here and below."""
    hidden_dim_local_encoder: int | None = None
    """Width of the feed-forward layers; from the width by default, here and below."""
    n_layers_local_decoder: int = 9
    n_heads_local_decoder: int = 16
    n_kv_heads_local_decoder: int | None = None
    hidden_dim_local_decoder: int | None = None
    dim_global: int = 2048
    n_layers_global: int = 25
    n_heads_global: int = 16
    n_kv_heads_global: int | None = None
    hidden_dim_global: int | None = None

    cross_attn_k: int = 2
    """Vectors per patch, each ``dim_local`` wide."""
    cross_attn_nheads: int = 16
    cross_attn_all_layers_encoder: bool = False
    """Patches gather from bytes after every layer, not only after the last."""
    cross_attn_all_layers_decoder: bool = True
    """Bytes read from patches before every layer, not only before the first."""
    cross_attn_window_encoder: int = 1
    """How many patches gather from a byte: its own and those after it."""
    cross_attn_window_decoder: int = 1
    """How many patches a byte reads from: the latest known and those before it."""

    encoder_hash_byte_group_size: tuple[int, ...] = (3, 4, 5, 6, 7, 8)
    """The lengths of the hashed n-grams, in bytes."""
    encoder_hash_byte_group_vocab: int = 500_002
    """Rows of each hash table."""
    encoder_hash_byte_group_nb_functions: int = 1
    hash_across_documents: bool = False
    """If true, n-grams at the start of a packed document reach back into the one before, as they
    did when the published weights were trained. If false, a packed document is read as if it were
    alone."""

    local_attention_window_len: int | None = 512
    """How many bytes a byte sees in encoder and decoder, itself included; None for all that its
    document holds before it."""
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5
    vocab_size: int = VOCAB_SIZE
    patcher: Patcher | None = None
    """The boundary rule that the weights were trained with, if it is known and one."""
    patch_provenance: tuple[PatchProvenance, ...] = ()
    """How the patches were made that the weights were trained with, the latest first; empty if it
    is not known. It changes nothing that is computed."""
    init_std_factor: InitStdFactor = "disabled"
    """What divides the deviations of initial weights: :func:`model.initialisation.std_divisor`."""
    init_base_std: float | None = None
    """The deviation of the initial weights of the latent transformer's blocks, instead of the one
    that follows from their widths and the factor."""

    def __post_init__(self) -> None:
        check_initialisation(self.init_std_factor, self.init_base_std)
        for part in PARTS:
            dim = self.dim_of(part)
            heads, kv_heads = f"n_heads_{part}", f"n_kv_heads_{part}"
            self._default(kv_heads, getattr(self, heads))
            self._default(f"hidden_dim_{part}", default_hidden_dim(dim))
            self._check_divides(2 * getattr(self, heads), dim, heads)
            self._check_divides(getattr(self, kv_heads), getattr(self, heads), kv_heads)
            groups = getattr(self, heads) // getattr(self, kv_heads)
            if part != "global":
                self._check_divides(groups, self.cross_attn_nheads, "cross_attn_nheads")
        if self.cross_attn_nheads > self.dim_local:
            raise ValueError(
                f"cross_attn_nheads: {self.cross_attn_nheads} heads for {self.dim_local} features"
            )
        sizes = tuple(self.encoder_hash_byte_group_size)
        object.__setattr__(self, "encoder_hash_byte_group_size", sizes)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"encoder_hash_byte_group_size: sizes from 1 on, got {list(sizes)}")
        for name, value in asdict(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{name}: must be positive, got {value}")
        if self.vocab_size < VOCAB_SIZE:
            raise ValueError(f"vocab_size: bytes need {VOCAB_SIZE}, got {self.vocab_size}")

    @property
    def known_patches(self) -> tuple[PatchProvenance, ...]:
        """The provenances that are recorded; without a record the rule alone, if it is known."""
        alone = () if self.patcher is None else (PatchProvenance(self.patcher),)
        return self.patch_provenance or alone

    def _default(self, name: str, value: int) -> None:
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    @staticmethod
    def _check_divides(part: int, whole: int, name: str) -> None:
        if part < 1 or whole % part:
            raise ValueError(f"{name}: {whole} cannot be divided by {part}")

    def dim_of(self, part: str) -> int:
        """Width of one of PARTS."""
        return self.dim_global if part == "global" else self.dim_local

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
