"""The card of an exported dataset, whatever its columns are called."""

import os

import numpy as np
import pytest
import yaml

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
from datasets import Features

from pipeline.export.dataset_card import dataset_card
from pipeline.shards.format import shard_schema
from pipeline.statistics.counts import PatchStatistics

MADE = {"patcher": {"rule": "byte"}, "entropy_model": {}, "sources": []}


@pytest.mark.parametrize("name", ["dtype", "list", "a: b", "yes", "1", "a.b", "é\u2028", "_type"])
def test_columns_of_any_name_are_described_or_left_to_the_files(name):
    schema = shard_schema([name])
    counts = PatchStatistics.of(np.array([3]), np.array([1, 2]), np.zeros(3, np.float16))
    card = dataset_card(name, schema, MADE, counts, 0, (1, 1), {})
    metadata = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    assert metadata["pretty_name"] == name
    if name == "_type":  # a key of datasets' own descriptions
        assert "features" not in metadata["dataset_info"]
        return
    features = Features._from_yaml_list(metadata["dataset_info"]["features"])
    assert features.arrow_schema.names == schema.names
    assert features.arrow_schema.types == schema.types
