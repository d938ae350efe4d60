"""Documents → a byte model's predictions of all their tokens: the hot path of evaluation.

A document longer than the context is read in windows that overlap by at least half a context.
Windows are laid end to end, sorted by length, and packed to a token budget: nothing is padded on a
CPU, and on a GPU only what brings a pack to the one shape that its kernels are compiled for.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.layers.attention import BLOCK
from model.segments import pack_segments
from model.tokenizer import BOS_ID, EOS_ID, NEXT_IDS, PAD_ID

CPU_TOKENS = 4096
"""Tokens per pack of a BLT on a CPU, about."""
GPU_TOKENS = 32768
"""Tokens per pack of a BLT on a GPU, about."""
PATCH_SHAPES = 4
"""A pack of T tokens is given room for T, T/2, T/4 or T/8 patches on a GPU: so many shapes."""


class Predictions(NamedTuple):
    """A model's prediction of each token of documents laid end to end, given all that stands before
    the token in its document."""

    nats_T: np.ndarray
    """float32: minus the log-probability; 0 for BOS, which is given."""
    greedy_T: np.ndarray
    """bool: true if the token is the most likely of the bytes and EOS; true for BOS."""


class Windows(NamedTuple):
    """Stretches of documents: window w reads ``lengths_W[w]`` tokens from ``start_W[w]`` on."""

    start_W: np.ndarray
    """Index of the window's first token among the tokens of all documents."""
    lengths_W: np.ndarray
    """Tokens of the window, the last of which is only predicted."""
    known_W: np.ndarray
    """Predictions at the window's beginning that are left to the window before."""


def cut_windows(lengths_D: np.ndarray, context: int | None) -> Windows:
    """Windows over documents (BOS + bytes + EOS) laid end to end, the longest first.

    The first window of a document predicts its first ``context`` tokens after BOS; each further one
    begins half a context later and predicts what is new to it. So every token is predicted once,
    and with at least half a context before it unless the document has less.

    Args:
        lengths_D: tokens of each document, BOS and EOS included.
        context: tokens that a window predicts at most, 2 or more; None: one window per document.
    """
    predicted_D = lengths_D - 1
    context = context or max(int(predicted_D.max(initial=0)), 2)
    stride = context // 2
    windows_D = 1 + np.maximum(-(-(predicted_D - context) // stride), 0)
    document_W = np.repeat(np.arange(len(lengths_D)), windows_D)
    number_W = np.arange(len(document_W)) - (windows_D.cumsum() - windows_D)[document_W]
    begin_W = number_W * stride
    first_D = lengths_D.cumsum() - lengths_D
    windows = Windows(
        start_W=first_D[document_W] + begin_W,
        lengths_W=np.minimum(context, predicted_D[document_W] - begin_W) + 1,
        known_W=np.where(number_W > 0, context - stride, 0),
    )
    order_W = np.argsort(-windows.lengths_W, kind="stable")
    return Windows(*(values[order_W] for values in windows))


def predict(
    model: BLT | EntropyModel,
    tokens_T: np.ndarray,
    lengths_D: np.ndarray,
    patch_lengths_P: np.ndarray | None,
    context: int | None,
    report: Callable[[int], None] = lambda tokens: None,
) -> Predictions:
    """The predictions of ``model`` for every token of documents laid end to end.

    Args:
        tokens_T: ids; each document is BOS + bytes + EOS.
        lengths_D: tokens of each document.
        patch_lengths_P: tokens of each patch, for a BLT; they sum to those of the documents.
        context: see :func:`cut_windows`.
        report: called with the tokens that were predicted as a pack is handed to the device.
    """
    starts_T = np.zeros(len(tokens_T), bool)
    if patch_lengths_P is not None:
        starts_T[patch_lengths_P.cumsum() - patch_lengths_P] = True
    if isinstance(model, EntropyModel):
        context = min(context or model.context_length, model.context_length - 1)
    windows = cut_windows(lengths_D, context)
    width = _gpu_width(context) if model.device.type == "cuda" else None
    queued = []
    for at_T, pack in _packs(windows, _token_budget(model, width)):
        # Each window is made a document of its own: BOS, bytes, EOS.
        begin_W = pack.lengths_W.cumsum() - pack.lengths_W
        end_W = begin_W + pack.lengths_W - 1
        read_T, opens_T = tokens_T[at_T], starts_T[at_T]
        read_T[begin_W], read_T[end_W] = BOS_ID, EOS_ID
        opens_T[begin_W] = opens_T[begin_W + 1] = True
        position_T = np.arange(len(at_T)) - np.repeat(begin_W, pack.lengths_W)
        new_T = position_T >= np.repeat(pack.known_W, pack.lengths_W)
        new_T[end_W] = False
        (new_N,) = new_T.nonzero()
        next_N = at_T[new_N] + 1
        said = _ask(model, read_T, opens_T, pack.lengths_W, new_N, tokens_T[next_N], width)
        queued.append((next_N, said))
        report(len(next_N))
    # Fetched last, so that packs queue up on the device.
    result = Predictions(np.zeros(len(tokens_T), np.float32), np.ones(len(tokens_T), bool))
    for next_N, (nats_N, greedy_N) in queued:
        result.nats_T[next_N] = nats_N.cpu().numpy()
        result.greedy_T[next_N] = greedy_N.cpu().numpy()
    return result


def _packs(windows: Windows, budget: int) -> Iterator[tuple[np.ndarray, Windows]]:
    """Neighbouring windows of at most ``budget`` tokens, and the indices of their tokens."""
    for of_pack, _ in pack_segments(torch.from_numpy(windows.lengths_W), budget):
        pack = Windows(*(values[of_pack] for values in windows))
        shift_W = pack.start_W - (pack.lengths_W.cumsum() - pack.lengths_W)
        yield np.arange(pack.lengths_W.sum()) + np.repeat(shift_W, pack.lengths_W), pack


def _token_budget(model: BLT | EntropyModel, width: int | None) -> int:
    if isinstance(model, EntropyModel):
        return model.token_budget
    if model.config.hash_across_documents:
        return 1  # a window is to be read as if it were alone: it gets a pack of its own
    return width or CPU_TOKENS


def _gpu_width(context: int | None) -> int:
    """Tokens of a BLT's packs on a GPU: some of the longest windows, which then leave no gap."""
    longest = context + 1 if context else BLOCK
    return -(-max(GPU_TOKENS // longest, 1) * longest // BLOCK) * BLOCK


@torch.inference_mode()
def _ask(
    model: BLT | EntropyModel,
    read_T: np.ndarray,
    opens_T: np.ndarray,
    lengths_W: np.ndarray,
    new_N: np.ndarray,
    next_N: np.ndarray,
    width: int | None,
) -> tuple[Tensor, Tensor]:
    """Nats of the tokens ``next_N`` after the positions ``new_N`` of a pack, and whether each is
    the greedy choice; on the model's device."""
    device = model.device
    if isinstance(model, EntropyModel):
        logits_TV = model.logits_packed(torch.from_numpy(read_T), torch.from_numpy(lengths_W))
    else:
        logits_TV = _blt_logits(model, read_T, opens_T, width)
    logits_NV = logits_TV[torch.from_numpy(new_N).to(device)].float()
    target_N = torch.from_numpy(next_N).to(device, torch.int64)
    nats_N = F.cross_entropy(logits_NV, target_N, reduction="none")
    possible_V = torch.tensor(NEXT_IDS, device=device)
    return nats_N, possible_V[logits_NV[:, possible_V].argmax(-1)] == target_N


def _blt_logits(model: BLT, read_T: np.ndarray, opens_T: np.ndarray, width: int | None) -> Tensor:
    """``[tokens, vocab_size]`` of one pack, as one row.

    Args:
        width: tokens to pad to, or twice or four times as many...; None for no padding.
    """
    start_P = opens_T.nonzero()[0]
    patch_lengths_P = torch.from_numpy(np.diff(start_P, append=len(opens_T)))
    tokens, patches = len(read_T), len(start_P)
    row_T = torch.from_numpy(read_T)
    if width is not None:
        while width < tokens:
            width *= 2
        room = next(width >> k for k in reversed(range(PATCH_SHAPES)) if width >> k >= patches)
        row_T = F.pad(row_T, (0, width - tokens), value=PAD_ID)
        patch_lengths_P = F.pad(patch_lengths_P, (0, room - patches))
    logits_1TV = model(row_T[None].to(model.device), patch_lengths_P[None].to(model.device))
    return logits_1TV[0, :tokens]
