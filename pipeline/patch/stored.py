"""Entropies that another program has computed, in the place of an entropy model. No Ray in here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from pipeline.bpe.byte_level import BPE
from pipeline.corpus.documents import Document


@dataclass(frozen=True)
class StoredEntropies:
    """The column that entropies are adopted from, and what is known of their model."""

    column: str
    identity: EntropyModelIdentity
    """All None if nobody named the model."""
    flops_per_byte: float | None = None


@dataclass(frozen=True)
class ReadEntropies:
    """Entropies that were read, and checked: takes the place of
    :class:`pipeline.patch.scoring.QueuedEntropies`."""

    h_T: np.ndarray
    """float16, nats."""

    def wait(self) -> np.ndarray:
        """The entropies."""
        return self.h_T

    @property
    def device_seconds(self) -> float:
        """None: nothing was computed."""
        return 0.0


@dataclass(frozen=True)
class StoredScorer:
    """A boundary rule applied to documents that come with their entropies: takes the place of a
    :class:`pipeline.patch.scoring.Scorer`."""

    patcher: Patcher
    bpe: BPE | None = None
    """The tokenizer whose tokens become patches, for the ``bpe`` rule."""

    def queue_documents(
        self,
        documents: Sequence[Document],
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        report: Callable[[int], None],
    ) -> ReadEntropies:
        """The documents' entropies end to end; nothing has to be waited for."""
        report(len(tokens_T))
        # Whoever reads the documents has checked each against its text.
        h_T = [document.entropies for document in documents if document.entropies is not None]
        return ReadEntropies(np.concatenate(h_T) if h_T else np.zeros(0, np.float16))

    def on_device(self, gpus: float) -> "StoredScorer":
        """The scorer as it is: it computes nothing that a device would change."""
        torch.set_num_threads(1)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        return self

    def check_device(self, expected: str | None) -> None:
        """Check nothing: entropies are the same wherever they are copied."""
