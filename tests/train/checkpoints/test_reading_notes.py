"""Notes about programs that read a converted model otherwise than this project."""

import random
from dataclasses import replace

import pytest
import torch
from support.blt_cases import sharp_blt, tiny
from support.weights import sharpen
from transformers.models.blt.modeling_blt import BltForCausalLM

from model import BLTConfig, EntropyModel, EntropyModelConfig, Patcher, save_blt
from model.provenance import EntropyModelIdentity, PatchProvenance
from train.convert.job import reading_notes

LIMITED = tiny(patcher=Patcher(5.0, max_patch_length=100))
RESETS = PatchProvenance(Patcher(5.0), EntropyModelIdentity(reset_at_newline=True))


@pytest.mark.parametrize(
    ("shape", "layout", "words"),
    [
        (LIMITED, "own", []),
        (LIMITED, "published", ["hash_across_documents True"]),
        (LIMITED, "transformers", ["hash_across_documents True", "max_patch_length is set"]),
        (tiny(patcher=Patcher(5.0)), "transformers", ["hash_across_documents True"]),
        (
            replace(tiny(hash_across_documents=True), patch_provenance=(RESETS,)),
            "transformers",
            ["after a newline"],
        ),
    ],
)
def test_each_difference_has_a_note(shape: BLTConfig, layout, words):
    notes = list(reading_notes(shape, layout))
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


@torch.no_grad()
def test_transformers_forgets_the_next_patch_where_a_limit_is_set(tmp_path):
    """If a release of transformers mends it, the note is to go."""
    torch.manual_seed(0)
    entropy_model = EntropyModel(EntropyModelConfig(dim=32, n_layers=1, n_heads=4, hidden_dim=64))
    sharpen(entropy_model.eval(), 2)
    ours = sharp_blt(LIMITED)
    save_blt(ours, tmp_path, layout="transformers", entropy_model=entropy_model)
    theirs = BltForCausalLM.from_pretrained(tmp_path).eval()
    rng, differ = random.Random(0), 0
    for _ in range(12):
        tokens = torch.tensor([[1, *rng.choices(range(4, 260), k=20)]])
        h = entropy_model.entropies(tokens)
        lengths = Patcher(5.0, max_patch_length=100).patch_lengths(h, include_next_token=True)
        apart = (theirs(tokens, use_cache=False).logits - ours(tokens, lengths)).abs().amax(-1)[0]
        assert apart[:-1].max() < 1e-3
        differ += bool(apart[-1] > 1e-3)
        given = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
        torch.testing.assert_close(given, ours(tokens, lengths), rtol=0, atol=1e-3)
    assert differ
