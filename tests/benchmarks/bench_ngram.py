"""Scoring with the n-gram model: megabytes of text per second on one core; target >= 30.

Fitted on about 30 MB of the Python sources that are installed beside the interpreter, asked about
20 MB of others. Also printed, measured in turn:

- the share of the rate at which numpy copies as much text in memory;
- the multiple of the rate of a plain Python loop over dicts, which holds the same contexts and is
  checked to give the same entropies;
- the rate of the whole ``Scorer.score`` (tokens, entropies, patches).
"""

from statistics import median

from common import alternating, in_batches, quotient, source_documents, spread, verdict  # isort: skip

import numpy as np
import torch

from model.ngram import MULTIPLIER, TOKEN_BITS, NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import encode_documents
from pipeline.patch.patch_split import BATCH_BYTES
from pipeline.patch.scoring import Scorer

TARGET = 30.0
ROUNDS = 7
NAIVE_BYTES = 1_000_000


class DictModel:
    """The same model in plain Python: one dict a context length, asked from the longest down."""

    def __init__(self, model: NGramEntropyModel):
        self.tables = []
        inverse = np.array([pow(MULTIPLIER, -1, 1 << 64)], np.uint64).view(np.int64)
        for order in sorted(model.hashed, reverse=True):
            table = model.hashed[order]
            mask = (1 << TOKEN_BITS * order) - 1
            (index,) = np.nonzero(table >= 0)
            check_bits = TOKEN_BITS * order - (len(table).bit_length() - 1)
            # The place in the table and the check are the context, mixed; undo the mixing.
            contexts = ((index << check_bits | table[index] >> 16) * inverse) & mask
            entropies = (table[index] & 0xFFFF).astype(np.uint16).view(np.float16)
            self.tables.append(
                (mask, dict(zip(contexts.tolist(), entropies.tolist(), strict=True)))
            )
        self.direct = model.direct.tolist()
        self.direct_mask = len(self.direct) - 1

    def entropies(self, tokens: list[int]) -> list[float]:
        """Entropies of one document."""
        found = []
        key = 0
        longest = self.tables[0][0]
        for token in tokens:
            key = (key << TOKEN_BITS | token) & longest
            for mask, table in self.tables:
                h = table.get(key & mask)
                if h is not None:
                    break
            else:
                h = self.direct[key & self.direct_mask]
            found.append(h)
        return found


def main() -> None:
    torch.set_num_threads(1)
    fitting, asked = source_documents(0, 30_000_000, 20_000_000)
    model = NGramEntropyModel.fit(encode_documents(b) for b in in_batches(fitting, 8 << 20))
    size = sum(map(len, asked))
    batches = in_batches(asked, BATCH_BYTES)
    encoded = [tuple(map(torch.from_numpy, encode_documents(batch))) for batch in batches]
    scorer = Scorer(model, Patcher(threshold=1.5))
    text = np.frombuffer(b"".join(asked), np.uint8)
    copy = np.empty_like(text)

    few: list[bytes] = []
    while sum(map(len, few)) < NAIVE_BYTES:
        few.append(asked[len(few)])
    few_size = sum(map(len, few))
    tokens_T, lengths_D = encode_documents(few)
    few_tokens = [part.tolist() for part in np.split(tokens_T, lengths_D.cumsum()[:-1])]
    naive = DictModel(model)
    naive_T = np.concatenate([naive.entropies(tokens) for tokens in few_tokens])
    ours_T = model.entropies_packed(torch.from_numpy(tokens_T), torch.from_numpy(lengths_D))
    assert np.array_equal(naive_T.astype(np.float32), ours_T.numpy()), "the dicts say otherwise"

    times = alternating(
        ROUNDS,
        lambda: [model.entropies_packed(*pack) for pack in encoded],
        lambda: [scorer.score(batch) for batch in batches],
        lambda: [np.copyto(copy, text) for _ in range(10)],
        lambda: [naive.entropies(tokens) for tokens in few_tokens],
    )
    sizes = (size, size, 10 * size, few_size)
    names = ("entropies", "Scorer.score", "copy in memory", "dicts in Python")
    slots = sum(len(table) for table in model.hashed.values())
    taken = sum(int((table >= 0).sum()) for table in model.hashed.values())
    print(f"fitted on {sum(map(len, fitting)) / 1e6:.0f} MB: {taken:,} contexts in {slots:,} slots")
    print(f"asked about {size / 1e6:.0f} MB in {len(asked)} documents")
    rates = [s / 1e6 / median(row[i] for row in times) for i, s in enumerate(sizes)]
    for name, rate in zip(names, rates, strict=True):
        print(f"    {name:16} {rate:9.1f} MB/s")
    share = quotient(times, 2, 0) * size / sizes[2]
    multiple = quotient(times, 3, 0) * size / few_size
    print(f"    entropies / copy: {share:.4f} of its rate")
    print(f"    entropies / dicts: {multiple:.1f} times their rate")
    print(f"    score / entropies, seconds: {quotient(times, 1, 0):.2f} ({spread(times, 1, 0)})")
    print(
        f"result: {rates[0]:.1f} MB/s (target {TARGET:.0f}, {verdict(rates[0] >= TARGET)}), "
        f"{multiple:.0f} times a Python loop; {rates[1]:.1f} MB/s with tokens and patches"
    )


if __name__ == "__main__":
    main()
