"""FLOPs that PyTorch counts of a forward and a backward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import model.blt
import model.entropy_model
import model.token_transformer


def visible_pairs_alone(position_T: Tensor, window: int | None) -> Callable[..., Tensor]:
    """An attention that computes the pairs that a query sees and no others, because a counter of
    operations cannot know what a mask hides."""

    def attend(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        group = q_THD.shape[1] // k_TKD.shape[1]
        outputs = []
        for q, position in enumerate(position_T.tolist()):
            first = q - min(position, (window or len(position_T)) - 1)
            k, v = (x[first : q + 1].repeat_interleave(group, 1) for x in (k_TKD, v_TKD))
            weight_HK = torch.einsum("hd,khd->hk", q_THD[q], k).softmax(-1)
            outputs.append(torch.einsum("hk,khd->hd", weight_HK, v))
        return torch.stack(outputs)

    return attend


def counting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """FLOPs of the forward and the backward pass of rows, each of which is one document."""
    for module in (model.blt, model.entropy_model, model.token_transformer):
        monkeypatch.setattr(module, "segment_attention", visible_pairs_alone)

    def count(network: torch.nn.Module, *inputs: Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            network(*inputs).sum().backward()
        return counter.get_total_flops()

    return count
