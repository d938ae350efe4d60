"""Students give to the bit what they are saved as, and learn what a teacher gave."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import SafetensorError
from support import tiny
from support.jobs import ROOT
from support.shard_sets import write_shards
from support.texts import topics, write_jsonl

from model import ConvEntropyConfig, NGramEntropyModel, Patcher, load_entropy_model
from model.conv_entropy_model import ConvEntropyModel, embedding_rows
from model.segments import token_positions
from model.tokenizer import encode_documents
from pipeline import open_shards
from pipeline.errors import ConfigError, PipelineError
from train.distillation.learn import distil
from train.distillation.lesson import Lesson, find_teacher, read_lesson
from train.distillation.student import Student

JOB = runpy.run_path(str(ROOT / "jobs" / "distil_entropy_model.py"))
SMALL = ConvEntropyConfig(dim=16, table_bits=9, taps=((0, 1, 2), (0, 3, 6)))


def texts(first: int, last: int) -> list[bytes]:
    return [text.encode() for _, text in topics()[first:last]]


def lesson(documents: list[bytes], teacher: NGramEntropyModel) -> Lesson:
    tokens_T, lengths_D = encode_documents(documents)
    h_T = teacher.entropies_packed(torch.from_numpy(tokens_T), torch.from_numpy(lengths_D))
    return Lesson(tokens_T, lengths_D, h_T.numpy().astype(np.float16))


def test_a_student_gives_the_entropies_of_its_model():
    torch.manual_seed(0)
    student = Student(SMALL)
    with torch.no_grad():  # so that all clips have work to do
        for parameter in student.parameters():
            parameter.mul_(1.5)
    tokens_T, lengths_D = encode_documents(texts(0, 3))
    lengths = torch.from_numpy(lengths_D)
    rows_TK = embedding_rows(tokens_T, lengths_D.cumsum() - lengths_D, SMALL)
    position_T = token_positions(lengths, len(tokens_T))
    h_T = student(torch.from_numpy(rows_TK), position_T)
    expected_T = student.model().entropies_packed(torch.from_numpy(tokens_T), lengths)
    assert torch.equal(h_T.clamp(min=0), expected_T)
    h_T.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.parameters())


def test_it_learns(ngram_model):
    told: list[float] = []
    known = lesson(texts(0, 20), ngram_model)
    learned = distil(known, SMALL, steps=100, report=lambda tokens, loss: told.append(loss))
    new = lesson(texts(20, 24), ngram_model)
    batch = torch.from_numpy(new.tokens_T), torch.from_numpy(new.lengths_S)
    h_T = learned.entropies_packed(*batch).numpy()
    correlation = np.corrcoef(h_T, new.entropies_T.astype(np.float32))[0, 1]
    assert correlation > 0.55 and np.mean(told[-10:]) < 0.7 * np.mean(told[:10])
    one, two = (distil(known, SMALL, steps=2).tensors() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, ngram_model) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_jsonl(folder / "in.jsonl", topics()[:12])
    tiny.make_shards(folder / "out", folder / "in.jsonl", ngram_model, Patcher(1.5))
    return folder / "out"


def run(output: Path, *sets: Path, **flags: object) -> int:
    config = JOB["DistilEntropyModelConfig"](tuple(map(str, sets)), str(output), **flags)
    return JOB["run"](config, Console(quiet=True))


def test_the_lesson_is_what_the_shards_hold(shards):
    sets = [open_shards(str(shards))]
    whole = read_lesson(sets, 10**9, reset_at_newline=False)
    rows = list(sets[0])
    assert np.array_equal(whole.entropies_T, np.concatenate([row.entropies for row in rows]))
    assert whole.lengths_S.tolist() == [len(row.text.encode()) + 2 for row in rows]
    part = read_lesson(sets, whole.lengths_S.sum() // 3, reset_at_newline=True)
    size = len(part.tokens_T)
    assert whole.lengths_S.sum() // 3 <= size < len(whole.tokens_T)
    assert np.array_equal(part.tokens_T, whole.tokens_T[:size])
    assert np.array_equal(part.entropies_T, whole.entropies_T[:size])
    assert len(part.lengths_S) > 50  # lines
    assert find_teacher(sets).source == "tiny"


def test_the_job(shards, tmp_path, capsys):
    assert run(tmp_path / "student", shards, steps=3, json=True) == 0
    result = json.loads(capsys.readouterr().out)
    assert isinstance(load_entropy_model(tmp_path / "student"), ConvEntropyModel)
    assert "tiny" in result["teacher"] and result["loss"] > 0


def test_what_cannot_work(shards, tmp_path):
    other = tmp_path / "other"
    tiny.make_shards(other, shards.parent / "in.jsonl", tiny.entropy_model(), Patcher(1.5))
    without = tmp_path / "without"
    write_shards(str(without), texts(0, 4), entropies=False)
    new = tmp_path / "new"
    for output, sets, steps, message in (
        (new, (), 1, "--shards: name at least one"),
        (new, (shards,), 0, "--steps: "),
        (shards, (shards,), 1, "--output: .* exists"),
        (new, (shards, other), 1, "--shards: the sets were scored by different entropy models"),
        (new, (tmp_path / "nowhere",), 1, "^--shards .*nowhere: no such directory"),
        (new, (without,), 1, "--shards: .*without has no entropies to learn from"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(output, *sets, steps=steps)
    assert not new.exists()


def test_a_full_disk_leaves_nothing_behind(shards, tmp_path, monkeypatch):
    def fill(model, directory, **kind):
        directory.mkdir()
        (directory / "config.json").touch()
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("train.convert.job.save_entropy_model", fill)
    with pytest.raises(PipelineError, match=r"^--output: .*student cannot be written: .*No space"):
        run(tmp_path / "student", shards, steps=1)
    assert not list(tmp_path.iterdir())
