"""The tokenizer of bytes as transformers reads it: ``tokenizer.json`` beside a BLT's weights.

transformers has no class for it. A BPE without merges, whose alphabet is the 256 bytes, gives the
ids of :class:`model.tokenizer.ByteTokenizer`. Vocabularies of BPEs are text: a byte stands there as
a letter, itself where it can be seen, and else the next free one from U+0100 on.
"""

import json
from pathlib import Path

from model.checkpoints.files import JsonObject
from model.tokenizer import BOE_ID, BOS_ID, BPE_ID, BYTE_OFFSET, EOS_ID

SPECIAL = {"boe": BOE_ID, "bos": BOS_ID, "eos": EOS_ID, "bpe": BPE_ID}
"""Ids that stand for no byte, by what transformers' tokenizer calls them: ``<|blt_titan_bos|>``."""


def special_token(name: str) -> str:
    """The name of an id of SPECIAL for transformers' tokenizer."""
    return f"<|blt_titan_{name}|>"


def save_byte_tokenizer(target: Path) -> None:
    """Write the files by which ``AutoTokenizer.from_pretrained`` makes ids of text, BOS first."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": special_token(name), **flags, "special": True}
        for name, number in SPECIAL.items()
    ]
    # Only what is in the vocabulary, too, keeps its id.
    vocabulary = {special_token(name): number for name, number in SPECIAL.items()}
    vocabulary |= {letter: BYTE_OFFSET + byte for byte, letter in enumerate(_letters())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": begin_with(special_token("bos"), BOS_ID),
        "decoder": {**byte_level, "use_regex": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special_token("bos"),
        "eos_token": special_token("eos"),
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("tokenizer.json", definition), ("tokenizer_config.json", config)):
        (target / name).write_text(json.dumps(content, indent=2) + "\n")


def begin_with(token: str, number: int) -> JsonObject:
    """The part of a ``tokenizer.json`` that puts a special token before each text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _letters() -> list[str]:
    """The letter of each byte."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]
