"""Byte models in plain PyTorch: tokens, patches, entropy models, BLT, and their checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.blt import BLT
    from model.blt_config import BLT_SIZES, BLTConfig
    from model.checkpoints.blt import load_blt, save_blt
    from model.checkpoints.entropy_model import load_entropy_model, save_entropy_model
    from model.conv_entropy_model import ConvEntropyConfig, ConvEntropyModel
    from model.entropy_model import EntropyModel
    from model.entropy_model_config import EntropyModelConfig
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
    "BLT": ".blt",
    "BLT_SIZES": ".blt_config",
    "BLTConfig": ".blt_config",
    "ByteTokenizer": ".tokenizer",
    "ConvEntropyConfig": ".conv_entropy_model",
    "ConvEntropyModel": ".conv_entropy_model",
    "EntropyModel": ".entropy_model",
    "EntropyModelConfig": ".entropy_model_config",
    "NGramEntropyModel": ".ngram",
    "Patcher": ".patcher",
    "flops_per_byte": ".flops",
    "generate": ".generation.generate",
    "load_blt": ".checkpoints.blt",
    "load_entropy_model": ".checkpoints.entropy_model",
    "save_blt": ".checkpoints.blt",
    "save_entropy_model": ".checkpoints.entropy_model",
}


def __getattr__(name: str) -> Any:
    # Models bring torch along, which takes a second: commands that read flags do without.
    if name in _MODULES:
        value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
