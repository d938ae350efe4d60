"""A boundary rule that is added to the table while a program runs works in the whole job."""

import json

import pytest
from support.jobs import RunJob
from support.texts import write_jsonl
from torch import Tensor

from model import ByteTokenizer
from model.rules import RULES, BoundaryRule, Pieces
from model.segments import NEWLINE_ID
from pipeline import open_shards

TEXTS = [("a", "one\ntwo\n\nthree"), ("b", "\n"), ("c", ""), ("d", "no end of a line")]


@pytest.fixture
def newline_rule(monkeypatch) -> None:
    # Workers cannot import this file: a function that is made in another one is sent as code.
    def ends(pieces: Pieces) -> Tensor:
        return pieces.tokens_T == NEWLINE_ID

    rule = BoundaryRule(ends, "after every newline", reads_tokens=True)
    monkeypatch.setitem(RULES, "newline", rule)


def test_an_added_rule_patches_a_corpus(newline_rule: None, run_here: RunJob, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    out = tmp_path / "out"
    flags = ("--rule", "newline", "--id-column", "id", "--verify", "--json")
    done = run_here("--input", source, "--output", out, *flags)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == len(TEXTS)
    shards = open_shards(str(out))
    assert shards.manifest["patcher"] == {"rule": "newline", "published": False}
    assert shards.manifest["entropy_model"]["source"] == "ngram"
    found = {document.sample_id: document for document in shards}
    # BOS | o n e \n | t w o \n | \n | t h r e e EOS
    assert found["a"].patch_lengths.tolist() == [1, 4, 4, 1, 6]
    assert found["b"].patch_lengths.tolist() == [1, 1, 1]
    assert found["c"].patch_lengths.tolist() == [1, 1]
    assert found["d"].patch_lengths.tolist() == [1, len(ByteTokenizer().encode(TEXTS[3][1])) - 1]


def test_its_name_is_offered(newline_rule: None, run_here: RunJob):
    done = run_here("--help")
    assert done.returncode == 0 and "byte,newline,bpe,given}" in done.stdout


def test_a_rule_that_is_not_there_is_refused(run_here: RunJob, tmp_path):
    done = run_here("--input", tmp_path, "--output", tmp_path / "out", "--rule", "newline")
    assert done.returncode == 2
    assert "invalid choice 'newline'" in done.stderr and "'top-k'" in done.stderr
