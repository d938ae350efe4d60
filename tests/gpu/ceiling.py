"""Versions, and what the card can reach at all."""

import importlib
import json
import platform

import torch

from gpu.measure import CEILING_FILE, Run

SHAPES = {
    "entropy model, w1": (65536, 768, 2048),
    "entropy model, wq": (65536, 768, 768),
    "latent transformer, w1": (7424, 2048, 5632),
    "local decoder, w1": (32768, 1024, 2816),
}
"""Rows, and widths in and out, of products in the published models."""


def ceiling(run: Run) -> None:
    """Rates of matrix products and of copying."""
    name = "cpu" if run.tiny else torch.cuda.get_device_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for module in ("triton", "numpy", "pyarrow", "torchtitan", "torchao"):
        try:
            versions[module] = importlib.import_module(module).__version__
        except ImportError:
            versions[module] = "none"
    run.record("versions", device=name, **versions)

    def rate(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
        a = torch.randn(rows, inner, device=run.device).to(dtype)
        b = torch.randn(inner, outer, device=run.device).to(dtype)
        return 2 * rows * inner * outer / run.seconds(lambda: a @ b, 10, 3)

    n = 256 if run.tiny else 8192
    product = rate(n, n, n, run.dtype)
    (run.output / CEILING_FILE).write_text(json.dumps({"product": product, "device": name}))
    shares = {
        what: rate(rows // (256 if run.tiny else 1), inner, outer, run.dtype) / product
        for what, (rows, inner, outer) in SHAPES.items()
    }
    x = torch.empty(1 << (20 if run.tiny else 32), dtype=torch.uint8, device=run.device)
    y = torch.empty_like(x)
    copied = 2 * x.numel() / run.seconds(lambda: y.copy_(x))
    run.record(
        "ceiling", product_TFLOPs=product / 1e12, copy_TBps=copied / 1e12, shares_of_product=shares
    )
