"""The hot path: documents → packed token batches → entropies → patch lengths. No Ray in here.

Documents are laid end to end without padding and cut into segments (:mod:`model.segments`); whole
segments are packed into batches that fill the device. A document's entropies depend on its own
tokens only, up to the rounding of the device's kernels; batches are cut the same way in every run,
so that the stored entropies are the same to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.checkpoints.entropy_model import to_device
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.segments import cut_segments, pack_segments
from model.tokenizer import encode_documents
from pipeline.errors import PipelineError
from pipeline.patches import PatchedTokens, patch_stored

AnyEntropyModel = EntropyModel | NGramEntropyModel


@dataclass(frozen=True)
class Scorer:
    """An entropy model and a boundary rule, applied to batches of documents."""

    model: AnyEntropyModel
    patcher: Patcher
    reset_at_newline: bool = False
    """Entropy context starts again after each newline (arXiv 2412.09871, section 4.4)."""

    def score(
        self, documents: list[bytes], report: Callable[[int], None] = lambda tokens: None
    ) -> PatchedTokens:
        """Score and patch documents.

        Args:
            documents: UTF-8 text of each.
            report: called with the number of tokens of each pack as it is handed to the device.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
        tokens_T, lengths_D = encode_documents(documents)
        entropies_T = self.entropies(tokens_T, lengths_D, report)
        return patch_stored(self.patcher, entropies_T, lengths_D, tokens_T)

    def entropies(
        self,
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        report: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Entropies of documents laid end to end, as they are stored: float16, nats.

        Args:
            tokens_T: int32, token ids.
            lengths_D: int64, tokens of each document.
            report: called with the number of tokens of each pack as it is handed to the device.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
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

    def on_device(self, gpus: float) -> "Scorer":
        """The scorer with its model where a worker computes: on a GPU if the worker has (a share
        of) one.

        On a CPU in one thread: each worker has one core, and results must not depend on how many
        there are.
        """
        torch.set_num_threads(1)
        return replace(self, model=to_device(self.model, "cuda" if gpus else "cpu"))
