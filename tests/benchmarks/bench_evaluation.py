"""Evaluating a BLT: packed windows against the plain ways.

``predict`` on documents of 0.2 to 8 KB, as a multiple (bytes per second of processor time) of
- batches of 8 documents in the order they come in, padded to the longest; target >= 1.5;
- one document at a time; for comparison: on a CPU packing cannot win anything there.
All do the same arithmetic; the model is the "debug" size, patches are 4 bytes long. One thread.
"""

import time
from collections.abc import Callable
from statistics import median

from common import quotient, short_documents, spread, verdict  # isort: skip

import numpy as np
import torch

from model import BLT, BLT_SIZES, Patcher
from model.tokenizer import PAD_ID, encode_documents
from pipeline.evaluate.likelihood import predict

TARGET = 1.5
ROUNDS = 3
BATCH = 8
RULE = Patcher(rule="static", patch_size=4)


def patches(lengths_D: np.ndarray) -> torch.Tensor:
    lengths = torch.from_numpy(lengths_D)
    return RULE.patch_lengths_flat(torch.zeros(int(lengths.sum())), lengths)[0]


def packed(model: BLT, documents: list[bytes]) -> float:
    tokens_T, lengths_D = encode_documents(documents)
    said = predict(model, tokens_T, lengths_D, patches(lengths_D).numpy(), 8192)
    return float(said.nats_T.sum(dtype=np.float64))


@torch.inference_mode()
def padded(model: BLT, documents: list[bytes], batch: int) -> float:
    nats = 0.0
    for start in range(0, len(documents), batch):
        tokens_T, lengths_D = encode_documents(documents[start : start + batch])
        rows = torch.from_numpy(tokens_T).long().split(lengths_D.tolist())
        lengths = [patches(lengths_D[i : i + 1]) for i in range(len(rows))]
        tokens_BS = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=PAD_ID
        )
        patches_BP = torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)
        logits = model(tokens_BS, patches_BP)[:, :-1]
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens_BS[:, 1:].flatten(), ignore_index=PAD_ID, reduction="sum"
        ).item()
    return nats


def processor_seconds(function: Callable[[], object]) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BLT(BLT_SIZES["debug"])
    model.init_weights()
    model.eval()
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


if __name__ == "__main__":
    main()
