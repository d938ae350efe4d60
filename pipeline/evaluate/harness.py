"""A BLT as a model of EleutherAI's lm-evaluation-harness, called ``blt-titan`` there.

Importing this module registers it; lm-eval is an optional extra (``pip install '.[harness]'``).
``jobs/evaluate.py --harness-tasks`` is the usual way in. The harness's own command works too::

    python -c "import pipeline.evaluate.harness
    from lm_eval.__main__ import cli_evaluate; cli_evaluate()" \
        run --model blt-titan --model_args model=DIR,entropy_model=DIR --tasks TASK
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import lm_eval

# The harness registers its own models when it finds none: do it before there is ours.
import lm_eval.models
import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from rich.console import Console

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.generation.generate import generate
from model.tokenizer import encode_documents
from pipeline.cli.flags import flag_name
from pipeline.cli.progress_bar import metered
from pipeline.cli.results import print_line
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate import writing
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.continuations import lay_out
from pipeline.evaluate.data import BATCH_BYTES
from pipeline.evaluate.likelihood import Predictor
from pipeline.evaluate.models import PatchFlags, fetched, load_model, load_patching
from pipeline.evaluate.named_tasks import load_tasks
from pipeline.evaluate.tree_entropies import TreeEntropies
from pipeline.statistics.bootstrap import RESAMPLES

BATCH_SIZE = 64
REPEATED_BYTES = 4 * BATCH_BYTES
TASKS = Path(__file__).with_name("tasks")
"""The tasks that come with this package."""
BATCHES = 8
"""Batches of prompts that are handed over together; then their answers are kept."""


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
            batch_size: prompts that are written on together; "auto" for a usual number.
                (Likelihoods are packed by their tokens, whatever it is.)
            device: where to compute; a GPU if there is one, by default. (The harness's command
                says cuda where there is none, too.)
            seed: seed of the first request, for tasks that sample; each further request has the
                next one.
            rule: name of the rule that places the boundaries, instead of the checkpoint's.
            allow_other_entropies: go on with entropies of another model than the one that the
                checkpoint was trained with.

        Raises:
            ConfigError: a model cannot be loaded, ``context`` is too small, or ``batch_size`` is no
                number of prompts.
        """
        super().__init__()
        if context < 2:
            raise ConfigError(f"--context: must be at least 2 bytes, got {context}")
        automatic = str(batch_size).startswith("auto")
        if (not automatic and not str(batch_size).isdecimal()) or str(batch_size) == "0":
            raise ConfigError(f"batch_size: must be 1 or more, or auto, got {batch_size!r}")
        self.batch_size = BATCH_SIZE if automatic else int(batch_size)
        with fetched(model) as directory:
            loaded = load_model(directory, device if torch.cuda.is_available() else None)
            if not isinstance(loaded, BLT):
                raise ConfigError(f"--model: {model} is an entropy model; the harness needs a BLT")
            flags = PatchFlags(
                entropy_model, rule, threshold, reset_at_newline, allow_other_entropies
            )
            self._say = partial(print_line, Console(stderr=True))
            self.patching = load_patching(loaded, model, directory, flags, self._say)
        patcher = self.patching.patcher
        if patcher.needs_whole_document:
            raise ConfigError(
                f"--model: {model} has the {patcher.rule} rule, which cuts a text by what comes "
                "later in it: a continuation has no likelihood given its context alone"
            )
        self.blt, self.context = loaded, context
        self.predictor = Predictor(loaded, context)
        scoring = self.patching.entropy_model
        self.tree_entropies: TreeEntropies | None = None
        if isinstance(scoring, EntropyModel) and not self.patching.reset_at_newline:
            self.tree_entropies = TreeEntropies(scoring)
        self._next_seed = seed
        self._told: set[str] = set()

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability (nats) of each continuation given its context, and whether all of it is
        what greedy decoding gives.

        The numbers are exact: patches start where the tokens before them say, all of the context is
        read, and nothing after the continuation matters.
        """
        results = []
        size = sum(len(request.args[1]) for request in requests)
        with metered(Console(stderr=True), "scoring continuations", size) as report:
            for batch in _batches(requests):
                laid_out = lay_out([(before, after) for _, (before, after) in batch])
                documents = self._patched_alike(laid_out.documents)
                answers = self.predictor.answer(*documents, laid_out.questions, report)
                start = 0
                for (request, _), stop in zip(batch, laid_out.stop_R.tolist(), strict=True):
                    nats_T, greedy_T = answers.nats_T[start:stop], answers.greedy_T[start:stop]
                    result = _log_probability(request, nats_T), bool(greedy_T.all())
                    self.cache_hook.add_partial("loglikelihood", request.args, result)
                    results.append(result)
                    start = stop
        return results

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability (nats) of each whole text, in windows where it is long."""
        results = []
        size = sum(len(request.args[0]) for request in requests)
        with metered(Console(stderr=True), "scoring texts", size) as report:
            for batch in _batches(requests):
                texts = [text for _, (text, *_) in batch]
                nats_T = self.predictor(*self._patched(texts), self.context, report).nats_T
                start = 1  # BOS is given
                for (request, _), text in zip(batch, texts, strict=True):
                    # EOS is no part of the text.
                    result = _log_probability(request, nats_T[start : start + len(text)])
                    self.cache_hook.add_partial("loglikelihood_rolling", request.args, result)
                    results.append(result)
                    start += len(text) + 2
        return results

    def _patched(self, documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, lengths and patch lengths of documents laid end to end."""
        tokens_T, lengths_D = encode_documents(documents)
        return tokens_T, lengths_D, self.patching(tokens_T, lengths_D)

    def _patched_alike(
        self, documents: Sequence[bytes]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As :meth:`_patched`, with entropies of what documents share computed once."""
        scoring = self.tree_entropies
        longest = max(map(len, documents), default=0) + 2
        if scoring is None or longest > scoring.model.context_length:
            return self._patched(documents)
        tokens_T, lengths_D = encode_documents(documents)
        h_T = scoring(tokens_T, lengths_D)
        return tokens_T, lengths_D, self.patching.by_entropies(h_T, tokens_T, lengths_D)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The text that the model writes after each prompt, up to the first stop string."""
        prompts = [_encoded(request, request.args[0]) for request in requests]
        results = [""] * len(requests)
        with metered(Console(stderr=True), "generating", sum(map(len, prompts))) as report:
            for numbers, settings in self._alike(requests, prompts):
                self._tell_passed_over(settings, requests[numbers[0]].task_name)
                try:
                    texts = generate(
                        self.blt,
                        self.patching.entropy_model,
                        [prompts[number] for number in numbers],
                        patcher=self.patching.patcher,
                        seed=self._next_seed,
                        reset_at_newline=self.patching.reset_at_newline,
                        batch_size=self.batch_size,
                        **writing.arguments(settings),
                    )
                except FloatingPointError as error:  # a model's weights are broken
                    name, colon, rest = str(error).partition(":")
                    raise PipelineError(flag_name(name) + colon + rest) from error
                except ValueError as error:  # the task asks for what makes no sense
                    task = requests[numbers[0]].task_name
                    raise ConfigError(f"--harness-tasks: {task}: {error}") from error
                self._next_seed += len(numbers)
                for number, text in zip(numbers, texts, strict=True):
                    results[number] = text.decode(errors="replace")
                    args = requests[number].args
                    self.cache_hook.add_partial("generate_until", args, results[number])
                report(sum(len(prompts[number]) for number in numbers))
        return results

    def _tell_passed_over(self, settings: Mapping[str, Any], task: str | None) -> None:
        """Say once which of a task's settings its texts are written without."""
        for setting in writing.passed_over(settings):
            told = f"task {task}: {setting}; programs that follow it give other results"
            if told not in self._told:
                self._told.add(told)
                self._say(told)

    def _alike(
        self, requests: list[Instance], prompts: Sequence[bytes]
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Some batches of requests with the same settings, the longest prompts first: prompts of a
        batch then have about one length, and memory that does not suffice is found out at once.
        Within a group a finished text makes room for the next prompt."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(str(request.args[1]), []).append(number)
        for numbers in groups.values():
            settings = _settings(requests[numbers[0]])
            numbers.sort(key=lambda number: -len(prompts[number]))
            size = BATCHES * self.batch_size
            for start in range(0, len(numbers), size):
                yield numbers[start : start + size], settings


def _settings(request: Instance) -> dict[str, Any]:
    """A request's settings of generation, under the names that :mod:`pipeline.evaluate.writing`
    reads."""
    try:
        return dict(normalize_gen_kwargs(request.args[1]))
    except ValueError as error:
        raise ConfigError(f"--harness-tasks: {request.task_name}: {error}") from error


def _batches(requests: list[Instance]) -> Iterator[list[tuple[Instance, tuple[bytes, ...]]]]:
    """Requests in their order with their texts, as many at a time as have about BATCH_BYTES, or
    REPEATED_BYTES where requests that follow one another have the same context."""
    batch: list[tuple[Instance, tuple[bytes, ...]]] = []
    size, repeated, before = 0, 0, b""
    for request in requests:
        texts = tuple(_encoded(request, text) for text in request.args)
        batch.append((request, texts))
        size += sum(map(len, texts))
        repeated += len(before) if texts[0] == before else 0
        before = texts[0]
        if size >= REPEATED_BYTES or size - repeated >= BATCH_BYTES:
            yield batch
            batch, size, repeated = [], 0, 0
    if batch:
        yield batch


def _log_probability(request: Instance, nats_T: np.ndarray) -> float:
    nats = float(nats_T.sum(dtype=np.float64))
    if not isfinite(nats):
        raise PipelineError(
            f"--model: gave a probability that is not a number in {_name(request)}; its weights "
            "are broken, or overflow in the dtype it is run in"
        )
    return 0.0 - nats


def _name(request: Instance) -> str:
    return f"document {request.doc_id} of the task {request.task_name}"


def _encoded(request: Instance, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise PipelineError(
            f"--harness-tasks: {_name(request)} holds half of a surrogate pair "
            f"({text[error.start]!a}), which has no UTF-8 form; mend the task's data"
        ) from error


def evaluate_tasks(config: EvaluateConfig) -> dict[str, Any]:
    """The harness's results of ``config.harness_tasks``.

    Raises:
        ConfigError: a task is not known, or a model cannot be loaded.
    """
    names = [name.strip() for name in (config.harness_tasks or "").split(",") if name.strip()]
    metadata = {"data": config.harness_data} if config.harness_data else None
    manager = TaskManager(include_path=str(TASKS), metadata=metadata)
    tasks = load_tasks(names, manager)
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
