"""Writing in all rows of a batch: choosing bytes, reading them on, and letting new prompts in.

On a GPU a byte is two graphs (three, if a patch ends) and one wait of the host. With so few rows
that seldom one of them ends a patch, the prediction is made beside the scoring, as if none did, and
again if one did.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from model.generation.blt_steps import BLTSteps
from model.generation.incremental import Incremental
from model.generation.kv_cache import PIECE
from model.generation.sampling import Noise, Sampling, likeliest
from model.tokenizer import BOE_ID

GUESSING_ROWS = 4
"""Rows up to which a patch ends seldom enough: one in 4 or 5 bytes of a row ends one."""
TOGETHER = 32
"""Prompts that are read together: more would only need more memory."""


class Writer:
    """A batch of rows that are written on."""

    def __init__(
        self,
        new_state: Callable[[int, int], Incremental],
        batch: int,
        sampling: Sampling,
        draft_bytes: int = 0,
    ):
        """
        Args:
            new_state: makes the state of so many rows that read so many tokens at a time.
            batch: how many rows there are.
            draft_bytes: bytes that the local models write ahead.
        """
        self._new_state, self._sampling, self._ahead = new_state, sampling, draft_bytes
        self.state = new_state(batch, 1 + draft_bytes)
        self._steps, self._runner = self.state.steps, self.state.runner
        logits_BV = self._steps.logits_BMV[:, 0]
        self._next_B = torch.zeros(batch, dtype=torch.int64, device=logits_BV.device)
        """The token that each row reads next."""
        self._first_B = self._steps.piece.tokens_BM[:, 0]
        self._kept_B = torch.ones_like(self._next_B)
        self._noise = Noise(*logits_BV.shape) if sampling.temperature else None
        self._generators: list[torch.Generator | None] = [None] * batch
        self._guesses = self._runner.records and batch <= GUESSING_ROWS

    @property
    def rows(self) -> int:
        """How many texts can be written at a time."""
        return self.state.piece.batch

    def close(self) -> None:
        """Give the memory of graphs back, now rather than when their circle is collected."""
        self._runner.forget()

    @torch.inference_mode()
    def admit(self, prompts: dict[int, Sequence[int]], seeds: dict[int, int]) -> None:
        """Begin texts in rows.

        Args:
            prompts: the tokens of each row's prompt; at least one.
            seeds: what is drawn in the row.
        """
        rows = list(prompts)
        for first in range(0, len(rows), TOGETHER):
            together = rows[first : first + TOGETHER]
            reader = self._new_state(len(together), PIECE)
            read_prompts(reader, [prompts[row] for row in together])
            for i, row in enumerate(together):
                self.state.take(row, reader, i)
        for row, seed in seeds.items():
            generator = self._generators[row] = torch.Generator().manual_seed(seed)
            if self._noise is not None:
                self._noise.begin(row, generator)
        # The other rows choose what they have chosen once more.
        self.state.recall(None if self._noise is None else self._noise.now)
        self._run_choice(self._begin)

    def drop(self, row: int) -> None:
        """End the text of a row."""
        self._generators[row] = None
        self.state.drop(row)

    def _run_choice(self, step: Callable[..., None], *sizes: int) -> None:
        """Run a step that chooses, and put what it chooses where the next piece begins. That is no
        part of the step, which could not be run again."""
        self._runner.run(step, *sizes)
        self._first_B.copy_(self._next_B)

    def _draw_ahead(self) -> None:
        """Draw noise for the next tokens while a GPU works on these."""
        if self._noise is not None:
            self._noise.draw(self._generators)

    @torch.inference_mode()
    def write(self) -> list[list[int]]:
        """The next tokens of each row; one, or with drafts at least one. Nothing in empty rows."""
        writing_B = np.array([g is not None for g in self._generators], np.int64)
        columns = 1 + self._ahead
        noise_BV = None if self._noise is None else self._noise.turn()
        self.state.open(writing_B * columns, columns, noise_BV)
        kept_B = writing_B
        if self._ahead:
            assert isinstance(self._steps, BLTSteps)
            self._runner.run(self._steps.draft, self._ahead)
            self._runner.run(self._steps.listen, columns)
            self.state.close()
            self._run_choice(self._check, columns)
            kept_B = self._runner.fetch(self._kept_B) * writing_B
            self.state.keep(kept_B)
        elif self._guesses:
            self._run_choice(self._listen_and_guess)
            self._draw_ahead()
            if self.state.close():
                self._run_choice(self._predict)
        else:
            self._runner.run(self._steps.listen, columns)
            self.state.close()
            self._run_choice(self._predict)
            self._draw_ahead()
        rows = zip(self.state.tokens_BM.tolist(), kept_B.tolist(), strict=True)
        return [tokens[:count] for tokens, count in rows]

    # The steps.

    def _listen_and_guess(self) -> None:
        self._steps.listen(1, self._predict)

    def _predict(self) -> None:
        self._steps.predict(1)
        self._choose()

    def _begin(self) -> None:
        self._steps.repeat()
        self._choose()

    def _choose(self) -> None:
        logits_BV = self._steps.logits_BMV[:, 0]
        self._next_B.copy_(self._sampling.choose(logits_BV, self._steps.piece.noise_BV))

    def _check(self, columns: int) -> None:
        """Keep the first token of each row, and drafted ones as long as all before them lead to
        them."""
        self._steps.predict(columns)
        tokens_BM = self._steps.piece.tokens_BM[:, :columns]
        best_BM = likeliest(self._steps.logits_BMV[:, :columns])
        right_BM = tokens_BM[:, 1:] == best_BM[:, :-1]
        self._kept_B.copy_(1 + right_BM.long().cumprod(1).sum(1))
        self._next_B.copy_(best_BM.gather(1, self._kept_B[:, None] - 1)[:, 0])


def read_prompts(state: Incremental, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Read the tokens of prompts, PIECE at a time.

    Returns:
        the logits after the last token of each prompt, ``[batch, vocab_size]`` float32.
    """
    lengths_B = np.array([len(tokens) for tokens in prompts])
    tokens_BS = np.full((len(prompts), lengths_B.max()), BOE_ID)
    for row, tokens in enumerate(prompts):
        tokens_BS[row, : len(tokens)] = tokens
    logits_BV = state.steps.logits_BMV[:, 0]
    for start in range(0, tokens_BS.shape[1], PIECE):
        piece_BM = tokens_BS[:, start : start + PIECE]
        # A row that has ended repeats its last token.
        logits_BV = state.read(piece_BM, (lengths_B - start).clip(0, piece_BM.shape[1]))[:, -1]
    return logits_BV
