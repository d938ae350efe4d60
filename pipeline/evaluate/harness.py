"""A BLT as a model of EleutherAI's lm-evaluation-harness, called ``blt-titan`` there.

Importing this module registers it; lm-eval is an optional extra (``pip install '.[harness]'``).
``jobs/evaluate.py --harness-tasks`` is the usual way in. The harness's own command works too::

    python -c "import pipeline.evaluate.harness
    from lm_eval.__main__ import cli_evaluate; cli_evaluate()" \
        run --model blt-titan --model_args model=DIR,entropy_model=DIR --tasks TASK
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import lm_eval

# The harness registers its own models when it finds none: do it before there is ours.
import lm_eval.models
import numpy as np
import torch
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.api.task import Task
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from rich.console import Console

from model.blt import BLT
from model.generation.generate import generate
from model.tokenizer import encode_documents
from pipeline.cli.progress_bar import metered
from pipeline.cli.results import print_line
from pipeline.errors import ConfigError, translated
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.likelihood import Predictions, predict
from pipeline.evaluate.models import PatchFlags, fetched, load_model, load_patching
from pipeline.statistics.bootstrap import RESAMPLES

BATCH_SIZE = 64
BYTES_PER_TOKEN = 4
"""About so many bytes are in one token of the models that tasks are written for: tasks limit the
length of what is generated in such tokens."""


@register_model("blt-titan")
class HarnessBLT(LM):
    """Text goes in and comes out as UTF-8; a text is scored as BOS and its bytes."""

    def __init__(
        self,
        model: str,
        entropy_model: str | None = None,
        threshold: float | None = None,
        reset_at_newline: bool = False,
        context: int = 8192,
        batch_size: int | str = BATCH_SIZE,
        device: str | None = None,
        seed: int = 0,
        rule: str | None = None,
        allow_other_entropies: bool = False,
    ):
        """
        Args:
            model: directory, URL or hub id of a BLT.
            entropy_model: directory, URL or hub id of the entropy model that places its patches; by
                default the one that lies with the BLT.
            threshold: nats above which a patch starts, instead of the checkpoint's.
            reset_at_newline: the entropy model's context starts again after each newline; by
                default as the checkpoint records it.
            context: bytes of a window of ``loglikelihood_rolling``; ``loglikelihood`` always reads
                all of its context.
            batch_size: requests that are handled together; "auto" for a usual number.
            device: where to compute; a GPU if there is one, by default. (The harness's command
                says cuda where there is none, too.)
            seed: seed of the first request, for tasks that sample; each further request has the
                next one.
            rule: name of the rule that places the boundaries, instead of the checkpoint's.
            allow_other_entropies: go on with entropies of another model than the one that the
                checkpoint was trained with.

        Raises:
            ConfigError: a model cannot be loaded, or ``context`` is too small.
        """
        super().__init__()
        if context < 2:
            raise ConfigError(f"--context: must be at least 2 bytes, got {context}")
        with fetched(model) as directory:
            loaded = load_model(directory, device if torch.cuda.is_available() else None)
            if not isinstance(loaded, BLT):
                raise ConfigError(f"--model: {model} is an entropy model; the harness needs a BLT")
            flags = PatchFlags(
                entropy_model, rule, threshold, reset_at_newline, allow_other_entropies
            )
            say = partial(print_line, Console(stderr=True))
            self.patching = load_patching(loaded, model, directory, flags, say)
        patcher = self.patching.patcher
        if patcher.needs_whole_document:
            raise ConfigError(
                f"--model: {model} has the {patcher.rule} rule, which cuts a text by what comes "
                "later in it: a continuation has no likelihood given its context alone"
            )
        self.blt, self.context = loaded, context
        self._next_seed = seed
        automatic = str(batch_size).startswith("auto")
        self.batch_size = BATCH_SIZE if automatic else int(batch_size)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation given its context, and whether all of it is
        what greedy decoding gives.

        The numbers are exact: patches start where the tokens before them say, all of the context is
        read, and nothing after the continuation matters.
        """
        results = []
        for batch in self._batches(requests, "scoring continuations"):
            pairs = [tuple(text.encode() for text in request.args) for request in batch]
            said = self._predict([before + after for before, after in pairs], None)
            for request, (before, after), of_text in zip(batch, pairs, said, strict=True):
                nats, greedy = (values[len(before) :][: len(after)] for values in of_text)
                result = -float(nats.sum(dtype=np.float64)), bool(greedy.all())
                self.cache_hook.add_partial("loglikelihood", request.args, result)
                results.append(result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability (nats) of each whole text, in windows where it is long."""
        results = []
        for batch in self._batches(requests, "scoring texts"):
            said = self._predict([request.args[0].encode() for request in batch], self.context)
            for request, of_text in zip(batch, said, strict=True):
                result = -float(of_text.nats_T.sum(dtype=np.float64))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
                results.append(result)
        return results

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text that the model writes after each prompt, up to the first stop string."""
        results = []
        for batch in self._batches(requests, "generating"):
            # Requests of a task share their settings: neighbours are generated together.
            for _, alike in groupby(batch, key=lambda request: str(request.args[1])):
                group = list(alike)
                settings = normalize_gen_kwargs(group[0].args[1])
                texts = generate(
                    self.blt,
                    self.patching.entropy_model,
                    [request.args[0].encode() for request in group],
                    patcher=self.patching.patcher,
                    max_new_bytes=settings["max_gen_toks"] * BYTES_PER_TOKEN,
                    temperature=settings["temperature"],
                    top_k=settings.get("top_k") or None,
                    top_p=settings.get("top_p"),
                    stop=[stop for stop in settings["until"] if stop],
                    seed=self._next_seed,
                    reset_at_newline=self.patching.reset_at_newline,
                )
                self._next_seed += len(group)
                for request, text in zip(group, texts, strict=True):
                    result = text.decode(errors="replace")
                    self.cache_hook.add_partial("generate_until", request.args, result)
                    results.append(result)
        return results

    def _predict(self, texts: Sequence[bytes], context: int | None) -> Iterator[Predictions]:
        """The predictions of each byte of each text."""
        tokens_T, lengths_D = encode_documents(texts)
        patch_lengths_P = self.patching(tokens_T, lengths_D)
        said = predict(self.blt, tokens_T, lengths_D, patch_lengths_P, context)
        for end, length in zip(lengths_D.cumsum(), lengths_D, strict=True):
            of_text = slice(end - length + 1, end - 1)
            yield Predictions(said.nats_T[of_text], said.greedy_T[of_text])

    def _batches(self, requests: list[Instance], doing: str) -> Iterator[list[Instance]]:
        sizes = [len(request.args[0].encode()) for request in requests]
        with metered(Console(stderr=True), doing, sum(sizes)) as report:
            for start in range(0, len(requests), self.batch_size):
                yield requests[start : start + self.batch_size]
                report(sum(sizes[start : start + self.batch_size]))


def evaluate_tasks(config: EvaluateConfig) -> dict[str, Any]:
    """The harness's results of ``config.harness_tasks``.

    Raises:
        ConfigError: a task is not known, or a model cannot be loaded.
    """
    names = [name.strip() for name in (config.harness_tasks or "").split(",") if name.strip()]
    tasks = load_tasks(names, TaskManager())
    model = HarnessBLT(
        config.model,
        config.entropy_model,
        config.threshold,
        config.reset_at_newline,
        config.context,
        seed=config.seed,
        rule=config.rule,
        allow_other_entropies=config.allow_other_entropies,
    )
    return lm_eval.simple_evaluate(
        model,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        log_samples=False,
        bootstrap_iters=RESAMPLES,
        random_seed=config.seed,
        fewshot_random_seed=config.seed,
    )


def load_tasks(names: Sequence[str], manager: TaskManager) -> list[Task | Group]:
    """Tasks, and groups of tasks, with their data.

    Raises:
        ConfigError: one is not known, or its data cannot be loaded.
    """
    tasks: list[Task | Group] = []
    for name in names:
        if not manager.match_tasks([name]) and not Path(name).is_file():
            raise ConfigError(
                f"--harness-tasks: {name!r} is neither a task that lm-eval knows (lm_eval ls tasks "
                "lists them) nor a YAML file"
            )
        with translated(f"--harness-tasks: {name}", ConfigError, "cannot be loaded"):
            found = manager.load([name])
        tasks += found["groups"].values() or found["tasks"].values()
    return tasks
