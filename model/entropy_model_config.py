"""The shape of an entropy model: its configuration, which needs no PyTorch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

from model.initialisation import InitStdFactor, check_initialisation
from model.tokenizer import VOCAB_SIZE
from model.widths import BlockShape, added_later, check_heads, check_numbers, default_hidden_dim


@dataclass(frozen=True)
class EntropyModelConfig:
    """The shape of an entropy model; the defaults are those of the published one.

    Raises:
        ValueError: values do not fit together; the message names one.
    """

    dim: int = 768
    """Width of the model."""
    n_layers: int = 14
    """Layers."""
    n_heads: int = 12
    """Attention heads."""
    n_kv_heads: int | None = None
    """Key and value heads; as many as ``n_heads`` by default."""
    hidden_dim: int | None = None
    """Width of the feed-forward layers; from ``dim`` by default."""
    context_length: int = 8192
    """Tokens after which context and positions start again."""
    window: int = 512
    """How many tokens a token sees, itself included."""
    rope_theta: float = 10_000.0
    """Base of the rotary positions."""
    norm_eps: float = 1e-5
    """Added to the mean square that norms divide by."""
    vocab_size: int = VOCAB_SIZE
    """Token ids: 256 bytes and the special ones; more are never predicted."""
    init_std_factor: InitStdFactor = added_later("disabled")  # noqa: RUF009
    """The divisor of initial deviations: see :func:`model.initialisation.std_divisor`."""
    init_base_std: float | None = added_later(None)
    """The deviation of the initial weights of all blocks, instead of the one that follows from
    their widths and the factor."""

    FOLLOWS: ClassVar[Mapping[str, str]] = {"n_kv_heads": "n_heads", "hidden_dim": "dim"}
    """Values that follow from another one where they are None; see :func:`model.widths.resized`."""

    def __post_init__(self) -> None:
        check_initialisation(self.init_std_factor, self.init_base_std)
        check_numbers(asdict(self))
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.hidden_dim is None:
            object.__setattr__(self, "hidden_dim", default_hidden_dim(self.dim))
        check_heads(("n_heads", "n_kv_heads"), self.dim, self.n_heads, self.kv_heads)
        if self.vocab_size < VOCAB_SIZE:
            raise ValueError(f"vocab_size: bytes need {VOCAB_SIZE}, got {self.vocab_size}")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.n_heads

    @property
    def block_shape(self) -> BlockShape:
        """The shape of a layer."""
        assert self.hidden_dim is not None
        return BlockShape(self.dim, self.n_heads, self.kv_heads, self.hidden_dim, self.norm_eps)
