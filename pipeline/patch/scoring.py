"""The hot path: documents → packed token batches → entropies → patch lengths. No Ray in here.

Documents are laid end to end without padding and cut into segments (:mod:`model.segments`); whole
segments are packed into batches that fill the device. A document's entropies depend on its own
tokens only, up to the rounding of the device's kernels; packs follow from the documents alone, and
kernels from the device (``model.entropy_model.FIXED_KERNELS``), so that the stored entropies are
the same to the bit in every run on one kind of device.

A GPU is never waited for but at the very end: documents are queued, and their entropies taken when
they are needed. In between the host prepares the next ones.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.entropy_model import computed_in, to_device
from model.device import same_rounding
from model.entropies import segment_entropies
from model.entropy_model import EntropyModel
from model.patcher import Patcher
from model.segments import cut_segments
from model.short_context import ShortContextModel
from model.tokenizer import encode_documents
from pipeline.bpe.byte_level import BPE
from pipeline.corpus.documents import Document
from pipeline.errors import PipelineError, missing_memory
from pipeline.patches import PatchedTokens, patch_stored

AnyEntropyModel = EntropyModel | ShortContextModel


@dataclass(frozen=True)
class QueuedEntropies:
    """Entropies that a device may still be computing."""

    stored_T: Tensor
    """float16, nats, in the host's memory."""
    copied: torch.cuda.Event | None
    """Set when the values are there; None if they are."""
    began: torch.cuda.Event | float
    """Set when the device turned to these documents; the seconds that it took on a CPU."""

    def wait(self) -> np.ndarray:
        """The entropies as they are stored: float16, nats.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
        if self.copied is not None:
            self.copied.synchronize()
        # The maximum of values among which there is a NaN is NaN.
        if len(self.stored_T) and not self.stored_T.max() < torch.inf:
            raise PipelineError(
                "--entropy-model: gave an entropy that is not a number; its weights are broken, or "
                "overflow in the dtype it is run in"
            )
        return self.stored_T.numpy()

    @property
    def device_seconds(self) -> float:
        """Time that the device computed, once the values are there."""
        if self.copied is None or isinstance(self.began, float):
            return cast(float, self.began)
        return self.began.elapsed_time(self.copied) / 1000


@contextmanager
def _telling_of_memory() -> Iterator[None]:
    """
    Raises:
        PipelineError: the GPU has no memory for what is done inside.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise PipelineError(
            f"{platform.node()}: a worker's GPU has no memory for the entropy model "
            f"({missing_memory(error)}); give each worker a GPU of its own (--gpus-per-worker 1), "
            "or end what else runs there"
        ) from error


@dataclass(frozen=True)
class Scorer:
    """An entropy model and a boundary rule, applied to batches of documents."""

    model: AnyEntropyModel
    patcher: Patcher
    reset_at_newline: bool = False
    """Entropy context starts again after each newline (arXiv 2412.09871, section 4.4)."""
    bpe: BPE | None = None
    """The tokenizer whose tokens become patches, for the ``bpe`` rule."""

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

        Arguments are those of :meth:`queue`.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
        return self.queue(tokens_T, lengths_D, report).wait()

    def queue(
        self,
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        report: Callable[[int], None] = lambda tokens: None,
    ) -> QueuedEntropies:
        """Hand documents laid end to end to the device, without waiting for a GPU.

        Args:
            tokens_T: int32, token ids.
            lengths_D: int64, tokens of each document.
            report: called with the number of tokens of each pack as it is handed to the device.

        Raises:
            PipelineError: the GPU has no memory for it.
        """
        began_at = time.monotonic()
        began = stream = None
        if isinstance(self.model, EntropyModel) and self.model.device.type == "cuda":
            # An event is otherwise recorded on the current GPU, which may be another one.
            stream = torch.cuda.current_stream(self.model.device)
            began = torch.cuda.Event(enable_timing=True)
            began.record(stream)
        tokens = torch.from_numpy(tokens_T)
        lengths_S = cut_segments(
            tokens,
            torch.from_numpy(lengths_D),
            context_length=self.model.context_length,
            reset_at_newline=self.reset_at_newline,
        )
        with _telling_of_memory():
            h_T = segment_entropies(self.model, tokens, lengths_S, report)
            stored_T = h_T.clamp(min=0).to(torch.float16)
        if began is None:
            return QueuedEntropies(stored_T.cpu(), None, time.monotonic() - began_at)
        host_T = torch.empty(stored_T.shape, dtype=stored_T.dtype, pin_memory=True)
        host_T.copy_(stored_T, non_blocking=True)
        copied = torch.cuda.Event(enable_timing=True, blocking=True)
        copied.record(stream)
        return QueuedEntropies(host_T, copied, began)

    def queue_documents(
        self,
        documents: Sequence[Document],
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        report: Callable[[int], None],
    ) -> QueuedEntropies:
        """As :meth:`queue`, for documents of a corpus."""
        return self.queue(tokens_T, lengths_D, report)

    def on_device(self, gpus: float) -> "Scorer":
        """The scorer with its model where a worker computes: on a GPU if the worker has (a share
        of) one.

        On a CPU in one thread: each worker has one core, and results must not depend on how many
        there are. On a GPU with the memory for products that torch takes by default on newer ones:
        more or less of it might choose other kernels.
        """
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        torch.set_float32_matmul_precision("highest")
        if gpus:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        with _telling_of_memory():
            return replace(self, model=to_device(self.model, "cuda" if gpus else "cpu"))

    def check_device(self, expected: str | None) -> None:
        """Check that the model computes in what a set was begun with.

        Args:
            expected: as :func:`model.device.computing_in` gives it.

        Raises:
            PipelineError: it is another kind of device.
        """
        found = computed_in(self.model)
        if not same_rounding(found, expected):
            raise PipelineError(
                f"{platform.node()}: a worker computes in {found}, but the set in {expected}: one "
                "set needs one kind of GPU, because others round entropies differently; give the "
                "job nodes of one kind"
            )
