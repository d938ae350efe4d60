"""What two provenances of patches differ in, in words; and what a damaged one says."""

import json
from dataclasses import asdict, replace

import pytest

from model import Patcher
from model.provenance import (
    EntropyModelIdentity,
    PatchProvenance,
    closest,
    grouped,
    kinds_of,
    listed,
    patch_differences,
)

MODEL = EntropyModelIdentity("owner/model", "a" * 64, "cpu float32", False)
ONE = PatchProvenance(Patcher(1.5, max_patch_length=8), MODEL, ("one",))
SPACE = PatchProvenance(Patcher(rule="space"), None, ("words",))
NAMES = ("A", "B")


def other_model(**changes: object) -> PatchProvenance:
    return replace(ONE, entropy_model=replace(MODEL, **changes), sets=("two",))


def test_the_same_in_all_that_counts():
    renamed = other_model(source="/elsewhere/model")
    for other in (ONE, renamed, other_model(computed_in=None), other_model(reset_at_newline=None)):
        assert not any(patch_differences(ONE, other, NAMES))
    # Where no entropy decides, it is the same whose they are.
    assert not any(patch_differences(SPACE, replace(SPACE, entropy_model=MODEL), NAMES))


@pytest.mark.parametrize(
    ("other", "rule", "entropies", "note"),
    [
        (
            replace(ONE, patcher=Patcher(2.0)),
            "the rule of A is global (threshold 1.5, max_patch_length 8), that of B is "
            "global (threshold 2.0)",
            "",
            "",
        ),
        (
            SPACE,
            "the rule of A is global (threshold 1.5, max_patch_length 8), that of B is space",
            "",
            "",
        ),
        (
            other_model(fingerprint="b" * 64),
            "",
            f"the entropy model of A is owner/model (fingerprint {'a' * 12}), that of B is "
            f"owner/model (fingerprint {'b' * 12})",
            "",
        ),
        (
            replace(ONE, entropy_model=None),
            "",
            f"the entropy model of A is owner/model (fingerprint {'a' * 12}), that of B is unknown",
            "",
        ),
        (
            other_model(reset_at_newline=True),
            "",
            "the entropies of B start again after each newline, those of A do not",
            "",
        ),
        (
            other_model(computed_in="cuda bfloat16"),
            "",
            "",
            "the entropies of A were computed in cpu float32, those of B in cuda bfloat16: they "
            "differ by rounding",
        ),
    ],
)
def test_differences(other, rule, entropies, note):
    differ = patch_differences(ONE, other, NAMES)
    assert differ == (rule, entropies, note)
    assert differ.boundaries == rule + entropies


def test_kinds_of_gpus_differ_by_rounding():
    h100, h200 = (other_model(computed_in=f"cuda bfloat16 on {gpu}") for gpu in ("H100", "H200"))
    note = patch_differences(h100, h200, NAMES).note
    assert note.endswith(
        "bfloat16 on H100, those of B in cuda bfloat16 on H200: they differ by rounding"
    )
    # Early releases did not say which GPU it was.
    assert not any(patch_differences(other_model(computed_in="cuda bfloat16"), h200, NAMES))


def test_both_differ_and_nothing_is_known():
    differ = patch_differences(
        ONE,
        replace(other_model(fingerprint="b"), patcher=Patcher(rule="top-k", patch_size=4)),
        NAMES,
    )
    assert differ.boundaries.startswith("the rule of A is") and "; the entropy" in differ.boundaries
    unknown = replace(ONE, entropy_model=None)
    assert patch_differences(unknown, unknown, NAMES).note == (
        "neither A nor B records its entropy model"
    )
    thresholds = ONE, replace(ONE, patcher=replace(ONE.patcher, threshold=2.0))
    assert not any(patch_differences(*thresholds, NAMES, any_threshold=True))
    rules = ONE, replace(ONE, patcher=Patcher(2.0))
    assert "threshold 2.0" in patch_differences(*rules, NAMES, any_threshold=True).rule


def test_a_record_is_compared_by_its_nearest():
    record = (other_model(fingerprint="b" * 64), replace(ONE, patcher=Patcher(2.0)), SPACE)
    assert closest(record, SPACE, NAMES).boundaries == ""
    assert closest(record, ONE, NAMES).rule.startswith("the rule of A is global (threshold 2.0)")
    assert closest((*record, ONE), ONE, NAMES) == ("", "", "")
    unknown = (replace(ONE, entropy_model=None),)
    said = "A does not record its entropy model: that of B is not compared"
    assert closest(unknown, ONE, NAMES) == ("", "", said)
    assert closest(unknown, replace(ONE, patcher=Patcher(2.0)), NAMES).rule


def test_groups_and_kinds():
    again, rounded = replace(ONE, sets=("three", "one")), other_model(computed_in="cuda bfloat16")
    assert grouped([ONE, SPACE, again]) == (replace(ONE, sets=("one", "three")), SPACE)
    assert len(grouped([ONE, rounded])) == 2
    assert [kind.sets for kind in kinds_of([ONE, rounded, SPACE])] == [("one", "two"), ("words",)]
    many = replace(SPACE, sets=tuple("abcde"))
    assert listed([ONE, many]) == (
        f"global (threshold 1.5, max_patch_length 8) on entropies of {MODEL} in one; "
        "space in a, b, c and 2 more"
    )


def test_there_and_back():
    for each in (ONE, SPACE):
        assert PatchProvenance.from_json(json.loads(json.dumps(asdict(each)))) == each


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patcher": None}, "has no boundary rule"),
        ({"patcher": {"rule": "none"}}, "rule: 'none' is not one of"),
        ({"patcher": {"size": 3}}, "patcher: .*'size'"),
        ({"sets": "one"}, "sets: 'one' is no list of names"),
        ({"sets": [1]}, r"sets: \[1\] is no list"),
        ({"entropy_model": "x"}, "entropy_model: 'x' is no object"),
        ({"entropy_model": {"fingerprint": 3}}, "entropy_model.fingerprint: 3 is no str"),
        (
            {"entropy_model": {"reset_at_newline": 1}},
            "entropy_model.reset_at_newline: 1 is no bool",
        ),
    ],
)
def test_damage_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        PatchProvenance.from_json(asdict(ONE) | {"sets": ["one"]} | changes)
    with pytest.raises(ValueError, match="has no boundary rule"):
        PatchProvenance.from_json([])
