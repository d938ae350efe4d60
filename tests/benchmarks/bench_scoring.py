"""Scoring with a transformer: against the naive way, and against the machine's own speed.

(a) ``Scorer`` on documents of 0.2 to 8 KB, as a multiple (bytes per second) of
    - the naive way: one document at a time, padded to the context of 8192 tokens; target >= 3;
    - one document at a time without padding; for comparison.
    All three do the same arithmetic; the model has 2 layers, 64 wide, 4 heads.
(b) For models of 4 layers, 256, 512 and 768 wide: the floating-point operations that the model
    needs (2 a weight and token, and 4 * width * visible keys in each layer's attention), over time,
    as a share of what a 2048x2048 float32 product reaches in the same thread, measured in turn;
    target >= 40 %.

(c) Counted: the share of a GPU's work that is padding, where packs have the sizes that they have
    there, and where all have the largest and take documents in their order (as before);
    target <= 1 %.

One thread. ``--profile`` prints where the time goes.
"""

import sys
from dataclasses import replace
from statistics import mean, median

from common import (  # isort: skip
    alternating,
    in_batches,
    quotient,
    short_documents,
    spread,
    verdict,
)

import torch
import torch.nn.functional as F

from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.patcher import Patcher
from model.segments import cut_long, fill_packs, pack_segments
from model.tokenizer import encode_documents
from pipeline.patch.patch_split import BATCH_BYTES
from pipeline.patch.scoring import Scorer

CONTEXT = 8192
NAIVE_TARGET = 3.0
SHARE_TARGET = 0.4
PADDING_TARGET = 0.01
PRODUCT = 2048


def random_model(dim: int, layers: int, heads: int) -> EntropyModel:
    torch.manual_seed(0)
    return EntropyModel(EntropyModelConfig(dim=dim, n_layers=layers, n_heads=heads)).eval()


def scorer_of(model: EntropyModel) -> Scorer:
    return Scorer(model, Patcher(threshold=5.0))


def one_by_one(model: EntropyModel, documents: list[bytes], *, padded: bool) -> list[torch.Tensor]:
    found = []
    for document in documents:
        tokens = torch.from_numpy(encode_documents([document])[0])
        length = len(tokens)
        if padded:
            tokens = F.pad(tokens, (0, CONTEXT - length))
        found.append(model.entropies_packed(tokens, torch.tensor([len(tokens)]))[:length])
    return found


def against_naive(rounds: int) -> float:
    model = random_model(64, 2, 4)
    scorer = scorer_of(model)
    documents = short_documents(60_000, seed=1)
    size = sum(map(len, documents))
    naive = torch.cat(one_by_one(model, documents[:20], padded=True))
    ours = torch.from_numpy(scorer.score(documents[:20]).entropies_T)
    assert torch.allclose(naive, ours.float(), atol=5e-3), "the naive way computes something else"
    times = alternating(
        rounds,
        lambda: scorer.score(documents),
        lambda: one_by_one(model, documents, padded=True),
        lambda: one_by_one(model, documents, padded=False),
    )
    print(f"(a) {len(documents)} documents of {size / len(documents):.0f} bytes on average")
    for name, column in (("scorer", 0), ("padded to the context", 1), ("one by one, unpadded", 2)):
        rate = size / median(row[column] for row in times)
        print(f"    {name:24} {rate / 1e3:8.1f} KB/s")
    print(f"    scorer / padded: {quotient(times, 1, 0):.2f} ({spread(times, 1, 0)})")
    print(f"    scorer / unpadded: {quotient(times, 2, 0):.2f} ({spread(times, 2, 0)})")
    return quotient(times, 1, 0)


def operations(model: EntropyModel, documents: list[bytes]) -> float:
    """Floating-point operations that the documents need, without any padding."""
    config = model.config
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    weights -= model.tok_embeddings.weight.numel()
    visible = [min(i + 1, config.window) for d in documents for i in range(len(d) + 2)]
    attention = 4 * config.dim * config.n_layers * mean(visible)
    return len(visible) * (2 * weights + attention)


def share_of_product(dim: int, kilobytes: int, rounds: int) -> float:
    model = random_model(dim, 4, dim // 64)
    scorer = scorer_of(model)
    documents = short_documents(kilobytes * 1000, seed=2)
    work = operations(model, documents)
    a, b = torch.randn(2, PRODUCT, PRODUCT)
    product = torch.empty(PRODUCT, PRODUCT)

    def multiply() -> None:
        for _ in range(8):
            torch.mm(a, b, out=product)

    times = alternating(rounds, lambda: scorer.score(documents), multiply)
    fastest_product = 8 * 2 * PRODUCT**3
    shares = [work / ours / (fastest_product / theirs) for ours, theirs in times]
    tokens = sum(len(d) + 2 for d in documents)
    print(
        f"(b) {dim} wide: {tokens / median(t[0] for t in times):7.0f} tokens/s, "
        f"{work / median(t[0] for t in times) / 1e9:5.1f} GFLOP/s; product "
        f"{fastest_product / median(t[1] for t in times) / 1e9:5.1f} GFLOP/s; share "
        f"{median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
    )
    return median(shares)


def padding() -> float:
    config = EntropyModelConfig()
    sizes = EntropyModel(replace(config, n_layers=1)).to("meta").pack_sizes
    documents = short_documents(12_000_000, seed=2)
    tokens = filled = before = 0
    for batch in in_batches(documents, BATCH_BYTES)[:-1]:
        lengths = cut_long(torch.tensor([len(d) + 2 for d in batch]), config.context_length)
        tokens += int(lengths.sum())
        held = (int(lengths[pack].sum()) for pack in fill_packs(lengths, sizes))
        filled += sum(next(size for size in sizes if size >= n) for n in held)
        before += sizes[-1] * len(list(pack_segments(lengths, sizes[-1])))
    share = 1 - tokens / filled
    print(f"(c) padding in packs of {sizes} tokens: {share:.2%}; before: {1 - tokens / before:.2%}")
    return share


def profile(dim: int, layers: int, heads: int, kilobytes: int) -> None:
    scorer = scorer_of(random_model(dim, layers, heads))
    documents = short_documents(kilobytes * 1000, seed=2)
    scorer.score(documents)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        scorer.score(documents)
    print(f"{dim} wide, {layers} layers")
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


def main() -> None:
    torch.set_num_threads(1)
    if "--profile" in sys.argv[1:]:
        profile(64, 2, 4, 400)
        profile(256, 4, 4, 50)
        profile(768, 4, 12, 16)
        return
    times_naive = against_naive(rounds=3)
    shares = [
        share_of_product(dim, kilobytes, rounds)
        for dim, kilobytes, rounds in ((256, 48, 5), (512, 24, 3), (768, 12, 3))
    ]
    padded = padding()
    print(
        f"result: {times_naive:.1f} times the padded way (target {NAIVE_TARGET:.0f}, "
        f"{verdict(times_naive >= NAIVE_TARGET)}); "
        + ", ".join(f"{share:.0%}" for share in shares)
        + f" of the matrix product's rate (target {SHARE_TARGET:.0%}, "
        f"{verdict(min(shares) >= SHARE_TARGET)}); {padded:.2%} padding on a GPU "
        f"(target {PADDING_TARGET:.0%}, {verdict(padded <= PADDING_TARGET)})"
    )


if __name__ == "__main__":
    main()
