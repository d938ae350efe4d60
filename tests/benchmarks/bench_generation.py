"""Cached generation: the time of a byte as the text grows, and against running everything anew; and
what the host does for a byte on a GPU, counted without one.

A BLT of 12 million parameters (beside the hash tables) with a small entropy model reads real text
and writes on; float32, one thread. Printed: the time of a byte at 256 to 4096 bytes of context, in
turn, as multiples of that at 256 (the window fills at 512: target at 4096 at most 1.5); what a byte
costs when the whole text is run for it, at 2048 bytes, as a multiple of the cached byte (target
>= 10); and what drafting by the local models changes.

Then, for the published 1B with its entropy model in bfloat16, on the meta device: launches and
waits of the host per byte (target: at most 40, and 1), kernels within the graphs, the memory of a
batch, and the bytes per second that a card's memory allows: weights and caches read once a step.
At last, the time that the host needs for a byte beside launches and copies.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

from common import ROOT, alternating, quotient, short_documents, spread, verdict  # isort: skip

import sys

import numpy as np
import torch
from bench_blt import SMALL

sys.path.insert(0, str(ROOT / "tests"))
from support.kernels import CountingRunner, Kernels, count_per_byte

from model.blt import BLT
from model.blt_config import BLT_SIZES
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.generation import incremental_blt
from model.generation.blt_steps import BLTSteps
from model.generation.cached_blocks import CachedBlocks
from model.generation.generate import generate
from model.generation.incremental_blt import IncrementalBLT
from model.generation.kv_cache import Ring
from model.generation.sampling import Sampling
from model.generation.writer import FEW_ROWS, Writer
from model.patcher import Patcher
from model.tokenizer import ByteTokenizer

CONTEXTS = (256, 1024, 2048, 4096)
BYTES, HOST_BYTES = 32, 100
FLAT_TARGET, ANEW_TARGET, LAUNCHES_TARGET = 1.5, 10.0, 40
CARD = "H200", 4.8e12
"""A card and its memory's bytes per second, by its data sheet."""
CARD_CONTEXTS = (250, 1000)
BATCHES = (1, 16, 128)
BYTES_PER_PATCH = 4.5


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

    def writing(context: int):  # type: ignore[no-untyped-def]
        writer = Writer(partial(IncrementalBLT, model, entropy_model, patcher), 1, Sampling())

        def write() -> None:
            for _ in range(BYTES):
                writer.write()

        writer.admit({0: tokens[0, :context].tolist()}, {0: 0})
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
    on_a_card()
    of_the_host()


def on_a_card() -> None:
    """Count what a GPU would do for a byte of the 1B."""
    incremental_blt.StepRunner = CountingRunner  # type: ignore[misc]
    with torch.device("meta"):
        model = BLT(BLT_SIZES["1b"]).bfloat16().to("meta")
        entropy_model = EntropyModel(EntropyModelConfig()).bfloat16().to("meta")
    state = partial(IncrementalBLT, model, entropy_model, Patcher(1.0))
    most = 0.0
    for batch in BATCHES:
        writer = Writer(state, batch, Sampling())
        writer._generators = [torch.Generator()] * batch
        launches, waits = count_per_byte(writer, 60)
        most = max(most, launches * (waits == 1 or 99))
        steps = writer.state.steps
        assert isinstance(steps, BLTSteps)
        kernels = []
        for step, sizes in ((steps.listen, (1,)), (steps.patch, (1, 0)), (writer._predict, ())):
            with torch.inference_mode(), Kernels() as counted:
                step(*sizes)
            kernels.append(counted.total)
        caches = sum(ring.data.nbytes for ring in rings(steps)) / 1e9
        rates = []
        for context in CARD_CONTEXTS:
            read = bytes_read(model, entropy_model, steps, context)
            byte, patch = (each / CARD[1] for each in read)
            if batch <= FEW_ROWS:  # how often any row ends a patch
                rates.append(batch / (byte + patch * (1 - (1 - 1 / BYTES_PER_PATCH) ** batch)))
            else:  # every second step makes patches, and rows that ended one before wait for it
                rates.append(batch * (1 - 0.5 / BYTES_PER_PATCH) / (byte + patch / 2))
        print(
            f"1b, batch {batch:3}: {launches:.1f} launches and {waits:.0f} wait per byte; kernels "
            f"in the graphs: {kernels[0]} to listen, {kernels[1]} for a patch, {kernels[2]} to "
            f"predict; caches {caches:.1f} GB (256 patches per row); by the memory of one "
            f"{CARD[0]} at most {rates[0]:,.0f} bytes/s at {CARD_CONTEXTS[0]} bytes of context, "
            f"{rates[1]:,.0f} at {CARD_CONTEXTS[1]}"
        )
    print(
        f"result: at most {most:.1f} launches and 1 wait per byte (target {LAUNCHES_TARGET}, "
        f"{verdict(most <= LAUNCHES_TARGET)})"
    )


class IdleRunner(CountingRunner):
    """A GPU that needs no time: notes how long after its answers it is given something to do, if it
    was given nothing to do after the answer already."""

    waited, answered, asked, busy = 0.0, 0.0, False, False

    def run(self, step: Callable[..., None], *sizes: int) -> None:
        self.busy = self.asked
        if self.answered:
            self.waited += perf_counter() - self.answered
            self.answered = 0.0

    def ask(self, tensor: torch.Tensor) -> None:
        self.asked = True

    def fetch(self, tensor: torch.Tensor) -> np.ndarray:
        values = super().fetch(tensor)
        self.answered = 0.0 if self.busy else perf_counter()
        self.asked = self.busy = False
        return values


def of_the_host() -> None:
    """Time what the host does for a byte, without launches and copies: between an answer of the GPU
    and what it is given to do then, and in all."""
    incremental_blt.StepRunner = IdleRunner  # type: ignore[misc]
    model = BLT(BLT_SIZES["debug"]).to("meta")
    small = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    state = partial(IncrementalBLT, model, EntropyModel(small).to("meta"), Patcher(1.0))
    for batch in BATCHES:
        writer = Writer(state, batch, Sampling(1.0))
        writer._generators = [torch.Generator().manual_seed(row) for row in range(batch)]
        runner = writer.state.runner
        assert isinstance(runner, IdleRunner)
        each = []
        for _ in range(9):
            runner.waited, began = 0.0, perf_counter()
            for _ in range(HOST_BYTES):
                writer.write()
            each.append((runner.waited, perf_counter() - began))
        waited, took = (1e6 * median(times) / HOST_BYTES for times in zip(*each, strict=True))
        print(
            f"host, batch {batch:3}: {took:.0f} us per byte, of which a GPU waits for {waited:.0f}"
        )


def rings(steps: BLTSteps) -> list[Ring]:
    """All that is kept of the rows."""
    assert steps.entropies is not None
    stacks = (steps.encoder, steps.decoder, steps.latent, steps.entropies.blocks)
    kept = steps.gathering.kept
    return [steps.tokens, kept, steps.readable, *(stack.cache.ring for stack in stacks)]


def bytes_read(
    model: BLT, entropy_model: EntropyModel, steps: BLTSteps, context: int
) -> tuple[float, float]:
    """Memory that is read at least for each byte of all rows, and besides if a patch of any row
    ends: weights (without embeddings), and what caches hold of ``context`` bytes; of patches, for
    the rows of which one ends."""

    def weights(part: torch.nn.Module) -> int:
        return sum(x.nbytes for name, x in part.named_parameters() if "embeddings" not in name)

    def cached(blocks: CachedBlocks, positions: float) -> float:
        ring, window = blocks.cache.ring, blocks.cache.window
        return ring.data.nbytes / ring.slots * min(positions, window or positions)

    assert steps.entropies is not None
    local = (model.local_encoder, model.local_decoder, entropy_model)
    stacks = (steps.encoder, steps.decoder, steps.entropies.blocks)
    every = sum(map(weights, local)) + sum(cached(stack, context) for stack in stacks)
    every += cached(steps.latent, context / BYTES_PER_PATCH) / BYTES_PER_PATCH
    return every, weights(model.global_transformer)


if __name__ == "__main__":
    main()
