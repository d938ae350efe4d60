"""The data of an experiment."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from support.shard_sets import write_shards

from pipeline.errors import ConfigError
from train.compare import data as module
from train.compare.data import Data, own_text
from train.compare.experiment import CLEAN, Arm, Form
from train.compare.results import _entropy_model_flops


def test_two_models_of_one_name(tmp_path, monkeypatch):
    """Their shard sets would lie in one place: the second is refused, not given the first's."""
    (tmp_path / "model" / "train").mkdir(parents=True)
    (tmp_path / "model" / "train" / "manifest.json").touch()
    made = SimpleNamespace(manifest={"configuration": {"entropy_model": "/one/model"}})
    monkeypatch.setattr(module, "open_shards", lambda url: made)
    module._patch(Data(tmp_path), "/one/model", "train", (), Console(quiet=True))
    with pytest.raises(ConfigError, match=r"/other/model: .* was made with /one/model; give"):
        module._patch(Data(tmp_path), "/other/model", "train", (), Console(quiet=True))


def test_own_text_is_held_out_by_whole_documents(tmp_path):
    form = Form("debug", 1e9, 256, 2, corpus_bytes=300_000, held_out_bytes=30_000)
    paths = own_text(tmp_path, form, Console(quiet=True))
    lines = {part: path.read_text().splitlines() for part, path in paths.items()}
    assert len(lines[CLEAN]) >= module.HELD_OUT_DOCUMENTS
    assert not set(lines[CLEAN]) & set(lines["train"])
    sizes = {part: path.stat().st_size for part, path in paths.items()}
    assert 30_000 <= sizes[CLEAN] < 45_000 and sizes["train"] >= 300_000
    again = own_text(tmp_path / "again", form, Console(quiet=True))
    assert [path.read_bytes() for path in again.values()] == [
        path.read_bytes() for path in paths.values()
    ]


def test_too_little_text_is_said(tmp_path):
    console = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    form = Form("debug", 1e9, 256, 2, corpus_bytes=10**9, held_out_bytes=30_000)
    own_text(tmp_path, form, console)
    assert (
        "MB of text to train on, fewer than 1000; runs read it more than" in console.export_text()
    )


def test_what_an_entropy_model_costs_is_none_where_shards_do_not_say_it(tmp_path):
    data = Data(tmp_path)
    write_shards(data.shards("adopted", "train"), [b"text"])
    blt = Arm("a", "a", "blt", entropy_model="adopted", patch_size=4.5)
    static = replace(blt, rule="static")
    costs = [_entropy_model_flops(SimpleNamespace(arm=arm), data) for arm in (blt, static)]
    assert costs == [None, 0.0]
