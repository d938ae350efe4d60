"""Every layout, from every place; what is wrong with a checkpoint is said, and its code not run."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support import loopback_hub
from support.loopback_hub import load_from_hub
from support.weights import Malicious
from torch import Tensor
from transformers.models.blt import configuration_blt as blt
from transformers.models.blt.modeling_blt import BltForCausalLM

from model import (
    EntropyModel,
    EntropyModelConfig,
    NGramEntropyModel,
    load_entropy_model,
    save_entropy_model,
)
from model.checkpoints.entropy_model import (
    FIRST_ARGUMENTS,
    CheckpointError,
    fingerprint,
    holds_entropy_model_alone,
)
from model.checkpoints.files import INDEX_FILE

ARGS = {"dim": 32, "n_layers": 2, "n_heads": 2, "max_seqlen": 512, "vocab_size": 260}
PARAMS = {**ARGS, "ffn_dim_multiplier": 1.0}
TOKENS = torch.randint(4, 260, (2, 700), generator=torch.Generator().manual_seed(0))
"""Longer than the context."""

Weights = dict[str, Tensor]
Write = Callable[[Path, dict[str, Any], Weights], None]


@pytest.fixture(scope="module")
def tiny() -> EntropyModel:
    torch.manual_seed(3)
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, context_length=512)
    model = EntropyModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.rand(parameter.shape) * 4)
    assert config.hidden_dim == 256
    return model


def consolidated(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    params = {"entropy_model": args, "model": {"unrelated": 1}, "seed": 7}
    (directory / "params.json").write_text(json.dumps(params))
    torch.save({"model": weights, "step": 3}, directory / "consolidated.pth")


def hub_layout(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    (directory / "config.json").write_text(json.dumps({"args": args}))
    save_file(weights, directory / "model.safetensors")


def own(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    model = EntropyModel(EntropyModelConfig(dim=32, n_layers=2, n_heads=2, context_length=512))
    save_entropy_model(model, directory)
    save_file(weights, directory / "model.safetensors")


LAYOUTS = [own, consolidated, hub_layout]


@pytest.mark.parametrize("write", LAYOUTS)
def test_layouts(tiny, tmp_path, write: Write):
    write(tmp_path, PARAMS, tiny.state_dict())
    loaded = load_entropy_model(tmp_path, device="cpu")
    assert loaded.config == tiny.config
    assert torch.equal(loaded.entropies(TOKENS), tiny.entropies(TOKENS))
    assert fingerprint(loaded) == fingerprint(tiny)
    assert not loaded.training


def test_published_arguments_and_what_may_be_ignored(tiny, tmp_path):
    harmless = {"attn_impl": "sdpa", "attn_bias_type": "causal", "sliding_window": 512, "seed": 42}
    off = {"weight_tying": False, "dropout": 0.0, "n_kv_heads": None, "head_dim": 16}
    extra = {"freqs_cis": torch.ones(8, 2), "rope_embeddings.freqs_cis": torch.ones(8, 2)}
    consolidated(tmp_path, {**PARAMS, **harmless, **off}, {**tiny.state_dict(), **extra})
    assert torch.equal(load_entropy_model(tmp_path).entropies(TOKENS), tiny.entropies(TOKENS))
    begun = {"init_std_factor": "current_depth", "init_base_std": 0.02}
    chosen = {"rope_theta": 500.0, "norm_eps": 1e-6, **begun}
    consolidated(tmp_path, {**PARAMS, **chosen}, tiny.state_dict())
    assert load_entropy_model(tmp_path).config == replace(tiny.config, **chosen)


@torch.no_grad()
def test_patcher_of_a_whole_transformers_blt(tmp_path):
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    small["intermediate_size"] = 64
    config = blt.BltConfig(
        encoder_hash_byte_group_vocab=50,
        patcher_config={**small, "hidden_size": 64, "num_hidden_layers": 2},
        encoder_config={**small, "hidden_size_global": 64},
        decoder_config={**small, "hidden_size_global": 64},
        global_config={**small, "hidden_size": 64},
    )
    whole = BltForCausalLM(config).eval()
    whole.model.patcher.lm_head.weight.mul_(20)
    whole.save_pretrained(tmp_path)
    expected, _, _ = whole.model.patcher(TOKENS, use_cache=False)
    assert expected.std() > 0.1
    h = load_entropy_model(tmp_path, device="cpu").entropies(TOKENS)
    torch.testing.assert_close(h, expected, rtol=0, atol=1e-4)


def test_a_published_training_of_an_entropy_model_is_told(tmp_path):
    def alone(**params: Any) -> bool:
        (tmp_path / "params.json").write_text(json.dumps(params))
        return holds_entropy_model_alone(tmp_path)

    blt_args = {"dim_global": 64}
    for model in ({}, {"model": None}, {"model": {}}):
        assert alone(entropy_model=PARAMS, **model)
    assert alone(entropy_model=PARAMS, model=blt_args, train_entropy_model=True)
    assert not alone(entropy_model=PARAMS, model=blt_args, train_entropy_model=False)
    assert not alone(entropy_model=None, model=blt_args)


@pytest.mark.parametrize("layout", ["own", "published", "transformers"])
def test_weights_as_other_programs_keep_them_are_written(tiny, tmp_path, layout):
    """Both tables are one, matrices are views, as in files of pickles."""
    stored = {
        name: w.T.contiguous().T if w.dim() == 2 else w for name, w in tiny.state_dict().items()
    }
    stored["output.weight"] = stored["tok_embeddings.weight"]
    consolidated(tmp_path, PARAMS, stored)
    read = load_entropy_model(tmp_path, device="cpu", dtype="stored")
    save_entropy_model(read, tmp_path / "written", layout=layout)
    assert fingerprint(load_entropy_model(tmp_path / "written", device="cpu")) == fingerprint(read)


def test_url(tiny, tmp_path, monkeypatch):
    save_entropy_model(tiny, tmp_path / "saved")
    fsspec.filesystem("memory").put(str(tmp_path / "saved"), "/bucket/model", recursive=True)
    loaded = load_entropy_model("memory://bucket/model")
    assert fingerprint(loaded) == fingerprint(tiny)
    for url in ("memory://bucket/missing", "nosuchprotocol://bucket/model"):
        with pytest.raises(CheckpointError, match=url.partition(":")[0]):
            load_entropy_model(url)

    class NoCredentialsError(Exception):
        """As libraries of object stores have it: no OSError."""

    def find(path, maxdepth):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(fsspec.filesystem("memory"), "find", find)
    with pytest.raises(CheckpointError, match=r"in memory://bucket/model: Unable to locate"):
        load_entropy_model("memory://bucket/model")


def test_fingerprint_tells_models_apart(tiny, ngram_model, tmp_path):
    changed, other_window = EntropyModel(tiny.config), EntropyModel(replace(tiny.config, window=9))
    for model in (changed, other_window):
        model.load_state_dict(tiny.state_dict())
    assert fingerprint(changed) == fingerprint(tiny) != fingerprint(other_window)
    otherwise_begun = EntropyModel(replace(tiny.config, init_std_factor="global_depth"))
    otherwise_begun.load_state_dict(tiny.state_dict())
    assert fingerprint(otherwise_begun) == fingerprint(tiny)
    with torch.no_grad():
        changed.layers[1].ffn_norm.weight[5] += 1e-6
    assert fingerprint(changed) != fingerprint(tiny)
    save_entropy_model(ngram_model, tmp_path)
    assert fingerprint(load_entropy_model(tmp_path)) == fingerprint(ngram_model)


def test_a_fingerprint_is_of_content_and_stays(tiny, tmp_path):
    """Manifests of earlier releases hold it: the same weights have to have it for ever."""
    counted = EntropyModel(tiny.config)
    with torch.no_grad():
        for parameter in counted.parameters():
            parameter.copy_(torch.arange(parameter.numel()).view(parameter.shape) / 64)
    assert fingerprint(counted).startswith("36be564778b5336c272b315eb3e499f6")
    tables = NGramEntropyModel(np.arange(6, dtype=np.float16), {3: np.arange(4)})
    assert fingerprint(tables).startswith("ff17f54e945968f3fc64f4b517bd59f5")
    # The same numbers in another dtype are the same model, rounded ones are not.
    rounded = EntropyModel(tiny.config)
    rounded.load_state_dict(tiny.state_dict())
    rounded.to(torch.bfloat16)
    save_entropy_model(rounded, tmp_path)
    for dtype in ("stored", torch.float32):
        loaded = load_entropy_model(tmp_path, device="cpu", dtype=dtype)
        assert fingerprint(loaded) == fingerprint(rounded) != fingerprint(tiny)
    # Some files say 10000 where others say 10000.0.
    same = EntropyModel(replace(tiny.config, rope_theta=int(tiny.config.rope_theta)))
    same.load_state_dict(tiny.state_dict())
    assert fingerprint(same) == fingerprint(tiny)


def test_an_argument_of_a_later_release_counts_where_it_is_given(tiny, monkeypatch):
    before = fingerprint(tiny)
    first = tuple(name for name in FIRST_ARGUMENTS if name != "norm_eps")
    monkeypatch.setattr("model.checkpoints.entropy_model.FIRST_ARGUMENTS", first)
    without = fingerprint(tiny)  # as if norm_eps were new: its default is left out
    other = EntropyModel(replace(tiny.config, norm_eps=1e-6))
    other.load_state_dict(tiny.state_dict())
    assert len({before, without, fingerprint(other)}) == 3


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_code_in_a_pickle_is_not_run(tiny, tmp_path, save):
    target = tmp_path / "owned"
    consolidated(tmp_path, PARAMS, {})
    save({"model": tiny.state_dict(), "x": Malicious(target)}, tmp_path / "consolidated.pth")
    with pytest.raises(CheckpointError, match=r"holds code, which is never run|no whole file"):
        load_entropy_model(tmp_path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))
    assert target.exists()  # so it would have shown


@pytest.mark.parametrize("write", LAYOUTS)
def test_weights_that_do_not_fit(tiny, tmp_path, write: Write):
    name = "layers.1.attention.wk.weight"
    good = tiny.state_dict()
    for weights, message in (
        ({k: w for k, w in good.items() if k != name}, f"lacks weights: {name}"),
        ({**good, "layers.2.x.weight": torch.ones(1)}, "unknown weights: layers.2.x.weight"),
        ({**good, name: torch.ones(32, 16)}, rf"{name} has shape \(32, 16\).*\(32, 32\)"),
        ({**good, name: good[name].int()}, f"{name} has dtype torch.int32"),
    ):
        for path in tmp_path.iterdir():
            path.unlink()
        write(tmp_path, PARAMS, weights)
        with pytest.raises(CheckpointError, match=message):
            load_entropy_model(tmp_path)


@pytest.mark.parametrize(
    ("theirs", "more", "message"),
    [
        (False, {"weight_tying": True}, "weight_tying=True is not supported"),
        (False, {"qk_norm": "l2"}, "qk_norm='l2' is not supported"),
        (False, {"head_dim": 8}, "head_dim: 8 times 2 heads is not dim 32"),
        (False, {"n_heads": 3}, "n_heads: 3 heads do not divide"),
        (False, {"dim": "32"}, "dim: '32' is no number"),
        (False, {"n_kv_heads": []}, r"n_kv_heads: \[\] is no whole number"),
        (False, {"init_base_std": "0.1"}, "init_base_std: '0.1' is no number"),
        (True, {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' is not supported"),
        (True, {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        (True, {"head_dim": 8}, "head_dim=8 is not supported"),
        (True, {"num_attention_heads": 3}, "n_heads: 3 heads do not divide"),
        (True, {"num_attention_heads": None}, "n_heads: None is no whole number"),
        (True, {"num_key_value_heads": "2"}, "n_kv_heads: '2' is no whole number"),
        (True, {"intermediate_size": 256.0}, "hidden_dim: 256.0 is no whole number"),
    ],
)
def test_arguments_that_are_refused(tiny, tmp_path, theirs, more, message):
    hub_layout(tmp_path, {**PARAMS, **more}, tiny.state_dict())
    if theirs:
        config = {"hidden_size": 32, "num_attention_heads": 2, **more}
        (tmp_path / "config.json").write_text(json.dumps({"patcher_config": config}))
    with pytest.raises(CheckpointError, match=message):
        load_entropy_model(tmp_path)


def test_files_that_cannot_be_read(tiny, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_entropy_model(tmp_path)

    refused("no entropy model in a known layout")
    (tmp_path / ".metadata").touch()
    refused("is a step of a training; python jobs/convert_checkpoint.py")
    (tmp_path / ".metadata").unlink()
    (tmp_path / "params.json").write_text('{"model": {}}')
    refused("no key 'entropy_model'")
    consolidated(tmp_path, PARAMS, tiny.state_dict())
    pth = tmp_path / "consolidated.pth"
    whole = pth.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:100], b"", b"no pickle"):
        pth.write_bytes(broken)
        refused("consolidated.pth: is no whole file of torch.save; copy or download it again")
    for other in ({"weights": {}}, {"model": {"a": 1}}, {"model": [1]}, torch.zeros(3), [1]):
        torch.save(other, pth)
        refused("consolidated.pth: has no weights by their names under the key 'model'")
    pth.unlink()
    refused("consolidated.pth")

    save_entropy_model(tiny, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole = weights.read_bytes()
    for kept in (len(whole) - 1, 1000, 4, 0):
        weights.write_bytes(whole[:kept])
        refused("model.safetensors: is no whole safetensors file")
    weights.unlink()
    refused("no .safetensors file$")
    (tmp_path / "pytorch_model.bin").touch()
    refused("no .safetensors file; pytorch_model.bin is a pickle: save the model anew")
    weights.write_bytes(whole)
    good = json.loads(config.read_text())
    config.write_text(json.dumps({**good, "experts": 8}))
    refused("unknown argument 'experts'")
    for text in ("{", "[]"):
        config.write_text(text)
        refused(str(tmp_path))
    # torch takes an epsilon of its own for none.
    odd = ({"norm_eps": "1e-5"}, {"norm_eps": None}, {"rope_theta": None})
    for wrong in (*odd, {"n_layers": True}, {"window": 2.5}):
        config.write_text(json.dumps({**good, **wrong}))
        refused(f"{next(iter(wrong))}: .* is no (whole )?number")
    config.write_text(json.dumps({k: v for k, v in good.items() if k != "rope_theta"}))
    refused("config.json: lacks rope_theta; restore it from a copy")
    config.write_text(json.dumps({**good, "format": "blt-titan/blt/1"}))
    refused("format 'blt-titan/blt/1' is not that of an entropy model")
    config.write_text(json.dumps(good))
    for index in ([1], {"a": 1}, "x"):
        (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": index}))
        refused("its weight_map does not name a file for each weight")


def test_missing_directory(tmp_path, monkeypatch):
    for missing in (tmp_path / "missing", "./missing/model", "missing", "~/missing", "a/b/c"):
        with pytest.raises(CheckpointError, match="no such directory, and not a hub id"):
            load_entropy_model(missing)
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").touch()
    with pytest.raises(CheckpointError, match=r"^model/config.json: is a file; give the directory"):
        load_entropy_model("model/config.json")


@pytest.mark.slow
def test_hub(tiny, tmp_path):
    imports = "from model.checkpoints.entropy_model import fingerprint, load_entropy_model"
    expression = "fingerprint(load_entropy_model(source, device='cpu'))"
    with loopback_hub.serve() as hub:
        hub.publish_models(
            tmp_path / "files", lambda files: hub_layout(files, PARAMS, tiny.state_dict())
        )
        names = ["someone/model", "gated/listed", "gated/closed", "no/such", "drops/it"]
        sources = ["hf://someone/model", *names]
        answers = load_from_hub(hub, tmp_path / "home", sources, imports, expression)
    loaded, again, listed, closed, missing, dropped = answers
    assert loaded == again == fingerprint(tiny)
    for name, message in (("gated/listed", listed), ("gated/closed", closed)):
        assert message.startswith(f"{name} is gated: accept its licence")
        assert "HF_TOKEN" in message
    assert missing.startswith("no/such: no such directory, and no such model on the hub")
    assert dropped.startswith("drops/it: cannot be downloaded from the hub")
    assert hub.asked("model.safetensors") and not hub.asked("photo")
    # Nobody listens there any more. What was fetched before is still there.
    sources = ["other/model", "someone/model"]
    away, kept = load_from_hub(hub, tmp_path / "home", sources, imports, expression)
    assert away.startswith("other/model: cannot be downloaded from the hub")
    assert kept == fingerprint(tiny)
