"""Entropies of documents that begin alike, each shared beginning scored once.

A transformer's entropy after a token depends on the tokens before it alone, so that documents are
read as trees (:mod:`pipeline.evaluate.trees`), here whatever their patches are.
"""

import numpy as np
import torch

from model.entropy_model import EntropyModel, entropy_of
from model.layers.attention import BLOCK
from model.layers.transformer import run_blocks
from model.layers.tree_attention import tree_attention
from pipeline.errors import PipelineError
from pipeline.evaluate.answers import copied
from pipeline.evaluate.likelihood import CPU_TOKENS, CPU_TREE, GPU_TOKENS, GROUP_TOKENS, NO_LIMIT
from pipeline.evaluate.reading import with_own_layers
from pipeline.evaluate.rows import RowSize, plan_rows
from pipeline.evaluate.trees import TreeRows, fill_tree_rows, grow_trees


class TreeEntropies:
    """An entropy model that scores documents that begin alike."""

    def __init__(self, model: EntropyModel):
        on_cpu = model.device.type == "cpu"
        self.model = with_own_layers(model, compiled=model.device.type == "cuda")
        longest = -(-model.context_length // BLOCK) * BLOCK
        self._row_tokens = max(CPU_TOKENS if on_cpu else GPU_TOKENS, longest)
        self._width = None if on_cpu else self._row_tokens
        self._largest_tree = self._row_tokens * (CPU_TREE if on_cpu else 1)

    @torch.inference_mode()
    def __call__(self, tokens_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
        """Entropies as they are stored: float16, nats; 0 for EOS, which nothing follows.

        Args:
            tokens_T: int32 ids; each document is BOS + bytes + EOS. In alphabetical order documents
                share most.
            lengths_D: int64, tokens of each document, no more than the model's context.

        Raises:
            PipelineError: the model gave an entropy that is not a number.
        """
        everywhere_T = np.ones(len(tokens_T), bool)
        most = RowSize(self._largest_tree, NO_LIMIT)
        branches = grow_trees(tokens_T, lengths_D, everywhere_T, most)
        first_N, tokens_N, _ = branches.trees()
        branches_N = np.diff(first_N, append=len(lengths_D))
        size = RowSize(self._row_tokens, NO_LIMIT)
        plan = plan_rows(tokens_N, np.zeros_like(tokens_N), size)
        h_T = torch.zeros(len(tokens_T), device=self.model.device)
        for tree_G, row_G, _ in plan.groups(max(GROUP_TOKENS // size.tokens, 1)):
            row_D = np.repeat(row_G, branches_N[tree_G])
            rows = fill_tree_rows(branches.of_trees(tree_G), row_D, self._width, tokens_T)
            at_X, place_X = (copied(x, h_T.device) for x in (rows.at_X, rows.place_X))
            h_T[at_X] = self._read(rows)[place_X]
        stored_T = h_T.clamp(min=0).half().cpu().numpy()
        if not np.isfinite(stored_T).all():
            raise PipelineError(
                "--entropy-model: gave an entropy that is not a number; its weights are broken, or "
                "overflow in the dtype it is run in"
            )
        return stored_T

    def _read(self, rows: TreeRows) -> torch.Tensor:
        """The entropies after the tokens of rows laid end to end."""
        model, h = self.model, []
        arrays = (rows.tokens_RT, rows.position_RT, rows.last_RT)
        for row in zip(*(copied(array, model.device).long() for array in arrays), strict=True):
            tokens_T, position_T, last_T = row
            attends = [tree_attention(position_T, last_T, model.config.window)] * len(model.layers)
            x_TD, rotary = model.tok_embeddings(tokens_T), model.rotary(position_T)
            x_TD = run_blocks(model.layers, x_TD, rotary, attends)
            h.append(entropy_of(model.output(model.norm(x_TD))))
        return torch.cat(h)
