"""Files of experiments: those that come along, and what is wrong with others."""

import pytest
from support.jobs import ROOT

from pipeline.errors import ConfigError
from train.compare.experiment import read_experiment, shipped

GOOD = """
title = "a"
question = "b"
[forms.cpu]
size = "debug"
budget_flops = 1e9
row_bytes = 256
rows = 2
[arms.one]
label = "one"
model = "blt"
patch_size = 4.5
"""


def test_those_that_come_along():
    assert set(shipped()) == {"patches", "patch-sizes", "hashes", "entropy-models", "robustness"}
    for name in shipped():
        experiment = read_experiment(name)
        assert experiment.name == name
        assert list(experiment.forms) == ["cpu", "gpu"]
        assert len(experiment.arms) > 1 and len(experiment.seeds) == 3


def test_the_example_of_the_documentation(tmp_path):
    path = tmp_path / "two-or-four.toml"
    page = (ROOT / "docs" / "claims.md").read_text()
    path.write_text(page.split("```toml\n")[1].split("```")[0])
    experiment = read_experiment(str(path))
    assert [arm.name for arm in experiment.arms] == ["two", "four"]
    for name in shipped():
        assert f"| `{name}` |" in page


def test_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    experiment = read_experiment(str(path))
    assert experiment.name == "mine" and experiment.seeds == (0, 1, 2)
    with pytest.raises(ConfigError, match=r"--form: mine has no gpu; it has cpu"):
        experiment.form("gpu")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "a"', "", "title: is missing"),
        ('title = "a"', "title = 1", "title: 1 is of the wrong type"),
        ('title = "a"', 'title = "a"\nname = "x"', "name: there is no such value"),
        ('title = "a"', 'title = "a"\nseeds = []', "seeds: name each seed once"),
        ('title = "a"', 'title = "a"\nseeds = [1, true]', "seeds: .* is of the wrong type"),
        ('title = "a"', 'title = "a"\nnoise = ["rain"]', "noise: 'rain' is none of "),
        ("1e9", "-1e9", "forms.cpu.budget_flops: has to be positive"),
        ("rows = 2", "rows = 2.5", "forms.cpu.rows: 2.5 is of the wrong type"),
        ("rows = 2", "rows = 2\nwarmth = 3", "forms.cpu.warmth: there is no such value"),
        ("rows = 2", "rows = 2\nshapes = {gpt = {}}", "forms.cpu.shapes.gpt: is none of blt"),
        ("[arms.one]", "[legs.one]", "arms: there are no"),
        ('"blt"', '"gpt"', "arms.one.model: 'gpt' is none of blt, bpe, bytes"),
        ('"blt"', '"bpe"', "arms.one.patch_size: a bpe model has no patches"),
        ("patch_size = 4.5", "", "arms.one.patch_size: the global rule needs mean bytes"),
        ("patch_size = 4.5", 'rule = "bpe"', "arms.one.rule: 'bpe' is none of "),
        ('"blt"', '"blt"\nrule = "space"', "arms.one.patch_size: the space rule has no mean bytes"),
        ('label = "one"', 'label = "one', "is no TOML"),
    ],
)
def test_what_is_wrong(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError, match=message) as error:
        read_experiment(str(path))
    assert str(path) in str(error.value)


def test_there_is_none(tmp_path):
    with pytest.raises(ConfigError, match="neither a file nor one of entropy-models, "):
        read_experiment("nothing")
