"""Likelihoods, windows, bootstrap and whole evaluations, against direct computations."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from math import log
from runpy import run_path

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from support import tiny
from support.jobs import ROOT
from support.shard_sets import rewrite
from support.texts import topics, write_jsonl

from jobs.evaluate import print_result
from model import ByteTokenizer, Patcher, save_blt, save_entropy_model
from model.blt_config import ROW_READING
from model.provenance import PatchProvenance
from model.tokenizer import BOS_ID, encode_documents
from pipeline import open_shards
from pipeline.errors import BadDocumentError, ConfigError, PipelineError
from pipeline.evaluate import likelihood
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import Batch, Problems
from pipeline.evaluate.job import (
    BitsPerByte,
    Evaluation,
    Tally,
    bits_per_byte,
    bootstrap_interval,
    evaluate,
)
from pipeline.evaluate.likelihood import predict
from pipeline.evaluate.models import Patching
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST

TEXTS = [b"", "é".encode(), *(topics()[i][1].encode()[:n] for i, n in enumerate((700, 90, 1500)))]


@pytest.fixture(scope="module")
def patching() -> Patching:
    return Patching(Patcher(tiny.THRESHOLD), tiny.entropy_model())


def direct_logits(model, tokens: list[int], patch_lengths: list[int]) -> torch.Tensor:
    """One document alone: after each of its tokens but the last."""
    with torch.no_grad():
        return model(torch.tensor([tokens[:-1]]), torch.tensor([patch_lengths]))[0]


def direct_nats(logits: torch.Tensor, tokens: list[int]) -> np.ndarray:
    logp = logits.double().log_softmax(-1)
    return -logp[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])].numpy()


def patches_alone(text: bytes, patching: Patching) -> list[int]:
    tokens = ByteTokenizer().encode(text)
    h = patching.entropy_model.entropies(torch.tensor([tokens])).half()
    return patching.patcher.patch_lengths(h)[0].tolist()


AS_PUBLISHED = dict.fromkeys(ROW_READING, True) | {
    "cross_attn_window_encoder": 3,
    "cross_attn_window_decoder": 2,
}


@pytest.mark.parametrize("changes", [{}, AS_PUBLISHED], ids=["plain", "published"])
@pytest.mark.parametrize("budget", [1, 600, 1 << 20])
def test_predictions_are_those_of_each_document_alone(monkeypatch, patching, changes, budget):
    monkeypatch.setattr(likelihood, "CPU_TOKENS", budget)
    model = tiny.blt(**changes)
    tokens_T, lengths_D = encode_documents(TEXTS)
    said = predict(model, tokens_T, lengths_D, patching(tokens_T, lengths_D), None)
    ends = lengths_D.cumsum()
    for text, end, length in zip(TEXTS, ends, lengths_D, strict=True):
        tokens = ByteTokenizer().encode(text)
        patches = patches_alone(text, patching)
        assert len(text) < 50 or 2 < len(text) / len(patches) < 8
        logits = direct_logits(model, tokens, patches)
        nats_T, greedy_T = said.nats_T[end - length : end], said.greedy_T[end - length : end]
        assert nats_T[0] == 0 and greedy_T[0]
        np.testing.assert_allclose(nats_T[1:], direct_nats(logits, tokens), atol=2e-4)
        logits[:, [0, 1, 3]] = -torch.inf
        assert greedy_T[1:].tolist() == (logits.argmax(-1) == torch.tensor(tokens[1:])).tolist()


def test_greedy_looks_at_bytes_and_eos_only(patching):
    model = tiny.blt()
    with torch.no_grad():  # the ids that never come are by far the likeliest, then EOS
        model.local_decoder.norm.weight.zero_()
    texts = [b"\x00\x00", b""]
    tokens_T, lengths_D = encode_documents(texts)
    said = predict(model, tokens_T, lengths_D, patching(tokens_T, lengths_D), None)
    # All logits are 0: the first possible id is EOS.
    assert said.greedy_T.tolist() == [True, False, False, True, True, True]
    np.testing.assert_allclose(said.nats_T[1:4], log(260), rtol=1e-6)


def test_windows_of_a_long_document_are_documents(patching):
    """Each window is scored as if a document, cut where the long one is, began with it."""
    model, text, context = tiny.blt(), TEXTS[-1], 401
    tokens = ByteTokenizer().encode(text)
    tokens_T, lengths_D = encode_documents([text])
    patch_lengths_P = patching(tokens_T, lengths_D)
    said = predict(model, tokens_T, lengths_D, patch_lengths_P, context)
    starts = set((patch_lengths_P.cumsum() - patch_lengths_P).tolist())
    found = np.full(len(tokens), np.nan)
    for begin in range(0, len(tokens) - 1, context // 2):
        window = [BOS_ID, *tokens[begin + 1 : begin + context + 1]]
        cuts = [i for i in range(len(window)) if i < 2 or begin + i in starts]
        lengths = np.diff([*cuts, len(window)]).tolist()
        nats = direct_nats(direct_logits(model, window, lengths), window)
        new = 0 if begin == 0 else context - context // 2
        found[begin + 1 + new : begin + len(window)] = nats[new:]
        if begin + len(window) == len(tokens):
            break
    np.testing.assert_allclose(said.nats_T[1:], found[1:], atol=2e-4)
    # More context is what the windows leave out: it changes what comes later, not the beginning.
    whole = predict(model, tokens_T, lengths_D, patch_lengths_P, None)
    np.testing.assert_allclose(said.nats_T[:context], whole.nats_T[:context], atol=2e-4)
    assert np.abs(said.nats_T - whole.nats_T)[context:].max() > 0.01


def test_an_entropy_model_predicts_too():
    model = tiny.entropy_model()
    tokens_T, lengths_D = encode_documents(TEXTS)
    said = predict(model, tokens_T, lengths_D, None, 8192)
    for text, end in zip(TEXTS, lengths_D.cumsum(), strict=True):
        tokens = torch.tensor(ByteTokenizer().encode(text))[:511]
        with torch.no_grad():
            logits = model.logits_packed(tokens[:-1], torch.tensor([len(tokens) - 1]))
        start = end - len(text) - 2
        nats = said.nats_T[start + 1 : start + len(tokens)]
        np.testing.assert_allclose(nats, direct_nats(logits, tokens.tolist()), atol=2e-4)


def test_bootstrap_is_that_of_a_plain_loop():
    random = np.random.default_rng(5)
    bytes_D = random.integers(0, 2000, 60)
    nats_D = bytes_D * random.normal(1.2, 0.3, 60).clip(0.1) + 1
    draws = np.random.default_rng(7)
    ratios = []
    for _ in range(2000):
        drawn = draws.integers(60, size=60)
        ratios.append(bits_per_byte(nats_D[drawn], bytes_D[drawn]))
    expected = np.quantile(ratios, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(nats_D, bytes_D, seed=7), expected)


def test_bootstrap_interval_properties(monkeypatch):
    random = np.random.default_rng(0)

    def documents(n: int) -> tuple[np.ndarray, np.ndarray]:
        bytes_D = random.integers(50, 1500, n)
        return bytes_D * random.normal(1.0, 0.2, n), bytes_D

    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    few, many = documents(50), documents(5000)
    interval = bootstrap_interval(*few, seed=3)
    assert interval == bootstrap_interval(*few, seed=3) != bootstrap_interval(*few, seed=4)
    assert interval[0] < bits_per_byte(*few) < interval[1]
    assert width(bootstrap_interval(*few, confidence=0.5)) < 0.6 * width(interval)
    # 100 times the documents: a tenth of the width.
    assert 5 < width(interval) / width(bootstrap_interval(*many)) < 20
    monkeypatch.setattr(
        "pipeline.statistics.bootstrap.DRAWN_AT_ONCE", 120
    )  # memory does not change the result
    assert bootstrap_interval(*few, seed=3) == interval
    # Of 100 samples from one population about 95 hold its value, log2(e).
    holding = 0
    for seed in range(100):
        low, high = bootstrap_interval(*documents(100), seed=seed, resamples=300)
        holding += low < 1 / log(2) < high
    assert 86 <= holding <= 100


def test_bootstrap_without_text():
    # One document tells nothing of how far documents vary.
    one = np.array([3.0]), np.array([7])
    assert bootstrap_interval(*one) is None and bits_per_byte(*one) == pytest.approx(3 / 7 / log(2))
    nothing = np.array([1.0, 2.0]), np.array([0, 0])
    assert bootstrap_interval(*nothing) is None and bits_per_byte(*nothing) is None
    assert bootstrap_interval(np.zeros(0), np.zeros(0, int)) is None
    # A resample of empty documents alone does not spoil the rest.
    assert np.isfinite(bootstrap_interval(np.array([3.0, 1.0]), np.array([7, 0]))).all()


def test_sources_are_printed_as_text():
    one = BitsPerByte(2, 30, 0, 1.25, (1.0, 1.5))
    sources = {
        "[/red]": one,
        "[b]a\x1b[31m": one,
        "c.txt": replace(one, documents=1, interval=None),
    }
    out = StringIO()
    print_result(Evaluation(one, sources, Problems(), 2.0), 0.95, Console(file=out, width=120))
    rows = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert rows[1] == "[/red] 1.2500 1.0000 to 1.5000 2 30 -"
    assert rows[2].startswith("[b]a�[31m 1.2500") and rows[3] == "c.txt 1.2500 - 1 30 -"


def test_tally_keeps_sources_apart():
    tally = Tally()
    for sources in (["b", "a"], ["a"]):
        tokens_T, lengths_D = encode_documents([b"four"] * len(sources))
        batch = Batch(sources, sources, tokens_T, lengths_D, np.array([1, 5] * len(sources)))
        tally.add(batch, np.full(len(sources), len(sources), float))
    total, sources = tally.results(0.95, 0)
    assert (total.documents, total.bytes, total.patches) == (3, 12, 6)
    assert list(sources) == ["a", "b"]
    assert sources["a"].bits_per_byte == pytest.approx(3 / 8 / log(2))
    assert sources["b"].bits_per_byte == pytest.approx(2 / 4 / log(2))
    assert sources["b"].mean_patch_bytes == 2


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A directory with models, text of two files, and its shards."""
    directory = tmp_path_factory.mktemp("evaluation")
    save_blt(tiny.blt(), directory / "blt")
    save_entropy_model(tiny.entropy_model(), directory / "entropy")
    for name, part in (("a", topics()[:4]), ("b", topics()[6:9])):
        short = [(name, text[:2500]) for name, text in part]
        write_jsonl(directory / "in" / f"{name}.jsonl", short)
    tiny.make_shards(
        directory / "shards",
        directory / "in",
        tiny.entropy_model(),
        Patcher(tiny.THRESHOLD),
        id_column="id",
    )
    return directory


def run(directory, **settings):
    config = EvaluateConfig(**{"model": str(directory / "blt"), "context": 1024} | settings)
    return evaluate(config, Console(quiet=True))


def same_result(one: BitsPerByte, other: BitsPerByte) -> None:
    """The same boundaries, from the same float16 entropies; packs differ, and so does rounding."""
    assert replace(one, bits_per_byte=0, interval=None) == replace(
        other, bits_per_byte=0, interval=None
    )
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)
    assert one.interval == pytest.approx(other.interval, rel=1e-6)


def test_text_and_shards_give_the_direct_number(prepared):
    settings = {"input": (str(prepared / "in"),), "entropy_model": str(prepared / "entropy")}
    of_text = run(prepared, **settings, context=4096)
    of_shards = run(prepared, shards=str(prepared / "shards"), context=4096)
    model, nats, size, patches = tiny.blt(), 0.0, 0, 0
    for document in open_shards(str(prepared / "shards")):
        tokens = ByteTokenizer().encode(document.text)
        logits = direct_logits(model, tokens, document.patch_lengths.tolist())
        nats += direct_nats(logits, tokens).sum()
        size += len(tokens) - 2
        patches += len(document.patch_lengths)
    for result in (of_text, of_shards):
        assert result.complete and result.total.documents == 7
        assert (result.total.bytes, result.total.patches) == (size, patches)
        assert result.total.bits_per_byte == pytest.approx(nats / size / log(2), abs=1e-6)
        assert list(result.sources) == ["a.jsonl", "b.jsonl"]
        low, high = result.total.interval
        assert low < result.total.bits_per_byte < high
    for name, of_source in of_text.sources.items():
        same_result(of_source, of_shards.sources[name])


def test_shards_are_cut_anew(prepared):
    again = run(prepared, shards=str(prepared / "shards"), threshold=4.4)
    stored = run(prepared, shards=str(prepared / "shards"))
    of_text = run(
        prepared,
        input=(str(prepared / "in"),),
        entropy_model=str(prepared / "entropy"),
        threshold=4.4,
    )
    same_result(again.total, of_text.total)
    assert again.total.mean_patch_bytes < stored.total.mean_patch_bytes


def test_patches_that_no_blt_reads_are_refused(prepared, tmp_path):
    """The first of them were read in two, and training refuses them."""
    rule = Patcher(rule="static", patch_size=4, published=True)
    settings = {"rule": "static", "patch_size": 4, "published_rules": True}
    tiny.make_shards(tmp_path / "set", prepared / "in", tiny.entropy_model(), rule, **settings)
    with pytest.raises(ConfigError, match=r"--shards: .* as published: .* no BLT reads"):
        run(prepared, shards=str(tmp_path / "set"))
    of_bytes = run(prepared, model=str(prepared / "entropy"), shards=str(tmp_path / "set"))
    assert of_bytes.complete


def test_shards_whose_lists_are_damaged_are_named(prepared, tmp_path):
    directory = tmp_path / "shards"
    shutil.copytree(prepared / "shards", directory)
    for column, row, flags, message in (
        ("entropies", [1.0], {"threshold": 4.4}, "lengths: must"),
        ("patch_lengths", None, {}, "patch_lengths: a row has no list"),
    ):

        def damage(batch, column=column, row=row):
            place = batch.schema.get_field_index(column)
            field = batch.schema.field(place)
            return batch.set_column(place, field, pa.array([row] * len(batch), field.type))

        rewrite(directory, damage)
        with pytest.raises(PipelineError, match=f"--shards {directory}: cannot be read: {message}"):
            run(prepared, shards=str(directory), **flags)


def test_sources_and_rejects(prepared, tmp_path):
    lines = [
        {"text": "one one one", "lang": "en"},
        {"text": "zwei", "lang": "de"},
        {"text": None, "lang": "en"},
        {"text": "trois", "lang": None},
        {"text": "four", "lang": "en"},
        {"lang": "en"},
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    settings = {
        "input": (str(path),),
        "entropy_model": str(prepared / "entropy"),
        "by": "lang",
    }
    result = run(prepared, **settings)
    assert {name: of.documents for name, of in result.sources.items()} == {
        "(none)": 1,
        "de": 1,
        "en": 2,
    }
    assert sum(of.bytes for of in result.sources.values()) == result.total.bytes == 24
    assert result.problems.rejects == 3
    reasons = [reject["reason"] for reject in result.problems.listed]
    assert "null" in reasons[0] and "'text'" in reasons[1] and "JSON" in reasons[2]
    assert all(reject["file"] == "mixed.jsonl" for reject in result.problems.listed)
    assert result.complete  # as in patch_corpus, rejects are no failure
    with pytest.raises(BadDocumentError, match="on-bad-document"):
        run(prepared, **settings, on_bad_document="fail")


def test_broken_files_and_models_are_named(prepared, tmp_path):
    whole = prepared / "in" / "a.jsonl"
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(b"PAR1 and no more")
    settings = {"entropy_model": str(prepared / "entropy")}
    result = run(prepared, input=(str(whole), str(cut)), **settings)
    assert not result.complete and result.total.documents == 4
    assert "cut.parquet" in result.problems.failures[0]
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    nothing = run(prepared, input=(str(empty),), **settings)
    assert not nothing.complete and nothing.total.bits_per_byte is None
    broken = tiny.blt()
    with torch.no_grad():
        broken.local_decoder.output.weight[7] = torch.nan
    save_blt(broken, tmp_path / "broken")
    config = EvaluateConfig(str(tmp_path / "broken"), input=(str(whole),), **settings)
    with pytest.raises(PipelineError, match=r"not a number in document a.jsonl#0"):
        evaluate(config, Console(quiet=True))


def test_rules_without_entropies_need_no_entropy_model(prepared, tmp_path):
    save_blt(tiny.blt(patcher=Patcher(rule="space")), tmp_path / "space")
    config = EvaluateConfig(str(tmp_path / "space"), input=(str(prepared / "in"),), context=1024)
    result = evaluate(config, Console(quiet=True))
    assert result.complete and 3 < result.total.mean_patch_bytes < 12
    with pytest.raises(PipelineError, match="--threshold: the space rule has none"):
        evaluate(replace(config, threshold=1.0), Console(quiet=True))


BOUNDARIES_FROM_OUTSIDE = (Patcher(rule="given"), Patcher(rule="bpe", tokenizer="ab" * 32))


@pytest.mark.parametrize("patcher", BOUNDARIES_FROM_OUTSIDE, ids=lambda patcher: patcher.rule)
def test_text_without_boundaries_is_refused_where_the_rule_takes_them_from_outside(
    prepared, tmp_path, patcher
):
    """By evaluation and generation; shards hold them."""
    record = (PatchProvenance(patcher, None),)
    save_blt(tiny.blt(patcher=None, patch_provenance=record), tmp_path / "blt")
    place = {"given": "column", "bpe": "tokenizer"}[patcher.rule]
    said = f"--rule: the patches of .*blt follow {patcher.rule}.* come from a {place} and not from"
    text = {"input": (str(prepared / "in"),)}
    with pytest.raises(ConfigError, match=said):
        run(tmp_path, **text)
    generate = run_path(str(ROOT / "jobs" / "generate.py"))
    config = generate["GenerateConfig"](str(tmp_path / "blt"), prompt=("a",), max_new_bytes=1)
    with pytest.raises(ConfigError, match=said):
        generate["run"](config, Console(quiet=True))
    shutil.copytree(prepared / "shards", tmp_path / "set")
    output = OutputDirectory(str(tmp_path / "set"))
    manifest = output.read_json(MANIFEST) | {"patcher": patcher.to_json()}
    output.write(MANIFEST, to_json(manifest))
    measured = run(tmp_path, shards=str(tmp_path / "set")).total
    assert measured.patches == run(prepared, shards=str(prepared / "shards")).total.patches


def test_importing_needs_no_ray():
    import subprocess
    import sys

    code = (
        "import sys, pipeline, pipeline.evaluate.job; "
        "assert not {'ray', 'lm_eval', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
