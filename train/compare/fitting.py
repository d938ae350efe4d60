"""Equal costs: what an arm's rows hold, and the width at which it costs what the first arm costs.

Costs are training FLOPs per byte (:mod:`model.training_flops`) with the patches, or tokens, of the
rows that the arm trains on: the first rows of its dataloader are counted as the trainer counts
them.

What is fitted is the transformer that a patch, a token or a byte goes through: the latent
transformer of a BLT, all of another model. Its layers and the size of its heads stay; the number of
heads changes, and with it the width, and the feed-forward layers take up the rest, because a head
is too coarse a step for a hundredth. Of all widths at which some feed-forward layer hits the target
the one is taken whose feed-forward layers are nearest to the shape's own ratio. For example, from
128 wide with 4 heads and 344 in the feed-forward layers to 1.3 times the cost: 128 would need 520,
160 needs 344, which is nearer to a ratio of 2.7, so 160 and 344 are taken.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

from model.blt_config import BLTConfig
from model.training_flops import training_flops
from model.widths import resized
from pipeline.errors import ConfigError
from train.checkpoints.kinds import Shape
from train.metrics import Counts

TOLERANCE = 0.01
"""Largest difference of costs."""
MOST_RATIO = 16
"""Feed-forward layers are at most so many times as wide as the rest."""
COUNTED_BATCHES = 24
"""Microbatches from which patches are counted."""


@dataclass(frozen=True)
class Rows:
    """The content of an arm's rows."""

    patch_size: float
    """Mean bytes per patch; per token, EOS included, of a model without patches."""
    bytes_per_batch: float
    """Bytes of text per microbatch."""
    seq_len: int
    """Tokens per row."""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    """JSON values that are equal where the rows are, whatever the seed."""

    def flops_per_byte(self, shape: Shape) -> dict[str, float]:
        """Training FLOPs per byte, by part of the model."""
        return training_flops(shape, patch_size=self.patch_size, context=self.seq_len)


def count_rows(config: Any) -> Rows:
    """Count the first rows of a training.

    Args:
        config: a ``ByteTrainer.Config``.

    Raises:
        ConfigError: a setting is wrong.
        PipelineError: the shards cannot be used.
    """
    training = config.training
    tokenizer = config.tokenizer.build(tokenizer_path=config.hf_assets_path)
    loader = config.dataloader.build(
        dp_world_size=1,
        dp_rank=0,
        seq_len=training.seq_len,
        local_batch_size=training.local_batch_size,
        tokenizer=tokenizer,
    )
    counts, batches = Counts(), 0
    for inputs, labels_BS in itertools.islice(loader, COUNTED_BATCHES):
        counts.add(inputs, labels_BS, tokenizer.token_bytes)
        batches += 1
    return Rows(
        patch_size=counts.bytes / max(counts.patches or counts.labels, 1),
        bytes_per_batch=counts.bytes / max(batches, 1),
        seq_len=training.seq_len,
        fingerprint={k: v for k, v in loader.stream.fingerprint().items() if k != "seed"},
    )


def fitted(shape: Shape, rows: Rows, target: float) -> dict[str, int]:
    """The values of a shape that change so that it costs ``target`` FLOPs per byte.

    Returns:
        values by the name of the field; none if the shape costs that already.

    Raises:
        ConfigError: no width comes within TOLERANCE.
    """

    def cost(changes: dict[str, int]) -> float:
        return sum(rows.flops_per_byte(resized(shape, changes)).values())

    if abs(cost({}) / target - 1) <= TOLERANCE:
        return {}
    end = "_global" if isinstance(shape, BLTConfig) else ""
    dim, heads, hidden = (getattr(shape, name + end) for name in ("dim", "n_heads", "hidden_dim"))
    if getattr(shape, f"n_kv_heads{end}") != heads:
        raise ConfigError(f"n_kv_heads{end}: shared heads cannot be fitted; leave them out")
    multiple = 64 if hidden >= 2048 else 8
    found: list[tuple[float, dict[str, int]]] = []
    for number in range(1, 16 * heads + 1):
        width = dim // heads * number
        names = (f"dim{end}", f"n_heads{end}", f"hidden_dim{end}")

        def changes(of_layer: int, names: Any = names, width: int = width, n: int = number) -> Any:
            return dict(zip(names, (width, n, of_layer), strict=True))

        low, high = cost(changes(multiple)), cost(changes(2 * multiple))
        layer = multiple * (1 + round((target - low) / (high - low)))
        if layer < multiple:
            break  # attention alone costs more, and so it does where it is wider
        if layer > MOST_RATIO * width:
            continue
        if abs(cost(changes(layer)) / target - 1) <= TOLERANCE:
            ratio = abs(math.log(layer / width) - math.log(hidden / dim))
            found.append((ratio, changes(layer)))
    if not found:
        raise ConfigError(
            f"no width comes within {TOLERANCE:.0%} of {target:,.0f} FLOPs per byte; at "
            f"{dim} wide they are {cost({}):,.0f}"
        )
    return min(found, key=lambda each: each[0])[1]
