"""The record that a checkpoint holds of shard sets: it names no private place."""

from support.shard_sets import real_texts, write_shards

from model import Patcher
from model.provenance import EntropyModelIdentity, PatchProvenance
from pipeline.shards.provenance import provenance_of, recorded, short_names

MODEL = EntropyModelIdentity("/home/alice/models/small", "a" * 64, "cpu float32", False)


def test_names_are_as_short_as_can_be():
    assert short_names(["a/b/", "s3://x/c"]) == ["b", "c"]
    assert short_names(["/z/fineweb/patched", "/z/dclm/patched"]) == [
        "fineweb/patched",
        "dclm/patched",
    ]
    assert short_names(["."]) == ["."]


def test_a_record_names_no_private_place(tmp_path):
    made = []
    for name, rule in (("a", Patcher(1.0)), ("b", Patcher(1.0)), ("c", Patcher(rule="byte"))):
        url = str(tmp_path / name / "patched")
        shards = write_shards(url, real_texts(3), patcher=rule, entropy_model=MODEL)
        made.append(provenance_of(shards))
    assert made[0] == PatchProvenance(Patcher(1.0), MODEL, (str(tmp_path / "a" / "patched"),))
    public = EntropyModelIdentity("small", "a" * 64, "cpu float32", False)
    assert recorded([*made, made[0]]) == (
        PatchProvenance(Patcher(1.0), public, ("a/patched", "b/patched")),
        PatchProvenance(Patcher(rule="byte"), None, ("c/patched",)),
    )
    again = provenance_of(write_shards(str(tmp_path / "d"), real_texts(3)), Patcher(2.0))
    assert again == PatchProvenance(Patcher(2.0), None, (str(tmp_path / "d"),))
