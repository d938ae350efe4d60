"""The text of an experiment: shards for every entropy model of its arms, and tokenizers.

All of it lies in one directory, which several experiments share::

    data/text/train.jsonl, held-out.jsonl    Python's documentation and library
    data/ENTROPY_MODEL/train, held out       shard sets
    data/tokenizer-SIZE.json

What is there is used again. Text is patched by the code of ``jobs/patch_corpus.py``, which
continues where it was stopped.
"""

import json
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from model.patcher import Patcher
from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.shard_set import ShardSet, open_shards
from pipeline.statistics.threshold_curve import ThresholdCounts
from pipeline.storage.run_record import MANIFEST
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically
from train.compare.experiment import CLEAN, Arm, Experiment, Form
from train.compare.noise import write_noised
from train.data.bpe_training import sample, train

PATCH_SIZE = 4.5
"""Mean bytes per patch of the shard sets, as in the paper's main experiments; arms with other
patches re-patch them as they read."""
TOKENIZER_BYTES = 100_000_000
"""Text that a tokenizer is trained on, at most."""
HELD_OUT_DOCUMENTS = 16
"""Documents that are held out of Python's text, at least."""
CALIBRATED = 20_000
"""Documents that a threshold is chosen by, at most."""


@dataclass(frozen=True)
class Data:
    """The place of an experiment's data."""

    folder: Path
    inputs: tuple[str, ...] = ()
    """Text to train on, as ``patch_corpus.py`` reads it; none of it: Python's own."""
    held_out: tuple[str, ...] = ()
    """Text that is held out; it is given where ``inputs`` are."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: text is given to train on, or held out, without the other.
        """
        if bool(self.inputs) != bool(self.held_out):
            raise ConfigError(
                "--input: give text to train on (--input) and text that is held out (--held-out), "
                "or neither for Python's documentation and library"
            )

    def shards(self, entropy_model: str, part: str) -> Path:
        """The shard set of one part of the text (``train``, or the name of a held-out text)."""
        return self.folder / Path(entropy_model).name / part

    def tokenizer(self, vocab_size: int) -> Path:
        """The ``tokenizer.json`` with so many tokens."""
        return self.folder / f"tokenizer-{vocab_size}.json"


def prepare(data: Data, experiment: Experiment, form: Form, console: Console) -> None:
    """Make what the arms read, as far as it is not there.

    Raises:
        ConfigError: the directory holds other text, or an entropy model is not known.
        PipelineError: text cannot be read, or patched.
    """
    _check_text(data, form)
    for entropy_model in dict.fromkeys(arm.entropy_model for arm in experiment.arms):
        parts = {"train": data.inputs, CLEAN: data.held_out}
        if not data.inputs:
            own = own_text(data.folder, form, console)
            parts = {part: (str(path),) for part, path in own.items()}
        for part, inputs in parts.items():
            _patch(data, entropy_model, part, inputs, console)
        for part, path in _noised(data, experiment).items():
            _patch(data, entropy_model, part, (str(path),), console)
    if readers := [arm for arm in experiment.arms if arm.model == "bpe"]:
        _train_tokenizer(data, readers[0], form.vocab_size)


def _check_text(data: Data, form: Form) -> None:
    """Record which text the directory is made from; later commands have to name the same."""
    if data.inputs:
        text: dict[str, Any] = {"input": list(data.inputs), "held_out": list(data.held_out)}
    else:
        text = {"corpus_bytes": form.corpus_bytes, "held_out_bytes": form.held_out_bytes}
    path = data.folder / "text.json"
    if not path.exists():
        write_atomically(*checkpoint_filesystem(str(path)), json.dumps(text, indent=1).encode())
    elif json.loads(path.read_text()) != text:
        raise ConfigError(
            f"--output: {data.folder} was made of other text ({path.read_text()}); give another "
            "--output for another text or form"
        )


def held_out_names(experiment: Experiment) -> list[str]:
    """The names of the held-out texts, the clean one first."""
    return [CLEAN, *experiment.noise]


def own_text(folder: Path, form: Form, console: Console) -> dict[str, Path]:
    """``train.jsonl`` and ``held-out.jsonl``: Python's documentation and library.

    Whole documents are held out, none of them much longer than the others. They are topics of the
    documentation, and modules that lie beside the library's packages: entropy-1m was not trained on
    either.
    """
    paths = {"train": folder / "text" / "train.jsonl", CLEAN: folder / "text" / "held-out.jsonl"}
    if all(path.exists() for path in paths.values()):
        return paths
    library = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    beside = [path for path in files if path.parent == library]
    draw = random.Random(0)
    unseen = [*sorted(pydoc_data.topics.topics.items()), *_texts(beside, library)]
    draw.shuffle(unseen)
    most = form.held_out_bytes / HELD_OUT_DOCUMENTS
    short = [each for each in unseen if len(each[1].encode()) <= most]
    held_out = list(_first(short, form.held_out_bytes))
    others = [path for path in files if path.parent != library and "test" not in path.parts]
    rest = [*(each for each in unseen if each not in held_out), *_texts(others, library)]
    draw.shuffle(rest)
    taken = list(_first(rest, form.corpus_bytes))
    if (size := sum(len(text.encode()) for _, text in taken)) < form.corpus_bytes:
        console.print(
            f"Python brings {size / 1e6:.1f} MB of text to train on, fewer than "
            f"{form.corpus_bytes / 1e6:g}; runs read it more than once (--input takes other text)",
            highlight=False,
        )
    for part, documents in (("train", taken), (CLEAN, held_out)):
        lines = [json.dumps({"id": name, "text": text}) for name, text in documents]
        write_atomically(*checkpoint_filesystem(str(paths[part])), "\n".join(lines).encode())
    return paths


def _first(documents: Sequence[tuple[str, str]], size: int) -> Iterator[tuple[str, str]]:
    """Documents from the beginning, until they have so many bytes."""
    for name, text in documents:
        if size <= 0:
            return
        yield name, text
        size -= len(text.encode())


def _texts(paths: Sequence[Path], library: Path) -> Iterator[tuple[str, str]]:
    for path in paths:
        if text := path.read_text(encoding="utf-8", errors="ignore"):
            yield str(path.relative_to(library)), text


def _patch(
    data: Data, entropy_model: str, part: str, inputs: Sequence[str], console: Console
) -> None:
    """Patch one part of the text, unless it is done; parts beside ``train`` by its threshold."""
    output = data.shards(entropy_model, part)
    if (output / MANIFEST).exists():
        if part == "train":
            _check_model(output, entropy_model)
        return
    # Ray and the pipeline take seconds to load, and a machine that is given shards may lack them.
    from pipeline.patch.config import NGRAM, PatchCorpusConfig
    from pipeline.patch.job import patch_corpus
    from pipeline.patch.record import MODEL_DIRECTORY

    console.print(f"patching: {part}, by {entropy_model}", highlight=False)
    patches: dict[str, Any] = {"entropy_model": entropy_model, "target_patch_size": PATCH_SIZE}
    if part != "train":  # by the same model, which an n-gram model is only there, and threshold
        training = open_shards(str(data.shards(entropy_model, "train")))
        own = training.output.locate(MODEL_DIRECTORY)
        fitted = training.manifest["entropy_model"]["source"] == NGRAM
        patches = {"entropy_model": own if fitted else entropy_model}
        patches["threshold"] = training.patcher.threshold
    done = patch_corpus(
        PatchCorpusConfig(
            input=tuple(inputs),
            output=str(output),
            **patches,
            shard_bytes=1 << 20 if not data.inputs else PatchCorpusConfig.shard_bytes,
        ),
        console,
    )
    if done.failures or done.problems or not done.complete:
        problem = next(iter([*done.failures, *done.problems]), "it is not complete")
        raise PipelineError(f"{output}: {problem}; the same command tries it again")
    if done.rejects:
        console.print(f"{done.rejects} documents were rejected: {output}/rejects")


def _check_model(output: Path, entropy_model: str) -> None:
    """Two models whose directories have one name would share a shard set."""
    made = open_shards(str(output)).manifest.get("configuration", {})
    if made.get("entropy_model", entropy_model) != entropy_model:
        raise ConfigError(
            f"entropy_model {entropy_model}: {output} was made with {made['entropy_model']}; give "
            "the directory of one of them another name"
        )


def _noised(data: Data, experiment: Experiment) -> dict[str, Path]:
    """Files with the held-out text and each kind of noise."""
    if not experiment.noise:
        return {}
    folder = data.folder / "text"
    paths = {kind: folder / f"{kind}.jsonl" for kind in experiment.noise}
    # A file that is written again would be another input for the job that patches it.
    missing = [kind for kind, path in paths.items() if not path.exists()]
    source = open_shards(str(data.shards(experiment.arms[0].entropy_model, CLEAN)))
    write_noised(((each.sample_id, each.text) for each in source), folder, missing)
    return paths


def _train_tokenizer(data: Data, arm: Arm, vocab_size: int) -> None:
    path = data.tokenizer(vocab_size)
    if not path.exists():
        shards = ShardSet(str(data.shards(arm.entropy_model, "train")))
        content = train(list(sample([shards], TOKENIZER_BYTES)), vocab_size)
        write_atomically(*checkpoint_filesystem(str(path)), content)


def threshold(shards: ShardSet, patcher: Patcher, patch_size: float) -> float:
    """The threshold (nats) with which a rule gives documents of a set patches of a mean size.

    Raises:
        PipelineError: the set holds no entropies.
    """
    if not shards.has_entropies:
        raise PipelineError(f"{shards.output.url}: holds no entropies, which patches are made of")
    counts = ThresholdCounts()
    for document in islice(shards, CALIBRATED):
        assert document.entropies is not None
        lengths_D = np.array([len(document.entropies)])
        counts = counts + ThresholdCounts.of(patcher, document.entropies, lengths_D)
    closest = counts.curve().closest(patch_size)
    if closest is None:
        raise PipelineError(f"{shards.output.url}: holds no text")
    return closest[0]
