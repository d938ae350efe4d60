"""Writing text on the card: bytes per second, kernels per byte."""

import time
from dataclasses import replace

import numpy as np
import torch
from common import short_documents

from gpu.measure import Run, spread_logits
from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig, Patcher, generate

AIMS = {1: 1_000, 16: 0, 128: 50_000}
"""Bytes per second of all rows, by the number of rows."""
BYTES, PROFILED = 192, 24


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
    prompts = [
        text[: 64 if run.tiny else 256] for text in short_documents(300_000, seed=9)[: max(AIMS)]
    ]
    patcher = _patcher(run, blt, entropy, prompts[0])

    def write(rows: int, size: int) -> int:
        written = generate(
            blt, entropy, prompts[:rows], patcher=patcher, max_new_bytes=size, temperature=1.0
        )
        return sum(map(len, written))

    profiled = 2 if run.tiny else PROFILED
    for rows, aim in ({1: 0, 2: 0} if run.tiny else AIMS).items():
        size = 8 if run.tiny else BYTES
        write(rows, 2)  # compile
        began = time.perf_counter()
        done = write(rows, size)
        run.wait()
        took = time.perf_counter() - began
        profile = run.profile(f"generation, {rows} rows", lambda rows=rows: write(rows, profiled))
        rate = done / took
        run.record(
            f"generation, blt_1b with entropy_100m, {rows} rows",
            aim=f"{aim:,} bytes per second" if aim else "",
            fast=rate >= aim if aim else None,
            bytes_per_s=rate,
            bytes=done,
            kernels_per_position=profile["kernels"] / profiled,
            idle=profile["idle"],
            peak_GiB=run.peak_gib(),
            top=profile["top"],
        )


def _patcher(run: Run, blt: BLT, entropy: EntropyModel, prompt: bytes) -> Patcher:
    """A threshold that gives about 4.5 bytes per patch in what the models write."""
    static = Patcher(rule="static", patch_size=4.5)
    (text,) = generate(
        blt,
        entropy,
        [prompt],
        patcher=static,
        max_new_bytes=16 if run.tiny else 64,
        temperature=1.0,
        seed=1,
    )
    tokens = torch.tensor([list(prompt + text)], device=blt.device) + 4
    h = entropy.entropies(tokens)[0, len(prompt) :].float().cpu().numpy()
    return Patcher(threshold=float(np.quantile(h if len(h) else [0.0], 1 - 1 / 4.5)))
