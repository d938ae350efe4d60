"""A convolutional entropy model in whole numbers: cheap on CPUs, distilled from a large one.

It gives the entropy of the next byte alone and no probabilities: the 260-wide output layer would be
most of its cost, and patches need one number per byte. Embeddings of the last 1 to 6 tokens (the
longer ones by hashes) are summed; causal convolutions with growing distances widen what is seen;
one linear layer reads the entropy from all of them. ``train/distillation/`` trains it on the
entropies that a shard set stores.

All of it is computed with whole numbers in float32: weights are -127 to 127, activations 0 to 127
and the sums of products below 2**24, where float32 is exact. So the sequence in which a kernel adds
does not matter: entropies are the same to the bit on every CPU, for every batch and every number of
threads, and a document that is read token by token gets those of the whole document. For example,
the activations 3 and 100 (0.047 and 1.56) with the weights 50 and -20 (0.195 and -0.078) and the
bias 7000 give 150 - 2000 + 7000 = 5150, which is rounded to 5150 / 256 ≈ 20, the activation 0.31.
The design follows the evaluation networks of chess engines (Nasu, 2018: NNUE).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.ngram import MULTIPLIER, TOKEN_BITS, context_keys
from model.short_context import ShortContextModel
from model.tokenizer import VOCAB_SIZE

LARGEST = 127
"""The largest weight and activation, as whole numbers."""
ACTIVATION = 64
"""Whole numbers per 1.0 of embeddings and activations."""
WEIGHT = 256
"""Whole numbers per 1.0 of the other weights."""
MOST_DISTANCE = 1024
"""Tokens back that a layer may read."""
LARGEST_BIAS = 2**15 - 1
"""Biases count in ``ACTIVATION * WEIGHT`` per 1.0, as sums of products do."""


@dataclass(frozen=True)
class ConvEntropyConfig:
    """The shape of a convolutional entropy model.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    dim: int = 64
    """Width of embeddings and layers."""
    max_order: int = 6
    """The most tokens that an embedding stands for."""
    table_bits: int = 13
    """Each order of 2 and more has ``2**table_bits`` embeddings, which hashes choose among."""
    taps: tuple[tuple[int, ...], ...] = (
        *((0, 1, 2, 3), (0, 2, 4, 8)),
        *((0, 4, 8, 16), (0, 16, 32, 64)),
    )
    """Each layer's distances, in tokens, to the positions below that it reads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "taps", tuple(tuple(distances) for distances in self.taps))
        for name, low, high in (("dim", 1, 512), ("max_order", 1, 6), ("table_bits", 1, 24)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: must be {low} to {high}, got {getattr(self, name)}")
        if not all(layer and 0 <= min(layer) <= max(layer) <= MOST_DISTANCE for layer in self.taps):
            raise ValueError(
                f"taps: each layer needs distances of 0 to {MOST_DISTANCE}, got {self.taps}"
            )
        widest = max(self.dim * n for n in (len(self.taps) + 1, *map(len, self.taps)))
        if widest * LARGEST**2 + LARGEST_BIAS >= 1 << 24:
            raise ValueError(f"dim, taps: a sum of {widest} products is not exact in float32")

    @property
    def reach(self) -> int:
        """Tokens of context, the last one included, that an entropy depends on."""
        return self.max_order + sum(max(distances) for distances in self.taps)

    @property
    def flops(self) -> float:
        """FLOPs per byte."""
        products = sum(self.dim**2 * len(distances) for distances in self.taps)
        return 2 * (products + self.dim * (len(self.taps) + 1)) + self.dim * self.max_order

    @property
    def embeddings(self) -> int:
        """Rows of the table of embeddings: those of tokens come first, then order by order."""
        return VOCAB_SIZE + ((self.max_order - 1) << self.table_bits)

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of whole numbers, by name."""
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "embeddings": ((self.embeddings, self.dim), torch.int8),
            "embeddings_bias": ((self.dim,), torch.int8),
            "output": ((1, self.dim * (len(self.taps) + 1)), torch.int8),
            "output_bias": ((1,), torch.int16),
        }
        for number, distances in enumerate(self.taps):
            shapes[f"layer_{number}"] = ((self.dim, self.dim * len(distances)), torch.int8)
            shapes[f"layer_{number}_bias"] = ((self.dim,), torch.int16)
        return shapes


def embedding_rows(
    tokens_T: np.ndarray, starts_S: np.ndarray, config: ConvEntropyConfig
) -> np.ndarray:
    """The rows of the embeddings after each token: int64 ``[tokens, max_order]``.

    Args:
        tokens_T: ids of segments laid end to end.
        starts_S: first positions of segments, beyond which contexts do not reach back.
    """
    keys_T = context_keys(tokens_T, starts_S, config.max_order)
    rows_TK = np.empty((len(keys_T), config.max_order), np.int64)
    rows_TK[:, 0] = tokens_T
    for order in range(2, config.max_order + 1):
        mixed_T = (keys_T & ((1 << TOKEN_BITS * order) - 1)) * np.int64(MULTIPLIER)
        hash_T = (mixed_T >> (64 - config.table_bits)) & ((1 << config.table_bits) - 1)
        rows_TK[:, order - 1] = VOCAB_SIZE + ((order - 2) << config.table_bits) + hash_T
    return rows_TK


def gather_taps(x_TD: Tensor, position_T: Tensor, distances: Sequence[int]) -> Tensor:
    """Gather what lies at the distances before each position: ``[tokens, taps * dim]``, with zeros
    where that is before the segment.

    Args:
        position_T: the position of each token in its segment.
    """
    return torch.cat(
        [
            F.pad(x_TD, (0, 0, d, 0))[: len(x_TD)].masked_fill((position_T < d)[:, None], 0)
            if d
            else x_TD
            for d in distances
        ],
        -1,
    )


class ConvEntropyModel(ShortContextModel):
    """A convolutional entropy model; see the module's text."""

    kind = "conv"
    title = "a convolutional entropy model"
    block_tokens = 4096

    def __init__(self, config: ConvEntropyConfig, weights: Mapping[str, Tensor]):
        """
        Args:
            weights: whole numbers, of the names, shapes and dtypes that ``config.shapes`` has.

        Raises:
            ValueError: the weights are not those of the shape; names one.
        """
        if missing := config.shapes.keys() ^ weights.keys():
            raise ValueError(f"{sorted(missing)[0]}: is missing, or not a weight of this shape")
        for name, (shape, dtype) in config.shapes.items():
            if tuple(weights[name].shape) != shape or weights[name].dtype != dtype:
                found = f"{tuple(weights[name].shape)} {weights[name].dtype}"
                raise ValueError(f"{name}: must be {shape} {dtype}, is {found}")
            if dtype == torch.int8 and bool((weights[name] == -LARGEST - 1).any()):
                raise ValueError(f"{name}: holds -128; the smallest weight is -{LARGEST}")
        self.config = config
        self._whole = dict(weights)
        self._exact = {name: tensor.float() for name, tensor in weights.items()}

    @property
    def order(self) -> int:
        """Tokens of context."""
        return self.config.reach

    @property
    def flops(self) -> float:
        """FLOPs per byte."""
        return self.config.flops

    def tensors(self) -> dict[str, Tensor]:
        """The whole numbers by name, as checkpoints hold them."""
        return self._whole

    @torch.inference_mode()
    def _block_entropies(self, tokens_T: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        exact = self._exact
        rows_TK = torch.from_numpy(embedding_rows(tokens_T, starts_S, self.config))
        place_T = np.arange(len(tokens_T))
        begin_T = np.zeros_like(place_T)
        begin_T[starts_S] = starts_S
        position_T = torch.from_numpy(place_T - np.maximum.accumulate(begin_T))
        x_TD = F.embedding_bag(rows_TK, exact["embeddings"], mode="sum")
        x_TD = x_TD.add_(exact["embeddings_bias"]).clamp_(0, LARGEST)
        outputs_LD = exact["output"].view(-1, self.config.dim)
        sum_T = x_TD @ outputs_LD[0] + exact["output_bias"]
        for number, distances in enumerate(self.config.taps):
            seen = gather_taps(x_TD, position_T, distances)
            x_TD = F.linear(seen, exact[f"layer_{number}"], exact[f"layer_{number}_bias"])
            x_TD = x_TD.mul_(1 / WEIGHT).round_().clamp_(0, LARGEST)
            sum_T += x_TD @ outputs_LD[number + 1]
        return sum_T.mul_(1 / (ACTIVATION * WEIGHT)).clamp_(min=0).numpy()
