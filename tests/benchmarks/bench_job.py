"""The whole job against its scorer alone, one worker.

For a transformer (2 layers, 64 wide) and an n-gram model: the time of ``patch_unit``, which reads
JSONL, scores and writes committed shards, as a multiple of the time of ``Scorer.score`` on the same
batches, measured in turn; target for the transformer <= 1.10. Processor time is compared as well:
reading and writing have threads of their own, and a second core hides them.

Then the job itself is run once as a command, with one worker, and its rate (in which the start of
the worker is included) is printed as a share of the scorer's.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median

from common import (  # isort: skip
    ROOT,
    alternating,
    in_batches,
    quotient,
    short_documents,
    source_documents,
    spread,
    verdict,
    write_jsonl,
)

import torch

from model.checkpoints.entropy_model import save_entropy_model
from model.entropies import ByteEntropyModel
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import encode_documents
from pipeline.cluster.memory import bound_memory
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import BATCH_BYTES, patch_unit
from pipeline.patch.scoring import Scorer
from pipeline.storage.output import OutputDirectory

TARGET = 1.10
THRESHOLD = 1.5


def timing_processors(function: Callable[[], object], spent: list[float]) -> Callable[[], None]:
    """The function, noting the processor time of all threads of each call."""

    def timed() -> None:
        began = time.process_time()
        function()
        spent.append(time.process_time() - began)

    return timed


def compare(
    name: str, model: ByteEntropyModel, documents: list[bytes], directory: Path, rounds: int
) -> float:
    """Seconds of the split as a multiple of the scorer's."""
    corpus, model_directory = directory / f"{name}.jsonl", directory / name
    write_jsonl(corpus, documents)
    save_entropy_model(model, model_directory)
    size = sum(map(len, documents))
    scorer = Scorer(model, Patcher(threshold=THRESHOLD))
    batches = in_batches(documents, BATCH_BYTES)
    (file,) = find_inputs([str(corpus)]).files
    (split,) = plan_file(file, "jsonl", corpus.stat().st_size + 1).splits
    numbers = count()

    def score() -> None:
        for batch in batches:
            scorer.score(batch)

    def whole() -> None:
        output = str(directory / f"{name}-split-{next(numbers)}")
        config = PatchCorpusConfig((str(corpus),), output, threshold=THRESHOLD)
        patch_unit((split,), 0, config, scorer, OutputDirectory(output), lambda tokens: None)

    spent: tuple[list[float], list[float]] = [], []
    times = alternating(
        rounds, timing_processors(score, spent[0]), timing_processors(whole, spent[1])
    )
    cpu = median(b / a for a, b in zip(*spent, strict=True))
    rate = size / median(row[0] for row in times)
    print(f"{name}: {size / 1e6:.1f} MB in {len(documents)} documents, {len(batches)} batches")
    print(f"    scorer       {rate / 1e6:8.3f} MB/s")
    print(f"    patch_unit  {size / median(row[1] for row in times) / 1e6:8.3f} MB/s")
    print(f"    patch_unit / scorer, seconds: {quotient(times, 1, 0):.3f} ({spread(times, 1, 0)})")
    print(f"    patch_unit / scorer, processor time: {cpu:.3f}")
    command_rate = run_command(corpus, directory / f"{name}-job", model_directory)
    print(f"    command      {command_rate / 1e6:8.3f} MB/s, {command_rate / rate:.2f} of that")
    return quotient(times, 1, 0)


def run_command(corpus: Path, output: Path, model: Path) -> float:
    """Bytes per second that the job reports."""
    arguments = {
        "--input": corpus,
        "--output": output,
        "--entropy-model": model,
        "--threshold": THRESHOLD,
        "--num-workers": 1,
    }
    flags = [str(part) for pair in arguments.items() for part in pair]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "patch_corpus.py"), *flags, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the job failed:\n{done.stderr}")
    result = json.loads(done.stdout)
    print(f"    command: {result['seconds']:.1f} s for {result['bytes'] / 1e6:.1f} MB")
    return result["bytes_per_second"]


def main() -> None:
    torch.set_num_threads(1)
    bound_memory()  # as workers do
    torch.manual_seed(0)
    transformer = EntropyModel(EntropyModelConfig(dim=64, n_layers=2, n_heads=4)).eval()
    fitting, asked = source_documents(0, 30_000_000, 25_000_000)
    ngram = NGramEntropyModel.fit(encode_documents(b) for b in in_batches(fitting, 8 << 20))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        documents = short_documents(2_300_000, seed=3)
        of_transformer = compare("transformer", transformer, documents, directory, rounds=2)
        of_ngram = compare("n-gram", ngram, asked, directory, rounds=5)
    print(
        f"result: the whole takes {of_transformer:.3f} times as long as the scorer alone with a "
        f"transformer (target {TARGET}, {verdict(of_transformer <= TARGET)}), "
        f"{of_ngram:.2f} times with the n-gram model"
    )


if __name__ == "__main__":
    main()
