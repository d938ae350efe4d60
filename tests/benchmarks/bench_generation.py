"""Cached generation: the time of a byte as the text grows, and against running everything anew.

A BLT of 12 million parameters (beside the hash tables) with a small entropy model reads real text
and writes on; float32, one thread. Printed: the time of a byte at 256 to 4096 bytes of context, in
turn, as multiples of that at 256 (the window fills at 512: target at 4096 at most 1.5); what a byte
costs when the whole text is run for it, at 2048 bytes, as a multiple of the cached byte (target
>= 10); and what drafting by the local models changes.
"""

from statistics import median

from common import alternating, quotient, short_documents, spread, verdict  # isort: skip

import torch
from bench_blt import SMALL

from model.blt import BLT
from model.entropy_model import EntropyModel, EntropyModelConfig
from model.generation.generate import generate, read_prompts
from model.generation.incremental_blt import IncrementalBLT
from model.generation.sampling import Sampling
from model.patcher import Patcher
from model.tokenizer import ByteTokenizer

CONTEXTS = (256, 1024, 2048, 4096)
BYTES = 32
FLAT_TARGET, ANEW_TARGET = 1.5, 10.0


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BLT(SMALL).eval()
    model.init_weights()
    config = EntropyModelConfig(dim=128, n_layers=4, n_heads=4)
    entropy_model = EntropyModel(config).eval()
    text = b"\n".join(short_documents(20_000, seed=1))
    tokens = torch.tensor([ByteTokenizer().encode(text)])
    # Patches of about 4.5 bytes, as a trained model would have.
    h = entropy_model.entropies(tokens[:, :8192])
    patcher = Patcher(float(h.quantile(1 - 1 / 4.5)))
    one = torch.ones(1, dtype=torch.int64)

    def writing(context: int):  # type: ignore[no-untyped-def]
        state = IncrementalBLT(model, entropy_model, patcher, 1)
        read_prompts(state, [tokens[0, :context].tolist()])
        sampling = Sampling()

        def write() -> None:
            token = torch.tensor([40])
            for _ in range(BYTES):
                token = sampling.choose(state.read(token[:, None], one)[:, -1], [])

        return write

    @torch.no_grad()
    def anew() -> None:
        x = tokens[:, :2048]
        lengths = patcher.patch_lengths(entropy_model.entropies(x), x, include_next_token=True)
        model(x, lengths)[0, -1].argmax()

    times = alternating(5, *(writing(context) for context in CONTEXTS), anew)
    for i, context in enumerate(CONTEXTS):
        milliseconds = 1e3 * median(row[i] for row in times) / BYTES
        print(
            f"{context:5} bytes of context: {milliseconds:6.2f} ms a byte, "
            f"{quotient(times, i, 0):.2f} times that at {CONTEXTS[0]} ({spread(times, i, 0)})"
        )
    flat = quotient(times, len(CONTEXTS) - 1, 0)
    faster = quotient(times, len(CONTEXTS), CONTEXTS.index(2048)) * BYTES
    print(f"everything anew at 2048 bytes: {faster:.0f} times a cached byte")

    options = {"patcher": patcher, "max_new_bytes": 4 * BYTES}
    prompt = [text[:512]]
    drafted = alternating(
        3,
        lambda: generate(model, entropy_model, prompt, **options),
        lambda: generate(model, entropy_model, prompt, draft_bytes=4, **options),
    )
    print(f"4 drafted bytes: {quotient(drafted, 0, 1):.2f} times as fast (random weights)")
    print(
        f"result: a byte at {CONTEXTS[-1]} takes {flat:.2f} times one at {CONTEXTS[0]} (target "
        f"{FLAT_TARGET}, {verdict(flat <= FLAT_TARGET)}), {faster:.0f} times faster than anew "
        f"(target {ANEW_TARGET:.0f}, {verdict(faster >= ANEW_TARGET)})"
    )


if __name__ == "__main__":
    main()
