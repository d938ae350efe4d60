"""A tiny BLT learns: after a few hundred steps it predicts unseen text better than n-grams do."""

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.texts import topics
from torch import Tensor

from model import BLT, BLT_SIZES, NGramEntropyModel, Patcher
from model.tokenizer import encode_documents

STEPS, ROWS, LENGTH, RATE = 250, 8, 128, 0.012
SHAPE = replace(
    BLT_SIZES["debug"],
    n_layers_local_decoder=1,
    n_layers_global=1,
    hidden_dim_local_encoder=128,
    hidden_dim_local_decoder=128,
    hidden_dim_global=256,
)


class NGrams:
    """Witten-Bell: what came after a context, mixed with what came after a shorter one."""

    def __init__(self, documents: list[list[int]], order: int):
        """``order``: tokens of context."""
        self.order, self.counts = order, {}
        for document in documents:
            for i, token in enumerate(document[1:], 1):
                for start in range(max(i - order, 0), i + 1):
                    self.counts.setdefault(tuple(document[start:i]), Counter())[token] += 1

    def probability(self, context: tuple[int, ...], token: int) -> float:
        shorter = self.probability(context[1:], token) if context else 1 / 260
        seen = self.counts.get(context)
        if not seen:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))

    def bits_per_byte(self, rows: list[list[int]]) -> float:
        bits = [
            -math.log2(self.probability(tuple(row[max(i - self.order, 0) : i]), row[i]))
            for row in rows
            for i in range(1, len(row))
        ]
        return sum(bits) / len(bits)


def draw_rows(documents: list[list[int]], rng: random.Random, rows: int) -> list[list[int]]:
    """BOS and the bytes from anywhere in a document; a byte is as likely as any other."""
    drawn = []
    for document in rng.choices(documents, list(map(len, documents)), k=rows):
        start = rng.randrange(1, len(document) - LENGTH)
        drawn.append([1, *document[start : start + LENGTH]])
    return drawn


def bits_per_byte(model: BLT, tokens: Tensor, lengths: Tensor) -> Tensor:
    logits = model(tokens[:, :-1], lengths)
    return F.cross_entropy(logits.mT, tokens[:, 1:]) / math.log(2)


@pytest.mark.slow
def test_learns_more_than_ngrams():
    """Measured on text that neither has seen: 4.6, 3.6 and 2.7 bits per byte with 0, 1 and 2 bytes
    of context, 2.4 the model."""
    rng = random.Random(0)
    texts = [text.encode() for _, text in topics() if len(text) > 2 * LENGTH]
    unseen, known = texts[::8], [text for i, text in enumerate(texts) if i % 8]
    documents = [[1, *(byte + 4 for byte in text), 2] for text in known]
    test_rows = draw_rows([[1, *(byte + 4 for byte in text), 2] for text in unseen], rng, 64)
    baselines = [NGrams(documents, order).bits_per_byte(test_rows) for order in (0, 1, 2)]
    assert 4 < baselines[0] < 5

    entropy_model = NGramEntropyModel.fit([encode_documents(known)], order=3)
    patcher = Patcher(1.5)

    def batch(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Patches cover the last token too, which is only predicted."""
        tokens = torch.tensor(rows)
        return tokens, patcher.patch_lengths(entropy_model.entropies(tokens))

    tokens, lengths = test_batch = batch(test_rows)
    assert 2 < tokens.numel() / (lengths > 0).sum() < 4  # bytes a patch
    torch.manual_seed(0)
    model = BLT(SHAPE)
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, 1 - step / STEPS)
        bits_per_byte(model, *batch(draw_rows(documents, rng, ROWS))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        learned = bits_per_byte(model, *test_batch).item()
    assert learned < min(baselines) - 0.15, (learned, baselines)
