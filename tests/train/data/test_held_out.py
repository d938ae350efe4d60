"""The validation sets that training finds by itself."""

import pytest
from support.shard_sets import write_shards

from train.data.held_out import validation_sets


@pytest.fixture
def shards(tmp_path):
    """A set with held-out documents, and one without."""
    for name in ("wiki", "wiki/validation", "code"):
        write_shards(tmp_path / name, [b"some text"] * 8)
    return [str(tmp_path / name) for name in ("wiki", "code")]


def test_a_set_of_held_out_documents_is_found(shards):
    assert validation_sets(shards) == [f"{shards[0]}/validation"]
    assert validation_sets([f"{url}/" for url in shards]) == [f"{shards[0]}/validation"]
    assert validation_sets([]) == []


def test_a_set_that_is_not_finished_is_not_passed_over(shards, tmp_path):
    (tmp_path / "code" / "validation").mkdir()
    (tmp_path / "code" / "validation" / "run.json").write_text("{}")
    assert validation_sets(shards) == [f"{url}/validation" for url in shards]


def test_validation_reads_it_unless_other_shards_are_named(shards):
    from train.shim import prepare

    prepare()
    from train.cluster.checks import parse_config

    flags = ["--config", "blt_debug", "--dataloader.shards", ",".join(shards)]
    enabled = [*flags, "--validator.enable"]
    found = parse_config(enabled).validator.dataloader.shards
    assert found == [f"{shards[0]}/validation"]
    named = [*enabled, "--validator.dataloader.shards", shards[1]]
    assert parse_config(named).validator.dataloader.shards == [shards[1]]
