"""Byte models in plain PyTorch: tokens, patches, entropy models and their checkpoints."""

from model.checkpoint import load_entropy_model, save_entropy_model
from model.entropy_model import EntropyModel, EntropyModelConfig
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import ByteTokenizer

__all__ = [
    "ByteTokenizer",
    "EntropyModel",
    "EntropyModelConfig",
    "NGramEntropyModel",
    "Patcher",
    "load_entropy_model",
    "save_entropy_model",
]
