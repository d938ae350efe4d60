"""Writing text on the card: bytes per second, kernels per byte."""

import copy
import time
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from common import short_documents
from torch import Tensor

from gpu.measure import Run, spread_logits
from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig, Patcher, generate
from model.tokenizer import BYTE_OFFSET, EOS_ID

AIMS = {1: 1_000, 128: 50_000}
"""Bytes per second of all rows, by the number of rows."""
BYTES, MORE_BYTES, PROFILED = 64, 320, 24
"""Bytes of each row: the rate is that of the bytes beyond the first, because a call also reads
prompts and records graphs."""
READ = 8
"""Texts whose entropies say how long patches are."""


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
    patcher = Writing(run, blt, entropy, entropy, prompts).patcher()
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


@dataclass(frozen=True)
class Writing:
    """The models that write, what they write after, and where patches begin."""

    run: Run
    blt: BLT
    entropy: EntropyModel
    beside: EntropyModel
    """The same on the CPU in float32: there it needs no compilation."""
    prompts: list[bytes]

    @classmethod
    def published(cls, run: Run) -> "Writing":
        """The published BLT with the published entropy model, both with random weights (and small
        hash tables, whose size costs nothing here), and prompts of real text."""
        run.use_all_cores()
        torch.manual_seed(0)
        shape = BLT_SIZES["debug" if run.tiny else "1b"]
        small = EntropyModelConfig(dim=64, n_layers=2, n_heads=4)
        with run.device:
            blt = BLT(replace(shape, encoder_hash_byte_group_vocab=2003)).to(run.dtype).eval()
        beside = EntropyModel(small if run.tiny else EntropyModelConfig()).eval()
        blt.init_weights()
        beside.init_weights()
        spread_logits(beside)

        def without_end(_: object, __: object, logits: Tensor) -> None:
            logits[..., EOS_ID] = -torch.inf  # with random weights rows would soon be empty

        blt.local_decoder.output.register_forward_hook(without_end)
        texts = short_documents(300_000, seed=9)[: max(AIMS)]
        prompts = [text[: 64 if run.tiny else 256] for text in texts]
        return cls(run, blt, copy.deepcopy(beside).to(run.device, run.dtype), beside, prompts)

    def write(self, rows: int, size: int, patcher: Patcher, seed: int = 0) -> list[bytes]:
        """Texts of so many bytes after the first prompts."""
        return generate(
            *(self.blt, self.entropy, self.prompts[:rows]),
            patcher=patcher,
            max_new_bytes=size,
            temperature=1.0,
            seed=seed,
        )

    def entropies(self, texts: list[bytes]) -> np.ndarray:
        """The entropies after each byte of some of the texts."""
        found = []
        for prompt, text in list(zip(self.prompts, texts, strict=False))[:READ]:
            tokens = torch.tensor([list(prompt + text)]) + BYTE_OFFSET
            found.append(self.beside.entropies(tokens)[0, len(prompt) :].numpy())
        return np.concatenate(found)

    def patcher(self) -> Patcher:
        """A threshold that gives about 4.5 bytes per patch in what the models write."""
        static = Patcher(rule="static", patch_size=4.5)
        texts = self.write(READ, 16 if self.run.tiny else 192, static, seed=1)
        return Patcher(threshold=float(np.quantile(self.entropies(texts), 1 - 1 / 4.5)))

    def rate(self, rows: int, patcher: Patcher) -> dict[str, float]:
        """Bytes per second, and what was written in how many patches."""
        sizes = (4, 12) if self.run.tiny else (BYTES, MORE_BYTES)
        self.write(rows, sizes[-1], patcher)  # compile
        done, took = [], []
        for size in sizes:
            began = time.perf_counter()
            texts = self.write(rows, size, patcher)
            self.run.wait()
            took.append(time.perf_counter() - began)
            done.append(sum(map(len, texts)))
        ends = float((self.entropies(texts) > patcher.threshold).mean())
        return {
            "bytes_per_s": (done[1] - done[0]) / (took[1] - took[0]),
            "bytes_per_s_of_a_call": done[1] / took[1],
            "bytes": done[1],
            "bytes_per_patch": 1 / max(ends, 1e-3),
        }


def generation(run: Run) -> None:
    """Bytes per second of one row and of many."""
    writing = Writing.published(run)
    patcher = writing.patcher()
    profiled = 2 if run.tiny else PROFILED
    for rows, aim in ({1: 0, 2: 0} if run.tiny else AIMS).items():
        found = writing.rate(rows, patcher)
        profile = run.profile(
            f"generation, {rows} rows", partial(writing.write, rows, profiled, patcher)
        )
        run.record(
            f"generation, blt_1b with entropy_100m, {rows} rows",
            aim=f"{aim:,} bytes per second",
            fast=found["bytes_per_s"] >= aim,
            **found,
            kernels_per_position=profile["kernels"] / profiled,
            idle=profile["idle"],
            peak_GiB=run.peak_gib(),
            top=profile["top"],
        )
