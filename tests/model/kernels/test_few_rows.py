"""Products of few tokens: Triton's interpreter against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from support.kernels_on_cpus import run_kernels_on_cpu

from model.kernels import few_rows


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    run_kernels_on_cpu(monkeypatch)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width", "rows"), [(1, 32, 24), (2, 24, 5), (3, 150, 70)])
def test_products(tokens, width, rows, dtype):
    """Widths that fill no piece, and rows that fill no program."""
    x, norm, weight = drawn(tokens, width), 1 + drawn(width) / 4, drawn(2 * rows, width) / 6
    x, norm, weight = (each.to(dtype) for each in (x, norm, weight))
    close = {"rtol": 3e-5, "atol": 3e-5} if dtype == torch.float32 else {"rtol": 0.01, "atol": 0.01}
    plain = F.rms_norm(x.float(), (width,), norm.float(), 1e-5) @ weight.float().T
    found = few_rows.normed_product(x, norm, 1e-5, weight, False)
    torch.testing.assert_close(found.float(), plain, **close)
    gate, up = plain.chunk(2, -1)
    found = few_rows.normed_product(x, norm, 1e-5, weight, True)
    torch.testing.assert_close(found.float(), F.silu(gate) * up, **close)
    state = drawn(tokens, 2 * rows).to(dtype)
    expected = 2 * state.float() + x.float() @ weight.float().T
    few_rows.added_product(state, x, weight, 2)
    torch.testing.assert_close(state.float(), expected, **close)
