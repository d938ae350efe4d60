"""The shape of an entropy model: its configuration, which needs no PyTorch."""

from dataclasses import dataclass

from model.initialisation import InitStdFactor
from model.tokenizer import VOCAB_SIZE
from model.widths import StackShape, added_later


@dataclass(frozen=True)
class EntropyModelConfig(StackShape):
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
