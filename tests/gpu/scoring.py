"""Entropies on the card: equal to the CPU's, to themselves, in a second process; and how fast."""

import copy
import hashlib
import json
import shutil
from collections import deque
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import numpy as np
import torch
from common import ROOT, in_batches, short_documents, write_jsonl
from support import tiny

from gpu.measure import Run, compiled, spread_logits
from model import EntropyModel, EntropyModelConfig, Patcher, load_entropy_model
from model import entropy_model as hot_path
from model.entropy_model import entropy_of
from model.tokenizer import PAD_ID, encode_documents
from pipeline.patch.patch_split import BATCH_BYTES
from pipeline.patch.scoring import QueuedEntropies, Scorer
from pipeline.patches import patch_stored

HASH_FILE = "stored_hash.json"
BOUNDARIES = "boundaries_that_differ"
ANY_RULE = Patcher(threshold=1.0)
DIFFERENCE = 0.004
"""Nats: two units in the last place of a stored entropy of 2 to 4 nats, in float32."""


def published(run: Run) -> EntropyModel:
    """An entropy model of the published shape (a tiny one on the CPU), with random weights."""
    config = (
        EntropyModelConfig(dim=32, n_layers=1, n_heads=2, context_length=512)
        if run.tiny
        else EntropyModelConfig()
    )
    torch.manual_seed(0)
    model = EntropyModel(config).eval()
    model.init_weights()
    spread_logits(model)
    return model


def stored(model: EntropyModel, documents: list[bytes]) -> np.ndarray:
    """Entropies as shards hold them."""
    return Scorer(model, ANY_RULE).entropies(*encode_documents(documents))


def agreement(run: Run) -> None:
    """The card against the CPU, a document alone against packed, and repeated runs."""
    run.use_all_cores()
    small = load_entropy_model(str(ROOT / "model/weights/entropy-1m"), device="cpu")
    documents = short_documents(5_000 if run.tiny else 60_000, seed=3)
    expected = stored(small, documents).astype(np.float32)
    for dtype in dict.fromkeys((torch.float32, run.dtype)):
        model = copy.deepcopy(small).to(run.device, dtype)
        h = stored(model, documents).astype(np.float32)
        alone = np.concatenate([stored(model, [d]) for d in documents[:6]]).astype(np.float32)
        apart = _apart(documents, h, expected)
        exact = dtype == torch.float32
        run.record(
            f"entropy-1m in {str(dtype).removeprefix('torch.')} against the CPU in float32",
            aim="float32: at most 0.004 nats; bfloat16: 99 % of the boundaries",
            met=bool(apart["most_nats"] <= DIFFERENCE if exact else apart[BOUNDARIES] <= 0.01),
            tokens=len(h),
            **apart,
            packed_against_alone_nats=float(np.abs(h[: len(alone)] - alone).max()),
            **compiled(),
        )
    _own_kernels(run, "entropy-1m", small, documents, most=0.01)
    _own_kernels(run, "published shape", published(run), documents)
    digest, same = _stored_hash(run)
    (run.output / HASH_FILE).write_text(json.dumps(digest))
    run.record(
        "published shape: repeated runs", aim="the same bits", met=same, sha256=digest, **compiled()
    )


def _own_kernels(
    run: Run, name: str, model: EntropyModel, documents: list[bytes], most: float | None = None
) -> None:
    """Scoring as it is on the card against what it is without kernels of our own."""
    model = copy.deepcopy(model).to(run.device, run.dtype)
    h = stored(model, documents).astype(np.float32)
    with patch.object(hot_path, "fits", return_value=False):
        apart = _apart(documents, h, stored(model, documents).astype(np.float32))
    run.record(
        f"{name}: kernels of our own against PyTorch's",
        aim="" if most is None else f"{1 - most:.0%} of the boundaries",
        met=None if most is None else apart[BOUNDARIES] <= most,
        used=model._fused(model.pack_sizes[0]) if model.pack_sizes else False,
        **apart,
    )


def _apart(documents: list[bytes], h: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """How far entropies are from others, and the share of the others' boundaries that differ, at
    4.5 tokens per patch."""
    tokens, lengths = encode_documents(documents)
    patcher = Patcher(threshold=float(np.quantile(expected, 1 - 1 / 4.5)))

    def boundaries(h: np.ndarray) -> np.ndarray:
        patched = patch_stored(patcher, h.astype(np.float16), lengths, tokens)
        starts = np.zeros(len(tokens), bool)
        starts[patched.patch_lengths_P.cumsum() - patched.patch_lengths_P] = True
        return starts

    away, of_others = np.abs(h - expected), boundaries(expected)
    differ = (boundaries(h) != of_others).sum() / of_others.sum()
    return {
        "most_nats": float(away.max()),
        "mean_nats": float(away.mean()),
        BOUNDARIES: float(differ),
    }


def second_process(run: Run) -> None:
    """The same bits from a process that compiles everything anew."""
    digest, same = _stored_hash(run)
    first = json.loads((run.output / HASH_FILE).read_text())
    run.record(
        "published shape: a second process, nothing compiled before",
        aim="the same bits",
        met=same and digest == first,
        sha256=digest,
    )


def _stored_hash(run: Run) -> tuple[str, bool]:
    """The hash of stored entropies, and whether repetitions gave the same."""
    model = published(run).to(run.device, run.dtype)
    documents = short_documents(8_000 if run.tiny else 600_000, seed=5)
    found = {
        hashlib.sha256(stored(model, documents).tobytes()).hexdigest()[:16]
        for _ in range(2 if run.tiny else 4)
    }
    return min(found), len(found) == 1


@dataclass(frozen=True)
class Timing:
    """Text in batches as a worker reads it, and the model that scores it."""

    run: Run
    model: EntropyModel
    batches: list[list[bytes]]

    @property
    def size(self) -> int:
        return sum(len(document) for batch in self.batches for document in batch)

    def score(self, batches: list[list[bytes]]) -> None:
        """As a worker does it, which queues a batch before it waits for the one before."""
        scorer, waiting = Scorer(self.model, ANY_RULE), deque[QueuedEntropies]()
        for batch in batches:
            waiting.append(scorer.queue(*encode_documents(batch)))
            if len(waiting) > 1:
                waiting.popleft().wait()
        waiting.popleft().wait()

    def flops(self) -> float:
        """What the documents need, without any padding: products with weights, and of each query
        with the keys that it sees."""
        config = self.model.config
        weights = sum(weight.numel() for weight in self.model.parameters() if weight.dim() == 2)
        weights -= self.model.tok_embeddings.weight.numel()
        total = 0.0
        for tokens in (len(document) + 2 for batch in self.batches for document in batch):
            first = min(tokens, config.window)
            pairs = first * (first + 1) / 2 + (tokens - first) * config.window
            total += 2 * weights * tokens + 4 * config.dim * config.n_layers * pairs
        return total

    def padded(self, documents: list[bytes], *, eager: bool) -> None:
        """Score as is usual: documents padded to the context, some of them at a time."""
        context = self.model.context_length
        rows = max(self.model.token_budget // context, 1)
        for i in range(0, len(documents), rows):
            part = [encode_documents([d[: context - 2]])[0] for d in documents[i : i + rows]]
            tokens = torch.full((len(part), context), PAD_ID)
            for row, ids in enumerate(part):
                tokens[row, : len(ids)] = torch.from_numpy(ids)
            if eager:
                with torch.inference_mode():
                    logits = self.model(tokens.to(self.run.device))
                    entropy_of(logits.flatten(0, 1)).half().cpu()
            else:
                flat = tokens.clamp(min=0).int().flatten()
                lengths = torch.full((len(part),), context)
                self.model.entropies_packed(flat, lengths).half().cpu()


def speed(run: Run) -> None:
    """Bytes per second, the share of the card's ceiling, and the padded ways."""
    model = published(run).to(run.device, run.dtype)
    documents = short_documents(20_000 if run.tiny else 12_000_000, seed=2)
    batches = in_batches(documents, 8_000 if run.tiny else BATCH_BYTES)
    timing = Timing(run, model, batches[:-1] or batches)
    stored(model, batches[0][:40])  # compile
    tokens: list[int] = []
    Scorer(model, ANY_RULE).entropies(*encode_documents(batches[0]), tokens.append)
    took = run.seconds(lambda: timing.score(timing.batches), 1, 0)
    rate, flops = timing.size / took, timing.flops() / took
    run.record(
        "published shape: scoring",
        aim="60 % of the product's rate",
        fast=run.share(flops) >= 0.6,
        MBps=rate / 1e6,
        TFLOPs=flops / 1e12,
        share_of_product=run.share(flops),
        bytes_per_document=timing.size / sum(map(len, timing.batches)),
        packs_per_batch=len(tokens),
        **compiled(),
    )
    some = timing.batches[0][: 2 if run.tiny else 128]
    for how, eager in (("by the same kernels", False), ("eagerly", True)):
        padded = partial(timing.padded, some, eager=eager)
        padded_rate = sum(map(len, some)) / run.seconds(padded, 1, 1)
        run.record(
            f"published shape: padded to the context, {how}",
            aim="10 times slower than scoring" if eager else "",
            fast=rate >= 10 * padded_rate if eager else None,
            MBps=padded_rate / 1e6,
            scoring_is_times_as_fast=rate / padded_rate,
        )
    profile = run.profile("scoring two batches", lambda: timing.score(timing.batches[:2]))
    run.record(
        "published shape: profile", aim="idle below 2 %", fast=profile["idle"] < 0.02, **profile
    )
    # The start, and the end of a shard, are not the rate of a long run; nor is what is done once.
    few, many = timing.batches[: 1 if run.tiny else 2], timing.batches[: 2 if run.tiny else 8]
    _time_of_shards(run, model, timing.batches[:1])
    took = [_time_of_shards(run, model, batches) for batches in (few, many)]
    size = sum(len(document) for batch in many[len(few) :] for document in batch)
    rate = size / (took[1] - took[0])
    run.record("published shape: shards written by one worker", MBps=rate / 1e6)


def _time_of_shards(run: Run, model: EntropyModel, batches: list[list[bytes]]) -> float:
    folder = run.work / "scoring"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    text = folder / "text.jsonl"
    write_jsonl(text, [document for batch in batches for document in batch])
    return run.seconds(lambda: tiny.make_shards(folder / "shards", text, model, ANY_RULE), 1, 0)
