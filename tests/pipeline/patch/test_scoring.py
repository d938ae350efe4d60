"""Entropies as they are stored: what the model must not give."""

import numpy as np
import pytest

from model import NGramEntropyModel, Patcher
from pipeline.errors import PipelineError
from pipeline.patch.scoring import Scorer


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_entropies_that_are_no_numbers_stop_the_job(broken):
    model = NGramEntropyModel(np.full(1 << 18, broken, np.float16), {})
    with pytest.raises(PipelineError, match="--entropy-model: gave an entropy that is not a num"):
        Scorer(model, Patcher(1.0)).score([b"text"])
    assert Scorer(model, Patcher(1.0)).score([]).lengths_D.tolist() == []
