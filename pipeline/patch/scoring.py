"""The hot path: documents → packed token batches → entropies → patch lengths. No Ray in here.

Documents are laid end to end without padding and cut into segments (:mod:`model.segments`); whole
segments are packed into batches that fill the device. A document's entropies depend on its own
tokens only, up to the rounding of the device's kernels; batches are cut the same way in every run,
so that what is stored is the same to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from model.entropies import ByteEntropyModel
from model.patcher import Patcher
from model.segments import cut_segments, pack_segments
from model.tokenizer import encode_documents
from pipeline.errors import PipelineError


class Scored(NamedTuple):
    """Documents laid end to end, scored and patched."""

    lengths_D: np.ndarray
    """int64: tokens of each document."""
    entropies_T: np.ndarray
    """float16, nats."""
    patch_lengths_P: np.ndarray
    """int64, tokens; a function of ``entropies_T`` as stored."""
    patches_D: np.ndarray
    """int64: patches of each document."""


@dataclass(frozen=True)
class Scorer:
    """An entropy model and a boundary rule, applied to batches of documents."""

    model: ByteEntropyModel
    patcher: Patcher
    reset_at_newline: bool = False
    """Entropy context starts again after each newline (arXiv 2412.09871, section 4.4)."""

    def score(
        self, documents: list[bytes], report: Callable[[int], None] = lambda tokens: None
    ) -> Scored:
        """Score and patch documents.

        Args:
            documents: UTF-8 text of each.
            report: called with the number of tokens of each pack as it is handed to the device.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
        tokens_T, lengths_D = encode_documents(documents)
        return self.patch(tokens_T, lengths_D, self.entropies(tokens_T, lengths_D, report))

    def entropies(
        self,
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        report: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Entropies of documents laid end to end, as they are stored: float16, nats."""
        tokens = torch.from_numpy(tokens_T)
        lengths_S = cut_segments(
            tokens,
            torch.from_numpy(lengths_D),
            context_length=self.model.context_length,
            reset_at_newline=self.reset_at_newline,
        )
        # One copy to the device and one back: in between, packs are only queued there.
        tokens = tokens.to(self.model.device, non_blocking=True)
        h_T = torch.empty(len(tokens), device=self.model.device)
        for segments, pack in pack_segments(lengths_S, self.model.token_budget):
            h_T[pack] = self.model.entropies_packed(tokens[pack], lengths_S[segments])
            report(pack.stop - pack.start)
        stored_T = h_T.clamp(min=0).to(torch.float16).cpu()
        # The maximum of values among which there is a NaN is NaN.
        if len(stored_T) and not stored_T.max() < torch.inf:
            raise PipelineError(
                "--entropy-model: gave an entropy that is not a number; its weights are broken, or "
                "overflow in the dtype it is run in"
            )
        return stored_T.numpy()

    def patch(self, tokens_T: np.ndarray, lengths_D: np.ndarray, entropies_T: np.ndarray) -> Scored:
        """Patch documents laid end to end by their stored entropies; on the CPU."""
        patches = patch_stored(self.patcher, entropies_T, lengths_D, tokens_T)
        return Scored(lengths_D, entropies_T, *patches)


def patch_stored(
    patcher: Patcher, entropies_T: np.ndarray, lengths_D: np.ndarray, tokens_T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Patch lengths, and the number of patches of each document, from stored entropies."""
    lengths_P, patches_D = patcher.patch_lengths_flat(
        torch.from_numpy(entropies_T), torch.from_numpy(lengths_D), torch.from_numpy(tokens_T)
    )
    return lengths_P.numpy(), patches_D.numpy()
