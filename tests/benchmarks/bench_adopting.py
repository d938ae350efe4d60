"""Adopting shards that come with entropies against exporting and copying them, one process.

A set of real text is written with an n-gram model and exported in the reference layout. Then are
measured in turn, on the same shards: copying their rows with pyarrow (read, compress, write),
exporting them, and adopting the export (read, check, patch, count, compress, write). All three
write the same columns but for patch lengths; ``adopt / export`` says what an adoption costs.
"""

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
    source_documents,
    spread,
    write_jsonl,
)

sys.path.insert(0, str(ROOT / "tests"))

import pyarrow as pa
import torch
from support.shard_sets import write_manifest

from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import encode_documents
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.cluster.memory import bound_memory
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import export_shard, plan_export
from pipeline.export.layouts import LAYOUTS
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import patch_unit
from pipeline.patch.scoring import Scorer
from pipeline.patch.stored import StoredScorer
from pipeline.shards.entries import read_entries
from pipeline.shards.format import ipc_options, shard_schema
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory

THRESHOLD, BYTES, ROUNDS = 1.5, 12_000_000, 5


def make_set(directory: Path) -> ShardSet:
    """A set of real text, of one shard."""
    fitting, documents = source_documents(0, 10_000_000, BYTES)
    model = NGramEntropyModel.fit(encode_documents(b) for b in in_batches(fitting, 8 << 20))
    corpus, output = directory / "text.jsonl", OutputDirectory(str(directory / "set"))
    write_jsonl(corpus, documents)
    config = PatchCorpusConfig((str(corpus),), output.url, threshold=THRESHOLD)
    (file,) = find_inputs(config.input).files
    scorer = Scorer(model, Patcher(THRESHOLD))
    for split in plan_file(file, "jsonl", 1 << 30).splits:
        patch_unit((split,), 0, config, scorer, output, lambda tokens: None)
    identity = {"source": "ngram", "fingerprint": "0" * 64}
    made = {"patcher": scorer.patcher.to_json(), "columns": shard_schema().names}
    entries = list(read_entries(output).values())
    write_manifest(output, made | {"entropy_model": identity}, entries)
    return ShardSet(output.url)


def main() -> None:
    torch.set_num_threads(1)
    bound_memory()  # as workers do
    numbers = count()
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        shards = make_set(directory)
        size = shards.statistics.bytes
        layout = LAYOUTS["reference"]

        def export(name: str = "") -> Path:
            output = directory / (name or f"export-{next(numbers)}")
            config = ExportShardsConfig(shards.output.url, str(output), format="reference")
            for piece in plan_export(shards, layout, config):
                export_shard(shards, piece, layout, config, OutputDirectory(str(output)))
            return output

        reference = export("reference")
        files = find_inputs([f"{reference}/*.arrow"]).files

        def copy() -> None:
            output = directory / f"copy-{next(numbers)}"
            output.mkdir()
            for file in files:
                with pa.ipc.open_file(file.url) as reader:
                    target = str(output / Path(file.url).name)
                    with pa.ipc.new_file(target, reader.schema, options=ipc_options()) as writer:
                        for number in range(reader.num_record_batches):
                            writer.write_batch(reader.get_batch(number))

        def adopt() -> None:
            output = OutputDirectory(str(directory / f"adopted-{next(numbers)}"))
            config = AdoptShardsConfig((str(reference),), output.url, threshold=THRESHOLD)
            scorer = StoredScorer(config.patcher)
            for number, file in enumerate(files):
                for split in plan_file(file, "arrow", config.split_bytes).splits:
                    patch_unit((split,), number, config, scorer, output, lambda tokens: None)

        spent: dict[str, list[float]] = {}

        def timed(function: Callable[[], object]) -> Callable[[], None]:
            def run() -> None:
                began = time.process_time()
                function()
                spent.setdefault(function.__name__, []).append(time.process_time() - began)

            return run

        times = alternating(ROUNDS, timed(copy), timed(export), timed(adopt))
        for place, name in enumerate(("copy", "export", "adopt")):
            seconds, cpu = median(row[place] for row in times), median(spent[name])
            print(
                f"{name:8} {size / seconds / 1e6:8.1f} MB/s, {size / cpu / 1e6:8.1f} of processor"
            )
        shares = {
            name: median(a / b for a, b in zip(spent["adopt"], spent[name], strict=True))
            for name in ("copy", "export")
        }
        print(f"adopt / export, seconds: {quotient(times, 2, 1):.2f} ({spread(times, 2, 1)})")
        print(
            f"adopt / export, processor time: {shares['export']:.2f}; / copy: {shares['copy']:.2f}"
        )


if __name__ == "__main__":
    main()
