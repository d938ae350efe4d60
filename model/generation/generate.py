"""Writing on from prompts with a BLT, everything cached (arXiv 2412.09871; 2605.08044), or with an
entropy model alone.

The text is the one that running everything through the model anew for every byte would give, with
the same boundaries and, up to rounding, the same logits. (Boundaries come from float32 entropies;
shards hold float16.) With ``draft_bytes`` the local models write ahead on their own, and
one run of everything checks their draft (self-speculation). The result is the same greedy text: a
drafted byte counts only if the whole model would have chosen it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.generation.incremental_blt import IncrementalBLT
from model.generation.incremental_entropies import IncrementalEntropyModel
from model.generation.kv_cache import PIECE
from model.generation.sampling import Sampling, allowed
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import BOE_ID, BYTE_OFFSET, EOS_ID, ByteTokenizer


def generate(
    model: BLT | EntropyModel,
    entropy_model: EntropyModel | NGramEntropyModel | None,
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
        stop: strings that end a text; they are not part of the result.
        seed: seeds drawing for the first prompt; each later prompt has a seed one higher, so that a
            text does not depend on the other prompts.
        draft_bytes: bytes that the local models write ahead. Greedy only, where they change the
            speed alone.
        reset_at_newline: the entropy model's context starts again after each newline.

    Returns:
        the new bytes of each text, without the prompt.

    Raises:
        ValueError: an argument makes no sense; names it.
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
    )
    for piece in pieces:
        for text, new in zip(texts, piece, strict=True):
            text += new
    return [bytes(text) for text in texts]


def stream(
    model: BLT | EntropyModel,
    entropy_model: EntropyModel | NGramEntropyModel | None,
    prompts: Sequence[str | bytes],
    *,
    sampling: Sampling,
    patcher: Patcher | None,
    max_new_bytes: int,
    stop: Sequence[str | bytes],
    seed: int,
    draft_bytes: int,
    reset_at_newline: bool,
) -> Iterator[list[bytes]]:
    """The texts of :func:`generate` as they are written: again and again the next bytes of each.

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
    stops = tuple(map(_as_bytes, stop))
    if not all(stops):
        raise ValueError("stop: an empty string would end every text")
    state: IncrementalBLT | IncrementalEntropyModel
    if isinstance(model, EntropyModel):
        if draft_bytes:
            raise ValueError("draft_bytes: an entropy model has no part that could write ahead")
        state = IncrementalEntropyModel(model, len(prompts))
    else:
        patcher = patcher or model.config.patcher
        if patcher is None:
            raise ValueError("patcher: the checkpoint names no boundary rule: give one")
        state = IncrementalBLT(
            model, entropy_model, patcher, len(prompts), reset_at_newline=reset_at_newline
        )
    if not prompts or not max_new_bytes:
        return iter(())
    texts = [_Text(max_new_bytes, stops) for _ in prompts]
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    encoded = [ByteTokenizer().encode(_as_bytes(prompt), eos=False) for prompt in prompts]
    return _write(state, encoded, texts, sampling, generators, draft_bytes)


def _write(
    state: IncrementalBLT | IncrementalEntropyModel,
    prompts: Sequence[list[int]],
    texts: Sequence["_Text"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    draft_bytes: int,
) -> Iterator[list[bytes]]:
    device = state.model.device
    row_B = torch.arange(len(prompts), device=device)
    next_B = sampling.choose(read_prompts(state, prompts), generators)
    while True:
        yield [text.take([token]) for text, token in zip(texts, next_B.tolist(), strict=True)]
        writing_B = torch.tensor([not text.done for text in texts], device=device)
        if not bool(writing_B.any()):
            return
        tokens_BM = next_B[:, None]
        if isinstance(state, IncrementalBLT):
            tokens_BM = _draft(state, next_B, draft_bytes)
        logits_BMV = state.read(tokens_BM, writing_B * tokens_BM.shape[1])
        # The first is certain; a drafted token is right if all before it lead to it.
        right_BM = tokens_BM[:, 1:] == allowed(logits_BMV[:, :-1]).argmax(-1)
        kept_B = (1 + right_BM.long().cumprod(1).sum(1)) * writing_B
        state.keep(kept_B)
        if draft_bytes:
            rows = zip(texts, tokens_BM.tolist(), kept_B.tolist(), strict=True)
            yield [text.take(tokens[1:count]) for text, tokens, count in rows]
        next_B = sampling.choose(logits_BMV[row_B, (kept_B - 1).clamp(min=0)], generators)


def _as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def read_prompts(
    state: IncrementalBLT | IncrementalEntropyModel, prompts: Sequence[list[int]]
) -> Tensor:
    """Read the tokens of prompts, PIECE at a time.

    Returns:
        the logits after the last token of each prompt, ``[batch, vocab_size]`` float32.
    """
    device = state.model.device
    lengths_B = torch.tensor([len(tokens) for tokens in prompts], device=device)
    tokens_BS = torch.full((len(prompts), int(lengths_B.max())), BOE_ID, device=device)
    for row, tokens in enumerate(prompts):
        tokens_BS[row, : len(tokens)] = torch.tensor(tokens, device=device)
    row_B = torch.arange(len(prompts), device=device)
    logits_BV = torch.zeros(len(prompts), state.model.config.vocab_size, device=device)
    for start in range(0, tokens_BS.shape[1], PIECE):
        piece_BM = tokens_BS[:, start : start + PIECE]
        counts_B = (lengths_B - start).clamp(0, piece_BM.shape[1])
        logits_BMV = state.read(piece_BM, counts_B)
        last_BV = logits_BMV[row_B, (counts_B - 1).clamp(min=0)]
        logits_BV = torch.where((counts_B > 0)[:, None], last_BV, logits_BV)
    return logits_BV


def _draft(state: IncrementalBLT, next_B: Tensor, ahead: int) -> Tensor:
    """The next token of each row, which is certain, and the tokens that the local models put after
    it, ``[batch, 1 + ahead]``."""
    tokens = [next_B]
    for i in range(ahead):
        tokens.append(allowed(state.draft(tokens[-1], i)).argmax(-1))
    return torch.stack(tokens, 1)


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
            self.written.append(token - BYTE_OFFSET)
            ended = next((s for s in self.stops if self.written.endswith(s)), None)
            if ended is not None:
                del self.written[-len(ended) :]
            self.done = ended is not None or len(self.written) >= self.limit
        sure = len(self.written) - (0 if self.done else self._held_back())
        new = bytes(self.written[self.handed_out : sure])
        self.handed_out = max(self.handed_out, sure)
        return new

    def _held_back(self) -> int:
        """The length of the longest end of the text that a stop string could begin with."""
        longest = max((len(s) - 1 for s in self.stops), default=0)
        for size in range(min(longest, len(self.written)), 0, -1):
            if any(s.startswith(self.written[-size:]) for s in self.stops):
                return size
        return 0
