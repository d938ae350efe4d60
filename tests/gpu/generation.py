"""Writing text on the card: bytes per second, kernels per byte."""

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from common import short_documents
from torch import Tensor

from gpu.measure import Run, spread_logits
from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig, Patcher, generate
from model.tokenizer import BYTE_OFFSET, EOS_ID

AIMS = {1: 1_000, 16: 0, 128: 50_000}
"""Bytes per second of all rows, by the number of rows."""
BYTES, MORE_BYTES, PROFILED = 64, 320, 24
"""Bytes of each row: the rate is that of the bytes beyond the first, because a call also reads
prompts and records graphs."""


def same_text(run: Run) -> None:
    """Greedy text of small models in float32, from few rows and from more, against the CPU's."""
    torch.manual_seed(0)
    entropy = EntropyModel(EntropyModelConfig(dim=64, n_layers=2, n_heads=4)).eval()
    blt = BLT(BLT_SIZES["debug"]).eval()
    for model in (entropy, blt):
        model.init_weights()
        spread_logits(model, 8)
    prompts = [text[:100] for text in short_documents(30_000, seed=9)[:9]]
    size = 8 if run.tiny else 96
    patcher = _patcher(run, blt, entropy, prompts[:8])
    expected = generate(blt, entropy, prompts, patcher=patcher, max_new_bytes=size)
    there = [copy.deepcopy(model).to(run.device) for model in (blt, entropy)]
    for rows in (1, 3, 9):
        found = generate(*there, prompts, patcher=patcher, max_new_bytes=size, batch_size=rows)
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        run.record(
            f"generation in float32, {rows} rows: texts of the CPU",
            aim="all",
            met=same == len(prompts),
            same=same,
            of=len(prompts),
            bytes=sum(map(len, expected)),
        )


def generation(run: Run) -> None:
    """The published BLT with the published entropy model, both with random weights (and small hash
    tables, whose size costs nothing here), from prompts of real text."""
    torch.manual_seed(0)
    shape = BLT_SIZES["debug" if run.tiny else "1b"]
    small = EntropyModelConfig(dim=64, n_layers=2, n_heads=4)
    with run.device:
        blt = BLT(replace(shape, encoder_hash_byte_group_vocab=2003)).to(run.dtype).eval()
        entropy = EntropyModel(small if run.tiny else EntropyModelConfig()).to(run.dtype).eval()
    blt.init_weights()
    entropy.init_weights()
    spread_logits(entropy)

    def without_end(_: object, __: object, logits: Tensor) -> None:
        logits[..., EOS_ID] = -torch.inf  # with random weights rows would soon be empty

    blt.local_decoder.output.register_forward_hook(without_end)
    prompts = [
        text[: 64 if run.tiny else 256] for text in short_documents(300_000, seed=9)[: max(AIMS)]
    ]
    patcher = _patcher(run, blt, entropy, prompts[:8])

    def write(rows: int, size: int) -> list[bytes]:
        return generate(
            blt, entropy, prompts[:rows], patcher=patcher, max_new_bytes=size, temperature=1.0
        )

    profiled = 2 if run.tiny else PROFILED
    for rows, aim in ({1: 0, 2: 0} if run.tiny else AIMS).items():
        sizes = (4, 12) if run.tiny else (BYTES, MORE_BYTES)
        write(rows, sizes[-1])  # compile
        done, took = [], []
        for size in sizes:
            began = time.perf_counter()
            texts = write(rows, size)
            run.wait()
            took.append(time.perf_counter() - began)
            done.append(sum(map(len, texts)))
        profile = run.profile(f"generation, {rows} rows", lambda rows=rows: write(rows, profiled))
        h = np.concatenate(list(_entropies(entropy, prompts[:rows], texts)))
        rate = (done[1] - done[0]) / (took[1] - took[0])
        run.record(
            f"generation, blt_1b with entropy_100m, {rows} rows",
            aim=f"{aim:,} bytes per second" if aim else "",
            fast=rate >= aim if aim else None,
            bytes_per_s=rate,
            bytes_per_s_of_a_call=done[1] / took[1],
            bytes=done[1],
            bytes_per_patch=1 / max(float((h > patcher.threshold).mean()), 1e-3),
            kernels_per_position=profile["kernels"] / profiled,
            idle=profile["idle"],
            peak_GiB=run.peak_gib(),
            top=profile["top"],
        )


def _patcher(run: Run, blt: BLT, entropy: EntropyModel, prompts: list[bytes]) -> Patcher:
    """A threshold that gives about 4.5 bytes per patch in what the models write."""
    static = Patcher(rule="static", patch_size=4.5)
    size = 16 if run.tiny else 192
    texts = generate(
        blt, entropy, prompts, patcher=static, max_new_bytes=size, temperature=1.0, seed=1
    )
    h = np.concatenate(list(_entropies(entropy, prompts, texts)))
    return Patcher(threshold=float(np.quantile(h, 1 - 1 / 4.5)))


def _entropies(
    model: EntropyModel, prompts: list[bytes], texts: list[bytes]
) -> Iterator[np.ndarray]:
    """The entropies after each byte of texts that follow prompts."""
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor([list(prompt + text)], device=model.device) + BYTE_OFFSET
        yield model.entropies(tokens)[0, len(prompt) :].float().cpu().numpy()
