"""Whether two devices agree: the command's parts, and the command."""

import base64
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from support.jobs import ROOT

from model import Patcher, save_entropy_model
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.agreement import Agreement, Measured, built_in_text
from pipeline.patch.scoring import Scorer


@pytest.fixture(scope="module")
def measured(ngram_model) -> Measured:
    return Measured.by(Scorer(ngram_model, Patcher(rule="byte")))


def shifted(measured: Measured, nats: np.ndarray | float) -> Measured:
    values = (measured.values().astype(np.float32) + nats).astype("<f2")
    return replace(measured, entropies=base64.b64encode(values.tobytes()).decode())


def test_the_text_never_changes():
    """Files of other machines, and of other releases of Python, are of this text."""
    documents = built_in_text()
    assert (len(documents), sum(map(len, documents))) == (36, 101_640)
    assert max(map(len, documents)) > 8192 > 100 > min(map(len, documents))


def test_the_same_bits(measured):
    again = Measured.from_json(measured.to_json().encode(), "here")
    assert again == measured and again.hash() == measured.hash()
    agreement = Agreement.between(measured, again, "there")
    assert agreement.identical and agreement.tolerable and str(agreement) == "the same bits"


def test_rounding_is_measured(measured):
    random = np.random.default_rng(0)
    a_little = shifted(measured, random.normal(0, 0.004, len(measured.values())))
    agreement = Agreement.between(measured, a_little, "there")
    assert not agreement.identical and agreement.tolerable
    assert agreement.mean == pytest.approx(0.0032, rel=0.1) and 0 < agreement.boundaries < 0.02
    assert "0.0032 nats on average" in str(agreement) and "within the tol" in str(agreement)
    assert a_little.hash() != measured.hash()
    much = Agreement.between(measured, shifted(measured, 0.5), "there")
    assert not much.tolerable and much.most == pytest.approx(0.5, abs=0.01)
    assert "beyond the tolerance of 0.02 nats and 2%" in str(much)


def test_what_cannot_be_compared(measured):
    for change, message in (
        ({"entropy_model": "0" * 64}, "there: is of another entropy model"),
        ({"text": "0" * 64}, "there: is of another text"),
        ({"entropies": measured.entropies[:-8]}, "there: has .* entropies, not .*: it is damaged"),
    ):
        with pytest.raises(ConfigError, match=message):
            Agreement.between(measured, replace(measured, **change), "there")
    values = json.loads(measured.to_json())
    for broken in ("[", "[1]", "{}", json.dumps(values | {"entropies": "?"}), "\udcff"):
        with pytest.raises(ConfigError, match=r"there: is no output of check_device.py"):
            Measured.from_json(broken.encode(errors="surrogateescape"), "there")


def test_a_device_that_does_not_repeat_itself(ngram_model, monkeypatch):
    shift = iter([0.0, 0.01])
    scorer = Scorer(ngram_model, Patcher(rule="byte"))
    once = Scorer.entropies

    def unlike(self, *given):
        return once(self, *given) + np.float16(next(shift))

    monkeypatch.setattr(Scorer, "entropies", unlike)
    with pytest.raises(PipelineError, match="cpu float32: computes other bits when it scores"):
        Measured.by(scorer)


def test_the_command(ngram_model, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    from check_device import CheckDeviceConfig, run

    save_entropy_model(ngram_model, tmp_path / "model")
    config = CheckDeviceConfig(str(tmp_path / "model"), output=tmp_path / "here.json")
    console = Console(stderr=True)
    assert run(config, console) == 0
    assert capsys.readouterr().out.startswith("cpu float32, torch ")
    far = shifted(Measured.from_json((tmp_path / "here.json").read_bytes(), ""), 0.5)
    (tmp_path / "far.json").write_text(far.to_json())
    compared = replace(config, output=None, compare=(tmp_path / "here.json",))
    assert run(compared, console) == 0
    assert "here.json (cpu float32): the same bits" in capsys.readouterr().out
    both = replace(compared, compare=(*compared.compare, tmp_path / "far.json"), json=True)
    assert run(both, console) == 1
    found = json.loads(capsys.readouterr().out)["compared"]
    assert [each["tolerable"] for each in found.values()] == [True, False]
    for wrong, message in (
        ({"compare": (tmp_path / "none",)}, "--compare .*none: No such file"),
        ({"output": tmp_path / "no" / "here"}, "--output .*here: has to be a file"),
        ({"entropy_model": str(tmp_path / "no")}, "--entropy-model: .*no: no such directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(replace(config, **wrong), console)
    sys.modules.pop("check_device")
