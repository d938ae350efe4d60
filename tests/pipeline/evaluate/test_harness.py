"""The adapter for lm-evaluation-harness against direct computations; no network."""

import json
import os
import subprocess
import sys
from math import log

import numpy as np
import pytest
import torch
from support import tiny
from support.jobs import ROOT, environment
from support.texts import topics

from model import ByteTokenizer, Patcher, generate, save_blt, save_entropy_model
from pipeline.errors import ConfigError, PipelineError

# Before lm-eval and datasets are imported: they read these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
from pipeline.evaluate import harness

DATA = ROOT / "tests" / "data" / "harness"
ROWS = [json.loads(line) for line in (DATA / "choices.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harness")
    save_blt(tiny.blt(), directory / "blt")
    save_entropy_model(tiny.entropy_model(), directory / "entropy")
    return {"model": str(directory / "blt"), "entropy_model": str(directory / "entropy")}


@pytest.fixture(scope="module")
def model(directories):
    return harness.HarnessBLT(**directories, batch_size=3)


def requests(*arguments: tuple) -> list:
    return [harness.Instance("loglikelihood", {}, a, i) for i, a in enumerate(arguments)]


def direct(before: str, after: str) -> tuple[float, bool]:
    """BOS, context and continuation, and nothing else, in one forward pass."""
    tokens = torch.tensor([ByteTokenizer().encode(before + after, eos=False)])
    h = tiny.entropy_model().entropies(tokens).half()
    patch_lengths = Patcher(tiny.THRESHOLD).patch_lengths(h)
    with torch.no_grad():
        logits = tiny.blt()(tokens, patch_lengths)[0, :-1]
    said = slice(len(before.encode()), None)
    target = tokens[0, 1:][said]
    logp = logits.double().log_softmax(-1)[said].gather(1, target[:, None])
    logits[:, [0, 1, 3]] = -torch.inf
    return logp.sum().item(), bool((logits.argmax(-1)[said] == target).all())


def test_loglikelihood_is_that_of_the_continuation_given_all_before_it(model):
    pairs = [
        ("", "start of a text"),
        ("A context, ", "and what follows"),
        ("größer", " als ß"),
        ("x" * 900, "y" * 40),
        ("only context", ""),
        ("one more ", "byte"),
        ("a", "b"),
    ]
    found = model.loglikelihood(requests(*pairs))
    for (before, after), (value, greedy) in zip(pairs, found, strict=True):
        expected, expected_greedy = direct(before, after)
        assert value == pytest.approx(expected, abs=2e-3)
        assert greedy == expected_greedy
    assert found[4] == (0.0, True)


def test_shared_contexts_are_read_once(model, directories):
    """Few-shot examples, questions with several answers, answers of one letter, repeated requests:
    in any order the numbers are those of each request alone."""
    examples = "".join(f"Q: {row['question']} A: {row['choices'][0]}\n" for row in ROWS[:4])
    pairs = [
        (f"{examples}Q: {row['question']} A:", f" {answer}")
        for row in ROWS
        for answer in (*row["choices"], *"ABCD", "")
    ]
    pairs += pairs[:9]
    random = np.random.default_rng(1)
    pairs = [pairs[i] for i in random.permutation(len(pairs))]
    before = model.predictor.work.tokens
    found = model.loglikelihood(requests(*pairs))
    for (context, answer), (value, greedy) in zip(pairs[:25], found, strict=False):
        expected, expected_greedy = direct(context, answer)
        assert value == pytest.approx(expected, abs=2e-3)
        assert greedy == expected_greedy
    assert dict(zip(pairs, found, strict=True)) == dict(zip(pairs[::-1], found[::-1], strict=True))
    asked = sum(len((context + answer).encode()) for context, answer in pairs)
    assert model.predictor.work.tokens - before < asked / 5
    # Whatever their order is, to the bit.
    assert model.loglikelihood(requests(*pairs[::-1])) == found[::-1]


def test_batches_change_nothing(model, monkeypatch):
    pairs = [(topics()[i][1][:60], topics()[i][1][60 : 90 + 7 * i]) for i in range(12)]
    expected = model.loglikelihood(requests(*pairs))
    texts = [(before + after,) for before, after in pairs]
    rolling = model.loglikelihood_rolling(requests(*texts))
    for size in (1, 500):
        monkeypatch.setattr(harness, "BATCH_BYTES", size)
        again = model.loglikelihood(requests(*pairs))
        assert [value for value, _ in again] == pytest.approx([v for v, _ in expected], abs=1e-3)
        assert model.loglikelihood_rolling(requests(*texts)) == pytest.approx(rolling, abs=1e-3)


def test_broken_requests_and_models_are_named(model, monkeypatch):
    named = {"metadata": ("task", 7, 1)}
    for kind, arguments in (
        ("loglikelihood", ("a\ud800", "b")),
        ("loglikelihood_rolling", ("a\ud800",)),
        ("generate_until", ("a\ud800", {"until": []})),
    ):
        request = harness.Instance(kind, {}, arguments, 0, **named)
        with pytest.raises(PipelineError, match=r"document 7 of the task .* holds half of a"):
            getattr(model, kind)([request])
    broken = tiny.blt()
    with torch.no_grad():
        broken.local_decoder.output.weight[7] = torch.nan
    monkeypatch.setattr(model, "predictor", harness.Predictor(broken, None))
    for kind, arguments in (("loglikelihood", ("a", "b")), ("loglikelihood_rolling", ("ab",))):
        request = harness.Instance(kind, {}, arguments, 0, **named)
        with pytest.raises(PipelineError, match="not a number in document 7 of the task task"):
            getattr(model, kind)([request])


def test_greedy_continuations_are_recognised(model):
    weight = model.blt.local_decoder.output.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():  # logits are x of "a", -x of "b", 0 of all others
            weight.zero_()
            weight[4 + ord("a")], weight[4 + ord("b")] = kept[10], -kept[10]
        continuations = [a + b + c for a in "ab" for b in "ab" for c in "ab"]
        found = model.loglikelihood(requests(*[("text", after) for after in continuations]))
        assert [greedy for _, greedy in found].count(True) == 1
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_rolling_likelihood_is_that_of_the_text(model, directories):
    texts = ["", "short", "größer als ß", "words and words " * 30]
    found = model.loglikelihood_rolling(requests(*[(text,) for text in texts]))
    for text, value in zip(texts, found, strict=True):
        assert value == pytest.approx(direct("", text)[0] if text else 0.0, abs=2e-3)
    windowed = harness.HarnessBLT(**directories, context=100)
    (value,) = windowed.loglikelihood_rolling(requests((texts[-1],)))
    assert value != pytest.approx(found[-1], abs=1e-2)
    assert value == pytest.approx(found[-1], rel=0.1)


def test_generation_gets_what_the_task_asks_for(model, monkeypatch):
    calls, seeds = [], []

    def generate(blt, entropy_model, prompts, **settings):
        seeds.append(settings.pop("seed"))
        calls.append((prompts, settings))
        assert blt is model.blt and entropy_model is model.patching.entropy_model
        return [b"-" + prompt + b"\xff" for prompt in prompts]

    monkeypatch.setattr(harness, "generate", generate)
    greedy = {"until": ["\n", ""], "do_sample": False, "max_gen_toks": 5}
    drawn = {"until": "stop", "temperature": 0.7, "top_k": 4, "top_p": 0.9, "do_sample": True}
    asked = [("a", greedy), ("ü", greedy), ("c", drawn), ("long", greedy), ("d", greedy)]
    texts = model.generate_until(requests(*asked))
    assert texts == ["-a�", "-ü�", "-c�", "-long�", "-d�"]
    shared = {"patcher": model.patching.patcher, "reset_at_newline": False, "batch_size": 3}
    first = {
        **shared,
        "max_new_bytes": 20,
        "temperature": 0.0,
        "top_k": None,
        "top_p": None,
        "stop": ["\n"],
    }
    second = {
        **shared,
        "max_new_bytes": 1024,
        "temperature": 0.7,
        "top_k": 4,
        "top_p": 0.9,
        "stop": ["stop"],
    }
    # Those with the same settings together, the longest first.
    assert calls == [([b"long", "ü".encode(), b"a", b"d"], first), ([b"c"], second)]
    # Every request has a seed of its own.
    assert [seed - seeds[0] for seed in seeds] == [0, 4]


def test_generation_is_greedy_text(model):
    settings = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 3}
    prompts = ["Write on", "a", "größer"]
    texts = model.generate_until(requests(*[(prompt, settings) for prompt in prompts]))
    entropy_model = tiny.entropy_model()
    expected = generate(model.blt, entropy_model, prompts, max_new_bytes=12, stop=["\n\n"])
    assert texts == [text.decode(errors="replace") for text in expected]
    assert max(map(len, expected)) > 2


@pytest.mark.parametrize(
    "settings", [{"until": None}, {"do_sample": True, "top_k": -1}, {"until": ["\n\n"]}]
)
def test_a_task_that_says_no_temperature_gets_greedy_text(model, settings):
    """DROP and about every fifth task that writes say neither do_sample nor a temperature."""
    (text,) = model.generate_until(requests(("Write on", {**settings, "max_gen_toks": 2})))
    (expected,) = generate(model.blt, tiny.entropy_model(), ["Write on"], max_new_bytes=8)
    assert text == expected.decode(errors="replace")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_beams": 10}, ["num_beams=10 is not known to this model and passed over"]),
        ({"repetition_penalty": 1.2, "x": "y"}, ["repetition_penalty=1.2 is", "x='y' is not"]),
        ({"do_sample": True}, ["do_sample=True comes without a temperature: text is greedy"]),
        ({"num_beams": 1, "repetition_penalty": 1.0, "min_p": 0.0, "early_stopping": False}, []),
    ],
)
def test_settings_that_are_not_followed_are_told_once(directories, capsys, settings, told):
    model = harness.HarnessBLT(**directories)
    asked = {"until": [], "max_gen_toks": 1, "temperature": 0.0, **settings}
    named = {"metadata": ("drop", 0, 1)}
    request = harness.Instance("generate_until", {}, ("a", asked), 0, **named)
    capsys.readouterr()
    model.generate_until([request])
    model.generate_until([request])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("task")]
    assert len(lines) == len(told)
    assert all(f"task drop: {text}" in line for text, line in zip(told, lines, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"top_p": 0.0}, "top_p: must be more than 0"),
        ({"top_p": "0.9x"}, "top_p: must be a number, got '0.9x'"),
        ({"top_k": 2.5}, "top_k: must be a whole number, got 2.5"),
        ({"max_gen_toks": "many"}, ".*'many'"),
        ({"until": ["\n", 65]}, "until: must be texts .*, got 65"),  # not 65 bytes of NUL
        ({"until": 0}, "until: must be texts"),
    ],
)
def test_settings_that_make_no_sense_name_the_task(model, wrong, message):
    settings = {"until": [], "do_sample": True, "temperature": 1.0} | wrong
    named = {"metadata": ("drop", 0, 1)}
    request = harness.Instance("generate_until", {}, ("a", settings), 0, **named)
    with pytest.raises(ConfigError, match=f"--harness-tasks: drop: {message}"):
        model.generate_until([request])


def test_samples_of_one_prompt_differ(model):
    settings = {"until": [], "do_sample": True, "temperature": 1.0, "max_gen_toks": 4}
    model.batch_size, kept = 2, model.batch_size
    try:
        texts = model.generate_until(requests(*[("a", settings)] * 6))
    finally:
        model.batch_size = kept
    assert len(set(texts)) == 6


@pytest.mark.slow
def test_tasks_run_as_a_user_runs_them(directories, tmp_path):
    """Multiple choice and perplexity, through the job, offline."""
    tasks = f"{DATA / 'choices.yaml'},{DATA / 'texts.yaml'}"
    flags = ["--model", directories["model"], "--entropy-model", directories["entropy_model"]]
    done = subprocess.run(
        [sys.executable, "jobs/evaluate.py", *flags, "--harness-tasks", tasks, "--json"],
        env=environment(HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    right = right_normed = 0
    for row in ROWS:
        before = f"Question: {row['question']}\nAnswer:"
        said = np.array([direct(before, " " + choice)[0] for choice in row["choices"]])
        lengths = np.array([len(choice) for choice in row["choices"]])
        right += said.argmax() == row["answer"]
        right_normed += (said / lengths).argmax() == row["answer"]
    assert results["titan_choices"]["acc,none"] == pytest.approx(right / len(ROWS))
    assert results["titan_choices"]["acc_norm,none"] == pytest.approx(right_normed / len(ROWS))
    nats = -sum(direct("", row["question"])[0] for row in ROWS)
    size = sum(len(row["question"].encode()) for row in ROWS)
    expected = nats / size / log(2)
    assert results["titan_texts"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-4)


def test_wrong_settings_are_told(directories, tmp_path):
    manager = harness.TaskManager(include_defaults=False)
    with pytest.raises(ConfigError, match=r"--harness-tasks: 'no_such_task' is neither"):
        harness.load_tasks(["no_such_task"], manager)
    broken = tmp_path / "broken.yaml"
    broken.write_text((DATA / "choices.yaml").read_text().replace("choices.jsonl", "none.jsonl"))
    with pytest.raises(ConfigError, match=r"--harness-tasks: .*broken.yaml: cannot be loaded"):
        harness.load_tasks([str(broken)], manager)
    with pytest.raises(ConfigError, match=r"--entropy-model: .* holds no entropy model"):
        harness.HarnessBLT(directories["model"])
    with pytest.raises(ConfigError, match="batch_size: must be 1 or more, or auto, got 0"):
        harness.HarnessBLT(**directories, batch_size=0)
    with pytest.raises(ConfigError, match=r"--model: .* the harness needs a BLT"):
        harness.HarnessBLT(directories["entropy_model"])
    save_blt(tiny.blt(patcher=Patcher(rule="top-k", patch_size=4)), tmp_path / "top-k")
    with pytest.raises(ConfigError, match="which cuts a text by what comes later"):
        harness.HarnessBLT(str(tmp_path / "top-k"), directories["entropy_model"])


def test_groups_run_with_the_groups_that_they_hold(tmp_path):
    """As mmlu does: a group of groups."""
    task = (DATA / "choices.yaml").read_text()
    for name in ("one", "two", "three"):
        (tmp_path / f"{name}.yaml").write_text(task.replace("titan_choices", name))
    for name, held in (("inner", "[one, two]"), ("outer", "[inner, three]")):
        (tmp_path / f"{name}.yaml").write_text(f"group: {name}\ntask: {held}\n")
    manager = harness.TaskManager(include_path=str(tmp_path), include_defaults=False)

    def run_together(*names: str) -> list[str]:
        together = harness.TaskManager(include_defaults=False)
        return sorted(together.load(harness.load_tasks(names, manager))["tasks"])

    assert run_together("outer") == ["one", "three", "two"]
    assert run_together("inner", "three", "inner") == ["one", "three", "two"]
    assert run_together("t*") == ["three", "two"]
    with pytest.raises(ConfigError, match=r"--harness-tasks: cannot run together: .*'one'"):
        harness.load_tasks(["inner", "one"], manager)
    with pytest.raises(ConfigError, match="--harness-tasks: names no task"):
        harness.load_tasks([], manager)


def test_it_is_registered_beside_the_harness_models(directories):
    from lm_eval.api.registry import get_model, model_registry

    assert get_model("blt-titan") is harness.HarnessBLT
    assert {"hf", "dummy"} <= set(model_registry.keys())
    made = harness.HarnessBLT.create_from_arg_string(
        "model={model},entropy_model={entropy_model}".format(**directories),
        {"batch_size": "auto", "max_batch_size": None, "device": "cuda:0"},
    )
    assert made.batch_size == harness.BATCH_SIZE
