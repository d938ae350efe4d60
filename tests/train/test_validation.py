"""Validation of several sets, and by a column, is exact: it is evaluate.py's on the documents."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from support.jobs import ROOT
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, SEQ_LEN, Training, start, tiny

from pipeline.errors import ConfigError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import Evaluation, evaluate
from train.data.dataloader import ShardDataLoader
from train.data.groups import NO_VALUE
from train.validator import OTHER_GROUPS, ShardValidator, Tally, bits_of_parts, open_sets

SHARE = {"dp_world_size": 1, "dp_rank": 0, "seq_len": SEQ_LEN, "local_batch_size": 3}
LANGUAGES = ("en", "de", None)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Documents that rows hold whole, so that evaluate.py gives each byte the same context."""
    folder = tmp_path_factory.mktemp("held-out")
    sets = {}
    for seed, name in enumerate(("wiki/validation", "code/validation"), 1):
        texts = [text.ljust(SEQ_LEN)[:62] for text in real_texts(11, seed=seed)]
        column = ("language", [LANGUAGES[i % 3] for i in range(11)])
        rates = (0.1 * seed, 0.4)
        write_shards(str(folder / name), texts, rates=rates, per_batch=3, seed=seed, column=column)
        sets[name] = folder / name
    return sets


@pytest.fixture(scope="module")
def runs(held_out, tmp_path_factory) -> dict[str, Training]:
    folder = tmp_path_factory.mktemp("runs")
    write_shards(str(folder / "shards"), real_texts(20))
    found = {}
    for config, ranks in (("blt_debug", 1), ("blt_debug", 2), ("entropy_debug", 1)):
        given = tiny(config, folder / "shards", rows=ROWS // ranks, steps=1)
        given += ("--validator.enable", "--validator.by", "language")
        given += ("--validator.dataloader.shards", ",".join(map(str, held_out.values())))
        if config == "blt_debug":  # room for any number of patches
            given += ("--validator.dataloader.patches-per-row", SEQ_LEN)
        name = f"{config} on {ranks}"
        found[name] = start(folder / name, *given, ranks=ranks).wait()
        assert not any(found[name].exit_codes), found[name].output
    return found


def evaluated(run: Training, held_out: dict[str, Path], tmp_path: Path) -> dict[str, Evaluation]:
    """What evaluate.py says of the weights that were trained."""
    job = runpy.run_path(str(ROOT / "jobs" / "convert_checkpoint.py"))
    step = str(run.folder / "checkpoint" / "step-1")
    converted = job["ConvertCheckpointConfig"](step, str(tmp_path / "weights"))
    assert job["run"](converted, Console(stderr=True)) == 0
    return {
        name: evaluate(
            EvaluateConfig(model=str(tmp_path / "weights"), shards=str(url), by="language"),
            Console(quiet=True),
        )
        for name, url in held_out.items()
    }


@pytest.mark.parametrize("config", ["blt_debug", "entropy_debug"])
def test_sets_and_groups(runs, held_out, config, tmp_path):
    expected = evaluated(runs[f"{config} on 1"], held_out, tmp_path)
    bits: dict[str, list] = {}
    for name, of_set in expected.items():
        bits.setdefault("", []).append(of_set.total)
        bits.setdefault(name, []).append(of_set.total)
        for language, of_group in of_set.sources.items():
            bits.setdefault(f"language/{language}", []).append(of_group)
    assert f"language/{NO_VALUE}" in bits
    for name, parts in bits.items():
        total = sum(part.bits_per_byte * part.bytes for part in parts)
        metric = f"validation_metrics/{name}/bits_per_byte".replace("//", "/")
        for ranks in (1, 2) if config == "blt_debug" else (1,):
            measured = runs[f"{config} on {ranks}"].metrics[1][metric]
            assert measured == pytest.approx(total / sum(part.bytes for part in parts), rel=2e-6)
    assert re.search(
        r"validation: \d\.\d{4} bits per byte, wiki/validation \d\.\d{4}, code/validation \d\.\d+, "
        r"language/\S+ \d",
        runs[f"{config} on 1"].output,
    )


def test_each_label_has_the_group_of_its_document(tmp_path):
    """Whatever pieces of documents a row holds: a document's letters are its group."""
    lengths = np.random.default_rng(0).integers(0, 400, 60)
    texts = [bytes([97 + i % 26]) * length for i, length in enumerate(lengths.tolist())]
    column = ("letter", [chr(97 + i % 26) for i in range(60)])
    write_shards(str(tmp_path), texts, column=column)
    for patches in (True, False):
        config = ShardDataLoader.Config(
            shards=[str(tmp_path)], infinite=False, patches=patches, shuffle_bytes=3000
        )
        found = np.zeros(26, int)
        for ranks in range(2):
            loader = config.build(**SHARE | {"dp_world_size": 2, "dp_rank": ranks}, by="letter")
            for inputs, labels in loader:
                names = np.array([ord(name) - 97 for name in loader.stream.groups.names])
                of_label = names[inputs["groups"].numpy()]
                is_byte = labels.numpy() > 3
                assert (labels.numpy()[is_byte] - 4 - 97 == of_label[is_byte]).all()
                known = labels.numpy() >= 0
                found += np.bincount(of_label[known], minlength=26)
        expected = np.zeros(26, int)
        np.add.at(expected, np.arange(60) % 26, lengths + 1)  # with EOS
        assert (found == expected).all()


def test_small_groups_are_summed():
    tally = Tally({name: np.array([i, 1.0, i]) for i, name in enumerate("abcd")})
    largest = tally.largest(2)
    assert list(largest) == ["d", "c", OTHER_GROUPS]
    assert (largest.total == tally.total).all() and largest[OTHER_GROUPS].tolist() == [1, 2, 1]


def test_a_part_of_empty_documents_has_no_figure():
    parts = {"en": np.array([4 * np.log(2), 3, 2]), "(none)": np.array([9.7, 1, 0])}
    assert bits_of_parts(parts) == pytest.approx({"en": 2.0})


def test_names(held_out):
    def opened(*urls: Path | str, **more: object) -> list[str]:
        loader = ShardDataLoader.Config(shards=[*map(str, urls)], **more.pop("loader", {}))
        return list(open_sets(ShardValidator.Config(dataloader=loader, **more), **SHARE))

    one, two = held_out.values()
    assert opened(one) == ["validation"]
    assert opened(f"{one}/", two) == ["wiki/validation", "code/validation"]
    assert opened(one, two, names=["a", "b"]) == ["a", "b"]
    widths = {
        loader.stream.patches_per_row
        for loader in open_sets(
            ShardValidator.Config(dataloader=ShardDataLoader.Config(shards=[str(one), str(two)])),
            **SHARE,
        ).values()
    }
    assert len(widths) == 1, "each width would be compiled for itself"
    for said, given in (
        ("--validator.names: a: give each of the 2 sets", {"names": ["a"]}),
        ("--validator.names: a, a: give each", {"names": ["a", "a"]}),
        (
            "--validator.by: .* has no column 'source' of metadata; there are: lang",
            {"by": "source"},
        ),
        ("--validator.dataloader.weights: each set", {"loader": {"weights": (1.0, 2.0)}}),
        ("--validator.dataloader.prefetch: must be", {"loader": {"prefetch": 0}}),
        ("--validator.steps: at least 1, or -1 for all of the text, got 0", {"steps": 0}),
    ):
        with pytest.raises(ConfigError, match=said):
            opened(one, two, **given)
    with pytest.raises(ConfigError, match=r"--validator.names: .*: give each of the 2 sets"):
        opened(one, one)
    with pytest.raises(ConfigError, match=r"--validator.dataloader.shards: name at least one"):
        opened()
