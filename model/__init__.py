"""Byte models in plain PyTorch: tokens, patches, entropy models, BLT, and their checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.blt import BLT
    from model.blt_config import BLT_SIZES, BLTConfig
    from model.checkpoints.blt import load_blt, save_blt
    from model.checkpoints.entropy_model import load_entropy_model, save_entropy_model
    from model.conv_entropy_model import ConvEntropyConfig, ConvEntropyModel
    from model.entropy_model import EntropyModel, EntropyModelConfig
    from model.flops import flops_per_byte
    from model.generation.generate import generate
    from model.ngram import NGramEntropyModel
    from model.patcher import Patcher
    from model.tokenizer import ByteTokenizer

__all__ = [
    "BLT",
    "BLT_SIZES",
    "BLTConfig",
    "ByteTokenizer",
    "ConvEntropyConfig",
    "ConvEntropyModel",
    "EntropyModel",
    "EntropyModelConfig",
    "NGramEntropyModel",
    "Patcher",
    "flops_per_byte",
    "generate",
    "load_blt",
    "load_entropy_model",
    "save_blt",
    "save_entropy_model",
]
_MODULES = {
    "BLT": "model.blt",
    "BLT_SIZES": "model.blt_config",
    "BLTConfig": "model.blt_config",
    "ByteTokenizer": "model.tokenizer",
    "ConvEntropyConfig": "model.conv_entropy_model",
    "ConvEntropyModel": "model.conv_entropy_model",
    "EntropyModel": "model.entropy_model",
    "EntropyModelConfig": "model.entropy_model",
    "NGramEntropyModel": "model.ngram",
    "Patcher": "model.patcher",
    "flops_per_byte": "model.flops",
    "generate": "model.generation.generate",
    "load_blt": "model.checkpoints.blt",
    "load_entropy_model": "model.checkpoints.entropy_model",
    "save_blt": "model.checkpoints.blt",
    "save_entropy_model": "model.checkpoints.entropy_model",
}


def __getattr__(name: str) -> Any:
    # Models bring torch along, which takes a second: commands that read flags do without.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
