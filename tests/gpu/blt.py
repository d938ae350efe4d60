"""A BLT on the card: forward, backward and evaluation, equal to the CPU's."""

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from common import short_documents
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpu.measure import Run, compiled
from model import BLT, BLT_SIZES, Patcher
from model.tokenizer import encode_documents
from pipeline.evaluate.likelihood import predict

FORWARD, BACKWARD = {"float32": 1e-4, "bfloat16": 0.03}, {"float32": 1e-3, "bfloat16": 0.1}
"""How far logits, and the gradient of the worst parameter, may be from the CPU's: the norm of the
difference as a share of the norm."""

Outcome = tuple[Tensor, dict[str, Tensor]]
"""Logits, and the gradient of each parameter; float32, on the CPU."""


def gradients(run: Run) -> None:
    """Logits and gradients of two rows of text against the CPU's in float32."""
    run.use_all_cores()
    shape = replace(
        BLT_SIZES["debug" if run.tiny else "400m"],
        encoder_hash_byte_group_vocab=2003,
        n_layers_global=2 if run.tiny else 6,
    )
    torch.manual_seed(0)
    cpu = BLT(shape)
    cpu.init_weights()
    batch = _rows(2, 128 if run.tiny else 1280)
    expected = _outcome(cpu, *batch)
    for dtype in dict.fromkeys((torch.float32, run.dtype)):
        model = copy.deepcopy(cpu).to(run.device, dtype)
        logits, found = _outcome(model, *batch)
        again, found_again = _outcome(model, *batch)
        worst, name = max((_apart(found[n], g), n) for n, g in expected[1].items())
        name_of = str(dtype).removeprefix("torch.")
        run.record(
            f"BLT in {name_of} against the CPU in float32",
            aim=f"logits {FORWARD[name_of]:g}, gradients {BACKWARD[name_of]:g}",
            met=_apart(logits, expected[0]) <= FORWARD[name_of] and worst <= BACKWARD[name_of],
            logits=_apart(logits, expected[0]),
            worst_gradient=worst,
            of=name,
            forward_repeats_to_the_bit=bool((logits == again).all()),
            backward_repeats_to_the_bit=all(
                bool((found[n] == found_again[n]).all()) for n in expected[1]
            ),
            **compiled(),
        )


def _rows(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows of several documents each, and random patches of about 4.5 tokens."""
    texts = short_documents(200_000, seed=4)
    generator = np.random.default_rng(0)
    tokens, lengths = [], []
    for row in range(rows):
        documents = [text[: width // 4] for text in texts[row * 12 : row * 12 + 12]]
        tokens.append(torch.from_numpy(encode_documents(documents)[0][:width]).long())
        starts = generator.random(width + 1) < 1 / 4.5
        starts[:2] = True
        start_P = torch.from_numpy(starts.nonzero()[0])
        lengths.append(torch.diff(start_P, append=torch.tensor([width + 1])))
    return torch.stack(tokens), pad_sequence(lengths, batch_first=True)


def _outcome(model: BLT, tokens: Tensor, lengths: Tensor) -> Outcome:
    tokens, lengths = tokens.to(model.device), lengths.to(model.device)
    model.zero_grad(set_to_none=True)
    logits = model(tokens, lengths)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    found = {n: w.grad.float().cpu() for n, w in model.named_parameters() if w.grad is not None}
    return logits.detach().float().cpu(), found


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-20))


def evaluation(run: Run) -> None:
    """Nats of every token at several contexts; graphs that were compiled, and bytes per second."""
    run.use_all_cores()
    patcher = Patcher(rule="static", patch_size=4.5)
    torch.manual_seed(1)
    cpu = BLT(replace(BLT_SIZES["debug"], patcher=patcher)).eval()
    cpu.init_weights()
    tokens, lengths = encode_documents(short_documents(3_000 if run.tiny else 100_000, seed=6))
    zeros = torch.zeros(len(tokens))
    patches = patcher.patch_lengths_flat(zeros, torch.from_numpy(lengths), torch.from_numpy(tokens))
    there = copy.deepcopy(cpu).to(run.device)
    contexts = (1024, 4096)
    for context in contexts:
        found = predict(there, tokens, lengths, patches[0].numpy(), context)
        if context == contexts[0]:
            expected = predict(cpu, tokens, lengths, patches[0].numpy(), context)
            away = float(np.abs(found.nats_T - expected.nats_T).max())
    took = run.seconds(
        lambda: predict(there, tokens, lengths, patches[0].numpy(), contexts[-1]), 1, 0
    )
    run.record(
        "evaluation in float32 against the CPU",
        aim="at most 0.001 nats per token",
        met=away <= 1e-3,
        most_nats=away,
        tokens=len(tokens),
        kBps=len(tokens) / took / 1e3,
        contexts=len(contexts),
        **compiled(),
    )
