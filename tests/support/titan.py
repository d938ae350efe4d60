"""torchtitan's checkpoint manager on a CPU, around models that are not built by it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torchtitan.tools.utils

from support.weights import sharpen

torchtitan.tools.utils.device_type = "cpu"
torchtitan.tools.utils.device_module = torch.cpu

from model import (
    BLT,
    BLTConfig,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    save_blt,
    save_entropy_model,
)
from model.checkpoints.blt_published import to_published_args
from model.checkpoints.entropy_layouts import to_published_args as entropy_model_args
from train.checkpoints.manager import Checkpointer
from train.checkpoints.state_dict_adapter import WeightsAdapter

SHAPES = {
    "blt": BLTConfig(
        dim_local=16,
        n_heads_local_encoder=2,
        n_layers_local_decoder=2,
        n_heads_local_decoder=2,
        hidden_dim_local_encoder=32,
        hidden_dim_local_decoder=32,
        n_layers_global=2,
        n_heads_global=2,
        hidden_dim_global=48,
        cross_attn_nheads=2,
        encoder_hash_byte_group_vocab=61,
        encoder_hash_byte_group_size=(3, 5),
        encoder_hash_byte_group_nb_functions=2,
        dim_global=24,
        rope_theta=1000.0,
        patcher=Patcher(1.5),
    ),
    "entropy": EntropyModelConfig(
        dim=30, n_layers=2, n_heads=3, hidden_dim=71, context_length=300, rope_theta=500.0
    ),
}
LAYOUTS = ("own", "transformers", "published", "consolidated")
TOKENS = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([[1, 3, 7, 1, 20, 9], [1, 40, 0, 0, 0, 0]])

Model = BLT | EntropyModel


def trained(kind: str) -> Model:
    """Weights to be found again."""
    torch.manual_seed(1)
    model = (BLT if kind == "blt" else EntropyModel)(SHAPES[kind]).eval()
    sharpen(model, 2)
    return model


def fresh(shape: Any) -> Model:
    """A model that is about to be trained."""
    torch.manual_seed(9)
    return (EntropyModel if isinstance(shape, EntropyModelConfig) else BLT)(shape)


def write(model: Model, directory: Path, layout: str) -> None:
    """In a layout that can be read; the consolidated one cannot be written by us."""
    if layout != "consolidated":
        save = save_blt if isinstance(model, BLT) else save_entropy_model
        save(model, directory, layout=layout)
        return
    is_blt = isinstance(model, BLT)
    args = to_published_args(model.config) if is_blt else entropy_model_args(model.config)
    directory.mkdir(exist_ok=True)
    params = {"model" if is_blt else "entropy_model": args}
    (directory / "params.json").write_text(json.dumps(params))
    torch.save({"model": model.state_dict()}, directory / "consolidated.pth")


def manager(model: Any, shape: Any, outputs: Path, **config: Any) -> Checkpointer:
    """Of a run that saves below ``outputs``."""
    return Checkpointer(
        Checkpointer.Config(enable=True, keep_latest_k=0, **config),
        dataloader=None,
        model_parts=[model],
        optimizers=None,
        lr_schedulers=None,
        states={},
        sd_adapter=WeightsAdapter(SimpleNamespace(shape=shape), None),
        base_folder=str(outputs),
    )


def load(source: Path, shape: Any, outputs: Path) -> Model:
    """The model with which training on from ``source`` begins."""
    model = fresh(shape)
    loading = {"initial_load_path": str(source), "initial_load_in_hf": True}
    assert manager(model, shape, outputs, **loading).load()
    return model.eval()


@torch.no_grad()
def output(model: Any) -> torch.Tensor:
    """What tells models apart, also sharded ones: logits."""
    if hasattr(model, "local_decoder"):
        return model(TOKENS, LENGTHS)
    lengths_S = torch.tensor([TOKENS.shape[1]] * len(TOKENS))
    return model.logits_packed(TOKENS.flatten(), lengths_S)
