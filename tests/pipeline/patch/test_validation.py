"""The configuration by which held-out documents of a prepared corpus are patched."""

from dataclasses import replace

import pytest

from pipeline.adopt.config import AdoptShardsConfig
from pipeline.corpus.inputs import Inputs
from pipeline.errors import PipelineError
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.validation import check_held_out, validation_config

CONFIG = PatchCorpusConfig(("in",), "/out/", target_patch_size=4.5, keep_columns=("url",))


@pytest.fixture
def inputs(tmp_path) -> Inputs:
    path = tmp_path / "c.val.jsonl"
    path.write_text('{"sample_id": "a", "text": "b"}\n')
    return Inputs(held_out={str(path): {"file_bytes": path.stat().st_size, "sha256": "…"}})


def test_held_out_documents_are_patched_as_the_others(inputs):
    config = validation_config(CONFIG, inputs, 1.25)
    assert config.output == "/out/validation" and config.input == tuple(inputs.held_out)
    assert (config.threshold, config.target_patch_size, config.calibrates) == (1.25, None, False)
    assert config.id_column == "sample_id" and config.no_validation
    same = ("entropy_model", "keep_columns", "seed", "verify", "overwrite", "shard_bytes")
    assert all(getattr(config, name) == getattr(CONFIG, name) for name in same)


def test_nothing_is_patched_that_nobody_wants_or_that_is_not_there(inputs):
    assert validation_config(replace(CONFIG, no_validation=True), inputs, 1.25) is None
    assert validation_config(CONFIG, Inputs(), 1.25) is None
    assert validation_config(AdoptShardsConfig(("in",), "out"), inputs, 1.25) is None


def test_a_validation_file_that_is_not_what_was_written_is_named(inputs):
    (url,) = inputs.held_out
    for change in ("longer", None):
        if change is None:
            inputs.held_out[url + "x"] = inputs.held_out.pop(url)
        else:
            inputs.held_out[url] |= {"file_bytes": 99}
        with pytest.raises(PipelineError, match=r"c.val.jsonlx?: is not the file of 99 bytes"):
            check_held_out(CONFIG, inputs)
        check_held_out(replace(CONFIG, no_validation=True), inputs)
