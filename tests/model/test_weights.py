"""The entropy model that comes with the package."""

import math

import torch
import torch.nn.functional as F
from support.texts import topics

from model import ByteTokenizer, ConvEntropyModel, EntropyModel, load_entropy_model
from model.checkpoints.names import BUILT_IN


def test_it_predicts_text_that_it_was_not_trained_on():
    model = load_entropy_model(BUILT_IN, device="cpu")
    assert isinstance(model, EntropyModel)
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 1_300_000
    rows = [ByteTokenizer().encode(text)[:1000] for _, text in topics() if len(text) > 1000][:8]
    tokens_BS = torch.tensor(rows)
    with torch.no_grad():
        logits_BSV = model(tokens_BS)
    loss = F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())
    assert loss.item() / math.log(2) < 2.6
    # Words that are begun are sure to go on: the entropy tells where they end.
    text = "the function returns the number of elements"
    h = model.entropies(torch.tensor([ByteTokenizer().encode(text)]))[0]
    after_space = h[[i + 1 for i, letter in enumerate(text) if letter == " "]]
    assert after_space.mean() > 1.5 * h.mean()


def test_the_cheap_one_agrees_with_its_teacher():
    student = load_entropy_model("entropy-conv")
    assert isinstance(student, ConvEntropyModel)
    rows = [ByteTokenizer().encode(text)[:1000] for _, text in topics() if len(text) > 1000][8:12]
    tokens_BS = torch.tensor(rows)
    teacher = load_entropy_model(BUILT_IN, device="cpu")
    pair = [model.entropies(tokens_BS).flatten() for model in (student, teacher)]
    assert torch.corrcoef(torch.stack(pair))[0, 1] > 0.8


def test_a_directory_of_that_name_comes_first(tmp_path, monkeypatch, small_model_directory):
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUILT_IN).symlink_to(small_model_directory)
    assert load_entropy_model(BUILT_IN, device="cpu").config.dim == 32
