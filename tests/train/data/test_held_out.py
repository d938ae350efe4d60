"""The validation sets that training finds by itself."""

import pytest
from support.shard_sets import write_shards

from pipeline.errors import ConfigError
from train.data.held_out import validation_sets
from train.data.named import check_sets


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


def test_a_set_that_is_not_there_is_named_with_its_flag(shards, tmp_path):
    check_sets("--dataloader.shards", shards)
    (tmp_path / "file").touch()
    for urls, message in (
        ([], "name at least one shard set"),
        ([*shards, str(tmp_path / "none")], f"{tmp_path}/none: no such directory"),
        ([str(tmp_path / "file")], f"{tmp_path}/file: cannot be used: Not a directory"),
        ([str(tmp_path)], f"{tmp_path}: no manifest.json: not a shard set"),
    ):
        with pytest.raises(ConfigError, match=f"^--dataloader.shards: {message}"):
            check_sets("--dataloader.shards", urls)
