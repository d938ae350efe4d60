"""The documents of the tasks beside this file, made of a JSONL file that the user gives.

They are the paper's tests of what bytes are good for (arXiv 2412.09871, section 6), as far as
their texts can be made here: noise in HellaSwag's prompts and endings; spelling and manipulating
words and sentences as CUTE (arXiv 2409.15452) does, without its tasks of similarity; translation of
sentences, such as those of FLORES-101. All choices follow from the line's number.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import fsspec
import numpy as np
from lm_eval.tasks.hellaswag.utils import process_docs

from pipeline.errors import ConfigError, translated
from pipeline.evaluate.tasks.noise import NOISES

EXAMPLES = 4
"""Lines at the beginning of a file that are shown with every question, and are not asked."""
Documents = dict[str, datasets.Dataset]


def read_lines(data: str, fields: Mapping[str, type], least: int = 1) -> list[dict[str, Any]]:
    """The lines of a JSONL file.

    Args:
        fields: name and type of what each line must have.
        least: the fewest lines.

    Raises:
        ConfigError: there is no file, or a line is not what it must be; says which.
    """
    needed = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
    if not data:
        raise ConfigError(f"--harness-data: the task needs a JSONL file with {needed}")
    lines = []
    with (
        translated(f"--harness-data: {data}", ConfigError),
        fsspec.open(data, "rt", encoding="utf-8") as file,
    ):
        for number, text in enumerate(file, 1):
            try:
                line = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"--harness-data: {data}, line {number}: {error}") from error
            if not isinstance(line, dict) or not all(
                isinstance(line.get(name), kind) and line[name] for name, kind in fields.items()
            ):
                raise ConfigError(f"--harness-data: {data}, line {number}: needs {needed}")
            lines.append(line)
    if len(lines) < least:
        raise ConfigError(
            f"--harness-data: {data} has {len(lines)} lines, the task needs {least} or more"
        )
    return lines


def _test(documents: list[dict[str, Any]]) -> Documents:
    return {"test": datasets.Dataset.from_list(documents)}


# Noise in HellaSwag


PAPER_NOISES = ("antspeak", "drop", "random_case", "repeat", "upper_case")
"""The kinds of the paper, of those in :mod:`pipeline.evaluate.tasks.noise`."""
NOISED = {"prompt": (True, False), "completion": (False, True), "both": (True, True)}


def noised_hellaswag(data: str = "", **_: object) -> Documents:
    """Each question without noise, and with each noise in the prompt, in the endings and in both.

    The file has the published fields: activity_label, ctx_a, ctx_b, endings, label.
    """
    fields = {"activity_label": str, "ctx_a": str, "endings": list}
    lines = [
        {name: line.get(name, "") for name in (*fields, "ctx_b")}
        | {"label": _label(line, number, data)}
        for number, line in enumerate(read_lines(data, fields), 1)
    ]
    documents = []
    for number, line in enumerate(process_docs(datasets.Dataset.from_list(lines))):
        plain = {"query": line["query"], "choices": line["choices"], "gold": line["gold"]}
        documents.append(plain | {"noise": "none"})
        for noise in PAPER_NOISES:
            change = NOISES[noise]
            for where, (in_prompt, in_endings) in NOISED.items():
                draw = random.Random(f"{number} {noise} {where}")
                query, choices = plain["query"], plain["choices"]
                documents.append(
                    {
                        "query": change(query, draw) if in_prompt else query,
                        "choices": [change(c, draw) if in_endings else c for c in choices],
                        "gold": plain["gold"],
                        "noise": noise,
                    }
                )
    return _test(documents)


def _label(line: dict[str, Any], number: int, data: str) -> int:
    label, endings = line.get("label"), line["endings"]
    texts = all(isinstance(ending, str) and ending for ending in endings)
    if not texts or not str(label).isdecimal() or not 0 <= int(str(label)) < len(endings):
        raise ConfigError(
            f"--harness-data: {data}, line {number}: needs endings that are texts, and the number "
            f"of the right one as label, got {label!r}"
        )
    return int(str(label))


def noised_result(
    document: dict[str, Any], results: Sequence[tuple[float, bool]]
) -> dict[str, float]:
    """1 if the right ending has the highest log-probability per character, else 0: by its noise,
    and among all that are noised."""
    nats = np.array([value for value, _ in results])
    lengths = np.array([max(len(choice), 1) for choice in document["choices"]])
    right = float(int(np.argmax(nats / lengths)) == document["gold"])
    noise = document["noise"]
    return {noise: right} if noise == "none" else {noise: right, "noised": right}


# Spelling and manipulation


def _edits(
    units: list[str], others: Sequence[str], draw: random.Random, joint: str
) -> Iterator[tuple[str, str, str]]:
    """Name, instruction and answer of each manipulation of a text of characters or words."""
    text, present = joint.join(units), sorted(set(units))
    one = draw.choice(present)
    new = draw.choice([other for other in others if other not in present] or [one])
    second = draw.choice([unit for unit in present if unit != one] or [one])
    asked = draw.choice([one, new])
    swapped = {one: second, second: one}

    def edited(change: Callable[[str], list[str]]) -> str:
        return joint.join(part for unit in units for part in change(unit))

    yield "contains", f'Is there "{asked}" in "{text}"?', "Yes" if asked in present else "No"
    yield (
        "insert",
        f'Add "{new}" after every "{one}" in "{text}".',
        edited(lambda unit: [unit, new] if unit == one else [unit]),
    )
    yield (
        "delete",
        f'Delete every "{one}" in "{text}".',
        edited(lambda unit: [] if unit == one else [unit]),
    )
    yield (
        "substitute",
        f'Replace every "{one}" by "{new}" in "{text}".',
        edited(lambda unit: [new if unit == one else unit]),
    )
    yield (
        "swap",
        f'Swap "{one}" and "{second}" in "{text}".',
        edited(lambda unit: [swapped.get(unit, unit)]),
    )


def manipulation(data: str = "", **_: object) -> Documents:
    """Each word spelt out and put together again, each word's characters and each sentence's words
    looked for, added, deleted, replaced and swapped; after four examples of the same.

    The file has a word and a sentence per line.
    """
    lines = read_lines(data, {"word": str, "sentence": str}, EXAMPLES + 1)
    characters = sorted({c for line in lines for c in line["word"]})
    words = sorted({word for line in lines for word in line["sentence"].split()})
    asked: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(lines):
        draw, word = random.Random(str(number)), "".join(line["word"].split())
        spelt = " ".join(word)
        asked.setdefault("spelling", []).append((f'Spell "{word}".', spelt))
        asked.setdefault("spelling_inverse", []).append((f'Put "{spelt}" together.', word))
        for unit, units, others, joint in (
            ("char", list(word), characters, ""),
            ("word", line["sentence"].split(), words, " "),
        ):
            if not units:
                raise ConfigError(f"--harness-data: {data}, line {number + 1}: a text is blank")
            for name, instruction, answer in _edits(units, others, draw, joint):
                asked.setdefault(f"{name}_{unit}", []).append((instruction, answer))
    documents = []
    for kind, questions in asked.items():
        shown = "".join(
            f"{question} Answer: {answer}\n" for question, answer in questions[:EXAMPLES]
        )
        documents += [
            {"text": f"{shown}{question} Answer:", "answer": answer, "kind": kind}
            for question, answer in questions[EXAMPLES:]
        ]
    return _test(documents)


def manipulation_result(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the answer is exactly right, else 0: by its kind, and among all."""
    right = float(results[0].strip() == document["answer"])
    return {document["kind"]: right, "all": right}


# Translation


def translation(data: str = "", **_: object) -> Documents:
    """Pairs of sentences, after four examples. The file has a source and a target per line."""
    lines = read_lines(data, {"source": str, "target": str}, EXAMPLES + 1)
    pairs = [(" ".join(x["source"].split()), " ".join(x["target"].split())) for x in lines]
    shown = "".join(f"Source: {one}\nTarget: {other}\n\n" for one, other in pairs[:EXAMPLES])
    return _test(
        [
            {"text": f"{shown}Source: {one}\nTarget:", "target": other}
            for one, other in pairs[EXAMPLES:]
        ]
    )
