"""Writing in all rows of a batch: choosing bytes, reading them on, and letting new prompts in.

On a GPU most of a patch's time goes to reading the latent transformer's weights, whether one row
has ended a patch or all rows have. In a batch some row ends one with nearly every byte. So a row
that ends a patch waits, and reads its last byte again, until half of the rows do, or for one byte
of the others. What is predicted in it meanwhile counts for nothing. Every row writes what it would
write alone.

For example, three of eight rows end a patch with their third byte. With the next step the other
five write their fourth, and one of them ends a patch. All four patches are made then, and all eight
rows go on.

The host waits for the entropies of the bytes, and then knows which patches have ended. With few
rows, where the host's time counts, a step is one graph that also predicts as if none had. With many
rows that prediction is a graph of its own, which runs while the host does its part.
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

FEW_ROWS = 4
"""Rows up to which a step is one graph."""
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
        self._few = self._runner.records and batch <= FEW_ROWS

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
        self._runner.run(self._begin)

    def drop(self, row: int) -> None:
        """End the text of a row."""
        self._generators[row] = None
        self.state.drop(row)

    @torch.inference_mode()
    def write(self) -> list[list[int]]:
        """The next tokens of each row; one, or with drafts at least one. Nothing in empty rows, and
        in rows that wait for others to make a patch with them."""
        writing_B = np.array([g is not None for g in self._generators])
        if self._ahead:
            kept_B = self._write_drafts(writing_B)
        else:
            kept_B = writing_B & ~self.state.unmade_B
            self._write_singly(kept_B, writing_B)
        rows = zip(self.state.tokens_BM.tolist(), kept_B.tolist(), strict=True)
        return [tokens[:count] for tokens, count in rows]

    def _write_drafts(self, writing_B: np.ndarray) -> np.ndarray:
        """Returns how many tokens of each row are right."""
        assert isinstance(self._steps, BLTSteps)
        columns = 1 + self._ahead
        self.state.open(writing_B * columns, columns)
        self._first_B.copy_(self._next_B)
        self._runner.run(self._steps.draft, self._ahead)
        self._runner.run(self._steps.listen, columns)
        self.state.close()
        self._runner.run(self._check, columns)
        kept_B: np.ndarray = self._runner.fetch(self._kept_B) * writing_B
        self.state.keep(kept_B)
        return kept_B

    def _write_singly(self, going_B: np.ndarray, writing_B: np.ndarray) -> None:
        """Write a token in the rows that go on; the other ones stay where they are."""
        noise_BV = None if self._noise is None else self._noise.turn(going_B)
        self.state.open(going_B.astype(np.int64), 1, noise_BV)
        self._go_on(bool(going_B[writing_B].all()))
        # On a CPU each step costs what its rows cost.
        due = bool(self.state.unmade_B.any()) or not self._runner.records
        if self._few:
            self._runner.run(self._listen_and_guess)
        else:
            self._runner.run(self._steps.listen, 1)
            self._runner.ask(self._steps.piece.heard_BM2)
            if not due:
                self._runner.run(self._predict)
        # To draw for many rows takes as long as to listen to them: a GPU that has nothing else to
        # do is given the patches first.
        if not due:
            self._draw_ahead(going_B)
        self.state.hear()
        unmade = np.count_nonzero(self.state.unmade_B)
        if unmade and (due or 2 * unmade >= np.count_nonzero(writing_B)):
            self.state.make_patches()
            self._runner.run(self._predict)
        elif due and not self._few:
            self._runner.run(self._predict)
        if due:
            self._draw_ahead(going_B)

    def _go_on(self, everywhere: bool) -> None:
        """Put what was chosen where the piece begins, in rows that go on. That is no part of a
        step, which could not be run again."""
        if everywhere:
            self._first_B.copy_(self._next_B)
        else:
            goes_on_B = self._steps.piece.count_B > 0
            self._first_B.copy_(torch.where(goes_on_B, self._next_B, self._first_B))

    def _draw_ahead(self, going_B: np.ndarray) -> None:
        """Draw noise for the tokens after the next while a GPU works on these."""
        if self._noise is not None:
            pairs = zip(self._generators, going_B.tolist(), strict=True)
            self._noise.draw(generator if going else None for generator, going in pairs)

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
