"""The tasks that come with this package, on made-up data; no network."""

import functools
import json
import os
from collections import Counter

import pytest
from support import tiny

from model import save_blt, save_entropy_model
from pipeline.errors import ConfigError
from pipeline.evaluate.config import EvaluateConfig

# Before lm-eval and datasets are imported: they read these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
from pipeline.evaluate import harness
from pipeline.evaluate.tasks import documents

HELLASWAG = [
    {
        "activity_label": "Baking bread",
        "ctx_a": "A woman puts flour on a table.",
        "ctx_b": "she then",
        "endings": ["kneads the dough.", "drives away.", "sings [loudly].", "is a table."],
        "label": 0,
    },
    {
        "activity_label": "Größe",
        "ctx_a": "Ein Mann misst eine Tür.",
        "endings": ["Er schreibt es auf.", "Er isst sie."],
        "label": "1",
    },
]
WORDS = [
    {"word": word, "sentence": f"the {word} and the {other} are here"}
    for word, other in zip(
        ("planet", "banana", "ooo", "größer", "письмо", "letter", "x"),
        ("sun", "apple", "zoo", "kleiner", "конверт", "word", "y"),
        strict=True,
    )
]
PAIRS = [{"source": f"Das ist Satz {i}.", "target": f"This is  sentence {i}."} for i in range(7)]


@pytest.fixture
def file(tmp_path):
    def write(lines: list) -> str:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    return write


def test_noises_are_those_of_the_paper(file):
    found = documents.noised_hellaswag(file(HELLASWAG))["test"].to_list()
    assert Counter(document["noise"] for document in found) == {
        "none": 2,
        **dict.fromkeys(documents.PAPER_NOISES, 6),
    }
    plain, *noised = [d for d in found if len(d["choices"]) == 4]
    assert plain["query"] == "Baking bread: A woman puts flour on a table. She then"
    assert plain["choices"] == ["kneads the dough.", "drives away.", "sings .", "is a table."]
    by_noise: dict[str, list] = {}
    for document in noised:
        assert document["gold"] == 0
        by_noise.setdefault(document["noise"], []).append(document)
    for noise, (prompt, completion, both) in by_noise.items():
        assert prompt["choices"] == plain["choices"] and prompt["query"] != plain["query"]
        assert completion["query"] == plain["query"] and completion["choices"] != plain["choices"]
        assert both["query"] != plain["query"] and both["choices"] != plain["choices"], noise
    (shouted, *_), (spaced, *_) = by_noise["upper_case"], by_noise["antspeak"]
    assert shouted["query"] == plain["query"].upper() and spaced["query"].startswith("B A K I N G")
    assert by_noise["random_case"][0]["query"].lower() == plain["query"].lower()
    assert documents.noised_hellaswag(file(HELLASWAG))["test"].to_list() == found


def test_the_right_ending_is_the_likeliest_per_character():
    document = {"choices": ["long ending", "short"], "gold": 0, "noise": "drop"}
    assert documents.noised_result(document, [(-11.0, False), (-6.0, False)]) == {
        "drop": 1.0,
        "noised": 1.0,
    }
    assert documents.noised_result(document, [(-14.0, False), (-6.0, False)])["drop"] == 0.0
    plain = document | {"noise": "none"}
    assert documents.noised_result(plain, [(-1.0, True), (-6.0, False)]) == {"none": 1.0}


def test_manipulations_are_what_they_say(file):
    found = documents.manipulation(file(WORDS))["test"].to_list()
    kinds = Counter(document["kind"] for document in found)
    assert len(kinds) == 12 and set(kinds.values()) == {3}
    shown = {}
    for document in found:
        *examples, question = document["text"].split("\n")
        assert len(examples) == 4 and question.endswith(" Answer:")
        for line in (*examples, f"{question} {document['answer']}"):
            instruction, answer = line.split(" Answer: ") if " Answer: " in line else (line, "")
            shown.setdefault(document["kind"], []).append((instruction.split('"')[1::2], answer))
    assert (["planet"], "p l a n e t") in shown["spelling"]
    assert (["п и с ь м о"], "письмо") in shown["spelling_inverse"]
    for unit, joint in (("char", ""), ("word", " ")):

        def parts(text: str, joint: str = joint) -> list[str]:
            return text.split() if joint else list(text)

        for (asked, text), answer in shown[f"contains_{unit}"]:
            assert answer == ("Yes" if asked in parts(text) else "No")
        for (one, text), answer in shown[f"delete_{unit}"]:
            assert answer == joint.join(part for part in parts(text) if part != one)
        for (one, new, text), answer in shown[f"substitute_{unit}"]:
            assert answer == joint.join(new if part == one else part for part in parts(text))
        for (new, one, text), answer in shown[f"insert_{unit}"]:
            inserted = [x for part in parts(text) for x in ([part, new] if part == one else [part])]
            assert answer == joint.join(inserted) and one in parts(text)
        for (one, second, text), answer in shown[f"swap_{unit}"]:
            swapped = {one: second, second: one}
            assert answer == joint.join(swapped.get(part, part) for part in parts(text))
    document = {"answer": "p l a", "kind": "spelling"}
    assert documents.manipulation_result(document, [" p l a "]) == {"spelling": 1.0, "all": 1.0}
    assert documents.manipulation_result(document, [" p l"]) == {"spelling": 0.0, "all": 0.0}


@pytest.mark.parametrize(
    ("task", "lines", "message"),
    [
        ("noised_hellaswag", None, "the task needs a JSONL file with activity_label"),
        ("noised_hellaswag", [HELLASWAG[0] | {"label": 4}], "line 1: needs endings .* got 4"),
        ("noised_hellaswag", [HELLASWAG[0] | {"endings": [1]}], "line 1: needs endings"),
        ("manipulation", WORDS[:4], "has 4 lines, the task needs 5 or more"),
        ("manipulation", [*WORDS, {"word": "a"}], r"line 8: needs word \(str\), sentence"),
        ("manipulation", [*WORDS, {"word": " ", "sentence": "a"}], "line 8: a text is blank"),
        ("sentence_translation", [*PAIRS, {"source": "", "target": "a"}], "line 8: needs source"),
        ("sentence_translation", [1], "line 1: needs source"),
    ],
)
def test_wrong_data_is_named(file, task, lines, message):
    metadata = {"data": file(lines)} if lines is not None else None
    manager = harness.TaskManager(
        include_path=str(harness.TASKS), include_defaults=False, metadata=metadata
    )
    with pytest.raises(ConfigError, match=f"--harness-data: .*{message}"):
        harness.load_tasks([task], manager)


def test_a_file_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--harness-data: .*none.jsonl"):
        documents.translation(str(tmp_path / "none.jsonl"))
    (tmp_path / "broken.jsonl").write_text('{"source": "a",\n')
    with pytest.raises(ConfigError, match=r"broken.jsonl, line 1: "):
        documents.translation(str(tmp_path / "broken.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes('{"source": "ü"}\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.jsonl"):
        documents.translation(str(tmp_path / "latin.jsonl"))
    with pytest.raises(ConfigError, match="--harness-data: is the data of --harness-tasks"):
        EvaluateConfig("m", input=("x",), harness_data="y").check()


def test_they_run(file, tmp_path, monkeypatch):
    """All three through the adapter, with a model that knows nothing."""
    # The harness's own tasks are 15,000 files.
    without = functools.partial(harness.TaskManager, include_defaults=False)
    monkeypatch.setattr(harness, "TaskManager", without)
    save_blt(tiny.blt(), tmp_path / "blt")
    save_entropy_model(tiny.entropy_model(), tmp_path / "entropy")
    lines = [{**HELLASWAG[i % 2], **WORDS[i], **PAIRS[i]} for i in range(5)]
    config = EvaluateConfig(
        str(tmp_path / "blt"),
        harness_tasks="noised_hellaswag,manipulation,sentence_translation",
        harness_data=file(lines),
        entropy_model=str(tmp_path / "entropy"),
    )
    config.check()
    found = harness.evaluate_tasks(config)["results"]
    for name, metrics in {
        "noised_hellaswag": {"none", "noised", *documents.PAPER_NOISES},
        "manipulation": {"all", "spelling", "swap_word"},
        "sentence_translation": {"chrf", "bleu"},
    }.items():
        assert metrics <= {key.removesuffix(",none") for key in found[name]}
        assert all(0 <= found[name][f"{metric},none"] <= 100 for metric in metrics)
