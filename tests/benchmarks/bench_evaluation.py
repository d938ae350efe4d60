"""Evaluating a BLT: packed rows and shared contexts against the plain ways.

Documents of 0.2 to 8 KB, as a multiple (bytes per second of processor time) of
- batches of 8 documents in the order they come in, padded to the longest; target >= 1.5;
- one document at a time; for comparison: on a CPU packing cannot win anything there.

Requests as HellaSwag has them (a context of 100 to 300 bytes, four endings of 40 to 150), and as
MMLU has them (five examples before each question, answers of one letter): reading as trees as a
multiple of reading each request by itself, 64 at a time, as the release before did.

What a GPU would compute is counted, not timed: tokens and patches of padded rows per token and
patch that is read, and the shapes that layers are compiled for. The release before had rows of
32,768 tokens, too, but a batch of 64 requests had a row of its own.

All ways do the same arithmetic; the model is the "debug" size, patches are 4 bytes long or words.
One thread.
"""

import random
import time
from collections.abc import Callable, Sequence
from statistics import median

from common import quotient, short_documents, spread, verdict  # isort: skip

import numpy as np
import torch

from model import BLT, BLT_SIZES, BLTConfig, Patcher
from model.tokenizer import PAD_ID, encode_documents
from pipeline.evaluate.continuations import lay_out
from pipeline.evaluate.likelihood import GPU_TOKENS, Predictor, predict

TARGET = 1.5
ROUNDS = 3
BATCH = 8
REQUESTS = 64
RULE = Patcher(rule="static", patch_size=4)
WORDS = Patcher(rule="space")
SMALLEST = BLTConfig(
    dim_local=16,
    n_heads_local_encoder=1,
    n_layers_local_decoder=1,
    n_heads_local_decoder=1,
    dim_global=32,
    n_layers_global=1,
    n_heads_global=1,
    cross_attn_nheads=1,
    encoder_hash_byte_group_size=(),
)
"""What is counted does not depend on the model."""
Documents = tuple[np.ndarray, np.ndarray, np.ndarray]
Pairs = Sequence[tuple[bytes, bytes]]


def laid(documents: Sequence[bytes], rule: Patcher) -> Documents:
    """Tokens, lengths and patch lengths of documents laid end to end."""
    tokens_T, lengths_D = encode_documents(documents)
    h_T = torch.zeros(len(tokens_T))
    lengths, tokens = torch.from_numpy(lengths_D), torch.from_numpy(tokens_T)
    return tokens_T, lengths_D, rule.patch_lengths_flat(h_T, lengths, tokens)[0].numpy()


def packed(model: BLT, documents: list[bytes]) -> float:
    return float(predict(model, *laid(documents, RULE), 8192).nats_T.sum(dtype=np.float64))


@torch.inference_mode()
def padded(model: BLT, documents: list[bytes], batch: int) -> float:
    nats = 0.0
    for start in range(0, len(documents), batch):
        rows = [laid([document], RULE) for document in documents[start : start + batch]]
        tokens_BS, patches_BP = (
            torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(row[part]).long() for row in rows],
                batch_first=True,
                padding_value=padding,
            )
            for part, padding in ((0, PAD_ID), (2, 0))
        )
        logits = model(tokens_BS, patches_BP)[:, :-1]
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens_BS[:, 1:].flatten(), ignore_index=PAD_ID, reduction="sum"
        ).item()
    return nats


def as_trees(predictor: Predictor, pairs: Pairs) -> float:
    documents, questions, _ = lay_out(pairs)
    answers = predictor.answer(*laid(documents, WORDS), questions)
    return float(answers.nats_T.sum(dtype=np.float64))


def one_by_one(model: BLT, pairs: Pairs) -> float:
    """Each request is read by itself, 64 in a batch."""
    nats = 0.0
    for start in range(0, len(pairs), REQUESTS):
        batch = pairs[start : start + REQUESTS]
        documents = laid([before + after for before, after in batch], WORDS)
        nats_T, end_D = predict(model, *documents, None).nats_T, documents[1].cumsum()
        for end, (_, after) in zip(end_D.tolist(), batch, strict=True):
            nats += float(nats_T[end - 1 - len(after) : end - 1].sum(dtype=np.float64))
    return nats


def requests(count: int, examples: int, letters: bool) -> list[tuple[bytes, bytes]]:
    """So many contexts, each with four continuations."""
    draw, text = random.Random(0), b" ".join(short_documents(400_000, seed=2))

    def piece(least: int, most: int) -> bytes:
        start = draw.randrange(len(text) - most)
        return text[start : start + draw.randint(least, most)].decode(errors="ignore").encode()

    before = b"".join(piece(300, 600) + b"\nAnswer: B\n\n" for _ in range(examples))
    pairs = []
    for _ in range(count):
        context = before + piece(100, 300)
        pairs += [
            (context, b" " + (bytes([letter]) if letters else piece(40, 150))) for letter in b"ABCD"
        ]
    return pairs


def computed_before(pairs: Pairs) -> float:
    """Tokens of rows per token of requests, where a batch of 64 requests is a row of its own."""
    computed = needed = 0
    for start in range(0, len(pairs), REQUESTS):
        tokens = sum(len(a) + len(b) + 2 for a, b in pairs[start : start + REQUESTS])
        computed += -(-tokens // GPU_TOKENS) * GPU_TOKENS
        needed += tokens
    return computed / needed


def processor_seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def new(config: BLTConfig) -> BLT:
    torch.manual_seed(0)
    model = BLT(config)
    model.init_weights()
    return model.eval()


def time_documents(model: BLT) -> None:
    documents = short_documents(60_000, seed=1)
    size = sum(map(len, documents))
    ours, theirs = packed(model, documents[:9]), padded(model, documents[:9], BATCH)
    assert abs(ours / theirs - 1) < 1e-5, "the plain way computes something else"
    ways = (
        lambda: packed(model, documents),
        lambda: padded(model, documents, BATCH),
        lambda: padded(model, documents, 1),
    )
    times = [tuple(map(processor_seconds, ways)) for _ in range(ROUNDS)]
    print(f"{len(documents)} documents of {size / len(documents):.0f} bytes on average")
    for name, column in (("packed", 0), (f"padded batches of {BATCH}", 1), ("one by one", 2)):
        rate = size / median(row[column] for row in times)
        print(f"    {name:24} {rate / 1e3:8.1f} KB/s")
    gain = quotient(times, 1, 0)
    print(f"    packed / one by one: {quotient(times, 2, 0):.2f} ({spread(times, 2, 0)})")
    print(
        f"result: {gain:.2f} times padded batches ({spread(times, 1, 0)}; target {TARGET}, "
        f"{verdict(gain >= TARGET)})"
    )


def time_requests(model: BLT, name: str, pairs: Pairs) -> None:
    predictor = Predictor(model, 8192)
    ways = (lambda: as_trees(predictor, pairs), lambda: one_by_one(model, pairs))
    ours, theirs = (way() for way in ways)
    assert abs(ours / theirs - 1) < 1e-5, "the plain way computes something else"
    times = [tuple(map(processor_seconds, ways)) for _ in range(ROUNDS)]
    print(
        f"{len(pairs)} requests like {name}'s: {quotient(times, 1, 0):.2f} times each by itself "
        f"({spread(times, 1, 0)})"
    )


def count_requests(name: str, pairs: Pairs) -> None:
    predictor = Predictor(new(SMALLEST), 8192, one_size=True)
    step = len(pairs) // 2 // 4 * 4
    for start in range(0, len(pairs), step):
        as_trees(predictor, pairs[start : start + step])
    work, size = predictor.work, sum(len(a) + len(b) + 2 for a, b in pairs)
    shapes = {shape for size in predictor.sizes.used for shape in size} if predictor.sizes else ()
    print(
        f"{len(pairs):,} requests like {name}'s on a GPU: {work.computed_tokens / work.tokens:.3f} "
        f"tokens and {work.computed_patches / work.patches:.3f} patches are computed per one that "
        f"is read, {work.tokens / size:.3f} are read per one that is asked for; {len(shapes)} "
        f"shapes; before: {computed_before(pairs):.2f} tokens per one that is asked for"
    )


def main() -> None:
    torch.set_num_threads(1)
    model = new(BLT_SIZES["debug"])
    time_documents(model)
    time_requests(model, "HellaSwag", requests(40, 0, letters=False))
    time_requests(model, "MMLU", requests(12, 5, letters=True))
    count_requests("HellaSwag", requests(2500, 0, letters=False))
    count_requests("MMLU", requests(700, 5, letters=True))


if __name__ == "__main__":
    main()
