"""Sets whose patches differ are not trained on together, or validated with, unless that is asked
for; and the record says what was trained on."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from support.shard_sets import real_texts, write_shards

from model import BLT_SIZES, Patcher
from model.provenance import EntropyModelIdentity, PatchProvenance
from pipeline.errors import ConfigError
from train.cluster.checks import check_run
from train.data.dataloader import ShardDataLoader
from train.data.provenance import compare_validation, with_patches

MODEL = EntropyModelIdentity("small", "a" * 64, "cpu float32", False)
OTHER = replace(MODEL, source="large", fingerprint="b" * 64)
SETS = {
    "one": (Patcher(1.0), MODEL),
    "same": (Patcher(1.0), replace(MODEL, source="copy")),
    "rounded": (Patcher(1.0), replace(MODEL, computed_in="cuda bfloat16")),
    "higher": (Patcher(1.1), MODEL),
    "other": (Patcher(1.0), OTHER),
    "cut": (Patcher(1.0, max_patch_length=8), MODEL),
    "words": (Patcher(rule="space"), MODEL),
    "words-too": (Patcher(rule="space"), OTHER),
    "unknown": (Patcher(1.0), None),
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sets")
    for name, (patcher, model) in SETS.items():
        write_shards(str(directory / name), real_texts(8), patcher=patcher, entropy_model=model)
    return directory


def load(directory: Path, *names: str, **settings: object) -> ShardDataLoader:
    shards = [str(directory / name) for name in names]
    config = ShardDataLoader.Config(shards=shards, shuffle_bytes=20_000, **settings)
    return config.build(dp_world_size=1, dp_rank=0, seq_len=256, local_batch_size=2)


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("one", "same"), {}),
        (("words", "words-too"), {}),  # no entropy decides
        (("one", "higher"), {"threshold": 1.2}),  # one rule for both
        (("one", "other", "cut", "words"), {"patches": False}),  # as entropy models read them
    ],
)
def test_sets_that_are_patched_alike(sets, names, settings):
    assert load(sets, *names, **settings).notes == []


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("one", "higher"), {}, "the rule of {0} is global (threshold 1.0), that of {1} is global"),
        (
            ("one", "higher"),
            {},
            "; re-patch them by one rule (--dataloader.threshold), or mix",
        ),
        (("one", "cut"), {"threshold": 1.2}, "is global (threshold 1.2, max_patch_length 8); "),
        (("one", "words"), {}, "that of {1} is space;"),
        (
            ("one", "other"),
            {},
            "the entropy model of {0} is small (fingerprint aaaaaaaaaaaa), ",
        ),
        (
            ("one", "other"),
            {"threshold": 1.2},
            "that of {1} is large (fingerprint bbbbbbbbbbbb); ",
        ),
        (
            ("one", "other"),
            {},
            "; patch both with one entropy model, or mix them",
        ),
        (("one", "unknown"), {}, "that of {1} is unknown;"),
    ],
)
def test_sets_that_are_not(sets, names, settings, message):
    with pytest.raises(ConfigError) as raised:
        load(sets, *names, **settings)
    said = str(raised.value)
    assert said.startswith("dataloader.shards: the sets have different patches: ")
    assert message.format(*(sets / name for name in names)) in said and "\n" not in said
    assert "--dataloader.allow-mixed-patches" in said
    allowed = load(sets, *names, **settings, allow_mixed_patches=True)
    assert len(allowed.notes) == 1 and allowed.notes[0] in said
    assert next(iter(allowed))


def test_what_is_said_without_refusing(sets):
    (note,) = load(sets, "one", "rounded").notes
    assert note.endswith("in cuda bfloat16: they differ by rounding")
    (note,) = load(sets, "unknown", "unknown").notes
    assert "neither" in note and "records its entropy model" in note


def test_validation_sets_have_to_be_patched_like_a_training_set(sets):
    def compare(validation: str, *training: str, allowed: bool = False) -> list[str]:
        return compare_validation(
            load(sets, validation).stream.provenance,
            load(sets, *training, allow_mixed_patches=True).stream.provenance,
            allowed=allowed,
        )

    for name, other in itertools.product(("one", "same"), repeat=2):
        assert compare(name, other) == []
    assert compare("other", "one", "other") == []
    assert "rounding" in compare("rounded", "one")[0]
    for name, message in (
        ("higher", "the rule of the training sets is global (threshold 1.0), that of "),
        ("other", "the entropy model of the training sets is small (fingerprint aaaaaaaaaaaa), "),
    ):
        with pytest.raises(ConfigError) as raised:
            compare(name, "one")
        said = str(raised.value)
        assert said.startswith("--validator.dataloader.shards: have other patches than the train")
        assert message in said and "--dataloader.allow-mixed-patches" in said
        assert compare(name, "one", allowed=True)[0] in said


def test_the_driver_refuses_before_any_worker_starts(sets, tmp_path):
    def check(*flags: str) -> None:
        check_run(["--config", "blt_debug", "--dump-folder", str(tmp_path), *flags])

    one, other = str(sets / "one"), str(sets / "other")
    validating = ("--validator.enable", "--validator.dataloader.shards")
    with pytest.raises(ConfigError, match=r"^--dataloader\.shards: the sets have different"):
        check("--dataloader.shards", f"{one},{other}")
    with pytest.raises(ConfigError, match=r"^--validator\.dataloader\.shards: have other patches"):
        check("--dataloader.shards", one, *validating, other)
    both = f"{one},{other}"
    allow = "--dataloader.allow-mixed-patches"
    check("--dataloader.shards", both, *validating, both, allow)


def test_the_record_of_a_shape(sets):
    shape = BLT_SIZES["debug"]
    alike = with_patches(shape, load(sets, "one", "same").stream.provenance)
    assert alike.patcher == Patcher(1.0)
    copy = replace(MODEL, source="copy")
    assert alike.patch_provenance == (
        PatchProvenance(Patcher(1.0), MODEL, ("one",)),
        PatchProvenance(Patcher(1.0), copy, ("same",)),
    )
    mixed = load(sets, "one", "higher", "words", allow_mixed_patches=True)
    recorded = with_patches(shape, mixed.stream.provenance)
    assert recorded.patcher is None
    assert [each.patcher for each in recorded.patch_provenance] == [
        *(Patcher(1.0), Patcher(1.1), Patcher(rule="space")),
    ]
