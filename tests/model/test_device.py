"""The kind of a device, as records name it."""

from contextlib import nullcontext
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from model import device as device_module
from model.checkpoints.building import ready
from model.device import SCORING_KERNELS, computing_in, fast_dtype, same_rounding, software

H200 = "cuda bfloat16 on NVIDIA H200 (capability 9.0, 132 multiprocessors)"
PART = "cuda bfloat16 on NVIDIA H200 MIG 3g.71gb (capability 9.0, 60 multiprocessors)"


def test_a_gpu_is_named_by_all_that_chooses_kernels(monkeypatch):
    assert computing_in(torch.device("cpu"), torch.float32) == "cpu float32"
    has = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: has)
    assert computing_in(torch.device("cuda"), torch.bfloat16) == H200


@pytest.mark.parametrize(
    ("major", "dtype"), [(7, torch.float32), (8, torch.bfloat16), (12, torch.bfloat16)]
)
def test_bfloat16_is_for_gpus_that_have_units_for_it(monkeypatch, major, dtype):
    """Also models that are loaded without a word about it: see :func:`fast_dtype`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major)
    )
    assert fast_dtype(torch.device("cuda")) == dtype
    assert fast_dtype(torch.device("cpu")) == torch.float32
    layer = nn.Linear(2, 2, bias=False)
    moved: list[object] = []
    monkeypatch.setattr(layer, "to", lambda *to: moved.append(to) or layer)
    assert ready(layer) is layer and moved == [(torch.device("cuda"), dtype)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (H200, H200, True),
        (H200, PART, False),
        ("cpu float32", H200, False),
        ("cpu float32", None, True),
        ("cuda bfloat16", H200, True),  # early releases recorded no kind
        ("cuda float32", H200, False),
        ("cuda bfloat16", "cuda float32", False),
    ],
)
def test_what_rounds_alike(one, other, same):
    assert same_rounding(one, other) == same_rounding(other, one) == same


def test_software(monkeypatch):
    assert software()["torch"] == torch.__version__

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert software() == {"torch": torch.__version__, "cuda": "13.0"}


@pytest.mark.parametrize(
    ("capability", "hip", "revision"),
    [
        ((9, 0), None, SCORING_KERNELS),
        ((8, 0), None, None),
        ((10, 0), None, None),
        ((9, 0), "7.0", None),  # an MI200 of AMD
    ],
)
def test_software_has_the_revision_of_kernels_that_serve(monkeypatch, capability, hip, revision):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(device_module, "fast_dtype", lambda device: torch.bfloat16)
    assert software().get("scoring_kernels") == revision
