"""A training that begins with a Llama's blocks: loading, on any number of ranks, and the record."""

import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import llamas, loopback_hub, titan
from support.fake_ranks import fake_ranks
from support.llamas import PLAIN, SHAPE, save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torchtitan.tools.logging import logger

from model import BLT, BLTConfig, save_blt
from model.checkpoints.files import CheckpointError
from model.checkpoints.llama import BLOCKS, is_token_model, latent_origin, latent_values
from train.checkpoints import hub
from train.checkpoints.manager import Checkpointer
from train.checkpoints.model_json import (
    model_description,
    read_model_description,
    write_model_description,
)
from train.checkpoints.shape_file import read_shape_file
from train.checkpoints.state_dict_adapter import WeightsAdapter
from train.config_registry import LLAMA_3_1_8B

PAIR = [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
"""transformers' rows in our order, in a head of 12 features."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in several files, in bfloat16."""
    llama = llamas.llama().bfloat16()
    return save(llama, tmp_path_factory.mktemp("llama"), max_shard_size="40KB")


def blocks(rope: dict = llamas.SCALED) -> dict[str, torch.Tensor]:
    """The blocks that a BLT begins with, written out."""
    named = {
        **{f"self_attn.{x}_proj": f"attention.w{x}" for x in "qkvo"},
        **{"mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2"},
        **{"mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm"},
        "post_attention_layernorm": "ffn_norm",
    }
    found = {}
    for name, weight in llamas.llama(rope=rope).bfloat16().model.layers.state_dict().items():
        layer, _, rest = name.removesuffix(".weight").partition(".")
        if rest.endswith(("q_proj", "k_proj")):
            weight = torch.cat([head[PAIR] for head in weight.split(12)])
        found[f"{BLOCKS}{layer}.{named[rest]}.weight"] = weight.float()
    return found


def test_blocks_are_the_llamas_and_the_rest_is_new(directory, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger=logger.name):
        begun = titan.load(directory, SHAPE, tmp_path).state_dict()
    new = titan.fresh(SHAPE).state_dict()
    expected = new | blocks()
    assert len(expected) == len(new)
    assert all(torch.equal(begun[name], weight) for name, weight in expected.items())
    number = sum(weight.numel() for weight in blocks().values())
    assert f"begins with 27 weights of {directory}, {number:,} parameters. Left" in caplog.text
    assert "embed_tokens.weight (300, 48), lm_head.weight (300, 48), norm" in caplog.text


def of_rank(weight: torch.Tensor, mesh: object) -> DTensor:
    return distribute_tensor(torch.zeros_like(weight), mesh, [Shard(0)], src_data_rank=None)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("ranks", [5, 512])
def test_a_rank_reads_the_rows_that_it_holds(ranks, directory, monkeypatch):
    """5 ranks cut heads in the middle; of 512, most hold no row of a norm."""
    whole, copied, copy = blocks(), [], torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, source: copied.append(source.numel()) or copy(to, source)
    )
    for rank in {0, 1, ranks // 2, ranks - 1}:
        with fake_ranks(ranks, rank):
            mesh = init_device_mesh("cpu", (ranks,))
            state = {name: of_rank(weight, mesh) for name, weight in whole.items()}
            adapter = WeightsAdapter(SimpleNamespace(shape=SHAPE), None)
            reader = adapter.get_hf_storage_reader(str(directory))
            copied.clear()
            dcp.load(state, storage_reader=reader, no_dist=True)
            assert sum(copied) == sum(weight.to_local().numel() for weight in state.values())
            for name, weight in whole.items():
                expected = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
                assert torch.equal(state[name].to_local(), expected.to_local()), name


def test_llama_3_1_8b_and_earlier_forms_of_its_configuration():
    config = {
        "model_type": "llama",
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
        **{"num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05},
        "rope_scaling": {
            **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            **{"original_max_position_embeddings": 8192, "rope_type": "llama3"},
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    }
    assert latent_values(config) == LLAMA_3_1_8B
    assert latent_values({**config, "rope_scaling": None})["rope_scaling_global"] == ()
    assert is_token_model(config) and not is_token_model({"model_type": "blt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers_global": 2}, "n_layers_global is 3 there and 2 here; take their shape: --sh"),
        ({"n_kv_heads_global": 4}, "n_kv_heads_global is 2 there and 4 here"),
        ({"rope_theta": 500.0}, "rope_theta is 1000.0 there and 500.0 here"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-06 there and 1e-05 here"),
        ({"rope_scaling_global": (8.0, 1.0, 4.0, 64.0)}, "rope_scaling_global is .4.0, 1.0, 4.0"),
    ],
)
def test_another_shape_is_refused(change, message, directory, tmp_path):
    with pytest.raises(CheckpointError, match=f"{directory}: the latent .*: {message}"):
        titan.load(directory, replace(SHAPE, **change), tmp_path)


def test_scaling_is_left_out_on_request_only(directory, tmp_path, caplog):
    titan.load(directory, replace(SHAPE, rope_scaling_global=()), tmp_path)
    assert "its rotary positions are scaled, and those of the latent transformer are" in caplog.text
    plain = save(llamas.llama(rope=PLAIN), tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"rope_scaling_global is \(\) there and \(4.0"):
        titan.load(plain, SHAPE, tmp_path)


def test_the_shape_of_a_llama(directory):
    base = replace(titan.SHAPES["blt"], dim_local=64)
    expected = replace(base, **latent_values(json.loads((directory / "config.json").read_text())))
    assert read_shape_file(str(directory), base) == replace(expected, patcher=None)
    assert expected.hidden_dim_global == 512 and expected.rope_scaling_global
    with pytest.raises(CheckpointError, match="architectures: is no value of this model's shape"):
        read_shape_file(str(directory), titan.SHAPES["entropy"])


def test_flags_that_are_forgotten(directory, tmp_path):
    managing = titan.manager(BLT(SHAPE), SHAPE, tmp_path, initial_load_path=str(directory))
    with pytest.raises(CheckpointError, match=r"add --checkpoint\.initial-load-in-hf"):
        managing.load()
    other = tmp_path / "qwen"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "qwen2", "num_hidden_layers": 2}')
    with pytest.raises(CheckpointError, match="qwen: model_type='qwen2': a latent transformer can"):
        titan.load(other, SHAPE, tmp_path)


def described(folder: Path, initial: Path | None) -> BLTConfig:
    description = model_description(str(folder), SHAPE, initial=initial and str(initial))
    write_model_description(str(folder), description)
    shape = read_model_description(str(folder / "step-1"))
    assert isinstance(shape, BLTConfig)
    return shape


def test_model_json_says_what_the_latent_transformer_began_with(directory, tmp_path, caplog):
    origin = latent_origin(directory)
    assert described(tmp_path / "new", None).latent_origin is None
    begun = described(tmp_path / "run", directory)
    assert begun == replace(SHAPE, latent_origin=origin)
    assert "does not say which patches" not in caplog.text  # a model of tokens has none
    assert described(tmp_path / "run", directory).latent_origin == origin
    # A run that goes on needs the Llama no more, and a run on these weights knows them.
    (tmp_path / "run" / "step-1").mkdir()
    assert described(tmp_path / "run", tmp_path / "gone").latent_origin == origin
    assert described(tmp_path / "run", None).latent_origin == origin
    save_blt(BLT(begun), tmp_path / "blt")
    assert described(tmp_path / "next", tmp_path / "blt").latent_origin == origin
    # The shape alone is no reason to say so.
    assert read_shape_file(str(tmp_path / "blt"), SHAPE).latent_origin is None


def ask_hub(monkeypatch: pytest.MonkeyPatch, served: loopback_hub.Hub, cache: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_llama_on_the_hub(directory, tmp_path, monkeypatch):
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    files |= {"original/consolidated.00.pth": b"the same again", "README.md": b""}
    settings = {"initial_load_path": "hf://owner/a-llama", "initial_load_in_hf": True}
    with loopback_hub.serve() as served:
        ask_hub(monkeypatch, served, tmp_path / "cache")
        commit = served.publish("owner/a-llama", files, kind="model")
        model = titan.fresh(SHAPE)
        managing = titan.manager(model, SHAPE, tmp_path, **settings)
        assert managing.load()
        assert not served.asked("original|README")
        asked = len(served.requests)
        (tmp_path / "checkpoint" / "step-3").mkdir(parents=True)
        (tmp_path / "checkpoint" / "step-3" / ".metadata").touch()
        resumed = titan.manager(model, SHAPE, tmp_path, **settings)
        assert resumed.initial_load_path == "hf://owner/a-llama" and len(served.requests) == asked
    latent = blocks()
    assert all(torch.equal(model.state_dict()[name], latent[name]) for name in latent)
    assert managing.initial_load_path is not None
    origin = latent_origin(Path(managing.initial_load_path))
    assert (origin.source, origin.revision) == ("owner/a-llama", commit)
    with pytest.raises(ValueError, match="initial_load_in_hf is not supported with a remote"):
        Checkpointer.Config(initial_load_in_hf=True, initial_load_path="s3://bucket/llama")


class Ranks:
    """The collectives of ranks that are threads: two nodes of two ranks."""

    def __init__(self) -> None:
        self.barrier, self.values, self.here = threading.Barrier(4), {}, threading.local()
        self.dist = SimpleNamespace(
            is_initialized=lambda: True,
            get_rank=lambda: self.here.rank,
            get_world_size=lambda: 4,
            new_group=lambda **_: None,
            destroy_process_group=lambda _: None,
            all_gather_object=self.gather,
        )

    def gather(self, answers: list, value: object, group: None) -> None:
        self.values[self.here.rank] = value
        self.barrier.wait(10)
        answers[:] = [self.values[rank] for rank in range(4)]
        self.barrier.wait(10)

    def run(self, call) -> list:
        results: list = [None] * 4

        def of_rank(rank: int) -> None:
            self.here.rank = rank
            try:
                results[rank] = call()
            except CheckpointError as error:
                results[rank] = str(error)

        threads = [threading.Thread(target=of_rank, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return results


@pytest.mark.parametrize("broken", [None, 0, 2])
def test_a_node_downloads_once(broken, monkeypatch):
    ranks, asked = Ranks(), []

    def download(repository: str, *, revision: str | None, offline: bool) -> str:
        rank = ranks.here.rank
        asked.append((rank, repository, revision, offline))
        if rank == broken:
            raise CheckpointError(f"no disk on {rank}")
        return f"/node-{rank // 2}/snapshots/c0ffee"

    environment = SimpleNamespace(get=lambda name, _: str(ranks.here.rank % 2))
    monkeypatch.setattr(hub, "dist", ranks.dist)
    monkeypatch.setattr(hub, "os", SimpleNamespace(environ=environment))
    monkeypatch.setattr(hub, "download", download)
    found = ranks.run(lambda: hub.on_this_node("hf://owner/name@main"))
    first, second = (0, "owner/name", "main", False), (2, "owner/name", "c0ffee", False)
    if broken is None:
        assert found == [f"/node-{node}/snapshots/c0ffee" for node in (0, 0, 1, 1)]
        others = [(rank, "owner/name", "c0ffee", True) for rank in (1, 3)]
        assert asked[:2] == [first, second] and sorted(asked[2:]) == others
    else:  # on all ranks alike
        assert found == [f"--checkpoint.initial-load-path: no disk on {broken}"] * 4
        assert asked == [first, second][: 1 + broken // 2]
