"""Writing on from prompts with a BLT, everything cached (arXiv 2412.09871; 2605.08044), or with an
entropy model alone.

The text is the one that running everything through the model anew for every byte would give, with
the same boundaries and, up to rounding, the same logits. (Boundaries come from float32 entropies;
shards hold float16.) With ``draft_bytes`` the local models write ahead on their own, and
one run of everything checks their draft (self-speculation). The result is the same greedy text: a
drafted byte counts only if the whole model would have chosen it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.generation import BATCH_SIZE
from model.generation.cached_blocks import JoinedWeights
from model.generation.incremental import Incremental
from model.generation.incremental_blt import (
    IncrementalBLT,
    IncrementalEntropyModel,
    check_patching,
)
from model.generation.kv_cache import PIECE
from model.generation.sampling import BROKEN_ID, Sampling
from model.generation.writer import Writer
from model.patcher import Patcher
from model.short_context import ShortContextModel
from model.tokenizer import BYTE_OFFSET, EOS_ID, ByteTokenizer

ADMITTED = 8
"""The share of the rows that waits for prompts until some are read: one in so many."""


def generate(
    model: BLT | EntropyModel,
    entropy_model: EntropyModel | ShortContextModel | None,
    prompts: Sequence[str | bytes],
    *,
    patcher: Patcher | None = None,
    max_new_bytes: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[str | bytes] = (),
    seed: int = 0,
    draft_bytes: int = 0,
    reset_at_newline: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[bytes]:
    """The text that the model writes after each prompt, up to EOS, a stop string or the limit.

    Args:
        model: a BLT, or an entropy model, which needs neither another one nor a rule, and no draft.
        entropy_model: places the boundaries; None for a rule that ignores entropies.
        prompts: any number of texts, of any lengths.
        patcher: the boundary rule; that of the checkpoint by default.
        max_new_bytes: the most bytes to write after each prompt.
        temperature: 0 takes the likeliest byte.
        top_k: draw from the k likeliest bytes only.
        top_p: draw only from the likeliest bytes that together have this probability.
        stop: strings that end a text; they are not part of the result. Their order does not matter:
            of several that end with the same byte the longest is left out.
        seed: seeds drawing for the first prompt; each later prompt has a seed one higher, so that a
            text does not depend on the other prompts.
        draft_bytes: bytes that the local models write ahead. Greedy only, where they change the
            speed alone.
        reset_at_newline: the entropy model's context starts again after each newline, also where
            it writes by itself.
        batch_size: the most texts that are written at a time. A finished text makes room for the
            next prompt; texts do not depend on one another, nor on this number, up to the rounding
            of products of other sizes (in bfloat16 a drawn byte may be another one).

    Returns:
        the new bytes of each text, without the prompt.

    Raises:
        ValueError: an argument makes no sense; names it.
        FloatingPointError: a model's weights are broken, so that it gives what is not a number.
    """
    texts = [bytearray() for _ in prompts]
    pieces = stream(
        model,
        entropy_model,
        prompts,
        patcher=patcher,
        max_new_bytes=max_new_bytes,
        sampling=Sampling(temperature, top_k, top_p),
        stop=stop,
        seed=seed,
        draft_bytes=draft_bytes,
        reset_at_newline=reset_at_newline,
        batch_size=batch_size,
    )
    for piece in pieces:
        for index, new in piece:
            texts[index] += new
    return [bytes(text) for text in texts]


def stream(
    model: BLT | EntropyModel,
    entropy_model: EntropyModel | ShortContextModel | None,
    prompts: Sequence[str | bytes],
    *,
    sampling: Sampling,
    patcher: Patcher | None,
    max_new_bytes: int,
    stop: Sequence[str | bytes],
    seed: int,
    draft_bytes: int,
    reset_at_newline: bool,
    batch_size: int = BATCH_SIZE,
) -> Iterator[list[tuple[int, bytes]]]:
    """The texts of :func:`generate` as they are written: again and again the next bytes of those
    that are being written, each with its prompt's index.

    Bytes that may be the beginning of a stop string are held back until that is known.
    """
    for name, given in (("prompts", prompts), ("stop", stop)):
        if isinstance(given, str | bytes):
            raise ValueError(f"{name}: must be a list of texts, got one text")
    if draft_bytes and sampling.temperature:
        raise ValueError("draft_bytes: drafts are checked against greedy text: temperature 0 only")
    if not 0 <= draft_bytes < PIECE:
        raise ValueError(f"draft_bytes: must be 0 to {PIECE - 1}, got {draft_bytes}")
    if max_new_bytes < 0:
        raise ValueError(f"max_new_bytes: must be 0 or more, got {max_new_bytes}")
    if not 0 <= seed < 1 << 62:
        raise ValueError(f"seed: must be 0 or more and below 2**62, got {seed}")
    if batch_size < 1:
        raise ValueError(f"batch_size: must be 1 or more, got {batch_size}")
    stops = tuple(map(_as_bytes, stop))
    if not all(stops):
        raise ValueError("stop: an empty string would end every text")
    new_state: Callable[[int, int], Incremental]
    if isinstance(model, EntropyModel):
        if draft_bytes:
            raise ValueError("draft_bytes: an entropy model has no part that could write ahead")
        new_state = partial(
            IncrementalEntropyModel,
            model,
            reset_at_newline=reset_at_newline,
            weights=JoinedWeights(),
        )
    else:
        patcher = patcher or model.config.patcher
        if patcher is None:
            raise ValueError("patcher: the checkpoint names no boundary rule: give one")
        check_patching(model, entropy_model, patcher)
        new_state = partial(
            IncrementalBLT,
            model,
            entropy_model,
            patcher,
            reset_at_newline=reset_at_newline,
            weights=JoinedWeights(),
        )
    if not prompts or not max_new_bytes:
        return iter(())
    texts = [_Text(max_new_bytes, stops) for _ in prompts]
    encoded = [ByteTokenizer().encode(_as_bytes(prompt), eos=False) for prompt in prompts]
    batch = min(batch_size, len(prompts))
    return _write(lambda: Writer(new_state, batch, sampling, draft_bytes), encoded, texts, seed)


def _write(
    new_writer: Callable[[], Writer],
    prompts: Sequence[list[int]],
    texts: Sequence["_Text"],
    seed: int,
) -> Iterator[list[tuple[int, bytes]]]:
    try:
        writer = new_writer()
        try:
            yield from _write_in_turn(writer, prompts, texts, seed)
        finally:
            writer.close()
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            "batch_size: there is no memory to write so many texts of this length at a time; give "
            "a smaller one"
        ) from error


def _write_in_turn(
    writer: Writer, prompts: Sequence[list[int]], texts: Sequence["_Text"], seed: int
) -> Iterator[list[tuple[int, bytes]]]:
    waiting = deque(range(len(prompts)))
    # The prompt that each row writes on; None where there is room for the next.
    of_row: list[int | None] = [None] * writer.rows
    while waiting or any(index is not None for index in of_row):
        free = [row for row, index in enumerate(of_row) if index is None]
        # All rows halt while prompts are read: some prompts begin together.
        if waiting and len(free) >= max(len(of_row) // ADMITTED, 1):
            begun = {row: waiting.popleft() for row in free[: len(waiting)]}
            for row, new in begun.items():
                of_row[row] = new
            seeds = {row: seed + new for row, new in begun.items()}
            writer.admit({row: prompts[new] for row, new in begun.items()}, seeds)
        pieces = []
        for row, tokens in enumerate(writer.write()):
            if (index := of_row[row]) is not None and tokens:
                pieces.append((index, texts[index].take(tokens)))
                if texts[index].done:
                    of_row[row] = None
                    writer.drop(row)
        yield pieces


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


@dataclass
class _Text:
    """The text that was written after one prompt."""

    limit: int
    stops: tuple[bytes, ...]
    written: bytearray = field(default_factory=bytearray)
    handed_out: int = 0
    """Bytes that :meth:`take` has returned."""
    done: bool = False

    def take(self, tokens: Sequence[int]) -> bytes:
        """Add tokens until the text is done.

        Returns:
            the next bytes that are sure to stay.
        """
        for token in tokens:
            if self.done:
                break
            if token == EOS_ID:
                self.done = True
                break
            if token == BROKEN_ID:
                raise FloatingPointError(
                    "model: gave a probability that is not a number; its weights are broken, or "
                    "overflow in the dtype it is run in"
                )
            self.written.append(token - BYTE_OFFSET)
            self.done = self._stopped() or len(self.written) >= self.limit
        sure = len(self.written) - (0 if self.done else self._held_back())
        new = bytes(self.written[self.handed_out : sure])
        self.handed_out = max(self.handed_out, sure)
        return new

    def _stopped(self) -> bool:
        """Take off the stop string that the text ends with, if any. Of several that end here, such
        as "\n" and "\n\n", it is the one that began first."""
        if not self.stops:
            return False
        ended = max((s for s in self.stops if self.written.endswith(s)), key=len, default=b"")
        if ended:
            del self.written[-len(ended) :]
        return bool(ended)

    def _held_back(self) -> int:
        """The length of the longest end of the text that a stop string could begin with."""
        if not self.stops:
            return 0
        longest = max((len(s) - 1 for s in self.stops), default=0)
        for size in range(min(longest, len(self.written)), 0, -1):
            if any(s.startswith(self.written[-size:]) for s in self.stops):
                return size
        return 0
