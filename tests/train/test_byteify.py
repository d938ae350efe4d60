"""A BLT whose latent transformer begins with a Llama: trained on two ranks, resumed, exported."""

import shutil
from dataclasses import replace

import pytest
import torch
from support import llamas
from support.fake_ranks import fake_ranks, parallelized, with_weights
from support.llamas import save
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, digests, tiny, train
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import SelectiveAC

from model import BLTConfig, load_blt, save_blt
from model.checkpoints.llama import BLOCKS, latent_origin, read_latent
from pipeline.errors import ConfigError
from train.checkpoints.shape_file import read_shape_file
from train.checkpoints.steps import read_step
from train.config_registry import LLAMA_3_1_8B, blt_8b, blt_8b_from_llama3, blt_debug
from train.optimizer import BLTOptimizers, group_names


@pytest.mark.slow
def test_training_resuming_exporting(tmp_path):
    write_shards(str(tmp_path / "shards"), real_texts(20))
    llama = save(llamas.llama(), tmp_path / "llama", max_shard_size="200KB")
    shape_file = shutil.copy(llama / "config.json", tmp_path)
    origin, given = latent_origin(llama), blt_debug().model_spec.model.shape
    shape = read_shape_file(str(llama), given)
    assert isinstance(shape, BLTConfig)
    _, (weights, orders, _) = read_latent(llama, shape)
    blocks = {n: w[orders[n]] if n in orders else w.clone() for n, w in weights.items()}

    def run(steps: int, ranks: int):
        return train(
            tmp_path / "run",
            *tiny("blt_debug", tmp_path / "shards", rows=ROWS // 2, steps=steps),
            *("--checkpoint.initial-load-path", llama, "--checkpoint.initial-load-in-hf"),
            *("--shape.file", shape_file, "--optimizer.latent-lr-factor", 0.1),
            ranks=ranks,
        )

    begun = run(1, ranks=2)
    assert digests(blocks).items() <= begun.first_weights.items()
    rates = {name: value for name, value in begun.metrics[1].items() if name.startswith("lr/")}
    rate = rates["lr/AdamW/rest"]
    expected = {"lr/AdamW/latent": 0.1 * rate, "lr/AdamW/rest": rate, "lr/TableAdamW": rate}
    assert rate > 0 and rates == pytest.approx(expected)
    saved = read_step(str(tmp_path / "run" / "checkpoint" / "step-1"))
    after = saved.state_dict()
    # AdamW's first step moves what has a gradient by the learning rate.
    moved = max(float((after[name] - weight).abs().max()) for name, weight in blocks.items())
    assert 0.05 * rate < moved < 0.11 * rate * 2

    shutil.rmtree(llama)  # a run that goes on does not read it again
    resumed = run(2, ranks=1)
    assert resumed.first_weights == digests(after) and 2 in resumed.metrics
    model = read_step(str(tmp_path / "run" / "checkpoint" / "step-2"))
    assert model.config.latent_origin == origin and model.config.rope_scaling_global
    for layout in ("own", "transformers"):
        save_blt(model, tmp_path / layout, layout=layout)
        exported = load_blt(tmp_path / layout, device="cpu")
        assert digests(exported.state_dict()) == digests(model.state_dict())
        assert exported.config.latent_origin == origin
        assert exported.config.rope_scaling_global == model.config.rope_scaling_global


def test_groups_on_many_ranks():
    """The latent transformer, all others, and the tables, which have an optimizer of their own; the
    last with plain tables: one optimizer, and activation checkpointing's names."""
    for tables, ac in (("sharded", None), ("plain", SelectiveAC.Config())):
        config = blt_debug()
        config.parallelism.hash_tables, config.activation_checkpoint = tables, ac
        config.optimizer.latent_lr_factor, config.optimizer.implementation = 0.1, "foreach"
        with fake_ranks(4):
            model = with_weights(parallelized(config, 4))
            optimizers = config.optimizer.build(model_parts=[model])
            dims = ParallelDims.from_config(config.parallelism, 4)
            config.model_spec.post_optimizer_build_fn(optimizers, [model], dims)
            config.lr_scheduler.build(optimizers=optimizers, training_steps=10)
            assert sorted(group_names(optimizers).values()) == ["lr/AdamW/latent", "lr/AdamW/rest"]
            rates = {
                name: group["initial_lr"]
                for optimizer in optimizers
                for group in optimizer.param_groups
                for name in group["param_names"]
            }
        assert rates.keys() == {
            n.replace("_checkpoint_wrapped_module.", "") for n, _ in model.named_parameters()
        }
        for name, rate in rates.items():
            latent = name.startswith("global_transformer.")
            assert rate == pytest.approx(3e-4 if latent else 3e-3), name
        assert len(optimizers.optimizers) == (2 if tables == "sharded" else 1)


def test_blt_8b_from_llama3():
    config = blt_8b_from_llama3()
    shape, plain = (each.model_spec.model.shape for each in (config, blt_8b()))
    assert {name: getattr(shape, name) for name in LLAMA_3_1_8B} == LLAMA_3_1_8B
    assert (shape.dim_local, shape.cross_attn_k) == (plain.dim_local, plain.cross_attn_k)
    assert isinstance(config.optimizer, BLTOptimizers.Config)
    assert config.optimizer.latent_lr_factor == 0.1
    initial = config.checkpoint.initial_load_path
    assert (initial, config.checkpoint.initial_load_in_hf) == ("hf://meta-llama/Llama-3.1-8B", True)
    with pytest.raises(ConfigError, match=r"--checkpoint\.no-enable: the initial weights of"):
        replace(config, checkpoint=replace(config.checkpoint, enable=False))
    with torch.device("meta"):
        model = config.model_spec.model.build()
    blocks = [p for name, p in model.named_parameters() if name.startswith(BLOCKS)]
    assert sum(p.numel() for p in blocks) == 6_979_584_000
