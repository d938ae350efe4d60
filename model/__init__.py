"""Byte models in plain PyTorch: tokens, patches, entropy models, BLT, and their checkpoints."""

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
