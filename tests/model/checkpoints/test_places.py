"""Weights that a repository of the hub has, once it was downloaded."""

import runpy

import pytest
from rich.console import Console
from support.jobs import ROOT

from model.checkpoints import places


@pytest.mark.parametrize(
    ("files", "status"),
    [
        (("config.json", "model.safetensors"), 0),
        (("blt_1b/params.json", "blt_1b/consolidated.pth"), 0),
        (("config.json", "model.safetensors.index.json"), 1),
    ],
)
def test_a_repository_without_weights_is_told(files, status, tmp_path, monkeypatch, capsys):
    """Weights in other files, such as pytorch_model.bin, are not downloaded."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = []
    monkeypatch.setattr(places, "download", lambda *given: asked.append(given) or str(tmp_path))
    job = runpy.run_path(str(ROOT / "jobs" / "download_weights.py"))
    config = job["DownloadWeightsConfig"](model=("a/b", "hf://a/b"), output=str(tmp_path))
    assert job["run"](config, Console(stderr=True, width=200)) == status
    assert asked == [("a/b", tmp_path / "b")]
    out, errors = capsys.readouterr()
    assert (out.strip(), errors) == ((str(tmp_path), "") if status == 0 else ("", errors))
    assert status == 0 or errors.startswith("error: a/b: has no weights in .safetensors or .pth")
