"""BLT against transformers' BLT with the same weights: forward, and forward + backward.

Two models, 12 and 58 million parameters beside the hash tables, on a row of 4096 bytes of real text
(half of what the published models read at once) with patches of about 4.5 bytes; float32, one
thread, measured in turn. Logits and gradients are checked to agree first. Target: 1.5 times as
fast. Also printed: the share of the rate of a 2048x2048 float32 product that the FLOPs of
:func:`model.flops.flops_per_byte` make.

With a GPU, instead: the share of a bfloat16 product's rate, eager and compiled, of BLT and of the
entropy model.
"""

import sys
import tempfile
from statistics import median

from common import alternating, quotient, short_documents, spread, verdict  # isort: skip

import torch
import torch.nn.functional as F
from torch import Tensor

from model.blt import BLT
from model.blt_config import BLT_SIZES, BLTConfig
from model.checkpoints.blt import save_blt
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.flops import flops_per_byte
from model.tokenizer import ByteTokenizer

TARGET = 1.5
WIDTH = 4096
PATCH_BYTES = 4.5
PRODUCT = 2048

SMALL = BLTConfig(
    dim_local=256,
    n_heads_local_encoder=4,
    n_layers_local_decoder=3,
    n_heads_local_decoder=4,
    dim_global=512,
    n_layers_global=2,
    n_heads_global=8,
    cross_attn_nheads=4,
    encoder_hash_byte_group_vocab=20_000,
)
MEDIUM = BLTConfig(
    dim_local=512,
    n_heads_local_encoder=8,
    n_layers_local_decoder=3,
    n_heads_local_decoder=8,
    dim_global=1024,
    n_layers_global=3,
    n_heads_global=8,
    cross_attn_nheads=8,
    encoder_hash_byte_group_vocab=20_000,
)


def batch(rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of one document, without its EOS (transformers has no document masks), and patches."""
    text = b"\n".join(short_documents(rows * width + 8000, seed=seed))
    pieces = [text[i * width : (i + 1) * width] for i in range(rows)]
    tokens_BS = torch.stack([torch.tensor(ByteTokenizer().encode(p)[:width]) for p in pieces])
    starts = torch.rand(rows, width + 1, generator=torch.Generator().manual_seed(seed))
    starts_BX = starts < 1 / PATCH_BYTES
    starts_BX[:, :2] = True
    lengths = [
        torch.diff(row.nonzero()[:, 0], append=torch.tensor([width + 1])) for row in starts_BX
    ]
    return tokens_BS, torch.nn.utils.rnn.pad_sequence(lengths, batch_first=True)


def loss_of(logits_BSV: Tensor, tokens_BS: Tensor) -> Tensor:
    return F.cross_entropy(logits_BSV[:, :-1].flatten(0, 1), tokens_BS[:, 1:].flatten())


def against_transformers(name: str, config: BLTConfig, rounds: int) -> tuple[float, float]:
    from transformers import BltForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    ours = BLT(config)
    ours.init_weights()
    with tempfile.TemporaryDirectory() as directory:
        save_blt(ours, directory, layout="transformers")
        theirs = BltForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens, lengths = batch(1, WIDTH, seed=1)

    def forward_ours() -> Tensor:
        return ours(tokens, lengths)

    def forward_theirs() -> Tensor:
        return theirs(tokens, patch_lengths=lengths, use_cache=False).logits

    def step(model: torch.nn.Module, forward) -> None:  # type: ignore[no-untyped-def]
        model.zero_grad(set_to_none=True)
        loss_of(forward(), tokens).backward()

    with torch.no_grad():
        torch.testing.assert_close(forward_ours(), forward_theirs(), rtol=0, atol=1e-3)
    step(ours, forward_ours)
    step(theirs, forward_theirs)
    torch.testing.assert_close(
        ours.local_encoder.tok_embeddings.weight.grad,
        theirs.model.local_encoder.embed_tokens.weight.grad,
        rtol=1e-2,
        atol=1e-5,
    )
    a, b = torch.randn(2, PRODUCT, PRODUCT)
    product = torch.empty(PRODUCT, PRODUCT)

    def multiply() -> None:
        for _ in range(4):
            torch.mm(a, b, out=product)

    with torch.no_grad():
        forwards = alternating(rounds, forward_ours, forward_theirs, multiply)
    steps = alternating(
        rounds, lambda: step(ours, forward_ours), lambda: step(theirs, forward_theirs), multiply
    )
    work = WIDTH * flops_per_byte(config, patch_size=PATCH_BYTES, context=WIDTH)
    weights = sum(n for part, n in ours.parameter_counts().items() if "hash" not in part)
    print(f"{name}: {weights / 1e6:.0f} million parameters beside the hash tables")
    for what, times, factor in (("forward", forwards, 1), ("forward + backward", steps, 3)):
        share = median(factor * work / row[0] / (4 * 2 * PRODUCT**3 / row[2]) for row in times)
        print(
            f"    {what:18} {WIDTH / median(row[0] for row in times) / 1e3:7.2f} kB/s, "
            f"{quotient(times, 1, 0):.2f} times transformers ({spread(times, 1, 0)}), "
            f"{share:.0%} of the product's rate"
        )
    return quotient(forwards, 1, 0), quotient(steps, 1, 0)


def on_gpu() -> None:
    """Shares of a measured bfloat16 product's rate; eager and compiled."""
    device = torch.device("cuda")

    def seconds(function, repeats: int = 10) -> float:  # type: ignore[no-untyped-def]
        for _ in range(3):
            function()
        torch.cuda.synchronize()
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(repeats):
            function()
        ended.record()
        torch.cuda.synchronize()
        return began.elapsed_time(ended) / 1e3 / repeats

    a, b = torch.randn(2, 8192, 8192, device=device, dtype=torch.bfloat16)
    ceiling = 2 * 8192**3 / seconds(lambda: a @ b)
    print(f"{torch.cuda.get_device_name()}: bfloat16 product {ceiling / 1e12:.0f} TFLOP/s")
    rows, width = 4, 8192
    tokens, lengths = (x.to(device) for x in batch(rows, width, seed=1))
    for name in ("400m", "1b"):
        model = BLT(BLT_SIZES[name]).to(device, torch.bfloat16)
        model.init_weights()
        work = rows * width * flops_per_byte(model.config, patch_size=PATCH_BYTES, context=width)

        def step(forward, model=model) -> None:  # type: ignore[no-untyped-def]
            model.zero_grad(set_to_none=True)
            loss_of(forward(tokens, lengths), tokens).backward()

        for kind, forward in (("eager", model), ("compiled", torch.compile(model, dynamic=False))):
            with torch.no_grad():
                share = work / seconds(lambda forward=forward: forward(tokens, lengths)) / ceiling
            trained = 3 * work / seconds(lambda forward=forward: step(forward)) / ceiling
            print(f"BLT {name}, {kind}: forward {share:.0%}, forward + backward {trained:.0%}")
        del model
    entropy_model = EntropyModel(EntropyModelConfig()).to(device, torch.bfloat16).eval()
    pack = entropy_model.token_budget
    flat = torch.randint(4, 260, (pack,), device=device)
    segments = torch.full((pack // 4096,), 4096)
    weights = sum(p.numel() for p in entropy_model.parameters() if p.dim() == 2)
    attention = 4 * entropy_model.config.dim * entropy_model.config.n_layers * 512
    work = pack * (2 * weights + attention)
    share = work / seconds(lambda: entropy_model.entropies_packed(flat, segments)) / ceiling
    print(f"entropy model, compiled: {share:.0%}")


def main() -> None:
    if torch.cuda.is_available():
        on_gpu()
        return
    torch.set_num_threads(1)
    rounds = 5 if "--long" in sys.argv[1:] else 3
    found = [
        ratio
        for name, config in (("small", SMALL), ("medium", MEDIUM))
        for ratio in against_transformers(name, config, rounds)
    ]
    print(
        "result: forward and forward + backward "
        + ", ".join(f"{ratio:.2f}" for ratio in found)
        + f" times as fast (target {TARGET}, {verdict(min(found) >= TARGET)})"
    )


if __name__ == "__main__":
    main()
