"""Entropies as they are stored: what the model must not give."""

import numpy as np
import pytest
import torch

from model import EntropyModel, EntropyModelConfig, NGramEntropyModel, Patcher
from model.entropies import batch_entropies
from model.tokenizer import encode_documents
from pipeline.errors import PipelineError
from pipeline.patch import scoring
from pipeline.patch.scoring import QueuedEntropies, Scorer

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 384.00 MiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 21.19 MiB is free. Including non-PyTorch memory, this process has 2.42 GiB memory in "
    "use. Of the allocated memory 2.1 GiB is allocated by PyTorch. If reserved but unallocated"
)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_entropies_that_are_no_numbers_stop_the_job(broken):
    model = NGramEntropyModel(np.full(1 << 18, broken, np.float16), {})
    with pytest.raises(PipelineError, match="--entropy-model: gave an entropy that is not a num"):
        Scorer(model, Patcher(1.0)).score([b"text"])
    assert Scorer(model, Patcher(1.0)).score([]).lengths_D.tolist() == []


def test_an_entropy_that_is_no_number_is_told_when_it_is_taken():
    """A GPU computes it later than it was asked to."""
    model = NGramEntropyModel(np.full(1 << 18, float("nan"), np.float16), {})
    queued = Scorer(model, Patcher(1.0)).queue(*encode_documents([b"text"]))
    with pytest.raises(PipelineError, match="gave an entropy that is not a number"):
        queued.wait()


def test_contexts_start_again_at_newlines(ngram_model):
    tokens_T, lengths_D = encode_documents([b"one line\nand more of it\n"])
    expected = {}
    for reset in (False, True):
        expected[reset] = batch_entropies(
            ngram_model, torch.from_numpy(tokens_T)[None].long(), reset_at_newline=reset
        )[0]
        scorer = Scorer(ngram_model, Patcher(1.0), reset_at_newline=reset)
        h_T = torch.from_numpy(scorer.entropies(tokens_T, lengths_D))
        torch.testing.assert_close(h_T.float(), expected[reset], atol=0.002, rtol=0)
    assert (expected[True] - expected[False]).abs().max() > 0.1


def test_no_entropy_is_below_zero(monkeypatch):
    """Rounding can make it so, of a model that is sure."""
    monkeypatch.setattr(scoring, "segment_entropies", lambda *_: torch.tensor([-1e-4, 0.5]))
    model = NGramEntropyModel(np.zeros(1 << 18, np.float16), {})
    stored = Scorer(model, Patcher(1.0)).entropies(*encode_documents([b""]))
    assert stored.tolist() == [0.0, 0.5]


def test_values_of_a_gpu_are_waited_for():
    """Until its event has happened, the host's memory holds anything."""
    stored = torch.full((3,), float("nan"), dtype=torch.float16)

    class Event:
        def synchronize(self) -> None:
            stored.copy_(torch.tensor([1.0, 0.5, 2.0]))

    assert QueuedEntropies(stored, Event(), 0.0).wait().tolist() == [1.0, 0.5, 2.0]


def test_values_of_a_gpu_that_is_not_the_current_one(monkeypatch):
    """lm-evaluation-harness has ``--device cuda:1``. Its copy is waited for on its own stream: an
    event on that of cuda:0 would have happened before."""

    class OnSecondGPU(EntropyModel):
        device = torch.device("cuda:1")

    class Event:
        def __init__(self, **_: bool):
            pass

        def record(self, stream: object = "current stream of cuda:0") -> None:
            streams.append(stream)

    streams: list[object] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **how: empty(*size, **how))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(scoring, "segment_entropies", lambda *_: torch.ones(6))
    with torch.device("meta"):
        model = OnSecondGPU(EntropyModelConfig(dim=32, n_layers=1, n_heads=2))
    queued = Scorer(model, Patcher(1.0)).queue(*encode_documents([b"text"]))
    assert queued.stored_T.tolist() == [1.0] * 6 and queued.copied is not None
    assert streams == ["stream of cuda:1"] * 2


def test_another_kind_of_device_is_refused(ngram_model):
    scorer = Scorer(ngram_model, Patcher(1.0)).on_device(0)
    scorer.check_device("cpu float32")
    with pytest.raises(PipelineError, match=r"computes in cpu float32, but the set in cuda bfl"):
        scorer.check_device("cuda bfloat16 on NVIDIA H200 (capability 9.0, 132 multiprocessors)")


@pytest.mark.parametrize("place", ["segment_entropies", "to_device"])
def test_a_gpu_without_memory_is_told(ngram_model, monkeypatch, place):
    """With the node and what to do, while scores are computed and when the model is put there."""

    def full(*args):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(scoring, place, full)
    with pytest.raises(PipelineError) as told:
        Scorer(ngram_model, Patcher(1.0)).on_device(0.25).score([b"text"])
    assert "GPU has no memory for the entropy model (CUDA out of" in str(told.value)
    assert "21.19 MiB is free); give each worker a GPU of its own (--gpus-pe" in str(told.value)
