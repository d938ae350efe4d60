"""Evaluation on the card: requests of a task, and documents, in bytes per second."""

from dataclasses import replace

import numpy as np
import torch
from bench_evaluation import REQUESTS, Documents, Pairs, laid, requests
from common import short_documents

from gpu.measure import Run, compiled
from model import BLT, BLT_SIZES, Patcher
from model.flops import flops_per_byte
from pipeline.evaluate.answers import Questions
from pipeline.evaluate.continuations import lay_out
from pipeline.evaluate.likelihood import Predictor

RULE = Patcher(rule="static", patch_size=4.5)
GAIN = 3.0
"""How much faster requests should be than 64 at a time, each by itself."""


def speed(run: Run) -> None:
    """The published BLT with random weights: requests like HellaSwag's, and short documents."""
    torch.manual_seed(0)
    shape = replace(BLT_SIZES["debug" if run.tiny else "1b"], encoder_hash_byte_group_vocab=2003)
    with run.device:
        blt = BLT(shape).to(run.dtype).eval()
    blt.init_weights()
    predictor = Predictor(blt, 8192)
    pairs = requests(8 if run.tiny else 5_000, 0, letters=False)
    (few, few_questions), (all_, questions) = _read(pairs[:REQUESTS]), _read(pairs)
    alone = predictor(*few, None, questions=few_questions)  # these compile, too
    shared = predictor.answer(*few, few_questions)
    predictor.answer(*all_, questions)
    before = predictor.work.tokens
    took = run.seconds(lambda: predictor.answer(*all_, questions), 1, 0)
    read = predictor.work.tokens - before
    took_few = run.seconds(lambda: predictor(*few, None, questions=few_questions), 3, 0)
    rate, rate_few = _size(pairs) / took, _size(pairs[:REQUESTS]) / took_few
    run.record(
        "evaluation, blt_1b: requests that share contexts",
        aim=f"{GAIN:g} times 64 requests at a time, each by itself",
        fast=rate >= GAIN * rate_few,
        kBps_asked=rate / 1e3,
        kBps_read=read / took / 1e3,
        times=rate / rate_few,
        mean_nats_apart=float(np.abs(shared.nats_T - alone.nats_T).mean()),
        sizes=[list(size) for size in predictor.sizes.used] if predictor.sizes else [],
        peak_GiB=run.peak_gib(),
        **compiled(),
    )
    documents = short_documents(3_000 if run.tiny else 1_500_000, seed=6)
    texts = laid(documents, RULE)
    predictor(*texts, 8192)
    took = run.seconds(lambda: predictor(*texts, 8192), 1, 0)
    rate = sum(map(len, documents)) / took
    flops = rate * flops_per_byte(shape, patch_size=4.5, context=2048)
    run.record(
        "evaluation, blt_1b: documents of 0.2 to 8 KB",
        kBps=rate / 1e3,
        share_of_product=run.share(flops),
        computed_per_read=predictor.work.computed_tokens / predictor.work.tokens,
        **compiled(),
    )


def _read(pairs: Pairs) -> tuple[Documents, Questions]:
    documents, questions, _ = lay_out(pairs)
    return laid(documents, RULE), questions


def _size(pairs: Pairs) -> int:
    return sum(len(before) + len(after) for before, after in pairs)
