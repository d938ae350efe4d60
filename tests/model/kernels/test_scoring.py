"""The operators with which Hopper's GPUs score: their plain form, and their kernels' values."""

import pytest
import torch
from support.kernels_on_cpus import interpret
from torch import Tensor

from model.kernels import scoring
from model.layers.attention import RotaryAngles, apply_rotary
from model.layers.transformer import FeedForward, SelfAttention

CUDA = torch.device("cuda")


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@pytest.fixture(params=["plain", "kernel"])
def form(request, monkeypatch) -> str:
    """Operators compute as on a CPU, or by their kernels, which Triton's interpreter runs."""
    if request.param == "kernel":
        pytest.importorskip("triton", reason="the kernels are Triton's")
        from model.kernels import twin_products

        interpret(monkeypatch, twin_products)
        # So few that each computes several tiles.
        monkeypatch.setattr(twin_products, "_multiprocessors", lambda device: 1)
        monkeypatch.setattr(scoring, "gate", twin_products.gate)
        monkeypatch.setattr(scoring, "heads", twin_products.heads)
    return request.param


@torch.no_grad()
@pytest.mark.parametrize(
    ("tokens", "dim", "hidden"),
    [(128, 64, 128), (100, 72, 40), (256, 200, 136), (1152, 8, 264)],  # the last: 9 rows of tiles
)
def test_gate(form, tokens, dim, hidden):
    torch.manual_seed(0)
    layer, x = FeedForward(dim, hidden), torch.randn(tokens, dim)
    close(scoring.gate(x, layer.w1.weight, layer.w3.weight), layer.gate(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("tokens", "head_dim", "heads", "kv_heads"),
    [(128, 64, 2, 2), (256, 32, 3, 1), (128, 128, 2, 1), (1152, 32, 2, 2)],
)
def test_heads(form, tokens, head_dim, heads, kv_heads):
    """Queries and keys come with their even features first, values as they are."""
    torch.manual_seed(0)
    layer, x = SelfAttention(heads * head_dim, heads, kv_heads), torch.randn(tokens, 1)
    x = x * torch.linspace(-1, 1, heads * head_dim)
    rotary = RotaryAngles(head_dim, 100.0)(torch.arange(tokens) % 77)
    weights = layer.wq.weight, layer.wk.weight, layer.wv.weight
    planes = rotary.transpose(1, 2).contiguous()
    q, k, v = scoring.project_heads(x, *weights, planes, 0.25)

    plain = (w(x).unflatten(1, (-1, head_dim)) for w in (layer.wq, layer.wk, layer.wv))
    plain_q, plain_k, plain_v = plain
    order = torch.arange(head_dim).view(-1, 2).t().flatten()
    close(q, apply_rotary(plain_q, 0.25 * rotary)[..., order])
    close(k, apply_rotary(plain_k, rotary)[..., order])
    close(v, plain_v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_graphs_are_told_the_shapes_of_results(dtype):
    x, joined, angles = torch.ones(6, 16), torch.ones(2, 24, 16), torch.ones(6, 2, 4)
    x, joined = x.to(dtype), joined.to(dtype)
    for operator, arguments in (
        (scoring.gate, (x, torch.ones(40, 16, dtype=dtype), torch.ones(40, 16, dtype=dtype))),
        (scoring.heads, (x, joined, angles, 4, 2, 0.5)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
        assert operator(*arguments).dtype == dtype


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        *(({"head_dim": head_dim}, True) for head_dim in (32, 128)),
        *(({"head_dim": head_dim}, False) for head_dim in (16, 48, 256)),
        ({"tokens": 8192 + 64}, False),
        ({"widths": (768, 2052)}, False),  # rows of 4104 bytes
        ({"dtype": torch.float32}, False),
        ({"dtype": torch.float16}, False),
        ({"device": torch.device("cpu")}, False),
        ({"device": torch.device("meta")}, False),
        *(({"capability": other}, False) for other in ((8, 0), (8, 9), (10, 0), (12, 0))),
    ],
)
def test_they_serve_where_they_were_measured(monkeypatch, changes, expected):
    capability = changes.pop("capability", (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    pack = {"device": CUDA, "dtype": torch.bfloat16, "tokens": 8192, "head_dim": 64}
    assert scoring.fits(**{**pack, "widths": (768, 2048), **changes}) is expected
