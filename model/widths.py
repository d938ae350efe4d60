"""Widths of layers: how the published code derives them, what a block needs to know, and what the
shapes of both kinds of models share.
"""

import math
from collections.abc import Mapping
from dataclasses import field, fields, replace
from numbers import Integral, Real
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeVar, cast, get_args

from model.initialisation import InitStdFactor, check_initialisation
from model.tokenizer import VOCAB_SIZE

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ADDED_LATER = "added later"
"""Key in the metadata of a shape's field: descriptions of models that were written before the field
existed lack it, and mean its default."""

MOST = {
    "n_layers": 1_000,
    "dim": 65_536,
    "hidden_dim": 524_288,
    "cross_attn_k": 64,
    "cross_attn_window": 1_024,
    "encoder_hash_byte_group_vocab": 2**31,
    "encoder_hash_byte_group_nb_functions": 11,
    "vocab_size": 2**20,
}
"""Largest numbers of a shape, by the beginning of the name: far above any model that was ever
trained, and small enough that a typing error is refused at once instead of filling the memory."""
MOST_OTHERWISE = 2**31 - 1
"""The largest number whose name is not among them."""


NUMBERS: dict[Any, tuple[type, str]] = {int: (Integral, "whole number"), float: (Real, "number")}
"""Kinds of numbers, by the type of a field, in code and in words."""


class BlockShape(NamedTuple):
    """The shape of one transformer block."""

    dim: int
    n_heads: int
    n_kv_heads: int
    """Key and value heads."""
    hidden_dim: int
    """Width of the feed-forward layer."""
    norm_eps: float


def default_hidden_dim(dim: int, multiplier: float | None = None, multiple_of: int = 256) -> int:
    """Width of the SwiGLU layer: 8/3 of ``dim``, times the multiplier, rounded up.

    Raises:
        ValueError: ``multiple_of`` is not positive, or another value is no number; names it.
    """
    values = {"dim": dim, "ffn_dim_multiplier": multiplier or 0.0, "multiple_of": multiple_of}
    for name, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: {value!r:.80} is no number")
    if multiple_of < 1:
        raise ValueError(f"multiple_of: must be 1 or more, got {multiple_of}")
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(hidden * multiplier)
    return -(-hidden // multiple_of) * multiple_of


def hidden_dim_arguments(widths: set[tuple[int, int]]) -> tuple[float, int]:
    """Arguments with which :func:`default_hidden_dim` gives these widths, if there are any.

    A width is a multiple of ``multiple_of``, so the greatest common divisor is the weakest claim. A
    width w is what values in ``(w - multiple_of, w]`` are rounded up to, which bounds the
    multiplier on both sides; the middle of what all widths allow is taken.

    Args:
        widths: pairs of ``dim`` and hidden width.

    Returns:
        multiplier and ``multiple_of``. If these do not give all widths, no others do.
    """
    if all(hidden == default_hidden_dim(dim) for dim, hidden in widths):
        return 1.0, 256
    multiple_of = math.gcd(*(hidden for _, hidden in widths))
    low = max((hidden - multiple_of + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    high = min((hidden + 1) / int(2 * 4 * dim / 3) for dim, hidden in widths)
    return (low + high) / 2, multiple_of


class StackShape:
    """A base of the shapes of models that are one stack of blocks between an embedding and an
    output layer. Their fields have defaults of their own; these are the names that they share."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    hidden_dim: int | None
    rope_theta: float
    norm_eps: float
    vocab_size: int
    init_std_factor: InitStdFactor
    init_base_std: float | None

    FOLLOWS: ClassVar[Mapping[str, str]] = {"n_kv_heads": "n_heads", "hidden_dim": "dim"}
    """Values that follow from another one where they are None; see :func:`resized`."""

    def __post_init__(self) -> None:
        check_types(cast("DataclassInstance", self))
        check_initialisation(self.init_std_factor, self.init_base_std)
        check_numbers(vars(self))
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


class _Shape(Protocol):
    """The shape of a model: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    FOLLOWS: ClassVar[Mapping[str, str]]


S = TypeVar("S", bound=_Shape)


def resized(shape: S, changes: Mapping[str, Any]) -> S:
    """A shape with other values.

    A width that is derived from another one (``FOLLOWS``: ``hidden_dim_global`` from
    ``dim_global``, for example) is derived anew where that one changes, unless it is among the
    changes itself. ``dataclasses.replace`` would keep the old width.

    Raises:
        ValueError: the values do not fit together; the message names one.
    """
    derived = {
        name: None
        for name, source in shape.FOLLOWS.items()
        if source in changes and changes[source] != getattr(shape, source)
    }
    return replace(shape, **{**derived, **changes})


def added_later(default: Any) -> Any:
    """A field of a shape that older descriptions of models lack: :data:`ADDED_LATER`."""
    return field(default=default, metadata={ADDED_LATER: True})


def missing_fields(values: Mapping[str, Any], shape: type["DataclassInstance"]) -> list[str]:
    """The fields of a shape that a description of a model lacks. A missing one would silently get
    its default, and the model would compute something else than what was trained. Only a field that
    a later release added may be missing: its default is what earlier releases did.
    """
    return [
        each.name
        for each in fields(shape)
        if each.name not in values and ADDED_LATER not in each.metadata
    ]


def check_types(shape: "DataclassInstance") -> None:
    """Check that what a shape's field is a number by its type, or true or false, is one: YAML and
    JSON by other hands hold texts such as "1e-5" or "false", or null. None is right where a field's
    type has it.

    Raises:
        ValueError: one is not; names it.
    """
    for each in fields(shape):
        value = getattr(shape, each.name)
        kinds = get_args(each.type) if isinstance(each.type, UnionType) else (each.type,)
        if bool in kinds and not isinstance(value, bool):
            raise ValueError(f"{each.name}: {value!r:.80} is neither true nor false")
        wanted = next((kind for kind in kinds if kind in NUMBERS), None)
        if wanted is None or (value is None and type(None) in kinds):
            continue
        known, words = NUMBERS[wanted]
        if isinstance(value, bool) or not isinstance(value, known):
            raise ValueError(f"{each.name}: {value!r:.80} is no {words}")


def as_tuple(name: str, values: object) -> tuple[Any, ...]:
    """A list of a shape as it is kept; none of it is an empty one.

    Raises:
        ValueError: the value is no list.
    """
    if not isinstance(values, list | tuple | None):
        raise ValueError(f"{name}: {values!r:.80} is no list")
    return tuple(values or ())


def check_numbers(values: Mapping[str, object]) -> None:
    """Check that the numbers of a shape are positive, finite and at most :data:`MOST`.

    Raises:
        ValueError: one is not; names it.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: must be positive, got {value}")
        limits = (most for start, most in MOST.items() if name.startswith(start))
        if value > (most := next(limits, MOST_OTHERWISE)):
            raise ValueError(f"{name}: at most {most:,}, got {value:,}")


def check_rope_scaling(name: str, scaling: tuple[float, ...]) -> None:
    """Check a scaling of rotary frequencies: :func:`model.layers.attention.scaled_frequencies`.

    Raises:
        ValueError: it has no meaning; names the value.
    """
    if not scaling:
        return
    numbers = all(isinstance(value, int | float) and 0 < value < math.inf for value in scaling)
    if len(scaling) != 4 or not numbers:
        raise ValueError(
            f"{name}: four positive numbers (factor, low and high frequency factor, original "
            f"length), or none, got {' '.join(map(str, scaling))}"
        )
    if scaling[1] >= scaling[2]:
        raise ValueError(
            f"{name}: the low frequency factor has to be below the high one, got {scaling[1]} and "
            f"{scaling[2]}"
        )


def check_heads(names: tuple[str, str], dim: int, heads: int, kv_heads: int) -> None:
    """Check that a width can be split into attention heads, and these into groups that share keys
    and values.

    Args:
        names: those of the values ``heads`` and ``kv_heads``.

    Raises:
        ValueError: it cannot; names the value.
    """
    if dim % (2 * heads):  # rotary positions turn pairs of features
        raise ValueError(f"{names[0]}: {heads} heads do not divide {dim} features into pairs")
    if heads % kv_heads:
        raise ValueError(f"{names[1]}: {kv_heads} does not divide {heads} heads")
