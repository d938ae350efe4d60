"""Our kernels serve on some devices, and plain PyTorch on the others."""

import pytest
import torch

pytest.importorskip("triton", reason="kernels are written in Triton")

from model import kernels
from model.kernels.launch import launched_early

META = torch.device("meta")


def test_gpus_that_they_run_on(monkeypatch):
    """Not AMD's, which are called cuda, too; not those for which Triton fails, as it does here."""
    usable, gpu = kernels.usable.__wrapped__, torch.device("cuda", 0)
    with pytest.warns(UserWarning, match="kernels cannot be compiled for cpu"):
        assert not kernels._runs(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(kernels, "_runs", lambda device, dtype: device == gpu)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert usable(gpu, dtype) and usable(META, dtype)
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        assert not usable(device, torch.float32)
    assert not usable(gpu, torch.float64)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not usable(gpu, torch.float32)


def test_products_of_few_tokens():
    """The kernels read rows of a matrix that lie one after another."""
    x_TD, weight_ED = torch.empty(4, 8, device=META), torch.empty(6, 8, device=META)
    assert kernels.few(x_TD, weight_ED)
    assert not kernels.few(torch.empty(5, 8, device=META), weight_ED)
    assert not kernels.few(x_TD, torch.empty(8, 6, device=META).t())


def test_early_launches(monkeypatch):
    """Only where they are known to work within graphs."""
    for capability, early in (((8, 9), 0), ((9, 0), 1), ((10, 3), 1), ((12, 0), 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, its=capability: its)
        launch = launched_early(torch.device("cuda", 0))
        assert launch["EARLY"] == launch.get("launch_pdl", False) == early
    assert launched_early(META) == {"EARLY": False}
