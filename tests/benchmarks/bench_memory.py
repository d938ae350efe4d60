"""Peak resident memory of a worker for 1 GB of input as a multiple of that for 100 MB.

Each size is patched by a process of its own: every split of one JSONL file, one after another,
with an n-gram model, into shards. Target < 1.2: memory does not grow with the input.
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import in_batches, short_documents, verdict  # isort: skip

SIZES = {"100 MB": 100_000_000, "1 GB": 1_000_000_000}
TARGET = 1.2


def write_corpus(path: Path, size: int) -> None:
    """Documents over and over, each time with another number in front."""
    documents = [document.decode() for document in short_documents(4_000_000, seed=4)]
    written = number = 0
    with path.open("w") as file:
        while written < size:
            text = f"{number}\n{documents[number % len(documents)]}"
            written += file.write(json.dumps({"id": str(number), "text": text}) + "\n")
            number += 1


def fit(model: str) -> None:
    from model.checkpoints.entropy_model import save_entropy_model
    from model.ngram import NGramEntropyModel
    from model.tokenizer import encode_documents

    batches = in_batches(short_documents(8_000_000, seed=5), 4 << 20)
    save_entropy_model(NGramEntropyModel.fit(map(encode_documents, batches)), model)


def patch(model: str, corpus: str, output: str) -> None:
    """In the child: patch the corpus, print the peak in bytes."""
    import torch

    from model.checkpoints.entropy_model import load_entropy_model
    from model.patcher import Patcher
    from pipeline.cluster.memory import bound_memory
    from pipeline.corpus.inputs import find_inputs
    from pipeline.corpus.splits import plan_file
    from pipeline.patch.config import PatchCorpusConfig
    from pipeline.patch.patch_split import patch_unit
    from pipeline.patch.scoring import Scorer
    from pipeline.storage.output import OutputDirectory

    torch.set_num_threads(1)
    bound_memory()
    config = PatchCorpusConfig((corpus,), output, threshold=1.5, id_column="id")
    scorer = Scorer(load_entropy_model(model, device="cpu"), Patcher(threshold=1.5))
    (file,) = find_inputs(config.input).files
    tokens = 0

    def report(count: int) -> None:
        nonlocal tokens
        tokens += count

    before = peak()
    splits = plan_file(file, "jsonl", config.shard_bytes).splits
    for split in splits:
        patch_unit((split,), 0, config, scorer, OutputDirectory(output), report)
    print(json.dumps({"before": before, "peak": peak(), "splits": len(splits), "tokens": tokens}))


def peak() -> int:
    """Most resident bytes so far; Linux counts in KiB, macOS in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def child(*arguments: str) -> str:
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    if len(sys.argv) > 1:
        role, *arguments = sys.argv[1:]
        {"fit": fit, "patch": patch}[role](*arguments)
        return
    peaks = []
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as directory:
            model, corpus, output = (f"{directory}/{n}" for n in ("model", "c.jsonl", "output"))
            child("fit", model)
            write_corpus(Path(corpus), size)
            found = json.loads(child("patch", model, corpus, output))
            assert found["tokens"] > 0.9 * size, "not all of it was patched"
        peaks.append(found["peak"])
        print(
            f"{name:>6}: {found['splits']} splits, {found['peak'] / 1e6:.0f} MB at most, "
            f"of them {found['before'] / 1e6:.0f} MB before the first split"
        )
    ratio = peaks[1] / peaks[0]
    print(f"result: 10 times the input, {ratio:.3f} times the memory", end=" ")
    print(f"(target < {TARGET}, {verdict(ratio < TARGET)})")


if __name__ == "__main__":
    main()
