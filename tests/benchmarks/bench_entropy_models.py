"""Entropy models for CPUs: how fast they score on one core, and how far they agree with entropy-1m.

Speed: rounds of entropy-1m, entropy-conv and the n-gram model on the same documents in turn;
entropy-conv should score 10 times as fast as entropy-1m. Agreement: at 4.5 bytes per patch, F1 of
boundaries and Pearson's correlation of entropies, on texts that no model was trained on (but the
n-gram model, which is fitted on the text itself, as ``--entropy-model ngram`` does): Python's
documentation topics, its top modules, and the translations of gradio and lm-evaluation-harness.
"""

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from common import alternating, quotient, spread, verdict  # isort: skip

import numpy as np
import torch

from model import NGramEntropyModel, Patcher, load_entropy_model
from model.tokenizer import encode_documents
from pipeline.patch.scoring import AnyEntropyModel, Scorer
from pipeline.patches import recut
from pipeline.statistics.boundary_agreement import (
    Places,
    Scores,
    cases,
    count_cases,
    first_decided,
)

SIZE = 60_000
"""Bytes of each kind of text."""
TIMED = 20_000
ROUNDS = 5
PATCH_SIZE = 4.5
TARGET = 10.0


def kinds_of_text() -> Iterator[tuple[str, list[bytes]]]:
    """Names and documents of the texts that agreement is measured on."""
    from pydoc_data.topics import topics

    yield "English prose", [text.encode() for _, text in sorted(topics.items())]
    library = Path(sysconfig.get_path("stdlib"))
    yield "code", [path.read_bytes() for path in sorted(library.glob("*.py"))]
    packages = Path(sysconfig.get_path("purelib"))
    sources = [
        *sorted(packages.glob("gradio/templates/node/build/server/chunks/??-*.js")),
        *sorted(packages.glob("lm_eval/tasks/*/lang_libs.py")),
    ]
    # The strings alone: the code around them is Latin.
    strings = re.compile(r"[`\"]([^`\"\\\n]*[^\x00-\x7f][^`\"\\\n]*)[`\"]")
    documents = ("\n".join(strings.findall(path.read_text("utf-8"))) for path in sources)
    yield "other scripts", [text.encode() for text in documents if text]


def beginnings(documents: list[bytes], size: int) -> list[bytes]:
    """About ``size`` bytes of text, from many documents."""
    most = max(size // max(len(documents), 1), 4000)
    chosen: list[bytes] = []
    for document in documents:
        if sum(map(len, chosen)) >= size:
            break
        chosen.append(document[:most].decode(errors="ignore").encode())
    return chosen


def threshold(h_T: np.ndarray, lengths_D: np.ndarray) -> float:
    """The threshold that gives about PATCH_SIZE bytes per patch."""
    low, high = 0.0, 6.0
    size = int(lengths_D.sum()) - 2 * len(lengths_D)
    for _ in range(20):
        middle = (low + high) / 2
        patches = len(recut(Patcher(middle), h_T, lengths_D).patch_lengths_P)
        low, high = (middle, high) if size / patches < PATCH_SIZE else (low, middle)
    return low


def agreement(
    reference_T: np.ndarray, other_T: np.ndarray, lengths_D: np.ndarray
) -> tuple[float, float]:
    """F1 of boundaries at PATCH_SIZE, and the correlation of entropies."""
    patched = [
        recut(Patcher(threshold(h_T, lengths_D)), h_T, lengths_D) for h_T in (reference_T, other_T)
    ]
    places = Places.of(lengths_D, first_decided([(0, 1)]))
    case_C = cases(patched[0], patched[1], places)
    scores = Scores.of(count_cases(case_C, np.zeros_like(case_C), 1)[0])
    pair = (h_T[places.at_C - 1].astype(np.float64) for h_T in (reference_T, other_T))
    return float(scores.f1), float(np.corrcoef(*pair)[0, 1])


def main() -> None:
    torch.set_num_threads(1)
    teacher = load_entropy_model("entropy-1m", device="cpu")
    student = load_entropy_model("entropy-conv")
    print(f"{'text':16} {'model':14} {'F1':>7} {'correlation':>12}")
    timed: list[bytes] = []
    for name, documents in kinds_of_text():
        asked = beginnings(documents, SIZE)
        print(f"{name}: {sum(map(len, asked)):,} bytes of {len(asked)} documents")
        tokens_T, lengths_D = encode_documents(asked)
        ngram = NGramEntropyModel.fit([(tokens_T, lengths_D)])
        models: dict[str, AnyEntropyModel] = {"entropy-conv": student, "n-gram": ngram}
        reference_T = Scorer(teacher, Patcher(1.0)).entropies(tokens_T, lengths_D)
        for title, model in models.items():
            h_T = Scorer(model, Patcher(1.0)).entropies(tokens_T, lengths_D)
            f1, correlation = agreement(reference_T, h_T, lengths_D)
            print(
                f"{name:16} {title:14} {f1:7.3f} {correlation:12.3f}   {sum(map(len, asked)):,} B"
            )
        timed = timed or beginnings(documents, TIMED)
    encoded = encode_documents(timed)
    many = encode_documents(timed * 20)
    size = sum(map(len, timed))
    times = alternating(
        ROUNDS,
        lambda: Scorer(teacher, Patcher(1.0)).entropies(*encoded),
        lambda: Scorer(student, Patcher(1.0)).entropies(*many),
        lambda: Scorer(ngram, Patcher(1.0)).entropies(*many),
    )
    for i, (title, bytes_) in enumerate(
        (("entropy-1m", size), ("entropy-conv", 20 * size), ("n-gram", 20 * size))
    ):
        print(f"{title:14} {bytes_ / 1e6 / median(row[i] for row in times):8.3f} MB/s of a core")
    multiple = quotient(times, 0, 1) * 20
    print(
        f"result: entropy-conv scores {multiple:.1f} times as fast as entropy-1m (target "
        f"{TARGET:.0f}, {verdict(multiple >= TARGET)}; {spread(times, 0, 1)}, times 20)"
    )


if __name__ == "__main__":
    main()
