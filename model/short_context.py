"""The common part of entropy models that read a few tokens back and compute on the CPU alone."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from model.entropies import batch_entropies


class ShortContextModel(ABC):
    """An entropy model that gives entropies and no probabilities. Each entropy is a function of the
    last :attr:`order` tokens, the same to the bit whatever else is in the batch."""

    context_length: int | None = None
    """Contexts are short: a document of any length is one segment."""
    token_budget = 1 << 20
    """Tokens that a pack should hold."""
    pack_sizes: tuple[int, ...] = ()
    """A pack is as long as its tokens."""
    device = torch.device("cpu")
    kind: ClassVar[str]
    """The name of the kind in checkpoints."""
    title: ClassVar[str]
    """The name of such a model in messages."""
    block_tokens: ClassVar[int]
    """Tokens computed at a time: the temporaries of a block stay in the cache."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Tokens of context, the last one included."""

    @property
    def flops(self) -> float:
        """FLOPs per byte; 0 where entropies are looked up, which costs next to nothing."""
        return 0.0

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, as checkpoints hold them."""

    @abstractmethod
    def _block_entropies(self, tokens_T: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        """Entropies after each token of a block, those near its beginning as if it began there.

        Args:
            starts_S: places of the block at which segments begin.
        """

    def entropies_packed(self, tokens_T: Tensor, lengths_S: Tensor) -> Tensor:
        """The entropy (nats, float32) after each token of segments laid end to end."""
        tokens, ends_S = tokens_T.numpy(), lengths_S.numpy().cumsum()
        starts_S = ends_S - lengths_S.numpy()
        h_T = np.empty(len(tokens), np.float32)
        for start in range(0, len(tokens), self.block_tokens):
            stop = min(start + self.block_tokens, len(tokens))
            # Contexts at the block's first tokens reach back before it.
            back = max(start - self.order + 1, 0)
            near_S = slice(*np.searchsorted(starts_S, [back, stop]))
            block_h = self._block_entropies(tokens[back:stop], starts_S[near_S] - back)
            h_T[start:stop] = block_h[start - back :]
        return torch.from_numpy(h_T)

    def entropies(self, tokens_BS: Tensor, *, reset_at_newline: bool = False) -> Tensor:
        """Entropies of a batch; see :func:`model.entropies.batch_entropies`."""
        return batch_entropies(self, tokens_BS, reset_at_newline=reset_at_newline)
