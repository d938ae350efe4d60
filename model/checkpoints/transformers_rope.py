"""Rotary positions as transformers' configurations describe them: plain ones, and those that
Llama 3.1 scales."""

from typing import NotRequired, TypedDict

from model.checkpoints.files import JsonObject

LLAMA_ROPE = "llama3"
"""The type of scaled rotary positions that is supported."""
ROPE_SCALING = (
    *("factor", "low_freq_factor", "high_freq_factor"),
    "original_max_position_embeddings",
)
"""Its arguments, in the order of :func:`model.layers.attention.scaled_frequencies`."""


class RopeParameters(TypedDict):
    """Rotary positions, as transformers writes them."""

    rope_type: str
    rope_theta: float
    factor: NotRequired[float]
    low_freq_factor: NotRequired[float]
    high_freq_factor: NotRequired[float]
    original_max_position_embeddings: NotRequired[int]


def plain_rope_theta(part: JsonObject, default: float) -> float:
    """The base of the rotary positions, which are not scaled, in a part of a transformers
    configuration.

    Raises:
        ValueError: the part has other positions, or other layers than SwiGLU; names the argument.
    """
    theta, scaling = rotary_positions(part, default)
    if scaling:
        raise ValueError(f"argument rope_type={LLAMA_ROPE!r} is not supported")
    return theta


def rotary_positions(part: JsonObject, default: float) -> tuple[float, tuple[float, ...]]:
    """The rotary positions in a part of a transformers configuration.

    Args:
        default: the base, if the part does not say it.

    Returns:
        their base, and their scaling, empty for none.

    Raises:
        ValueError: the part has other positions, or other layers than SwiGLU; names the argument.
    """
    rope: JsonObject = part.get("rope_parameters") or part.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"argument rope_parameters={rope!r:.80} is not supported")
    kind = rope.get("rope_type", rope.get("type", "default"))
    for name, value, known in (
        ("rope_type", kind, ("default", LLAMA_ROPE)),
        ("partial_rotary_factor", {**part, **rope}.get("partial_rotary_factor", 1.0), (1.0, None)),
        ("hidden_act", part.get("hidden_act", "silu"), ("silu",)),
    ):
        if value not in known:
            raise ValueError(f"argument {name}={value!r} is not supported")
    theta: float = {"rope_theta": default, **part, **rope}["rope_theta"]
    if kind == "default":
        return theta, ()
    if missing := [name for name in ROPE_SCALING if not isinstance(rope.get(name), int | float)]:
        raise ValueError(f"argument rope_type={kind!r} needs {missing[0]}, which is no number")
    return theta, tuple(float(rope[name]) for name in ROPE_SCALING)


def to_rope_parameters(theta: float, scaling: tuple[float, ...]) -> RopeParameters:
    """Rotary positions, as transformers writes them."""
    if not scaling:
        return {"rope_type": "default", "rope_theta": theta}
    factor, low, high, length = scaling
    return {
        "rope_type": LLAMA_ROPE,
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(length),
    }
